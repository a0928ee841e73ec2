# SPDX-License-Identifier: BSD-3-Clause
"""Tables that cannot be fitted or look hard, and rows that do not fit a fitted estimator."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.exceptions import NotFittedError

from sksvae import VAE, SVAEGaussianMixture

from .cases import (
    ESTIMATORS,
    assert_usable,
    blobs,
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


# ---- tables that cannot be fitted ----

NAN, INF = X.copy(), X.copy()
NAN[3, 1], INF[3, 1] = np.nan, np.inf
BAD_TABLES = {
    "empty": (np.empty((0, 3)), r"0 sample\(s\) .*shape=\(0, 3\).* minimum of 2"),
    "no columns": (np.empty((5, 0)), r"0 feature\(s\) .*shape=\(5, 0\)"),
    "one row": (X[:1], r"1 sample\(s\) .*shape=\(1, 3\).* minimum of 2"),
    "1-D": (X[:, 0], "Expected 2D array, got 1D array.*reshape"),
    "3-D": (X[None], "dim 3"),
    "list of tables": (
        [X[:3], X[3:7]],
        r"X must be one table .* list of 2 arrays of shapes \(3, 3\), \(4, 3\): "
        r"np.concatenate\(X\) .* SVAELinearDynamics and SVAESwitchingLDS",
    ),
    "tuple of frames": (
        tuple(pd.DataFrame(X[i : i + 2]) for i in range(5)),
        r"tuple of 5 arrays of shapes \(2, 3\), \(2, 3\), \(2, 3\), \.\.\.: np.concatenate",
    ),
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
    "date column": (
        pd.DataFrame({"size": [1.0, 2.0], "day": pd.date_range("2020", periods=2)}),
        "X must hold numbers, but .* such as dates .* Encode",
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
    for name in ("empty", "1-D", "list of tables", "complex", "NaN", "infinite", "text"):
        table, message = BAD_TABLES[name]
        with pytest.raises(ValueError, match=re.compile(message.split(" minimum")[0], re.DOTALL)):
            getattr(estimator, reader)(table)


@each_estimator
def test_lists_of_rows_are_tables(Estimator):
    want = quick(Estimator).fit(X)
    for rows in (X.tolist(), [np.array(row) for row in X]):
        got = quick(Estimator).fit(rows)
        assert got.lower_bound_ == want.lower_bound_
        np.testing.assert_array_equal(got.transform(rows), want.transform(X))


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
