# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics on sequences in every form: equal fits, and outputs that mirror the form."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksvae.sequences import SequenceWarning

from .cases import assert_same_attributes, fitted_attributes
from .linear_dynamics_cases import NAMES, framed, in_turn, with_gaps
from .switching_cases import quick, read_all, turning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

WHOLE = turning()[1]
X = with_gaps(WHOLE[:, :10])
N_SEQUENCES, N_STEPS, N_FEATURES = X.shape
STACKED = X.reshape(-1, N_FEATURES)
TURNS, TURN_GROUPS, BACK = in_turn(X)

# What is passed, and how rows of an output become stacked again.
FORMS = {
    "list": (list(X), {}, np.concatenate),
    "groups in turn": (TURNS, {"groups": TURN_GROUPS}, lambda rows: np.asarray(rows)[BACK]),
    "MultiIndex": (framed(X), {}, np.asarray),
}
each_form = pytest.mark.parametrize("form", FORMS)


def tiny(**params):
    """Return an estimator for fits of half a second."""
    return quick(**({"max_iter": 1} | params))


def without_names(estimator):
    return {k: v for k, v in fitted_attributes(estimator).items() if k != "feature_names_in_"}


@pytest.fixture(scope="module")
def by_array():
    return tiny().fit(X)


@pytest.fixture(scope="module")
def expected(by_array):
    return read_all(by_array, X)


@each_form
@pytest.mark.filterwarnings("error::UserWarning")  # none of the forms leaves anything to guess
@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_every_form_gives_the_same_fit_to_the_bit(form, by_array):
    data, groups, _ = FORMS[form]
    estimator = tiny().fit(data, **groups)
    fitted = without_names(by_array)
    for name, value in without_names(estimator).items():
        np.testing.assert_array_equal(value, fitted[name], err_msg=name)


@each_form
def test_outputs_mirror_the_form(form, by_array, expected):
    """Asked of one estimator, whatever it was fitted on."""
    data, groups, stack = FORMS[form]
    K = by_array.n_states_
    widths = {"transform": (2,), "predict_proba": (K,), "impute": (3,)}
    for name, wanted in expected.items():
        assert wanted.shape == (N_SEQUENCES, N_STEPS, *widths.get(name, ()))
        said = getattr(by_array, name)(data, **groups)
        assert isinstance(said, list) == (form == "list")
        np.testing.assert_array_equal(stack(said), np.concatenate(wanted), err_msg=name)
    assert by_array.score(data, **groups) == by_array.score(X)


@each_form
def test_forecasts_and_draws_mirror_the_form(form, by_array):
    data, groups, stack = FORMS[form]
    moments = by_array.forecast(data, 3, **groups), by_array.forecast(X, 3)
    for one, other in zip(*moments, strict=True):
        assert one.shape == (N_SEQUENCES, 3, N_FEATURES)
        np.testing.assert_array_equal(one, other)
    draws = by_array.forecast(data, n_steps=3, n_draws=5, **groups)
    np.testing.assert_array_equal(draws, by_array.forecast(X, 3, n_draws=5))
    draws = by_array.impute(data, n_draws=5, **groups)
    expected = by_array.impute(X, n_draws=5)
    assert expected.shape == (5, *X.shape)
    if isinstance(draws, list):
        draws = np.stack(draws, 1)
    elif draws.ndim == 3:
        draws = np.stack([stack(draw) for draw in draws]).reshape(expected.shape)
    np.testing.assert_array_equal(draws, expected)


def test_fit_predict_and_fit_transform_are_fit_and_then_the_other():
    data, groups, _ = FORMS["groups in turn"]
    estimator = tiny()
    states = estimator.fit_predict(data, **groups)
    np.testing.assert_array_equal(states, estimator.predict(data, **groups))
    assert states.shape == (len(data),)
    again = tiny()
    np.testing.assert_array_equal(
        again.fit_transform(data, **groups), estimator.transform(data, **groups)
    )
    assert_same_attributes(again, estimator)


def test_ragged_sequences_in_a_list_and_with_groups():
    sequences = [X[0], WHOLE[1, :1], X[2, :6], WHOLE[3, :12]]
    table, groups, back = in_turn(sequences)
    estimator, other = tiny().fit(sequences), tiny().fit(table, groups=groups)
    assert_same_attributes(estimator, other)
    for name, by_list in read_all(estimator, sequences).items():
        assert [len(part) for part in by_list] == [len(sequence) for sequence in sequences]
        by_table = getattr(other, name)(table, groups=groups)[back]
        np.testing.assert_array_equal(by_table, np.concatenate(by_list), err_msg=name)
    assert estimator.forecast(sequences, 3)[0].shape == (4, 3, 3)


