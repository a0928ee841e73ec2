# SPDX-License-Identifier: BSD-3-Clause
"""Display of what was missing in sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._bands import Curves, band_of, checked_table, draw_estimates
from sksvae.plotting._checks import check_estimator_has, checked_names
from sksvae.plotting._reading import one_sequence
from sksvae.plotting._timeline import timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ImputationDisplay:
    """A sequence with gaps, what fills them with a band, and the truth if it is known.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    observed : array-like of shape (n_timesteps, n_features)
        The sequence, NaN where something is missing.
    filled : array-like of shape (n_timesteps, n_features)
        The sequence without gaps.
    lower, upper : array-like of shape (n_timesteps, n_features), default=None
        Ends of the band around what was filled in.
    truth : array-like of shape (n_timesteps, n_features), default=None
        What was missing; NaN where it is not known.
    coverage : float, default=None
        Probability of the band, for the legend.
    feature_names : sequence of str of shape (n_features,), default=None
        Names of the features, with units; None for their numbers.

    Attributes
    ----------
    observed, filled, lower, upper, truth, coverage, feature_names
        As given, as arrays and lists.
    lines_ : list of Line2D
        What was filled in, of each feature that was drawn: NaN elsewhere, but for the observed
        neighbours of gaps, with which it is connected. Empty for a heat map.
    observed_lines_, truth_lines_ : list of Line2D
        The sequence, and the truth in its gaps, likewise.
    bands_ : list of PolyCollection
        Band of each.
    meshes_ : list of QuadMesh
        Heat maps of the truth, if it is known, of the sequence, and of the filled one.
    ax_ : Axes
        The uppermost axes.
    axes_ : ndarray of Axes
        All axes, from above.
    figure_ : Figure
        Their figure.

    See Also
    --------
    ForecastDisplay : How a sequence goes on.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import ImputationDisplay
    >>> observed, filled = [0.0, 1.0, np.nan, 1.0], [0.0, 1.0, 1.5, 1.0]
    >>> display = ImputationDisplay.from_predictions(observed, filled, std=[0.0, 0.0, 0.3, 0.0])
    >>> display.lines_[0].get_ydata()
    array([nan, 1. , 1.5, 1. ])
    """

    def __init__(
        self,
        observed: ArrayLike,
        filled: ArrayLike,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        *,
        truth: ArrayLike | None = None,
        coverage: float | None = None,
        feature_names: Sequence[str] | None = None,
    ):
        self.observed = checked_table(observed, "observed", allow_nan=True)
        shape = self.observed.shape
        self.filled = checked_table(filled, "filled", shape)
        if (lower is None) != (upper is None):
            raise ValueError("lower and upper must be given together.")
        self.lower = checked_table(lower, "lower", shape)
        self.upper = checked_table(upper, "upper", shape)
        self.truth = checked_table(truth, "truth", shape, allow_nan=True)
        self.coverage = coverage
        self.feature_names = checked_names(feature_names, shape[1], "feature_names")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        sequence: int = 0,
        truth: ArrayLike | None = None,
        coverage: float = 0.9,
        n_draws: int | None = 100,
        feature_names: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Impute a sequence and draw it.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``impute``.
        X : array-like
            Sequences in any form that it accepts, NaN where something is missing.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        sequence : int, default=0
            Which sequence to impute.
        truth : array-like of shape (n_timesteps, n_features), default=None
            What was missing.
        coverage : float, default=0.9
            Probability of the band.
        n_draws : int, default=100
            Draws whose quantiles are the band; None for no band.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the features, with units; None for those seen in `fit`, or numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        ImputationDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "impute", "rows_")
        chosen = one_sequence(estimator, X, groups, sequence)
        if feature_names is None:
            feature_names = getattr(estimator, "feature_names_in_", None)
        return cls.from_predictions(
            chosen.values,
            estimator.impute(chosen.X)[0],
            draws=None if n_draws is None else estimator.impute(chosen.X, n_draws=n_draws)[0],
            truth=truth,
            coverage=coverage,
            feature_names=feature_names,
            ax=ax,
            **plot_kw,
        )

    @classmethod
    def from_predictions(
        cls,
        observed: ArrayLike,
        filled: ArrayLike,
        *,
        std: ArrayLike | None = None,
        draws: ArrayLike | None = None,
        truth: ArrayLike | None = None,
        coverage: float = 0.9,
        feature_names: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw a given imputation.

        Parameters
        ----------
        observed : array-like of shape (n_timesteps, n_features)
            The sequence, NaN where something is missing; of a single feature the last axis may be
            absent, here and below.
        filled : array-like of shape (n_timesteps, n_features)
            The sequence without gaps.
        std : array-like of shape (n_timesteps, n_features), default=None
            Standard deviations of what was filled in.
        draws : array-like of shape (n_draws, n_timesteps, n_features), default=None
            Draws, whose quantiles then are the band.
        truth : array-like of shape (n_timesteps, n_features), default=None
            What was missing.
        coverage : float, default=0.9
            Probability of the band.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the features, with units; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        ImputationDisplay
            The display, drawn.
        """
        filled = checked_table(filled, "filled")
        lower, upper = band_of(filled, std, draws, coverage)
        display = cls(
            observed,
            filled,
            lower,
            upper,
            truth=truth,
            coverage=None if lower is None else coverage,
            feature_names=feature_names,
        )
        return display.plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        kind: str = "auto",
        features: Any = None,
        steps: tuple[int, int] | None = None,
        times: ArrayLike | None = None,
        time_label: str = "step",
        cmap: str = "viridis",
    ) -> Self:
        """Draw the imputation.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Axes to draw in; a single one is divided if there is more than one panel. None makes a
            new figure.
        kind : {"auto", "lines", "heatmap"}, default="auto"
            A panel with lines per feature, or all features as a heat map, without the band.
            ``"auto"``: lines for up to six features, or if ``features`` is given.
        features : int, str or sequence of these, default=None
            Features that have lines, by number or name; None for the first four.
        steps : tuple of two ints, default=None
            First step to draw and the one after the last; None for all.
        times : array-like of shape (n_timesteps,), default=None
            Times of all steps, increasing numbers or dates; None for numbers of steps.
        time_label : str, default="step"
            Label of the time axis, with the unit.
        cmap : str, default="viridis"
            Colours of heat maps; grey is missing.

        Returns
        -------
        ImputationDisplay
            The display itself.
        """
        n_all = len(self.observed)
        first, stop = (0, n_all) if steps is None else steps
        if not 0 <= first < stop <= n_all:
            raise ValueError(f"steps must be a range within 0 and {n_all}, got {steps!r}.")
        images = {"observed": self.observed, "imputed": self.filled}
        if self.truth is not None:
            known = np.where(np.isnan(self.observed), self.truth, self.observed)
            images = {"truth": known, **images}
        draw_estimates(
            self,
            ax,
            timeline(times, n_all).part(first, stop),
            self._curves(slice(first, stop)),
            {title: values[first:stop] for title, values in images.items()},
            name="imputed",
            kind=kind,
            features=features,
            time_label=time_label,
            cmap=cmap,
        )
        return self

    def _curves(self, shown: slice) -> Curves:
        """Curves in the gaps, and at their neighbours where they meet what was observed."""
        missing = np.isnan(self.observed)
        drawn = missing.copy()
        drawn[1:] |= missing[:-1]
        drawn[:-1] |= missing[1:]
        known = np.where(missing, np.nan, self.observed)
        parts = []
        for values in (self.filled, self.truth, self.lower, self.upper):
            if values is not None:
                values = np.where(missing, values, known)
                values = np.where(drawn, values, np.nan)[shown]
            parts.append(values)
        return Curves(self.observed[shown], *parts)
