# SPDX-License-Identifier: BSD-3-Clause
"""Display of the states of recordings under their signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._bars import draw_bar, draw_overlay, draw_raster, draw_scaled, draw_traces
from sksvae.plotting._checks import (
    check_estimator_has,
    checked_array,
    checked_indices,
    checked_labels,
    checked_names,
    checked_option,
)
from sksvae.plotting._figures import legend_above, many_axes
from sksvae.plotting._matching import match_truth
from sksvae.plotting._palette import OKABE_ITO, state_colors
from sksvae.plotting._reading import ask, read, split, split_labels
from sksvae.plotting._timeline import Timeline, timeline
from sksvae.sequences import read_sequences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend

_MOST_SEQUENCES = 4  # that are drawn unasked
_MOST_TRACES = 12  # signals that are drawn one below the other
_BAR, _ROW, _TRACE, _GAP, _LEGEND = 0.24, 0.035, 0.26, 0.06, 0.2  # inches
_SIGNALS = {"overlay": draw_overlay, "traces": draw_traces, "heatmap": draw_scaled}


class SegmentationDisplay:
    """States of recordings as coloured bars under the signals, and true states beside them.

    Up to eight states share a bar. More have a row each, the most used above, since no set of so
    many colours is told apart. True states are renamed to the states that they match best
    (`sksvae.metrics.match_labels`, over all sequences): where colours agree, states do. Use
    `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    states : list of array-like of int of shape (n_timesteps,)
        States of each sequence.
    signals : list of array-like of shape (n_timesteps, n_features), default=None
        Signals of each sequence, NaN where there is none.
    true_states : list of array-like of shape (n_timesteps,), default=None
        True states of each sequence, numbers or words.
    n_states : int, default=None
        Number of states; None for those up to the largest that occurs or that has a name.
    feature_names : sequence of str of shape (n_features,), default=None
        Names of the signals, with units; None for their numbers.
    display_labels : sequence of str of shape (n_states,), default=None
        Names of the states; None for their numbers.

    Attributes
    ----------
    states, signals, n_states, feature_names, display_labels
        As given, as lists and arrays.
    true_states : list of ndarray of int of shape (n_timesteps,) or None
        True states, renamed. Those that match no state are numbered from ``n_states``.
    true_labels : list of str or None
        Names of the true states by these numbers: as given if they were words.
    bars_ : list of PolyCollection
        Stretches of states in each sequence that was drawn.
    true_bars_ : list of PolyCollection
        Stretches of true states.
    signals_ : list of list of Line2D, or of QuadMesh
        Signals of each sequence.
    legend_ : Legend or None
        Colours of the states.
    ax_ : Axes
        The uppermost axes.
    axes_ : ndarray of Axes
        All axes, from above.
    figure_ : Figure
        Their figure.

    See Also
    --------
    StateUsageDisplay : How often states are used, and for how long.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import SegmentationDisplay
    >>> y_true = ["walk", "walk", "walk", "run", "run"]
    >>> display = SegmentationDisplay.from_predictions(
    ...     [1, 1, 0, 0, 0], X=np.eye(5, 2), y_true=y_true, time_label="time (s)")
    >>> display.true_states, display.true_labels
    ([array([1, 1, 1, 0, 0])], ['run', 'walk'])
    """

    def __init__(
        self,
        states: Sequence[ArrayLike],
        *,
        signals: Sequence[ArrayLike] | None = None,
        true_states: Sequence[ArrayLike] | None = None,
        n_states: int | None = None,
        feature_names: Sequence[str] | None = None,
        display_labels: Sequence[str] | None = None,
    ):
        self.states = [checked_labels(part, f"states[{i}]") for i, part in enumerate(states)]
        largest = max(int(part.max()) for part in self.states)
        if n_states is None:
            n_states = max(largest + 1, 0 if display_labels is None else len(display_labels))
        self.n_states = n_states
        if self.n_states <= largest:
            raise ValueError(f"n_states={n_states} must exceed the largest state, {largest}.")
        self.display_labels = checked_names(display_labels, self.n_states, "display_labels")
        self.signals = self.true_states = self.true_labels = None
        if signals is not None:
            self._check_lengths("signals", [len(part) for part in signals])
            shape = (None, np.shape(signals[0])[-1])
            self.signals = [checked_array(x, "signals", shape, allow_nan=True) for x in signals]
            self.feature_names = checked_names(feature_names, shape[1], "feature_names")
        if true_states is not None:
            self._check_lengths("true_states", [len(part) for part in true_states])
            truth = [np.asarray(part) for part in true_states]
            self.true_states, found = match_truth(self.states, truth, self.n_states)
            self.true_labels = list(self.display_labels)
            self.true_labels += map(str, range(self.n_states, max(found) + 1))
            if truth[0].dtype.kind not in "biuf":
                for number, name in found.items():
                    self.true_labels[number] = name

    def _check_lengths(self, name: str, lengths: list[int]) -> None:
        wanted = [part.size for part in self.states]
        if lengths != wanted:
            raise ValueError(
                f"{name} must have one entry per state, in sequences of {wanted} steps, got "
                f"{lengths}."
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        y_true: Any = None,
        groups: ArrayLike | None = None,
        feature_names: Sequence[str] | None = None,
        display_labels: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the most probable states of recordings.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``predict`` and ``n_states_``.
        X : array-like
            Sequences in any form that it accepts.
        y_true : array-like or list of array-like, default=None
            True states, in the form of X.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the signals, with units; None for those seen in `fit`, or numbers.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        SegmentationDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "predict", "n_states_", "rows_")
        data = read(estimator, X, groups)
        if data.lengths.max() == 1:
            raise ValueError(
                "X has no sequence of more than one step. If its rows are one sequence, fit with "
                "rows='consecutive'; if they are several, pass groups or a list."
            )
        states = split(data, ask(estimator, "predict", X, groups, data))
        if y_true is not None:
            ids = groups
            if data.form == "table" and hasattr(getattr(X, "index", None), "levels"):
                ids = X.index.get_level_values(0)
            y_true = split_labels(y_true, "y_true", ids)
        if feature_names is None:
            feature_names = getattr(estimator, "feature_names_in_", None)
        display = cls(
            states,
            signals=split(data, data.values),
            true_states=y_true,
            n_states=estimator.n_states_,
            feature_names=feature_names,
            display_labels=display_labels,
        )
        return display.plot(ax, **plot_kw)

    @classmethod
    def from_predictions(
        cls,
        y_pred: Any,
        *,
        X: Any = None,
        y_true: Any = None,
        groups: ArrayLike | None = None,
        n_states: int | None = None,
        feature_names: Sequence[str] | None = None,
        display_labels: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw given states of recordings.

        Parameters
        ----------
        y_pred : array-like of int or list of array-like
            States of a sequence; of several in two dimensions or as a list.
        X : array-like or list of array-like, default=None
            Signals, in the form of ``y_pred`` with an axis more.
        y_true : array-like or list of array-like, default=None
            True states, in the form of ``y_pred``.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each entry of one-dimensional states, and row of X, belongs to.
        n_states : int, default=None
            Number of states; None for those up to the largest that occurs.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the signals, with units; None for their numbers.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        SegmentationDisplay
            The display, drawn.
        """
        signals = None
        if X is not None:
            data = read_sequences(X, groups, rows="consecutive")
            signals = split(data, data.values)
        display = cls(
            split_labels(y_pred, "y_pred", groups),
            signals=signals,
            true_states=None if y_true is None else split_labels(y_true, "y_true", groups),
            n_states=n_states,
            feature_names=feature_names,
            display_labels=display_labels,
        )
        return display.plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        sequences: ArrayLike | None = None,
        signals: str = "auto",
        kind: str = "auto",
        times: ArrayLike | None = None,
        time_label: str = "step",
    ) -> Self:
        """Draw the states.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Axes to draw in; a single one is divided. None makes a new figure.
        sequences : int or array-like of int, default=None
            Which sequences to draw; None for the first four.
        signals : {"auto", "overlay", "traces", "heatmap"}, default="auto"
            How to draw signals: in one frame; one below the other or as colours, each at its own
            scale. ``"auto"``: the first for one signal, the second for up to twelve, the last
            for more.
        kind : {"auto", "bar", "raster"}, default="auto"
            Whether all states share a bar, or have a row each. ``"auto"``: a bar for up to eight.
        times : array-like of shape (n_timesteps,), default=None
            Times of the steps of each sequence, increasing numbers or dates; None for their
            numbers. Of sequences of different lengths, those of the longest.
        time_label : str, default="step"
            Label of the time axis, with the unit.

        Returns
        -------
        SegmentationDisplay
            The display itself.

        Notes
        -----
        Of more than 2000 stretches, and of signals of more than 4000 steps, bins of time are drawn:
        with their most frequent state, and from the least to the largest value of each signal.
        """
        checked_option(signals, "signals", ("auto", "overlay", "traces", "heatmap"))
        checked_option(kind, "kind", ("auto", "bar", "raster"))
        chosen = list(range(min(len(self.states), _MOST_SEQUENCES)))
        if sequences is not None:
            chosen = checked_indices(sequences, len(self.states), "sequences")
        line = timeline(times, max(self.states[i].size for i in chosen))
        n_colors = self.n_states if self.true_labels is None else len(self.true_labels)
        as_bar = kind == "bar" or (kind == "auto" and n_colors <= len(OKABE_ITO))
        panels = _panels(self, signals, as_bar)
        heights = [height for _ in chosen for _, height in panels]
        self.figure_, axes, _ = many_axes(
            self,
            ax,
            (len(heights), 1),
            height=sum(heights) + 0.7 + as_bar * _LEGEND * -(-n_colors // 10),
            ratios=heights,
            sharex=True,
            gap=_GAP * len(heights) / sum(heights),
        )
        self.axes_, self.ax_ = axes[:, 0], axes[0, 0]
        self.bars_, self.true_bars_, self.signals_ = [], [], []
        remaining = iter(self.axes_)
        for i in chosen:
            part = line.part(0, self.states[i].size)
            group = [next(remaining) for _ in panels]
            for one, (panel, _) in zip(group, panels, strict=True):
                one.tick_params(bottom=one is group[-1])
                if panel in ("true", "predicted"):
                    self._draw_states(one, panel == "true", i, part, as_bar)
                else:
                    draw, names = _SIGNALS[panel], self.feature_names
                    self.signals_.append(draw(one, part, self.signals[i], names))
            if len(chosen) > 1:
                group[0].set_title(f"sequence {i}", loc="right", fontsize="small", pad=2)
        last = self.axes_[-1]
        last.set(xlim=(line.edges[0], line.edges[-1]), xlabel=time_label)
        line.mark(last.xaxis)
        self.legend_ = self._legend() if as_bar else None
        return self

    def _draw_states(self, ax: Axes, true: bool, i: int, line: Timeline, as_bar: bool) -> None:
        """Draw states of a sequence, or its true states."""
        both = self.true_states is not None
        names = self.true_labels if true else self.display_labels
        # Both have the colours of all.
        names = [*names, *(self.true_labels or [])[len(names) :]]
        labels = self.true_states[i] if true else self.states[i]
        draw = draw_bar if as_bar else draw_raster
        (self.true_bars_ if true else self.bars_).append(draw(ax, line, labels, names))
        label = "true" if true else "predicted" if both else "state"
        side = {"rotation": 0, "ha": "right", "va": "center", "fontsize": "small"}
        ax.set_ylabel(label, **(side if as_bar else {}))

    def _legend(self) -> Legend:
        from matplotlib.patches import Patch

        names = [*self.display_labels, *(self.true_labels or [])[self.n_states :]]
        patches = [Patch(facecolor=color) for color in state_colors(len(names))]
        return legend_above(self.ax_, patches, names)


def _panels(display: SegmentationDisplay, signals: str, as_bar: bool) -> list[tuple[str, float]]:
    """What is drawn of each sequence, from above, and how high in inches."""
    height = _BAR if as_bar else float(np.clip(_ROW * display.n_states, 0.7, 1.6))
    panels = [("predicted", height)]
    if display.true_states is not None:
        panels.insert(0, ("true", height))
    if display.signals is not None:
        n = len(display.feature_names)
        if signals == "auto":
            signals = "overlay" if n == 1 else "traces" if n <= _MOST_TRACES else "heatmap"
        height = max(1.1, _TRACE * n) if signals == "traces" else 1.3
        panels.insert(0, (signals, height))
    return panels
