# SPDX-License-Identifier: BSD-3-Clause
"""Banded factorisation of chains, against dense matrices and step by step elimination."""

import pytest
import torch

from sksvae.inference import chain_moments
from sksvae.inference.banded_elimination import Banded, banded_pays
from sksvae.inference.chain_blocks import Blocks
from sksvae.inference.elimination_orders import Sequential


def chains(n_chains, n_steps, dim, dtype=torch.float64):
    """Blocks with the axis of steps first, and a vector."""
    generator = torch.Generator().manual_seed(n_chains + n_steps + dim)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(n_steps, n_chains, dim, dim)
    diagonal = root @ root.mT + 4 * dim * torch.eye(dim, dtype=torch.float64)
    lower = normal(n_steps - 1, n_chains, dim, dim)
    vector = normal(n_steps, n_chains, dim)
    return tuple(part.to(dtype) for part in (diagonal, lower, vector))


def eliminated(order, diagonal, lower, vector):
    """Eliminate, with part of the diagonals of the blocks apart from them."""
    own = torch.ones_like(vector)
    return order.eliminate(Blocks(diagonal - torch.diag_embed(own)), own, Blocks(lower.mT), vector)


def dense(diagonal, lower):
    n_steps, n_chains, dim, _ = diagonal.shape
    J = diagonal.new_zeros(n_chains, n_steps, dim, n_steps, dim)
    for t in range(n_steps):
        J[:, t, :, t] = diagonal[t]
        if t:
            J[:, t, :, t - 1] = lower[t - 1]
            J[:, t - 1, :, t] = lower[t - 1].mT
    return J.reshape(n_chains, n_steps * dim, n_steps * dim)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (2, 2, 1), (3, 5, 2), (2, 7, 4)])
def test_it_is_the_dense_factor(shape):
    n_chains, n_steps, dim = shape
    diagonal, lower, vector = chains(*shape)
    (root, gain, _), whitened, info = eliminated(Banded, diagonal, lower, vector)
    L = torch.linalg.cholesky(dense(diagonal, lower))
    blocks = L.view(n_chains, n_steps, dim, n_steps, dim)
    h = vector.transpose(0, 1).reshape(n_chains, n_steps * dim, 1)
    white = torch.linalg.solve_triangular(L, h, upper=False).view(n_chains, n_steps, dim)
    assert not info.any()
    for t in range(n_steps):
        own = torch.linalg.inv(blocks[:, t, :, t])
        torch.testing.assert_close(root[t], own)
        torch.testing.assert_close(whitened[t, ..., 0], white[:, t])
        following = blocks[:, t + 1, :, t].mT if t + 1 < n_steps else torch.zeros(dim, dim)
        torch.testing.assert_close(gain[t], own.mT @ following.to(own))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str
)
def test_it_is_elimination_step_by_step(dtype, tolerance):
    inputs = chains(3, 30, 5, dtype)
    (root, gain, _), *wanted = eliminated(Sequential, *inputs)
    factors, *rest = eliminated(Banded, *inputs)
    for found, one_by_one in zip((*factors[:2], *rest), (root, gain, *wanted), strict=True):
        assert found.dtype == one_by_one.dtype
        torch.testing.assert_close(found, one_by_one, rtol=0, atol=tolerance)
    columns = torch.stack((inputs[2], inputs[2].flip(0)), -1)
    for substitute in ("substitute_back", "substitute_forward"):
        found, one_by_one = (
            getattr(order, substitute)(factors, columns) for order in (Banded, Sequential)
        )
        assert found.dtype == one_by_one.dtype
        torch.testing.assert_close(found, one_by_one, rtol=0, atol=tolerance)


def test_it_is_for_small_batches_on_a_cpu():
    cpu = torch.device("cpu")
    assert banded_pays(3, 9, 5, torch.float32, cpu)
    assert not banded_pays(300, 1, 2, torch.float32, cpu)
    assert not banded_pays(300, 90, 5, torch.float32, cpu)
    assert not banded_pays(3, 9, 5, torch.float16, cpu)
    assert not banded_pays(3, 9, 5, torch.float32, torch.device("cuda"))


def test_inputs_are_left_alone():
    inputs = chains(2, 4, 3)
    copies = [part.clone() for part in inputs]
    eliminated(Banded, *inputs)
    assert all(map(torch.equal, inputs, copies))


def test_a_pivot_that_is_not_positive_is_found_where_it_is():
    diagonal, lower, vector = chains(3, 6, 2)
    diagonal[4, 1] -= 100 * torch.eye(2, dtype=torch.float64)
    *_, info = eliminated(Banded, diagonal, lower, vector)
    assert info.nonzero().tolist() == [[4, 1]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_error_that_names_the_chain(bad):
    diagonal, lower, vector = (part.transpose(0, 1) for part in chains(3, 6, 2))
    diagonal[2, 3, 0, 0] = bad
    with pytest.raises(torch.linalg.LinAlgError, match="first at batch index 2"):
        chain_moments(vector, diagonal, lower, method="sequential")
