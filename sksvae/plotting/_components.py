# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian components: where states are in latent space, and what to draw of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.patches import Ellipse

_LEAST_ROWS = 3.0  # expected rows in a state, below which its moments say nothing


def state_moments(
    latents: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of the latents in each state.

    Parameters
    ----------
    latents : ndarray of shape (n_rows, latent_dim)
        Latents.
    probabilities : ndarray of shape (n_rows, n_states)
        Probabilities of the states.

    Returns
    -------
    means : ndarray of shape (n_states, latent_dim)
        Weighted means.
    covariances : ndarray of shape (n_states, latent_dim, latent_dim)
        Weighted covariances.
    weights : ndarray of shape (n_states,)
        Share of the rows; zero for states with hardly any.
    """
    rows = probabilities.sum(axis=0)
    shares = probabilities / np.maximum(rows, np.finfo(float).tiny)
    means = shares.T @ latents
    covariances = np.empty((*means.shape, latents.shape[1]))
    for k, mean in enumerate(means):
        shifted = latents - mean
        covariances[k] = (shares[:, k, None] * shifted).T @ shifted
    return means, covariances, np.where(rows < _LEAST_ROWS, 0.0, rows / len(latents))


def ellipse(mean: np.ndarray, covariance: np.ndarray, n_std: float, keywords: dict) -> Ellipse:
    """Contour of a Gaussian in the plane.

    Parameters
    ----------
    mean : ndarray of shape (2,)
        Its mean.
    covariance : ndarray of shape (2, 2)
        Its covariance.
    n_std : float
        Standard deviations from the mean.
    keywords : dict
        Further arguments of the ellipse.

    Returns
    -------
    Ellipse
        The contour, whose half axes are ``n_std`` roots of the eigenvalues.
    """
    from matplotlib import patches

    values, vectors = np.linalg.eigh(covariance)
    height, width = 2.0 * n_std * np.sqrt(np.maximum(values, 0.0))
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    return patches.Ellipse(mean, width, height, angle=angle, **keywords)


def has_components(estimator: Any) -> bool:
    """Whether an estimator has Gaussian components over its latents.

    Parameters
    ----------
    estimator : object
        Fitted estimator.

    Returns
    -------
    bool
        If not, it may still have states.
    """
    return hasattr(estimator, "means_") and hasattr(estimator, "covariances_")
