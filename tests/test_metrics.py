# SPDX-License-Identifier: BSD-3-Clause
"""The metrics against brute force, closed forms and scipy's matrix square root."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import sqrtm

from sksvae.metrics import frechet_distance, match_labels, matched_accuracy


def brute_force_accuracy(y_true, y_pred):
    """Try every one-to-one matching of the smaller set of labels into the larger."""
    classes, clusters = np.unique(y_true), np.unique(y_pred)
    counts = np.array([[np.sum((y_true == a) & (y_pred == b)) for b in clusters] for a in classes])
    if counts.shape[0] > counts.shape[1]:
        counts = counts.T
    rows = np.arange(counts.shape[0])
    choices = permutations(range(counts.shape[1]), counts.shape[0])
    return max(counts[rows, list(columns)].sum() for columns in choices) / len(y_true)


@st.composite
def label_pairs(draw):
    n_samples = draw(st.integers(1, 30))
    n_classes, n_clusters = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    y_true = draw(st.lists(st.integers(0, n_classes - 1), min_size=n_samples, max_size=n_samples))
    y_pred = draw(st.lists(st.integers(0, n_clusters - 1), min_size=n_samples, max_size=n_samples))
    return np.array(y_true), np.array(y_pred)


@given(label_pairs())
def test_matched_accuracy_is_the_best_over_all_matchings(labels):
    y_true, y_pred = labels
    accuracy = matched_accuracy(y_true, y_pred)
    assert accuracy == brute_force_accuracy(y_true, y_pred)
    assert accuracy == matched_accuracy(y_pred, y_true)
    assert matched_accuracy(y_true, -3 * y_pred) == accuracy


@given(label_pairs())
def test_match_labels_renames_and_explains_the_accuracy(labels):
    y_true, y_pred = labels
    matched = match_labels(y_true, y_pred)
    assert np.mean(matched == y_true) == pytest.approx(matched_accuracy(y_true, y_pred))
    # A renaming keeps the clusters apart.
    pairs = set(zip(y_pred.tolist(), matched.tolist(), strict=True))
    assert len(pairs) == len(np.unique(y_pred)) == len(np.unique(matched))


def test_match_labels_numbers_the_clusters_left_over():
    assert_array_equal(match_labels([3, 3, 3, 5], [7, 7, 8, 9]), [3, 3, 6, 5])
    assert_array_equal(match_labels([True, True, False], [2, 2, 0]), [True, True, False])
    with pytest.raises(ValueError, match="LabelEncoder"):
        match_labels(["a", "a", "b"], [0, 1, 2])


def test_labels_may_be_of_any_kind():
    assert matched_accuracy(["x", "x", "y"], np.array([1.0, 1.0, 0.0])) == 1
    assert matched_accuracy(np.array(["x", "y"], dtype=object), [True, False]) == 1
    assert matched_accuracy(np.arange(40), np.arange(40)[::-1]) == 1  # as many classes as rows


@pytest.mark.parametrize("metric", [matched_accuracy, match_labels])
@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([], [], "y_true is empty"),
        ([0, 1], [0, 1, 2], "inconsistent numbers of samples"),
        ([[0, 1], [1, 0]], [0, 1], "y_true must be one-dimensional"),
        ([0, 1], [[0, 1], [1, 0]], "y_pred must be one-dimensional"),
        ([0, 1], [0.5, 1], "y_pred must hold class labels"),
        ([0, np.nan], [0, 1], "y_true contains NaN"),
        (None, [0, 1], "y_true"),
    ],
)
def test_labels_are_checked(metric, y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        metric(y_true, y_pred)


def gaussian_sample(rng, n_samples, n_features):
    mixing = rng.normal(size=(n_features, n_features))
    return rng.normal(size=(n_samples, n_features)) @ mixing + rng.normal(size=n_features)


@pytest.mark.parametrize("n_features", [1, 2, 7])
def test_frechet_distance_is_the_trace_formula(n_features):
    rng = np.random.default_rng(n_features)
    X, Y = gaussian_sample(rng, 60, n_features), gaussian_sample(rng, 40, n_features)
    C_X, C_Y = np.atleast_2d(np.cov(X.T)), np.atleast_2d(np.cov(Y.T))
    trace = np.trace(C_X + C_Y - 2 * np.real(sqrtm(C_X @ C_Y)))
    expected = np.sum((X.mean(axis=0) - Y.mean(axis=0)) ** 2) + trace
    assert_allclose(frechet_distance(X, Y, squared=True), expected, rtol=1e-9)
    assert_allclose(frechet_distance(X, Y), np.sqrt(expected), rtol=1e-9)


def test_frechet_distance_of_one_feature_has_a_closed_form():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(50, 1)), rng.normal(3, 5, size=(70, 1))
    expected = np.hypot(X.mean() - Y.mean(), X.std(ddof=1) - Y.std(ddof=1))
    assert_allclose(frechet_distance(X, Y), expected, rtol=1e-12)


def test_frechet_distance_is_a_metric_on_the_moments():
    rng = np.random.default_rng(0)
    X, Y, Z = (gaussian_sample(rng, 50, 4) for _ in range(3))
    assert_allclose(frechet_distance(X, Y), frechet_distance(Y, X), rtol=1e-12)
    assert frechet_distance(X, Z) <= frechet_distance(X, Y) + frechet_distance(Y, Z)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert_allclose(frechet_distance(X @ rotation, Y @ rotation), frechet_distance(X, Y))
    assert_allclose(frechet_distance(X, X + 2), 4, rtol=1e-10)


@pytest.mark.parametrize(
    ("scales", "tolerance"), [(np.ones(6), 1e-14), ([1e-8, 1e-3, 1, 1e3, 1e8, 0], 1e-8)]
)
def test_frechet_distance_of_equal_samples_is_zero_to_rounding(scales, tolerance):
    # Differences of traces would leave 1e-8 in either case, or the root of a negative number.
    X = gaussian_sample(np.random.default_rng(0), 30, 6) * scales
    assert 0 <= frechet_distance(X, X[::-1]) < tolerance * np.abs(X).max()


def test_frechet_distance_of_fewer_rows_than_features():
    # Covariances that are singular; the same numbers after padding with zeros change nothing.
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    padded = [np.hstack([Z, np.zeros((len(Z), 4))]) for Z in (X, Y)]
    assert_allclose(frechet_distance(*padded), frechet_distance(X, Y), rtol=1e-12)
    A, B = (Z - Z.mean(axis=0) for Z in (X, Y))
    cross = np.linalg.svd(A @ B.T / np.sqrt(2 * 3), compute_uv=False).sum()
    expected = np.sum((X.mean(axis=0) - Y.mean(axis=0)) ** 2)
    expected += np.sum(A**2) / 2 + np.sum(B**2) / 3 - 2 * cross
    assert_allclose(frechet_distance(X, Y, squared=True), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("X", "Y", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), "same number of features, got 2 and 4"),
        (np.ones((1, 2)), np.ones((3, 2)), "minimum of 2"),
        (np.ones((3, 2)), [[np.inf, 0], [0, 0]], "infinity"),
        ([1.0, 2.0], np.ones((3, 2)), "2D array"),
    ],
)
def test_frechet_distance_checks_its_input(X, Y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(X, Y)
