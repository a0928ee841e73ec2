# SPDX-License-Identifier: BSD-3-Clause
"""The helpers that the likelihoods share."""

import numpy as np
import pytest
import torch

from sksvae.likelihoods.numerics import (
    LOG_BOUND,
    LOG_MARGIN,
    as_floating,
    feature_variances,
    log_factorial,
    saturate,
)


def test_saturate_is_the_identity_inside_the_bound():
    value = torch.linspace(-LOG_BOUND, LOG_BOUND, 101, dtype=torch.float64)
    assert torch.equal(saturate(value), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturate_is_increasing_bounded_and_never_flat(dtype):
    value = torch.tensor([-1e38, -1e3, -36.0, 0.0, 36.0, 1e3, 1e10], dtype=dtype)
    value.requires_grad_()
    limited = saturate(value)
    assert (limited.diff() > 0).all()
    assert (limited.abs() <= LOG_BOUND + LOG_MARGIN).all()
    (slope,) = torch.autograd.grad(limited.sum(), value)
    assert torch.isfinite(slope).all()
    assert (slope[1:] > 0).all()  # at 1e38 the slope underflows


def test_saturate_gradient():
    value = torch.tensor([-80.0, -34.0, 3.0, 35.5, 200.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(saturate, value.requires_grad_())


def test_the_bounds_suit_poisson_draws_and_float32_variances():
    largest = torch.tensor(LOG_BOUND + LOG_MARGIN).exp()
    assert largest < 2**63
    assert torch.isfinite(largest.square())


def test_as_floating_keeps_floating_arrays():
    X = np.ones((2, 2), dtype=np.float32)
    assert as_floating(X) is X
    assert as_floating(X > 0).dtype == np.float64


def test_feature_variances_are_one_where_nothing_is_observed():
    working = torch.tensor([[torch.nan, 1.0], [torch.nan, 3.0]])
    assert feature_variances(working, 2, torch.float64).tolist() == [1.0, 1.0]
    assert feature_variances(3 * working, 2, torch.float64).tolist() == [1.0, 9.0]
    assert feature_variances(None, 2, torch.float64).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("largest", [0, 3, 4000])
def test_log_factorial_with_and_without_a_table(dtype, largest):
    counts = torch.linspace(0, largest, 12, dtype=dtype).round().view(3, 4)
    got = log_factorial(counts)
    assert got.dtype == dtype
    assert torch.equal(got, torch.lgamma(counts + 1))


def test_log_factorial_of_nothing():
    assert log_factorial(torch.zeros(0, 3)).shape == (0, 3)
