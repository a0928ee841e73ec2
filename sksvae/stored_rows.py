# SPDX-License-Identifier: BSD-3-Clause
"""Rows and sequences that stay in a file, as a memory map, and are read a minibatch at a time.

In training they take the place of all rows. What is taken from them are those of
`sksvae.objective.Rows` and `sksvae.sequence_objective.SequenceRows`: standardised on the way, and
held in memory.
"""

import mmap
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sksvae.objective import Rows
from sksvae.sequence_objective import SequenceRows, StateMemory, sequences_in_order, steps_of


def is_memory_map(X: np.ndarray) -> bool:
    """Whether the values of an array are those of a file, which need not fit into memory.

    Parameters
    ----------
    X : ndarray
        A `numpy.memmap`, a view of one, or an array in memory.

    Returns
    -------
    bool
        True of the first two.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sksvae.stored_rows import is_memory_map
    >>> with tempfile.TemporaryFile() as file:
    ...     X = np.memmap(file, shape=(4, 2), dtype=np.float64)
    ...     is_memory_map(np.asarray(X)[1:3]), is_memory_map(X[[1, 2]]), is_memory_map(2 * X)
    (True, False, False)
    """
    found, base = False, X
    while isinstance(base, np.ndarray):
        found = found or isinstance(base, np.memmap)
        base = base.base
    # What is computed from a map is of the same class, but in memory.
    return found and isinstance(base, mmap.mmap)


