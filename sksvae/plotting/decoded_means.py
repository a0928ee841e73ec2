# SPDX-License-Identifier: BSD-3-Clause
"""Display of what the means of components or states decode to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._checks import (
    check_estimator_has,
    checked_array,
    checked_image_shape,
    checked_names,
    checked_option,
)
from sksvae.plotting._components import has_components, state_moments
from sksvae.plotting._figures import (
    axes_size,
    legend_above,
    many_axes,
    name_ticks,
    one_axes,
    require_pyplot,
)
from sksvae.plotting._palette import OKABE_ITO, state_colors
from sksvae.plotting._reading import ask, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_MARKED = 30  # features, up to which lines have markers
_IMAGE_INCHES = (0.66, 0.42)  # what an image takes, of up to twenty and of more
_FEW = 20
_DIVERGING, _SEQUENTIAL = "PuOr", "viridis"


class DecodedMeansDisplay:
    """Means of components or states as rows of data: images, lines or a heat map.

    Use `from_estimator` to make one.

    Parameters
    ----------
    decoded_means : array-like of shape (n_components, n_features)
        What the means decode to.
    weights : array-like of shape (n_components,), default=None
        Shares of the components, to be written along.
    feature_names : sequence of str of shape (n_features,), default=None
        Names of the features, with units; None for their numbers.
    display_labels : sequence of str of shape (n_components,), default=None
        Names of the components; None for their numbers.

    Attributes
    ----------
    decoded_means, weights, feature_names, display_labels
        As given, as arrays and lists.
    images_ : list of AxesImage or None
        One per component, if they are images.
    lines_ : list of Line2D or None
        One per component, if they are lines.
    im_ : QuadMesh or None
        The heat map, if it is one.
    ax_ : Axes
        Axes with the first component.
    axes_ : ndarray of Axes
        All axes.
    figure_ : Figure
        Their figure.

    See Also
    --------
    LatentSpaceDisplay : Where the means are among the latents.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import DecodedMeansDisplay
    >>> display = DecodedMeansDisplay(np.eye(3, 4), weights=[0.5, 0.3, 0.2])
    >>> [image.get_array().shape for image in display.plot(image_shape=(2, 2)).images_]
    [(2, 2), (2, 2), (2, 2)]
    """

    def __init__(
        self,
        decoded_means: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        feature_names: Sequence[str] | None = None,
        display_labels: Sequence[str] | None = None,
    ):
        self.decoded_means = checked_array(decoded_means, "decoded_means", (None, None))
        n_components, n_features = self.decoded_means.shape
        if not self.decoded_means.size:
            raise ValueError("decoded_means is empty.")
        self.weights = None
        if weights is not None:
            self.weights = checked_array(weights, "weights", (n_components,))
        self.feature_names = checked_names(feature_names, n_features, "feature_names")
        self.display_labels = checked_names(display_labels, n_components, "display_labels")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        groups: ArrayLike | None = None,
        feature_names: Sequence[str] | None = None,
        display_labels: Sequence[str] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Decode the means that an estimator has learned.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``inverse_transform``, and with ``means_`` and ``covariances_``
            or with states.
        X : array-like, default=None
            Data in any form that it accepts. States have no means of their own: theirs are the
            mean latents of X in each state. Not used if there is ``means_``.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        feature_names : sequence of str of shape (n_features,), default=None
            Names of the features, with units; None for those seen in `fit`, or numbers.
        display_labels : sequence of str of shape (n_components,), default=None
            Names of the components; None for their numbers.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        DecodedMeansDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "inverse_transform")
        if has_components(estimator):
            means, weights = estimator.means_, estimator.weights_
        else:
            check_estimator_has(estimator, "predict_proba", "transform")
            if X is None:
                raise ValueError(
                    f"X must be given: the states of {type(estimator).__name__} have no means but "
                    "those of data."
                )
            data = read(estimator, X, groups)
            latents, probabilities = (
                ask(estimator, method, X, groups, data) for method in ("transform", "predict_proba")
            )
            means, _, weights = state_moments(latents, probabilities)
            display_labels = checked_names(display_labels, len(means), "display_labels")
            used = np.flatnonzero(weights)  # in X
            means, weights = means[used], weights[used]
            display_labels = [display_labels[k] for k in used]
        if feature_names is None:
            feature_names = getattr(estimator, "feature_names_in_", None)
        display = cls(
            estimator.inverse_transform(means),
            weights=weights,
            feature_names=feature_names,
            display_labels=display_labels,
        )
        return display.plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        image_shape: tuple[int, int] | None = None,
        kind: str = "auto",
        standardize: bool = False,
        cmap: str | None = None,
    ) -> Self:
        """Draw the decoded means.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Axes to draw in. For images, one that is divided, or one for each component. None makes
            a new figure.
        image_shape : tuple of two ints, default=None
            Rows and columns of the images that the features are the pixels of.
        kind : {"auto", "lines", "heatmap"}, default="auto"
            How to draw features that are no image. ``"auto"``: lines if there are at most eight
            components, else a heat map.
        standardize : bool, default=False
            Whether lines and heat maps show differences from the mean of each feature over
            components, divided by its standard deviation: for features of different units.
        cmap : str, default=None
            Colours of images and heat maps; None for ``"gray_r"``, ``"viridis"``, or, if
            standardised, ``"PuOr"``.

        Returns
        -------
        DecodedMeansDisplay
            The display itself.
        """
        checked_option(kind, "kind", ("auto", "lines", "heatmap"))
        self.images_ = self.lines_ = self.im_ = None
        if image_shape is not None:
            self._draw_images(ax, checked_image_shape(image_shape, len(self.feature_names)), cmap)
            return self
        self.figure_, self.ax_ = one_axes(self, ax)
        self.axes_ = np.array([self.ax_])
        values, label = self.decoded_means, "decoded mean"
        if standardize:
            spread = values.std(axis=0)
            values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
            label = "decoded mean\n(standard deviations)"
        few = len(values) <= len(OKABE_ITO)
        if kind == "lines" or (kind == "auto" and few):
            self._draw_lines(values, label)
        else:
            self._draw_heatmap(values, label, cmap or (_DIVERGING if standardize else _SEQUENTIAL))
        name_ticks(self.ax_.xaxis, self.feature_names)
        if self.feature_names == [str(i) for i in range(len(self.feature_names))]:
            self.ax_.set_xlabel("feature")
        return self

    def _draw_images(self, ax: Any, image_shape: tuple[int, int], cmap: str | None) -> None:
        n = len(self.decoded_means)
        width = _width(self, ax)
        n_columns = min(n, max(int(width / _IMAGE_INCHES[n > _FEW]), 1))
        # As many in each row as can be.
        n_rows = -(-n // n_columns)
        n_columns = -(-n // n_rows)
        if isinstance(ax, list | tuple | np.ndarray):
            n_rows, n_columns = 1, n
        each = width / n_columns * image_shape[0] / image_shape[1] + 0.22
        self.figure_, axes, _ = many_axes(self, ax, (n_rows, n_columns), height=n_rows * each)
        self.axes_ = axes.ravel()
        self.ax_ = self.axes_[0]
        for one in self.axes_:
            one.set_axis_off()
        limits = {"vmin": self.decoded_means.min(), "vmax": self.decoded_means.max()}
        self.images_ = []
        for k, one in enumerate(self.axes_[:n]):
            image = self.decoded_means[k].reshape(image_shape)
            self.images_.append(
                one.imshow(image, cmap=cmap or "gray_r", interpolation="nearest", **limits)
            )
            one.set_title(self._name(k), fontsize="small" if n <= _FEW else "xx-small", pad=2)

    def _draw_lines(self, values: np.ndarray, label: str) -> None:
        self.lines_ = []
        marker = "o" if values.shape[1] <= _MOST_MARKED else None
        for row, color in zip(values, state_colors(len(values)), strict=True):
            self.lines_ += self.ax_.plot(
                np.arange(row.size), row, marker=marker, markersize=3, linewidth=1.2, color=color
            )
        legend_above(self.ax_, self.lines_, [self._name(k) for k in range(len(values))])
        self.ax_.set_ylabel(label)

    def _draw_heatmap(self, values: np.ndarray, label: str, cmap: str) -> None:
        largest = np.abs(values).max() if cmap == _DIVERGING else None
        self.im_ = self.ax_.pcolormesh(
            np.arange(values.shape[1] + 1) - 0.5,
            np.arange(len(values) + 1) - 0.5,
            values,
            cmap=cmap,
            vmin=None if largest is None else -largest,
            vmax=largest,
        )
        self.ax_.invert_yaxis()
        name_ticks(self.ax_.yaxis, self.display_labels, largest=20)
        self.ax_.set_ylabel("component")
        self.figure_.colorbar(self.im_, ax=self.ax_, label=label)

    def _name(self, k: int) -> str:
        share = "" if self.weights is None else f" ({100 * self.weights[k]:.0f} %)"
        return self.display_labels[k] + share


def _width(display: DecodedMeansDisplay, ax: Any) -> float:
    """Width in inches of what there is to draw in."""
    plt = require_pyplot(display)
    if ax is None:
        return plt.rcParams["figure.figsize"][0]
    return axes_size(ax)[0] if hasattr(ax, "get_window_extent") else 1.0
