# SPDX-License-Identifier: BSD-3-Clause
"""The defaults of the protocol, on the smallest possible family."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import scipy.stats
import torch
from torch import Tensor

from sksvae.expfam import EXPONENTIAL_FAMILIES, ExponentialFamily, natural_expected_stats

from .cases import generator, random_natural, z_scores


class ExponentialParams(NamedTuple):
    rate: Tensor


class ExponentialNatural(NamedTuple):
    negative_rate: Tensor


class ExponentialStats(NamedTuple):
    value: Tensor


@dataclass(frozen=True)
class Exponential(ExponentialFamily[ExponentialParams, ExponentialNatural, ExponentialStats]):
    """Exponential waiting times: only what is abstract is implemented."""

    standard_type = ExponentialParams
    natural_type = ExponentialNatural
    stats_type = ExponentialStats
    event_dims = (0,)
    symmetric = (False,)
    size_names = ()

    def to_natural(self, standard):
        return ExponentialNatural(-standard.rate)

    def from_natural(self, natural):
        return ExponentialParams(-natural.negative_rate)

    def to_unconstrained(self, standard):
        return (standard.rate.log(),)

    def from_unconstrained(self, unconstrained):
        return ExponentialParams(unconstrained[0].exp())

    def unconstrained_shapes(self, *sizes):
        return ((),)

    def log_normalizer(self, natural):
        return -torch.log(-natural.negative_rate)

    def expected_stats(self, natural):
        return ExponentialStats(-1.0 / natural.negative_rate)

    def sample(self, standard, sample_shape, generator):
        shape = (*sample_shape, *standard.rate.shape)
        return -torch.log1p(-torch.rand(shape, generator=generator).double()) / standard.rate

    def stats_of(self, sample):
        return ExponentialStats(sample)


RATES = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def test_defaults_agree_with_scipy():
    family = Exponential()
    natural = family.to_natural(ExponentialParams(RATES))
    oracle = scipy.stats.expon(scale=1 / RATES.numpy())
    torch.testing.assert_close(family.entropy(natural), torch.from_numpy(oracle.entropy()))
    value = torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(
        family.log_prob(natural, value), torch.from_numpy(oracle.logpdf(0.7))
    )
    draws = family.sample(ExponentialParams(RATES), (10_000,), generator())
    assert z_scores(draws, 1 / RATES).abs().max() < 5.0


def test_default_kl_agrees_with_the_textbook():
    family = Exponential()
    q = family.to_natural(ExponentialParams(RATES))
    p = family.to_natural(ExponentialParams(RATES.flip(0)))
    expected = torch.log(RATES / RATES.flip(0)) + RATES.flip(0) / RATES - 1.0
    torch.testing.assert_close(family.kl(q, p), expected)
    torch.testing.assert_close(family.unconstrained_kl((RATES.log(),), p), expected)


def test_default_natural_gradient_agrees_with_the_fisher_information():
    # In u = log(rate): mu = 1 / rate, Fisher information 1, dmu/du = -mu.
    u = RATES.log().requires_grad_()
    (mu,) = natural_expected_stats(Exponential(), (u,))
    torch.testing.assert_close(mu, 1 / RATES)
    mu.square().sum().backward()
    torch.testing.assert_close(u.grad, -2.0 / RATES.square())


def test_inner_is_a_plain_sum_over_all_entries():
    family = EXPONENTIAL_FAMILIES["mniw"]
    eta, mu = random_natural("mniw"), random_natural("mniw", seed=1)
    expected = sum(
        float(a) * float(b)
        for x, y in zip(eta, mu, strict=True)
        for a, b in zip(x.reshape(-1), y.reshape(-1), strict=True)
    )
    assert float(family.inner(eta, mu)) == pytest.approx(expected, rel=1e-12)


def test_inner_broadcasts_batches():
    family = EXPONENTIAL_FAMILIES["niw"]
    eta, mu = random_natural("niw", (2, 3)), random_natural("niw", seed=1)
    inner = family.inner(eta, mu)
    assert inner.shape == (2, 3)
    entry = tuple(field[1, 2] for field in eta)
    torch.testing.assert_close(inner[1, 2], family.inner(entry, mu))


def test_inner_refuses_tuples_of_another_structure():
    family = EXPONENTIAL_FAMILIES["niw"]
    eta = random_natural("niw")
    with pytest.raises(ValueError, match="zip"):
        family.inner(eta, eta[:3])


def test_symmetrize_touches_symmetric_fields_only():
    family = EXPONENTIAL_FAMILIES["mniw"]
    noise = tuple(torch.randn(f.shape, generator=generator()) for f in random_natural("mniw"))
    noise = (noise[0], torch.randn((2, 2), generator=generator()), *noise[2:])
    result = family.symmetrize(noise)
    torch.testing.assert_close(result.precision, (noise[0] + noise[0].T) / 2)
    assert not torch.equal(result.precision, noise[0])
    assert torch.equal(result.precision_mean, noise[1])  # square, but not symmetric
    assert torch.equal(result.log_det_precision, noise[3])


def test_families_are_interchangeable_values():
    for family in EXPONENTIAL_FAMILIES.values():
        assert family == type(family)()
        assert hash(family) == hash(type(family)())
        with pytest.raises(AttributeError):  # a frozen dataclass
            family.state = 1
