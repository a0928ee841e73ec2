# SPDX-License-Identifier: BSD-3-Clause
import math

import pytest
import scipy.stats
import torch

from sksvae.expfam import numerics

from .cases import BATCH_SHAPES, generator


def positive_definite(batch_shape=(), dim=4, seed=0):
    noise = torch.randn((*batch_shape, dim, dim), generator=generator(seed), dtype=torch.float64)
    return noise @ noise.mT + 0.5 * torch.eye(dim, dtype=torch.float64)


def symmetric(batch_shape=(), dim=4, seed=1):
    noise = torch.randn((*batch_shape, dim, dim), generator=generator(seed), dtype=torch.float64)
    return noise + noise.mT


@pytest.mark.parametrize(("n_dims", "shape"), [(0, (2, 3, 4)), (1, (2, 3)), (2, (2,))])
def test_sum_event_sums_trailing_dimensions(n_dims, shape):
    result = numerics.sum_event(torch.ones(2, 3, 4), n_dims)
    assert result.shape == shape
    assert (result == 24 / torch.ones(shape).sum()).all()


@pytest.mark.parametrize("batch_shape", BATCH_SHAPES)
def test_cholesky_and_its_uses_agree_with_dense_algebra(batch_shape):
    matrix = positive_definite(batch_shape)
    factor = numerics.cholesky(matrix, "matrix")
    torch.testing.assert_close(factor @ factor.mT, matrix)
    torch.testing.assert_close(numerics.log_det(factor), matrix.logdet())
    torch.testing.assert_close(numerics.inverse_from_cholesky(factor), matrix.inverse())
    rhs = torch.randn((*batch_shape, 4, 3), generator=generator(), dtype=torch.float64)
    solution = numerics.solve_from_cholesky(factor, rhs)
    torch.testing.assert_close(matrix @ solution, rhs)
    inverse_factor = factor.inverse()
    other = symmetric(batch_shape)
    torch.testing.assert_close(
        numerics.whiten(factor, other), inverse_factor @ other @ inverse_factor.mT
    )


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan, math.inf])
def test_cholesky_names_the_argument_and_the_entry(bad):
    matrix = positive_definite((2, 3))
    matrix[1, 2, 2, 2] = bad
    with pytest.raises(torch.linalg.LinAlgError, match=r"covariance.*batch entry \(1, 2\)"):
        numerics.cholesky(matrix, "covariance")


def test_cholesky_notices_nan_off_the_diagonal():
    matrix = positive_definite()
    matrix[2, 1] = matrix[1, 2] = math.nan
    with pytest.raises(torch.linalg.LinAlgError, match=r"scale.*batch entry \(\)"):
        numerics.cholesky(matrix, "scale")


@pytest.mark.parametrize("batch_shape", BATCH_SHAPES)
def test_log_cholesky_is_inverted_and_ignores_the_upper_triangle(batch_shape):
    factor = numerics.cholesky(positive_definite(batch_shape), "matrix")
    log_factor = numerics.log_cholesky(factor)
    assert torch.equal(log_factor.triu(1), torch.zeros_like(factor))
    assert torch.equal(log_factor.tril(-1), factor.tril(-1))
    torch.testing.assert_close(numerics.exp_cholesky(log_factor), factor)
    polluted = log_factor + torch.full_like(factor, 7.0).triu(1)
    assert torch.equal(numerics.exp_cholesky(polluted), numerics.exp_cholesky(log_factor))


def test_log_cholesky_leaves_its_argument_alone():
    factor = numerics.cholesky(positive_definite(), "matrix")
    before = factor.clone()
    numerics.log_cholesky(factor)
    numerics.exp_cholesky(factor)
    numerics.log_cholesky_tangent(factor, factor)
    assert torch.equal(factor, before)


@pytest.mark.parametrize(
    "function",
    [
        numerics.exp_cholesky,
        lambda x: numerics.log_cholesky(numerics.exp_cholesky(x)),
        lambda x: numerics.inverse_from_cholesky(numerics.exp_cholesky(x)),
        lambda x: numerics.log_det(numerics.exp_cholesky(x)),
        lambda x: numerics.solve_from_cholesky(numerics.exp_cholesky(x), x),
    ],
)
def test_derivatives(function):
    x = torch.randn((2, 3, 3), generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,))


@pytest.mark.parametrize("batch_shape", BATCH_SHAPES)
def test_log_cholesky_tangent_agrees_with_central_differences(batch_shape):
    matrix, velocity = positive_definite(batch_shape), symmetric(batch_shape)
    factor = numerics.cholesky(matrix, "matrix")
    tangent = numerics.log_cholesky_tangent(factor, numerics.whiten(factor, velocity))

    def coordinates(step):
        return numerics.log_cholesky(numerics.cholesky(matrix + step * velocity, "matrix"))

    difference = (coordinates(1e-5) - coordinates(-1e-5)) / 2e-5
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [0.01, 0.5, 1.0, 40.0])
def test_log_standard_gamma_has_the_distribution_of_scipy(shape):
    draws = numerics.log_standard_gamma(
        torch.full((5_000,), shape, dtype=torch.float64), generator()
    )
    assert scipy.stats.kstest(draws.numpy(), scipy.stats.loggamma(shape).cdf).pvalue > 1e-3


def test_log_standard_gamma_survives_tiny_shapes_in_single_precision():
    draws = numerics.log_standard_gamma(torch.full((10_000,), 1e-4), generator())
    assert draws.dtype == torch.float32
    assert draws.isfinite().all()
    assert draws.exp().eq(0).any()  # the plain draws would underflow
    # log G(a) is about log(U) / a for small a, with mean and standard deviation 1 / a.
    assert abs(draws.mean().item() * 1e-4 + 1.0) < 5.0 / 100.0


def test_standard_normal_follows_dtype_and_generator():
    like = torch.zeros(1, dtype=torch.float64)
    first = numerics.standard_normal((2, 3), like, generator(0))
    assert first.dtype == torch.float64
    assert torch.equal(first, numerics.standard_normal((2, 3), like, generator(0)))
    assert not torch.equal(first, numerics.standard_normal((2, 3), like, generator(1)))
