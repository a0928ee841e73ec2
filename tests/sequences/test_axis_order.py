# SPDX-License-Identifier: BSD-3-Clause
"""Sequences with features before time come out with time first, in the same form."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from sksvae.sequences import from_channels_first, read_sequences

SIZES = st.integers(1, 5)


def numbers(*shape):
    return np.arange(float(np.prod(shape))).reshape(shape)


@given(n_sequences=SIZES, n_features=SIZES, n_steps=SIZES)
def test_array(n_sequences, n_features, n_steps):
    X = numbers(n_sequences, n_features, n_steps)
    turned = from_channels_first(X)
    assert turned.shape == (n_sequences, n_steps, n_features)
    assert all(
        turned[i, t, d] == X[i, d, t]
        for i in range(n_sequences)
        for d in range(n_features)
        for t in range(n_steps)
    )
    assert_array_equal(from_channels_first(turned), X)


@given(lengths=st.lists(SIZES, min_size=1, max_size=4), n_features=SIZES)
def test_list_reads_as_sequences_of_its_lengths(lengths, n_features):
    X = [numbers(n_features, length) for length in lengths]
    turned = from_channels_first(X)
    assert isinstance(turned, list)
    sequences = read_sequences(turned)
    assert_array_equal(sequences.lengths, lengths)
    for got, entry in zip(sequences.restore(sequences.values), X, strict=True):
        assert_array_equal(got, entry.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, int])
def test_numbers_are_neither_copied_nor_converted(dtype):
    X = numbers(2, 3, 4).astype(dtype)
    turned = from_channels_first(X)
    assert turned.dtype == dtype
    assert np.shares_memory(turned, X)
    assert all(np.shares_memory(entry, X) for entry in from_channels_first(list(X)))


def test_array_of_arrays_is_a_list():
    X = np.empty(2, dtype=object)
    X[:] = [numbers(2, 3), numbers(2, 4)]
    assert [entry.shape for entry in from_channels_first(X)] == [(3, 2), (4, 2)]


def test_nested_lists_are_an_array_where_numpy_says_so():
    assert_array_equal(from_channels_first(numbers(2, 3, 4).tolist()), numbers(2, 3, 4).mT)
    ragged = from_channels_first([numbers(2, 3).tolist(), numbers(2, 4).tolist()])
    assert [entry.shape for entry in ragged] == [(3, 2), (4, 2)]


def test_entries_may_be_frames():
    frame = pd.DataFrame(numbers(2, 3), index=["x", "y"])
    assert_array_equal(from_channels_first([frame])[0], numbers(2, 3).T)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((4, 20)), r"got an array of shape \(4, 20\). One sequence .* X\[None\]; many"),
        (np.zeros(3), r"got an array of shape \(3,\)\.$"),
        (np.zeros((1, 2, 3, 4)), r"got an array of shape \(1, 2, 3, 4\)\.$"),
        ([], "got a list without entries"),
        ([np.zeros((2, 3)), np.zeros(3)], r"but X\[1\] has shape \(3,\)"),
        (
            [np.zeros((2, 3)), np.zeros((4, 3))],
            r"X\[0\] has shape \(2, 3\) and X\[1\] has shape \(4, 3\). If they have time first",
        ),
        ([np.zeros((2, 3)), [[1.0], [1.0, 2.0]]], r"X\[1\] is not an array"),
    ],
)
def test_other_forms(X, message):
    with pytest.raises(ValueError, match=message):
        from_channels_first(X)
