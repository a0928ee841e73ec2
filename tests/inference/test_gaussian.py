# SPDX-License-Identifier: BSD-3-Clause
"""Gaussians in information form, against dense linear algebra, autograd and Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sksvae.inference import draw_gaussian, gaussian_moments

BATCH_SHAPES = [(), (3,), (2, 3)]
every_batch = pytest.mark.parametrize("batch_shape", BATCH_SHAPES)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def random_information(batch_shape=(), dim=4, seed=0, dtype=torch.float64):
    """``h`` and a well-conditioned ``J``."""
    root = normal(*batch_shape, dim, dim + 3, seed=seed, dtype=dtype)
    return normal(*batch_shape, dim, seed=seed + 1, dtype=dtype), root @ root.mT


@every_batch
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_moments_agree_with_dense_inverses(batch_shape, dtype, tolerance):
    h, J = random_information(batch_shape)
    moments = gaussian_moments(h.to(dtype), J.to(dtype))
    inverse = torch.linalg.inv(J)
    mean = (inverse @ h.unsqueeze(-1)).squeeze(-1)
    wanted = {
        "covariance": inverse,
        "mean": mean,
        "log_det_precision": torch.linalg.slogdet(J).logabsdet,
        "second_moment": inverse + torch.einsum("...i,...j->...ij", mean, mean),
    }
    torch.testing.assert_close(
        (moments.root @ moments.root.mT).double(), inverse, rtol=tolerance, atol=tolerance
    )
    assert torch.equal(moments.root, moments.root.tril())
    assert (moments.root.diagonal(dim1=-2, dim2=-1) > 0).all()
    for name, want in wanted.items():
        got = getattr(moments, name)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_moments_are_those_of_the_normalised_density():
    """``h'z - z'Jz/2`` differs from the log density of the moments by a constant."""
    h, J = random_information(dim=3)
    moments = gaussian_moments(h, J)
    z = normal(6, 3, seed=7)
    exponent = z @ h - 0.5 * torch.einsum("ni,ij,nj->n", z, J, z)
    gaussian = stats.multivariate_normal(moments.mean.numpy(), moments.covariance.numpy())
    difference = exponent - torch.from_numpy(gaussian.logpdf(z.numpy()))
    log_normalizer = (
        0.5 * h @ moments.mean - 0.5 * moments.log_det_precision + 1.5 * math.log(2 * math.pi)
    )
    torch.testing.assert_close(difference, log_normalizer.expand(6))


@every_batch
def test_gradients_agree_with_finite_differences(batch_shape):
    h, root = normal(*batch_shape, 3), normal(*batch_shape, 3, 5, seed=1)

    def moments(h, root):  # the precision stays symmetric when its root moves
        return tuple(gaussian_moments(h, root @ root.mT))

    inputs = h.requires_grad_(), root.requires_grad_()
    assert torch.autograd.gradcheck(moments, inputs, atol=1e-7)


@pytest.mark.parametrize("name", ["mean", "covariance", "log_det_precision"])
def test_gradient_with_respect_to_the_precision_is_symmetric_and_that_of_autograd(name):
    h, J = (field.requires_grad_() for field in random_information((2,), dim=3))
    inverse = torch.linalg.inv(J)
    slow = {
        "mean": (inverse @ h.unsqueeze(-1)).squeeze(-1),
        "covariance": inverse,
        "log_det_precision": torch.logdet(J),
    }[name]
    fast = getattr(gaussian_moments(h, J), name)
    weights = normal(*fast.shape, seed=5)
    want = torch.autograd.grad((weights * slow).sum(), J)[0]
    got = torch.autograd.grad((weights * fast).sum(), J)[0]
    torch.testing.assert_close(got, 0.5 * (want + want.mT), rtol=1e-10, atol=1e-10)


def test_a_second_derivative_is_refused():
    h, J = (field.requires_grad_() for field in random_information())
    value = gaussian_moments(h, J).mean.square().sum()
    (gradient,) = torch.autograd.grad(value, h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_batch_entries_do_not_interact():
    h, J = random_information((2, 3))
    together, alone = gaussian_moments(h, J), gaussian_moments(h[1, 2], J[1, 2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1, 2], b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan])
def test_a_precision_that_is_not_positive_definite_is_an_error_that_counts_rows(bad):
    J = torch.eye(2, dtype=torch.float64).repeat(5, 1, 1)
    J[1, 1, 1] = J[4, 0, 0] = bad
    with pytest.raises(torch.linalg.LinAlgError, match="2 of 5 posterior precisions are not"):
        gaussian_moments(torch.zeros(5, 2, dtype=torch.float64), J)


@given(st.lists(st.floats(-8.0, 8.0), min_size=3, max_size=3))
def test_scales_far_apart_cost_no_precision(exponents):
    """Cholesky factors do not mind how the coordinates are scaled."""
    h, J = random_information(dim=3)
    scale = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    plain = gaussian_moments(h, J)
    scaled = gaussian_moments(scale * h, scale[:, None] * J * scale)
    torch.testing.assert_close(scale * scaled.mean, plain.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        scale[:, None] * scaled.covariance * scale, plain.covariance, rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(
        scaled.log_det_precision, plain.log_det_precision + 2 * scale.log().sum()
    )


# Draws -------------------------------------------------------------------------------------------


@every_batch
def test_draws_have_the_moments(batch_shape):
    moments = gaussian_moments(*random_information(batch_shape, dim=3))
    n_draws = 20_000
    draws = draw_gaussian(
        moments.mean, moments.covariance, normal(n_draws, *batch_shape, 3, seed=9)
    )
    assert draws.shape == (n_draws, *batch_shape, 3)
    centred = draws - moments.mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    for values, expected in ((draws, moments.mean), (products, moments.covariance)):
        error = values.std(0) / n_draws**0.5
        assert ((values.mean(0) - expected).abs() < 5 * error).all()


def test_a_draw_is_the_affine_map_of_its_noise():
    covariance = torch.tensor([[4.0, 2.0], [2.0, 5.0]], dtype=torch.float64)  # root (2 0; 1 2)
    mean = torch.tensor([1.0, -1.0], dtype=torch.float64)
    noise = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    want = torch.tensor([[1.0, -1.0], [3.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(draw_gaussian(mean, covariance, noise), want)


def test_draws_are_differentiable_in_both_moments():
    noise = normal(2, 3, 2, seed=4)

    def draw(mean, root):
        return draw_gaussian(mean, root @ root.mT, noise)

    inputs = normal(3, 2).requires_grad_(), normal(3, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(draw, inputs, atol=1e-7)


def test_a_covariance_that_is_not_positive_definite_is_an_error_that_counts_rows():
    covariance = torch.eye(2).repeat(2, 3, 1, 1)
    covariance[0, 1] = covariance[1, 2] = covariance[1, 0] = -torch.eye(2)
    with pytest.raises(torch.linalg.LinAlgError, match="3 of 6 posterior covariances are not"):
        draw_gaussian(torch.zeros(2, 3, 2), covariance, torch.zeros(1, 2, 3, 2))


def test_draws_by_the_root_are_differentiable():
    """Against automatic differentiation of `draw_gaussian`."""
    h, J = random_information((3,), dim=4)
    noise = normal(2, 3, 4, seed=4)
    weights = normal(2, 3, 4, seed=5)

    def slow(h, J):
        covariance = torch.linalg.inv(J)
        return draw_gaussian((covariance @ h.unsqueeze(-1)).squeeze(-1), covariance, noise)

    def fast(h, J):
        moments = gaussian_moments(h, J)
        return moments.mean + (moments.root @ noise.unsqueeze(-1)).squeeze(-1)

    inputs = h.requires_grad_(), J.requires_grad_()
    got, want = (
        torch.autograd.grad((weights * draw(*inputs)).sum(), inputs) for draw in (fast, slow)
    )
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1], 0.5 * (want[1] + want[1].mT))
