# SPDX-License-Identifier: BSD-3-Clause
"""What switching dynamics say about sequences, against sums over all paths of states."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAESwitchingLDS
from sksvae.estimators.completions import near_gaps
from sksvae.estimators.state_predictions import _N_COMPLETIONS, _moved_to_observed
from sksvae.inference import FixedPointSettings
from sksvae.metrics import matched_accuracy

from .linear_dynamics_cases import with_gaps
from .switching_cases import Enumerated, fitted, known, read_all, turning

KNOWN, X, STATES = turning()
GAPPY = with_gaps(X)
# Ragged, with values missing here and there, one of one step and one without an observation.
SEQUENCES = [GAPPY[0, :5], X[1, :1], GAPPY[2, :9], np.full((3, 3), np.nan)]
SHORT = {
    "complete": X[0, :7],
    "one step": X[1, :1],
    "a gap": np.where(np.arange(7)[:, None] == 3, np.nan, X[0, :7]),
    "a gap at the end": np.where(np.arange(7)[:, None] > 4, np.nan, X[1, :7]),
    "a switch": X[2, :7],
}


def assert_close(said, expected, err_msg=""):
    for part, other in zip(said, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=0, atol=1e-9, err_msg=err_msg)


# ---- states ----


def test_states_are_those_of_the_truth():
    assert (KNOWN.predict(X) == STATES).mean() > 0.95
    assert (KNOWN.decode(X) == STATES).mean() > 0.95
    assert matched_accuracy(STATES.ravel(), fitted().predict(X).ravel()) > 0.9


def test_predict_is_the_state_of_largest_probability():
    for estimator in (KNOWN, fitted()):
        for probabilities, states in zip(
            estimator.predict_proba(SEQUENCES), estimator.predict(SEQUENCES), strict=True
        ):
            assert probabilities.shape == (len(states), estimator.n_states_)
            np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-12)
            assert (probabilities >= 0).all()
            np.testing.assert_array_equal(states, probabilities.argmax(1))
            assert states.dtype.kind == "i"


@pytest.mark.parametrize("case", SHORT)
def test_probabilities_agree_with_a_sum_over_all_paths(case):
    """Where observations are clear, states and latents hardly depend on each other."""
    exact, said = Enumerated(KNOWN, SHORT[case]).states, KNOWN.predict_proba(SHORT[case])
    seen = ~np.isnan(SHORT[case]).all(1)
    np.testing.assert_allclose(said[seen], exact[seen], atol=0.03)
    # Where nothing is observed, q(z) q(k) is too sure of the most probable state.
    np.testing.assert_array_equal(said.argmax(1), exact.argmax(1))


@pytest.mark.parametrize("case", SHORT)
def test_decoded_paths_are_the_most_probable_ones(case):
    exact = Enumerated(KNOWN, SHORT[case])
    path = KNOWN.decode(SHORT[case])
    weight = exact.weights[(exact.paths == path).all(1)]
    assert weight > 0.95 * exact.weights.max()


def test_decoded_paths_are_possible():
    """Other than the most probable states of single steps, if they are of different paths."""
    estimator = known(
        A=np.tile(0.9 * np.eye(2), (3, 1, 1)),  # all states move alike: observations say nothing
        b=np.zeros((3, 2)),
        Q=np.tile(0.1 * np.eye(2), (3, 1, 1)),
        initial_states=np.array([0.6, 0.4, 1e-9]),
        transitions=np.array([[0.5, 1e-9, 0.5], [1e-9, 1.0, 1e-9], [1e-9, 1e-9, 1.0]]),
    )
    rows = X[0, :2]
    expected = [[0.6, 0.4, 0.0], [0.3, 0.4, 0.3]]
    np.testing.assert_allclose(estimator.predict_proba(rows), expected, atol=1e-6)
    np.testing.assert_array_equal(estimator.predict(rows), [0, 1])
    np.testing.assert_array_equal(estimator.decode(rows), [1, 1])


# ---- latents, scores ----


def test_latents_are_those_that_were_drawn():
    rows = KNOWN.inverse_transform(KNOWN.transform(X))
    assert np.square((rows - X) / KNOWN.scale_).mean() < 0.02


@pytest.mark.parametrize("case", SHORT)
def test_scores_of_a_sequence_sum_to_a_bound_on_its_log_likelihood(case):
    exact = Enumerated(KNOWN, SHORT[case])
    slack = exact.log_evidence - KNOWN.score_samples(SHORT[case]).sum()
    assert -1e-6 < slack < 1.0


def test_scores_bound_the_log_likelihood_where_rows_are_seen_in_part():
    rng = np.random.default_rng(0)
    for sequence in X[:, :6]:
        partly = np.where(rng.random(sequence.shape) < 0.3, np.nan, sequence)
        slack = Enumerated(KNOWN, partly).log_evidence - KNOWN.score_samples(partly).sum()
        assert slack > -1e-6


def test_the_score_is_the_mean_over_rows_that_are_observed():
    """Rows without an observation score nothing, and what they cost is not lost."""
    scores = np.concatenate(KNOWN.score_samples(SEQUENCES))
    observed = ~np.isnan(np.concatenate(SEQUENCES)).all(1)
    assert (scores[~observed] == 0).all()
    assert (scores[observed] != 0).all()
    assert KNOWN.score(SEQUENCES) == pytest.approx(scores[observed].mean(), abs=1e-12)
    weights = np.random.default_rng(0).uniform(size=30)
    weighted = np.average(KNOWN.score_samples(X[0]), weights=weights)
    assert KNOWN.score(X[0], sample_weight=weights) == pytest.approx(weighted, abs=1e-12)
    exact = Enumerated(KNOWN, SHORT["a gap"]).log_evidence
    assert 6 * KNOWN.score(SHORT["a gap"]) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ("oxoxo", [0, 3, 0, 28, 0]),
        ("xxxxx", [1, 2, 4, 8, 16]),
        ("xooox", [1, 0, 0, 0, 30]),
        ("ooxoo", [0, 0, 31, 0, 0]),
        ("ooooo", [0, 0, 0, 0, 0]),
    ],
)
def test_what_a_gap_costs_stands_at_the_next_observation(observed, expected):
    """Or at the last one; nothing is lost but where there is none."""
    terms = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    seen = np.array([letter == "x" for letter in observed])
    assert _moved_to_observed(terms, seen, np.array([5])).tolist() == expected
    # Neighbours keep their own.
    moved = _moved_to_observed(np.tile(terms, 3), np.tile(seen, 3), np.array([5, 5, 5]))
    assert moved.tolist() == 3 * expected


def test_sequences_in_order_score_better():
    shuffled = np.random.default_rng(0).permutation(X, axis=1)
    assert KNOWN.score(X) > KNOWN.score(shuffled) + 1


# ---- sequences do not depend on the sequences around them ----


ROW_BY_ROW = ["transform", "predict_proba", "score_samples"]


@pytest.fixture
def tight(monkeypatch):
    """Let block updates converge, whatever rounding has done to them on the way."""
    settings = FixedPointSettings(max_updates=1000, tol=1e-12)
    monkeypatch.setattr(SVAESwitchingLDS, "_fixed_point_settings", lambda *_, **__: settings)


@pytest.mark.usefixtures("tight")
def test_other_sequences_and_their_order_do_not_matter():
    """Sequence by sequence, what scikit-learn's checks of subsets and orders of rows ask for."""
    estimator, order = fitted(), [2, 0, 3, 1]
    for name in ROW_BY_ROW:
        read = getattr(estimator, name)
        whole = read(SEQUENCES)
        assert_close(read([SEQUENCES[i] for i in order]), [whole[i] for i in order], name)
        assert_close(read(SEQUENCES[:2]) + read(SEQUENCES[2:]), whole, name)
    whole = estimator.forecast(SEQUENCES, 4)
    parts = [estimator.forecast(some, 4) for some in (SEQUENCES[:2], SEQUENCES[2:])]
    for part, moment in zip(zip(*parts, strict=True), whole, strict=True):
        assert_close(np.concatenate(part), moment)


