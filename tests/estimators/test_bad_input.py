# SPDX-License-Identifier: BSD-3-Clause
"""Every bad input gives a clear error or a right result, and leaves nothing half-fitted."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import NotFittedError

from sksvae import VAE, SVAEGaussianMixture
from sksvae.likelihoods import LIKELIHOODS

from .cases import (
    ESTIMATORS,
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
READERS = ["transform", "score", "score_samples", "predict", "predict_proba", "refit_mixture"]
READINGS = [
    (Estimator, name) for Estimator in ESTIMATORS for name in READERS if hasattr(Estimator, name)
]


def assert_usable(estimator, rows):
    """Check that everything that a fitted estimator says is finite."""
    for name, value in outputs(estimator, rows).items():
        assert np.isfinite(value).all(), name
    assert np.isfinite(estimator.sample(20)[0]).all()
    assert np.isfinite(estimator.lower_bound_)


# ---- tables that cannot be fitted ----

NAN, INF = X.copy(), X.copy()
NAN[3, 1], INF[3, 1] = np.nan, np.inf
BAD_TABLES = {
    "empty": (np.empty((0, 3)), r"0 sample\(s\) .*shape=\(0, 3\).* minimum of 2"),
    "no columns": (np.empty((5, 0)), r"0 feature\(s\) .*shape=\(5, 0\)"),
    "one row": (X[:1], r"1 sample\(s\) .*shape=\(1, 3\).* minimum of 2"),
    "1-D": (X[:, 0], "Expected 2D array, got 1D array.*reshape"),
    "3-D": (X[None], "dim 3"),
    "scalar": (3.0, "Expected 2D array, got scalar"),
    "None": (None, "Expected 2D array, got scalar"),
    "complex": (X + 1j, "Complex data not supported"),
    "NaN": (NAN, "Input X contains NaN"),
    "infinite": (INF, "Input X contains infinity"),
    "text": (np.array([["a", "b"], ["c", "d"]]), "X must hold numbers, but .*'a'.* Encode"),
    "objects": (np.array([[1, "b"], [2, "d"]], object), "X must hold numbers, but .*'b'.* Encode"),
    "text column": (
        pd.DataFrame({"size": [1.0, 2.0], "colour": ["red", "blue"]}),
        "X must hold numbers, but .*'red'.* Encode",
    ),
    "category column": (
        pd.DataFrame({"size": [1.0, 2.0], "colour": pd.Categorical(["red", "blue"])}),
        "X must hold numbers, but .*'red'.* Encode",
    ),
}


@each_estimator
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("table", "message"), BAD_TABLES.values(), ids=list(BAD_TABLES))
def test_tables_that_cannot_be_fitted(Estimator, method, table, message):
    estimator = quick(Estimator)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        getattr(estimator, method)(table)
    assert fitted_attributes(estimator) == {}


@each_estimator
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_matrix])
def test_sparse_tables_have_to_be_dense(Estimator, kind):
    with pytest.raises(TypeError, match=r"Sparse data was passed for X.*toarray"):
        quick(Estimator).fit(kind(X))


@pytest.mark.parametrize(("Estimator", "reader"), READINGS)
def test_tables_that_cannot_be_read(Estimator, reader):
    estimator = fitted(Estimator)
    for name in ("empty", "1-D", "complex", "NaN", "infinite", "text"):
        table, message = BAD_TABLES[name]
        with pytest.raises(ValueError, match=re.compile(message.split(" minimum")[0], re.DOTALL)):
            getattr(estimator, reader)(table)


def test_fewer_rows_than_components():
    estimator = quick(SVAEGaussianMixture, n_components=5)
    message = r"n_components=5 .* n_samples = 4\. Lower n_components or pass more rows"
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(X[:4])
    assert_usable(estimator.fit(X[:5]), X[:5])
    # Also when it was fitted before.
    with pytest.raises(ValueError, match=message):
        estimator.fit(X[:4])


@each_estimator
def test_too_few_rows_to_hold_some_out(Estimator):
    estimator = quick(Estimator, n_components=5, early_stopping=True, validation_fraction=0.9)
    with pytest.raises(
        ValueError, match=r"validation_fraction=0.9 leaves 0 of 6 samples .* or lower validation"
    ):
        estimator.fit(X[:6])
    estimator.set_params(validation_fraction=0.1)
    assert_usable(estimator.fit(X[:6]), X)


def test_rows_to_hold_out_count_against_components():
    estimator = quick(SVAEGaussianMixture, n_components=5, early_stopping=True)
    with pytest.raises(ValueError, match=r"leaves 4 of 5 samples for training, and at least 5 are"):
        estimator.fit(X[:5])


# ---- tables that look hard, and are fitted ----

SCALES = np.array([1e-8, 1.0, 1e8])
HARD_TABLES = {
    "two rows": X[:2],
    "some constant columns": np.column_stack([X, np.ones(len(X)), np.full(len(X), -1e9)]),
    "constant columns only": np.full((10, 3), 0.1),
    "zeros": np.zeros((10, 3)),
    "duplicated rows": np.repeat(X[:2], 10, axis=0),
    "columns on many scales": X * SCALES,
    "large": X * 1e6,
    "huge": X * 1e300,
    "tiny": X * 1e-300,
    "far from zero": X + 1e8,
    "single precision": X.astype(np.float32),
    "single precision on many scales": (X * SCALES).astype(np.float32),
    "half precision": X.astype(np.float16),
    "integers": (10 * X).astype(int),
    "booleans": X > 0,
    "lists": X.tolist(),
    "Fortran order": np.asfortranarray(X),
    "strided": np.repeat(X, 2, axis=0)[::-2],
    "one column": X[:, :1],
    "more columns than rows": np.random.default_rng(0).normal(size=(8, 30)),
    "an outlier": np.concatenate([X, [[1e9, 0, 0]]]),
    "collinear columns": X @ np.ones((3, 3)),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")  # nothing overflows unseen
@each_estimator
@pytest.mark.parametrize("table", HARD_TABLES.values(), ids=list(HARD_TABLES))
def test_hard_tables(Estimator, table):
    estimator = quick(Estimator, n_components=2).fit(table)
    assert_usable(estimator, table)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("table", HARD_TABLES.values(), ids=list(HARD_TABLES))
def test_hard_tables_on_one_scale(table):
    assert_usable(quick(VAE, standardize=False).fit(table), table)


@each_estimator
def test_columns_keep_their_own_scales(Estimator):
    draws, _ = quick(Estimator).fit(X * SCALES).sample(300)
    ratio = draws.std(0) / (X * SCALES).std(0)
    assert (ratio > 0.5).all()
    assert (ratio < 2).all()


@each_estimator
def test_constant_columns_stay_constant(Estimator):
    table = np.column_stack([X, np.full(len(X), 7.0)])
    estimator = quick(Estimator).fit(table)
    reconstruction = estimator.inverse_transform(estimator.transform(table))
    np.testing.assert_allclose(reconstruction[:, 3], 7.0, atol=0.3)


@each_estimator
@pytest.mark.filterwarnings("error")
def test_arrays_that_torch_cannot_wrap(Estimator):
    """Read-only, as pandas hands them out, or reversed."""
    frozen = X.copy()
    frozen.flags.writeable = False
    estimator = fitted(Estimator)
    latents = estimator.transform(X)
    reconstruction = estimator.inverse_transform(latents)
    for table in (frozen, X[::-1][::-1], pd.DataFrame(X).to_numpy()):
        np.testing.assert_array_equal(estimator.transform(table), latents)
        np.testing.assert_array_equal(estimator.score_samples(table), estimator.score_samples(X))
    np.testing.assert_allclose(estimator.inverse_transform(latents[::-1]), reconstruction[::-1])
    latents.flags.writeable = False
    np.testing.assert_array_equal(estimator.inverse_transform(latents), reconstruction)
    if Estimator is SVAEGaussianMixture:
        edited = estimator.move_component(0, latents[3, ::-1])
        np.testing.assert_array_equal(edited.means_[0], latents[3, ::-1])


@pytest.mark.filterwarnings("error:The given NumPy array:UserWarning")
def test_priors_that_torch_cannot_wrap():
    frozen = np.eye(3)
    frozen.flags.writeable = False
    estimator = quick(SVAEGaussianMixture, mean_prior=np.arange(3)[::-1], covariance_prior=frozen)
    assert_usable(estimator.fit(X), X)


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


# ---- estimators that are not fitted, and rows that do not fit ----


@each_estimator
def test_unfitted_estimators_say_so(Estimator):
    estimator = quick(Estimator)
    calls = [
        *(lambda name=name: getattr(estimator, name)(X) for name in READERS),
        lambda: estimator.inverse_transform(X),
        lambda: estimator.sample(),
        lambda: estimator.get_feature_names_out(),
        lambda: estimator.remove_component(0),
        lambda: estimator.move_component(0, np.zeros(3)),
    ]
    for call in calls:
        with pytest.raises((NotFittedError, AttributeError)) as raised:
            call()
        if not isinstance(raised.value, NotFittedError):
            assert "has no attribute" in str(raised.value)
            assert Estimator is VAE
    assert vars(estimator) == estimator.get_params(deep=False)


@pytest.mark.parametrize(
    ("Estimator", "method"),
    [*READINGS, *((Estimator, "partial_fit") for Estimator in ESTIMATORS)],
)
def test_wrong_number_of_features(Estimator, method):
    estimator = fitted(Estimator)
    for table in (X[:, :2], np.column_stack([X, X])):
        with pytest.raises(ValueError, match=rf"X has {table.shape[1]} features, .* expecting 3"):
            getattr(estimator, method)(table)
    assert estimator.n_features_in_ == 3


@each_estimator
def test_wrong_column_names(Estimator):
    table = pd.DataFrame(X, columns=list("abc"))
    estimator = quick(Estimator).fit(table)
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.transform(table[["b", "a", "c"]])


@each_estimator
def test_inverse_transform_of_the_wrong_width(Estimator):
    estimator = quick(Estimator, latent_dim=2).fit(X)
    with pytest.raises(ValueError, match=r"Z has 3 columns, but this \w+ has 2 latent dimensions"):
        estimator.inverse_transform(X)
    for latents, message in (
        (np.zeros(2), "Expected 2D array, got 1D"),
        (np.full((1, 2), np.nan), "Input Z contains NaN"),
        (np.zeros((0, 2)), "0 sample"),
        ([["a", "b"]], "could not convert"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.inverse_transform(latents)


@each_estimator
@pytest.mark.parametrize("n_samples", [0, -1, 1.5, "3", None])
def test_number_of_samples(Estimator, n_samples):
    estimator = fitted(Estimator)
    with pytest.raises(
        ValueError, match=rf"n_samples must be an integer of at least 1, got {n_samples!r}"
    ):
        estimator.sample(n_samples)
    assert estimator.sample(np.int64(2))[0].shape == (2, 3)


@each_estimator
@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 1e300), (np.float32, 1e30)])
def test_rows_out_of_reach(Estimator, dtype, value):
    """Once NaN from `transform` without a word."""
    estimator = quick(Estimator).fit(X.astype(dtype))
    rows = X.astype(dtype)
    rows[5, 1] = value
    for method in (estimator.transform, estimator.score_samples):
        with pytest.raises(ValueError, match=r"X has the value 1e\+30+ in row 5, column 1, .*far"):
            method(rows)
    rows[5, 1] = 1e5
    for said in outputs(estimator, rows).values():
        assert np.isfinite(said).all()


@each_estimator
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_double_precision_rows_for_a_single_precision_model(Estimator):
    estimator = quick(Estimator).fit(X.astype(np.float32))
    with pytest.raises(ValueError, match="too large for dtype"):
        estimator.transform(X * 1e200)
