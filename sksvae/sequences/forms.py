# SPDX-License-Identifier: BSD-3-Clause
"""The forms in which sequences come, read into one and mirrored in what goes back."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.exceptions import DTypePromotionError
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from sksvae.sequences.serial_dependence import serial_dependence
from sksvae.sequences.stacking import sequence_ids, stacked, stacking_order
from sksvae.sequences.windows import Windows

_ALPHA = 1e-3  # of the test behind rows="auto"


class SequenceWarning(UserWarning):
    """What a table holds, rows in their order or unordered ones, had to be guessed."""


@dataclass(frozen=True, eq=False, repr=False)
class Sequences:
    """Sequences stacked in one array, and the form in which they came.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_features)
        Steps of all sequences, one sequence after the other. It may share memory with what was
        read.
    lengths : ndarray of int of shape (n_sequences,)
        Number of steps of each sequence, at least one.
    form : {"array", "list", "table"}
        Whether they came as a 3-D array, as a list, or in two dimensions.
    rows : {"consecutive", "independent"}
        What the rows of a table without groups were taken for. In all other forms it is for the
        tables to come: as asked, and "consecutive" if that was left open.
    order : ndarray of int of shape (n_rows,) or None
        Row of the table that each row of ``values`` was. None if they are in the order in which
        they came.

    See Also
    --------
    read_sequences : Reads any of the forms.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.sequences import read_sequences
    >>> sequences = read_sequences(np.arange(10.0).reshape(5, 2), groups=[0, 0, 0, 1, 1])
    >>> sequences
    Sequences(n_sequences=2, n_rows=5, n_features=2, form='table', rows='consecutive')
    >>> windows = sequences.windows(max_length=2)
    >>> batch, mask = sequences.padded(windows.take([0, 1]))
    >>> batch[..., 0]
    array([[0., 2.],
           [4., 0.]])
    >>> mask
    array([[ True,  True],
           [ True, False]])
    """

    values: np.ndarray
    lengths: np.ndarray
    form: Literal["array", "list", "table"]
    rows: Literal["consecutive", "independent"]
    order: np.ndarray | None = None

    def __repr__(self) -> str:
        return (
            f"Sequences(n_sequences={self.n_sequences}, n_rows={self.n_rows}, "
            f"n_features={self.values.shape[1]}, form={self.form!r}, rows={self.rows!r})"
        )

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return self.lengths.size

    @property
    def n_rows(self) -> int:
        """Number of steps of all sequences together."""
        return self.values.shape[0]

    @cached_property
    def starts(self) -> np.ndarray:
        """Row of the first step of each sequence, of shape (n_sequences,)."""
        return np.cumsum(self.lengths) - self.lengths

    def windows(self, max_length: int | None = None) -> Windows:
        """Windows that cover each step exactly once.

        Parameters
        ----------
        max_length : int or None, default=None
            Most steps of a window. None for whole sequences.

        Returns
        -------
        windows : Windows
            Positions of the windows.
        """
        whole = Windows.whole(self.lengths)
        return whole if max_length is None else whole.cut(max_length)

    def row_indices(self, windows: Windows) -> np.ndarray:
        """Rows of some windows in ``values``, one window after the other.

        Parameters
        ----------
        windows : Windows
            Windows of these sequences.

        Returns
        -------
        indices : ndarray of int of shape (n_rows_of_windows,)
            In the order of the steps that the mask of `padded` marks.
        """
        first = self.starts[windows.sequence] + windows.start
        before = np.cumsum(windows.length) - windows.length
        return np.arange(windows.length.sum()) + np.repeat(first - before, windows.length)

    def padded(self, windows: Windows | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Copies of windows in one array, with zeros after the shorter ones.

        Parameters
        ----------
        windows : Windows or None, default=None
            Windows of these sequences. None for all sequences as they are.

        Returns
        -------
        batch : ndarray of shape (n_windows, max_length, n_features)
            The values, missing ones included.
        mask : ndarray of bool of shape (n_windows, max_length)
            Where there is a step. ``batch[mask]`` stacks the steps again, as does
            ``values[row_indices(windows)]``.
        """
        if windows is None:
            windows = self.windows()
        mask = np.arange(windows.length.max(initial=0)) < windows.length[:, None]
        batch = np.zeros((*mask.shape, self.values.shape[1]), dtype=self.values.dtype)
        batch[mask] = self.values[self.row_indices(windows)]
        return batch, mask

    def restore(self, rows: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Outputs in the form in which the sequences came.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, ...)
            One entry per row of ``values``, with any further axes.

        Returns
        -------
        outputs : ndarray or list of ndarray
            Of shape (n_sequences, n_timesteps, ...) for a 3-D array; arrays of shape
            (n_timesteps, ...) for a list; for a table, of shape (n_rows, ...) in the order of
            its rows.

        Raises
        ------
        ValueError
            If there is not one entry per row.
        """
        if rows.shape[0] != self.n_rows:
            raise ValueError(f"rows must have {self.n_rows} entries, got shape {rows.shape}.")
        if self.form == "array":
            return rows.reshape(self.n_sequences, self.lengths[0], *rows.shape[1:])
        if self.form == "list":
            stops = self.starts + self.lengths
            return [rows[i:j] for i, j in zip(self.starts, stops, strict=True)]
        if self.order is None:
            return rows
        outputs = np.empty_like(rows)
        outputs[self.order] = rows
        return outputs


def read_sequences(
    X: Any,
    groups: ArrayLike | None = None,
    *,
    rows: Literal["auto", "consecutive", "independent"] = "auto",
    check: Callable[[Any], np.ndarray] | None = None,
) -> Sequences:
    """Sequences of any form as one stacked array.

    Parameters
    ----------
    X : array-like
        One of:

        - an array of shape (n_sequences, n_timesteps, n_features), or nested lists of this shape;
        - a list of arrays of shape (n_timesteps, n_features), whose lengths may differ. If all are
          pandas DataFrames, their columns have to be the same;
        - a table of shape (n_rows, n_features) with ``groups``;
        - a pandas DataFrame whose MultiIndex has the id of the sequence in level 0;
        - a table alone, for which ``rows`` decides.

        A list of one-dimensional entries is a table, as for all of scikit-learn. NaN is a missing
        value.
    groups : array-like of shape (n_rows,) or None, default=None
        Id of the sequence that each row of a table belongs to: numbers, text, anything that can be
        compared. The rows of a sequence need not be neighbours, and keep their order. Sequences
        come in the order of their first rows.
    rows : {"auto", "consecutive", "independent"}, default="auto"
        What the rows of a table alone are. "consecutive": one sequence, in their order.
        "independent": each is a sequence of one step. "auto": they are consecutive if
        `serial_dependence` rejects that they are independent.
    check : callable or None, default=None
        It gets the rows of all sequences as one table, in the order in which they came, and
        returns them as an array, or raises an error. What comes as a DataFrame, or as a list of
        them, is a DataFrame. None for scikit-learn's `check_array`, in float64 or float32, with
        NaN and without infinity.

    Returns
    -------
    sequences : Sequences
        What was read. ``sequences.rows`` is never "auto": with it, `read_sequences` reads other
        tables alike.

    Raises
    ------
    ValueError
        If X is none of the forms, has no sequences, or one without steps; if ids of sequences are
        missing, or not as many as there are rows; if ``groups`` comes with a form that does
        without.
    TypeError
        If X is sparse.

    Warns
    -----
    SequenceWarning
        If ``rows="auto"`` takes the rows of a table for independent.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.sequences import read_sequences
    >>> X = [np.ones((2, 3)), np.zeros((4, 3))]
    >>> sequences = read_sequences(X)
    >>> sequences.values.shape, sequences.lengths
    ((6, 3), array([2, 4]))
    >>> batch, mask = sequences.padded()
    >>> batch.shape, mask.sum(axis=1)
    ((2, 4, 3), array([2, 4]))
    >>> [array.shape for array in sequences.restore(sequences.values[:, 0])]
    [(2,), (4,)]

    Rows of two sequences in turn:

    >>> table = np.arange(10.0).reshape(5, 2)
    >>> sequences = read_sequences(table, groups=["b", "a", "b", "a", "b"])
    >>> sequences.values[:, 0], sequences.lengths
    (array([0., 4., 8., 2., 6.]), array([3, 2]))
    >>> sequences.restore(sequences.values[:, 0])
    array([0., 2., 4., 6., 8.])
    """
    if rows not in ("auto", "consecutive", "independent"):
        raise ValueError(f"rows must be 'auto', 'consecutive' or 'independent', got {rows!r}.")
    table, form, lengths = stacked(X)
    ids, name = sequence_ids(table, form, groups)
    values = (check or _checked_table)(table)
    order = None
    if ids is not None:
        lengths, order = stacking_order(ids, name, values.shape[0])
        values = values if order is None else values[order]
    elif lengths is None:
        rows = _decided(rows, values)
        lengths = np.array([len(values)]) if rows == "consecutive" else np.ones(len(values), int)
    return Sequences(values, lengths, form, "consecutive" if rows == "auto" else rows, order)


def _checked_table(X: Any) -> np.ndarray:
    """Table of numbers, NaN allowed."""
    try:
        return check_array(
            X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", input_name="X"
        )
    except (ValueError, DTypePromotionError) as error:
        clearer = not_numbers(error)
        if clearer is None:
            raise
        raise clearer from error


def not_numbers(error: Exception) -> ValueError | None:
    """Clearer error, if X could not be made an array because it holds something else."""
    if isinstance(error, DTypePromotionError):
        what = "it has columns whose types do not go together, such as dates and numbers"
    elif "could not convert" in str(error):
        what = str(error)
    else:
        return None
    return ValueError(
        f"X must hold numbers, but {what}. Encode text, categories and dates as numbers, or leave "
        "them out."
    )


def _decided(
    rows: Literal["auto", "consecutive", "independent"], values: np.ndarray
) -> Literal["consecutive", "independent"]:
    """What the rows of a table without groups are."""
    if rows != "auto":
        return rows
    if serial_dependence(values, alpha=_ALPHA).dependent:
        return "consecutive"
    warnings.warn(
        f"No dependence of the rows of X on the rows before them was found at level {_ALPHA}, so "
        "each is taken for a sequence of one step. If they are one sequence in order of time, set "
        "rows='consecutive'. If they are several, pass groups, a list of arrays or a 3-D array. If "
        "they are independent, set rows='independent', which silences this warning.",
        SequenceWarning,
        stacklevel=_level_of_the_caller(),
    )
    return "independent"


def _level_of_the_caller() -> int:
    """Level, for a warning, of the line outside of this package and scikit-learn that led here."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in ("sksvae", "sklearn"):
        frame, level = frame.f_back, level + 1
    return level