def test_other_sequences_matter_no_more_than_the_tolerance_of_block_updates():
    estimator = fitted()
    whole = estimator.predict_proba(SEQUENCES)
    for sequence, expected in zip(SEQUENCES, whole, strict=True):
        np.testing.assert_allclose(estimator.predict_proba([sequence])[0], expected, atol=1e-4)


@pytest.mark.usefixtures("tight")
def test_batches_of_sequences_do_not_matter(monkeypatch):
    whole = {name: getattr(KNOWN, name)(SEQUENCES) for name in ROW_BY_ROW}
    forecast = KNOWN.forecast(SEQUENCES, 3)
    monkeypatch.setattr("sksvae.estimators.sequences.CHUNK_STEPS", 10)
    monkeypatch.setattr("sksvae.estimators.sequence_predictions.AT_ONCE", 3)
    for name, expected in whole.items():
        assert_close(getattr(KNOWN, name)(SEQUENCES), expected, name)
    for part, expected in zip(KNOWN.forecast(SEQUENCES, 3), forecast, strict=True):
        assert_close(part, expected)


# ---- missing values ----


def test_gaps_are_filled_and_what_is_known_is_left():
    for draws in (None, 3):
        for sequence, filled in zip(SEQUENCES, KNOWN.impute(SEQUENCES, draws), strict=True):
            seen = ~np.isnan(sequence)
            assert filled.shape == (sequence.shape if draws is None else (3, *sequence.shape))
            assert np.isfinite(filled).all()
            expected = np.broadcast_to(sequence[seen], (*filled.shape[:-2], seen.sum()))
            np.testing.assert_array_equal(filled[..., seen], expected)
            if draws:
                assert (filled[0] != filled[1])[~seen].all()
    np.testing.assert_array_equal(KNOWN.impute(X), X)


