# SPDX-License-Identifier: BSD-3-Clause
"""What form X has, its steps in one table, and which rows of it are one sequence."""

import sys
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse

_FORMS = (
    "Sequences come as an array of shape (n_sequences, n_timesteps, n_features), as a list of "
    "arrays of shape (n_timesteps, n_features), or stacked in a table with groups"
)


# ---- sequences given by the form of X ----


def stacked(X: Any) -> tuple[Any, Literal["array", "list", "table"], np.ndarray | None]:
    """Table of all steps, the form of X, and the lengths of the sequences if the form has them."""
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1:
        X = list(X)
    if isinstance(X, list | tuple):
        if _is_list_of_sequences(X):
            return _concatenated(X), "list", np.array([len(entry) for entry in X])
        X = np.asarray(X) if _depth(X) == 3 else X
    # Nothing is converted that may be a table: it may have feature names.
    n_dims = _depth(X)
    if n_dims > 3:
        raise ValueError(f"X must have 2 or 3 dimensions, got {n_dims}. {_FORMS}.")
    if n_dims < 3 or issparse(X):
        return X, "table", None
    X = np.asarray(X)
    n_sequences, n_steps, n_features = X.shape
    if n_sequences == 0 or n_steps == 0:
        missing = "sequences" if n_sequences == 0 else "steps"
        raise ValueError(f"X has no {missing}: its shape is {X.shape}. {_FORMS}.")
    table = X.reshape(n_sequences * n_steps, n_features)
    return table, "array", np.full(n_sequences, n_steps)


def _depth(X: Any) -> int:
    """Number of dimensions, judged by first entries."""
    if isinstance(X, list | tuple):
        return 1 + _depth(X[0]) if len(X) else 1
    # Not np.ndim, which what only turns into an array may refuse.
    return X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim


def _is_list_of_sequences(X: list | tuple) -> bool:
    """Whether a list holds sequences; else it is an array in nested lists."""
    if len(X) == 0:
        raise ValueError(f"X is an empty list: it has no sequences. {_FORMS}.")
    depths = [_depth(entry) for entry in X]
    if max(depths) == 2:
        for i, entry in enumerate(X):
            if depths[i] > 0 and (entry.shape[0] if issparse(entry) else len(entry)) == 0:
                raise ValueError(f"X[{i}] is a sequence without steps. Leave it out.")
    for i, depth in enumerate(depths):
        if depth != depths[0]:
            raise ValueError(
                "X is a list of entries with different numbers of dimensions: X[0] has "
                f"{depths[0]} and X[{i}] has {depth}. {_FORMS}."
            )
    if depths[0] == 1 and len({len(entry) for entry in X}) > 1:
        raise ValueError(
            "X is a list of one-dimensional entries of different lengths. As sequences of one "
            "feature they must have shape (n_timesteps, 1), for example "
            "[series.reshape(-1, 1) for series in X]."
        )
    if depths[0] != 2:
        return False
    return not all(isinstance(entry, list | tuple) for entry in X) or is_ragged(X)


def is_ragged(X: list | tuple) -> bool:
    """Whether NumPy cannot make an array of nested lists."""
    try:
        np.asarray(X)
    except ValueError:
        return True
    return False


def _concatenated(X: list | tuple) -> Any:
    """All steps of a list of sequences, as a DataFrame if all of them are."""
    if any(issparse(entry) for entry in X):
        raise TypeError("X is a list with sparse entries. Convert them with toarray().")
    pandas = sys.modules.get("pandas")
    if pandas is not None and all(isinstance(entry, pandas.DataFrame) for entry in X):
        for i, entry in enumerate(X):
            if not entry.columns.equals(X[0].columns):
                raise ValueError(
                    "X is a list of DataFrames with different columns: X[0] has "
                    f"{list(X[0].columns)} and X[{i}] has {list(entry.columns)}."
                )
        return pandas.concat(X, ignore_index=True)
    arrays = [_as_table(entry, i) for i, entry in enumerate(X)]
    for i, array in enumerate(arrays):
        if array.shape[1] != arrays[0].shape[1]:
            raise ValueError(
                "X is a list of sequences with different numbers of features: X[0] has "
                f"{arrays[0].shape[1]} and X[{i}] has {array.shape[1]}."
            )
    return np.concatenate(arrays)


def _as_table(entry: Any, i: int) -> np.ndarray:
    """One sequence of a list as an array of two dimensions."""
    try:
        return np.asarray(entry)
    except ValueError as error:
        raise ValueError(f"X[{i}] is not a table of shape (n_timesteps, n_features).") from error


# ---- sequences given by ids ----


def sequence_ids(table: Any, form: str, groups: ArrayLike | None) -> tuple[np.ndarray | None, str]:
    """Ids of the sequences that rows belong to, if there are any, and where they come from."""
    # Only a MultiIndex of pandas has levels.
    in_index = form == "table" and hasattr(getattr(table, "index", None), "levels")
    if groups is None:
        if in_index:
            return np.asarray(table.index.get_level_values(0)), "level 0 of the index of X"
        return None, ""
    if form != "table" or in_index:
        already = {
            "array": "X is a 3-D array, whose first axis is that of the sequences",
            "list": "X is a list, whose entries are the sequences",
            "table": "X has a MultiIndex, whose level 0 tells the sequences apart",
        }
        raise ValueError(f"groups must be None here: {already[form]}.")
    # As objects: NumPy would make text of a list of numbers and text, and of None and NaN in it.
    ids = np.asarray(groups, dtype=None if hasattr(groups, "dtype") else object)
    if ids.ndim != 1:
        raise ValueError(
            "groups must have one dimension, with the id of the sequence of each row, got "
            f"{ids.ndim}. Of a table with a column of ids, pass that column: groups=table['id']."
        )
    return ids, "groups"


def stacking_order(ids: np.ndarray, name: str, n_rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Lengths of sequences in order of their first rows, and the order that stacks their rows."""
    if ids.size != n_rows:
        raise ValueError(
            f"{name} must have one id per row of X, got {ids.size} ids for {n_rows} rows."
        )
    missing = _is_missing(ids)
    if missing.any():
        raise ValueError(
            f"{name} has no id for {missing.sum()} of {n_rows} rows, the first of them row "
            f"{missing.argmax()}. Each row needs the id of its sequence."
        )
    if ids.dtype != object:
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        if np.unique(ids[starts]).size == starts.size:  # the rows of each sequence are neighbours
            return np.diff(starts, append=n_rows), None
    numbers: dict = {}
    try:
        codes = np.array([numbers.setdefault(key, len(numbers)) for key in ids.tolist()])
    except TypeError as error:
        raise TypeError(
            f"{name} must hold ids such as numbers or text, that can be told apart: {error}."
        ) from error
    lengths = np.bincount(codes)
    if np.all(codes[1:] >= codes[:-1]):
        return lengths, None
    return lengths, np.argsort(codes, kind="stable")


def _is_missing(ids: np.ndarray) -> np.ndarray:
    """Where an id is None, NaN, NaT or pandas' NA."""
    if ids.dtype.kind in "biuUS":
        return np.zeros(ids.shape, dtype=bool)
    if ids.dtype.kind in "fcmM":
        return ids != ids  # of numbers and times, NaN and NaT alone differ from themselves
    ids = ids.astype(object)
    if "pandas" in sys.modules:
        return sys.modules["pandas"].isna(ids)
    return np.array([key is None or key != key for key in ids])
