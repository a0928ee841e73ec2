# SPDX-License-Identifier: BSD-3-Clause
"""Flow fields."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.plotting import LatentDynamicsDisplay
from sksvae.plotting._flow import (
    arrows,
    displacements,
    first_moves,
    fixed_point,
    nearest_states,
    plane_grid,
)
from sksvae.plotting._palette import state_colors

from .cases import TURN, dynamics

OFFSET = np.array([0.1, 0.2])


def angles(vectors):
    return np.arctan2(vectors[:, 1], vectors[:, 0])


def vectors_of(quiver):
    return np.column_stack([quiver.U, quiver.V])


def test_arrows_point_along_the_steps_of_the_dynamics(rng):
    display = LatentDynamicsDisplay(TURN, OFFSET, [rng.normal(size=(50, 2))]).plot()
    (quiver,) = display.quivers_
    points = np.asarray(quiver.get_offsets())
    steps = points @ TURN.T + OFFSET - points
    drawn = vectors_of(quiver)
    assert_allclose(angles(drawn), angles(steps))
    ratios = np.linalg.norm(drawn, axis=1) / np.linalg.norm(steps, axis=1)
    assert np.sum(np.isclose(ratios, ratios.max())) > len(ratios) / 2  # a common factor, mostly
    assert_allclose(
        display.fixed_points_[0].get_xydata()[0] @ TURN.T + OFFSET,
        display.fixed_points_[0].get_xydata()[0],
    )
    assert display.ax_.get_xlabel() == "latent 0"


def test_arrows_do_not_reach_the_next():
    spacing = np.array([1.0, 0.1])
    steps = np.array([[1.0, 0.0], [2.0, 0.0], [1000.0, 0.0], [0.0, 0.1], [0.0, 0.0]])
    drawn = arrows(steps, spacing)
    assert_allclose(drawn, [[0.5, 0], [0.95, 0], [0.95, 0], [0, 0.05], [0, 0]])
    assert_array_equal(arrows(np.zeros((3, 2)), spacing), np.zeros((3, 2)))


def test_the_grid_covers_the_points():
    grid, spacing = plane_grid(np.array([[0.0, 1.0], [10.0, 1.0]]), 5)
    assert grid.shape == (25, 2)
    assert_allclose(grid[[0, -1]], [[-0.8, 0.2], [10.8, 1.8]])
    assert_allclose(spacing, [2.9, 0.4])


def test_other_latents_are_held_at_their_mean(rng):
    A, b = rng.normal(size=(3, 3)), rng.normal(size=3)
    latents = rng.normal(size=(40, 3))
    points = rng.normal(size=(6, 2))
    steps = displacements(points, A, b, (2, 0), latents.mean(0))
    for point, step in zip(points, steps, strict=True):
        z = np.array([point[1], latents[:, 1].mean(), point[0]])
        assert_allclose(step, (A @ z + b - z)[[2, 0]])
    display = LatentDynamicsDisplay(A, b, [latents], dims=(2, 0)).plot()
    assert display.ax_.get_xlabel() == "latent 2"
    assert display.fixed_points_ == []  # it is not in the slice
    grid = np.asarray(display.quivers_[0].get_offsets())
    expected = displacements(grid, A, b, (2, 0), latents.mean(0))
    assert_allclose(angles(vectors_of(display.quivers_[0])), angles(expected))


def test_fixed_points():
    assert_allclose(fixed_point(0.5 * np.eye(2), OFFSET), 2 * OFFSET)
    assert fixed_point(np.eye(2), OFFSET) is None
    far = LatentDynamicsDisplay(TURN, 100 * OFFSET, [np.eye(2)]).plot()
    assert far.fixed_points_ == []  # out of view


def test_moves():
    parts = [np.arange(8.0).reshape(4, 2), np.array([[9.0, 9.0]])]
    states = [np.array([0, 1, 1, 0]), np.array([1])]
    moves = first_moves(parts, states, 1, 10)
    assert_array_equal(moves[:2], [[0, 1], [2, 3]])
    assert_array_equal(moves[3:5], [[2, 3], [4, 5]])
    assert np.isnan(moves[2::3]).all()
    assert len(moves) == 6
    assert len(first_moves(parts, states, None, 10)) == 9
    assert len(first_moves(parts, states, None, 2)) == 6


def test_panels_of_states(rng):
    X = rng.normal(size=(2, 50, 2))
    display = LatentDynamicsDisplay.from_estimator(dynamics(), X)
    assert [ax.get_title() for ax in display.axes_] == ["state 0", "state 1"]
    for k, A in enumerate((TURN, TURN.T)):
        points = np.asarray(display.quivers_[k].get_offsets())
        steps = points @ A.T + dynamics().offset_[k] - points
        assert_allclose(angles(vectors_of(display.quivers_[k])), angles(steps))
        everything, into = display.trajectories_[k]
        assert everything.get_xdata().size == 3 * 98
        assert into.get_xdata().size == 3 * np.sum((X[:, 1:, 0] > 0) == k)
        assert_array_equal(into.get_color(), state_colors(2)[k])
    only = display.plot(states=[1], display_labels=["a", "b"])
    assert len(only.axes_) == 1
    assert only.trajectories_[0][0].get_xdata().size == 3 * np.sum(X[:, 1:, 0] > 0)


def test_combined(rng):
    X = rng.normal(size=(2, 200, 2))
    display = LatentDynamicsDisplay.from_estimator(dynamics(), X, layout="combined")
    (quiver,) = display.quivers_
    points = np.asarray(quiver.get_offsets())
    left = points[:, 0] < -1  # far from the other state
    steps = points @ TURN.T + dynamics().offset_[0] - points
    assert_allclose(angles(vectors_of(quiver))[left], angles(steps)[left])
    assert_allclose(quiver.get_facecolors()[left, :3], np.tile(state_colors(2)[0], (left.sum(), 1)))
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["0", "1"]


def test_nearest_states():
    points, states = (
        np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [5.0, 5.0]]),
        np.array([1, 1, 0, 2]),
    )
    grid = np.array([[0.0, 0.0], [5.0, 5.0], [10.0, 0.0]])
    assert_array_equal(nearest_states(grid, points, states, np.array([1.0, 1.0])), [1, 2, -1])


def test_fifty_states_show_the_twelve_most_used(rng):
    states = rng.integers(50, size=3000)
    A = np.stack([TURN] * 50)
    display = LatentDynamicsDisplay(
        A, np.zeros((50, 2)), [rng.normal(size=(3000, 2))], states=[states]
    ).plot()
    assert len(display.axes_) == 12
    most = np.sort(np.argsort(-np.bincount(states), kind="stable")[:12])
    assert [ax.get_title() for ax in display.axes_] == [f"state {k}" for k in most]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transition_matrix": np.zeros((2, 3))}, "transition_matrix must have shape"),
        ({"offset": [0.0]}, r"offset must have shape \(1, 2\)"),
        ({"latents": [np.zeros((5, 3))]}, r"latents must have shape \(any, 2\)"),
        ({"latents": []}, "latents must have one or more sequences"),
        ({"states": [[0]]}, "states must have one entry per row of latents"),
        ({"states": [[1, 1, 1, 1, 1]]}, "states must be below 1"),
        ({"dims": (0, 0)}, "dims must be two different latents"),
        ({"dims": (0, 2)}, "dims must be integers below 2"),
        (
            {
                "transition_matrix": np.eye(3),
                "offset": np.zeros(3),
                "latents": [np.zeros((5, 3))],
            },
            r"The flow of 3 latents cannot be drawn in a plane. .*dims=\(0, 1\).*latent_dim=2",
        ),
        (
            {"transition_matrix": np.zeros((2, 2, 2)), "offset": np.zeros((2, 2))},
            "states must be given, as there are 2",
        ),
    ],
)
def test_errors(arguments, message):
    known = {"transition_matrix": TURN, "offset": OFFSET, "latents": [np.zeros((5, 2))]}
    with pytest.raises(ValueError, match=message):
        LatentDynamicsDisplay(**{**known, **arguments})


def test_errors_of_plot():
    display = LatentDynamicsDisplay(TURN, OFFSET, [np.eye(2)])
    with pytest.raises(ValueError, match="layout must be one of"):
        display.plot(layout="round")
    with pytest.raises(ValueError, match="states must be integers below 1"):
        display.plot(states=[1])
    with pytest.raises(ValueError, match="display_labels must have 1 entries"):
        display.plot(display_labels=["a", "b"])