@pytest.mark.parametrize("case", ["a gap", "a gap at the end"])
def test_gaps_are_filled_by_the_mean_of_what_is_missing(case):
    """Of the state that observations on both sides, or the last ones, leave no doubt about."""
    sequence = SHORT[case]
    exact = Enumerated(KNOWN, sequence)
    likely = exact.paths[exact.weights.argmax()]
    (mean,) = exact.means[(exact.paths == likely).all(1)].reshape(-1, 7, 3)
    missing = np.isnan(sequence)
    filled = KNOWN.impute(sequence)
    np.testing.assert_allclose(filled[missing], mean[missing], atol=0.02)
    draws = KNOWN.impute(sequence, 300)
    mean, variance = exact.moments
    error = np.abs(draws.mean(0) - mean)[missing] / np.sqrt(variance[missing] / 300)
    assert error.max() < 4.5
    np.testing.assert_allclose(draws.std(0)[missing], np.sqrt(variance[missing]), rtol=0.3)


@functools.cache
def drifting(stay):
    """Return an estimator of a walk on a line that drifts up or down, and turns."""
    return known(
        noise=1e-3,
        A=np.ones((2, 1, 1)),
        b=np.array([[1.0], [-1.0]]),
        Q=np.full((2, 1, 1), 0.1),
        initial_states=np.ones(2),
        transitions=np.array([[stay, 1 - stay], [1 - stay, stay]]),
    )


def rows_at(estimator, places):
    """Return the rows of places on a line; NaN stays."""
    rows = estimator.inverse_transform(np.nan_to_num(places)[:, None])
    rows[np.isnan(places)] = np.nan
    return rows


def places_of(estimator, rows):
    """Return the places of rows of shape (n_rows, n_features), by their first feature."""
    zero, one = estimator.inverse_transform([[0.0], [1.0]])[:, 0]
    return (rows[:, 0] - zero) / (one - zero)


def test_completions_are_multimodal():
    """Up with probability 0.7, down with 0.3, and never in between."""
    estimator, n_draws = drifting(0.7), 400
    rows = rows_at(estimator, np.array([0.0, 1.0, 2.0, np.nan]))
    places = places_of(estimator, estimator.impute(rows, n_draws)[:, 3])
    assert (np.abs(places - 2) > 0.2).mean() > 0.97
    assert (places > 2).mean() == pytest.approx(0.7, abs=4.5 * np.sqrt(0.21 / n_draws))
    assert places[places > 2].mean() == pytest.approx(3.0, abs=0.1)


def test_completions_find_all_ways_through_a_gap():
    """Up and down again, or down and up: the mean is neither."""
    estimator, n_draws = drifting(0.5), 400
    rows = rows_at(estimator, np.array([-1.0, 0.0, np.nan, 0.0, 1.0]))
    exact = Enumerated(estimator, rows)
    assert places_of(estimator, exact.moments[0][2:3])[0] == pytest.approx(0.0, abs=0.01)
    places = places_of(estimator, estimator.impute(rows, n_draws)[:, 2])
    assert (places > 0).mean() == pytest.approx(0.5, abs=4.5 * np.sqrt(0.25 / n_draws))
    assert (np.abs(places) > 0.3).mean() > 0.95
    assert np.abs(places).mean() == pytest.approx(1.0, abs=0.1)


