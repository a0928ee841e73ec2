# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics: data and arguments that cannot be, and series that look hard and can."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.exceptions import NotFittedError

from .cases import fitted_attributes
from .linear_dynamics_cases import READERS, assert_usable, fitted, framed, quick, rotation

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = rotation()
TABLE = X.reshape(-1, 3)
GROUPS = np.repeat([0, 1, 2, 3], 20)
INF = X.copy()
INF[1, 3, 2] = np.inf
UNNAMED = framed(X)
UNNAMED.index = pd.MultiIndex.from_tuples(
    [(None if i == 7 else run, step) for i, (run, step) in enumerate(UNNAMED.index)]
)


# ---- what cannot be read ----

BAD_DATA = {
    "1-D": (X[0, :, 0], {}, "Expected 2D array, got 1D array"),
    "4-D": (X[None], {}, "X must have 2 or 3 dimensions, got 4"),
    "scalar": (3.0, {}, "Expected 2D array, got scalar"),
    "None": (None, {}, "Expected 2D array, got scalar"),
    "empty list": ([], {}, "X is an empty list: it has no sequences.*list of arrays of shape"),
    "no sequences": (X[:0], {}, "X has no sequences: its shape is"),
    "no steps": (X[:, :0], {}, "X has no steps: its shape is"),
    "no rows": (TABLE[:0], {}, r"0 sample\(s\)"),
    "no features": (X[..., :0], {}, r"0 feature\(s\)"),
    "a sequence without steps": ([X[0], X[1, :0]], {}, r"X\[1\] is a sequence without steps"),
    "lists of one feature": (
        [X[0, :, 0], X[1, :5, 0]],
        {},
        r"must have shape \(n_timesteps, 1\), .*reshape\(-1, 1\)",
    ),
    "unequal features": (
        [X[0], X[1, :, :2]],
        {},
        r"different numbers of features: X\[0\] has 3 and X\[1\] has 2",
    ),
    "unequal dimensions": ([X[0], X[1, :, 0]], {}, r"X\[0\] has 2 and X\[1\] has 1"),
    "infinite": (INF, {}, "X contains infinity"),
    "infinite in a list": (list(INF), {}, "X contains infinity"),
    "complex": (X + 1j, {}, "Complex data not supported"),
    "text": (np.full((4, 5, 2), "a"), {}, "X must hold numbers, but .*'a'.* Encode"),
    "text in a list": ([np.array([["a"], ["b"]])], {}, "X must hold numbers, but .*'a'"),
    "groups of a wrong length": (
        TABLE,
        {"groups": GROUPS[1:]},
        "groups must have one id per row of X, got 79 ids for 80 rows",
    ),
    "groups with NaN": (
        TABLE,
        {"groups": np.where(np.arange(80) == 7, np.nan, GROUPS)},
        "groups has no id for 1 of 80 rows, the first of them row 7",
    ),
    "groups with None": (
        TABLE,
        {"groups": [None if i in (7, 9) else "a" for i in range(80)]},
        "groups has no id for 2 of 80 rows, the first of them row 7",
    ),
    "groups in two dimensions": (TABLE, {"groups": GROUPS[:, None]}, "groups must have one dim"),
    "an index with gaps": (UNNAMED, {}, "level 0 of the index of X has no id for 1 of 80 rows"),
    "3-D and groups": (X, {"groups": [0, 1, 2, 3]}, "groups must be None here: X is a 3-D array"),
    "list and groups": (list(X), {"groups": GROUPS}, "groups must be None here: X is a list"),
    "MultiIndex and groups": (
        framed(X),
        {"groups": GROUPS},
        "groups must be None here: X has a MultiIndex",
    ),
}
METHODS = ["fit", "partial_fit", "refit_dynamics", "forecast", "score", *READERS]


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_read(case):
    """Said alike by all methods, and without a trace."""
    data, groups, message = BAD_DATA[case]
    estimator = copy.deepcopy(fitted())
    before = fitted_attributes(estimator)
    for name in METHODS:
        method = getattr(estimator, name)
        arguments = {"n_steps": 2} if name == "forecast" else {}
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            method(data, **arguments, **groups)
    after = fitted_attributes(estimator)
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())
    estimator = quick()
    for method in (estimator.fit, estimator.partial_fit, estimator.fit_transform):
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            method(data, **groups)
    assert vars(estimator) == estimator.get_params(deep=False)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.coo_matrix])
def test_sparse_data_have_to_be_dense(kind):
    for data in (kind(TABLE), [kind(TABLE), kind(TABLE)]):
        with pytest.raises(TypeError, match=r"[Ss]parse.*toarray"):
            quick().fit(data)
        with pytest.raises(TypeError, match=r"[Ss]parse.*toarray"):
            fitted().transform(data)


