# SPDX-License-Identifier: BSD-3-Clause
"""Display of how sequences go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._bands import Curves, band_of, checked_table, draw_estimates
from sksvae.plotting._checks import check_estimator_has, checked_names
from sksvae.plotting._palette import TRUE
from sksvae.plotting._reading import one_sequence
from sksvae.plotting._timeline import timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HISTORY = 3  # times the steps of the forecast are drawn of the history


class ForecastDisplay:
    """The end of a sequence, its forecast with a band, and the truth if it is known.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    history : array-like of shape (n_timesteps, n_features)
        What was observed, NaN where there is nothing.
    mean : array-like of shape (n_steps, n_features)
        Forecast.
    lower, upper : array-like of shape (n_steps, n_features), default=None
        Ends of the band around it.
    truth : array-like of shape (n_steps, n_features), default=None
        What came, NaN where there is nothing.
    coverage : float, default=None
        Probability of the band, for the legend.
    feature_names : sequence of str of shape (n_features,), default=None
        Names of the features, with units; None for their numbers.

    Attributes
    ----------
    history, mean, lower, upper, truth, coverage, feature_names
        As given, as arrays and lists.
    lines_ : list of Line2D
        The forecast of each feature that was drawn, NaN in the history; empty for a heat map.
    observed_lines_, truth_lines_ : list of Line2D
        History and truth of each, likewise.
    bands_ : list of PolyCollection
        Band of each.
    meshes_ : list of QuadMesh
        Heat maps of the truth, if it is known, and of history and forecast.
    ax_ : Axes
        The uppermost axes.
    axes_ : ndarray of Axes
        All axes, from above.
    figure_ : Figure
        Their figure.

    See Also
    --------
    ImputationDisplay : What was missing within a sequence.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import ForecastDisplay
    >>> display = ForecastDisplay.from_predictions(
    ...     np.sin(np.arange(30)), np.zeros(10), std=np.ones(10), coverage=0.95)
    >>> print(f"{display.upper[0, 0]:.2f}")
    1.96
    """

    def __init__(
        self,
        history: ArrayLike,
        mean: ArrayLike,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        *,
        truth: ArrayLike | None = None,
        coverage: float | None = None,
        feature_names: Sequence[str] | None = None,
    ):
        self.history = checked_table(history, "history", allow_nan=True)
        n_features = self.history.shape[1]
        self.mean = checked_table(mean, "mean", (None, n_features))
        if (lower is None) != (upper is None):
            raise ValueError("lower and upper must be given together.")
        self.lower = checked_table(lower, "lower", self.mean.shape)
        self.upper = checked_table(upper, "upper", self.mean.shape)
        self.truth = checked_table(truth, "truth", self.mean.shape, allow_nan=True)
        self.coverage = coverage
        self.feature_names = checked_names(feature_names, n_features, "feature_names")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        n_steps: int,
        *,
        groups: ArrayLike | None = None,
        sequence: int = 0,
        truth: ArrayLike | None = None,
        coverage: float = 0.9,
        n_draws: int | None = None,
        feature_names: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Forecast a sequence and draw it.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``forecast``.
        X : array-like
            Sequences in any form that it accepts.
        n_steps : int
            Number of steps to look ahead.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        sequence : int, default=0
            Which sequence to forecast.
        truth : array-like of shape (n_steps, n_features), default=None
            What came.
        coverage : float, default=0.9
            Probability of the band.
        n_draws : int, default=None
            Draws whose quantiles are the band, and whose mean is the forecast; None for a band of
            normal distributions.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the features, with units; None for those seen in `fit`, or numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        ForecastDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "forecast", "rows_")
        chosen = one_sequence(estimator, X, groups, sequence)
        if feature_names is None:
            feature_names = getattr(estimator, "feature_names_in_", None)
        options = {"truth": truth, "coverage": coverage, "feature_names": feature_names}
        if n_draws is not None:
            draws = estimator.forecast(chosen.X, n_steps, n_draws=n_draws)[:, 0]
            options |= {"draws": draws}
            mean = draws.mean(axis=0)
        else:
            mean, options["std"] = (part[0] for part in estimator.forecast(chosen.X, n_steps))
        return cls.from_predictions(chosen.values, mean, **options, ax=ax, **plot_kw)

    @classmethod
    def from_predictions(
        cls,
        history: ArrayLike,
        mean: ArrayLike,
        *,
        std: ArrayLike | None = None,
        draws: ArrayLike | None = None,
        truth: ArrayLike | None = None,
        coverage: float = 0.9,
        feature_names: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw a given forecast.

        Parameters
        ----------
        history : array-like of shape (n_timesteps, n_features)
            What was observed; of a single feature the last axis may be absent, here and below.
        mean : array-like of shape (n_steps, n_features)
            Forecast.
        std : array-like of shape (n_steps, n_features), default=None
            Standard deviations.
        draws : array-like of shape (n_draws, n_steps, n_features), default=None
            Draws, whose quantiles then are the band.
        truth : array-like of shape (n_steps, n_features), default=None
            What came.
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
        ForecastDisplay
            The display, drawn.
        """
        mean = checked_table(mean, "mean")
        lower, upper = band_of(mean, std, draws, coverage)
        display = cls(
            history,
            mean,
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
        n_history: int | None = None,
        times: ArrayLike | None = None,
        time_label: str = "step",
        cmap: str = "viridis",
    ) -> Self:
        """Draw the forecast.

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
        n_history : int, default=None
            Steps of the history to draw; None for three times those of the forecast.
        times : array-like of shape (n_timesteps + n_steps,), default=None
            Times of history and forecast, increasing numbers or dates; None for numbers of steps.
        time_label : str, default="step"
            Label of the time axis, with the unit.
        cmap : str, default="viridis"
            Colours of heat maps.

        Returns
        -------
        ForecastDisplay
            The display itself.
        """
        n_known, n_ahead = len(self.history), len(self.mean)
        n_history = _HISTORY * n_ahead if n_history is None else n_history
        if n_history < 1:
            raise ValueError(f"n_history must be at least 1, got {n_history!r}.")
        n_history = min(n_history, n_known)
        line = timeline(times, n_known + n_ahead).part(n_known - n_history, n_known + n_ahead)
        known = self.history[n_known - n_history :]
        images = {"forecast": np.concatenate([known, self.mean])}
        if self.truth is not None:
            images = {"truth": np.concatenate([known, self.truth]), **images}
        ahead = (self.mean, self.truth, self.lower, self.upper)
        before = np.full_like(known, np.nan)
        curves = Curves(
            np.concatenate([known, np.full_like(self.mean, np.nan)]),
            *(None if part is None else np.concatenate([before, part]) for part in ahead),
        )
        draw_estimates(
            self,
            ax,
            line,
            curves,
            images,
            name="forecast",
            kind=kind,
            features=features,
            time_label=time_label,
            cmap=cmap,
        )
        start = {"color": TRUE, "linewidth": 1.5} if self.meshes_ else {"color": "0.7", "zorder": 0}
        for one in self.axes_:
            one.axvline(line.edges[n_history], **{"linewidth": 0.8, **start})
        return self
