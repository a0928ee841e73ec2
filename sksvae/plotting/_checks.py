# SPDX-License-Identifier: BSD-3-Clause
"""What displays are given: estimators, arrays and sequences."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted


def check_estimator_has(estimator: Any, *names: str) -> None:
    """Check that an estimator is fitted, and has some attributes and methods.

    Parameters
    ----------
    estimator : object
        The estimator.
    *names : str
        What it must have.

    Raises
    ------
    NotFittedError
        If it is not fitted.
    TypeError
        If it lacks something.
    """
    check_is_fitted(estimator)
    missing = [name for name in names if not hasattr(estimator, name)]
    if missing:
        raise TypeError(
            f"estimator must have {' and '.join(missing)}, which {type(estimator).__name__} has "
            "not. Of a pipeline, pass the last step, and X as the steps before it transform it."
        )


def checked_array(
    values: ArrayLike, name: str, shape: tuple[int | None, ...], *, allow_nan: bool = False
) -> np.ndarray:
    """Array of numbers of a given shape.

    Parameters
    ----------
    values : array-like
        What was given.
    name : str
        Its name, for errors.
    shape : tuple of int or None
        Its shape; None for any length.
    allow_nan : bool, default=False
        Whether values may be NaN.

    Returns
    -------
    ndarray
        In float64.

    Raises
    ------
    ValueError
        If it is something else. The message has the name.
    """
    try:
        array = check_array(
            values,
            dtype=np.float64,
            ensure_2d=False,
            allow_nd=True,
            ensure_min_samples=0,
            ensure_min_features=0,
            ensure_all_finite="allow-nan" if allow_nan else True,
            input_name=name,
        )
    except (TypeError, ValueError) as error:
        if name in str(error):
            raise
        raise ValueError(f"{name} must be an array of numbers, but: {error}") from error
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}.")
    return array


def checked_labels(labels: ArrayLike, name: str) -> np.ndarray:
    """One-dimensional array of numbers of states.

    Parameters
    ----------
    labels : array-like of shape (n_steps,)
        What was given.
    name : str
        Its name, for errors.

    Returns
    -------
    ndarray of int of shape (n_steps,)
        The numbers, not negative.

    Raises
    ------
    ValueError
        If it is something else. The message has the name.
    """
    array = checked_array(labels, name, (None,))
    if not array.size:
        raise ValueError(f"{name} is empty.")
    if np.any(array != np.floor(array)) or array.min() < 0:
        raise ValueError(f"{name} must hold numbers of states: integers of at least 0.")
    return array.astype(np.int64)


def checked_names(names: Sequence | None, n_names: int, name: str) -> list[str]:
    """Names of states or features, by default their numbers.

    Parameters
    ----------
    names : sequence of str or None
        What was given.
    n_names : int
        How many are needed.
    name : str
        Name of the argument, for errors.

    Returns
    -------
    list of str
        The names.

    Raises
    ------
    ValueError
        If there are fewer or more.
    """
    if names is None:
        return [str(i) for i in range(n_names)]
    if len(names) != n_names:
        raise ValueError(f"{name} must have {n_names} entries, got {len(names)}.")
    return [str(one) for one in names]


def checked_option(value: Any, name: str, options: Sequence[str]) -> str:
    """One of some words.

    Parameters
    ----------
    value : object
        What was given.
    name : str
        Name of the argument, for errors.
    options : sequence of str
        What it may be.

    Returns
    -------
    str
        The value.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {list(options)}, got {value!r}.")
    return value


def checked_image_shape(image_shape: Any, n_features: int) -> tuple[int, int]:
    """Rows and columns of images.

    Parameters
    ----------
    image_shape : tuple of two ints
        What was given.
    n_features : int
        Number of pixels.

    Returns
    -------
    tuple of two ints
        Rows and columns.

    Raises
    ------
    ValueError
        If it is something else, or another number of pixels.
    """
    shape = tuple(np.atleast_1d(image_shape).tolist())
    if len(shape) != 2 or shape[0] * shape[1] != n_features:
        raise ValueError(
            f"image_shape must be two numbers with product n_features={n_features}, got "
            f"{image_shape!r}."
        )
    return shape


def checked_indices(indices: Any, n: int, name: str) -> list[int]:
    """Numbers of some of ``n`` things.

    Parameters
    ----------
    indices : array-like of int
        What was given.
    n : int
        How many things there are.
    name : str
        Name of the argument, for errors.

    Returns
    -------
    list of int
        The numbers; negative ones count from the end.

    Raises
    ------
    ValueError
        If there is none, or one is not a number of a thing.
    """
    chosen = list(np.atleast_1d(indices).tolist())
    good = [isinstance(i, Integral) and -n <= i < n for i in chosen]
    if not chosen or not all(good):
        raise ValueError(f"{name} must be integers below {n}, got {indices!r}.")
    return [i % n for i in chosen]
