# SPDX-License-Identifier: BSD-3-Clause
"""Axes that are made, divided or given, and what stands around them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from sksvae.plotting import BoundDisplay, TransitionMatrixDisplay
from sksvae.plotting._figures import legend_above, many_axes, name_ticks, one_axes
from sksvae.plotting._palette import OKABE_ITO, state_colors, text_color

DISPLAY = BoundDisplay([1.0])


def test_new_figures_have_the_width_of_rcparams():
    with plt.rc_context({"figure.figsize": (3.4, 2.0)}):
        figure, _ = one_axes(DISPLAY, None, aspect=0.5)
        assert figure.get_size_inches().tolist() == [3.4, 1.7]
        figure, axes, _ = many_axes(DISPLAY, None, (2, 3), height=4.0)
        assert figure.get_size_inches().tolist() == [3.4, 4.0]
        assert axes.shape == (2, 3)
        figure, _, _ = many_axes(DISPLAY, None, (2, 1), least_height=3.0)
        assert figure.get_size_inches()[1] == 3.0


def test_axes_may_be_given_as_an_array():
    _, given = plt.subplots(2)
    display = BoundDisplay([1.0, 2.0], terms={"local_kl": [0.0, 1.0]}).plot(given)
    assert list(display.axes_) == list(given)


def test_shared_axes_in_divided_ones():
    figure, ax = plt.subplots()
    _, axes, bounding = many_axes(DISPLAY, ax, (2, 2), sharex=True, sharey=True)
    assert bounding is ax
    assert axes[0, 0].get_shared_x_axes().joined(axes[0, 0], axes[1, 1])
    figure.canvas.draw()
    assert not any(label.get_visible() for label in axes[0, 0].get_xticklabels())
    assert not any(label.get_visible() for label in axes[0, 1].get_yticklabels())
    assert any(label.get_visible() for label in axes[1, 0].get_yticklabels())


def test_a_subfigure():
    left, right = plt.figure().subfigures(1, 2)
    display = BoundDisplay([1.0, 2.0], terms={"local_kl": [0.0, 1.0]}).plot(right.subplots())
    assert display.figure_ is right
    assert not left.axes


@pytest.mark.parametrize("ax", ["here", 1, [1, 2], [None, None]])
def test_what_is_no_axes(ax):
    with pytest.raises(TypeError, match="ax must be matplotlib Axes, got"):
        BoundDisplay([1.0, 2.0], terms={"local_kl": [0.0, 1.0]}).plot(ax)
    with pytest.raises(TypeError, match="ax must be matplotlib Axes, got"):
        TransitionMatrixDisplay(np.eye(2)).plot(ax)


def test_the_wrong_number_of_axes():
    _, axes = plt.subplots(3)
    with pytest.raises(ValueError, match=r"ax must be one Axes or 2 of them \(2 rows and 1 col"):
        BoundDisplay([1.0, 2.0], terms={"local_kl": [0.0, 1.0]}).plot(axes)


def test_axes_that_cannot_be_divided():
    ax = plt.figure().add_axes([0, 0, 1, 1])
    with pytest.raises(ValueError, match="ax cannot be divided into panels"):
        BoundDisplay([1.0, 2.0], terms={"local_kl": [0.0, 1.0]}).plot(ax)


def test_legends_cover_no_data():
    figure, ax = plt.subplots(figsize=(3.4, 2.0), layout="constrained")
    lines = [ax.plot([0, 1])[0] for _ in range(12)]
    legend = legend_above(ax, lines, [f"a long name {i}" for i in range(12)])
    figure.canvas.draw()
    assert legend.get_window_extent().y0 >= ax.get_window_extent().y1
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_ticks_have_names_where_there_is_room():
    _, ax = plt.subplots(figsize=(3.4, 2.0))
    ax.set_xlim(0, 49)
    name_ticks(ax.xaxis, [str(i) for i in range(50)])
    assert len(ax.get_xticks()) < 12
    assert np.all(ax.get_xticks() == np.round(ax.get_xticks()))
    name_ticks(ax.xaxis, ["a", "b"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert ax.get_xticklabels()[0].get_rotation() == 0
    name_ticks(ax.xaxis, ["sepal length (cm)", "sepal width (cm)", "petal length (cm)"])
    assert ax.get_xticklabels()[0].get_rotation() == 45


def test_eight_colours_are_those_of_okabe_and_ito():
    assert len(set(OKABE_ITO)) == 8
    np.testing.assert_allclose(state_colors(2)[0], [0, 0x72 / 255, 0xB2 / 255])


@pytest.mark.parametrize("n_states", [9, 20, 50])
def test_more_colours_differ_in_lightness(n_states):
    luminance = state_colors(n_states) ** 2.2 @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance) > 0)
    assert luminance[-1] < 0.8


def test_text_stands_out():
    assert text_color([1, 1, 1]) == "black"
    assert text_color([0, 0, 0.5]) == "white"
