# SPDX-License-Identifier: BSD-3-Clause
"""Flow of linear dynamics in a plane."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

_TYPICAL, _LONGEST = 0.5, 0.95  # lengths of arrows, in distances of grid points
_MOST_SINGULAR = 1e8  # condition number, above which a fixed point is anywhere


def plane_grid(points: np.ndarray, n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid over the range of points, with a margin.

    Parameters
    ----------
    points : ndarray of shape (n_steps, 2)
        Points.
    n_points : int
        Grid points along each side.

    Returns
    -------
    grid : ndarray of shape (n_points ** 2, 2)
        Grid points.
    spacing : ndarray of shape (2,)
        Their distances along both axes.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    extent = high - low
    # A constant latent gets a range, too.
    margin = 0.08 * np.where(extent > 0, extent, max(extent.max(), 1.0))
    sides = np.linspace(low - margin, high + margin, n_points)
    x, y = np.meshgrid(*sides.T)
    return np.column_stack([x.ravel(), y.ravel()]), sides[1] - sides[0]


def arrows(displacements: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Arrows along displacements, of lengths that can be drawn.

    Parameters
    ----------
    displacements : ndarray of shape (n_points, 2)
        Steps that the dynamics take.
    spacing : ndarray of shape (2,)
        Distances of grid points.

    Returns
    -------
    ndarray of shape (n_points, 2)
        Steps times a common factor, with which the median one is half as long as grid points are
        apart. Those that would reach the next grid point are shortened.
    """
    lengths = np.linalg.norm(displacements / spacing, axis=1)
    typical = np.median(lengths)
    if typical == 0:
        return displacements
    factors = np.minimum(_TYPICAL / typical, _LONGEST / np.maximum(lengths, 1e-300))
    return displacements * factors[:, None]


def nearest_states(
    grid: np.ndarray, points: np.ndarray, states: np.ndarray, spacing: np.ndarray
) -> np.ndarray:
    """Most frequent state of the points around each grid point.

    Parameters
    ----------
    grid : ndarray of shape (n_grid, 2)
        Grid points.
    points : ndarray of shape (n_steps, 2)
        Points.
    states : ndarray of int of shape (n_steps,)
        Their states.
    spacing : ndarray of shape (2,)
        Distances of grid points, up to which points are around.

    Returns
    -------
    ndarray of int of shape (n_grid,)
        States; -1 where there is no point.
    """
    found = np.full(len(grid), -1)
    around = cKDTree(points / spacing).query_ball_point(grid / spacing, 1.0)
    for i, near in enumerate(around):
        if near:
            found[i] = np.bincount(states[near]).argmax()
    return found


def displacements(
    points: np.ndarray, A: np.ndarray, b: np.ndarray, dims: tuple[int, int], others: np.ndarray
) -> np.ndarray:
    """Steps ``A z + b - z`` that linear dynamics take, in two latents.

    Parameters
    ----------
    points : ndarray of shape (n_points, 2)
        The two latents.
    A : ndarray of shape (latent_dim, latent_dim)
        Transition matrix.
    b : ndarray of shape (latent_dim,)
        Offset.
    dims : tuple of two ints
        Which latents.
    others : ndarray of shape (latent_dim,)
        Values at which all others are held.

    Returns
    -------
    ndarray of shape (n_points, 2)
        The steps.
    """
    z = np.tile(others, (len(points), 1))
    z[:, list(dims)] = points
    return (z @ A.T + b - z)[:, list(dims)]


def fixed_point(A: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Point at which linear dynamics stay.

    Parameters
    ----------
    A : ndarray of shape (latent_dim, latent_dim)
        Transition matrix.
    b : ndarray of shape (latent_dim,)
        Offset.

    Returns
    -------
    ndarray of shape (latent_dim,) or None
        The point; None if there is no single one.
    """
    away = np.eye(len(b)) - A
    return None if np.linalg.cond(away) > _MOST_SINGULAR else np.linalg.solve(away, b)


def first_moves(
    parts: list[np.ndarray], states: list[np.ndarray], k: int | None, most: int
) -> np.ndarray:
    """First moves into a state, of all sequences, as one line with gaps.

    Parameters
    ----------
    parts : list of ndarray of shape (n_timesteps, 2)
        Points of each sequence.
    states : list of ndarray of int of shape (n_timesteps,)
        Their states.
    k : int or None
        The state; None for moves into any.
    most : int
        Most moves.

    Returns
    -------
    ndarray of shape (3 * n_moves, 2)
        Of each move the point before, the point in the state, and NaN.
    """
    pieces, remaining = [np.empty((0, 2))], most
    for points, labels in zip(parts, states, strict=True):
        into = np.full(labels.size - 1, True) if k is None else labels[1:] == k
        to = np.flatnonzero(into)[:remaining] + 1
        remaining -= to.size
        moves = np.full((to.size, 3, 2), np.nan)
        moves[:, 0], moves[:, 1] = points[to - 1], points[to]
        pieces.append(moves.reshape(-1, 2))
    return np.concatenate(pieces)
