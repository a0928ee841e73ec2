# SPDX-License-Identifier: BSD-3-Clause
"""Windows and splits cover each step exactly once, and never tear a sequence row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sksvae.sequences import Windows, read_sequences, split_sequences

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def sequences_of(lengths):
    """Sequences whose single feature numbers their rows."""
    rows = np.arange(float(sum(lengths))).reshape(-1, 1)
    return read_sequences(np.split(rows, np.cumsum(lengths)[:-1]))


def assert_cover(sequences, *parts):
    """Each row of the sequences is in one window of one part."""
    for windows in parts:
        assert (windows.length > 0).all()
        assert (windows.start >= 0).all()
        assert (windows.stop <= sequences.lengths[windows.sequence]).all()
    rows = np.concatenate([sequences.row_indices(windows) for windows in parts])
    assert_array_equal(np.sort(rows), np.arange(sequences.n_rows))


@given(lengths=LENGTHS, max_length=st.integers(1, 50))
def test_windows_cover_every_row_once_and_in_order(lengths, max_length):
    sequences = sequences_of(lengths)
    windows = sequences.windows(max_length)
    assert_cover(sequences, windows)
    assert_array_equal(sequences.row_indices(windows), np.arange(sequences.n_rows))
    assert windows.length.max() <= max_length
    assert len(windows) == sum(-(-length // max_length) for length in lengths)
    for i in range(len(lengths)):
        assert np.ptp(windows.length[windows.sequence == i]) <= 1


def test_windows_of_no_given_length_are_sequences():
    windows = sequences_of([3, 1]).windows()
    assert_array_equal(windows.sequence, [0, 1])
    assert_array_equal(windows.start, [0, 0])
    assert_array_equal(windows.stop, [3, 1])


def test_windows_can_be_cut_again():
    sequences = sequences_of([30, 7])
    assert_cover(sequences, sequences.windows(10).cut(4))
    for field in ("sequence", "start", "length"):
        again = sequences.windows(10).cut(10)
        assert_array_equal(getattr(again, field), getattr(sequences.windows(10), field))


@pytest.mark.parametrize("max_length", [0, -3])
def test_windows_have_steps(max_length):
    with pytest.raises(ValueError, match=f"max_length must be at least 1, got {max_length}"):
        sequences_of([3]).windows(max_length)


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_padded_windows_hold_their_rows(lengths, seed):
    sequences = sequences_of(lengths)
    windows = sequences.windows(7)
    windows = windows.take(np.random.default_rng(seed).permutation(len(windows))[:5])
    batch, mask = sequences.padded(windows)
    assert batch.shape == (len(windows), windows.length.max(), 1)
    assert_array_equal(mask.sum(axis=1), windows.length)
    assert_array_equal(batch[mask], sequences.values[sequences.row_indices(windows)])
    assert not batch[~mask].any()
    for i in range(len(windows)):
        first = sequences.starts[windows.sequence[i]] + windows.start[i]
        assert_array_equal(batch[i, mask[i], 0], np.arange(first, first + windows.length[i]))


def test_a_padded_batch_is_a_copy():
    sequences = sequences_of([4])
    sequences.padded()[0][:] = -1
    assert_array_equal(sequences.values[:, 0], np.arange(4))


def test_windows_are_taken_by_index_mask_or_slice():
    windows = Windows.whole([5, 6, 7])
    for indices in ([2, 0], np.array([True, False, True]), slice(None, None, 2)):
        assert_array_equal(windows.take(indices).length, np.array([5, 6, 7])[indices])


# ---- batches ----


@given(lengths=LENGTHS, max_steps=st.integers(1, 100))
def test_batches_are_bounded_and_hold_each_window_once(lengths, max_steps):
    windows = Windows.whole(lengths)
    batches = list(windows.batches(max_steps))
    assert_array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
    for indices in batches:
        assert len(indices) == 1 or len(indices) * windows.length[indices].max() <= max_steps


def test_equal_windows_fill_batches():
    assert [len(indices) for indices in Windows.whole([3] * 10).batches(12)] == [4, 4, 2]


# ---- splits ----


@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=10),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
)
def test_whole_sequences_are_held_out(lengths, fraction, seed):
    sequences = sequences_of(lengths)
    kept, held_out = split_sequences(lengths, fraction, seed)
    assert_cover(sequences, kept, held_out)
    assert len(held_out) == np.ceil(fraction * len(lengths))
    for windows in (kept, held_out):
        assert_array_equal(windows.length, sequences.lengths[windows.sequence])
        assert (np.diff(windows.sequence) > 0).all()


@given(length=st.integers(2, 60), fraction=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_one_stretch_of_the_only_sequence_is_held_out(length, fraction, seed):
    kept, held_out = split_sequences([length], fraction, seed)
    assert_cover(sequences_of([length]), kept, held_out)
    assert_array_equal(held_out.length, [np.ceil(fraction * length)])
    assert 1 <= len(kept) <= 2


def test_stretches_can_be_anywhere():
    starts = {int(split_sequences([5], 0.4, seed)[1].start[0]) for seed in range(50)}
    assert starts == {0, 1, 2, 3}


def test_splits_are_drawn_from_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    splits = [split_sequences([3] * 20, 0.3, 0)[1].sequence for _ in range(2)]
    assert_array_equal(*splits)
    draws = np.random.RandomState(0)
    other = [split_sequences([3] * 20, 0.3, draws)[1].sequence for _ in range(2)]
    assert_array_equal(other[0], splits[0])
    assert not np.array_equal(*other)
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("lengths", "fraction", "message"),
    [
        ([1], 0.1, "fraction=0.1 holds out all of 1 steps of the only sequence"),
        ([9, 9], 0.6, "fraction=0.6 holds out all of 2 sequences"),
        ([9, 9], 0.0, "fraction must be between 0 and 1, both excluded, got 0.0"),
        ([9, 9], 1.5, "fraction must be between 0 and 1, both excluded, got 1.5"),
    ],
)
def test_some_data_must_be_left(lengths, fraction, message):
    with pytest.raises(ValueError, match=message):
        split_sequences(lengths, fraction, 0)
