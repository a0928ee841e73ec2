# SPDX-License-Identifier: BSD-3-Clause
"""Coordinates of the latents: derivatives, inverse, and potentials carried over."""

import math

import numpy as np
import pytest
import torch

from sksvae.coordinates import Coordinates

from .models import bent_coordinates as bent
from .models import normal

each_dim = pytest.mark.parametrize("dim", [1, 2, 5])


def linear(dim, turn):
    ones = torch.ones(dim, dtype=torch.float64)
    blocks = normal(3, 6, dim), normal(3, 6), torch.zeros(3, dim, 6, dtype=torch.float64)
    return Coordinates(0.5 * ones, 2.0 * ones, *blocks, turn, -ones)


def test_a_map_by_hand():
    coordinates, z = bent(2), normal(4, 2, seed=8)
    x = ((z - coordinates.center) / coordinates.scale).numpy()
    for A, b, C in zip(coordinates.inner, coordinates.bias, coordinates.outer, strict=True):
        x = x + np.tanh(x @ A.numpy().T + b.numpy()) @ C.numpy().T
    want = x @ coordinates.turn.numpy().T + coordinates.shift.numpy()
    np.testing.assert_allclose(coordinates(z)[0].numpy(), want, rtol=1e-12)


@each_dim
def test_derivatives_are_those_of_autograd(dim):
    coordinates, z = bent(dim), normal(7, dim, seed=8)
    slope = coordinates(z)[1]
    for row, got in zip(z, slope, strict=True):
        want = torch.autograd.functional.jacobian(lambda v: coordinates(v[None])[0][0], row)
        torch.testing.assert_close(got, want)


@each_dim
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=["float32", "float64"]
)
def test_the_inverse_leads_back(dim, size, dtype, tol):
    """Far away, too, and for blocks that are as hard to invert as any."""
    coordinates, z = bent(dim, norm=0.99).to(dtype), size * normal(50, dim, seed=8).to(dtype)
    back = coordinates.inverse(coordinates(z)[0])
    assert back.dtype == dtype
    torch.testing.assert_close(back, z, atol=100 * tol * size, rtol=0.0)


def test_the_inverse_takes_any_leading_axes():
    coordinates, y = bent(2), normal(3, 4, 2, seed=8)
    got = coordinates.inverse(y)
    torch.testing.assert_close(got[2, 1], coordinates.inverse(y[2, 1]))
    assert coordinates.inverse(y[:0]).shape == (0, 4, 2)


def test_what_is_not_a_number_stays_so_and_ends():
    y = torch.tensor([[math.nan, 0.0], [0.5, 1.0]], dtype=torch.float64)
    back = bent(2).inverse(y)
    assert back[0].isnan().all()
    torch.testing.assert_close(back[1:], bent(2).inverse(y[1:]))


@each_dim
def test_derivatives_of_the_inverse_are_those_of_finite_differences(dim):
    y = normal(3, dim, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(bent(dim).inverse, (y,), atol=1e-6)


@each_dim
def test_carried_potentials_have_the_same_slope_where_the_row_puts_the_latents(dim):
    coordinates = bent(dim)
    r, R = normal(6, dim, seed=8), 10.0 * normal(6, dim, seed=9).square()
    r_new, R_new = coordinates.carry(r, R)
    mean = r / (R + 1.0)
    y, slope = coordinates(mean)
    # d/dy of r'z - z'Rz/2 by the chain rule.
    want = torch.linalg.solve(slope.mT, (r - R * mean).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(r_new - R_new * y, want)
    inverse = torch.linalg.inv(slope)
    full = inverse.mT @ torch.diag_embed(R) @ inverse
    torch.testing.assert_close(R_new, full.diagonal(dim1=-2, dim2=-1))


def test_derivatives_of_carried_potentials_are_those_of_finite_differences():
    r, R = normal(3, 2, seed=8), normal(3, 2, seed=9).square()
    inputs = r.requires_grad_(), R.requires_grad_()
    assert torch.autograd.gradcheck(bent(2).carry, inputs)


def test_carrying_is_exact_for_axes_that_are_stretched():
    """Up to a constant, evidence of a latent is that of its coordinates."""
    turn = torch.diag(torch.tensor([3.0, 0.2], dtype=torch.float64))
    coordinates = linear(2, turn)
    r, R = normal(1, 2, seed=8), normal(1, 2, seed=9).square()
    r_new, R_new = coordinates.carry(r, R)
    z = normal(5, 2, seed=10)
    y = coordinates(z)[0]
    old = (r * z - 0.5 * R * z.square()).sum(-1)
    new = (r_new * y - 0.5 * R_new * y.square()).sum(-1)
    torch.testing.assert_close(new - new[0], old - old[0])


def test_no_evidence_stays_none():
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    for field in bent(2).carry(zeros, zeros):
        assert torch.equal(field, zeros)


def test_nothing_is_trained():
    assert not list(bent(2).parameters())
    assert all(not value.requires_grad for value in bent(2).buffers())
