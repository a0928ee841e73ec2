# SPDX-License-Identifier: BSD-3-Clause
"""Display of latents with the ellipses of components or states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._checks import check_estimator_has, checked_array
from sksvae.plotting._components import ellipse, has_components, state_moments
from sksvae.plotting._figures import INK, axes_size, halo, legend_above, one_axes
from sksvae.plotting._palette import state_colors
from sksvae.plotting._projection import choose_projection
from sksvae.plotting._reading import ask, read, split_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AS_VECTORS = 5000  # points, above which a vector graphic gets them as an image
_FEW = 20  # components, whose numbers are not written smaller


class LatentSpaceDisplay:
    """Scatter plot of latents, with ellipses of one and two standard deviations per component.

    Of more than two latents a plane is shown, and covariances are projected by the same linear map:
    an ellipse is that of the marginal distribution in the plane. The labels of the axes say which
    plane. Use `from_estimator` to make one.

    Parameters
    ----------
    latents : array-like of shape (n_rows, latent_dim)
        Latents.
    labels : array-like of shape (n_rows,), default=None
        What to colour points by: numbers of components, or classes of any kind.
    means : array-like of shape (n_components, latent_dim), default=None
        Means of components.
    covariances : array-like of shape (n_components, latent_dim, latent_dim), default=None
        Their covariances.
    weights : array-like of shape (n_components,), default=None
        Their weights, for the discriminant axes; None for equal ones. A component of weight zero
        is not drawn.
    labels_are_components : bool, default=True
        Whether labels are numbers of the components, whose colours they then have.

    Attributes
    ----------
    latents, labels, means, covariances, weights, labels_are_components
        As given, as arrays.
    projection_ : ndarray of shape (2, latent_dim)
        Linear map to the plane.
    center_ : ndarray of shape (latent_dim,)
        What it maps to the origin: ``(z - center_) @ projection_.T``.
    scatter_ : PathCollection
        The points.
    ellipses_ : list of list of Ellipse
        For each component one ellipse for each number of standard deviations.
    text_ : list of Text
        The numbers of the components.
    ax_ : Axes
        Axes with the plot.
    figure_ : Figure
        Their figure.

    See Also
    --------
    DecodedMeansDisplay : What the means stand for.
    LatentDynamicsDisplay : How latents move.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import LatentSpaceDisplay
    >>> latents = np.random.default_rng(0).normal(size=(50, 2))
    >>> display = LatentSpaceDisplay(
    ...     latents, means=[[0.0, 0.0]], covariances=[[[4.0, 0.0], [0.0, 1.0]]]).plot()
    >>> display.ax_.get_xlabel(), len(display.ellipses_[0])
    ('latent 0', 2)
    """

    def __init__(
        self,
        latents: ArrayLike,
        *,
        labels: ArrayLike | None = None,
        means: ArrayLike | None = None,
        covariances: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        labels_are_components: bool = True,
    ):
        self.latents = checked_array(latents, "latents", (None, None))
        n_rows, dim = self.latents.shape
        if n_rows == 0 or dim < 2:
            raise ValueError(
                f"latents must have a row and at least two columns, got shape {(n_rows, dim)}. "
                "A single latent shows best in a histogram."
            )
        self.labels = None if labels is None else np.asarray(labels)
        if self.labels is not None and self.labels.shape != (n_rows,):
            raise ValueError(f"labels must have shape ({n_rows},), got {self.labels.shape}.")
        if (means is None) != (covariances is None):
            raise ValueError("means and covariances must be given together.")
        self.labels_are_components = labels_are_components
        self.means = self.covariances = self.weights = None
        if means is not None:
            self.means = checked_array(means, "means", (None, dim))
            n_components = len(self.means)
            self.covariances = checked_array(covariances, "covariances", (n_components, dim, dim))
            weights = np.ones(n_components) if weights is None else weights
            self.weights = checked_array(weights, "weights", (n_components,))
            if self.weights.min() < 0 or not self.weights.any():
                raise ValueError("weights must not be negative, and not all be zero.")
        if labels is not None and labels_are_components:
            largest = np.inf if self.means is None else len(self.means) - 1
            whole = self.labels.dtype.kind in "iu"
            if not whole or self.labels.min() < 0 or self.labels.max() > largest:
                raise ValueError(
                    "labels must be numbers of components. For classes of another kind set "
                    "labels_are_components=False."
                )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        y: Any = None,
        groups: ArrayLike | None = None,
        ax: Axes | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the latents of data.

        Ellipses are those of the components, from ``means_`` and ``covariances_``. States of
        dynamics have no such; theirs are the mean and covariance of the latents in the state, which
        are posterior means, and hence vary less than draws would.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``transform``.
        X : array-like
            Data in any form that it accepts.
        y : array-like or list of array-like, default=None
            Classes to colour points by, in the form of X. None for the most probable components
            or states.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        ax : Axes, default=None
            Axes to draw in; None makes a new figure.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        LatentSpaceDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "transform")
        data = read(estimator, X, groups)
        latents = ask(estimator, "transform", X, groups, data)
        components: dict[str, Any] = {}
        if hasattr(estimator, "predict_proba"):
            probabilities = ask(estimator, "predict_proba", X, groups, data)
            components = {"labels": probabilities.argmax(axis=1)}
            moments = state_moments(latents, probabilities)
            if has_components(estimator):
                moments = estimator.means_, estimator.covariances_, estimator.weights_
            components |= dict(zip(("means", "covariances", "weights"), moments, strict=True))
        if y is not None:
            y = np.concatenate(split_labels(y, "y"))
            if y.size != data.n_rows:
                raise ValueError(f"y must have {data.n_rows} entries, one per row, got {y.size}.")
            y = y if data.order is None else y[data.order]
            components |= {"labels": y, "labels_are_components": False}
        return cls(latents, **components).plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        projection: Any = "auto",
        n_std: Sequence[float] = (1.0, 2.0),
        include_numbers: bool = True,
        scatter_kw: Mapping[str, Any] | None = None,
        ellipse_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the latents.

        Parameters
        ----------
        ax : Axes, default=None
            Axes to draw in; None makes a new figure.
        projection : str, tuple of two ints or array-like, default="auto"
            Two latents; a map of shape (2, latent_dim); ``"discriminant"`` for the axes of Fisher's
            linear discriminant analysis, along which components differ most for their spread, with
            shares of that ratio; ``"principal"`` for those along which latents vary most, with
            shares of the variance. ``"auto"``: two latents as they are; of more the discriminant
            axes, or the principal axes where there are less than three components.
        n_std : sequence of float, default=(1.0, 2.0)
            Standard deviations of the ellipses.
        include_numbers : bool, default=True
            Whether to write the number of each component at its mean.
        scatter_kw : dict, default=None
            Further arguments of ``scatter``.
        ellipse_kw : dict, default=None
            Further arguments of the ellipses.

        Returns
        -------
        LatentSpaceDisplay
            The display itself.
        """
        plane = choose_projection(
            projection, self.latents, self.means, self.covariances, self.weights
        )
        self.projection_, self.center_ = plane.axes, plane.center
        self.figure_, self.ax_ = one_axes(self, ax)
        self._scatter(plane.points(self.latents), scatter_kw)
        self.ellipses_, self.text_ = [], []
        if self.means is not None:
            means, covariances = plane.points(self.means), plane.covariances(self.covariances)
            self._draw_components(means, covariances, n_std, include_numbers, ellipse_kw)
        self.ax_.set(xlabel=plane.names[0], ylabel=plane.names[1])
        return self

    def _scatter(self, points: np.ndarray, scatter_kw: Mapping[str, Any] | None) -> None:
        inches = np.sqrt(np.prod(axes_size(self.ax_)))
        style = {
            "s": float(np.clip(2500 * inches / len(points), 2, 14)),
            "alpha": 0.6,
            "linewidths": 0,
            "rasterized": len(points) > _AS_VECTORS,
        }
        if self.labels is None:
            self.scatter_ = self.ax_.scatter(
                *points.T, **{"color": INK, **style, **(scatter_kw or {})}
            )
            return
        classes, codes = np.unique(self.labels, return_inverse=True)
        if self.labels_are_components:
            codes = self.labels
            n_colors = int(codes.max()) + 1 if self.means is None else len(self.means)
            colors = state_colors(n_colors)
        else:
            colors = state_colors(len(classes))
        # In random order, so that the last label does not cover the others.
        order = np.random.default_rng(0).permutation(len(points))
        style = {"c": colors[codes[order]], **style, **(scatter_kw or {})}
        self.scatter_ = self.ax_.scatter(*points[order].T, **style)
        written = self.labels_are_components and self.means is not None
        if not written:
            dots = [
                self.ax_.plot([], [], "o", markersize=4, color=colors[i])[0]
                for i in (classes if self.labels_are_components else range(len(classes)))
            ]
            legend_above(self.ax_, dots, [str(one) for one in classes])

    def _draw_components(
        self,
        means: np.ndarray,
        covariances: np.ndarray,
        n_std: Sequence[float],
        include_numbers: bool,
        ellipse_kw: Mapping[str, Any] | None,
    ) -> None:
        colored = self.labels is not None and self.labels_are_components
        colors = state_colors(len(means)) if colored else np.zeros((len(means), 3))
        for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
            if self.weights[k] == 0:
                self.ellipses_.append([])
                continue
            keywords = {
                "fill": False,
                "edgecolor": colors[k],
                "linewidth": 1.2 if len(means) <= _FEW else 0.8,
                **(ellipse_kw or {}),
            }
            self.ellipses_.append([ellipse(mean, covariance, n, keywords) for n in n_std])
            for patch in self.ellipses_[-1]:
                self.ax_.add_patch(patch)
            if include_numbers:
                style = {"ha": "center", "va": "center", "weight": "bold", "path_effects": halo()}
                size = "small" if len(means) <= _FEW else "x-small"
                self.text_.append(self.ax_.text(*mean, str(k), fontsize=size, **style))
