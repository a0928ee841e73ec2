# SPDX-License-Identifier: BSD-3-Clause
"""Heat maps of transition probabilities."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.plotting import TransitionMatrixDisplay

from .cases import dynamics

MATRIX = np.array([[0.9, 0.1, 0.0], [0.004, 0.5, 0.496], [0.0, 0.0, 1.0]])


def test_values():
    display = TransitionMatrixDisplay(MATRIX).plot()
    assert_array_equal(display.im_.get_array(), MATRIX)
    written = [[text.get_text() for text in row] for row in display.text_]
    assert written == [[".90", ".10", "0"], ["", ".50", ".50"], ["0", "0", "1"]]
    assert display.im_.get_clim() == (0, 1)
    assert display.ax_.get_ylabel() == "state one step before"
    assert display.colorbar_.ax.get_ylabel() == "transition probability"


def test_logarithmic():
    display = TransitionMatrixDisplay(MATRIX).plot(log=True)
    assert display.im_.get_clim() == (0.004, 1)
    assert_array_equal(display.im_.get_array(), np.maximum(MATRIX, 0.004))
    display.figure_.canvas.draw()
    uniform = TransitionMatrixDisplay(np.full((2, 2), 0.5)).plot(log=True)
    assert uniform.im_.get_clim() == (0.1, 1)


def test_from_estimator():
    display = TransitionMatrixDisplay.from_estimator(
        dynamics(), display_labels=["up", "down"], colorbar=False
    )
    assert_array_equal(display.transition_matrix, [[0.75, 0.25], [0.1, 0.9]])
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["up", "down"]
    assert display.colorbar_ is None
    assert len(display.figure_.axes) == 1


def test_from_predictions():
    sequences = [[0, 0, 1, 1, 1], [1, 0]]
    display = TransitionMatrixDisplay.from_predictions(sequences, n_states=3)
    # No move leads from the end of one to the start of the next.
    assert_allclose(display.transition_matrix, [[0.5, 0.5, 0], [1 / 3, 2 / 3, 0], [np.nan] * 3])
    assert display.text_[2, 0].get_text() == "-"
    display.figure_.canvas.draw()
    grouped = TransitionMatrixDisplay.from_predictions(
        [0, 1, 0, 0, 1, 1, 1], groups=[0, 1, 0, 1, 0, 0, 0], n_states=3
    )
    assert_allclose(grouped.transition_matrix, display.transition_matrix)


def test_values_are_written_up_to_twelve_states(rng):
    assert TransitionMatrixDisplay(np.eye(12)).plot().text_.shape == (12, 12)
    display = TransitionMatrixDisplay(rng.dirichlet(np.ones(50), 50)).plot(log=True)
    assert display.text_ is None
    assert len(display.ax_.get_xticks()) < 15
    assert TransitionMatrixDisplay(np.eye(13)).plot(include_values=True).text_ is not None
    assert TransitionMatrixDisplay(np.eye(2)).plot(include_values=False).text_ is None


def test_text_stands_out_and_fits():
    display = TransitionMatrixDisplay(np.eye(12)).plot()
    assert display.text_[0, 0].get_color() == "white"
    assert display.text_[0, 1].get_color() == "black"
    display.figure_.canvas.draw()
    cell = display.ax_.get_window_extent().width / 12
    assert display.text_[0, 0].get_window_extent().width < cell


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], r"transition_matrix must be square, got shape \(1, 2\)"),
        (np.zeros((0, 0)), "transition_matrix must be square"),
        ([[0.5, 0.6], [0.5, 0.5]], "its rows must sum to 1"),
        ([[1.5, -0.5], [0.5, 0.5]], "transition_matrix must hold probabilities"),
        ([1.0], "transition_matrix must have shape"),
    ],
)
def test_errors(matrix, message):
    with pytest.raises(ValueError, match=message):
        TransitionMatrixDisplay(matrix)


def test_errors_of_predictions():
    with pytest.raises(ValueError, match="n_states=1 must exceed the largest state, 1"):
        TransitionMatrixDisplay.from_predictions([0, 1], n_states=1)
    with pytest.raises(ValueError, match="y_pred must hold numbers of states"):
        TransitionMatrixDisplay.from_predictions([-1, 0])