@pytest.mark.parametrize("name", ["partial_fit", "refit_dynamics", *READERS])
def test_wrong_number_of_features(name):
    for data in (X[..., :2], list(X[..., :2]), TABLE[:, :2]):
        with pytest.raises(ValueError, match=r"X has 2 features, .* expecting 3 features"):
            getattr(fitted(), name)(data)


def test_one_row_is_not_enough_to_fit():
    for data in (TABLE[:1], X[:1, :1], [TABLE[:1]]):
        with pytest.raises(ValueError, match=r"1 sample\(s\) .* minimum of 2"):
            quick().fit(data)
    assert_usable(fitted(), X[:1, :1])


@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 1e300), (np.float32, 1e30)])
def test_rows_out_of_reach(dtype, value):
    estimator = quick().fit(X.astype(dtype))
    far = X.astype(dtype)
    far[2, 3, 1] = value
    for name in READERS:
        with pytest.raises(ValueError, match=r"X has the value 1e\+30+ in row 43, column 1, .*far"):
            getattr(estimator, name)(far)
    far[2, 3, 1] = 1e5
    assert_usable(estimator, far)


@pytest.mark.parametrize(("likelihood", "value"), [("poisson", -1.0), ("bernoulli", 2.0)])
def test_values_outside_the_domain(likelihood, value):
    counts = np.random.default_rng(0).integers(0, 2, size=X.shape).astype(float)
    bad = counts.copy()
    bad[1, 3, 2] = value
    estimator = quick(likelihood=likelihood)
    message = rf"X has 1 value\(s\) that likelihood='{likelihood}' cannot model, such as {value}"
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(bad)
    estimator.fit(counts)
    for name in ("partial_fit", "refit_dynamics", *READERS):
        with pytest.raises(ValueError, match=message):
            getattr(estimator, name)(bad)


# ---- arguments of methods ----


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", None])
def test_counts(count):
    estimator = fitted()
    calls = {
        "n_steps": lambda: estimator.forecast(X, count),
        "n_draws": lambda: estimator.forecast(X, 2, n_draws=count),
        "n_draws ": lambda: estimator.impute(X, n_draws=count),
        "n_samples": lambda: estimator.sample(count),
        "n_sequences": lambda: estimator.sample(2, count),
    }
    for name, call in calls.items():
        if count is None and name.startswith("n_draws"):
            continue
        with pytest.raises(
            ValueError,
            match=rf"{name.strip()} must be an integer of at least 1, got {count!r}",
        ):
            call()
    assert estimator.forecast(X, np.int64(2), np.int32(3)).shape == (3, 4, 2, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(79), r"must hold finite numbers in shape \(80,\), got shape \(79,\)"),
        (np.ones((80, 1)), r"must hold finite numbers in shape \(80,\), got shape \(80, 1\)"),
        (1.0, r"must hold finite numbers in shape \(80,\)"),
        (np.full(80, np.nan), r"must hold finite numbers .* contains NaN"),
        (["a"] * 80, "must hold finite numbers"),
        (np.arange(80) - 1.0, "must not be negative, got -1"),
    ],
)
def test_weights_have_to_fit(weights, message):
    with pytest.raises(ValueError, match="sample_weight " + message):
        fitted().score(X, sample_weight=weights)


def test_weights_of_nothing():
    with pytest.raises(ValueError, match="no observed row of positive weight"):
        fitted().score(X, sample_weight=np.zeros(80))


def test_latents_of_a_wrong_shape():
    estimator = fitted()
    for latents in (np.zeros((5, 3)), np.zeros((2, 5, 3)), [np.zeros((5, 3)), np.zeros((1, 3))]):
        with pytest.raises(ValueError, match=r"Z has 3 columns, but this \w+ has 2 latent dim"):
            estimator.inverse_transform(latents)
    for latents, message in (
        (np.zeros(2), "Expected 2D array, got 1D"),
        (np.full((1, 2), np.nan), "Z contains NaN"),
        ([["a", "b"]], "could not convert"),
    ):
        with pytest.raises(ValueError, match=message):
            estimator.inverse_transform(latents)


def test_unfitted_estimators_say_so():
    estimator = quick()
    calls = [
        *(lambda name=name: getattr(estimator, name)(X) for name in READERS),
        lambda: estimator.score(X),
        lambda: estimator.forecast(X, 3),
        lambda: estimator.refit_dynamics(X),
        lambda: estimator.replace_dynamics(offset=[0, 0]),
        lambda: estimator.inverse_transform(X),
        lambda: estimator.sample(),
        lambda: estimator.get_feature_names_out(),
    ]
    for call in calls:
        with pytest.raises(NotFittedError, match="not fitted"):
            call()
    assert vars(estimator) == estimator.get_params(deep=False)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"transition_matrix": np.eye(3)}, r"transition_matrix .* shape \(2, 2\), got shape"),
        ({"transition_matrix": np.full((2, 2), np.nan)}, "transition_matrix .* contains NaN"),
        ({"offset": [1.0]}, r"offset .* shape \(2,\), got shape \(1,\)"),
        ({"offset": "up"}, "offset must hold finite numbers"),
        ({"noise_covariance": [[1, 2], [0, 1]]}, "noise_covariance is not symmetric"),
        ({"noise_covariance": -np.eye(2)}, "noise_covariance is not positive definite"),
    ],
)
def test_dynamics_that_cannot_be(edit, message):
    with pytest.raises(ValueError, match=message):
        fitted().replace_dynamics(**edit)


