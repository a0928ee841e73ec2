# SPDX-License-Identifier: BSD-3-Clause
"""Long recordings, which are inferred in overlapping pieces, agree with whole inference.

Where memory is longer than the margins of the pieces, these are joined until they agree.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sksvae import SVAESwitchingLDS
from sksvae.estimators.pieces import Pieces, Seam
from sksvae.estimators.scaling import Scaling
from sksvae.graphical import SwitchingDynamicsModel
from sksvae.graphical.switching_inference import SwitchingProblem
from sksvae.inference import FixedPointSettings
from sksvae.sequence_objective import padded
from sksvae.sequences import Windows, read_sequences

from .linear_dynamics_cases import with_gaps
from .switching_cases import known, turning

KNOWN = turning()[0]
LONG = KNOWN.sample(130, 2)[0]
# Long and short, in an order that is none of length; NaN here and there.
MIXED = [
    LONG[0, :9],
    with_gaps(LONG, share=0.05)[0],
    turning()[1][0, :31],
    LONG[1, :101],
    LONG[1, :1],
    np.full((4, 3), np.nan),
]
ROW_BY_ROW = ["transform", "predict_proba", "decode", "score_samples"]


@pytest.fixture(autouse=True, scope="module")
def tight():
    """Let block updates converge: what is left of the difference is that of pieces."""
    settings = FixedPointSettings(max_updates=1000, tol=1e-10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SVAESwitchingLDS, "_fixed_point_settings", lambda *_, **__: settings)
        yield


@pytest.fixture(scope="module")
def whole():
    return {name: getattr(KNOWN, name)(MIXED) for name in ROW_BY_ROW}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def pieces(monkeypatch):
    set_pieces(monkeypatch, 60, 40, 30)


def set_pieces(monkeypatch, longest, piece, margin):
    module = "sksvae.estimators.state_predictions"
    for name, value in (("_WHOLE", longest), ("_PIECE", piece), ("_MARGIN", margin)):
        monkeypatch.setattr(f"{module}.{name}", value)


def assert_close(said, expected, atol):
    for part, other in zip(said, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=0, atol=atol)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_pieces_agree_with_the_whole(name, whole):
    """And sequences keep their places among others."""
    assert_close(getattr(KNOWN, name)(MIXED), whole[name], atol=1e-6)


@pytest.mark.usefixtures("pieces")
def test_batches_of_pieces_agree_with_the_whole(monkeypatch, whole):
    monkeypatch.setattr("sksvae.estimators.sequences.CHUNK_STEPS", 110)
    assert_close(KNOWN.transform(MIXED), whole["transform"], atol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_batches_in_threads_give_the_same(monkeypatch, threads, n_threads):
    """Each in its place, without gradients, and errors come out."""
    monkeypatch.setattr("sksvae.estimators.sequences.CHUNK_STEPS", 40)
    expected = KNOWN.transform(MIXED)
    threads(n_threads)
    assert_close(KNOWN.transform(MIXED), expected, atol=0)

    def fails(model, rows, posterior):
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        KNOWN._collect(KNOWN._checked_sequences(MIXED, None), fails)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == n_threads
    assert torch.get_num_threads() == n_threads
    assert torch.is_grad_enabled()


def test_draws_do_not_depend_on_threads(monkeypatch, threads):
    monkeypatch.setattr("sksvae.estimators.sequences.CHUNK_STEPS", 40)
    expected = KNOWN.impute(MIXED, 2)
    threads(3)
    assert_close(KNOWN.impute(MIXED, 2), expected, atol=0)


def test_a_single_batch_is_left_to_the_threads_of_torch(threads):
    threads(2)
    seen = []
    KNOWN._collect(
        KNOWN._checked_sequences(MIXED, None),
        lambda model, rows, _: seen.append(torch.get_num_threads()) or rows.observed,
    )
    assert seen == [2]


def test_long_sequences_have_one_start(monkeypatch):
    """Whether others in the batch are brief or not."""
    expected = KNOWN.predict_proba(MIXED[1:2])
    kinds = []
    start = SwitchingDynamicsModel.starting_states

    def recorded(self, potentials, params, mask, kind="filter"):
        kinds.append(kind)
        return start(self, potentials, params, mask, kind)

    monkeypatch.setattr(SwitchingDynamicsModel, "starting_states", recorded)
    monkeypatch.setattr("sksvae.estimators.state_predictions._BRIEF", 100)
    assert_close(KNOWN.predict_proba(MIXED[1:2]), expected, atol=1e-6)
    assert kinds == ["filter"]
    assert_close(KNOWN.predict_proba(MIXED)[1:2], expected, atol=1e-6)
    assert kinds == ["filter", "filter", "local"]


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_pieces_with_too_short_margins_are_joined(monkeypatch, name, margin, whole):
    set_pieces(monkeypatch, 60, 40, margin)
    rounds = recorded_rounds(monkeypatch)
    assert_close(getattr(KNOWN, name)(MIXED), whole[name], atol=1e-6)
    assert len(rounds) > 1


def test_without_a_look_at_the_seams_they_would_not_agree(monkeypatch, whole):
    """So that the test above can fail."""
    monkeypatch.setattr(Seam, "agrees", lambda *_: True)
    errors = []
    for margin in (0, 3, 30):
        set_pieces(monkeypatch, 60, 40, margin)
        pairs = zip(KNOWN.transform(MIXED), whole["transform"], strict=True)
        errors.append(max(np.abs(one - other).max() for one, other in pairs))
    assert errors[0] > errors[1] > 1e-4
    assert errors[2] < 1e-6


@pytest.mark.parametrize(("noise", "margin"), [(0.01, 3), (1.0, 3), (1.0, 30)])
def test_what_is_put_together_is_a_fixed_point_of_the_whole(monkeypatch, noise, margin):
    """Even where the whole, from its own start, ends in another."""
    estimator = known(noise=noise)
    series = with_gaps(estimator.sample(300)[0][None], share=0.1)[0]
    series[100:140] = np.nan
    set_pieces(monkeypatch, 60, 40, margin)
    assert largest_change(estimator, series, estimator.predict_proba(series)) < 1e-8
    monkeypatch.setattr(Seam, "agrees", lambda *_: True)
    assert largest_change(estimator, series, estimator.predict_proba(series)) > 1e-6


@torch.no_grad()
def largest_change(estimator, series, states):
    """Largest change of a probability in a round of block updates of the whole sequence."""
    sequences = estimator._checked_sequences(series, None)
    model = estimator._rebuild()
    scaling = Scaling(estimator.location_, estimator.scale_)
    rows = estimator._stacked(series, sequences.lengths, scaling, model.likelihood)
    potentials, params = padded(model.encode(rows), rows.mask), model.graphical.expected_params()
    problem = SwitchingProblem.build(potentials, params, rows.mask)
    states = torch.as_tensor(states).unsqueeze(0)
    return float((problem.next_states(states) - states).abs().max())


@pytest.mark.parametrize("name", ["transform", "score_samples"])
def test_only_pieces_that_disagree_are_inferred_again(monkeypatch, name):
    """Nothing is seen for a while, so that memory is long there."""
    series = KNOWN.sample(600)[0]
    series[280:350] = np.nan
    expected = getattr(KNOWN, name)(series)
    set_pieces(monkeypatch, 60, 40, 30)
    rounds = recorded_rounds(monkeypatch)
    np.testing.assert_allclose(getattr(KNOWN, name)(series), expected, rtol=0, atol=1e-6)
    first, *later = rounds
    assert len(first) == 15
    assert 1 <= len(later) <= 2
    for windows in later:
        assert len(windows) == 1
        assert 100 < windows.start[0] < 280
        assert 350 < windows.stop[0] < 550


def test_a_forecast_looks_at_the_last_pieces_only(monkeypatch):
    series = KNOWN.sample(600)[0]
    series[200:300] = np.nan
    ends_in_a_gap = series.copy()
    ends_in_a_gap[530:599] = np.nan
    expected = [KNOWN.forecast(X, 2) for X in (series, ends_in_a_gap)]
    set_pieces(monkeypatch, 60, 40, 30)
    rounds = recorded_rounds(monkeypatch)
    assert_close(KNOWN.forecast(series, 2), expected[0], 1e-6)
    assert [part.start.tolist() for part in rounds] == [[490, 530]]
    rounds.clear()
    assert_close(KNOWN.forecast(ends_in_a_gap, 2), expected[1], 1e-6)
    # The last two as one, and what then comes before it; and so on.
    assert [part.start.tolist() for part in rounds[:2]] == [[490, 530], [450, 460]]
    assert all(part.start.min() > 300 for part in rounds)


def recorded_rounds(monkeypatch):
    """Return a list that collects which windows are inferred in each round."""
    rounds = []
    batches = Pieces.batches

    def recorded(self, *arguments):
        rounds.append(self.outer.take(self.waiting))
        return batches(self, *arguments)

    monkeypatch.setattr(Pieces, "batches", recorded)
    return rounds


@pytest.mark.usefixtures("pieces")
def test_imputation_and_forecasts_of_long_sequences():
    draws = KNOWN.impute(MIXED, 3)
    for sequence, filled, drawn in zip(MIXED, KNOWN.impute(MIXED), draws, strict=True):
        seen = ~np.isnan(sequence)
        np.testing.assert_array_equal(filled[seen], sequence[seen])
        assert np.isfinite(filled).all()
        assert drawn.shape == (3, *sequence.shape)
        np.testing.assert_array_equal(drawn[:, seen], np.tile(sequence[seen], (3, 1)))
    ahead = KNOWN.forecast(MIXED, 3)
    for i in (1, 4):
        alone = KNOWN.forecast(MIXED[i : i + 1], 3)
        assert_close([moment[i] for moment in ahead], [moment[0] for moment in alone], 1e-9)


def test_forecasts_go_on_from_the_last_step_of_the_last_piece(monkeypatch):
    expected = KNOWN.forecast(MIXED, 3)
    set_pieces(monkeypatch, 60, 40, 30)
    assert_close(KNOWN.forecast(MIXED, 3), expected, 1e-6)


def test_a_long_gap_across_pieces_scores_as_in_the_whole(monkeypatch):
    """What a gap costs stands at the next observed row, in whichever piece that is."""
    series = LONG[0].copy()
    series[58:73] = np.nan  # across the end of the second piece, at 66
    expected = KNOWN.score_samples(series)
    set_pieces(monkeypatch, 60, 40, 35)
    scores = KNOWN.score_samples(series)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert (scores[58:73] == 0).all()


def test_pieces_cover_each_step_once_and_know_their_neighbours(monkeypatch):
    set_pieces(monkeypatch, 60, 40, 30)
    lengths = np.array([9, 150, 60, 61, 1])
    sequences = read_sequences(
        [np.zeros((length, 1)) for length in lengths], rows="auto", check=np.asarray
    )
    pieces = KNOWN._pieces(sequences)
    outer, inner = pieces.outer, pieces.inner
    covered = [np.zeros(length, int) for length in lengths]
    for n, start, stop in zip(inner.sequence, inner.start, inner.stop, strict=True):
        covered[n][start:stop] += 1
    assert all((count == 1).all() for count in covered)
    np.testing.assert_array_equal(outer.sequence, inner.sequence)
    for n in (0, 2, 4):
        assert outer.length[inner.sequence == n].tolist() == [lengths[n]]
    long = inner.sequence == 1
    assert inner.length[long].tolist() == [38, 38, 37, 37]
    assert outer.start[long].tolist() == [0, 8, 46, 83]
    assert outer.stop[long].tolist() == [68, 106, 143, 150]


def test_a_long_gap_costs_what_it_does_in_the_whole(monkeypatch):
    """Longer than pieces with their margins: no step of it is lost."""
    series = LONG[0].copy()
    series[20:110] = np.nan
    expected = KNOWN.score_samples(series)
    set_pieces(monkeypatch, 60, 20, 5)
    scores = KNOWN.score_samples(series)
    assert (scores[20:110] == 0).all()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_seams_are_compared_in_units_of_their_standard_deviations():
    mean = torch.tensor([[1.0, 1e6], [0.0, 0.0]], dtype=torch.float64)
    covariance = torch.diag_embed(torch.tensor([[4.0, 1.0], [1e-8, 1.0]], dtype=torch.float64))
    seam = Seam(mean, covariance, torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert seam.agrees(seam, 1e-6)

    def moved(name, at, by):
        changed = getattr(seam, name).clone()
        changed[at] += by
        return seam._replace(**{name: changed})

    # A tolerance of 1e-6 allows for 1e-4, in float64.
    assert seam.agrees(moved("mean", (0, 0), 1.9e-4), 1e-6)
    assert not seam.agrees(moved("mean", (0, 0), 2.1e-4), 1e-6)
    assert not seam.agrees(moved("mean", (1, 0), 1.1e-8), 1e-6)
    assert seam.agrees(moved("covariance", (0, 0, 1), 1.9e-4), 1e-6)
    assert not seam.agrees(moved("covariance", (0, 0, 1), 2.1e-4), 1e-6)
    assert not seam.agrees(moved("covariance", (1, 0, 1), 1.1e-8), 1e-6)
    assert seam.agrees(moved("states", (1, 2), 9e-5), 1e-6)
    assert not seam.agrees(moved("states", (1, 2), 1.1e-4), 1e-6)
    assert not seam.agrees(moved("mean", (0, 0), torch.nan), 1e-6)
    # Rounding leaves 1.5e-8 of large means, and of anything.
    assert seam.agrees(moved("mean", (0, 1), 1e-10), 1e-16)
    assert seam.agrees(moved("states", (0, 0), 1e-8), 1e-16)
    assert not seam.agrees(moved("states", (0, 0), 2e-8), 1e-16)


@pytest.mark.parametrize("n_apart", range(1, 12))
def test_pieces_that_disagree_become_one_up_to_four_at_a_time(monkeypatch, n_apart):
    """And never one alone; those of other sequences stay."""
    lengths = np.array([10, 140, 30])
    pieces = Pieces(Windows.whole(lengths).cut(10), lengths, margin=2)
    inner = pieces.inner
    pieces._known[:], pieces.waiting[:] = True, False
    apart = np.zeros(len(inner) - 1, bool)
    apart[2 : 2 + n_apart] = True
    monkeypatch.setattr(Pieces, "_apart", lambda *_: apart)
    pieces.join(1e-6)
    n_groups = -(-(n_apart + 1) // 4)
    assert len(pieces.inner) == len(inner) - (n_apart + 1) + n_groups
    assert pieces.waiting.sum() == n_groups
    sizes = pieces.inner.length[pieces.waiting] // 10
    assert sizes.sum() == n_apart + 1
    assert set(sizes) <= {2, 3, 4}
    np.testing.assert_array_equal(pieces.margin, pieces.inner.length // 5)
    assert pieces.inner.start[pieces.inner.sequence == 1][0] == 0
    for sequence, length in enumerate(lengths):
        mine = pieces.inner.take(pieces.inner.sequence == sequence)
        np.testing.assert_array_equal(mine.start[1:], mine.stop[:-1])
        assert mine.length.sum() == length


@pytest.mark.slow
def test_sequences_beyond_six_thousand_steps():
    """With the numbers as they are."""
    estimator = known()
    series = estimator.sample(6500)[0]
    labels = estimator.predict([series, series[:5990]])
    assert (labels[0][:5900] == labels[1][:5900]).mean() > 0.999
    short = estimator.predict_proba(series[1900:2700])
    np.testing.assert_allclose(
        estimator.predict_proba(series)[2000:2600], short[100:-100], atol=1e-3
    )
