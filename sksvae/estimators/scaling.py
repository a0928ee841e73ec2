# SPDX-License-Identifier: BSD-3-Clause
"""Standardisation of features inside an estimator."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows

PIECE = 2**20  # numbers that are in memory at a time where something is computed of all rows


class Scaling(NamedTuple):
    """Location and scale of the working features.

    Parameters
    ----------
    location : ndarray of shape (n_features,)
        Means.
    scale : ndarray of shape (n_features,)
        Standard deviations, or one common scale.
    """

    location: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(
        cls, X: np.ndarray, standardize: bool, likelihood: Likelihood | None = None
    ) -> "Scaling":
        """Measure working features, a bounded number of rows at a time.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Data; NaN marks a missing value.
        standardize : bool
            One scale per feature, else the root mean variance for all. Constant features get the
            common scale of the others, or one if all are constant, but no less than the rounding
            errors that they may consist of.
        likelihood : Likelihood or None, default=None
            Says what the working features of the data are; None: the data themselves.

        Returns
        -------
        Scaling
            In the dtype of the features.
        """

        def working(rows: np.ndarray) -> np.ndarray:
            return rows if likelihood is None else likelihood.working_features(rows)

        def wide() -> Iterator[np.ndarray]:
            for part in pieces(X):
                yield working(part).astype(np.float64, copy=False)

        dtype = working(X[:1]).dtype
        largest = _largest(wide())
        location = largest * _present_mean(part / largest for part in wide())
        # What rounding alone can leave of a constant column is no variation.
        rounding = 10 * np.finfo(dtype).eps * largest
        scale = _root_mean_square(lambda: (part - location for part in wide()))
        varies = scale > rounding
        common = _root_mean_square(lambda: [scale[varies, None]])[0] if varies.any() else 1.0
        if not standardize:
            scale = np.full_like(scale, common)
        scale = np.where(varies, scale, np.maximum(common, scale))
        return cls(location.astype(dtype), scale.astype(dtype))

    def rows(self, X: np.ndarray, likelihood: Likelihood, device: str) -> Rows:
        """Tensors of both forms of the data.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Data in the domain of the likelihood.
        likelihood : Likelihood
            Observation model.
        device : str
            Where the tensors go.

        Returns
        -------
        Rows
            The data.
        """
        encoded = (likelihood.working_features(X) - self.location) / self.scale
        encoded = torch.as_tensor(encoded.astype(X.dtype, copy=False), device=device)
        if likelihood.standardizes:
            return Rows(encoded, encoded)
        # A copy: torch cannot wrap read-only memory, nor negative strides.
        return Rows(torch.as_tensor(X.copy(), device=device), encoded)

    def restore(self, X: np.ndarray, likelihood: Likelihood) -> np.ndarray:
        """Take what the likelihood speaks back to the units of X."""
        return X * self.scale + self.location if likelihood.standardizes else X

    def log_jacobian(self, X: np.ndarray, likelihood: Likelihood) -> np.ndarray:
        """What log densities of the likelihood gain in the units of X.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Rows; missing values count for nothing.
        likelihood : Likelihood
            Observation model.

        Returns
        -------
        ndarray of shape (n_rows,)
            To be added to the log density of each row, in float64.
        """
        if not likelihood.standardizes:
            return np.zeros(X.shape[0])
        log_scale = np.log(self.scale.astype(np.float64))
        present = ~np.isnan(X)
        return np.full(X.shape[0], -log_scale.sum()) if present.all() else -(present @ log_scale)

    def mean_log_jacobian(self, X: np.ndarray, likelihood: Likelihood) -> float:
        """Mean of `log_jacobian` over rows, a bounded number of them at a time."""
        total = sum(self.log_jacobian(part, likelihood).sum() for part in pieces(X))
        return float(total / len(X))


def pieces(X: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of an array in order, as many at a time as may be copied.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Perhaps a memory map.

    Yields
    ------
    ndarray of shape (n_rows_of_piece, n_features)
        Views.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.estimators.scaling import pieces
    >>> [len(piece) for piece in pieces(np.zeros((300, 2**13)))]
    [128, 128, 44]
    """
    n_rows = rows_of_a_piece(X.shape[1])
    for start in range(0, len(X), n_rows):
        yield X[start : start + n_rows]


def rows_of_a_piece(n_features: int) -> int:
    """How many rows may be copied at a time, at least one."""
    return max(1, PIECE // n_features)


def _largest(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Largest size over rows, one if all are zero or missing."""
    sizes = [np.fmax.reduce(np.abs(part), 0, initial=0.0) for part in parts]
    largest = np.maximum.reduce(sizes)
    return np.where(largest > 0, largest, 1.0)


def _root_mean_square(parts: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """Root mean square over rows, safe from overflow and underflow."""
    unit = _largest(parts())
    return unit * np.sqrt(_present_mean((part / unit) ** 2 for part in parts()))


def _present_mean(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over rows of what is not NaN, zero if all is.

    The sum so far is the first of the rows to be added: added up row by row, the parts give the
    same bits as the whole.
    """
    total, count = None, 0
    for part in parts:
        present = ~np.isnan(part)
        count = count + present.sum(0)
        if total is not None:
            part = np.concatenate([total[None], part])
            present = np.concatenate([np.ones((1, part.shape[1]), bool), present])
        total = np.sum(part, 0) if present.all() else np.sum(part, 0, where=present)
    return total / np.maximum(count, 1)
