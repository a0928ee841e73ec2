# SPDX-License-Identifier: BSD-3-Clause
"""Weighted sums of blocks, and moments relative to a point, against arrays and autograd."""

import pytest
import torch

from sksvae.inference import chain_moments
from sksvae.inference.block_tridiagonal import centered_moments
from sksvae.inference.chain_blocks import BlockCotangents, Blocks

from .cases import normal

METHODS = ("sequential", "parallel")
every_method = pytest.mark.parametrize("method", METHODS)


def weighted_blocks(n_tables=2, shape=(5, 3), dim=2, seed=0):
    return Blocks(normal(n_tables, dim, dim, seed=seed), normal(*shape, n_tables, seed=seed + 1))


def sums(blocks):
    """Add blocks up one by one."""
    table, weights = blocks
    return sum(weights[..., r, None, None] * table[r] for r in range(len(table)))


def test_everything_is_that_of_the_array_of_blocks():
    blocks = weighted_blocks()
    array = Blocks(sums(blocks))
    torch.testing.assert_close(blocks.whole(), array.table)
    assert array.whole() is array.table
    assert blocks.shape == array.shape == (5, 3, 2, 2)
    points, mask = normal(5, 3, 2, seed=7), normal(5, 3, 1, seed=8) > 0
    for got, wanted in (
        (blocks.times(points), torch.einsum("tbij,tbj->tbi", array.table, points)),
        (blocks.diagonals(), torch.einsum("tbii->tbi", array.table)),
        (blocks.transposed().whole(), array.table.mT),
        (blocks.where(mask).whole(), array.table * mask.unsqueeze(-1)),
        (blocks.flat(3, 5).whole(), array.table.reshape(3, 5, 2, 2)),
        (blocks.steps_first().whole(), array.table.transpose(0, 1)),
    ):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(array.times(points), blocks.times(points))
    torch.testing.assert_close(array.where(mask).whole(), blocks.where(mask).whole())
    for each in (blocks, array):
        out = torch.empty(3, 2, 2, dtype=points.dtype)
        each.copy_step(4, out)
        torch.testing.assert_close(out, array.table[4])


@pytest.mark.parametrize("wants_weights", [True, False])
def test_cotangents_collected_some_steps_at_a_time_are_those_of_autograd(wants_weights):
    leaves = [x.requires_grad_() for x in weighted_blocks()]
    blocks, cotangent = Blocks(*leaves), normal(5, 3, 2, 2, seed=9)
    wanted = torch.autograd.grad(blocks.whole(), leaves, cotangent)
    with torch.no_grad():
        collected = BlockCotangents(blocks, wants_weights)
        for steps in (slice(3, 5), slice(0, 3)):
            collected.put(steps, cotangent[steps])
    table, weights = collected.result()
    torch.testing.assert_close(table, wanted[0])
    if wants_weights:
        torch.testing.assert_close(weights, wanted[1].transpose(0, 1))
    else:
        assert weights is None


def problem(n_steps, n_sequences=2, dim=2, n_tables=3):
    """A point, and what chains of weighted blocks with potentials depend on."""
    generator = torch.Generator().manual_seed(n_steps)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = random(n_tables, 2 * dim, 2 * dim)
    pair = root @ root.mT / (2 * dim)
    moves = random(n_sequences, n_steps - 1, n_tables).square()
    inputs = [
        random(n_sequences, n_steps, dim),  # r
        0.5 + random(n_sequences, n_steps, dim).square(),  # R
        random(n_sequences, n_steps, dim),  # h
        torch.cat((pair[:, dim:, dim:], pair[:, :dim, :dim])),
        pair[:, dim:, :dim].clone(),
        moves,
        random(2, n_sequences, n_steps, dim),
    ]
    return random(n_sequences, n_steps, dim), [x.requires_grad_() for x in inputs]


def roles(moves):
    """Weights of the diagonal blocks: of the later step of each transition, and the earlier."""
    return torch.cat(
        [torch.nn.functional.pad(moves, pad) for pad in ((0, 0, 1, 0), (0, 0, 0, 1))], -1
    )


def product(diagonal, lower, points):
    """``J c``, of arrays of blocks."""
    columns = points.unsqueeze(-1)
    total = (diagonal @ columns).squeeze(-1)
    total[:, 1:] += (lower @ columns[:, :-1]).squeeze(-1)
    total[:, :-1] += (lower.mT @ columns[:, 1:]).squeeze(-1)
    return total


def relative_to(center, inputs, mask, method):
    """Log normaliser less that of the potentials at a point, moments and draws."""
    r, R, h, tables, below, moves, noise = inputs
    diagonal, lower = Blocks(tables, roles(moves)), Blocks(below, moves)
    with torch.no_grad():
        along = product(diagonal.whole(), lower.whole(), center)
    slope = r - R * center + h - along
    moments = centered_moments(
        center, slope, R, diagonal, lower, mask=mask, noise=noise, method=method
    )
    log_prior = torch.where(mask.unsqueeze(-1), (h - 0.5 * along) * center, 0.0).sum((-2, -1))
    shift = torch.where(mask.unsqueeze(-1), center, 0.0)
    return (
        log_prior + moments.log_normalizer,
        shift + moments.mean,
        moments.covariance,
        moments.lag_covariance,
        shift + moments.draws,
        moments.variance,
    )


def directly(center, inputs, mask, method):
    """The same of arrays of blocks, without the point."""
    r, R, h, tables, below, moves, noise = inputs
    J = sums(Blocks(tables, roles(moves))) + torch.diag_embed(R)
    lower = sums(Blocks(below, moves))
    chain = chain_moments(h + r, J, lower, mask=mask, noise=noise, method=method)
    at_center = torch.where(mask.unsqueeze(-1), (r - 0.5 * R * center) * center, 0.0)
    variance = chain.covariance.diagonal(dim1=-2, dim2=-1)
    return (chain.log_normalizer - at_center.sum((-2, -1)), *chain[1:], variance)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 8])
@every_method
def test_a_point_changes_neither_moments_nor_gradients(method, n_steps, cut):
    center, inputs = problem(n_steps)
    mask = torch.ones(center.shape[:2], dtype=torch.bool)
    if cut:
        mask[1, n_steps // 2 :] = False
        with torch.no_grad():
            links = mask[:, 1:] & mask[:, :-1]
            inputs[5] *= links.unsqueeze(-1)
            center *= mask.unsqueeze(-1)
    got = relative_to(center, inputs, mask, method)
    wanted = directly(center, inputs, mask, method)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        cotangent = normal(*a.shape, seed=i)
        gradients = (
            torch.autograd.grad(
                x, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for x in (a, b)
        )
        for x, y in zip(*gradients, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
