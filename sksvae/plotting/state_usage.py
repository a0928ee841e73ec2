# SPDX-License-Identifier: BSD-3-Clause
"""Display of how often states are used, and for how long at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._checks import (
    check_estimator_has,
    checked_array,
    checked_labels,
    checked_names,
)
from sksvae.plotting._figures import INK, axes_size, legend_above, many_axes, name_ticks
from sksvae.plotting._palette import state_colors
from sksvae.plotting._reading import ask, read, split, split_labels
from sksvae.plotting._timeline import runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class StateUsageDisplay:
    """Share of steps in each state, and distribution of its dwell times.

    Below the shares stand, for each state, the median of its dwell times, the quarter of them on
    either side (thick) and all of them (thin), on a logarithmic axis. Use `from_estimator` or
    `from_predictions` to make one.

    Parameters
    ----------
    usage : array-like of shape (n_states,)
        Share of each state.
    dwell_times : sequence of array-like, default=None
        For each state the number of steps of all its stretches, which may be none.
    expected_dwell_times : array-like of shape (n_states,), default=None
        Dwell times that a model expects.
    display_labels : sequence of str of shape (n_states,), default=None
        Names of the states; None for their numbers.

    Attributes
    ----------
    usage, dwell_times, expected_dwell_times, display_labels
        As given, as arrays and lists.
    bars_ : BarContainer
        The shares.
    medians_ : Line2D or None
        Median dwell times.
    quartiles_, ranges_ : LineCollection or None
        From the first to the third quartile, and from the shortest to the longest.
    expected_ : Line2D or None
        Expected dwell times.
    ax_ : Axes
        Axes with the shares.
    axes_ : ndarray of Axes of shape (1,) or (2,)
        All axes, from above.
    figure_ : Figure
        Their figure.

    See Also
    --------
    SegmentationDisplay : When states are used.
    TransitionMatrixDisplay : Which state follows which.

    Examples
    --------
    >>> from sksvae.plotting import StateUsageDisplay
    >>> display = StateUsageDisplay.from_predictions([0, 0, 0, 1, 0, 0, 2, 2])
    >>> display.usage, [times.tolist() for times in display.dwell_times]
    (array([0.625, 0.125, 0.25 ]), [[3, 2], [1], [2]])
    """

    def __init__(
        self,
        usage: ArrayLike,
        dwell_times: Sequence[ArrayLike] | None = None,
        *,
        expected_dwell_times: ArrayLike | None = None,
        display_labels: Sequence[str] | None = None,
    ):
        self.usage = checked_array(usage, "usage", (None,))
        n_states = self.usage.size
        if not n_states or self.usage.min() < 0:
            raise ValueError("usage must hold the shares of one or more states, none negative.")
        self.dwell_times = self.expected_dwell_times = None
        if dwell_times is not None:
            if len(dwell_times) != n_states:
                raise ValueError(
                    f"dwell_times must have {n_states} entries, got {len(dwell_times)}."
                )
            self.dwell_times = [np.asarray(times) for times in dwell_times]
            if any(times.size and times.min() <= 0 for times in self.dwell_times):
                raise ValueError("dwell_times must be positive.")
        if expected_dwell_times is not None:
            self.expected_dwell_times = np.asarray(expected_dwell_times, dtype=float)
            if self.expected_dwell_times.shape != (n_states,):
                raise ValueError(
                    f"expected_dwell_times must have shape ({n_states},), got "
                    f"{self.expected_dwell_times.shape}."
                )
        self.display_labels = checked_names(display_labels, n_states, "display_labels")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        drop_ends: bool = False,
        display_labels: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the use of the most probable states of data.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``predict``. Where it has ``state_transition_probabilities_``,
            the dwell times that these expect are drawn, too; where it has no sequences, there are
            no dwell times.
        X : array-like
            Data in any form that it accepts.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        drop_ends : bool, default=False
            Whether to leave out of the dwell times the first and last stretch of each sequence,
            whose beginning or end was not seen.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        StateUsageDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "predict")
        data = read(estimator, X, groups)
        states = split(data, ask(estimator, "predict", X, groups, data))
        n_states = getattr(estimator, "n_states_", getattr(estimator, "n_components_", None))
        usage, dwell_times = _summary(states, n_states, drop_ends)
        expected = None
        if hasattr(estimator, "state_transition_probabilities_"):
            staying = np.diag(estimator.state_transition_probabilities_)
            expected = 1.0 / np.maximum(1.0 - staying, np.finfo(float).eps)
        display = cls(
            usage,
            dwell_times if hasattr(estimator, "rows_") else None,
            expected_dwell_times=expected,
            display_labels=display_labels,
        )
        return display.plot(ax, **plot_kw)

    @classmethod
    def from_predictions(
        cls,
        y_pred: Any,
        *,
        groups: ArrayLike | None = None,
        n_states: int | None = None,
        drop_ends: bool = False,
        display_labels: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the use of given states.

        Parameters
        ----------
        y_pred : array-like of int or list of array-like
            States of a sequence; of several in two dimensions or as a list.
        groups : array-like of shape (n_steps,), default=None
            Sequence that each entry of a one-dimensional ``y_pred`` belongs to.
        n_states : int, default=None
            Number of states; None for those up to the largest that occurs.
        drop_ends : bool, default=False
            Whether to leave out of the dwell times the first and last stretch of each sequence,
            whose beginning or end was not seen.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        StateUsageDisplay
            The display, drawn.
        """
        parts = [checked_labels(part, "y_pred") for part in split_labels(y_pred, "y_pred", groups)]
        usage, dwell_times = _summary(parts, n_states, drop_ends)
        return cls(usage, dwell_times, display_labels=display_labels).plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        timestep: float = 1.0,
        time_unit: str = "steps",
    ) -> Self:
        """Draw shares and dwell times.

        Parameters
        ----------
        ax : Axes or array-like of two Axes, default=None
            Axes to draw in; a single one is divided if there are dwell times. None makes a new
            figure.
        timestep : float, default=1.0
            Duration of a step.
        time_unit : str, default="steps"
            Unit of it.

        Returns
        -------
        StateUsageDisplay
            The display itself.
        """
        if not timestep > 0:
            raise ValueError(f"timestep must be positive, got {timestep!r}.")
        n_axes = 1 if self.dwell_times is None else 2
        height = 1.0 + 1.3 * n_axes
        self.figure_, axes, _ = many_axes(self, ax, (n_axes, 1), height=height, sharex=True)
        self.axes_ = axes[:, 0]
        self.ax_ = self.axes_[0]
        n_states = self.usage.size
        positions, colors = np.arange(n_states), state_colors(n_states)
        self.bars_ = self.ax_.bar(positions, self.usage, color=colors, width=0.8)
        share, unit = "share of steps", "state"
        if self.dwell_times is None:
            share, unit = "share of rows", "component"
        self.ax_.set(ylabel=share, xlim=(-0.6, n_states - 0.4))
        self.medians_ = self.quartiles_ = self.ranges_ = self.expected_ = None
        if self.dwell_times is not None:
            self._draw_dwell_times(self.axes_[1], colors, timestep, time_unit)
        self.axes_[-1].set_xlabel(unit)
        name_ticks(self.axes_[-1].xaxis, self.display_labels)
        return self

    def _draw_dwell_times(
        self, ax: Axes, colors: np.ndarray, timestep: float, time_unit: str
    ) -> None:
        used = np.array([k for k, times in enumerate(self.dwell_times) if times.size], dtype=int)
        low, first, median, third, high = (
            np.array([np.quantile(self.dwell_times[k], q) for k in used]) * timestep
            for q in _QUANTILES
        )
        # In points: what a state has of the horizontal axis.
        width = 72.0 * axes_size(ax)[0] / self.usage.size
        thick, size = np.clip([0.6 * width, 0.5 * width], [1.5, 1.5], [5.0, 4.5])
        self.ranges_ = ax.vlines(used, low, high, colors=colors[used], linewidth=0.25 * thick)
        self.quartiles_ = ax.vlines(used, first, third, colors=colors[used], linewidth=thick)
        dot = {"color": "white", "markeredgecolor": INK, "markersize": size, "linestyle": "none"}
        dot["markeredgewidth"] = 0.2 * size
        (self.medians_,) = ax.plot(used, median, "o", zorder=3, **dot)
        if self.expected_dwell_times is not None:
            expected = self.expected_dwell_times * timestep
            (self.expected_,) = ax.plot(
                np.arange(expected.size),
                expected,
                linestyle="none",
                marker="_",
                color="black",
                markersize=2.0 * size,
                markeredgewidth=0.35 * size,
                zorder=4,
            )
            legend_above(ax, [self.medians_, self.expected_], ["median", "expected mean"])
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylabel(f"dwell time ({time_unit})")


def _summary(
    states: list[np.ndarray], n_states: int | None, drop_ends: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Share of each state, and lengths of its stretches."""
    counts = np.bincount(np.concatenate(states), minlength=n_states or 0)
    if n_states is not None and counts.size > n_states:
        raise ValueError(f"n_states={n_states} must exceed the largest state, {counts.size - 1}.")
    labels, lengths = [], []
    for part in states:
        found = runs(part)
        inner = slice(1, -1) if drop_ends else slice(None)
        labels.append(found.labels[inner])
        lengths.append((found.stops - found.starts)[inner])
    stacked, stretches = np.concatenate(labels), np.concatenate(lengths)
    return counts / counts.sum(), [stretches[stacked == k] for k in range(counts.size)]
