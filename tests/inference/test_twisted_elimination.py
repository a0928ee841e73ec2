# SPDX-License-Identifier: BSD-3-Clause
"""Elimination from both ends against the inverse of the whole matrix."""

import numpy as np
import pytest
import torch

from sksvae.inference.twisted_elimination import TwistedChains
from tests.inference.test_block_tridiagonal import dense_moments, random_chain

N_STEPS = [1, 2, 3, 4, 5, 8, 13]
each_length = pytest.mark.parametrize("n_steps", N_STEPS)


def fill(chains, h, diagonal, lower, pivots, sides):
    """Write chains, sequences first, where a run or a tangent reads them."""
    dim, middle = h.shape[-1], h.shape[1] // 2
    steps = torch.cat([diagonal, h.unsqueeze(-2)], -2).transpose(0, 1)
    chains.to_stages(steps.numpy(), pivots)
    towards = torch.zeros_like(steps)
    towards[:middle, :, :dim] = lower.transpose(0, 1)[:middle]
    towards[middle + 1 :, :, :dim] = lower.mT.transpose(0, 1)[middle:]
    chains.to_stages(towards.numpy(), sides)


def run(chain, dtype=torch.float64):
    """Mean, covariance and lag-one covariance, sequences first, and the chains."""
    h = chain[0]
    n_chains, n_steps, dim = h.shape
    chains = TwistedChains(n_steps, n_chains, dim, dtype)
    fill(chains, *chain, chains.pivots, chains.sides)
    assert chains.run()
    return chains, *read(chains, chains.moments, chains.products)


def read(chains, moments, products):
    dim = moments.shape[-1]
    steps = torch.from_numpy(chains.in_time(moments)).transpose(0, 1)
    middle = chains.n_steps // 2
    from_centre = torch.from_numpy(-chains.in_time(products)[..., :dim, :]).transpose(0, 1)
    # Of each step with the next towards the middle, which is the later one in the first half.
    lag = torch.cat([from_centre[:, :middle], from_centre[:, middle + 1 :].mT], 1)
    return steps[..., dim, :], steps[..., :dim, :], lag


def dense(h, diagonal, lower):
    """The same by inverting the whole matrix."""
    return dense_moments(h, diagonal, lower, h[None], "sequential")[1:4]


def case(n_chains, n_steps, dim=2, seed=0):
    return random_chain((n_chains,), n_steps, dim, seed=seed)[:3]


@each_length
def test_moments_are_those_of_the_dense_inverse(n_steps):
    chain = case(3, n_steps)
    _, *found = run(chain)
    for moments, expected in zip(found, dense(*chain), strict=True):
        torch.testing.assert_close(moments, expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("n_steps", [4, 5])
def test_a_second_run_does_not_depend_on_the_first(n_steps):
    one, other = (case(2, n_steps, 3, seed) for seed in (0, 7))
    chains, *_ = run(one)
    fill(chains, *other, chains.pivots, chains.sides)
    assert chains.run()
    again = read(chains, chains.moments, chains.products)
    for moments, expected in zip(again, run(other)[1:], strict=True):
        torch.testing.assert_close(moments, expected, rtol=0.0, atol=0.0)


@each_length
def test_tangents_are_those_of_autograd(n_steps):
    chain = case(2, n_steps)
    change = case(2, n_steps, seed=50)
    _, expected = torch.autograd.functional.jvp(dense, chain, change)
    chains, *_ = run(chain)
    pivots, sides = np.zeros_like(chains.pivots), np.zeros_like(chains.sides)
    fill(chains, *change, pivots, sides)
    for rate, other in zip(read(chains, *chains.tangent(pivots, sides)), expected, strict=True):
        torch.testing.assert_close(rate, other, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("n_steps", [4, 5])
def test_single_precision(n_steps):
    chain = case(3, n_steps)
    single = tuple(part.float() for part in chain)
    _, *found = run(single, torch.float32)
    for moments, expected in zip(found, dense(*chain), strict=True):
        assert moments.dtype == torch.float32
        torch.testing.assert_close(moments.double(), expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("value", [-1.0, torch.inf, torch.nan])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_precision_that_is_none_is_told(step, value):
    h, diagonal, lower = case(2, 5)
    diagonal[1, step] = value * torch.eye(2) if value == -1.0 else value
    chains = TwistedChains(5, 2, 2, torch.float64)
    fill(chains, h, diagonal, lower, chains.pivots, chains.sides)
    assert not chains.run()
