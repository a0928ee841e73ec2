# SPDX-License-Identifier: BSD-3-Clause
"""Display of how latents move, as a flow field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sksvae.plotting._checks import (
    check_estimator_has,
    checked_array,
    checked_indices,
    checked_labels,
    checked_names,
    checked_option,
)
from sksvae.plotting._figures import INK, axes_size, legend_above, many_axes, require_pyplot
from sksvae.plotting._flow import (
    arrows,
    displacements,
    first_moves,
    fixed_point,
    nearest_states,
    plane_grid,
)
from sksvae.plotting._palette import state_colors
from sksvae.plotting._reading import ask, read, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 12  # states that are drawn unasked
_PANEL_INCHES, _MOST_COLUMNS = 1.05, 4
_TALLEST = 1.3  # height of a panel as a share of its width
_ARROWS = 6.0  # per inch
_MOST_STRETCHED = 3.0  # ratio of ranges, up to which both latents have the same scale
_SHARED = {"sharex": True, "sharey": True}


class LatentDynamicsDisplay:
    """Flow field of linear dynamics over two latents, under the trajectories of data.

    An arrow at ``z`` points along the step ``A z + b - z`` that the dynamics take there. Each state
    has a panel, with the moves into that state in its colour; or all share one, where the flow is
    that of the state that most latents around are in. Use `from_estimator` to make one.

    Parameters
    ----------
    transition_matrix : array-like of shape (n_states, latent_dim, latent_dim) or \
            (latent_dim, latent_dim)
        ``A`` of each state, or of the only one.
    offset : array-like of shape (n_states, latent_dim) or (latent_dim,)
        ``b``.
    latents : list of array-like of shape (n_timesteps, latent_dim)
        Trajectories: latents of each sequence.
    states : list of array-like of int of shape (n_timesteps,), default=None
        States of each sequence; None if there is only one.
    dims : tuple of two ints, default=None
        Latents to draw, if there are more than two. The flow then is a slice: all other latents
        are held at their mean over the trajectories, which are projected.

    Attributes
    ----------
    transition_matrix, offset, latents, states, dims
        As given, as arrays and lists, with the axis of states.
    quivers_ : list of Quiver
        Arrows of each panel.
    trajectories_ : list of list of Line2D
        In each panel, all trajectories and the moves into its state; or the moves into each state.
    fixed_points_ : list of Line2D
        Points of the states that were drawn, at which they do not move, where they are in view.
    ax_ : Axes
        Axes with the first panel.
    axes_ : ndarray of Axes
        All axes that are in use.
    figure_ : Figure
        Their figure.

    See Also
    --------
    LatentSpaceDisplay : Latents without their order.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.plotting import LatentDynamicsDisplay
    >>> turn = [[0.9, -0.3], [0.3, 0.9]]
    >>> path = np.cumsum(np.ones((20, 2)), axis=0)
    >>> display = LatentDynamicsDisplay(turn, [0.0, 0.0], [path]).plot()
    >>> len(display.axes_)
    1
    """

    def __init__(
        self,
        transition_matrix: ArrayLike,
        offset: ArrayLike,
        latents: Sequence[ArrayLike],
        *,
        states: Sequence[ArrayLike] | None = None,
        dims: tuple[int, int] | None = None,
    ):
        A = np.asarray(transition_matrix)
        A = checked_array(A[None] if A.ndim == 2 else A, "transition_matrix", (None, None, None))
        n_states, dim, _ = A.shape
        self.transition_matrix = checked_array(A, "transition_matrix", (n_states, dim, dim))
        self.offset = checked_array(np.atleast_2d(offset), "offset", (n_states, dim))
        self.latents = [checked_array(part, "latents", (None, dim)) for part in latents]
        if not self.latents or not all(len(part) for part in self.latents):
            raise ValueError("latents must have one or more sequences, none without steps.")
        if states is None:
            if n_states > 1:
                raise ValueError(f"states must be given, as there are {n_states}.")
            states = [np.zeros(len(part), dtype=int) for part in self.latents]
        self.states = [checked_labels(part, "states") for part in states]
        if [part.size for part in self.states] != [len(part) for part in self.latents]:
            raise ValueError("states must have one entry per row of latents.")
        if max(part.max() for part in self.states) >= n_states:
            raise ValueError(f"states must be below {n_states}, the number of states.")
        if dims is None and dim != 2:
            raise ValueError(
                f"The flow of {dim} latents cannot be drawn in a plane. Choose two with dims, for "
                "instance dims=(0, 1), for a slice at the mean of the others; or fit with "
                "latent_dim=2."
            )
        self.dims = (0, 1) if dims is None else tuple(checked_indices(dims, dim, "dims"))
        if len(set(self.dims)) != 2 or len(self.dims) != 2:
            raise ValueError(f"dims must be two different latents, got {dims!r}.")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        groups: ArrayLike | None = None,
        dims: tuple[int, int] | None = None,
        ax: Axes | Sequence[Axes] | None = None,
        **plot_kw: Any,
    ) -> Self:
        """Draw the dynamics that an estimator has learned, and the latents of data.

        Parameters
        ----------
        estimator : object
            Fitted estimator with ``transition_matrix_`` and ``offset_``.
        X : array-like
            Sequences in any form that it accepts.
        groups : array-like of shape (n_rows,), default=None
            Sequence that each row of a table belongs to.
        dims : tuple of two ints, default=None
            Latents to draw, if there are more than two: a slice at the mean of the others.
        ax : Axes or array-like of Axes, default=None
            Where to draw, see `plot`.
        **plot_kw : dict
            Further arguments of `plot`.

        Returns
        -------
        LatentDynamicsDisplay
            The display, drawn.
        """
        check_estimator_has(estimator, "transition_matrix_", "offset_", "transform", "rows_")
        data = read(estimator, X, groups)
        latents = split(data, ask(estimator, "transform", X, groups, data))
        states = None
        if np.ndim(estimator.transition_matrix_) == 3:
            states = split(data, ask(estimator, "predict", X, groups, data))
        display = cls(
            estimator.transition_matrix_, estimator.offset_, latents, states=states, dims=dims
        )
        return display.plot(ax, **plot_kw)

    def plot(
        self,
        ax: Axes | Sequence[Axes] | None = None,
        *,
        layout: str = "panels",
        states: ArrayLike | None = None,
        n_arrows: int | None = None,
        display_labels: Sequence[str] | None = None,
        n_steps: int = 500,
        quiver_kw: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the flow field.

        Parameters
        ----------
        ax : Axes or array-like of Axes, default=None
            Axes to draw in; a single one is divided if there is more than one panel. None makes a
            new figure.
        layout : {"panels", "combined"}, default="panels"
            Whether each state has a panel of its own, or all share one.
        states : array-like of int, default=None
            States to draw; None for the most used ones, at most twelve, that occur.
        n_arrows : int, default=None
            Arrows along each side; None for about six per inch.
        display_labels : sequence of str of shape (n_states,), default=None
            Names of the states; None for their numbers.
        n_steps : int, default=500
            Most moves that are drawn of each state: the first ones.
        quiver_kw : dict, default=None
            Further arguments of ``quiver``.

        Returns
        -------
        LatentDynamicsDisplay
            The display itself.

        Notes
        -----
        In a panel all arrows are scaled by a common factor, and those that would reach the next
        are cut.
        """
        checked_option(layout, "layout", ("panels", "combined"))
        n_states = len(self.transition_matrix)
        self._names = checked_names(display_labels, n_states, "display_labels")
        self._points = [part[:, list(self.dims)] for part in self.latents]
        used = self._used(states)
        extent = np.ptp(np.concatenate(self._points), axis=0)
        ratio = extent[1] / extent[0] if extent.all() else np.inf
        is_even = 1 / _MOST_STRETCHED < ratio < _MOST_STRETCHED
        n_panels = len(used) if layout == "panels" else 1
        n_rows, n_columns, inches = self._arrange(ax, n_panels)
        height = inches * min(ratio, _TALLEST) if is_even else 0.7 * inches
        height = None if n_panels == 1 else 0.5 + n_rows * (height + 0.25)
        shape = n_rows, n_columns
        self.figure_, axes, _ = many_axes(self, ax, shape, height=height, **_SHARED)
        for one in axes.ravel()[n_panels:]:
            one.set_visible(False)
        self.axes_, self.ax_ = axes.ravel()[:n_panels], axes[0, 0]
        n_arrows = n_arrows or int(np.clip(_ARROWS * inches, 7, 24))
        self._grid, self._spacing = plane_grid(np.concatenate(self._points), n_arrows)
        self._n_steps = n_steps
        self.quivers_, self.trajectories_, self.fixed_points_ = [], [], []
        if layout == "panels":
            for one, k in zip(self.axes_, used, strict=True):
                self._draw_state(one, k, n_panels > 1, quiver_kw)
        else:
            self._draw_combined(used, quiver_kw)
        (left, bottom), (right, top) = self._grid[0], self._grid[-1]
        for i, one in enumerate(self.axes_):
            one.set(xlim=(left, right), ylim=(bottom, top), aspect="equal" if is_even else "auto")
            if n_panels > 1:
                one.locator_params(nbins=4)
            if i + n_columns >= n_panels:
                one.set_xlabel(f"latent {self.dims[0]}")
                one.tick_params(labelbottom=True)
            if i % n_columns == 0:
                one.set_ylabel(f"latent {self.dims[1]}")
        return self

    def _used(self, states: ArrayLike | None) -> list[int]:
        """States to draw, in their order."""
        n_states = len(self.transition_matrix)
        if states is not None:
            return sorted(set(checked_indices(states, n_states, "states")))
        counts = np.bincount(np.concatenate(self.states), minlength=n_states)
        most = np.argsort(-counts, kind="stable")[:_MOST_PANELS]
        return sorted(most[counts[most] > 0].tolist())

    def _arrange(self, ax: Any, n_panels: int) -> tuple[int, int, float]:
        """Rows and columns of panels, and the width of a panel in inches."""
        plt = require_pyplot(self)
        if isinstance(ax, list | tuple | np.ndarray):
            return 1, n_panels, axes_size(np.ravel(ax)[0])[0]
        width = plt.rcParams["figure.figsize"][0] if ax is None else axes_size(ax)[0]
        n_columns = int(np.clip(width / _PANEL_INCHES, 1, min(n_panels, _MOST_COLUMNS)))
        n_rows = -(-n_panels // n_columns)
        n_columns = -(-n_panels // n_rows)
        return n_rows, n_columns, 0.85 * width / n_columns

    def _draw_state(
        self, ax: Axes, k: int, several: bool, quiver_kw: Mapping[str, Any] | None
    ) -> None:
        """Flow of a state, and the moves into it."""
        color = state_colors(len(self.transition_matrix))[k]
        steps = self._steps(k)
        self._add_arrows(ax, self._grid, arrows(steps, self._spacing), INK, quiver_kw)
        path = {"linewidth": 0.4, "color": "0.85", "zorder": 1}
        lines = ax.plot(*self._moves(None), **path) if several else []
        path |= {"linewidth": 0.7, "alpha": 0.5}
        lines += ax.plot(*self._moves(k), **{**path, "color": color})
        self.trajectories_.append(lines)
        self._add_fixed_point(ax, k, color)
        if several:
            ax.set_title(f"state {self._names[k]}", fontsize="small", pad=3)

    def _draw_combined(self, used: list[int], quiver_kw: Mapping[str, Any] | None) -> None:
        """Flow of the state that is most frequent around."""
        points, states = np.concatenate(self._points), np.concatenate(self.states)
        drawn = np.isin(states, used)
        nearest = nearest_states(self._grid, points[drawn], states[drawn], self._spacing)
        steps = np.zeros_like(self._grid)
        for k in used:
            steps[nearest == k] = self._steps(k)[nearest == k]
        there = nearest >= 0
        colors = state_colors(len(self.transition_matrix))
        lines = []
        for k in used:
            style = {"linewidth": 0.5, "alpha": 0.4, "color": colors[k], "zorder": 1}
            lines += self.ax_.plot(*self._moves(k), **style)
            self._add_fixed_point(self.ax_, k, colors[k])
        self.trajectories_.append(lines)
        self._add_arrows(
            self.ax_,
            self._grid[there],
            arrows(steps[there], self._spacing),
            colors[nearest[there]],
            quiver_kw,
        )
        patches = [self.ax_.plot([], [], color=colors[k], linewidth=3)[0] for k in used]
        legend_above(self.ax_, patches, [self._names[k] for k in used])

    def _steps(self, k: int) -> np.ndarray:
        """Steps of a state at the grid."""
        mean = np.concatenate(self.latents).mean(axis=0)
        A, b = self.transition_matrix[k], self.offset[k]
        return displacements(self._grid, A, b, self.dims, mean)

    def _moves(self, k: int | None) -> np.ndarray:
        return first_moves(self._points, self.states, k, self._n_steps).T

    def _add_arrows(
        self,
        ax: Axes,
        points: np.ndarray,
        vectors: np.ndarray,
        color: Any,
        quiver_kw: Mapping[str, Any] | None,
    ) -> None:
        keywords = {"color": color, "width": 0.008, "zorder": 2, **(quiver_kw or {})}
        units = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "units": "inches"}
        self.quivers_.append(ax.quiver(*points.T, *vectors.T, **{**units, **keywords}))

    def _add_fixed_point(self, ax: Axes, k: int, color: np.ndarray) -> None:
        """Mark where the state stays, if that is one point and in view."""
        if self.transition_matrix.shape[1] != 2:
            return  # of a slice, it is not where the slice stays
        point = fixed_point(self.transition_matrix[k], self.offset[k])
        if point is None:
            return
        point = point[list(self.dims)]
        if np.all(self._grid[0] <= point) and np.all(point <= self._grid[-1]):
            style = {"markersize": 7, "markeredgecolor": "white", "zorder": 4}
            self.fixed_points_ += ax.plot(*point, "X", color=color, **style)
