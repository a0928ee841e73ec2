# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics on sequences in every form: equal fits, and outputs that mirror the form."""

import numpy as np
import pandas as pd
import pytest

from sksvae.sequences import SequenceWarning

from .cases import assert_same_attributes, fitted_attributes
from .linear_dynamics_cases import (
    NAMES,
    READERS,
    fitted,
    framed,
    in_turn,
    quick,
    ragged,
    read_all,
    rotation,
    with_gaps,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = with_gaps(rotation())
N_SEQUENCES, N_STEPS, N_FEATURES = X.shape
STACKED = X.reshape(-1, N_FEATURES)
BLOCKS = np.repeat(["b", "c", "a", "d"], N_STEPS)
TURNS, TURN_GROUPS, BACK = in_turn(X)

# What is passed, and how rows of an output become stacked again.
FORMS = {
    "3-D array": (X, {}, np.concatenate),
    "nested lists": (X.tolist(), {}, np.concatenate),
    "list": (list(X), {}, np.concatenate),
    "list of frames": ([pd.DataFrame(s) for s in X], {}, np.concatenate),
    "groups": (STACKED, {"groups": BLOCKS}, np.asarray),
    "frame and groups": (pd.DataFrame(STACKED), {"groups": pd.Series(BLOCKS)}, np.asarray),
    "groups in turn": (TURNS, {"groups": TURN_GROUPS}, lambda rows: np.asarray(rows)[BACK]),
    "MultiIndex": (framed(X), {}, np.asarray),
}
each_form = pytest.mark.parametrize("form", FORMS)


def in_form(form):
    data, groups, stack = FORMS[form]
    return data, groups, stack


def without_names(estimator):
    return {k: v for k, v in fitted_attributes(estimator).items() if k != "feature_names_in_"}


@pytest.fixture(scope="module")
def by_array():
    return quick().fit(X)


@each_form
@pytest.mark.filterwarnings("error::UserWarning")  # none of the forms leaves anything to guess
@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_every_form_gives_the_same_fit_to_the_bit(form, by_array):
    data, groups, _ = in_form(form)
    estimator = quick().fit(data, **groups)
    expected = without_names(by_array)
    for name, value in without_names(estimator).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@each_form
def test_outputs_mirror_the_form(form, by_array):
    """Asked of one estimator, whatever it was fitted on."""
    data, groups, stack = in_form(form)
    width = {"transform": (2,), "predict": (3,), "impute": (3,), "score_samples": ()}
    for name, expected in read_all(by_array, X).items():
        assert expected.shape == (N_SEQUENCES, N_STEPS, *width[name])
        said = getattr(by_array, name)(data, **groups)
        assert isinstance(said, list) == form.startswith("list")
        if isinstance(said, np.ndarray):
            n_dims = 2 if isinstance(data, np.ndarray | list) and np.ndim(data) == 3 else 1
            assert said.shape[n_dims:] == width[name]
        np.testing.assert_array_equal(stack(said), np.concatenate(expected), err_msg=name)
    assert by_array.score(data, **groups) == by_array.score(X)


@each_form
def test_inverse_transform_mirrors_the_form(form, by_array):
    data, groups, stack = in_form(form)
    latents = by_array.transform(data, **groups)
    rows = by_array.inverse_transform(latents)
    assert isinstance(rows, list) == form.startswith("list")
    expected = by_array.inverse_transform(by_array.transform(X))
    assert expected.shape == X.shape
    np.testing.assert_allclose(stack(rows), np.concatenate(expected), rtol=0, atol=1e-12)


@each_form
def test_forecasts_have_one_entry_per_sequence_in_every_form(form, by_array):
    data, groups, _ = in_form(form)
    expected = by_array.forecast(X, 3), by_array.forecast(X, 3, n_draws=5)
    mean, std = by_array.forecast(data, n_steps=3, **groups)
    assert mean.shape == std.shape == (N_SEQUENCES, 3, N_FEATURES)
    np.testing.assert_array_equal(mean, expected[0][0])
    np.testing.assert_array_equal(std, expected[0][1])
    draws = by_array.forecast(data, n_steps=3, n_draws=5, **groups)
    assert draws.shape == (5, N_SEQUENCES, 3, N_FEATURES)
    np.testing.assert_array_equal(draws, expected[1])


@each_form
def test_completions_are_drawn_in_every_form(form, by_array):
    data, groups, stack = in_form(form)
    draws = by_array.impute(data, n_draws=5, **groups)
    expected = by_array.impute(X, n_draws=5)
    assert expected.shape == (5, *X.shape)
    if isinstance(draws, list):
        assert [part.shape for part in draws] == [(5, N_STEPS, N_FEATURES)] * N_SEQUENCES
        draws = np.stack(draws, 1)
    elif draws.ndim == 3:
        assert draws.shape == (5, N_SEQUENCES * N_STEPS, N_FEATURES)
        draws = np.stack([stack(draw) for draw in draws]).reshape(expected.shape)
    np.testing.assert_array_equal(draws, expected)


@pytest.mark.parametrize("form", ["3-D array", "list", "groups in turn"])
def test_fit_transform_is_fit_and_transform(form, by_array):
    data, groups, stack = in_form(form)
    latents = quick().fit_transform(data, **groups)
    np.testing.assert_array_equal(stack(latents), np.concatenate(by_array.transform(X)))


@pytest.mark.parametrize("form", ["list", "groups in turn", "MultiIndex"])
def test_partial_fit_and_refit_take_every_form(form):
    data, groups, _ = in_form(form)
    first, second = quick().partial_fit(X), quick().partial_fit(data, **groups)
    first.partial_fit(X).refit_dynamics(X)
    second.partial_fit(data, **groups).refit_dynamics(data, **groups)
    expected = without_names(first)
    for name, value in without_names(second).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


# ---- ragged sequences ----


def test_ragged_sequences_in_a_list_and_with_groups():
    sequences = with_gaps(ragged())
    table, groups, back = in_turn(sequences)
    estimator = quick().fit(sequences)
    other = quick().fit(table, groups=groups)
    assert_same_attributes(estimator, other)
    for name in READERS:
        by_list = getattr(estimator, name)(sequences)
        assert [len(part) for part in by_list] == [len(sequence) for sequence in sequences]
        by_table = getattr(other, name)(table, groups=groups)[back]
        np.testing.assert_array_equal(by_table, np.concatenate(by_list))
    assert estimator.forecast(sequences, 3)[0].shape == (4, 3, 3)
    draws = estimator.impute(sequences, n_draws=2)
    assert [part.shape for part in draws] == [(2, len(s), 3) for s in sequences]


def test_weights_belong_to_rows_of_the_table(by_array):
    rng = np.random.default_rng(0)
    weights = rng.uniform(size=len(TURNS))
    scores = by_array.score_samples(TURNS, groups=TURN_GROUPS)
    observed = ~np.isnan(TURNS).all(1)
    expected = np.average(scores[observed], weights=weights[observed])
    assert by_array.score(TURNS, groups=TURN_GROUPS, sample_weight=weights) == pytest.approx(
        expected, abs=1e-12
    )
    stacked = by_array.score(STACKED, groups=BLOCKS, sample_weight=weights[BACK])
    assert stacked == pytest.approx(expected, abs=1e-12)


# ---- tables alone ----

SERIES = rotation(1, 60)[0]
SHUFFLED = np.random.default_rng(1).permutation(SERIES)


@pytest.mark.filterwarnings("error::sksvae.sequences.forms.SequenceWarning")
@pytest.mark.parametrize("rows", ["auto", "consecutive"])
def test_a_series_is_one_sequence(rows):
    estimator = quick(rows=rows).fit(SERIES)
    assert estimator.rows_ == "consecutive"
    by_list = quick().fit([SERIES])
    assert_same_attributes(estimator, by_list)
    for name, value in read_all(estimator, SERIES).items():
        np.testing.assert_array_equal(value, getattr(by_list, name)([SERIES])[0], err_msg=name)
    # Later tables are not tested again: neither a shuffled one nor a single row is looked at.
    assert estimator.transform(SHUFFLED).shape == (60, 2)
    np.testing.assert_array_equal(
        estimator.transform(SHUFFLED), estimator.transform(SHUFFLED[None])[0]
    )


@pytest.mark.parametrize("rows", ["auto", "independent"])
def test_rows_without_order_are_sequences_of_one_step(rows, recwarn):
    estimator = quick(rows=rows).fit(SHUFFLED)
    warned = [w for w in recwarn if issubclass(w.category, SequenceWarning)]
    assert len(warned) == (rows == "auto")
    if warned:
        message = str(warned[0].message)
        for way in ("rows='consecutive'", "groups", "list", "3-D array", "rows='independent'"):
            assert way in message
        assert warned[0].filename == __file__
    assert estimator.rows_ == "independent"
    by_array = quick().fit(SHUFFLED[:, None])
    for name in READERS:
        np.testing.assert_allclose(
            getattr(estimator, name)(SHUFFLED),
            getattr(by_array, name)(SHUFFLED[:, None])[:, 0],
            rtol=0,
            atol=1e-9,
        )
    recwarn.clear()
    # A series is not tested again either, nor is anything said.
    estimator.transform(SERIES)
    np.testing.assert_allclose(estimator.transform(SERIES)[:5], estimator.transform(SERIES[:5]))
    assert not [w for w in recwarn if issubclass(w.category, SequenceWarning)]
    assert estimator.forecast(SERIES, 2)[0].shape == (60, 2, 3)


def test_explicit_forms_leave_later_tables_consecutive(by_array):
    assert by_array.rows_ == "consecutive"
    mean, std = by_array.forecast(SERIES, 3)
    assert mean.shape == std.shape == (3, N_FEATURES)
    assert by_array.forecast(SERIES, 3, n_draws=2).shape == (2, 3, N_FEATURES)
    assert by_array.impute(SERIES, n_draws=2).shape == (2, 60, N_FEATURES)
    np.testing.assert_array_equal(by_array.forecast([SERIES], 3)[0][0], mean)
    assert by_array.forecast([SERIES], 3)[0].shape == (1, 3, N_FEATURES)


def test_rows_of_a_fit_stay_until_the_next():
    estimator = quick().fit(SERIES).set_params(rows="independent")
    expected = quick().fit(SERIES).transform(SERIES)
    np.testing.assert_array_equal(estimator.transform(SERIES), expected)
    assert estimator.fit(SERIES).rows_ == "independent"


@pytest.mark.parametrize("fitted_on", ["list", "MultiIndex"])
def test_fitted_on_one_form_and_asked_in_another(fitted_on):
    data, groups, _ = in_form(fitted_on)
    estimator = quick().fit(data, **groups)
    for form in FORMS:
        asked, groups, stack = in_form(form)
        scores = stack(estimator.score_samples(asked, **groups))
        np.testing.assert_allclose(scores, np.concatenate(estimator.score_samples(X)))
    assert np.isfinite(estimator.forecast(SERIES, 2)[0]).all()


# ---- names and frames ----


def test_names_of_features():
    estimator = quick().fit(framed(X))
    np.testing.assert_array_equal(estimator.feature_names_in_, NAMES)
    renamed = framed(X).rename(columns={"up": "down"})
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.transform(renamed)
    by_list = quick().fit([pd.DataFrame(s, columns=NAMES) for s in X])
    np.testing.assert_array_equal(by_list.feature_names_in_, NAMES)
    assert not hasattr(quick().fit(X), "feature_names_in_")
    np.testing.assert_array_equal(
        estimator.get_feature_names_out(), ["svaelineardynamics0", "svaelineardynamics1"]
    )


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output_on_tables(container):
    pytest.importorskip(container)
    estimator = quick().set_output(transform=container)
    frame = framed(X)
    for latents in (estimator.fit_transform(frame), estimator.transform(frame)):
        assert type(latents).__module__.startswith(container)
        assert list(latents.columns) == list(estimator.get_feature_names_out())
    if container == "pandas":
        pd.testing.assert_index_equal(latents.index, frame.index)
        # Latents in a frame that tells sequences apart come back as such.
        np.testing.assert_array_equal(
            estimator.inverse_transform(latents), estimator.inverse_transform(latents.to_numpy())
        )
        by_groups = estimator.transform(pd.DataFrame(TURNS, columns=NAMES), groups=TURN_GROUPS)
        assert isinstance(by_groups, pd.DataFrame)
        np.testing.assert_array_equal(by_groups.to_numpy()[BACK], latents.to_numpy())


@pytest.mark.parametrize("form", ["3-D array", "list", "nested lists", "list of frames"])
def test_set_output_leaves_what_no_frame_can_hold(form, by_array):
    data, _, stack = in_form(form)
    estimator = quick().set_output(transform="pandas")
    for latents in (estimator.fit_transform(data), estimator.transform(data)):
        assert isinstance(latents, list) == form.startswith("list")
        assert not any(isinstance(part, pd.DataFrame) for part in latents)
        np.testing.assert_array_equal(stack(latents), np.concatenate(by_array.transform(X)))


def test_latents_and_samples_in_any_form_are_decoded():
    estimator = fitted()
    rows, latents = estimator.sample(6, 3)
    assert rows.shape == (3, 6, 3)
    assert latents.shape == (3, 6, 2)
    assert estimator.inverse_transform(latents).shape == rows.shape
    assert estimator.inverse_transform(latents[0]).shape == (6, 3)
    parts = estimator.inverse_transform([latents[0], latents[1, :2]])
    assert [part.shape for part in parts] == [(6, 3), (2, 3)]
    rows, latents = estimator.sample(6)
    assert rows.shape == (6, 3)
    assert latents.shape == (6, 2)
    assert estimator.sample()[0].shape == (1, 3)
