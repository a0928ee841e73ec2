# SPDX-License-Identifier: BSD-3-Clause
"""Which sequences are around, missing values, and units: what must not matter, does not."""

import numpy as np
import pytest

from .linear_dynamics_cases import (
    READERS,
    assert_usable,
    fitted,
    quick,
    ragged,
    read_all,
    rotation,
    with_gaps,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = rotation()
SEQUENCES = with_gaps(ragged((12, 1, 7, 20, 20, 3)))


def assert_close(said, expected, err_msg=""):
    for part, other in zip(said, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=0, atol=1e-9, err_msg=err_msg)


# ---- sequences do not depend on the sequences around them ----


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_other_sequences_and_their_order_do_not_matter(likelihood):
    """Sequence by sequence, what scikit-learn's checks of subsets and orders of rows ask for."""
    sequences = SEQUENCES
    if likelihood == "poisson":
        sequences = [np.round(np.exp(sequence)) for sequence in SEQUENCES]
    estimator = quick(3, likelihood=likelihood).fit(sequences)
    order = [4, 2, 0, 5, 1, 3]
    for name, whole in read_all(estimator, sequences).items():
        read = getattr(estimator, name)
        assert_close(read([sequences[i] for i in order]), [whole[i] for i in order], name)
        assert_close([read([sequence])[0] for sequence in sequences], whole, name)
        assert_close(read(sequences[:3]) + read(sequences[3:]), whole, name)
        assert_close(read(sequences + sequences)[6:], whole, name)
    whole = estimator.forecast(sequences, 4)
    parts = [estimator.forecast([sequences[i]], 4) for i in range(6)]
    for part, moment in zip(zip(*parts, strict=True), whole, strict=True):
        assert_close(np.concatenate(part), moment)


def test_batches_of_sequences_do_not_matter(monkeypatch):
    estimator = fitted()
    whole, forecast = read_all(estimator, SEQUENCES), estimator.forecast(SEQUENCES, 3)
    monkeypatch.setattr("sksvae.estimators.sequences.CHUNK_STEPS", 10)
    monkeypatch.setattr("sksvae.estimators.sequence_predictions.AT_ONCE", 3)
    for name, value in read_all(estimator, SEQUENCES).items():
        assert_close(value, whole[name], name)
    for part, expected in zip(estimator.forecast(SEQUENCES, 3), forecast, strict=True):
        assert_close(part, expected)


@pytest.mark.parametrize("stretch", [1, 3, 7, 19])
def test_long_sequences_are_read_in_stretches(monkeypatch, stretch):
    """Never all of their steps at once, and the result is the same."""
    estimator, short, held = fitted(), 7, []
    whole, forecast = read_all(estimator, SEQUENCES), estimator.forecast(SEQUENCES, 3)
    module = "sksvae.estimators.linear_predictions"
    monkeypatch.setattr(f"{module}._LONG", short)
    monkeypatch.setattr(f"{module}._STRETCH", stretch)
    monkeypatch.setattr("sksvae.estimators.sequences.CHUNK_STEPS", short)
    stacked = type(estimator)._stacked

    def recorded(self, values, lengths, *arguments):
        held.append(len(values))
        return stacked(self, values, lengths, *arguments)

    monkeypatch.setattr(type(estimator), "_stacked", recorded)
    for name, value in read_all(estimator, SEQUENCES).items():
        assert_close(value, whole[name], name)
    for part, expected in zip(estimator.forecast(SEQUENCES, 3), forecast, strict=True):
        assert_close(part, expected)
    # With a stretch come two steps on each side.
    assert max(held) <= max(stretch + 4, short)


def test_many_sequences_agree_with_one_at_a_time():
    estimator = fitted()
    many = np.random.default_rng(0).normal(size=(300, 5, 3))
    for name, value in read_all(estimator, many).items():
        for i in (0, 123, 299):
            assert_close(getattr(estimator, name)(many[i : i + 1])[0], value[i], name)


def test_predictions_use_earlier_rows_only():
    estimator = fitted()
    other = X.copy()
    other[:, 8:] += 1.0
    for name in ("predict",):
        said, expected = getattr(estimator, name)(other), getattr(estimator, name)(X)
        assert_close(said[:, :9], expected[:, :9])
        assert np.abs(said[:, 9:] - expected[:, 9:]).max() > 0.01
    assert np.abs(estimator.transform(other) - estimator.transform(X))[:, :8].max() > 1e-6


# ---- missing values ----


def test_observed_values_are_left_as_they_are():
    estimator = fitted()
    for sequence, filled in zip(SEQUENCES, estimator.impute(SEQUENCES), strict=True):
        known = ~np.isnan(sequence)
        np.testing.assert_array_equal(filled[known], sequence[known])
        assert np.isfinite(filled).all()
    for sequence, draws in zip(SEQUENCES, estimator.impute(SEQUENCES, 3), strict=True):
        known = ~np.isnan(sequence)
        np.testing.assert_array_equal(draws[:, known], np.tile(sequence[known], (3, 1)))
        assert np.isfinite(draws).all()
        assert (draws[0] != draws[1])[~known].all()
    np.testing.assert_array_equal(estimator.impute(X), X)


@pytest.mark.parametrize(
    "likelihood", ["gaussian", "gaussian_network", "student_t", "bernoulli", "poisson", "gamma"]
)
def test_gaps_in_training_with_every_likelihood(likelihood):
    domain = {
        "bernoulli": lambda x: (x > 2).astype(float) + 0 * x,
        "poisson": lambda x: np.round(np.exp(x)),
        "gamma": np.exp,
    }
    gappy = with_gaps(X)
    positive = domain.get(likelihood, np.asarray)(gappy)
    positive[np.isnan(gappy)] = np.nan
    estimator = quick(likelihood=likelihood).fit(positive)
    assert_usable(estimator, positive)
    filled = estimator.impute(positive)
    assert np.isfinite(filled).all()
    if likelihood in domain:
        assert (filled >= 0).all()


def test_missing_values_count_for_nothing_in_the_scale():
    gappy = with_gaps(X)
    estimator = quick().fit(gappy)
    np.testing.assert_allclose(estimator.location_, np.nanmean(gappy, (0, 1)))
    np.testing.assert_allclose(estimator.scale_, np.nanstd(gappy, (0, 1)))


def test_unobserved_rows_score_nothing():
    estimator = fitted()
    gappy = X.copy()
    gappy[:, 5] = np.nan
    scores = estimator.score_samples(gappy)
    assert (scores[:, 5] == 0).all()
    assert (scores[:, 4] != 0).all()
    observed = np.delete(scores, 5, axis=1)
    assert estimator.score(gappy) == pytest.approx(observed.mean(), abs=1e-12)
    weights = np.ones(X.shape[:2]).ravel()
    assert estimator.score(gappy, sample_weight=weights) == estimator.score(gappy)


def test_trailing_unobserved_steps_are_a_forecast():
    """Under the point estimates, which know the dynamics for certain."""
    estimator = fitted()
    longer = np.concatenate([X, np.full((4, 6, 3), np.nan)], axis=1)
    mean, _ = estimator.forecast(X, 6)
    np.testing.assert_allclose(estimator.predict(longer)[:, -6:], mean, atol=0.05)
    np.testing.assert_allclose(estimator.score_samples(longer)[:, :-6], estimator.score_samples(X))
    np.testing.assert_allclose(
        estimator.transform(longer)[:, :-6], estimator.transform(X), atol=0.05
    )


@pytest.mark.parametrize("when", ["in training and later", "later"])
def test_an_unobserved_sequence_among_others(when):
    gappy = X.copy()
    gappy[2] = np.nan
    estimator = quick().fit(gappy if when != "later" else X)
    assert_usable(estimator, gappy)
    assert (estimator.score_samples(gappy)[2] == 0).all()
    others = [0, 1, 3]
    assert_close(estimator.transform(gappy)[others], estimator.transform(X)[others])
    # It follows the stationary course of the dynamics: its neighbours say nothing of it.
    assert_close(estimator.impute(gappy)[2], estimator.impute(gappy[2:3])[0])
    with pytest.raises(ValueError, match="no observed row"):
        estimator.score(gappy[2:3])


def test_an_unobserved_sequence_does_not_train():
    gappy = np.concatenate([X, np.full((1, 20, 3), np.nan)])
    first, second = quick(hidden_layer_sizes=()).fit(X), quick(hidden_layer_sizes=()).fit(gappy)
    np.testing.assert_allclose(first.location_, second.location_)
    assert first.score(X) == pytest.approx(second.score(X), abs=0.1)


def test_nothing_observed_is_an_error():
    nothing = np.full_like(X, np.nan)
    estimator = quick()
    for method in (estimator.fit, estimator.partial_fit):
        with pytest.raises(ValueError, match=r"X has no observed value: every entry is NaN"):
            method(nothing)
    assert vars(estimator) == estimator.get_params(deep=False)
    with pytest.raises(ValueError, match=r"X has no observed row of positive weight"):
        fitted().score(nothing)
    assert_usable(fitted(), nothing)


def test_a_column_that_is_missing_in_training():
    gappy = X.copy()
    gappy[..., 1] = np.nan
    estimator = quick().fit(gappy)
    assert_usable(estimator, gappy)
    for name, value in read_all(estimator, X).items():
        assert np.isfinite(value).all(), name
    one, two = X[..., [0, 2]], quick().fit(X[..., [0, 2]])
    assert estimator.score(gappy) == pytest.approx(two.score(one), abs=1.0)


def test_a_single_observed_value():
    rows = np.full((6, 2), np.nan)
    rows[3, 1] = 5.0
    estimator = quick().fit([rows])
    assert_usable(estimator, [rows])


@pytest.mark.parametrize("seen", ["first", "last"])
def test_one_observed_step_says_something_about_the_others(seen):
    estimator = quick(max_iter=5).fit(X)
    rows = X.copy()
    hidden = slice(1, None) if seen == "first" else slice(None, -1)
    rows[:, hidden] = np.nan
    filled = estimator.impute(rows)
    near = 1 if seen == "first" else -2
    error = np.square(filled - X)[:, near].mean()
    assert error < np.square(X.mean((0, 1)) - X)[:, near].mean()


def test_gaps_are_filled_better_than_by_the_mean():
    estimator = quick(max_iter=10).fit(with_gaps(X, seed=1))
    gappy = with_gaps(X, share=0.3, seed=2)
    missing = np.isnan(gappy)
    error = np.square(estimator.impute(gappy) - X)[missing].mean()
    assert error < 0.5 * np.square(np.nanmean(gappy, (0, 1)) - X)[missing].mean()


# ---- units ----


@pytest.mark.parametrize("standardize", [True, False])
def test_fits_follow_the_units_of_the_data(standardize):
    c, shift = 1e6, -3e6
    here, there = with_gaps(X), c * with_gaps(X) + shift
    one, other = (quick(standardize=standardize).fit(data) for data in (here, there))
    n_observed = (~np.isnan(here)).sum(-1)
    np.testing.assert_allclose(
        other.score_samples(there),
        one.score_samples(here) - n_observed * np.log(c),
        rtol=0,
        atol=1e-6,
    )
    np.testing.assert_allclose(other.transform(there), one.transform(here), atol=1e-6)
    for name in ("predict", "impute"):
        np.testing.assert_allclose(
            getattr(other, name)(there), c * getattr(one, name)(here) + shift, atol=1e-6 * c
        )
    (mean, std), (expected, spread) = other.forecast(there, 5), one.forecast(here, 5)
    np.testing.assert_allclose(mean, c * expected + shift, atol=1e-6 * c)
    np.testing.assert_allclose(std, c * spread, rtol=1e-6)
    np.testing.assert_allclose(
        other.forecast(there, 5, 2), c * one.forecast(here, 5, 2) + shift, atol=1e-6 * c
    )
    np.testing.assert_allclose(
        other.sample(5, 2)[0], c * one.sample(5, 2)[0] + shift, atol=1e-6 * c
    )


def test_bounds_are_in_the_units_of_the_data():
    c = 1e6
    one, other = quick().fit(X), quick().fit(c * X)
    log_jacobian = -3 * np.log(c)
    assert other.lower_bound_ == pytest.approx(one.lower_bound_ + log_jacobian, abs=1e-6)
    np.testing.assert_allclose(other.lower_bounds_, one.lower_bounds_ + log_jacobian, atol=1e-6)
    np.testing.assert_allclose(other.history_["local_kl"], one.history_["local_kl"], atol=1e-6)


def test_columns_keep_their_own_units():
    units = np.array([1e-8, 1.0, 1e8])
    one, other = quick().fit(X), quick().fit(X * units)
    np.testing.assert_allclose(
        other.score_samples(X * units), one.score_samples(X) - np.log(units).sum(), atol=1e-6
    )
    np.testing.assert_allclose(other.predict(X * units) / units, one.predict(X), atol=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_reading_leaves_the_data_alone(name):
    given = [sequence.copy() for sequence in SEQUENCES]
    getattr(fitted(), name)(given)
    for sequence, before in zip(given, SEQUENCES, strict=True):
        np.testing.assert_array_equal(sequence, before)
