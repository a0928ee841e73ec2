# SPDX-License-Identifier: BSD-3-Clause
"""Linear maps from latents to a plane."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from sksvae.plotting._checks import checked_array, checked_indices


class Projection(NamedTuple):
    """Linear map to a plane, ``(z - center) @ axes.T``.

    Parameters
    ----------
    axes : ndarray of shape (2, latent_dim)
        Rows of the map.
    center : ndarray of shape (latent_dim,)
        What becomes the origin.
    names : tuple of two str
        Labels of the axes of the plane.
    """

    axes: np.ndarray
    center: np.ndarray
    names: tuple[str, str]

    def points(self, z: np.ndarray) -> np.ndarray:
        """Project points.

        Parameters
        ----------
        z : ndarray of shape (..., latent_dim)
            Points.

        Returns
        -------
        ndarray of shape (..., 2)
            The points in the plane.
        """
        return (z - self.center) @ self.axes.T

    def covariances(self, covariances: np.ndarray) -> np.ndarray:
        """Project covariances by the same map.

        Parameters
        ----------
        covariances : ndarray of shape (..., latent_dim, latent_dim)
            Covariances.

        Returns
        -------
        ndarray of shape (..., 2, 2)
            Covariances of the projected points.
        """
        return self.axes @ covariances @ self.axes.T


def choose_projection(
    wanted: Any,
    latents: np.ndarray,
    means: np.ndarray | None,
    covariances: np.ndarray | None,
    weights: np.ndarray | None,
) -> Projection:
    """Plane in which to show latents.

    Parameters
    ----------
    wanted : {"auto", "discriminant", "principal"}, tuple of two ints, or array-like
        Two latents, or a map of shape (2, latent_dim), or how to find one. "auto": two latents as
        they are; of more the discriminant axes, or the principal axes if means and covariances do
        not say two of these.
    latents : ndarray of shape (n_rows, latent_dim)
        Latents.
    means, covariances, weights : ndarray or None
        Those of components.

    Returns
    -------
    Projection
        The map.

    Raises
    ------
    ValueError
        If there is no such map.
    """
    dim = latents.shape[1]
    if isinstance(wanted, str):
        if wanted not in ("auto", "discriminant", "principal"):
            raise ValueError(
                "projection must be 'auto', 'discriminant', 'principal', a pair of latents or an "
                f"array of shape (2, {dim}), got {wanted!r}."
            )
        if wanted == "auto" and dim == 2:
            return _coordinates((0, 1), dim)
        found = None
        if wanted != "principal" and means is not None and len(means) > 2:
            found = _discriminant_axes(means, covariances, weights)
        if found is None and wanted == "discriminant":
            raise ValueError(
                "projection='discriminant' needs three or more components whose means differ in "
                "two directions, and whose mean covariance is positive definite. Take 'principal'."
            )
        return found or _principal_axes(latents)
    if np.ndim(wanted) == 1 and len(wanted) == 2:
        return _coordinates(wanted, dim)
    axes = checked_array(wanted, "projection", (2, dim))
    return Projection(axes, np.zeros(dim), ("first projection", "second projection"))


def _coordinates(wanted: ArrayLike, dim: int) -> Projection:
    i, j = checked_indices(wanted, dim, "projection")
    if i == j:
        raise ValueError(f"projection must be two different latents, got {wanted!r}.")
    return Projection(np.eye(dim)[[i, j]], np.zeros(dim), (f"latent {i}", f"latent {j}"))


def _discriminant_axes(
    means: np.ndarray, covariances: np.ndarray, weights: np.ndarray
) -> Projection | None:
    """Axes that separate components best: of Fisher's linear discriminant analysis."""
    weights = weights / weights.sum()
    center = weights @ means
    within = np.einsum("k,kij->ij", weights, covariances)
    between = (weights * (means - center).T) @ (means - center)
    try:
        ratios, vectors = linalg.eigh(between, within)
    except linalg.LinAlgError:
        return None
    ratios, axes = ratios[::-1], _with_signs(vectors.T[::-1])
    if ratios[1] < 1e-6 * ratios[0]:
        return None
    shares = ratios[:2] / ratios[ratios > 0].sum()
    return Projection(axes[:2], center, _names("discriminant axis", shares))


def _principal_axes(latents: np.ndarray) -> Projection:
    center = latents.mean(axis=0)
    _, values, axes = np.linalg.svd(latents - center, full_matrices=False)
    if len(axes) < 2:
        raise ValueError("latents must have at least two rows for principal axes.")
    shares = values[:2] ** 2 / max(np.sum(values**2), np.finfo(float).tiny)
    return Projection(_with_signs(axes)[:2], center, _names("principal axis", shares))


def _names(kind: str, shares: np.ndarray) -> tuple[str, str]:
    first, second = (f"{kind} {i + 1} ({100 * share:.0f} %)" for i, share in enumerate(shares))
    return first, second


def _with_signs(axes: np.ndarray) -> np.ndarray:
    """Axes whose largest coefficient is positive, so that equal fits give equal figures."""
    largest = np.abs(axes).argmax(axis=1)
    return axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
