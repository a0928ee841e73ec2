# SPDX-License-Identifier: BSD-3-Clause
"""What means decode to: images, lines and heat maps."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.plotting import DecodedMeansDisplay

from .cases import dynamics, mixture


def test_images(rng):
    means = rng.normal(size=(7, 6))
    display = DecodedMeansDisplay(means, weights=np.full(7, 1 / 7)).plot(image_shape=(2, 3))
    assert len(display.images_) == 7
    for image, mean in zip(display.images_, means, strict=True):
        assert_array_equal(image.get_array(), mean.reshape(2, 3))
        assert image.get_clim() == (means.min(), means.max())  # of all alike
    assert display.axes_[3].get_title() == "3 (14 %)"
    assert display.lines_ is display.im_ is None


def test_lines_up_to_eight_and_a_heat_map_beyond(rng):
    means = rng.normal(size=(8, 4))
    display = DecodedMeansDisplay(means, feature_names=["a", "b", "c (m)", "d"]).plot()
    assert_array_equal([line.get_ydata() for line in display.lines_], means)
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["a", "b", "c (m)", "d"]
    assert len(display.ax_.get_legend().get_texts()) == 8
    means = rng.normal(size=(9, 4))
    display = DecodedMeansDisplay(means).plot()
    assert_array_equal(display.im_.get_array(), means)
    assert display.ax_.get_xlabel() == "feature"
    assert display.ax_.get_ylim()[0] > display.ax_.get_ylim()[1]  # the first one above
    assert DecodedMeansDisplay(means[:2]).plot(kind="heatmap").im_ is not None
    assert len(DecodedMeansDisplay(means).plot(kind="lines").lines_) == 9


def test_standardised(rng):
    means = rng.normal(size=(9, 4)) * [1, 10, 100, 0] + 5
    display = DecodedMeansDisplay(means).plot(standardize=True)
    shown = np.asarray(display.im_.get_array())
    assert_allclose(shown[:, :3].mean(0), 0, atol=1e-12)
    assert_allclose(shown[:, :3].std(0), 1)
    assert_array_equal(shown[:, 3], 0)
    low, high = display.im_.get_clim()
    assert low == -high == -np.abs(shown).max()


def test_a_mixture_decodes_its_means():
    display = DecodedMeansDisplay.from_estimator(mixture(), display_labels=["left", "right"])
    assert_array_equal(display.decoded_means, mixture().means_ + 1.0)
    names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert names == ["left (60 %)", "right (40 %)"]


def test_states_decode_the_means_of_their_latents(rng):
    X = rng.normal(size=(30, 2))
    display = DecodedMeansDisplay.from_estimator(dynamics(), X)
    negative = X[:, 0] <= 0
    assert_allclose(
        display.decoded_means, 2 * np.stack([X[negative].mean(0), X[~negative].mean(0)])
    )
    only = DecodedMeansDisplay.from_estimator(dynamics(), np.abs(X), display_labels=["-", "+"])
    assert only.display_labels == ["+"]  # the other does not occur
    with pytest.raises(ValueError, match="X must be given: the states of KnownDynamics"):
        DecodedMeansDisplay.from_estimator(dynamics())


def test_one_axes_per_image(rng):
    _, axes = plt.subplots(1, 3)
    display = DecodedMeansDisplay(rng.normal(size=(3, 4))).plot(axes, image_shape=(2, 2))
    assert list(display.axes_) == list(axes)


def test_fifty_images_fit_at_column_width(rng):
    with plt.rc_context({"figure.figsize": (3.4, 2.3)}):
        display = DecodedMeansDisplay(rng.normal(size=(50, 4))).plot(image_shape=(2, 2))
    width, height = display.figure_.get_size_inches()
    assert width == 3.4
    assert height < 6
    grid = display.axes_[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == (7, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoded_means": np.zeros((0, 3))}, "decoded_means is empty"),
        ({"weights": [1.0]}, "weights must have shape"),
        ({"feature_names": ["a"]}, "feature_names must have 3 entries, got 1"),
        ({"display_labels": ["a"]}, "display_labels must have 2 entries, got 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecodedMeansDisplay(**{"decoded_means": np.zeros((2, 3)), **arguments})


def test_errors_of_plot():
    display = DecodedMeansDisplay(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="kind must be one of"):
        display.plot(kind="pie")
    with pytest.raises(ValueError, match="image_shape must be two numbers with product n_feat"):
        display.plot(image_shape=(2, 2))
