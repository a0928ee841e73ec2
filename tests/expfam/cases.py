# SPDX-License-Identifier: BSD-3-Clause
"""Parameters and comparisons shared by the tests of the exponential families."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sksvae.expfam import EXPONENTIAL_FAMILIES

BATCH_SHAPES = [(), (3,), (2, 3)]
NAMES = sorted(EXPONENTIAL_FAMILIES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def default_sizes(family):
    """Different integers, so that a transposed shape is noticed."""
    return (3, 2)[: len(family.size_names)]


def random_standard(name, batch_shape=(), seed=0, dtype=torch.float64, sizes=None, spread=0.5):
    family = EXPONENTIAL_FAMILIES[name]
    sizes = default_sizes(family) if sizes is None else sizes
    return family.random_standard(
        *sizes, batch_shape=batch_shape, generator=generator(seed), dtype=dtype, spread=spread
    )


def random_natural(name, *args, **kwargs):
    return EXPONENTIAL_FAMILIES[name].to_natural(random_standard(name, *args, **kwargs))


def concentrated_standard(name, batch_shape=(), seed=0, dtype=torch.float64):
    """Return parameters whose draws are well-conditioned: three times natural ones.

    A covariance drawn with the fewest degrees of freedom can be too ill-conditioned for its
    statistics, which need its inverse.
    """
    family = EXPONENTIAL_FAMILIES[name]
    natural = random_natural(name, batch_shape, seed, dtype)
    return family.from_natural(type(natural)(*(3.0 * field for field in natural)))


def random_unconstrained(name, *args, **kwargs):
    return EXPONENTIAL_FAMILIES[name].to_unconstrained(random_standard(name, *args, **kwargs))


@st.composite
def standard_parameters(draw, family, n=1):
    """Strategy: ``n`` valid parameters of one random size and batch shape, float64."""
    sizes = [draw(st.integers(1, 4)) for _ in family.size_names]
    batch_shape = draw(st.sampled_from(BATCH_SHAPES))

    def one():
        unconstrained = [
            torch.from_numpy(
                draw(arrays(np.float64, (*batch_shape, *shape), elements=st.floats(-1.0, 1.0)))
            )
            for shape in family.unconstrained_shapes(*sizes)
        ]
        return family.from_unconstrained(tuple(unconstrained))

    return one() if n == 1 else tuple(one() for _ in range(n))


def assert_fields_close(actual, expected, tolerance):
    """Compare tuples of tensors; errors are relative to the largest entry of each field."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * scale)


def flatten(fields):
    return torch.cat([field.reshape(-1) for field in fields])


def unflatten(vector, like):
    pieces = vector.split([field.numel() for field in like])
    return tuple(piece.reshape(field.shape) for piece, field in zip(pieces, like, strict=True))


def z_scores(draws, expected):
    """Deviation of the mean of the draws (first axis) in standard errors.

    Entries that do not vary, beyond rounding, must agree to rounding and count as zero.
    """
    deviation = draws.mean(0) - expected
    error = draws.std(0) / draws.shape[0] ** 0.5
    constant = error < 1e-12 * (1.0 + expected.abs())
    assert (deviation[constant].abs() < 1e-9).all()
    return torch.where(constant, 0.0, deviation / error)