def test_long_gaps_are_filled_by_the_mean_of_all_ways_through_them():
    """Up, then down, or down, then up, and both turns anywhere: one story is far from the mean."""
    estimator, missing = drifting(0.5), [np.nan] * 4
    rows = rows_at(estimator, np.array([-1.0, 0.0, *missing, 3.0, 4.0]))
    exact = Enumerated(estimator, rows)
    mean = places_of(estimator, exact.moments[0][2:6])
    zero, one = estimator.inverse_transform([[0.0], [1.0]])[:, 0]
    deviation = np.sqrt(exact.moments[1][2:6, 0]) / abs(one - zero)
    filled = estimator.impute(rows)
    error = np.abs(places_of(estimator, filled[2:6]) - mean) / deviation
    assert error.max() < 4.5 / np.sqrt(_N_COMPLETIONS)
    draws = np.stack([places_of(estimator, draw) for draw in estimator.impute(rows, 400)[:, 2:6]])
    assert np.abs(draws.mean(0) - places_of(estimator, filled[2:6])).max() < 0.3 * deviation.max()


def test_means_of_completions_do_not_depend_on_other_sequences():
    gappy = GAPPY.copy()
    gappy[1, 5:12] = gappy[2, 8:] = np.nan
    together = KNOWN.impute(gappy)
    np.testing.assert_array_equal(KNOWN.impute(gappy), together)
    for i in (1, 2):
        assert_close(KNOWN.impute(gappy[i : i + 1])[0], together[i])
    assert_close(KNOWN.impute(list(gappy[::-1]))[::-1], list(together))


def test_one_state_fills_gaps_with_what_its_chain_expects():
    """Exactly, as nothing is drawn."""
    estimator = SVAESwitchingLDS(1, latent_dim=2, hidden_layer_sizes=(), max_iter=2, random_state=0)
    X = GAPPY.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(X)
    X[0, 3:9] = np.nan
    Z = estimator.transform(X)[0, 3:9]
    assert_close(estimator.impute(X)[0, 3:9], estimator.inverse_transform(Z))


@pytest.mark.parametrize("min_length", [1, 2, 3])
@pytest.mark.parametrize("margin", [0, 2])
def test_steps_near_gaps(min_length, margin):
    generator = np.random.RandomState(min_length)
    lengths = np.array([1, 12, 3, 30, 30])
    missing = generator.rand(lengths.sum()) < 0.4
    near = []
    for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
        flags = missing[stop - length : stop]
        runs = np.flatnonzero(np.diff(np.pad(flags.astype(int), 1))).reshape(-1, 2)
        marked = np.zeros(length, bool)
        for begin, end in runs:
            if end - begin >= min_length:
                marked[max(begin - margin, 0) : end + margin] = True
        near.append(marked)
    stretches = [
        end - begin
        for marked in near
        for begin, end in np.flatnonzero(np.diff(np.pad(marked.astype(int), 1))).reshape(-1, 2)
    ]
    numbers, found = near_gaps(
        torch.tensor(missing), torch.tensor(lengths), min_length=min_length, margin=margin
    )
    np.testing.assert_array_equal(numbers, np.flatnonzero(np.concatenate(near)))
    assert found.tolist() == stretches


def test_batches_of_draws(monkeypatch):
    """Many draws are made in several batches, all of them different."""
    monkeypatch.setattr("sksvae.estimators.completions.CHUNK_STEPS", 100)
    draws = KNOWN.impute(GAPPY[:2, :20], 7)
    assert draws.shape == (7, 2, 20, 3)
    missing = np.isnan(GAPPY[:2, :20])
    assert len(np.unique(draws[:, missing][:, 0])) == 7
    for i, sequence in enumerate(GAPPY[:2, :20]):
        np.testing.assert_array_equal(
            draws[:, i][:, ~missing[i]], np.tile(sequence[~missing[i]], (7, 1))
        )


# ---- forecasts and samples ----


