# SPDX-License-Identifier: BSD-3-Clause
"""Stretches of sequences: minibatches of long recordings, and steps held out for validation."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state


@dataclass(frozen=True, eq=False, repr=False)
class Windows:
    """Stretches of consecutive steps, each within one sequence.

    They are positions only, whatever the number of features: cutting and taking copy no data.

    Parameters
    ----------
    sequence : ndarray of int of shape (n_windows,)
        Number of the sequence that each window lies in.
    start : ndarray of int of shape (n_windows,)
        Its first step, counted from the first of the sequence.
    length : ndarray of int of shape (n_windows,)
        Its number of steps, at least one.

    Examples
    --------
    >>> from sksvae.sequences import Windows
    >>> windows = Windows.whole([7, 2]).cut(3)
    >>> windows
    Windows(n_windows=4, n_steps=9)
    >>> windows.sequence, windows.start, windows.stop
    (array([0, 0, 0, 1]), array([0, 3, 5, 0]), array([3, 5, 7, 2]))
    """

    sequence: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @classmethod
    def whole(cls, lengths: ArrayLike) -> "Windows":
        """Windows that are sequences from end to end.

        Parameters
        ----------
        lengths : array-like of int of shape (n_sequences,)
            Number of steps of each sequence.

        Returns
        -------
        windows : Windows
            One per sequence.
        """
        lengths = np.asarray(lengths, dtype=np.intp)
        return cls(np.arange(lengths.size), np.zeros_like(lengths), lengths)

    def __len__(self) -> int:
        return self.length.size

    def __repr__(self) -> str:
        return f"Windows(n_windows={len(self)}, n_steps={self.length.sum()})"

    @property
    def stop(self) -> np.ndarray:
        """Step after the last one, of shape (n_windows,)."""
        return self.start + self.length

    def take(self, indices: slice | list[int] | np.ndarray) -> "Windows":
        """Some of the windows, in a given order.

        Parameters
        ----------
        indices : array-like of int or bool, or slice
            Which ones, as NumPy indexes an array.

        Returns
        -------
        windows : Windows
            Those.
        """
        return Windows(self.sequence[indices], self.start[indices], self.length[indices])

    def cut(self, max_length: int) -> "Windows":
        """Windows of at most some number of steps, which cover each step exactly once.

        What is longer is cut into as few parts as possible, whose lengths differ by at most one.
        With a short rest at the end instead, the rest would be mostly padding in a minibatch, and
        a rest of one step would have no transition to learn from.

        Parameters
        ----------
        max_length : int
            Most steps of a window, at least one.

        Returns
        -------
        windows : Windows
            In order of time within each of the windows that were cut, and these in their order.

        Raises
        ------
        ValueError
            If ``max_length`` is not positive.

        Examples
        --------
        >>> from sksvae.sequences import Windows
        >>> Windows.whole([1000, 260, 3]).cut(250).length
        array([250, 250, 250, 250, 130, 130,   3])
        """
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length!r}.")
        n_parts = -(-self.length // max_length)
        parent = np.repeat(np.arange(len(self)), n_parts)
        part = np.arange(parent.size) - np.repeat(np.cumsum(n_parts) - n_parts, n_parts)
        shortest, n_longer = (array[parent] for array in np.divmod(self.length, n_parts))
        return Windows(
            self.sequence[parent],
            self.start[parent] + part * shortest + np.minimum(part, n_longer),
            shortest + (part < n_longer),
        )

    def batches(self, max_steps: int) -> Iterator[np.ndarray]:
        """Batches of windows of similar lengths, to be padded in bounded memory.

        Parameters
        ----------
        max_steps : int
            Most steps of a batch after padding to its longest window. A window that is longer
            than this is a batch by itself.

        Yields
        ------
        indices : ndarray of int of shape (n_windows_of_batch,)
            Windows of the batch, for `take`. Each window is in one batch.

        Examples
        --------
        >>> from sksvae.sequences import Windows
        >>> [indices.tolist() for indices in Windows.whole([2, 50, 3, 3]).batches(10)]
        [[0, 2, 3], [1]]
        """
        order = np.argsort(self.length, kind="stable")
        first = 0
        while first < order.size:
            stop = bisect_right(
                range(first + 1, order.size + 1),
                max_steps,
                # Steps of a padded batch, which grow with it: its last window is its longest.
                key=lambda stop: (stop - first) * self.length[order[stop - 1]],
            )
            stop = first + max(stop, 1)
            yield order[first:stop]
            first = stop


def split_sequences(
    lengths: ArrayLike,
    fraction: float,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[Windows, Windows]:
    """Hold out whole sequences, or one stretch of steps where there is only one sequence.

    Never single steps: those can be told from their neighbours, by any model.

    Parameters
    ----------
    lengths : array-like of int of shape (n_sequences,)
        Number of steps of each sequence.
    fraction : float
        How much to hold out, between 0 and 1: of the number of sequences, whatever their lengths,
        or of the steps of the only sequence. It is rounded up.
    random_state : int, RandomState instance or None, default=None
        Draws the sequences, or the place of the stretch.

    Returns
    -------
    kept : Windows
        Everything else, in order. With one sequence, what is before the stretch and what is after
        it are two windows.
    held_out : Windows
        What is held out, in order.

    Raises
    ------
    ValueError
        If nothing would be left, or ``fraction`` is not between 0 and 1.

    Examples
    --------
    >>> from sksvae.sequences import split_sequences
    >>> kept, held_out = split_sequences([30, 40, 50, 60], 0.25, random_state=0)
    >>> kept.sequence, held_out.sequence
    (array([0, 1, 3]), array([2]))
    >>> kept, held_out = split_sequences([100], 0.1, random_state=0)
    >>> kept.start, kept.stop, held_out.start, held_out.stop
    (array([ 0, 54]), array([ 44, 100]), array([44]), array([54]))
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, both excluded, got {fraction!r}.")
    whole = Windows.whole(lengths)
    random_state = check_random_state(random_state)
    only = len(whole) == 1
    n_all = int(whole.length[0]) if only else len(whole)
    n_held_out = math.ceil(fraction * n_all)
    if n_held_out >= n_all:
        raise ValueError(
            f"fraction={fraction} holds out all of {n_all} "
            f"{'steps of the only sequence' if only else 'sequences'}, which leaves none for "
            "training. Lower it or pass more data."
        )
    if only:
        return _split_steps(n_all, n_held_out, random_state)
    is_held_out = np.zeros(n_all, dtype=bool)
    is_held_out[random_state.permutation(n_all)[:n_held_out]] = True
    return whole.take(~is_held_out), whole.take(is_held_out)


def _split_steps(
    n_steps: int, n_held_out: int, random_state: np.random.RandomState
) -> tuple[Windows, Windows]:
    """Hold out a stretch of the only sequence."""
    start = random_state.randint(n_steps - n_held_out + 1)
    stop = start + n_held_out
    edges = np.array([0, start, stop, n_steps])
    parts = Windows(np.zeros(3, dtype=np.intp), edges[:-1], np.diff(edges))
    # The stretch may be the first or the last one.
    return parts.take([i for i in (0, 2) if parts.length[i] > 0]), parts.take([1])
