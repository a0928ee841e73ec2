# SPDX-License-Identifier: BSD-3-Clause
"""Sequences from tools that keep features before time."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sksvae.sequences.stacking import is_ragged

_LIKE = (
    "X must be an array of shape (n_sequences, n_features, n_timesteps), or a list of arrays of "
    "shape (n_features, n_timesteps)"
)


def from_channels_first(X: ArrayLike | list[Any]) -> np.ndarray | list[np.ndarray]:
    """Sequences with features first, as aeon and sktime keep them, with time first.

    aeon and the ``numpy3D`` of sktime have (n_cases, n_channels, n_timepoints); here it is
    (n_sequences, n_timesteps, n_features).

    Parameters
    ----------
    X : array-like of shape (n_sequences, n_features, n_timesteps) or list
        Sequences of equal length, or a list of arrays of shape (n_features, n_timesteps) with a
        common number of features, whose lengths may differ.

    Returns
    -------
    X : ndarray of shape (n_sequences, n_timesteps, n_features) or list of ndarray
        The same numbers, not copied: views with two axes exchanged. For a list, arrays of shape
        (n_timesteps, n_features).

    Raises
    ------
    ValueError
        If X is neither, or the entries of a list have different numbers of features.

    See Also
    --------
    read_sequences : Reads any of the forms that estimators take.

    Notes
    -----
    Sizes do not tell which axis is which: what has time first already comes out wrong, without an
    error. ``numpy.swapaxes(X, 1, 2)`` leads back.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.sequences import from_channels_first
    >>> from_channels_first(np.zeros((10, 2, 50))).shape  # 10 sequences of 2 features
    (10, 50, 2)
    >>> [entry.shape for entry in from_channels_first([np.zeros((2, 50)), np.zeros((2, 7))])]
    [(50, 2), (7, 2)]
    """
    if _is_list(X):
        return _each(X)
    array = np.asarray(X)
    if array.ndim != 3:
        hint = ""
        if array.ndim == 2:
            hint = (
                " One sequence of many features is X[None]; many sequences of one feature are "
                "X[:, None]."
            )
        raise ValueError(f"{_LIKE}, got an array of shape {array.shape}.{hint}")
    return np.swapaxes(array, 1, 2)


def _is_list(X: Any) -> bool:
    """Whether X holds sequences one by one: nested lists of numbers are an array."""
    if isinstance(X, np.ndarray):
        return X.dtype == object and X.ndim == 1
    if not isinstance(X, list | tuple):
        return False
    return len(X) == 0 or any(hasattr(entry, "shape") for entry in X) or is_ragged(X)


def _each(X: Any) -> list[np.ndarray]:
    if len(X) == 0:
        raise ValueError(f"{_LIKE}, got a list without entries.")
    arrays = []
    for i, entry in enumerate(X):
        try:
            arrays.append(np.asarray(entry))
        except ValueError as error:
            raise ValueError(f"{_LIKE}, but X[{i}] is not an array: {error}.") from error
        if arrays[i].ndim != 2:
            raise ValueError(f"{_LIKE}, but X[{i}] has shape {arrays[i].shape}.")
        if arrays[i].shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"{_LIKE} with a common n_features, but X[0] has shape {arrays[0].shape} and "
                f"X[{i}] has shape {arrays[i].shape}. If they have time first already, leave them."
            )
    return [array.T for array in arrays]
