# SPDX-License-Identifier: BSD-3-Clause
"""Long recordings, which are inferred in overlapping pieces, agree with whole inference."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sksvae import SVAESwitchingLDS
from sksvae.graphical import SwitchingDynamicsModel
from sksvae.inference import FixedPointSettings
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

    def fails(model, rows):
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        KNOWN._collect(KNOWN._checked_sequences(MIXED, None), fails)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == n_threads
    assert torch.get_num_threads() == n_threads
    assert torch.is_grad_enabled()


def test_a_single_batch_is_left_to_the_threads_of_torch(threads):
    threads(2)
    seen = []
    KNOWN._collect(
        KNOWN._checked_sequences(MIXED, None),
        lambda model, rows: seen.append(torch.get_num_threads()) or rows.observed,
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


def test_the_margin_is_what_makes_them_agree(monkeypatch, whole):
    errors = []
    for margin in (0, 3, 30):
        set_pieces(monkeypatch, 60, 40, margin)
        pairs = zip(KNOWN.transform(MIXED), whole["transform"], strict=True)
        errors.append(max(np.abs(one - other).max() for one, other in pairs))
    assert errors[0] > 0.01
    assert errors[0] > errors[1] > 1e-4
    assert errors[2] < 1e-6


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
    outer, inner = KNOWN._pieces(sequences)
    assert isinstance(outer, Windows)
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
