# SPDX-License-Identifier: BSD-3-Clause
"""Standardisation of features inside an estimator."""

from typing import NamedTuple

import numpy as np
import torch

from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows


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
    def of(cls, working: np.ndarray, standardize: bool) -> "Scaling":
        """Measure working features.

        Parameters
        ----------
        working : ndarray of shape (n_rows, n_features)
            Features on the link scale; NaN marks a missing value.
        standardize : bool
            One scale per feature, else the root mean variance for all. Constant features get the
            common scale of the others, or one if all are constant, but no less than the rounding
            errors that they may consist of.

        Returns
        -------
        Scaling
            In the dtype of the features.
        """
        wide = working.astype(np.float64)
        location = _mean(wide)
        # What rounding alone can leave of a constant column is no variation.
        rounding = 10 * np.finfo(working.dtype).eps * _largest(wide)
        scale = _root_mean_square(wide - location)
        varies = scale > rounding
        common = _root_mean_square(scale[varies]) if varies.any() else 1.0
        if not standardize:
            scale = np.full_like(scale, common)
        scale = np.where(varies, scale, np.maximum(common, scale))
        return cls(location.astype(working.dtype), scale.astype(working.dtype))

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


def _largest(values: np.ndarray) -> np.ndarray:
    """Largest size over the first axis, one if all are zero or missing."""
    largest = np.fmax.reduce(np.abs(values), 0, initial=0.0)
    return np.where(largest > 0, largest, 1.0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis, safe from overflow and exact for a constant."""
    unit = _largest(values)
    return unit * _present_mean(values / unit)


def _root_mean_square(values: np.ndarray) -> np.ndarray:
    """Root mean square over the first axis, safe from overflow and underflow."""
    unit = _largest(values)
    return unit * np.sqrt(_present_mean((values / unit) ** 2))


def _present_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN, zero if all is."""
    present = ~np.isnan(values)
    if present.all():
        return np.mean(values, axis=0)
    return np.sum(values, axis=0, where=present) / np.maximum(present.sum(0), 1)
