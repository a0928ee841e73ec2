# SPDX-License-Identifier: BSD-3-Clause
"""What displays of estimates over time share: bands, and panels of lines or heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sksvae.plotting._bars import draw_heatmap
from sksvae.plotting._checks import checked_array, checked_indices, checked_option
from sksvae.plotting._figures import legend_above, many_axes
from sksvae.plotting._palette import ESTIMATED, OBSERVED, TRUE
from sksvae.plotting._timeline import Timeline, envelope

if TYPE_CHECKING:
    pass

_MOST_LINES = 6  # features, above which they are a heat map
_MOST_PANELS = 4  # features that have lines unasked
_STYLES = {
    "observed": {"color": OBSERVED, "linewidth": 1.0},
    "truth": {"color": TRUE, "linewidth": 1.1, "linestyle": (0, (3, 1.2))},
    "estimate": {"color": ESTIMATED, "linewidth": 1.5},
}
_BAND = {"color": ESTIMATED, "alpha": 0.25, "linewidth": 0}


class Curves(NamedTuple):
    """What there is to be drawn at each step, NaN where there is nothing.

    Parameters
    ----------
    observed, estimate : ndarray of shape (n_steps, n_features)
        Data, and what was estimated.
    truth, lower, upper : ndarray of shape (n_steps, n_features) or None
        What the estimate is of, and the ends of its band.
    """

    observed: np.ndarray
    estimate: np.ndarray
    truth: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None


def checked_table(
    values: ArrayLike | None,
    name: str,
    shape: tuple[int | None, int | None] = (None, None),
    *,
    allow_nan: bool = False,
) -> np.ndarray | None:
    """Table with one row per step; a single feature may come without its axis.

    Parameters
    ----------
    values : array-like of shape (n_steps, n_features) or (n_steps,), or None
        What was given.
    name : str
        Its name, for errors.
    shape : tuple of int or None, default=(None, None)
        Its shape; None for any length.
    allow_nan : bool, default=False
        Whether values may be NaN.

    Returns
    -------
    ndarray of shape (n_steps, n_features) or None
        The table; None if None was given.
    """
    if values is None:
        return None
    if np.ndim(values) == 1:
        values = np.asarray(values)[:, None]
    table = checked_array(values, name, shape, allow_nan=allow_nan)
    if not table.size:
        raise ValueError(f"{name} is empty.")
    return table


def band_of(
    mean: np.ndarray, std: ArrayLike | None, draws: ArrayLike | None, coverage: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Lower and upper end of a band, from standard deviations or from draws.

    Parameters
    ----------
    mean : ndarray of shape (n_steps, n_features)
        Means.
    std : array-like of shape (n_steps, n_features) or None
        Standard deviations.
    draws : array-like of shape (n_draws, n_steps, n_features) or None
        Draws.
    coverage : float
        Share of the distribution that is inside.

    Returns
    -------
    lower, upper : ndarray of shape (n_steps, n_features) or None
        Quantiles of the draws or of a normal distribution; None if neither is given.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage!r}.")
    if std is not None and draws is not None:
        raise ValueError("std and draws cannot both be given: either makes a band.")
    tails = 0.5 - 0.5 * coverage, 0.5 + 0.5 * coverage
    if draws is not None:
        draws = np.asarray(draws)
        draws = draws[..., None] if draws.ndim == 2 else draws
        draws = checked_array(draws, "draws", (None, *mean.shape))
        if not len(draws):
            raise ValueError("draws is empty.")
        return tuple(np.quantile(draws, tails, axis=0))
    std = checked_table(std, "std", mean.shape)
    if std is None:
        return None, None
    if std.min() < 0:
        raise ValueError("std must not be negative.")
    reach = stats.norm.ppf(tails[1]) * std
    return mean - reach, mean + reach


def draw_estimates(
    display: Any,
    ax: Any,
    line: Timeline,
    curves: Curves,
    images: Mapping[str, np.ndarray],
    *,
    name: str,
    kind: str,
    features: Any,
    time_label: str,
    cmap: str,
) -> None:
    """Draw estimates as lines or as heat maps, and keep what was drawn on the display.

    Parameters
    ----------
    display : object
        With ``coverage`` and ``feature_names``. It gets ``lines_``, ``observed_lines_``,
        ``truth_lines_``, ``bands_``, ``meshes_`` and the axes.
    ax : Axes, array-like of Axes or None
        Where to draw.
    line : Timeline
        Times of the steps.
    curves : Curves
        The lines.
    images : dict of str to ndarray of shape (n_steps, n_features)
        The heat maps by their titles.
    name : str
        What the estimate is called.
    kind : {"auto", "lines", "heatmap"}
        How to draw.
    features : None, int, str or sequence of these
        Features that have lines.
    time_label : str
        Label of the time axis.
    cmap : str
        Colours of heat maps.
    """
    checked_option(kind, "kind", ("auto", "lines", "heatmap"))
    names = display.feature_names
    few = len(names) <= _MOST_LINES or features is not None
    display.lines_, display.observed_lines_, display.truth_lines_ = [], [], []
    display.bands_, display.meshes_ = [], []
    as_lines = kind == "lines" or (kind == "auto" and few)
    chosen = _chosen_features(features, names)
    n_panels = len(chosen) if as_lines else len(images)
    height = 0.8 + 1.4 * n_panels
    display.figure_, axes, _ = many_axes(display, ax, (n_panels, 1), height=height, sharex=True)
    display.axes_, display.ax_ = axes[:, 0], axes[0, 0]
    if as_lines:
        _draw_lines(display, line, curves, chosen, name)
    else:
        _draw_heatmaps(display, line, images, cmap)
    display.axes_[-1].set(xlabel=time_label, xlim=(line.edges[0], line.edges[-1]))
    line.mark(display.axes_[-1].xaxis)


def _chosen_features(features: Any, names: Sequence[str]) -> list[int]:
    if features is None:
        return list(range(min(len(names), _MOST_PANELS)))
    wanted = [features] if isinstance(features, str | int | np.integer) else list(features)
    unknown = [one for one in wanted if isinstance(one, str) and one not in names]
    if unknown:
        raise ValueError(f"features has {unknown[0]!r}, which is not one of {list(names)}.")
    numbers = [names.index(one) if isinstance(one, str) else one for one in wanted]
    return checked_indices(numbers, len(names), "features")


def _draw_lines(
    display: Any, line: Timeline, curves: Curves, features: list[int], name: str
) -> None:
    handles: dict[str, Any] = {}
    for ax, i in zip(display.axes_, features, strict=True):
        observed = envelope(line.points, curves.observed[:, [i]])
        display.observed_lines_ += ax.plot(*observed, **_STYLES["observed"])
        if curves.truth is not None:
            display.truth_lines_ += ax.plot(line.points, curves.truth[:, i], **_STYLES["truth"])
        display.lines_ += ax.plot(line.points, curves.estimate[:, i], **_STYLES["estimate"])
        if curves.lower is not None:
            ends = curves.lower[:, i], curves.upper[:, i]
            display.bands_.append(ax.fill_between(line.points, *ends, **_BAND))
        feature = display.feature_names[i]
        numbered = "value" if len(display.feature_names) == 1 else f"feature {feature}"
        ax.set_ylabel(numbered if feature.isdigit() else feature)
    handles["observed"] = display.observed_lines_[0]
    if display.truth_lines_:
        handles["truth"] = display.truth_lines_[0]
    handles[name] = display.lines_[0]
    if display.bands_:
        coverage = display.coverage
        label = "band" if coverage is None else f"{100 * coverage:.3g} % band"
        handles[label] = display.bands_[0]
    legend_above(display.ax_, list(handles.values()), list(handles))


def _draw_heatmaps(
    display: Any, line: Timeline, images: Mapping[str, np.ndarray], cmap: str
) -> None:
    stacked = np.concatenate(list(images.values()))
    limits = {"vmin": np.nanmin(stacked), "vmax": np.nanmax(stacked)}
    for ax, (title, values) in zip(display.axes_, images.items(), strict=True):
        mesh = draw_heatmap(ax, line, values, display.feature_names, cmap=cmap, **limits)
        display.meshes_.append(mesh)
        ax.set_facecolor("0.85")  # of what is missing
        ax.set_title(title, fontsize="small", loc="left", pad=3)
        ax.set_ylabel("feature")
    bar = {"label": "value", "aspect": 30, "pad": 0.02}
    display.figure_.colorbar(display.meshes_[0], ax=list(display.axes_), **bar)
