# SPDX-License-Identifier: BSD-3-Clause
"""Standardisation of tables that are hard on it: constants, offsets, scales far apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sksvae.estimators.scaling import Scaling
from sksvae.likelihoods import LIKELIHOODS, get_likelihood

GAUSSIAN = get_likelihood("gaussian")
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# Rounding in a column must not be seen in what comes out.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def table(n_rows=100, n_features=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n_rows, n_features))


def encode(X, standardize=True):
    """Scaling of X, and what the encoder sees of it."""
    scaling = Scaling.of(X, standardize)
    rows = scaling.rows(X, GAUSSIAN, "cpu")
    assert rows.observed is rows.encoded
    return scaling, rows.encoded.numpy()


@each_dtype
def test_features_get_mean_zero_and_variance_one(dtype):
    X = (table() * [1.0, 3.0, 0.2] + [1.0, -2.0, 0.0]).astype(dtype)
    scaling, encoded = encode(X)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(scaling.location, X.mean(0, dtype=float), rtol=tolerance)
    np.testing.assert_allclose(scaling.scale, X.std(0, dtype=float), rtol=tolerance)
    np.testing.assert_allclose(encoded.mean(0, dtype=float), 0.0, atol=tolerance)
    np.testing.assert_allclose(encoded.std(0, dtype=float), 1.0, rtol=tolerance)
    assert {scaling.location.dtype, scaling.scale.dtype, encoded.dtype} == {np.dtype(dtype)}


def test_one_scale_for_all_is_the_root_mean_variance():
    X = table() * [1.0, 3.0, 0.2] + [1.0, -2.0, 0.0]
    scaling, encoded = encode(X, standardize=False)
    want = np.sqrt(X.var(0).mean())
    np.testing.assert_allclose(scaling.scale, want)
    np.testing.assert_allclose(encoded, (X - X.mean(0)) / want, atol=1e-12)


@each_dtype
@pytest.mark.parametrize("standardize", [True, False])
def test_constant_columns_become_zero_and_get_the_scale_of_the_others(dtype, standardize):
    X = (table(n_features=4) * [2.0, 0.0, 0.0, 4.0] + [0.0, 0.1, 1e6 / 3, 1.0]).astype(dtype)
    scaling, encoded = encode(X, standardize)
    assert (encoded[:, 1:3] == 0).all()
    common = np.sqrt(X[:, [0, 3]].var(0).mean())
    np.testing.assert_allclose(scaling.scale[1:3], common, rtol=1e-5)


@each_dtype
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_a_table_of_constants_has_scale_one(dtype, value):
    X = np.full((7, 2), value, dtype=dtype)
    scaling, encoded = encode(X)
    assert (encoded == 0).all()
    assert (scaling.scale == 1).all()
    assert (scaling.location == dtype(value)).all()


@pytest.mark.parametrize("value", [1e8 / 3, -1e15 / 3])
def test_constants_that_dwarf_the_other_columns_leave_no_trace(value):
    """Their rounding errors alone are larger than anything else in the table."""
    X = np.column_stack([1e-8 * table(), np.full(100, value)])
    scaling, encoded = encode(X)
    assert (encoded[:, 3] == 0).all()
    np.testing.assert_allclose(encoded[:, :3].std(0), 1.0)
    # A constant that was computed wobbles in its last digit.
    X[::2, 3] = np.nextafter(value, np.inf)
    scaling, encoded = encode(X)
    assert np.abs(encoded[:, 3]).max() <= 1.5
    assert np.isfinite(scaling.log_jacobian(X, GAUSSIAN)).all()


@pytest.mark.parametrize("value", [0.1, 1e5, 1e30])
def test_float32_constants_that_wobble_in_the_last_digit_are_no_features(value):
    X = table().astype(np.float32)
    X[:, 1] = value
    X[::3, 1] = np.nextafter(np.float32(value), np.float32(0))
    scaling, encoded = encode(X)
    others = np.sqrt(X[:, [0, 2]].var(0).mean())
    wobble = X[:, 1].astype(float).std()
    assert scaling.scale[1] == pytest.approx(max(others, wobble), rel=1e-4)
    assert np.abs(encoded[:, 1]).max() <= 2.5


@each_dtype
@given(
    exponents=st.lists(st.floats(-8.0, 8.0), min_size=3, max_size=3),
    offset=st.floats(-100.0, 100.0),
)
def test_units_do_not_matter(dtype, exponents, offset):
    """Columns on scales from 1e-8 to 1e8 encode to what they would on scale one."""
    unit = 10.0 ** np.array(exponents)
    _, want = encode((table() + offset).astype(dtype))
    scaling, encoded = encode(((table() + offset) * unit).astype(dtype))
    tolerance = 2e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(encoded, want, atol=tolerance)
    np.testing.assert_allclose(scaling.scale / unit, table().std(0), rtol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [(np.float64, 1e8, 1e-6), (np.float64, 1e12, 1e-2), (np.float32, 1e4, 1e-2)],
)
def test_huge_offsets_cost_no_more_than_the_data_lost_already(dtype, offset, tolerance):
    X = table()
    _, want = encode(X)
    _, encoded = encode((X + offset).astype(dtype))
    np.testing.assert_allclose(encoded, want, atol=tolerance)


def test_a_column_that_varies_by_less_than_its_precision_is_constant():
    X = np.column_stack([table()[:, 0], 1e18 + table()[:, 1]])
    scaling, encoded = encode(X)
    assert (encoded[:, 1] == 0).all()
    assert scaling.scale[1] == pytest.approx(scaling.scale[0])


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        (np.float64, 1e307),
        (np.float64, 1e-300),
        (np.float64, 1e-310),
        (np.float32, 1e37),
        (np.float32, 1e-38),
    ],
)
def test_squares_and_sums_neither_overflow_nor_underflow(dtype, unit):
    X = table()
    _, want = encode(X)
    scaling, encoded = encode((X * unit).astype(dtype))
    np.testing.assert_allclose(encoded, want, atol=1e-4)
    assert scaling.log_jacobian(X, GAUSSIAN)[0] == pytest.approx(
        -3 * np.log(unit) - np.log(X.std(0)).sum(), abs=1e-4
    )


def test_a_mean_close_to_the_largest_number_does_not_overflow():
    X = 1.7e308 * np.linspace(0.9, 1.0, 50)[:, None]
    scaling, encoded = encode(X)
    assert scaling.location[0] == pytest.approx(1.7e308 * 0.95)
    np.testing.assert_allclose(encoded.std(0), 1.0)


# Missing values ----------------------------------------------------------------------------------


def gappy(share=0.3, **kwargs):
    X = table(**kwargs)
    X[np.random.default_rng(1).random(X.shape) < share] = np.nan
    return X


@each_dtype
@pytest.mark.parametrize("standardize", [True, False])
def test_missing_values_count_for_nothing(dtype, standardize):
    X = (gappy() * [1.0, 3.0, 0.2] + [1.0, -2.0, 0.0]).astype(dtype)
    scaling, encoded = encode(X, standardize)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    wide = X.astype(float)
    np.testing.assert_allclose(scaling.location, np.nanmean(wide, 0), rtol=tolerance)
    spread = np.nanstd(wide, 0)
    want = spread if standardize else np.full(3, np.sqrt(np.mean(spread**2)))
    np.testing.assert_allclose(scaling.scale, want, rtol=tolerance)
    np.testing.assert_array_equal(np.isnan(encoded), np.isnan(X))
    assert {scaling.location.dtype, scaling.scale.dtype, encoded.dtype} == {np.dtype(dtype)}


def test_a_table_without_gaps_is_measured_to_the_bit_as_before():
    """One unobserved row is no reason for others to be encoded differently."""
    X = table()
    with_row = np.concatenate([X, np.full((1, 3), np.nan)])
    for part, other in zip(encode(X)[0], encode(with_row)[0], strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("standardize", [True, False])
def test_columns_without_a_value_are_like_constant_ones(standardize):
    X = table(n_features=4) * [2.0, 1.0, 1.0, 4.0]
    X[:, 1], X[1:, 2] = np.nan, np.nan
    scaling, encoded = encode(X, standardize)
    common = np.sqrt(X[:, [0, 3]].var(0).mean())
    np.testing.assert_allclose(scaling.scale[1:3], common)
    assert scaling.location[1] == 0
    assert scaling.location[2] == X[0, 2]
    assert encoded[0, 2] == 0
    nothing = Scaling.of(np.full((5, 2), np.nan), standardize)
    np.testing.assert_array_equal(nothing.location, 0.0)
    np.testing.assert_array_equal(nothing.scale, 1.0)


@pytest.mark.parametrize("unit", [1e307, 1e-300])
def test_gaps_on_extreme_scales(unit):
    X = gappy()
    _, want = encode(X)
    _, encoded = encode(X * unit)
    np.testing.assert_allclose(encoded, want, atol=1e-4)


def test_jacobian_is_that_of_what_is_observed():
    X = gappy() * [1e-3, 1.0, 50.0]
    X[7] = np.nan
    scaling, encoded = encode(X)
    here = np.nansum(stats.norm(scaling.location, 0.7 * scaling.scale).logpdf(X), 1)
    there = np.nansum(stats.norm(0.0, 0.7).logpdf(encoded), 1)
    jacobian = scaling.log_jacobian(X, GAUSSIAN)
    assert jacobian.shape == (len(X),)
    np.testing.assert_allclose(here, there + jacobian, rtol=1e-9, atol=1e-9)
    assert jacobian[7] == 0


@pytest.mark.parametrize("name", ["poisson", "gamma"])
def test_gaps_reach_likelihoods_as_they_are(name):
    likelihood = get_likelihood(name)
    X = np.random.default_rng(0).poisson(3.0, (40, 3)) + 1.0
    X[3, 1] = np.nan
    rows = Scaling.of(likelihood.working_features(X), True).rows(X, likelihood, "cpu")
    np.testing.assert_array_equal(rows.observed.numpy(), X)
    np.testing.assert_array_equal(np.isnan(rows.encoded.numpy()), np.isnan(X))


# There and back ----------------------------------------------------------------------------------


def standardising():
    return [name for name, kind in LIKELIHOODS.items() if kind.standardizes]


@each_dtype
@pytest.mark.parametrize("standardize", [True, False])
def test_restore_undoes_the_scaling(dtype, standardize):
    X = (table() * [1e-8, 1.0, 1e8] + [1.0, -2.0, 0.0]).astype(dtype)
    for name in standardising():
        scaling, encoded = encode(X, standardize)
        back = scaling.restore(encoded, get_likelihood(name))
        assert back.dtype == dtype
        size = np.abs(X).max(0)
        np.testing.assert_allclose(back / size, X / size, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("standardize", [True, False])
def test_jacobian_turns_the_density_of_encoded_rows_into_that_of_rows(standardize):
    X = table() * [1e-3, 1.0, 50.0] + [0.0, 4.0, 0.0]
    scaling, encoded = encode(X, standardize)
    here = stats.norm(scaling.location, 0.7 * scaling.scale).logpdf(X).sum(1)
    there = stats.norm(0.0, 0.7).logpdf(encoded).sum(1)
    np.testing.assert_allclose(here, there + scaling.log_jacobian(X, GAUSSIAN), rtol=1e-9)


def test_jacobian_of_many_float32_features_is_summed_in_double():
    scale = np.full(20_000, 1e-3, dtype=np.float32)
    scaling = Scaling(np.zeros_like(scale), scale)
    want = -20_000 * np.log(float(np.float32(1e-3)))
    X = np.zeros((2, 20_000), dtype=np.float32)
    assert scaling.log_jacobian(X, GAUSSIAN) == pytest.approx(np.full(2, want), rel=1e-12)
    X[1, ::2] = np.nan
    assert scaling.log_jacobian(X, GAUSSIAN)[1] == pytest.approx(want / 2, rel=1e-12)


# Likelihoods that speak the units of X -----------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("name", ["poisson", "bernoulli", "gamma"])
def test_other_likelihoods_see_x_itself_and_the_encoder_its_link(name, dtype):
    likelihood = get_likelihood(name)
    assert not likelihood.standardizes
    rng = np.random.default_rng(0)
    X = {
        "poisson": rng.poisson(3.0, (40, 3)),
        "bernoulli": rng.integers(2, size=(40, 3)),
        "gamma": rng.gamma(2.0, size=(40, 3)),
    }[name].astype(dtype)
    working = likelihood.working_features(X)
    scaling = Scaling.of(working, True)
    rows = scaling.rows(X, likelihood, "cpu")
    assert rows.observed.dtype == rows.encoded.dtype == torch.from_numpy(X).dtype
    np.testing.assert_array_equal(rows.observed.numpy(), X)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    want = (working - working.mean(0)) / working.std(0)
    np.testing.assert_allclose(rows.encoded.numpy(), want, atol=tolerance)
    np.testing.assert_array_equal(scaling.log_jacobian(X, likelihood), np.zeros(40))
    assert scaling.restore(X, likelihood) is X


@pytest.mark.parametrize("name", ["gaussian", "poisson"])
def test_rows_do_not_share_memory_with_x(name):
    """A table that the caller changes, or that is read-only or transposed, is no trouble."""
    likelihood = get_likelihood(name)
    X = np.random.default_rng(0).poisson(3.0, (3, 20)).astype(float).T
    X.flags.writeable = False
    rows = Scaling.of(likelihood.working_features(X), True).rows(X, likelihood, "cpu")
    kept = X.copy()
    rows.observed.add_(1.0)
    np.testing.assert_array_equal(X, kept)


def test_new_rows_are_measured_by_the_old_ones():
    X = table()
    scaling = Scaling.of(X, True)
    rows = scaling.rows(2 * X[:1] + 1, GAUSSIAN, "cpu")
    np.testing.assert_allclose(rows.encoded, (2 * X[:1] + 1 - X.mean(0)) / X.std(0), rtol=1e-10)
