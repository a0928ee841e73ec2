# SPDX-License-Identifier: BSD-3-Clause
"""Stretches of states as coloured bars, and signals over the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sksvae.plotting._figures import INK, axes_size, name_ticks
from sksvae.plotting._palette import state_colors, text_color
from sksvae.plotting._timeline import (
    Runs,
    Timeline,
    bin_edges,
    bin_means,
    envelope,
    visible_runs,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection, QuadMesh
    from matplotlib.lines import Line2D

_LETTER = 0.08  # inches: the width of a letter of small text
_REACH = 0.45  # half the distance between traces that nearly all of their values stay in


def draw_bar(ax: Axes, line: Timeline, labels: np.ndarray, names: Sequence[str]) -> PolyCollection:
    """One row of stretches, with names where there is room.

    Parameters
    ----------
    ax : Axes
        Axes of the row.
    line : Timeline
        Times of the steps.
    labels : ndarray of int of shape (n_steps,)
        State of each step.
    names : sequence of str of shape (n_states,)
        Names of all states that have a colour.

    Returns
    -------
    PolyCollection
        One rectangle per stretch.
    """
    stretches = visible_runs(labels)
    colors = state_colors(len(names))
    bars = _rectangles(ax, line, stretches, np.zeros(len(stretches.labels)), 1.0, colors)
    ax.set(ylim=(0, 1), yticks=[])
    per_inch = (line.edges[-1] - line.edges[0]) / axes_size(ax)[0]
    for start, stop, label in zip(*stretches, strict=True):
        left, right = line.edges[start], line.edges[stop]
        if right - left > per_inch * _LETTER * (len(names[label]) + 0.8):
            style = {"ha": "center", "va": "center", "fontsize": "small", "clip_on": True}
            middle = 0.5 * (left + right)
            color = text_color(colors[label])
            ax.text(middle, 0.47, names[label], color=color, **style)
    return bars


def draw_raster(
    ax: Axes, line: Timeline, labels: np.ndarray, names: Sequence[str]
) -> PolyCollection:
    """One row for each state, whose place tells the state where colours alone could not.

    Parameters
    ----------
    ax : Axes
        Axes of all rows.
    line : Timeline
        Times of the steps.
    labels : ndarray of int of shape (n_steps,)
        State of each step.
    names : sequence of str of shape (n_states,)
        Names of all states.

    Returns
    -------
    PolyCollection
        One rectangle per stretch.
    """
    stretches = visible_runs(labels)
    colors = state_colors(len(names))
    bars = _rectangles(ax, line, stretches, stretches.labels - 0.5, 1.0, colors)
    # Thin outlines, or a stretch narrower than a pixel is hardly seen in its row.
    bars.set(edgecolor="face", linewidth=0.6)
    name_ticks(ax.yaxis, names, largest=20)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return bars


def _rectangles(
    ax: Axes,
    line: Timeline,
    stretches: Runs,
    bottoms: np.ndarray,
    height: float,
    colors: np.ndarray,
) -> PolyCollection:
    from matplotlib.collections import PolyCollection

    left, right = line.edges[stretches.starts], line.edges[stretches.stops]
    tops = bottoms + height
    corners = np.stack(
        [
            np.stack([left, bottoms], axis=1),
            np.stack([left, tops], axis=1),
            np.stack([right, tops], axis=1),
            np.stack([right, bottoms], axis=1),
        ],
        axis=1,
    )
    # Without smoothing, which lets the background shine through between neighbours.
    bars = PolyCollection(
        corners, facecolors=colors[stretches.labels], linewidths=0, antialiaseds=False
    )
    ax.add_collection(bars, autolim=False)
    return bars


def draw_overlay(
    ax: Axes, line: Timeline, signals: np.ndarray, names: Sequence[str]
) -> list[Line2D]:
    """Signals in one frame.

    Parameters
    ----------
    ax : Axes
        Axes to draw in.
    line : Timeline
        Times of the steps.
    signals : ndarray of shape (n_steps, n_features)
        Signals.
    names : sequence of str of shape (n_features,)
        Their names.

    Returns
    -------
    list of Line2D
        One per signal.
    """
    many = signals.shape[1] > 1
    ax.set_ylabel("signal" if many or names[0] == "0" else names[0])
    style = {"color": INK, "linewidth": 0.8, "alpha": 0.7 if many else 1.0}
    return ax.plot(*envelope(line.points, signals), **style)


def draw_traces(
    ax: Axes, line: Timeline, signals: np.ndarray, names: Sequence[str]
) -> list[Line2D]:
    """Signals one below the other, each at its own scale.

    Parameters
    ----------
    ax : Axes
        Axes to draw in.
    line : Timeline
        Times of the steps.
    signals : ndarray of shape (n_steps, n_features)
        Signals, NaN where there is none.
    names : sequence of str of shape (n_features,)
        Their names.

    Returns
    -------
    list of Line2D
        One per signal; signal i is at height -i.
    """
    scaled = _REACH * own_scale(signals) - np.arange(signals.shape[1])
    lines = ax.plot(*envelope(line.points, scaled), color=INK, linewidth=0.7)
    ax.set_yticks(-np.arange(len(names)), names, fontsize="small")
    ax.set_ylim(0.4 - len(names), 0.6)
    if names[0] == "0":
        ax.set_ylabel("feature")
    return lines


def draw_scaled(ax: Axes, line: Timeline, signals: np.ndarray, names: Sequence[str]) -> QuadMesh:
    """Signals as a heat map, each at its own scale.

    Parameters
    ----------
    ax : Axes
        Axes to draw in.
    line : Timeline
        Times of the steps.
    signals : ndarray of shape (n_steps, n_features)
        Signals, NaN where there is none.
    names : sequence of str of shape (n_features,)
        Their names.

    Returns
    -------
    QuadMesh
        The heat map.
    """
    ax.set_ylabel("feature")
    return draw_heatmap(ax, line, own_scale(signals), names)


def own_scale(signals: np.ndarray) -> np.ndarray:
    """Each signal at its own scale: nearly all of it between -1 and 1, around its median.

    Parameters
    ----------
    signals : ndarray of shape (n_steps, n_features)
        Signals, NaN where there is none.

    Returns
    -------
    ndarray of shape (n_steps, n_features)
        Scaled signals, outliers cut off at 1.5.
    """
    scaled = np.full(signals.shape, np.nan)
    for i, signal in enumerate(signals.T):
        seen = signal[~np.isnan(signal)]
        if seen.size:
            low, middle, high = np.quantile(seen, [0.01, 0.5, 0.99])
            reach = max(high - middle, middle - low) or 1.0
            scaled[:, i] = np.clip((signal - middle) / reach, -1.5, 1.5)
    return scaled


def draw_heatmap(
    ax: Axes, line: Timeline, signals: np.ndarray, names: Sequence[str], **keywords: Any
) -> QuadMesh:
    """Signals as a heat map, time to the right and the first feature at the bottom.

    Parameters
    ----------
    ax : Axes
        Axes to draw in.
    line : Timeline
        Times of the steps.
    signals : ndarray of shape (n_steps, n_features)
        Signals, NaN where there is none.
    names : sequence of str of shape (n_features,)
        Their names.
    **keywords : dict
        Further arguments of ``pcolormesh``.

    Returns
    -------
    QuadMesh
        The heat map.
    """
    means = bin_means(signals)
    edges = line.edges
    if len(means) < len(signals):
        edges = edges[bin_edges(len(signals), len(means))]
    mesh = ax.pcolormesh(
        edges, np.arange(len(names) + 1) - 0.5, means.T, rasterized=True, **keywords
    )
    name_ticks(ax.yaxis, names, largest=20)
    return mesh
