# SPDX-License-Identifier: BSD-3-Clause
"""Bars and rasters of states, under signals."""

import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.metrics import match_labels
from sksvae.plotting import SegmentationDisplay
from sksvae.plotting._palette import state_colors

from .cases import dynamics

LABELS = np.array([0, 0, 0, 2, 2, 1, 1, 1, 1, 0])


def boxes(bars):
    """Left, bottom, width and height of each rectangle."""
    corners = np.array([path.vertices[:4] for path in bars.get_paths()])
    low, high = corners.min(1), corners.max(1)
    return np.hstack([low, high - low])


def long_chain(rng, n_steps, n_states, stay):
    moved = rng.random(n_steps) > stay
    moved[0] = True
    return rng.integers(n_states, size=n_steps)[moved][np.cumsum(moved) - 1]


def test_bars_are_as_wide_as_stretches_are_long():
    display = SegmentationDisplay.from_predictions(LABELS)
    (bars,) = display.bars_
    found = boxes(bars)
    assert_array_equal(found[:, 0], [-0.5, 2.5, 4.5, 8.5])
    assert_array_equal(found[:, 2], [3, 2, 4, 1])
    assert_array_equal(bars.get_facecolors()[:, :3], state_colors(3)[[0, 2, 1, 0]])
    assert display.ax_.get_xlim() == (-0.5, 9.5)
    assert display.ax_.get_xlabel() == "step"
    assert [text.get_text() for text in display.legend_.get_texts()] == ["0", "1", "2"]
    assert [text.get_text() for text in display.ax_.texts] == ["0", "2", "1", "0"]


def test_names_are_written_where_they_fit():
    labels = np.repeat([0, 1, 0], [500, 3, 497])
    display = SegmentationDisplay.from_predictions(labels, display_labels=["rest", "blink"])
    assert [text.get_text() for text in display.ax_.texts] == ["rest", "rest"]
    assert [text.get_text() for text in display.legend_.get_texts()] == ["rest", "blink"]


def test_times():
    times = 0.25 * np.arange(10)
    display = SegmentationDisplay.from_predictions(LABELS, times=times, time_label="time (s)")
    assert_allclose(boxes(display.bars_[0])[:, 2], [0.75, 0.5, 1.0, 0.25])
    assert display.ax_.get_xlabel() == "time (s)"
    dates = np.datetime64("2020-01-30") + np.arange(10)
    display = SegmentationDisplay.from_predictions(LABELS, times=dates)
    display.figure_.canvas.draw()
    assert "Feb" in "".join(label.get_text() for label in display.ax_.get_xticklabels())


def test_true_states_have_the_colours_that_they_match():
    truth = np.array(list("wwwrrsssss"))
    display = SegmentationDisplay.from_predictions(LABELS, y_true=truth)
    assert_array_equal(display.true_states[0], [0, 0, 0, 2, 2, 1, 1, 1, 1, 1])
    assert display.true_labels == ["w", "s", "r"]
    assert_array_equal(boxes(display.true_bars_[0])[:, 2], [3, 2, 5])
    assert [ax.get_ylabel() for ax in display.axes_] == ["true", "predicted"]
    assert [text.get_text() for text in display.axes_[0].texts] == ["w", "r", "s"]


def test_the_matching_is_over_all_sequences(rng):
    states = rng.integers(4, size=(3, 50))
    truth = np.where(rng.random((3, 50)) < 0.2, rng.integers(4, size=(3, 50)), (states + 1) % 4)
    display = SegmentationDisplay.from_predictions(states, y_true=truth)
    expected = match_labels(states.ravel(), truth.ravel())
    assert_array_equal(np.concatenate(display.true_states), expected)


def test_true_states_without_a_match_come_last():
    display = SegmentationDisplay.from_predictions([0, 0, 1, 1], y_true=[5, 5, 6, 7], n_states=3)
    assert_array_equal(display.true_states[0], [0, 0, 1, 3])  # 2 is a state that is not in use
    assert [text.get_text() for text in display.legend_.get_texts()] == ["0", "1", "2", "3"]


def test_panels_of_sequences():
    X = [np.ones((10, 2)), np.ones((6, 2)), np.ones((3, 2))]
    states = [LABELS, LABELS[:6], LABELS[:3]]
    display = SegmentationDisplay.from_predictions(states, X=X, y_true=states, sequences=[0, 2])
    assert len(display.axes_) == 6
    assert len(display.bars_) == len(display.true_bars_) == len(display.signals_) == 2
    assert display.axes_[3].get_title(loc="right") == "sequence 2"
    assert_array_equal(boxes(display.bars_[1])[:, 2], [3])
    assert display.axes_[-1].get_xlim() == (-0.5, 9.5)
    many = SegmentationDisplay.from_predictions(np.zeros((9, 5), dtype=int))
    assert len(many.axes_) == 4


