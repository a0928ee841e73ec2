# SPDX-License-Identifier: BSD-3-Clause
"""Display of the probabilities of moves between states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._checks import (
    check_estimator_has,
    checked_array,
    checked_labels,
    checked_names,
)
from sksvae.plotting._figures import axes_size, name_ticks, one_axes
from sksvae.plotting._palette import text_color
from sksvae.plotting._reading import split_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_WRITTEN = 12  # states, up to which values are written
_LEAST_LOG = 1e-4  # least probability that the logarithmic scale tells from zero
_POINTS = 72.0  # per inch


class TransitionMatrixDisplay:
    """Heat map of the probabilities of the state of a step given that of the step before.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    transition_matrix : array-like of shape (n_states, n_states)
        Probabilities. The first axis is the state before. Rows of NaN are states that were never
        left.
    display_labels : sequence of str of shape (n_states,), default=None
        Names of the states; None for their numbers.

    Attributes
    ----------
    transition_matrix : ndarray of shape (n_states, n_states)
        As given.
    display_labels : list of str
        Names of the states.
    im_ : AxesImage
        The heat map.
    text_ : ndarray of Text of shape (n_states, n_states) or None
        The values.
    colorbar_ : Colorbar or None
        The bar that explains the colours.
    ax_ : Axes
        Axes with the heat map.
    figure_ : Figure
        Their figure.

    See Also
    --------
    StateUsageDisplay : How often states are used, and for how long.

    Examples
    --------
    >>> from sksvae.plotting import TransitionMatrixDisplay
    >>> display = TransitionMatrixDisplay.from_predictions([0, 0, 0, 1, 1, 0, 0, 1])
    >>> display.transition_matrix
    array([[0.6, 0.4],
           [0.5, 0.5]])
    """

    def __init__(
        self, transition_matrix: ArrayLike, *, display_labels: Sequence[str] | None = None
    ):
        matrix = checked_array(transition_matrix, "transition_matrix", (None, None), allow_nan=True)
        sums = matrix.sum(axis=1)
        if matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(f"transition_matrix must be square, got shape {matrix.shape}.")
        if np.nanmin(matrix, initial=0.0) < 0 or np.any(np.abs(sums[~np.isnan(sums)] - 1) > 1e-3):
            raise ValueError("transition_matrix must hold probabilities: its rows must sum to 1.")
        self.transition_matrix = matrix
        self.display_labels = checked_names(display_labels, len(matrix), "display_labels")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        display_labels: Sequence[str] | None = None,
        ax: Axes | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the expected probabilities that an estimator has learned.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``state_transition_probabilities_``.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        ax : Axes, default=None
            Axes to draw in; None makes a new figure.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        TransitionMatrixDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "state_transition_probabilities_")
        matrix = estimator.state_transition_probabilities_
        return cls(matrix, display_labels=display_labels).plot(ax, **plot_kw)

    @classmethod
    def from_predictions(
        cls,
        y_pred: Any,
        *,
        groups: ArrayLike | None = None,
        n_states: int | None = None,
        display_labels: Sequence[str] | None = None,
        ax: Axes | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the frequencies of moves in given states.

        Parameters
        ----------
        y_pred : array-like of int or list of array-like
            States of a sequence; of several in two dimensions or as a list.
        groups : array-like of shape (n_steps,), default=None
            Sequence that each entry of a one-dimensional ``y_pred`` belongs to.
        n_states : int, default=None
            Number of states; None for those up to the largest that occurs.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        ax : Axes, default=None
            Axes to draw in; None makes a new figure.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        TransitionMatrixDisplay
            The display, drawn.
        """
        parts = [checked_labels(part, "y_pred") for part in split_labels(y_pred, "y_pred", groups)]
        largest = max(part.max() for part in parts)
        n_states = largest + 1 if n_states is None else n_states
        if n_states <= largest:
            raise ValueError(f"n_states={n_states} must exceed the largest state, {largest}.")
        counts = np.zeros((n_states, n_states))
        for part in parts:
            np.add.at(counts, (part[:-1], part[1:]), 1.0)
        totals = counts.sum(axis=1, keepdims=True)
        matrix = np.where(totals > 0, counts / np.maximum(totals, 1.0), np.nan)
        return cls(matrix, display_labels=display_labels).plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        log: bool = False,
        include_values: bool | None = None,
        colorbar: bool = True,
        cmap: str = "Blues",
        im_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the heat map.

        Parameters
        ----------
        ax : Axes, default=None
            Axes to draw in; None makes a new figure.
        log : bool, default=False
            Whether colours are on a logarithmic scale, from 0.0001 or the least probability. Where
            states stay, it tells the rarer moves apart.
        include_values : bool, default=None
            Whether to write the probabilities; None: if there are at most twelve states. Those
            above zero that round to it are left out.
        colorbar : bool, default=True
            Whether to draw a colour bar.
        cmap : str, default="Blues"
            Colours.
        im_kw : dict, default=None
            Further arguments of ``imshow``.

        Returns
        -------
        TransitionMatrixDisplay
            The display itself.
        """
        self.figure_, self.ax_ = one_axes(self, ax, aspect=0.8)
        from matplotlib.colors import LogNorm, Normalize

        matrix, n_states = self.transition_matrix, len(self.transition_matrix)
        norm = Normalize(0.0, 1.0)
        if log:
            positive = matrix[matrix > 0]
            least = max(positive.min(initial=1.0), _LEAST_LOG)
            norm = LogNorm(min(least, 0.1), 1.0, clip=True)
            matrix = np.where(np.isnan(matrix), np.nan, np.maximum(matrix, norm.vmin))
        keywords = {"cmap": cmap, "norm": norm, "interpolation": "nearest", **(im_kw or {})}
        self.im_ = self.ax_.imshow(matrix, **keywords)
        self.ax_.set(xlabel="state", ylabel="state one step before")
        for axis in (self.ax_.xaxis, self.ax_.yaxis):
            name_ticks(axis, self.display_labels, largest=20)
        written = n_states <= _MOST_WRITTEN if include_values is None else include_values
        self.text_ = self._write() if written else None
        self.colorbar_ = None
        if colorbar:
            extend = "min" if log and np.nanmin(self.transition_matrix) < norm.vmin else "neither"
            self.colorbar_ = self.figure_.colorbar(
                self.im_, ax=self.ax_, label="transition probability", extend=extend, aspect=25
            )
        return self

    def _write(self) -> np.ndarray:
        """Write the probabilities in their cells, in letters that fit."""
        n_states = len(self.transition_matrix)
        cell = _POINTS * min(axes_size(self.ax_)) / n_states
        size = float(np.clip(0.38 * cell, 4.0, 10.0))
        text = np.empty((n_states, n_states), dtype=object)
        for (i, j), probability in np.ndenumerate(self.transition_matrix):
            shown = self.im_.get_array()[i, j]
            color = "black" if np.isnan(probability) else text_color(self.im_.to_rgba(shown))
            text[i, j] = self.ax_.text(
                j, i, _written(probability), ha="center", va="center", color=color, fontsize=size
            )
        return text


def _written(probability: float) -> str:
    """Two decimals without the zero before the point, or nothing if they are zeros."""
    if np.isnan(probability):
        return "-"
    if 0 < probability < 0.005:
        return ""
    if 0.995 <= probability < 1:
        return ">.99"
    return f"{probability:.2f}".removeprefix("0") if 0 < probability < 1 else f"{probability:.0f}"
