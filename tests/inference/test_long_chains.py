# SPDX-License-Identifier: BSD-3-Clause
import pytest
import torch

from sksvae.inference import chain_moments, long_chain_moments


def random_chain(n_steps, dim, batch=(), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    h, lower = normal(*batch, n_steps, dim), normal(*batch, n_steps - 1, dim, dim)
    root = normal(*batch, n_steps, dim, dim)
    diagonal = root @ root.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    # What each coupling takes, its neighbours have to give.
    size = torch.linalg.matrix_norm(lower, 2)[..., None, None] * torch.eye(dim).double()
    diagonal[..., 1:, :, :] += size
    diagonal[..., :-1, :, :] += size
    return tuple(field.to(dtype) for field in (h, diagonal, lower))


@pytest.mark.parametrize("n_at_once", [1, 2, 3, 7, 20, 100])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_stretches_give_what_one_call_gives(n_at_once, batch):
    chain = random_chain(20, 3, batch)
    want, got = chain_moments(*chain), long_chain_moments(*chain, n_steps=n_at_once)
    for name, expected, actual in zip(want._fields, want, got, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, msg=name)


def test_single_step_and_single_precision():
    for n_steps in (1, 9):
        chain = random_chain(n_steps, 2, dtype=torch.float32)
        want, got = chain_moments(*chain), long_chain_moments(*chain, n_steps=4)
        assert got.mean.dtype == torch.float32
        torch.testing.assert_close(got.mean, want.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.covariance, want.covariance, rtol=1e-4, atol=1e-5)


def test_inputs_stay_as_they_were():
    chain = random_chain(9, 2)
    copies = [field.clone() for field in chain]
    long_chain_moments(*chain, n_steps=4)
    for field, copy in zip(chain, copies, strict=True):
        assert torch.equal(field, copy)


def test_an_indefinite_chain_is_refused():
    h, diagonal, lower = random_chain(9, 2)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
        long_chain_moments(h, -diagonal, lower, n_steps=4)
