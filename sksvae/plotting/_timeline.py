# SPDX-License-Identifier: BSD-3-Clause
"""Time: where steps are, stretches of equal states, and fewer points where more would not show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

MOST_BINS = 2000  # of time: more than a figure has pixels


class Timeline(NamedTuple):
    """Times of steps.

    Parameters
    ----------
    points : ndarray of shape (n_steps,)
        Time of each step, in matplotlib's days if they are dates.
    edges : ndarray of shape (n_steps + 1,)
        Where steps meet, halfway between their times.
    are_dates : bool
        Whether they are dates.
    """

    points: np.ndarray
    edges: np.ndarray
    are_dates: bool

    def part(self, start: int, stop: int) -> Timeline:
        """Times of some steps.

        Parameters
        ----------
        start, stop : int
            First step, and the one after the last.

        Returns
        -------
        Timeline
            Their times.
        """
        return Timeline(self.points[start:stop], self.edges[start : stop + 1], self.are_dates)

    def mark(self, axis) -> None:
        """Let an axis write dates, if the times are dates.

        Parameters
        ----------
        axis : XAxis
            The axis.
        """
        if self.are_dates:
            from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

            locator = AutoDateLocator()
            axis.set_major_locator(locator)
            axis.set_major_formatter(ConciseDateFormatter(locator))


def timeline(times: ArrayLike | None, n_steps: int, name: str = "times") -> Timeline:
    """Times of steps, by default their numbers.

    Parameters
    ----------
    times : array-like of shape (n_steps,) or None
        Increasing numbers or dates.
    n_steps : int
        Number of steps.
    name : str, default="times"
        Name of the argument, for errors.

    Returns
    -------
    Timeline
        The times.

    Raises
    ------
    ValueError
        If times are not as many, or do not increase.
    """
    if times is None:
        points, are_dates = np.arange(float(n_steps)), False
    else:
        points = np.asarray(times)
        if points.dtype == object:
            points = points.astype("datetime64[us]")
        are_dates = points.dtype.kind == "M"
        if are_dates:
            points = points.astype("datetime64[us]").astype(np.int64) / 86_400e6
        points = np.asarray(points, dtype=np.float64)
        if points.shape != (n_steps,):
            raise ValueError(f"{name} must have shape ({n_steps},), got {points.shape}.")
        if not np.all(np.diff(points) > 0):
            raise ValueError(f"{name} must increase from step to step.")
    if n_steps == 1:
        return Timeline(points, points[0] + np.array([-0.5, 0.5]), are_dates)
    between = 0.5 * (points[1:] + points[:-1])
    first, last = 2 * points[0] - between[0], 2 * points[-1] - between[-1]
    return Timeline(points, np.concatenate([[first], between, [last]]), are_dates)


class Runs(NamedTuple):
    """Stretches of equal labels.

    Parameters
    ----------
    starts : ndarray of int of shape (n_runs,)
        First step of each.
    stops : ndarray of int of shape (n_runs,)
        Step after the last one of each.
    labels : ndarray of shape (n_runs,)
        Label of each.
    """

    starts: np.ndarray
    stops: np.ndarray
    labels: np.ndarray


def runs(labels: np.ndarray) -> Runs:
    """Stretches of equal labels.

    Parameters
    ----------
    labels : ndarray of shape (n_steps,)
        Label of each step.

    Returns
    -------
    Runs
        The stretches in their order.
    """
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1])
    return Runs(starts, np.append(starts[1:], labels.size), labels[starts])


def visible_runs(labels: np.ndarray, n_bins: int = MOST_BINS) -> Runs:
    """Stretches of equal labels; if they are too many to be seen, of the most frequent in bins.

    Parameters
    ----------
    labels : ndarray of int of shape (n_steps,)
        Label of each step.
    n_bins : int, default=2000
        Most stretches that are kept as they are, and the number of bins otherwise.

    Returns
    -------
    Runs
        The stretches.
    """
    exact = runs(labels)
    if exact.starts.size <= n_bins:
        return exact
    n_labels = int(labels.max()) + 1
    edges = bin_edges(labels.size, n_bins)
    bin_of_step = np.repeat(np.arange(n_bins), np.diff(edges))
    counts = np.bincount(bin_of_step * n_labels + labels, minlength=n_bins * n_labels)
    coarse = runs(counts.reshape(n_bins, n_labels).argmax(1))
    return Runs(edges[coarse.starts], edges[coarse.stops], coarse.labels)


def envelope(
    times: np.ndarray, values: np.ndarray, n_bins: int = MOST_BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value in each of many bins of time: their line looks like that of all.

    Parameters
    ----------
    times : ndarray of shape (n_steps,)
        Times of the steps.
    values : ndarray of shape (n_steps, n_lines)
        Values, NaN where there is none.
    n_bins : int, default=2000
        Number of bins; up to twice as many steps are kept as they are.

    Returns
    -------
    times : ndarray of shape (n_points,)
        Two equal ones per bin.
    values : ndarray of shape (n_points, n_lines)
        The least and the largest in turn.
    """
    if times.size <= 2 * n_bins:
        return times, values
    edges = bin_edges(times.size, n_bins)
    ends = np.stack([np.fmin.reduceat(values, edges[:-1]), np.fmax.reduceat(values, edges[:-1])], 1)
    middle = 0.5 * (times[edges[:-1]] + times[edges[1:] - 1])
    return np.repeat(middle, 2), ends.reshape(-1, values.shape[1])


def bin_means(values: np.ndarray, n_bins: int = MOST_BINS) -> np.ndarray:
    """Mean of the values that are there in each of many bins of time.

    Parameters
    ----------
    values : ndarray of shape (n_steps, n_features)
        Values, NaN where there is none.
    n_bins : int, default=2000
        Number of bins; as many steps are kept as they are.

    Returns
    -------
    ndarray of shape (n_steps or n_bins, n_features)
        The means; NaN where a bin has no value.
    """
    if len(values) <= n_bins:
        return values
    edges = bin_edges(len(values), n_bins)
    counts = np.add.reduceat(~np.isnan(values), edges[:-1], dtype=np.int64)
    totals = np.add.reduceat(np.nan_to_num(values), edges[:-1])
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def bin_edges(n_steps: int, n_bins: int) -> np.ndarray:
    """First steps of bins of nearly equal size, and the number of steps.

    Parameters
    ----------
    n_steps : int
        Number of steps.
    n_bins : int
        Number of bins, not more.

    Returns
    -------
    ndarray of int of shape (n_bins + 1,)
        The edges.
    """
    return np.arange(n_bins + 1) * n_steps // n_bins