# ---- parameters ----

BAD_PARAMETERS = {
    "prior of a wrong shape": (
        {"noise_covariance_prior": np.eye(3)},
        r"noise_covariance_prior must hold finite numbers in shape \(2, 2\), got shape \(3, 3\)",
    ),
    "prior that is no matrix": (
        {"noise_covariance_prior": [1.0, 1.0]},
        r"noise_covariance_prior .* shape \(2, 2\), got shape \(2,\)",
    ),
    "prior that is not symmetric": (
        {"noise_covariance_prior": [[1, 2], [0, 1]]},
        "noise_covariance_prior is not symmetric.* 0.1",
    ),
    "prior that is not definite": (
        {"noise_covariance_prior": [[1, 2], [2, 1]]},
        "noise_covariance_prior is not positive definite: its smallest eigenvalue is -1",
    ),
    "too few degrees of freedom": (
        {"latent_dim": 3, "degrees_of_freedom_prior": 2, "noise_covariance_prior": None},
        "degrees_of_freedom_prior must exceed latent_dim - 1 = 2, got 2",
    ),
    "no degrees of freedom": (
        {"degrees_of_freedom_prior": 0},
        "The 'degrees_of_freedom_prior' parameter .* Got 0 instead",
    ),
    "no precision": (
        {"transition_precision_prior": 0.0},
        "The 'transition_precision_prior' parameter .* Got 0.0 instead",
    ),
    "rows": ({"rows": "time"}, "The 'rows' parameter .*'consecutive'.* Got 'time' instead"),
    "sequence_length": ({"sequence_length": 0}, "The 'sequence_length' parameter .* Got 0 instead"),
    "latent_dim": ({"latent_dim": 0}, "The 'latent_dim' parameter .* Got 0 instead"),
    "likelihood": ({"likelihood": "cauchy"}, "likelihood must be one of 'gaussian'.*'cauchy'"),
    "hidden layers": ({"hidden_layer_sizes": (5, 0)}, r"hidden_layer_sizes must be .* got \(5, 0"),
    "device": ({"device": "warp"}, "device='warp' is not available.*'cpu' always is"),
}


@pytest.mark.parametrize(("params", "message"), BAD_PARAMETERS.values(), ids=list(BAD_PARAMETERS))
def test_parameters_that_cannot_be(params, message):
    estimator = quick(**params)
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(X)
    assert fitted_attributes(estimator) == {}
    # And what an earlier fit left stays as it was.
    estimator = copy.deepcopy(fitted())
    before = fitted_attributes(estimator)
    estimator.set_params(**params)
    with pytest.raises(ValueError, match=message):
        estimator.fit(X)
    assert all(fitted_attributes(estimator)[name] is value for name, value in before.items())


@pytest.mark.parametrize(
    "changed", [{"latent_dim": 3}, {"hidden_layer_sizes": (4,)}, {"likelihood": "student_t"}]
)
def test_a_fit_that_goes_on_keeps_its_shape(changed):
    estimator = quick(warm_start=True, noise_covariance_prior=None).fit(X).set_params(**changed)
    (name,) = changed
    with pytest.raises(ValueError, match=rf"{name}=.* does not go with the last fit"):
        estimator.fit(X)
    with pytest.raises(ValueError, match=rf"{name}=.* does not go with the last fit"):
        estimator.partial_fit(X)
    assert_usable(estimator.set_params(warm_start=False).fit(X), X)


def test_too_little_to_hold_some_out():
    with pytest.raises(ValueError, match=r"fraction.* holds out all of 1 sequences|holds out all"):
        quick(early_stopping=True, validation_fraction=0.9).fit([X[0, :2]])


def test_training_that_diverges_says_so_and_leaves_what_there_was():
    estimator = copy.deepcopy(fitted())
    before = fitted_attributes(estimator)
    estimator.set_params(learning_rate_init=1e6, max_iter=5)
    with pytest.raises(
        ValueError, match=r"Training diverged: .* lower learning_rate_init"
    ) as raised:
        estimator.fit(X)
    for name in re.findall(r"\w+_prior", str(raised.value)):
        assert name in estimator.get_params() or name == "covariance_prior"
    assert all(fitted_attributes(estimator)[name] is value for name, value in before.items())
