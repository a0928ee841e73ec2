# SPDX-License-Identifier: BSD-3-Clause
"""The test for serial dependence against all orders of the values, and its level and power."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom, rankdata

from sksvae.sequences import serial_dependence
from sksvae.sequences.serial_dependence import _moments_over_orders

NAN = np.nan

# Columns of 4 to 7 observed values, with and without ties and gaps.
SMALL_COLUMNS = [
    [1, 2, 3, 4],
    [0, 0, 1, 1],
    [0, 0, 0, 1],
    [1, 2, NAN, 3, 4],
    [NAN, 1, 2, 3, NAN, NAN, 9, NAN],
    [5, 1, 1, 1, 8],
    [5, NAN, 1, 2, 2, NAN, 8],
    [0, 0, 0, 0, 0, 1],
    [4, 2, NAN, 2, 6, NAN, 7, 7],
    [3, 1, 4, 1, 5, 9, 2],
    [0, 1, NAN, 1, 0, 0, NAN, 1, 0],
    [NAN, 7, 6, 5, 4, NAN, 3, NAN, 2, 2],
]

INDEPENDENT = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy-tailed": lambda rng, shape: rng.standard_cauchy(size=shape),
    "ties": lambda rng, shape: rng.integers(0, 3, size=shape),
    "rare": lambda rng, shape: rng.random(shape) < 0.03,
    "zero-inflated": lambda rng, shape: rng.gamma(1, size=shape) * (rng.random(shape) < 0.2),
    "gaps": lambda rng, shape: np.where(rng.random(shape) < 0.4, NAN, rng.normal(size=shape)),
    "rare with gaps": lambda rng, shape: np.where(
        rng.random(shape) < 0.3, NAN, rng.random(shape) < 0.1
    ),
}


def autoregression(rng, shape, coefficient):
    """Stationary AR(1) columns of variance one."""
    x = rng.normal(size=shape)
    for t in range(1, shape[0]):
        x[t] = coefficient * x[t - 1] + np.sqrt(1 - coefficient**2) * x[t]
    return x


DEPENDENT = {
    "random walk": lambda rng, shape: np.cumsum(rng.normal(size=shape), axis=0),
    "autoregression": lambda rng, shape: autoregression(rng, shape, 0.5),
    "sorted labels": lambda rng, shape: np.sort(rng.integers(0, 3, size=shape), axis=0),
    "a block of rare values": lambda rng, shape: np.sort(rng.random(shape) < 0.05, axis=0),
    "alternating signs": lambda rng, shape: (
        (-1) ** np.arange(shape[0])[:, None] * rng.exponential(size=shape)
    ),
}


def at_most(n_trials, probability):
    """Largest count to accept: a right test passes it once in a thousand draws of the data."""
    return binom.ppf(0.999, n_trials, probability)


@pytest.mark.parametrize("column", SMALL_COLUMNS, ids=str)
def test_moments_are_those_over_all_orders(column):
    column = np.array(column, dtype=float)
    observed = np.isfinite(column)
    ranks = rankdata(column[observed])
    values = (ranks - ranks.mean()) / ranks.std()
    pairs = [t for t in range(len(column) - 1) if observed[t] and observed[t + 1]]
    orders = np.full((factorial(len(values)), len(column)), NAN)
    orders[:, observed] = list(permutations(values))
    statistics = sum(orders[:, t] * orders[:, t + 1] for t in pairs)
    mean, variance = _moments_over_orders(
        observed[1:] & observed[:-1], len(values), np.mean(values**4)
    )
    assert_allclose(mean, statistics.mean(), atol=1e-12)
    assert_allclose(variance, statistics.var(), atol=1e-12)


@pytest.mark.parametrize("column", [[0, 0, 0, 0, 1, 1], [1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 5]])
def test_share_of_all_orders_rejected_is_at_most_alpha(column):
    orders = np.unique(list(permutations(column)), axis=0)  # each as often as any other
    p_values = serial_dependence(orders.T).p_values
    for alpha in (0.05, 0.02, 0.01, 1e-3):
        assert np.mean(p_values < alpha) <= alpha


@pytest.mark.parametrize("kind", INDEPENDENT)
@pytest.mark.parametrize("n_samples", [20, 200])
def test_independent_rows_are_rejected_no_more_often_than_alpha(kind, n_samples):
    X = INDEPENDENT[kind](np.random.default_rng(0), (n_samples, 300))
    p_values = serial_dependence(X).p_values
    assert np.sum(p_values < 0.05) <= at_most(300, 0.05)
    assert np.sum(p_values < 0.001) <= at_most(300, 0.001)


def test_level_is_used_up_where_the_tail_is_normal():
    p_values = serial_dependence(np.random.default_rng(1).normal(size=(200, 500))).p_values
    assert np.sum(p_values < 0.05) >= binom.ppf(0.001, 500, 0.05)


def test_level_holds_over_many_features():
    rng = np.random.default_rng(2)
    tables = [rng.normal(size=(50, 5)) for _ in range(200)]
    rejected = sum(serial_dependence(X, alpha=0.05).dependent for X in tables)
    assert rejected <= at_most(200, 0.05)


def test_smallest_p_value_is_corrected_for_the_number_of_features_tested():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(200, 40))
    X[:, 7] = autoregression(rng, (200, 1), 0.2)[:, 0]
    X[:, 20:] = 1  # cannot be tested, and does not count
    p_values = serial_dependence(X).p_values
    smallest = np.nanmin(p_values)
    assert serial_dependence(X, alpha=20.1 * smallest).dependent
    assert not serial_dependence(X, alpha=19.9 * smallest).dependent
    assert_array_equal(serial_dependence(X[:, 7:8]).p_values, p_values[7])


@pytest.mark.parametrize("kind", DEPENDENT)
def test_dependent_rows_are_found(kind):
    X = DEPENDENT[kind](np.random.default_rng(4), (200, 30))
    result = serial_dependence(X)
    assert result.dependent
    assert np.all(result.p_values < 1e-3)
    sign = -1 if kind == "alternating signs" else 1
    assert np.all(sign * result.autocorrelations > 0.2)


def test_one_dependent_feature_among_many_is_found_and_shuffling_hides_it():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(300, 50))
    assert not serial_dependence(X).dependent
    X[:, 30] = np.cumsum(X[:, 30])
    assert serial_dependence(X).dependent
    assert not serial_dependence(rng.permutation(X)).dependent


def test_missing_values_break_pairs_and_do_not_hide_dependence():
    rng = np.random.default_rng(6)
    X = np.cumsum(rng.normal(size=(200, 20)), axis=0)
    X[rng.random(X.shape) < 0.3] = NAN
    assert np.all(serial_dependence(X).p_values < 1e-3)
    # A missing row at either end, or a second one in a gap, changes nothing.
    padded = np.vstack([np.full((3, 20), NAN), X, np.full((1, 20), NAN)])
    assert_allclose(serial_dependence(padded).p_values, serial_dependence(X).p_values)
    # Without neighbours there is nothing to compare.
    X[::2] = NAN
    assert np.all(np.isnan(serial_dependence(X).p_values))


@pytest.mark.parametrize(
    "column",
    [
        np.ones(50),
        np.full(50, NAN),
        [1, 2, 3, 4, 5],
        [1, 2, 3, NAN, 4, 5, 6, NAN, 7],
        [1, 1, 1, 1, NAN, 1, 1, 1, 1],
        [1, NAN, 2, NAN, 3, NAN, 4, NAN, 5, NAN, 6, NAN, 7],
        [3],
        [NAN],
    ],
    ids=str,
)
def test_what_cannot_be_tested_is_nan_and_not_dependent(column):
    column = np.array(column, dtype=float)
    result = serial_dependence(np.column_stack([column, column]), alpha=0.999)
    assert result.dependent is False
    assert_array_equal(result.autocorrelations, [NAN, NAN])
    assert_array_equal(result.p_values, [NAN, NAN])


@pytest.mark.parametrize("n_pairs", [5, 6, 50])
def test_a_statistic_that_all_orders_share_is_no_evidence(n_pairs):
    # One value differs, and every value has exactly one neighbour: the variance is zero.
    column = np.array([0, 0, NAN] * (n_pairs - 1) + [0, 1])
    result = serial_dependence(column[:, None], alpha=0.999)
    assert_allclose(result.p_values, 1)
    assert not result.dependent


@pytest.mark.parametrize("kind", ["normal", "gaps"])
def test_monotone_changes_of_a_feature_and_reversed_time_change_nothing(kind):
    X = INDEPENDENT[kind](np.random.default_rng(7), (100, 4))
    expected = serial_dependence(X)
    for same in (np.exp(X), 1e200 * X, 5 - X, X[::-1]):
        result = serial_dependence(same)
        assert_allclose(result.autocorrelations, expected.autocorrelations, atol=1e-12)
        assert_allclose(result.p_values, expected.p_values, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, bool])
def test_any_numbers_will_do(dtype):
    X = (3 * np.random.default_rng(8).normal(size=(100, 3))).astype(dtype)
    result = serial_dependence(X)
    assert result.autocorrelations.dtype == result.p_values.dtype == np.float64
    for array, expected in zip(result, serial_dependence(X.astype(np.float64)), strict=True):
        assert_array_equal(array, expected)
    assert_array_equal(serial_dependence(X.tolist()).p_values, result.p_values)


def test_autocorrelation_is_the_mean_product_of_neighbouring_ranks():
    column = np.array([3, 1, 4, NAN, 1, 5, 9, 2, 6])
    x = rankdata(column, nan_policy="omit")
    x = (x - np.nanmean(x)) / np.nanstd(x)
    result = serial_dependence(column[:, None])
    assert_allclose(result.autocorrelations, np.nanmean(x[1:] * x[:-1]))


def test_input_is_left_as_it_was():
    X = np.random.default_rng(9).normal(size=(30, 2))
    before = X.copy()
    serial_dependence(X)
    assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.arange(10.0), "Expected 2D array"),
        (np.zeros((2, 3, 4)), "dim 3"),
        ([[0.0], [np.inf]], "X contains infinity"),
        ([["a"], ["b"]], "could not convert string to float"),
        (np.zeros((0, 2)), "0 sample"),
        (np.zeros((2, 0)), "0 feature"),
    ],
)
def test_bad_tables_raise(X, message):
    with pytest.raises(ValueError, match=message):
        serial_dependence(X)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, NAN, np.inf])
def test_bad_alpha_raises(alpha):
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        serial_dependence(np.zeros((5, 1)), alpha=alpha)