def test_signals(rng):
    X = rng.normal(size=(10, 1))
    display = SegmentationDisplay.from_predictions(LABELS, X=X, feature_names=["GDP (%)"])
    assert_array_equal(display.signals_[0][0].get_ydata(), X[:, 0])
    assert display.ax_.get_ylabel() == "GDP (%)"
    X = rng.normal(size=(10, 3)) * [1, 10, 100]
    X[4, 1] = np.nan
    display = SegmentationDisplay.from_predictions(LABELS, X=X, feature_names=list("abc"))
    lines = display.signals_[0]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == list("abc")
    for i, line in enumerate(lines):  # at their own scales, at their own heights
        drawn, seen = line.get_ydata(), ~np.isnan(X[:, i])
        assert np.isnan(drawn[4]) == (i == 1)
        assert np.abs(drawn[seen] + i).max() < 0.7
        assert np.corrcoef(drawn[seen], X[seen, i])[0, 1] > 0.99
    X = rng.normal(size=(10, 13))
    display = SegmentationDisplay.from_predictions(LABELS, X=X)
    assert isinstance(display.signals_[0], QuadMesh)
    assert display.signals_[0].get_array().shape == (13, 10)
    overlay = SegmentationDisplay.from_predictions(LABELS, X=X, signals="overlay")
    assert len(overlay.signals_[0]) == 13


@pytest.mark.parametrize("form", ["array", "list", "groups", "index"])
def test_from_estimator(rng, form):
    X = rng.normal(size=(2, 8, 3))
    truth = np.where(X[..., 0] > 0, "up", "down")
    table, ids = X.swapaxes(0, 1).reshape(-1, 3), np.tile([0, 1], 8)  # rows in turn
    in_turn = truth.T.ravel()
    groups = None
    if form == "list":
        X, truth = list(X), list(truth)
    elif form == "groups":
        X, truth, groups = pd.DataFrame(table, columns=list("abc")), in_turn, ids
    elif form == "index":
        index = pd.MultiIndex.from_arrays([ids, np.repeat(np.arange(8), 2)])
        X, truth = pd.DataFrame(table, index=index), in_turn
    display = SegmentationDisplay.from_estimator(dynamics(), X, y_true=truth, groups=groups)
    for states, matched in zip(display.states, display.true_states, strict=True):
        assert_array_equal(states, matched)
    assert display.true_labels == ["down", "up"]
    assert len(display.axes_) == 6


def test_rows_without_order_are_no_recording(rng):
    with pytest.raises(ValueError, match="X has no sequence of more than one step"):
        SegmentationDisplay.from_estimator(dynamics(rows_="independent"), rng.normal(size=(20, 2)))


def test_states_may_have_names_and_not_occur():
    display = SegmentationDisplay.from_predictions([0, 0, 1], display_labels=["rest", "run", "hop"])
    assert display.n_states == 3


def test_fifty_states_have_rows(rng):
    labels = long_chain(rng, 600, 50, 0.9)
    display = SegmentationDisplay.from_predictions(labels, n_states=50)
    found = boxes(display.bars_[0])
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    assert_array_equal(found[:, 0], starts - 0.5)
    assert_array_equal(found[:, 1] + 0.5, labels[starts])
    assert display.legend_ is None
    assert display.ax_.get_ylim() == (49.5, -0.5)
    assert len(SegmentationDisplay.from_predictions(labels, kind="bar").legend_.get_texts()) == 50
    assert boxes(SegmentationDisplay.from_predictions(LABELS, kind="raster").bars_[0])[1, 1] == 1.5


def test_a_long_recording_is_quick(rng):
    labels = long_chain(rng, 100_000, 50, 0.9)
    X = rng.normal(size=(100_000, 12))
    start = time.perf_counter()
    display = SegmentationDisplay.from_predictions(labels, X=X)
    display.figure_.canvas.draw()
    assert time.perf_counter() - start < 5
    assert len(display.bars_[0].get_paths()) <= 2000
    assert all(line.get_xdata().size == 4000 for line in display.signals_[0])
    assert_allclose(boxes(display.bars_[0])[:, 2].sum(), 100_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y_pred": [0.5]}, "states.* must hold numbers of states"),
        ({"n_states": 2}, "n_states=2 must exceed the largest state, 2"),
        ({"X": np.zeros((9, 2))}, r"signals must have one entry per state, .*\[10\].*\[9\]"),
        ({"y_true": [0, 1]}, "true_states must have one entry per state"),
        ({"display_labels": ["a"]}, "display_labels must have 3 entries"),
        ({"X": np.zeros((10, 2)), "feature_names": ["a"]}, "feature_names must have 2 entries"),
        ({"times": [1.0]}, "times must have shape"),
        ({"sequences": [1]}, "sequences must be integers below 1"),
        ({"kind": "pie"}, "kind must be one of"),
        ({"signals": "pie"}, "signals must be one of"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationDisplay.from_predictions(**{"y_pred": LABELS, **arguments})
