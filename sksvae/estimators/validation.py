# SPDX-License-Identifier: BSD-3-Clause
"""Checks of what users pass, with errors that say what came and what would work."""

import functools
from collections.abc import Callable
from numbers import Integral

import numpy as np
import torch
from sklearn.utils import check_array


def unchanged_on_error(method: Callable) -> Callable:
    """Let a method that raises leave the fitted attributes of its estimator as they were.

    Parameters
    ----------
    method : callable
        A method that fits. It may set attributes but has to leave the arrays in them alone.

    Returns
    -------
    callable
        The decorated method.
    """

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        before = vars(self).copy()
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            for name in [name for name in vars(self) if name.endswith("_")]:
                if name in before:
                    setattr(self, name, before[name])
                else:
                    delattr(self, name)
            raise

    return wrapped


def checked_device(device: str) -> torch.device:
    """PyTorch device of a name.

    Parameters
    ----------
    device : str
        The argument of an estimator.

    Returns
    -------
    torch.device
        A device that tensors and random numbers can be made on.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> from sksvae.estimators.validation import checked_device
    >>> checked_device("cpu")
    device(type='cpu')
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        torch.Generator(device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"device={device!r} is not available to PyTorch here: {reason}. device='cpu' always is."
        ) from error
    return found


def checked_layer_sizes(sizes: object) -> tuple[int, ...]:
    """Sizes of the hidden layers as a tuple.

    Parameters
    ----------
    sizes : array-like of int, or int
        The argument ``hidden_layer_sizes``.

    Returns
    -------
    tuple of int
        Empty for a linear model.

    Raises
    ------
    ValueError
        If one is not a positive integer.

    Examples
    --------
    >>> from sksvae.estimators.validation import checked_layer_sizes
    >>> checked_layer_sizes([100, 50]), checked_layer_sizes(10), checked_layer_sizes(())
    ((100, 50), (10,), ())
    """
    layers = [sizes] if isinstance(sizes, Integral) else list(sizes)
    if any(not isinstance(layer, Integral) or layer < 1 for layer in layers):
        raise ValueError(
            "hidden_layer_sizes must be positive integers, one per hidden layer, such as (100,) "
            f"or () for none, got {sizes!r}."
        )
    return tuple(int(layer) for layer in layers)


def checked_numbers(value: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Array of finite numbers in a given shape.

    Parameters
    ----------
    value : array-like
        The argument.
    shape : tuple of int
        The shape it must have.
    name : str
        Its name, for the error.

    Returns
    -------
    ndarray of shape `shape`
        In float64.

    Raises
    ------
    ValueError
        If it is something else.

    Examples
    --------
    >>> from sksvae.estimators.validation import checked_numbers
    >>> checked_numbers([1, 2], (2,), "mean_prior")
    array([1., 2.])
    """
    wanted = f"{name} must hold finite numbers in shape {shape}"
    try:
        array = check_array(
            value, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name=name
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}: {error}") from error
    if array.shape != shape:
        raise ValueError(f"{wanted}, got shape {array.shape}.")
    # A copy: torch cannot wrap read-only memory, nor negative strides.
    return array.copy()


def checked_covariance(value: object, dim: int, name: str) -> np.ndarray:
    """Symmetric positive definite matrix.

    Parameters
    ----------
    value : array-like of shape (dim, dim)
        The argument.
    dim : int
        The size it must have.
    name : str
        Its name, for the error.

    Returns
    -------
    ndarray of shape (dim, dim)
        In float64.

    Raises
    ------
    ValueError
        If it is something else.

    Examples
    --------
    >>> from sksvae.estimators.validation import checked_covariance
    >>> checked_covariance([[2, 0], [0, 1]], 2, "covariance_prior")
    array([[2., 0.],
           [0., 1.]])
    """
    matrix = checked_numbers(value, (dim, dim), name)
    advice = "It must be a symmetric positive definite matrix, such as 0.1 * np.eye(latent_dim)."
    if not np.allclose(matrix, matrix.T):
        gap = np.abs(matrix - matrix.T).max()
        raise ValueError(
            f"{name} is not symmetric: it differs from its transpose by {gap:.3g}. {advice}"
        )
    smallest = np.linalg.eigvalsh(matrix)[0]
    if smallest <= 0:
        raise ValueError(
            f"{name} is not positive definite: its smallest eigenvalue is {smallest:.3g}. {advice}"
        )
    return matrix


def check_one_table(X: object) -> None:
    """Make sure that what is to be a table of rows is not a list of tables.

    Parameters
    ----------
    X : object
        The argument.

    Raises
    ------
    ValueError
        If it is a list or tuple whose first item is an array with two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.estimators.validation import check_one_table
    >>> check_one_table([[1.0, 2.0], [3.0, 4.0]])
    >>> try:
    ...     check_one_table([np.zeros((3, 2)), np.zeros((4, 2))])
    ... except ValueError as error:
    ...     print(str(error).split(", ", 2)[2].split(":")[0])
    got a list of 2 arrays of shapes (3, 2), (4, 2)
    """
    if not isinstance(X, list | tuple) or not X or getattr(X[0], "ndim", None) != 2:
        return
    shapes = [str(tuple(np.shape(table))) for table in X[:3]]
    if len(X) > len(shapes):
        shapes.append("...")
    raise ValueError(
        f"X must be one table of shape (n_samples, n_features), got a {type(X).__name__} of "
        f"{len(X)} arrays of shapes {', '.join(shapes)}: np.concatenate(X) stacks tables of "
        "independent rows; SVAELinearDynamics and SVAESwitchingLDS take a list of sequences."
    )


def checked_states(value: object, n_states: int, n_samples: int, n_sequences: int) -> np.ndarray:
    """States of sequences.

    Parameters
    ----------
    value : array-like of int of shape (n_samples,) or (n_sequences, n_samples)
        The argument ``states``: those of all sequences, or of each.
    n_states : int
        Number of states there are.
    n_samples : int
        Steps of each sequence.
    n_sequences : int
        Number of sequences.

    Returns
    -------
    ndarray of int64 of shape (n_sequences, n_samples)
        A copy.

    Raises
    ------
    ValueError
        If it is something else.

    Examples
    --------
    >>> from sksvae.estimators.validation import checked_states
    >>> checked_states([0, 0, 1], 2, 3, 2)
    array([[0, 0, 1],
           [0, 0, 1]])
    """
    wanted = f"states must hold integers from 0 to {n_states - 1}"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    if array.shape not in ((n_samples,), (n_sequences, n_samples)):
        raise ValueError(
            f"{wanted} in shape (n_samples,) or (n_sequences, n_samples), got shape {array.shape} "
            f"with n_samples={n_samples!r} and n_sequences={n_sequences!r}."
        )
    if array.dtype.kind not in "iu":
        raise ValueError(f"{wanted}, got values of type {array.dtype}.")
    outside = array[(array < 0) | (array >= n_states)]
    if outside.size:
        raise ValueError(f"{wanted}, got {outside[0]}.")
    return np.broadcast_to(array, (int(n_sequences), int(n_samples))).astype(np.int64)
