# SPDX-License-Identifier: BSD-3-Clause
from itertools import pairwise

import pytest
import torch

from sksvae.inference import ChainMoments, chain_moments, long_chain_moments


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


def stretches(chain, cuts):
    """Return what comes of each stretch."""
    h, diagonal, lower = chain

    def read(a, b):
        return h[..., a:b, :], diagonal[..., a:b, :, :], lower[..., a:b, :, :]

    return list(long_chain_moments(read, cuts))


def put_together(parts):
    log_normalizers, *fields = zip(*parts, strict=True)
    axes = (-2, -3, -3, -2)
    joined = (torch.cat(field, axis) for field, axis in zip(fields, axes, strict=True))
    return ChainMoments(sum(log_normalizers), *joined)


@pytest.mark.parametrize(
    "cuts",
    [
        [*range(21)],
        [*range(0, 20, 3), 20],
        [*range(0, 20, 7), 20],
        [0, 19, 20],
        [0, 1, 20],
        [0, 20],
    ],
)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_stretches_give_what_one_call_gives(cuts, batch):
    chain = random_chain(20, 3, batch)
    parts = stretches(chain, cuts)
    assert [part.mean.shape[-2] for part in parts] == [b - a for a, b in pairwise(cuts)]
    want, got = chain_moments(*chain), put_together(parts)
    for name, expected, actual in zip(want._fields, want, got, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, msg=name)


def test_each_stretch_is_read_just_before_it_comes():
    h, diagonal, lower = random_chain(20, 3)
    latest = None

    def read(a, b):
        nonlocal latest
        latest = a, b
        return h[a:b], diagonal[a:b], lower[a:b]

    came = []
    for chain in long_chain_moments(read, [0, 6, 13, 20]):
        came.append(latest)
        assert len(chain.mean) == latest[1] - latest[0]
    assert came == [(0, 6), (6, 13), (13, 20)]


def test_single_step_and_single_precision():
    for n_steps in (1, 9):
        chain = random_chain(n_steps, 2, dtype=torch.float32)
        want = chain_moments(*chain)
        got = put_together(stretches(chain, [*range(0, n_steps, 4), n_steps]))
        assert got.mean.dtype == torch.float32
        torch.testing.assert_close(got.mean, want.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.covariance, want.covariance, rtol=1e-4, atol=1e-5)


def test_inputs_stay_as_they_were():
    chain = random_chain(9, 2)
    copies = [field.clone() for field in chain]
    stretches(chain, [0, 4, 8, 9])
    for field, copy in zip(chain, copies, strict=True):
        assert torch.equal(field, copy)


def test_an_indefinite_chain_is_refused():
    h, diagonal, lower = random_chain(9, 2)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
        stretches((h, -diagonal, lower), [0, 4, 8, 9])
