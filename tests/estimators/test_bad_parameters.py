# SPDX-License-Identifier: BSD-3-Clause
"""Parameters that cannot be, and training that fails: every case has a clear error."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch

from sksvae import VAE, SVAEGaussianMixture
from sksvae.likelihoods import LIKELIHOODS

from .cases import (
    assert_usable,
    blobs,
    data_for,
    each_estimator,
    fitted,
    fitted_attributes,
    outputs,
    quick,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, _ = blobs()


# ---- parameters ----


@each_estimator
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_unknown_likelihood(Estimator, method):
    estimator = quick(Estimator, likelihood="cauchy")
    with pytest.raises(
        ValueError, match=r"likelihood must be one of 'gaussian', .* or an instance .* got 'cauchy'"
    ):
        getattr(estimator, method)(X)
    assert fitted_attributes(estimator) == {}


@each_estimator
@pytest.mark.parametrize("likelihood", [3, None, LIKELIHOODS["gaussian"]], ids=str)
def test_likelihood_of_a_wrong_type(Estimator, likelihood):
    with pytest.raises(ValueError, match=r"The 'likelihood' parameter of .* Got .* instead"):
        quick(Estimator, likelihood=likelihood).fit(X)


@each_estimator
@pytest.mark.parametrize(
    ("likelihood", "value"), [("poisson", -1.0), ("poisson", 0.5), ("bernoulli", 2), ("gamma", -2)]
)
def test_values_outside_the_domain(Estimator, likelihood, value):
    rows = data_for(likelihood)
    bad = rows.copy()
    bad[4, 2] = value
    message = (
        rf"X has 1 value\(s\) that likelihood='{likelihood}' cannot model, such as "
        rf"{float(value)} in row 4, column 2\. .* accepted by likelihood='gaussian'"
    )
    estimator = quick(Estimator, likelihood=likelihood)
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(bad)
    assert fitted_attributes(estimator) == {}
    estimator.fit(rows)
    for method in (estimator.transform, estimator.score_samples, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(bad)


@each_estimator
@pytest.mark.parametrize("device", ["warp", "cuda:99", "meta", ""])
def test_unavailable_device(Estimator, device):
    message = rf"device='{device}' is not available .* device='cpu' always is"
    estimator = quick(Estimator, device=device)
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(X)
    assert fitted_attributes(estimator) == {}
    estimator = copy.deepcopy(fitted(Estimator)).set_params(device=device)
    for method in (estimator.transform, estimator.score, lambda _: estimator.sample()):
        with pytest.raises(ValueError, match=message):
            method(X)


@each_estimator
@pytest.mark.parametrize("sizes", [(0,), (-3,), (5, 0), (0.5,), (10.7,), [[1, 2]], ("a",), [None]])
def test_hidden_layer_sizes(Estimator, sizes):
    with pytest.raises(
        ValueError, match=r"hidden_layer_sizes must be positive integers, .* \(\) for none, got"
    ) as raised:
        quick(Estimator, hidden_layer_sizes=sizes).fit(X)
    assert repr(sizes) in str(raised.value)


EYE = np.eye(3)
BAD_PRIORS = {
    "mean shape": ({"mean_prior": [0, 0]}, r"mean_prior .* shape \(3,\), got shape \(2,\)"),
    "mean 2-D": ({"mean_prior": EYE[:1]}, r"mean_prior .* shape \(3,\), got shape \(1, 3\)"),
    "mean NaN": ({"mean_prior": [0, 0, np.nan]}, "mean_prior .*finite.* contains NaN"),
    "mean text": ({"mean_prior": ["a", "b", "c"]}, "mean_prior must hold .* numbers.*'a'"),
    "covariance shape": (
        {"covariance_prior": np.eye(2)},
        r"covariance_prior .* shape \(3, 3\), got shape \(2, 2\)",
    ),
    "covariance 1-D": (
        {"covariance_prior": [1, 1, 1]},
        r"covariance_prior .* shape \(3, 3\), got shape \(3,\)",
    ),
    "covariance infinite": (
        {"covariance_prior": np.full((3, 3), np.inf)},
        "covariance_prior .* finite",
    ),
    "covariance asymmetric": (
        {"covariance_prior": EYE + np.triu(0.1 * np.ones((3, 3)))},
        r"covariance_prior is not symmetric: .* by 0.1\. It must be",
    ),
    "covariance indefinite": (
        {"covariance_prior": np.diag([1.0, 1.0, -0.5])},
        r"covariance_prior is not positive definite: its smallest eigenvalue is -0.5\. It must be",
    ),
    "covariance singular": ({"covariance_prior": np.ones((3, 3))}, "not positive definite"),
    "degrees of freedom": (
        {"degrees_of_freedom_prior": 2},
        r"degrees_of_freedom_prior must exceed latent_dim - 1 = 2, got 2",
    ),
    "weights": (
        {"weight_concentration_prior": 0.0},
        r"'weight_concentration_prior' parameter .* must be .* Got 0.0",
    ),
}


@pytest.mark.parametrize(("params", "message"), BAD_PRIORS.values(), ids=list(BAD_PRIORS))
def test_invalid_priors(params, message):
    estimator = quick(SVAEGaussianMixture, **params)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        estimator.fit(X)
    assert fitted_attributes(estimator) == {}


# ---- training that fails ----


@each_estimator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_an_objective_that_is_not_finite(Estimator, likelihood, dtype):
    estimator = quick(
        Estimator, likelihood=likelihood, learning_rate_init=1e300, pretraining_iter=0
    )
    with pytest.raises(ValueError, match=r"Training diverged: .* lower learning_rate_init"):
        estimator.fit(data_for(likelihood).astype(dtype))
    assert fitted_attributes(estimator) == {}


def test_the_failing_term_is_named():
    with pytest.raises(
        ValueError,
        match=r"the reconstruction term .* of the objective is not finite for \d+ of \d+ rows",
    ):
        quick(VAE, learning_rate_init=1e100, hidden_layer_sizes=()).fit(X)


@each_estimator
def test_a_single_step_that_spoils_the_weights(Estimator):
    """There is no objective after it to show the damage."""
    estimator = quick(Estimator, learning_rate_init=1e300, max_iter=1, pretraining_iter=0)
    with pytest.raises(ValueError, match="Training diverged"):
        estimator.fit(X.astype(np.float32))
    with pytest.raises(ValueError, match="Training diverged"):
        estimator.partial_fit(X.astype(np.float32))
    assert fitted_attributes(estimator) == {}


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (torch.linalg.LinAlgError("not positive definite."), "inference fails, since not positive"),
        (np.nan, "the bound is nan"),
    ],
    ids=["inference", "bound"],
)
def test_an_end_that_is_not_finite(monkeypatch, outcome, message):
    def mean_bound(*_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(VAE, "_mean_bound", mean_bound)
    estimator = quick(VAE)
    with pytest.raises(ValueError, match=f"Training diverged: .*{message}.*learning_rate_init=0"):
        estimator.fit(X)
    assert fitted_attributes(estimator) == {}


@each_estimator
@pytest.mark.parametrize("how", ["fit", "warm_start", "partial_fit", "features"])
def test_a_fit_that_fails_leaves_the_one_before(Estimator, how):
    estimator = quick(Estimator).fit(pd.DataFrame(X, columns=list("abc")))
    before = outputs(estimator, pd.DataFrame(X, columns=list("abc")))
    attributes = fitted_attributes(estimator)
    arrays = {name: np.copy(value) for name, value in attributes.items()}
    estimator.set_params(learning_rate_init=1e300, warm_start=how == "warm_start")
    table = pd.DataFrame(X, columns=list("abc"))
    if how == "features":
        table = pd.DataFrame(np.column_stack([X, X]), columns=list("uvwxyz"))
    method = estimator.partial_fit if how == "partial_fit" else estimator.fit
    with pytest.raises(ValueError, match="Training diverged"):
        method(table)
    assert fitted_attributes(estimator).keys() == attributes.keys()
    for name, value in fitted_attributes(estimator).items():
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)
    for name, value in outputs(estimator, pd.DataFrame(X, columns=list("abc"))).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("Estimator", "params"),
    [
        (SVAEGaussianMixture, {"n_components": 4}),
        (SVAEGaussianMixture, {"hidden_layer_sizes": (7,)}),
        (VAE, {"hidden_layer_sizes": ()}),
        (VAE, {"activation": "tanh"}),
        (VAE, {"latent_dim": 2}),
        (VAE, {"likelihood": "student_t"}),
    ],
)
def test_a_fit_of_another_architecture_is_not_continued(Estimator, params):
    (name,) = params
    estimator = quick(Estimator, warm_start=True).fit(X).set_params(**params)
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=rf"{name}=.* does not go with .* {name}=.* fit anew"):
            method(X)
    estimator.set_params(warm_start=False).fit(X)
    assert_usable(estimator, X)
