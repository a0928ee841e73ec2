# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics: data and arguments that cannot be, and series that look hard and can."""

import copy
import re

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from .cases import fitted_attributes
from .switching_cases import READERS, assert_usable, fitted, quick, turning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = turning()[1]
TABLE, GROUPS = X.reshape(-1, 3), np.repeat([0, 1, 2, 3], 30)
INF = X.copy()
INF[1, 3, 2] = np.inf
METHODS = ["fit", "partial_fit", "fit_predict", "refit_dynamics", "forecast", "score", *READERS]

# ---- what cannot be read ----

BAD_DATA = {
    "1-D": (X[0, :, 0], {}, "Expected 2D array, got 1D array"),
    "4-D": (X[None], {}, "X must have 2 or 3 dimensions, got 4"),
    "no sequences": (X[:0], {}, "X has no sequences: its shape is"),
    "a sequence without steps": ([X[0], X[1, :0]], {}, r"X\[1\] is a sequence without steps"),
    "unequal features": ([X[0], X[1, :, :2]], {}, r"X\[0\] has 3 and X\[1\] has 2"),
    "infinite": (INF, {}, "X contains infinity"),
    "infinite in a list": (list(INF), {}, "X contains infinity"),
    "a column of text": (
        np.concatenate([TABLE.astype(object), np.full((120, 1), "walks")], 1),
        {},
        "X must hold numbers, but .*'walks'.* Encode",
    ),
    "groups of a wrong length": (
        TABLE,
        {"groups": GROUPS[1:]},
        "groups must have one id per row of X, got 119 ids for 120 rows",
    ),
    "groups without an id": (
        TABLE,
        {"groups": np.where(np.arange(120) == 7, np.nan, GROUPS)},
        "groups has no id for 1 of 120 rows, the first of them row 7",
    ),
    "3-D and groups": (X, {"groups": [0, 1, 2, 3]}, "groups must be None here: X is a 3-D array"),
    "list and groups": (list(X), {"groups": GROUPS}, "groups must be None here: X is a list"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_read(case):
    """Said alike by all methods, and without a trace."""
    data, groups, message = BAD_DATA[case]
    estimator = copy.deepcopy(fitted())
    before = fitted_attributes(estimator)
    for name in METHODS:
        arguments = {"n_steps": 2} if name == "forecast" else {}
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            getattr(estimator, name)(data, **arguments, **groups)
    after = fitted_attributes(estimator)
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())
    estimator = quick()
    for name in ("fit", "partial_fit", "fit_predict", "fit_transform"):
        with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
            getattr(estimator, name)(data, **groups)
    assert vars(estimator) == estimator.get_params(deep=False)


def test_wrong_number_of_features():
    for name in METHODS[3:]:
        if name != "forecast":
            for data in (X[..., :2], list(X[..., :2]), TABLE[:, :2]):
                with pytest.raises(ValueError, match=r"X has 2 features, .* expecting 3 features"):
                    getattr(fitted(), name)(data)


def test_one_row_is_not_enough_to_fit():
    for data in (TABLE[:1], X[:1, :1], [TABLE[:1]]):
        with pytest.raises(ValueError, match=r"1 sample\(s\) .* minimum of 2"):
            quick().fit(data)
    assert_usable(fitted(), X[:1, :1])


def test_nothing_observed_is_an_error_in_training_only():
    nothing, estimator = np.full((2, 4, 3), np.nan), quick()
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=r"X has no observed value: every entry is NaN"):
            method(nothing)
    assert vars(estimator) == estimator.get_params(deep=False)
    with pytest.raises(ValueError, match=r"X has no observed row of positive weight"):
        fitted().score(nothing)
    assert_usable(fitted(), nothing)
    assert (fitted().score_samples(nothing) == 0).all()


def test_rows_out_of_reach():
    far = X.copy()
    far[2, 3, 1] = 1e300
    for name in READERS:
        with pytest.raises(ValueError, match=r"X has the value 1e\+300 in row 63, column 1, .*far"):
            getattr(fitted(), name)(far)
    far[2, 3, 1] = 1e5
    assert_usable(fitted(), far[2:3, :6])


def test_unfitted_estimators_say_so():
    estimator = quick()
    calls = [
        *(lambda name=name: getattr(estimator, name)(X) for name in READERS),
        lambda: estimator.score(X),
        lambda: estimator.forecast(X, 3),
        lambda: estimator.refit_dynamics(X),
        lambda: estimator.inverse_transform(X),
        lambda: estimator.sample(),
        lambda: estimator.get_feature_names_out(),
    ]
    for call in calls:
        with pytest.raises(NotFittedError, match="not fitted"):
            call()
    assert vars(estimator) == estimator.get_params(deep=False)


@pytest.mark.parametrize("count", [0, -1, 1.5, "3"])
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
        message = rf"{name.strip()} must be an integer of at least 1, got {count!r}"
        with pytest.raises(ValueError, match=message):
            call()


# ---- parameters ----

