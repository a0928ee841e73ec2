# SPDX-License-Identifier: BSD-3-Clause
"""Display of how the bound and its terms went in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._checks import check_estimator_has, checked_array
from sksvae.plotting._figures import INK, legend_above, many_axes
from sksvae.plotting._palette import OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"local_kl": "local KL", "global_kl": "global KL"}
_BESIDE = "reconstruction"  # of the terms the one that is drawn with the bound
_STYLES = ("-", "--", "-.", ":")


class BoundDisplay:
    """Evidence lower bound by epoch, and the terms that it consists of.

    The bound, that on validation rows and the reconstruction term stand above, the divergences that
    are subtracted from it below. Use `from_estimator` to make one.

    Parameters
    ----------
    bounds : array-like of shape (n_epochs,)
        Bound in each epoch.
    terms : dict of str to array-like of shape (n_epochs,), default=None
        Terms by name. ``"reconstruction"`` is drawn with the bound, all others below.
    validation_bounds : array-like of shape (n_epochs,), default=None
        Bound on validation rows, NaN where there is none.

    Attributes
    ----------
    bounds : ndarray of shape (n_epochs,)
        As given.
    terms : dict of str to ndarray of shape (n_epochs,)
        As given.
    validation_bounds : ndarray of shape (n_epochs,) or None
        As given.
    line_ : Line2D
        The bound.
    validation_line_ : Line2D or None
        The bound on validation rows.
    term_lines_ : dict of str to Line2D
        The terms.
    ax_ : Axes
        Axes with the bound.
    axes_ : ndarray of Axes of shape (1,) or (2,)
        All axes, from above.
    figure_ : Figure
        Their figure.

    See Also
    --------
    sklearn.model_selection.LearningCurveDisplay : Scores by size of the training set.

    Examples
    --------
    >>> from sksvae.plotting import BoundDisplay
    >>> history = {"reconstruction": [-9.0, -7.5, -7.1], "local_kl": [1.0, 1.4, 1.5]}
    >>> display = BoundDisplay([-10.0, -8.9, -8.6], terms=history).plot()
    >>> display.ax_.get_ylabel()
    'nats per row'
    """

    def __init__(
        self,
        bounds: ArrayLike,
        *,
        terms: Mapping[str, ArrayLike] | None = None,
        validation_bounds: ArrayLike | None = None,
    ):
        self.bounds = checked_array(bounds, "bounds", (None,))
        if not self.bounds.size:
            raise ValueError("bounds is empty: there is no epoch to draw.")
        shape = self.bounds.shape
        self.terms = {
            name: checked_array(values, f"terms[{name!r}]", shape)
            for name, values in (terms or {}).items()
        }
        self.validation_bounds = None
        if validation_bounds is not None:
            self.validation_bounds = checked_array(
                validation_bounds, "validation_bounds", shape, allow_nan=True
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the history of a fit.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``history_``, or with ``lower_bounds_`` alone, such as
            scikit-learn's `BayesianGaussianMixture`.
        ax : Axes or array-like of two Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        BoundDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "lower_bounds_")
        terms = dict(getattr(estimator, "history_", {}))
        terms.pop("lower_bound", None)
        validation = terms.pop("validation_bound", None)
        if validation is not None and np.isnan(validation).all():
            validation = None
        display = cls(estimator.lower_bounds_, terms=terms, validation_bounds=validation)
        return display.plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        name: str = "bound",
        show_terms: bool = True,
        burn_in: int | None = None,
        line_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the bound.

        Parameters
        ----------
        ax : Axes or array-like of two Axes, default=None
            Axes to draw in; a single one is divided if there are terms to be drawn below. None
            makes a new figure.
        name : str, default="bound"
            Name of the bound in the legend, to compare several in the same axes.
        show_terms : bool, default=True
            Whether to draw the terms.
        burn_in : int, default=None
            Number of first epochs that may run out of the frame, since the limits of the vertical
            axes do not take them into account. None: a twentieth of all.
        line_kw : dict, default=None
            Properties of the line of the bound.

        Returns
        -------
        BoundDisplay
            The display itself.
        """
        n_epochs = self.bounds.size
        burn_in = n_epochs // 20 if burn_in is None else burn_in
        if not 0 <= burn_in < n_epochs:
            raise ValueError(f"burn_in must be from 0 to {n_epochs - 1}, got {burn_in!r}.")
        below = [name for name in self.terms if name != _BESIDE] if show_terms else []
        n_axes = 2 if below else 1
        ratios = (2, 1)[:n_axes]
        self.figure_, axes, _ = many_axes(
            self, ax, (n_axes, 1), least_height=1.4 * n_axes, sharex=True, ratios=ratios
        )
        self.axes_ = axes[:, 0]
        self.ax_ = self.axes_[0]
        epochs = np.arange(1, n_epochs + 1)
        color = OKABE_ITO[len(self.ax_.get_lines()) % len(OKABE_ITO)]
        line = {"color": color, "linewidth": 1.8, "label": name, **(line_kw or {})}
        (self.line_,) = self.ax_.plot(epochs, self.bounds, **line)
        self.validation_line_, self.term_lines_ = None, {}
        if self.validation_bounds is not None:
            style = {"color": self.line_.get_color(), "linestyle": "--", "linewidth": 1.2}
            (self.validation_line_,) = self.ax_.plot(
                epochs, self.validation_bounds, label=f"{name}, validation", **style
            )
        if show_terms and _BESIDE in self.terms:
            style = {"color": INK, "linestyle": ":", "linewidth": 1.2, "label": _BESIDE}
            (self.term_lines_[_BESIDE],) = self.ax_.plot(epochs, self.terms[_BESIDE], **style)
        handles, names = self.ax_.get_legend_handles_labels()
        if len(handles) > 1 or below or name != "bound":
            legend_above(self.ax_, handles, names)
        self._draw_below(epochs, below)
        for one in self.axes_:
            one.set_ylabel("nats per row")
            _fit_limits(one, burn_in)
        self.axes_[-1].set_xlabel("epoch")
        self.axes_[-1].xaxis.get_major_locator().set_params(integer=True)
        return self

    def _draw_below(self, epochs: np.ndarray, below: list[str]) -> None:
        """Draw the divergences."""
        for i, name in enumerate(below):
            (self.term_lines_[name],) = self.axes_[1].plot(
                epochs,
                self.terms[name],
                color=OKABE_ITO[(2 + i) % len(OKABE_ITO)],
                linestyle=_STYLES[i % len(_STYLES)],
                linewidth=1.5,
            )
        if below:
            names = [_NAMES.get(name, name.replace("_", " ")) for name in below]
            legend_above(self.axes_[1], [self.term_lines_[name] for name in below], names)


def _fit_limits(ax: Axes, burn_in: int) -> None:
    """Fit the vertical axis to all lines, whoever drew them, after their first epochs."""
    shown = np.concatenate([line.get_ydata()[burn_in:] for line in ax.get_lines()])
    shown = shown[~np.isnan(shown)]
    low, high = shown.min(), shown.max()
    margin = 0.05 * (high - low) or 0.5
    ax.set_ylim(low - margin, high + margin)
