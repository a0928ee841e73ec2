# SPDX-License-Identifier: BSD-3-Clause
"""Shares and dwell times of states."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.plotting import StateUsageDisplay

from .cases import dynamics, mixture

LABELS = [[0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


def test_shares_and_dwell_times():
    display = StateUsageDisplay.from_predictions(LABELS, n_states=3)
    assert_allclose(display.usage, [9 / 12, 3 / 12, 0])
    assert [times.tolist() for times in display.dwell_times] == [[3, 2, 4], [1, 2], []]
    assert_allclose([bar.get_height() for bar in display.bars_], display.usage)
    assert_array_equal(display.medians_.get_xdata(), [0, 1])  # the third has none
    assert_allclose(display.medians_.get_ydata(), [3, 1.5])
    ranges = np.array([path.vertices[:, 1] for path in display.ranges_.get_paths()])
    assert_allclose(ranges, [[2, 4], [1, 2]])
    quartiles = np.array([path.vertices[:, 1] for path in display.quartiles_.get_paths()])
    assert_allclose(quartiles, [[2.5, 3.5], [1.25, 1.75]])
    assert display.expected_ is None
    assert display.axes_[1].get_yscale() == "log"


def test_ends_that_were_not_seen_can_be_left_out():
    display = StateUsageDisplay.from_predictions(LABELS, drop_ends=True)
    assert [times.tolist() for times in display.dwell_times] == [[], [1]]
    assert_allclose(display.usage, [9 / 12, 3 / 12])
    nothing = StateUsageDisplay.from_predictions([0, 0, 0], drop_ends=True)
    nothing.figure_.canvas.draw()
    assert nothing.medians_.get_ydata().size == 0


def test_units():
    display = StateUsageDisplay.from_predictions(LABELS, timestep=0.5, time_unit="s")
    assert_allclose(display.medians_.get_ydata(), [1.5, 0.75])
    assert display.axes_[1].get_ylabel() == "dwell time (s)"
    with pytest.raises(ValueError, match="timestep must be positive, got 0"):
        display.plot(timestep=0)


def test_from_estimator(rng):
    X = rng.normal(size=(2, 30, 2))
    display = StateUsageDisplay.from_estimator(dynamics(), X)
    assert_allclose(display.usage, [np.mean(X[..., 0] <= 0), np.mean(X[..., 0] > 0)])
    assert sum(times.sum() for times in display.dwell_times) == 60
    assert_allclose(display.expected_.get_ydata(), [4.0, 10.0])  # 1 / (1 - staying)
    names = [text.get_text() for text in display.axes_[1].get_legend().get_texts()]
    assert names == ["median", "expected mean"]


def test_components_have_shares_only(rng):
    X = rng.normal(size=(30, 2))
    display = StateUsageDisplay.from_estimator(mixture(), X, display_labels=["a", "b"])
    assert_allclose(display.usage, [np.mean(X[:, 0] > 0), np.mean(X[:, 0] <= 0)])
    assert display.dwell_times is display.medians_ is None
    assert display.axes_.shape == (1,)
    assert display.ax_.get_ylabel() == "share of rows"
    assert display.ax_.get_xlabel() == "component"
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["a", "b"]


def test_fifty_states(rng):
    display = StateUsageDisplay.from_predictions(rng.integers(50, size=5000))
    display.figure_.canvas.draw()
    assert len(display.bars_) == 50
    assert len(display.axes_[1].get_xticks()) < 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "usage must hold the shares"),
        (([-0.1, 1.1],), "usage must hold the shares of one or more states, none negative"),
        (([1.0], [[1], [2]]), "dwell_times must have 1 entries, got 2"),
        (([1.0], [[0]]), "dwell_times must be positive"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        StateUsageDisplay(*arguments)


def test_other_errors():
    with pytest.raises(ValueError, match=r"expected_dwell_times must have shape \(1,\)"):
        StateUsageDisplay([1.0], expected_dwell_times=[1.0, 2.0])
    with pytest.raises(ValueError, match="n_states=1 must exceed the largest state, 1"):
        StateUsageDisplay.from_predictions(LABELS, n_states=1)
    with pytest.raises(ValueError, match="y_pred must hold numbers of states"):
        StateUsageDisplay.from_predictions([0.5])