def test_forecasts_have_the_moments_of_their_draws():
    n_draws = 4000
    mean, std = KNOWN.forecast(SEQUENCES, 6)
    draws = KNOWN.forecast(SEQUENCES, 6, n_draws=n_draws)
    assert mean.shape == std.shape == (4, 6, 3)
    assert draws.shape == (n_draws, 4, 6, 3)
    # 72 comparisons, each 4.5 standard errors wide; those of squares of mixtures are estimated.
    assert (np.abs(draws.mean(0) - mean) < 4.5 * std / np.sqrt(n_draws)).all()
    squares = np.square(draws - mean)
    error = 4.5 * squares.std(0) / np.sqrt(n_draws)
    assert (np.abs(squares.mean(0) - np.square(std)) < error).all()


def test_forecasts_are_those_of_a_sum_over_all_paths():
    sequence = SHORT["complete"]
    mean, std = KNOWN.forecast(sequence, 2)
    longer = np.concatenate([sequence, np.full((2, 3), np.nan)])
    exact, variance = Enumerated(KNOWN, longer).moments
    np.testing.assert_allclose(mean, exact[-2:], atol=0.01)
    np.testing.assert_allclose(std, np.sqrt(variance[-2:]), rtol=0.02)


def test_forecasts_of_one_table_have_no_axis_of_sequences():
    mean, std = KNOWN.forecast(X[0], 4)
    assert mean.shape == std.shape == (4, 3)
    assert KNOWN.forecast(X[0], 4, n_draws=2).shape == (2, 4, 3)
    np.testing.assert_array_equal(KNOWN.forecast(X[:1], 4)[0][0], mean)
    np.testing.assert_array_equal(KNOWN.forecast([X[0]], 4)[1][0], std)


def test_unstable_dynamics_are_warned_of():
    estimator = known(A=4.0 * np.tile(np.eye(2), (2, 1, 1)))
    np.testing.assert_allclose(estimator.spectral_radius_, 4.0)
    for n_draws in (None, 20):
        with pytest.warns(RuntimeWarning, match=r"unstable: .* radii up to 4\.") as caught:
            estimator.forecast(X[:, :5], 5, n_draws)
        assert caught[0].filename == __file__
        with pytest.raises(OverflowError, match=r"radi.*4"):
            estimator.forecast(X[:, :5], 600, n_draws)


def test_samples():
    drawn, states = KNOWN.sample(1000, 6)
    assert drawn.shape == (6, 1000, 3)
    assert states.shape == (6, 1000)
    assert states.dtype.kind == "i"
    # Runs of about 20 steps: some 300 of them, hence the width.
    assert (states == 0).mean() == pytest.approx(0.6, abs=0.1)
    moves = np.zeros((2, 2))
    np.add.at(moves, (states[:, :-1].ravel(), states[:, 1:].ravel()), 1)
    np.testing.assert_allclose(
        moves / moves.sum(1, keepdims=True), KNOWN.state_transition_probabilities_, atol=0.02
    )
    alone, states = KNOWN.sample(4)
    assert alone.shape == (4, 3)
    assert states.shape == (4,)
    assert KNOWN.sample()[0].shape == (1, 3)
    assert KNOWN.score(drawn[:, :20]) == pytest.approx(KNOWN.score(X), abs=0.3)


# ---- randomness ----


def said(estimator):
    return [
        *(part for value in read_all(estimator, SEQUENCES).values() for part in value),
        *estimator.forecast(SEQUENCES, 3),
        estimator.forecast(SEQUENCES, 3, n_draws=2),
        *estimator.impute(SEQUENCES, n_draws=2),
        *estimator.sample(4, 2),
    ]


def test_answers_are_repeatable_and_leave_no_trace():
    estimator = fitted()
    attributes = dict(vars(estimator))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = said(estimator)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    np.testing.assert_array_equal(torch.get_rng_state(), before[1])
    for one, other in zip(said(estimator), first, strict=True):
        np.testing.assert_array_equal(one, other)
    assert vars(estimator).keys() == attributes.keys()
    assert all(value is attributes[name] for name, value in vars(estimator).items())


def test_draws_follow_random_state():
    gappy, drawn = GAPPY[:2, :8], []
    estimator = copy.deepcopy(KNOWN)
    for seed in (0, 1):
        estimator.set_params(random_state=seed)
        completed = estimator.impute(gappy, 2)[:, np.isnan(gappy)]
        drawn.append((estimator.sample(5)[0], estimator.forecast(gappy, 2, 3), completed))
    for one, other in zip(*drawn, strict=True):
        assert (one != other).all()
