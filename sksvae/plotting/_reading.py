# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of any form, and what estimators say about them, in one order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing, check_array

from sksvae.sequences import Sequences, read_sequences


def read(estimator: Any, X: Any, groups: ArrayLike | None = None) -> Sequences:
    """Data of an estimator, as sequences.

    Parameters
    ----------
    estimator : object
        Fitted estimator. One without ``rows_`` takes rows for independent.
    X : array-like
        Data in any form that it accepts.
    groups : array-like of shape (n_rows,) or None, default=None
        Sequence that each row of a table belongs to.

    Returns
    -------
    Sequences
        All rows, one sequence after the other.
    """
    if hasattr(estimator, "rows_"):
        return read_sequences(X, groups, rows=estimator.rows_)
    if groups is not None:
        raise ValueError(f"groups must be None: {type(estimator).__name__} has no sequences.")
    values = check_array(X, dtype=[np.float64, np.float32], input_name="X")
    return Sequences(values, np.ones(len(values), dtype=np.int64), "table", "independent")


def ask(estimator: Any, method: str, X: Any, groups: ArrayLike | None, like: Sequences) -> Any:
    """Call a method that answers in the form of X, and stack the answer.

    Parameters
    ----------
    estimator : object
        Fitted estimator.
    method : str
        Name of the method.
    X : array-like
        Data in any form.
    groups : array-like of shape (n_rows,) or None
        Sequence that each row of a table belongs to.
    like : Sequences
        The same data, as `read` gives them.

    Returns
    -------
    ndarray of shape (n_rows, ...)
        Entries in the order of ``like.values``.
    """
    keywords = {} if groups is None else {"groups": groups}
    answer = getattr(estimator, method)(X, **keywords)
    if like.form == "list":
        return np.concatenate([np.asarray(part) for part in answer])
    answer = np.asarray(answer)
    if like.form == "array":
        return answer.reshape(-1, *answer.shape[2:])
    return answer if like.order is None else answer[like.order]


def split(sequences: Sequences, rows: np.ndarray) -> list[np.ndarray]:
    """Rows of each sequence.

    Parameters
    ----------
    sequences : Sequences
        Says which rows.
    rows : ndarray of shape (n_rows, ...)
        Rows in the order of ``sequences.values``.

    Returns
    -------
    list of ndarray
        One array per sequence.
    """
    return np.split(rows, sequences.starts[1:])


class OneSequence(NamedTuple):
    """One of several sequences.

    Parameters
    ----------
    X : list
        Its rows, alone in a list and in the container in which they came: what estimators take
        for one sequence.
    values : ndarray of shape (n_timesteps, n_features)
        Its rows as an array.
    """

    X: list
    values: np.ndarray


def one_sequence(estimator: Any, X: Any, groups: ArrayLike | None, sequence: int) -> OneSequence:
    """Pick one sequence.

    Parameters
    ----------
    estimator : object
        Fitted estimator.
    X : array-like
        Data in any form that it accepts.
    groups : array-like of shape (n_rows,) or None
        Sequence that each row of a table belongs to.
    sequence : int
        Which, in the order of their first rows.

    Returns
    -------
    OneSequence
        The sequence.
    """
    sequences = read(estimator, X, groups)
    n_sequences = sequences.n_sequences
    if not isinstance(sequence, int | np.integer) or not -n_sequences <= sequence < n_sequences:
        raise ValueError(
            f"sequence must be an integer below {n_sequences}, the number of sequences of X, got "
            f"{sequence!r}."
        )
    sequence %= n_sequences
    rows = np.arange(sequences.lengths[sequence]) + sequences.starts[sequence]
    values = sequences.values[rows]
    if sequences.form == "table":
        rows = rows if sequences.order is None else sequences.order[rows]
        # The container may have names of features, without which estimators warn.
        return OneSequence([_safe_indexing(X, rows)], values)
    return OneSequence([X[sequence] if sequences.form == "list" else values], values)


def split_labels(labels: Any, name: str, groups: ArrayLike | None = None) -> list[np.ndarray]:
    """Labels of sequences in any form: one array per sequence.

    Parameters
    ----------
    labels : array-like or list of array-like
        One-dimensional for one sequence, or for those that ``groups`` tells apart;
        two-dimensional, or a list of arrays, for several.
    name : str
        Name of ``labels``, for errors.
    groups : array-like of shape (n_steps,) or None, default=None
        Sequence that each entry of one-dimensional labels belongs to.

    Returns
    -------
    list of ndarray
        Labels of each sequence, as they are: not checked.
    """
    is_list = isinstance(labels, list | tuple) and len(labels) > 0 and np.ndim(labels[0]) > 0
    parts = [np.asarray(part) for part in (labels if is_list else np.atleast_2d(labels))]
    for part in parts:
        if part.ndim != 1 or not part.size:
            raise ValueError(f"{name} must hold one label per step, got shape {part.shape}.")
    if groups is None:
        return parts
    if is_list or len(parts) > 1:
        raise ValueError(f"groups must be None unless {name} is one-dimensional.")
    stacked = read_sequences(np.arange(parts[0].size)[:, None].astype(float), groups)
    return split(stacked, parts[0] if stacked.order is None else parts[0][stacked.order])