BAD_PARAMETERS = {
    "n_states": ({"n_states": 0}, "The 'n_states' parameter .* Got 0 instead"),
    "n_states that are no number": ({"n_states": 2.0}, "The 'n_states' parameter .* Got 2.0"),
    "latent_dim": ({"latent_dim": 0}, "The 'latent_dim' parameter .* Got 0 instead"),
    "stickiness": ({"stickiness_prior": 0.0}, "The 'stickiness_prior' parameter .* Got 0.0"),
    "concentration": (
        {"transition_concentration_prior": -1.0},
        "The 'transition_concentration_prior' parameter .* Got -1.0",
    ),
    "gradient": (
        {"implicit_gradient": "exact"},
        "The 'implicit_gradient' parameter .*'richardson'.* Got 'exact' instead",
    ),
    "max_updates": ({"max_updates": 0}, "The 'max_updates' parameter .* Got 0 instead"),
    "n_starts": ({"n_starts": 0}, "The 'n_starts' parameter .* Got 0 instead"),
    "rows": ({"rows": "time"}, "The 'rows' parameter .*'consecutive'.* Got 'time' instead"),
    "sequence_length": ({"sequence_length": 0}, "The 'sequence_length' parameter .* Got 0 instead"),
    "likelihood": ({"likelihood": "cauchy"}, "likelihood must be one of 'gaussian'.*'cauchy'"),
    "prior of a wrong shape": (
        {"noise_covariance_prior": np.eye(3)},
        r"noise_covariance_prior must hold finite numbers in shape \(2, 2\), got shape \(3, 3\)",
    ),
    "too few degrees of freedom": (
        {"latent_dim": 3, "degrees_of_freedom_prior": 2},
        "degrees_of_freedom_prior must exceed latent_dim - 1 = 2, got 2",
    ),
    "device": ({"device": "warp"}, "device='warp' is not available.*'cpu' always is"),
}


@pytest.mark.parametrize(("params", "message"), BAD_PARAMETERS.values(), ids=list(BAD_PARAMETERS))
def test_parameters_that_cannot_be(params, message):
    estimator = quick(**params)
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(X)
    assert fitted_attributes(estimator) == {}


def test_a_fit_that_goes_on_keeps_its_shape():
    estimator = copy.deepcopy(fitted()).set_params(warm_start=True, n_states=5)
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=r"n_states=5 does not go with the last fit, .*=3"):
            method(X)


def test_training_that_diverges_says_so_and_leaves_what_there_was():
    estimator = copy.deepcopy(fitted()).set_params(learning_rate_init=1e6, max_iter=5)
    before = fitted_attributes(estimator)
    with pytest.raises(ValueError, match=r"Training diverged: .* lower learning_rate_init"):
        estimator.fit(X)
    assert all(fitted_attributes(estimator)[name] is value for name, value in before.items())


# ---- series that look hard ----

TIME = np.arange(40.0)[:, None]
RNG = np.random.default_rng(0)
STILL = np.where(TIME < 20, 1.5, 1.5 + np.sin(TIME) + 0.01 * RNG.normal(size=(40, 1)))
HARD = {
    "constant, then moves": STILL,
    "zeros": np.zeros((12, 2)),
    "a constant column": np.concatenate([X[:2], np.full((2, 30, 1), 7.0)], -1)[:, :12],
    "two steps": X[0, :2],
    "sequences of one step": list(X[0, :8, None]),
    "recordings much shorter than a window": [X[0, :3], X[1, :2], X[2, :4], X[3, :1]],
    "one long and many short": [X[0], *X[1, :5, None]],
    "a jump": (TIME > 20).astype(float),
    "a trend": TIME * [1.0, -2.0],
    "an outlier": np.concatenate([X[0, :10], [[1e9, 0, 0]], X[1, :10]]),
    "columns on many scales": X[:2, :12] * [1e-8, 1.0, 1e8],
    "far from zero": X[:2, :12] + 1e8,
    "more columns than steps": RNG.normal(size=(6, 15)).cumsum(0),
}
QUICKEST = ["a constant column", "recordings much shorter than a window"]


@pytest.mark.filterwarnings("error::RuntimeWarning")  # nothing overflows unseen
@pytest.mark.filterwarnings("ignore:The dynamics are unstable:RuntimeWarning")
@pytest.mark.parametrize(
    "case",
    [case if case in QUICKEST else pytest.param(case, marks=pytest.mark.slow) for case in HARD],
)
def test_hard_series(case):
    series = HARD[case]
    estimator = quick(3, rows="consecutive", max_iter=1).fit(series)
    assert_usable(estimator, series)


def test_rest_and_motion_are_told_apart():
    estimator = quick(4, rows="consecutive", noise_covariance_prior=0.01).fit(STILL)
    states = estimator.predict(STILL)
    assert all(np.isfinite(part).all() for part in estimator.forecast(STILL, 5))
    rest, motion = states[1:20], states[20:]
    assert estimator.n_states_ > 1
    assert (rest == np.bincount(rest).argmax()).mean() > 0.9
    assert (motion != np.bincount(rest).argmax()).mean() > 0.8


def test_a_recording_shorter_than_any_in_training():
    assert fitted().predict(X[:, :1]).shape == (4, 1)
    assert_usable(fitted(), [X[0, :1], X[1, :2]])
