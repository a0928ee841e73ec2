# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of any form, and answers about them."""

import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics
from sksvae.plotting import ForecastDisplay
from sksvae.plotting._checks import (
    checked_array,
    checked_image_shape,
    checked_indices,
    checked_labels,
    checked_names,
    checked_option,
)
from sksvae.plotting._reading import ask, one_sequence, read, split, split_labels

from .cases import dynamics, mixture
from .conftest import TINY

X = np.arange(24.0).reshape(2, 6, 2) - 7.0
STACKED = X.reshape(12, 2)
IN_TURN = np.arange(12).reshape(2, 6).T.ravel()  # rows of both sequences in turn
GROUPS = np.tile([0, 1], 6)
FORMS = {
    "array": (X, None),
    "list": (list(X), None),
    "groups": (STACKED[IN_TURN], GROUPS),
    "frame": (pd.DataFrame(STACKED[IN_TURN], columns=["a", "b"]), GROUPS),
    "index": (pd.DataFrame(STACKED, index=pd.MultiIndex.from_product([[0, 1], range(6)])), None),
}


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_stacked(form):
    data, groups = FORMS[form]
    sequences = read(dynamics(), data, groups)
    assert_array_equal(sequences.values, STACKED)
    latents = ask(dynamics(), "transform", data, groups, sequences)
    assert_array_equal(latents, STACKED)
    assert_array_equal(split(sequences, latents)[1], X[1])


@pytest.mark.parametrize("form", FORMS)
def test_one_sequence_keeps_its_container(form):
    data, groups = FORMS[form]
    chosen = one_sequence(dynamics(), data, groups, -1)
    assert_array_equal(chosen.values, X[1])
    assert_array_equal(np.asarray(chosen.X[0]), X[1])
    if form in ("frame", "index"):
        assert isinstance(chosen.X[0], pd.DataFrame)


def test_names_of_features_are_kept_without_a_warning(recordings):
    frame = pd.DataFrame(recordings[0][0], columns=list("abcd"))
    model = SVAELinearDynamics(rows="consecutive", **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        display = ForecastDisplay.from_estimator(model, frame, 2)
    assert display.feature_names == list("abcd")
    assert display.ax_.get_ylabel() == "a"


@pytest.mark.parametrize("sequence", [2, -3, 0.5, None])
def test_a_sequence_that_is_not_there(sequence):
    with pytest.raises(ValueError, match="sequence must be an integer below 2"):
        one_sequence(dynamics(), X, None, sequence)


def test_groups_of_rows_without_order():
    with pytest.raises(ValueError, match="groups must be None: KnownMixture has no sequences"):
        read(mixture(), STACKED, GROUPS)


def test_labels_in_all_forms():
    parts = [np.array([0, 1]), np.array([1, 1, 2])]
    for labels in (parts, [list(part) for part in parts]):
        assert [part.tolist() for part in split_labels(labels, "y")] == [[0, 1], [1, 1, 2]]
    assert [part.tolist() for part in split_labels([[0, 1], [1, 0]], "y")] == [[0, 1], [1, 0]]
    assert [part.tolist() for part in split_labels([0, 1, 2], "y")] == [[0, 1, 2]]
    grouped = split_labels(["a", "b", "a"], "y", ["x", "y", "x"])
    assert [part.tolist() for part in grouped] == [["a", "a"], ["b"]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_labels([[0, 1], [1, 0]], "y", [0, 0]), "groups must be None unless y is"),
        (lambda: split_labels([[[0]]], "y"), r"y must hold one label per step, got shape \(1, 1\)"),
        (lambda: split_labels([], "y"), "y must hold one label per step"),
        (lambda: checked_labels([0.5], "y"), "y must hold numbers of states"),
        (lambda: checked_labels([-1], "y"), "y must hold numbers of states"),
        (lambda: checked_labels([], "y"), "y is empty"),
        (lambda: checked_labels(["walk"], "y"), "y must be an array of numbers"),
        (lambda: checked_array([1.0, np.nan], "z", (2,)), "z contains NaN"),
        (lambda: checked_array([1.0], "z", (2, None)), r"z must have shape \(2, any\), got \(1,\)"),
        (lambda: checked_names(["a"], 2, "names"), "names must have 2 entries, got 1"),
        (lambda: checked_option("x", "kind", ["a"]), r"kind must be one of \['a'\], got 'x'"),
        (lambda: checked_image_shape((2, 3), 5), "image_shape must be two numbers with product"),
        (lambda: checked_image_shape(4, 4), "image_shape must be two numbers with product"),
        (lambda: checked_indices([3], 3, "rows"), "rows must be integers below 3"),
        (lambda: checked_indices([], 3, "rows"), "rows must be integers below 3"),
        (lambda: checked_indices([0.5], 3, "rows"), "rows must be integers below 3"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
