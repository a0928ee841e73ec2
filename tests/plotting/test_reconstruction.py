# SPDX-License-Identifier: BSD-3-Clause
"""Data beside their reconstructions."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sksvae.plotting import ReconstructionDisplay

from .cases import dynamics, mixture


def test_images(rng):
    X = rng.normal(size=(30, 6))
    display = ReconstructionDisplay.from_predictions(X, 2 * X, image_shape=(2, 3), rows=[4, 7, -1])
    assert display.images_.shape == display.axes_.shape == (2, 3)
    for column, row in enumerate([4, 7, 29]):
        assert_array_equal(display.images_[0, column].get_array(), X[row].reshape(2, 3))
        assert_array_equal(display.images_[1, column].get_array(), 2 * X[row].reshape(2, 3))
    limits = {image.get_clim() for image in display.images_.ravel()}
    assert len(limits) == 1
    assert [ax.get_ylabel() for ax in display.axes_[:, 0]] == ["data", "decoded"]
    assert display.plot(image_shape=(2, 3)).images_.shape == (2, 10)


def test_lines_over_features(rng):
    X = rng.normal(size=(30, 4))
    X[0, 1] = np.nan
    reconstruction = rng.normal(size=(30, 4))
    display = ReconstructionDisplay.from_predictions(
        X, reconstruction, feature_names=["a (m)", "b", "c", "d"]
    )
    assert [ax.get_ylabel() for ax in display.axes_] == ["row 0", "row 10", "row 19", "row 29"]
    assert_array_equal(display.lines_[1].get_ydata(), reconstruction[10])
    assert_array_equal(display.observed_lines_[0].get_ydata(), X[0])
    assert display.axes_[-1].get_xticklabels()[0].get_text() == "a (m)"
    assert len(display.plot(rows=3).lines_) == 1


def test_lines_and_heat_maps_over_steps(rng):
    X = rng.normal(size=(30, 8))
    display = ReconstructionDisplay(X, 2 * X)
    display.plot(over="steps")
    assert_array_equal(display.meshes_[1].get_array(), 2 * X.T)
    assert [ax.get_title(loc="left") for ax in display.axes_] == ["data", "reconstruction"]
    display.plot(over="steps", features=[2], times=0.1 * np.arange(30), time_label="time (s)")
    assert_array_equal(display.lines_[0].get_ydata(), 2 * X[:, 2])
    assert display.axes_[0].get_xlabel() == "time (s)"
    assert display.bands_ == []


def test_from_estimator(rng):
    X = rng.normal(size=(3, 20, 2))
    display = ReconstructionDisplay.from_estimator(dynamics(), X, sequence=2)
    assert_array_equal(display.X, X[2])
    assert_array_equal(display.reconstruction, 2 * X[2])
    assert len(display.lines_) == 2  # one per feature, over steps
    display = ReconstructionDisplay.from_estimator(mixture(), X[0])
    assert_array_equal(display.reconstruction, X[0] + 1)
    assert len(display.lines_) == 4  # one per row, over features


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": np.zeros((0, 2))}, "X is empty"),
        ({"reconstruction": np.zeros((2, 3))}, r"reconstruction must have shape \(3, 2\)"),
        ({"feature_names": ["a"]}, "feature_names must have 2 entries"),
        ({"over": "time"}, "over must be one of"),
        ({"rows": [3]}, "rows must be integers below 3"),
        ({"image_shape": (2, 2)}, "image_shape must be two numbers with product n_features=2"),
        ({"over": "steps", "times": [0.0]}, "times must have shape"),
        ({"over": "steps", "features": "x"}, "features has 'x'"),
    ],
)
def test_errors(arguments, message):
    known = {"X": np.zeros((3, 2)), "reconstruction": np.zeros((3, 2))}
    with pytest.raises(ValueError, match=message):
        ReconstructionDisplay.from_predictions(**{**known, **arguments})
