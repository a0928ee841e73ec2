# SPDX-License-Identifier: BSD-3-Clause
"""Display of data beside what their latents decode to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._bands import Curves, checked_table, draw_estimates
from sksvae.plotting._checks import (
    check_estimator_has,
    checked_image_shape,
    checked_indices,
    checked_names,
    checked_option,
)
from sksvae.plotting._figures import legend_above, many_axes, name_ticks, require_pyplot
from sksvae.plotting._palette import ESTIMATED, OBSERVED
from sksvae.plotting._reading import ask, one_sequence, read
from sksvae.plotting._timeline import timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_IMAGES, _MOST_ROWS = 10, 4  # that are drawn unasked
_IMAGE_INCHES = 0.42  # the least that an image takes, unasked
_MOST_MARKED = 30  # features, up to which data are dots


class ReconstructionDisplay:
    """Data, and what their latents decode to: as images, or as lines over steps or features.

    Use `from_estimator` or `from_predictions` to make one.

    Parameters
    ----------
    X : array-like of shape (n_rows, n_features)
        Data, NaN where there is nothing.
    reconstruction : array-like of shape (n_rows, n_features)
        What they are reconstructed to.
    feature_names : sequence of str of shape (n_features,), default=None
        Names of the features, with units; None for their numbers.

    Attributes
    ----------
    X, reconstruction, feature_names
        As given, as arrays and a list.
    images_ : ndarray of AxesImage of shape (2, n_images) or None
        Data and reconstructions, if they are images.
    lines_ : list of Line2D
        Reconstructions, if they are lines.
    observed_lines_ : list of Line2D
        Data, if they are lines.
    meshes_ : list of QuadMesh
        Data and reconstruction, if they are heat maps over steps.
    ax_ : Axes
        The first axes.
    axes_ : ndarray of Axes
        All axes.
    figure_ : Figure
        Their figure.

    See Also
    --------
    DecodedMeansDisplay : What components decode to.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import ReconstructionDisplay
    >>> X = np.eye(6, 4)
    >>> display = ReconstructionDisplay.from_predictions(X, 0.9 * X, image_shape=(2, 2))
    >>> display.images_.shape
    (2, 6)
    """

    def __init__(
        self,
        X: ArrayLike,
        reconstruction: ArrayLike,
        *,
        feature_names: Sequence[str] | None = None,
    ):
        self.X = checked_table(X, "X", allow_nan=True)
        self.reconstruction = checked_table(reconstruction, "reconstruction", self.X.shape)
        self.feature_names = checked_names(feature_names, self.X.shape[1], "feature_names")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        sequence: int = 0,
        feature_names: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw data, and ``inverse_transform`` of their ``transform``.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``transform`` and ``inverse_transform``.
        X : array-like
            Data in any form that it accepts.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        sequence : int, default=0
            Which sequence to draw; of rows without order, all are used.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the features, with units; None for those seen in `fit`, or numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`. ``over`` is ``"steps"`` for sequences.

        Returns
        -------
        ReconstructionDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "transform", "inverse_transform")
        data = read(estimator, X, groups)
        if feature_names is None:
            feature_names = getattr(estimator, "feature_names_in_", None)
        if data.lengths.max() == 1:
            values, latents = data.values, ask(estimator, "transform", X, groups, data)
        else:
            chosen = one_sequence(estimator, X, groups, sequence)
            values, latents = chosen.values, np.asarray(estimator.transform(chosen.X)[0])
            plot_kw = {"over": "steps", **plot_kw}
        display = cls(values, estimator.inverse_transform(latents), feature_names=feature_names)
        return display.plot(ax, **plot_kw)

    @classmethod
    def from_predictions(
        cls,
        X: ArrayLike,
        reconstruction: ArrayLike,
        *,
        feature_names: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw given reconstructions.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features)
            Data, NaN where there is nothing.
        reconstruction : array-like of shape (n_rows, n_features)
            What they are reconstructed to.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the features, with units; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        ReconstructionDisplay
            The display, drawn.
        """
        return cls(X, reconstruction, feature_names=feature_names).plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        image_shape: tuple[int, int] | None = None,
        over: str = "features",
        rows: ArrayLike | None = None,
        features: Any = None,
        kind: str = "auto",
        times: ArrayLike | None = None,
        time_label: str = "step",
        cmap: str | None = None,
    ) -> Self:
        """Draw data and reconstructions.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Axes to draw in; a single one is divided if there is more than one panel. None makes a
            new figure.
        image_shape : tuple of two ints, default=None
            Rows and columns of images: data above, reconstructions below.
        over : {"features", "steps"}, default="features"
            Whether there is a panel for each row, with lines over features, or for each feature,
            with lines over rows, which then are steps of time. Not used for images.
        rows : array-like of int, default=None
            Rows that are images or have a panel; None for up to ten images, as there is room, or
            four panels, at equal distances.
        features : int, str or sequence of these, default=None
            Features that have a panel, by number or name; None for the first four.
        kind : {"auto", "lines", "heatmap"}, default="auto"
            Over steps, lines or heat maps. ``"auto"``: lines for up to six features.
        times : array-like of shape (n_rows,), default=None
            Times of the steps, increasing numbers or dates; None for their numbers.
        time_label : str, default="step"
            Label of the time axis, with the unit.
        cmap : str, default=None
            Colours of images and heat maps; None for ``"gray_r"`` and ``"viridis"``.

        Returns
        -------
        ReconstructionDisplay
            The display itself.
        """
        checked_option(over, "over", ("features", "steps"))
        self.images_, self.lines_, self.observed_lines_, self.meshes_ = None, [], [], []
        if image_shape is not None:
            shape = checked_image_shape(image_shape, len(self.feature_names))
            width = require_pyplot(self).rcParams["figure.figsize"][0]
            most = int(np.clip(width / _IMAGE_INCHES, 1, _MOST_IMAGES))
            self._draw_images(ax, shape, self._rows(rows, most), cmap or "gray_r")
        elif over == "features":
            self._draw_rows(ax, self._rows(rows, _MOST_ROWS))
        else:
            self.coverage = None
            draw_estimates(
                self,
                ax,
                timeline(times, len(self.X)),
                Curves(self.X, self.reconstruction),
                {"data": self.X, "reconstruction": self.reconstruction},
                name="reconstruction",
                kind=kind,
                features=features,
                time_label=time_label,
                cmap=cmap or "viridis",
            )
        return self

    def _rows(self, rows: ArrayLike | None, most: int) -> list[int]:
        n_rows = len(self.X)
        if rows is None:
            return np.linspace(0, n_rows - 1, min(n_rows, most)).round().astype(int).tolist()
        return checked_indices(rows, n_rows, "rows")

    def _draw_images(self, ax: Any, shape: tuple[int, int], rows: list[int], cmap: str) -> None:
        pairs = np.stack([self.X[rows], self.reconstruction[rows]])
        limits = {"vmin": np.nanmin(pairs), "vmax": np.nanmax(pairs)}
        plt = require_pyplot(self)
        each = plt.rcParams["figure.figsize"][0] / (len(rows) + 0.5) * shape[0] / shape[1]
        self.figure_, self.axes_, _ = many_axes(self, ax, (2, len(rows)), height=2 * each + 0.1)
        self.ax_ = self.axes_[0, 0]
        self.images_ = np.empty((2, len(rows)), dtype=object)
        for index in np.ndindex(2, len(rows)):
            one = self.axes_[index]
            image = pairs[index].reshape(shape)
            self.images_[index] = one.imshow(image, cmap=cmap, interpolation="nearest", **limits)
            one.set(xticks=[], yticks=[])
            one.spines[:].set_color("0.8")
        for one, name in zip(self.axes_[:, 0], ("data", "decoded"), strict=True):
            one.set_ylabel(name, fontsize="x-small")

    def _draw_rows(self, ax: Any, rows: list[int]) -> None:
        n_features = len(self.feature_names)
        self.figure_, axes, _ = many_axes(
            self, ax, (len(rows), 1), height=0.9 + 1.1 * len(rows), sharex=True
        )
        self.axes_, self.ax_ = axes[:, 0], axes[0, 0]
        few = n_features <= _MOST_MARKED
        data = {"marker": "o", "markersize": 4, "linestyle": "none"} if few else {"linewidth": 1.0}
        positions = np.arange(n_features)
        for one, row in zip(self.axes_, rows, strict=True):
            self.observed_lines_ += one.plot(positions, self.X[row], color=OBSERVED, **data)
            style = {"color": ESTIMATED, "linewidth": 1.3}
            self.lines_ += one.plot(positions, self.reconstruction[row], **style)
            one.set_ylabel(f"row {row}")
        legend_above(
            self.ax_, [self.observed_lines_[0], self.lines_[0]], ["data", "reconstruction"]
        )
        name_ticks(self.axes_[-1].xaxis, self.feature_names)
        if all(name.isdigit() for name in self.feature_names):
            self.axes_[-1].set_xlabel("feature")
