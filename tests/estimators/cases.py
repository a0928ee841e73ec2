# SPDX-License-Identifier: BSD-3-Clause
"""Estimators that fit in a blink, and small tables for them."""

import functools
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from sksvae import VAE, SVAEGaussianMixture

ESTIMATORS = [SVAEGaussianMixture, VAE]
each_estimator = pytest.mark.parametrize("Estimator", ESTIMATORS)

_QUICK = {
    "hidden_layer_sizes": (6,),
    "max_iter": 2,
    "pretraining_iter": 1,
    "n_starts": 1,
    "random_state": 0,
}


def quick(Estimator, **params):
    """Return an estimator that hardly trains; `params` it does not have are left out."""
    names = Estimator._get_param_names()
    params = {**_QUICK, **params}
    return Estimator(**{name: value for name, value in params.items() if name in names})


def trained(Estimator, **params):
    """Return an estimator that trains for long enough to be good on easy data."""
    return quick(Estimator, **{"max_iter": 25, "learning_rate_init": 0.02, **params})


def blobs(n_per_blob=20, n_features=3, n_blobs=2, distance=8.0, seed=0):
    """Return well separated round blobs of decreasing size, rows shuffled, and their labels."""
    rng = np.random.default_rng(seed)
    sizes = [n_per_blob * (n_blobs - k) for k in range(n_blobs)]
    labels = rng.permutation(np.repeat(np.arange(n_blobs), sizes))
    centres = distance * np.eye(n_blobs, n_features)
    return centres[labels] + rng.normal(size=(len(labels), n_features)), labels


def data_for(likelihood, n_rows=30, n_features=4, seed=0):
    """Return a table in the domain of a likelihood, given by its name, with two groups of rows."""
    rng = np.random.default_rng(seed)
    rate = np.where(rng.integers(2, size=(n_rows, 1)) == 1, [[1, 1, 6, 6]], [[6, 6, 1, 1]])
    rate = rate[:, :n_features].astype(float)
    if likelihood == "bernoulli":
        return (rng.uniform(size=rate.shape) < rate / 7).astype(float)
    if likelihood == "poisson":
        return rng.poisson(rate).astype(float)
    if likelihood == "gamma":
        return rng.gamma(1.0, rate)
    return rng.normal(rate)


@functools.cache
def fitted(Estimator):
    """Return an estimator that was fitted to `blobs`, for tests that only read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return quick(Estimator, n_components=2).fit(blobs()[0])


def fitted_attributes(estimator):
    """Return what a fit left, with the dictionaries of arrays laid flat."""
    found = {}
    for name, value in vars(estimator).items():
        if not name.endswith("_"):
            continue
        if isinstance(value, dict):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found


def assert_same_attributes(first, second):
    """Check that two estimators were fitted to the same, to the bit."""
    first, second = fitted_attributes(first), fitted_attributes(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def outputs(estimator, X):
    """Return everything that a fitted estimator says about rows."""
    said = {
        "transform": estimator.transform(X),
        "score_samples": estimator.score_samples(X),
        "inverse_transform": estimator.inverse_transform(estimator.transform(X)),
    }
    if hasattr(estimator, "predict_proba"):
        said["predict_proba"] = estimator.predict_proba(X)
        said["predict"] = estimator.predict(X)
    return said


def assert_same_outputs(first, second, X, atol=0.0):
    """Check that two fitted estimators say the same about rows."""
    expected = outputs(second, X)
    for name, value in outputs(first, X).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=atol, err_msg=name)


def assert_usable(estimator, rows):
    """Check that everything that a fitted estimator says is finite."""
    for name, value in outputs(estimator, rows).items():
        assert np.isfinite(value).all(), name
    assert np.isfinite(estimator.sample(20)[0]).all()
    assert np.isfinite(estimator.lower_bound_)
