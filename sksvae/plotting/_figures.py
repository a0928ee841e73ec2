# SPDX-License-Identifier: BSD-3-Clause
"""Figures and axes: made when there are none, divided when there is one, labelled outside."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.legend import Legend

INK = "0.25"  # what carries no colour of its own
HALO = 2.0  # points of white around text that stands on data


def require_pyplot(display: object) -> ModuleType:
    """Import matplotlib's pyplot, or say how to install it.

    Parameters
    ----------
    display : object
        What needs it, for the error.

    Returns
    -------
    module
        ``matplotlib.pyplot``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{type(display).__name__}.plot needs matplotlib, which cannot be imported. Install it "
            'with: pip install "sksvae[examples]"'
        ) from error
    return plt


def one_axes(
    display: object, ax: Axes | None, *, aspect: float | None = None
) -> tuple[FigureBase, Axes]:
    """Axes to draw in, and their figure.

    Parameters
    ----------
    display : object
        What draws, for errors.
    ax : Axes or None
        Axes that were given; None makes a new figure.
    aspect : float or None, default=None
        Height of a new figure as a share of its width; None for that of rcParams.

    Returns
    -------
    figure : Figure or SubFigure
        The figure of the axes.
    ax : Axes
        The axes.

    Raises
    ------
    TypeError
        If ``ax`` is something else.
    """
    plt = require_pyplot(display)
    if ax is None:
        width, height = plt.rcParams["figure.figsize"]
        size = (width, height if aspect is None else aspect * width)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    _check_axes(ax)
    return ax.figure, ax


def many_axes(
    display: object,
    ax: Axes | Sequence[Axes] | np.ndarray | None,
    shape: tuple[int, int],
    *,
    height: float | None = None,
    least_height: float = 0.0,
    sharex: bool = False,
    sharey: bool = False,
    ratios: Sequence[float] | None = None,
    gap: float | None = None,
) -> tuple[FigureBase, np.ndarray, Axes | None]:
    """Grid of axes: in a new figure, in place of given axes, or as given.

    Parameters
    ----------
    display : object
        What draws, for errors.
    ax : Axes, array-like of Axes or None
        Axes to divide if more than one are needed, or as many as are; None makes a new figure.
    shape : tuple of two ints
        Rows and columns.
    height : float or None, default=None
        Height of a new figure in inches; None for that of rcParams, as is its width.
    least_height : float, default=0.0
        Least height of a new figure in inches.
    sharex, sharey : bool, default=False
        Whether all axes share their limits.
    ratios : sequence of float or None, default=None
        Heights of the rows.
    gap : float or None, default=None
        Space between rows as a share of their mean height.

    Returns
    -------
    figure : Figure or SubFigure
        The figure of the axes.
    axes : ndarray of Axes, of the given shape
        The axes.
    bounding_ax : Axes or None
        Axes that were divided, now invisible.

    Raises
    ------
    TypeError
        If ``ax`` is neither axes nor an array of them.
    ValueError
        If there are not as many axes as needed, or axes cannot be divided.
    """
    plt = require_pyplot(display)
    spacing = {"height_ratios": ratios, "hspace": gap}
    if ax is None:
        width, default = plt.rcParams["figure.figsize"]
        size = (width, max(height or default, least_height))
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots(
            *shape, sharex=sharex, sharey=sharey, squeeze=False, gridspec_kw=spacing
        )
        return figure, axes, None
    if isinstance(ax, list | tuple | np.ndarray):
        axes = np.asarray(ax, dtype=object).ravel()
        if axes.size != shape[0] * shape[1]:
            raise ValueError(
                f"ax must be one Axes or {shape[0] * shape[1]} of them ({shape[0]} rows and "
                f"{shape[1]} columns), got {axes.size}."
            )
        for one in axes:
            _check_axes(one)
        return axes[0].figure, axes.reshape(shape), None
    _check_axes(ax)
    if shape == (1, 1):
        return ax.figure, np.array([[ax]], dtype=object), None
    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError(
            "ax cannot be divided into panels, as it is not in a grid. Make it with "
            "plt.subplots(), or pass an array of axes."
        )
    ax.set_axis_off()
    figure, grid = ax.figure, spec.subgridspec(*shape, **spacing)
    axes = np.empty(shape, dtype=object)
    for i, j in np.ndindex(shape):
        shared = {
            "sharex": axes[0, 0] if sharex else None,
            "sharey": axes[0, 0] if sharey else None,
        }
        axes[i, j] = figure.add_subplot(grid[i, j], **shared)
        if sharex and i < shape[0] - 1:
            axes[i, j].tick_params(labelbottom=False)
        if sharey and j > 0:
            axes[i, j].tick_params(labelleft=False)
    return figure, axes, ax


def _check_axes(ax: Any) -> None:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib Axes, got {type(ax).__name__}.")


def legend_above(
    ax: Axes, handles: Sequence, labels: Sequence[str], *, title: str | None = None
) -> Legend:
    """Legend over the upper edge of axes, where it covers nothing.

    Parameters
    ----------
    ax : Axes
        Axes that it belongs to.
    handles : sequence of Artist
        What is explained.
    labels : sequence of str
        Its names.
    title : str or None, default=None
        Title of the legend.

    Returns
    -------
    Legend
        With as many columns as fit.
    """
    # In ems of the text: a handle with gaps takes 2.6, a letter half of one.
    em = _points("small") / 72.0
    entries = np.array([2.6 + 0.55 * len(label) for label in labels]) * em
    room = axes_size(ax)[0]
    fits = entries.sum() <= room
    n_columns = len(labels) if fits else int(np.clip(room / entries.max(), 1, len(labels)))
    n_columns = -(-len(labels) // -(-len(labels) // n_columns))  # in rows of equal length
    return ax.legend(
        handles,
        labels,
        title=title,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=n_columns,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        alignment="left",
        borderaxespad=0.1,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=0.9,
    )


def axes_size(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in inches, before a layout engine moves them.

    Parameters
    ----------
    ax : Axes
        The axes.

    Returns
    -------
    tuple of two floats
        Width and height.
    """
    box = ax.get_window_extent()
    dpi = ax.get_figure(root=True).dpi
    return box.width / dpi, box.height / dpi


def _points(size: str) -> float:
    """Size in points of text of a relative size."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=size).get_size_in_points()


def halo() -> list:
    """White outline that keeps text readable on data.

    Returns
    -------
    list
        For ``path_effects``.
    """
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=HALO, foreground="white")]


def name_ticks(axis: Any, names: Sequence[str], *, largest: int = 40) -> None:
    """Name the positions 0, 1, ... of an axis, or leave it at some numbers if there are many.

    Parameters
    ----------
    axis : XAxis or YAxis
        The axis.
    names : sequence of str
        Names, one per position.
    largest : int, default=40
        Most positions that are named one by one; for plain numbers, a quarter of it.
    """
    from matplotlib.ticker import MaxNLocator

    names = [str(name) for name in names]
    numbers = names == [str(i) for i in range(len(names))]
    if len(names) > (largest // 4 if numbers else largest):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        return
    axis.set_ticks(range(len(names)), names)
    longest = max(len(name) for name in names) + 1
    needed = 0.52 * longest * len(names) * _points("medium") / 72.0
    if axis.axis_name == "x" and needed > axes_size(axis.axes)[0]:
        for label in axis.get_ticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