def test_partial_fit_and_refit_take_every_form():
    data, groups, _ = FORMS["groups in turn"]
    first = tiny().partial_fit(X).partial_fit(X).refit_dynamics(X)
    second = tiny().partial_fit(data, **groups).partial_fit(data, **groups)
    second.refit_dynamics(data, **groups)
    assert_same_attributes(first, second)


# ---- tables alone ----

SERIES = WHOLE[0]
SHUFFLED = np.random.default_rng(1).permutation(SERIES)


@pytest.mark.filterwarnings("error::sksvae.sequences.forms.SequenceWarning")
def test_a_series_is_one_sequence():
    estimator = tiny().fit(SERIES)
    assert estimator.rows_ == "consecutive"
    by_list = tiny(rows="consecutive").fit([SERIES])
    assert_same_attributes(estimator, by_list)
    for name, value in read_all(estimator, SERIES).items():
        np.testing.assert_array_equal(value, getattr(by_list, name)([SERIES])[0], err_msg=name)
    # Later tables are not tested again.
    np.testing.assert_array_equal(
        estimator.predict(SHUFFLED[:20]), estimator.predict(SHUFFLED[None, :20])[0]
    )
    assert estimator.predict(SERIES[:1]).shape == (1,)


@pytest.mark.parametrize("rows", ["auto", pytest.param("independent", marks=pytest.mark.slow)])
def test_rows_without_order_are_sequences_of_one_step(rows, recwarn):
    estimator = tiny(rows=rows).fit(SHUFFLED)
    warned = [w for w in recwarn if issubclass(w.category, SequenceWarning)]
    assert len(warned) == (rows == "auto")
    assert estimator.rows_ == "independent"
    for name, value in read_all(estimator, SHUFFLED).items():
        by_array = getattr(estimator, name)(SHUFFLED[:, None])[:, 0]
        np.testing.assert_allclose(value, by_array, rtol=0, atol=1e-9, err_msg=name)
    assert estimator.forecast(SERIES[:7], 2)[0].shape == (7, 2, 3)


# ---- frames ----


def test_set_output_on_tables():
    frame = framed(X)
    estimator = tiny().set_output(transform="pandas").fit(frame)
    np.testing.assert_array_equal(estimator.feature_names_in_, NAMES)
    latents = estimator.transform(frame)
    assert list(latents.columns) == ["svaeswitchinglds0", "svaeswitchinglds1"]
    pd.testing.assert_index_equal(latents.index, frame.index)
    np.testing.assert_array_equal(latents, np.concatenate(estimator.transform(X)))
    assert isinstance(estimator.transform(X), np.ndarray)
    assert isinstance(estimator.transform(list(X)), list)
    # Only latents are features: states and probabilities are arrays.
    for name in ("predict", "predict_proba", "decode"):
        assert isinstance(getattr(estimator, name)(frame), np.ndarray)


# ---- pipelines and searches ----


def test_in_a_pipeline_on_a_series():
    pipeline = make_pipeline(StandardScaler(), tiny())
    states = pipeline.fit_predict(SERIES)
    inner = pipeline[:-1].transform(SERIES)
    alone = tiny().fit(inner)
    np.testing.assert_array_equal(states, alone.predict(inner))
    for name in ("transform", "predict_proba", "score_samples"):
        np.testing.assert_array_equal(getattr(pipeline, name)(SERIES), getattr(alone, name)(inner))
    assert pipeline.score(SERIES) == alone.score(inner)


GRID = {"n_states": [1, 2]}


def test_grid_search_over_sequences():
    data = WHOLE[:, :10]
    search = GridSearchCV(tiny(), GRID, cv=2, error_score="raise").fit(data)
    first = tiny(**search.best_params_).fit(data[2:]).score(data[:2])
    assert search.cv_results_["split0_test_score"][search.best_index_] == pytest.approx(first)
    assert search.predict(data).shape == (4, 10)


def test_grid_search_with_routed_groups_in_a_pipeline():
    table, groups = STACKED, np.repeat(np.arange(4), N_STEPS)
    with sklearn.config_context(enable_metadata_routing=True):
        last = tiny().set_fit_request(groups=True)
        last.set_score_request(groups=True, sample_weight=True)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), last),
            {f"svaeswitchinglds__{name}": values for name, values in GRID.items()},
            cv=GroupKFold(2),
            error_score="raise",
            refit=False,
        ).fit(table, groups=groups)
    best = {name.split("__")[1]: value for name, value in search.best_params_.items()}
    train, test = next(GroupKFold(2).split(table, groups=groups))
    scaler = StandardScaler().fit(table[train])
    alone = tiny(**best).fit(scaler.transform(table[train]), groups=groups[train])
    expected = alone.score(scaler.transform(table[test]), groups=groups[test])
    split = search.cv_results_["split0_test_score"][search.best_index_]
    assert split == pytest.approx(expected)