def read_rows(X: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """Rows of an array, read in the order in which they lie in the file.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Perhaps a memory map.
    rows : ndarray of int of shape (n_chosen,), or slice
        Which ones.

    Returns
    -------
    ndarray of shape (n_chosen, n_features)
        In the order asked for; of a slice, a view.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.stored_rows import read_rows
    >>> read_rows(np.array([[1.0], [2.0], [3.0]]), np.array([2, 0])).ravel()
    array([3., 1.])
    """
    if isinstance(rows, slice):
        return X[rows]
    order = np.argsort(rows, kind="stable")
    chosen = np.empty((len(rows), *X.shape[1:]), X.dtype)
    chosen[order] = X[rows[order]]
    return chosen


class StoredRows:
    """Rows of data that are read when they are taken, like `sksvae.objective.Rows`.

    Parameters
    ----------
    values : ndarray of shape (n_stored, n_features)
        A memory map.
    read : callable
        Makes `sksvae.objective.Rows` of rows of ``values``.
    chosen : ndarray of int of shape (n_rows,) or None, default=None
        Numbers of the rows that these are; None for all, in their order.

    Attributes
    ----------
    observed, encoded : Tensor of shape (0, n_features)
        Of what type, on what device and how wide the tensors are that `take` makes: no row is held.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sksvae.objective import Rows
    >>> from sksvae.stored_rows import StoredRows
    >>> def read(values):
    ...     return Rows(torch.as_tensor(values), torch.as_tensor(values))
    >>> rows = StoredRows(np.arange(6.0).reshape(3, 2), read)
    >>> len(rows), len(rows.observed), rows.take(torch.tensor([2, 0])).observed[:, 0]
    (3, 0, tensor([4., 0.], dtype=torch.float64))
    """

    def __init__(
        self,
        values: np.ndarray,
        read: Callable[[np.ndarray], Rows],
        chosen: np.ndarray | None = None,
    ) -> None:
        self.values, self.read, self.chosen = values, read, chosen
        self.observed, self.encoded = read(values[:0])

    def __len__(self) -> int:
        return len(self.values) if self.chosen is None else len(self.chosen)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Leading shape of the latents; its first axis counts what minibatches are made of."""
        return (len(self),)

    def subset(self, rows: Tensor) -> "StoredRows":
        """Some of the rows, which stay where they are."""
        return StoredRows(self.values, self.read, self._numbers(rows.cpu().numpy()))

    def take(self, rows: Tensor | slice) -> Rows:
        """Read rows."""
        numbers = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return self.read(read_rows(self.values, self._numbers(numbers)))

    def _numbers(self, rows):
        return rows if self.chosen is None else self.chosen[rows]

    def parts(self, n_rows: int) -> Iterator[Rows]:
        """All rows in order, at most so many at a time."""
        for start in range(0, len(self), n_rows):
            yield self.take(slice(start, start + n_rows))


class StoredSequenceRows:
    """Steps of sequences that are read when these are taken, like `SequenceRows`.

    Parameters
    ----------
    values : ndarray of shape (n_stored, n_features)
        A memory map.
    read : callable
        Makes a pair ``observed, encoded`` of rows of ``values``, see `SequenceRows`.
    first : Tensor of int of shape (n_sequences,)
        Row of ``values`` with the first step of each sequence.
    lengths : Tensor of int of shape (n_sequences,)
        Steps of each sequence.
    memory : StateMemory or None, default=None
        Where to begin block updates, and to keep where they end: a row for each step, in the order
        of the sequences.
    uncut : Tensor of int or None, default=None
        Lengths of the sequences that windows in this order were cut from.

    Attributes
    ----------
    observed, encoded : Tensor of shape (0, n_features)
        Of what type, on what device and how wide the tensors are that `take` makes: no row is held.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sksvae.stored_rows import StoredSequenceRows
    >>> def read(values):
    ...     return torch.as_tensor(values), torch.as_tensor(values)
    >>> rows = StoredSequenceRows(
    ...     np.arange(5.0)[:, None], read, torch.tensor([0, 3]), torch.tensor([3, 2]))
    >>> len(rows), rows.take(torch.tensor([1])).observed.squeeze(1)
    (5, tensor([3., 4.], dtype=torch.float64))
    """

    def __init__(
        self,
        values: np.ndarray,
        read: Callable[[np.ndarray], tuple[Tensor, Tensor]],
        first: Tensor,
        lengths: Tensor,
        memory: StateMemory | None = None,
        uncut: Tensor | None = None,
    ) -> None:
        self.values, self.read = values, read
        self.first, self.lengths, self.memory, self.uncut = first, lengths, memory, uncut
        self.observed, self.encoded = read(values[:0])

    def __len__(self) -> int:
        return int(self.lengths.sum())

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Leading shape of the latents: number of sequences and the longest length."""
        return (self.lengths.shape[0], int(self.lengths.max()))

    @cached_property
    def _before(self) -> Tensor:
        """Steps of the sequences before each."""
        return self.lengths.cumsum(0) - self.lengths

    def windows(self, sequence: Tensor, start: Tensor, length: Tensor) -> "StoredSequenceRows":
        """Stretches of the sequences, which stay where they are."""
        return StoredSequenceRows(self.values, self.read, self.first[sequence] + start, length)

    def with_memory(self, uncut: Tensor | None = None) -> "StoredSequenceRows":
        """The same steps, with an empty memory, and of which sequences they are windows."""
        memory = StateMemory()
        return StoredSequenceRows(self.values, self.read, self.first, self.lengths, memory, uncut)

    def rejoined(self) -> "StoredSequenceRows":
        """The sequences that windows were cut from, with the same memory."""
        if self.uncut is None:
            return self
        before = self.uncut.cumsum(0) - self.uncut
        first = self.first[torch.searchsorted(self._before, before)]
        return StoredSequenceRows(self.values, self.read, first, self.uncut, self.memory)

    def take(self, sequences: Tensor) -> SequenceRows:
        """Read sequences."""
        lengths = self.lengths[sequences]
        rows = steps_of(self.first[sequences], lengths)
        observed, encoded = self.read(read_rows(self.values, rows.cpu().numpy()))
        places = None
        if self.memory is not None:
            places = steps_of(self._before[sequences], lengths)
        return SequenceRows(observed, encoded, lengths, self.memory, places)

    def steps(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Read steps, numbered over all sequences; `observed` and `encoded`."""
        before = self._before.cpu().numpy()
        sequence = np.searchsorted(before, numbers, side="right") - 1
        rows = self.first.cpu().numpy()[sequence] + numbers - before[sequence]
        return self.read(read_rows(self.values, rows))

    def parts(self, n_rows: int) -> Iterator[SequenceRows]:
        """All sequences in order, at most so many steps with padding at a time, or one sequence."""
        for sequences in sequences_in_order(self.lengths, n_rows):
            yield self.take(sequences)
