# SPDX-License-Identifier: BSD-3-Clause
"""Dirichlet distribution."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.base import ExponentialFamily, Unconstrained
from sksvae.expfam.numerics import log_standard_gamma


class DirichletParams(NamedTuple):
    """Standard parameters of a Dirichlet.

    Parameters
    ----------
    concentration : Tensor of shape (..., K)
        Positive pseudo-counts.
    """

    concentration: Tensor


class DirichletNatural(NamedTuple):
    """Natural parameters of a Dirichlet: the concentration itself.

    Parameters
    ----------
    concentration : Tensor of shape (..., K)
        Positive pseudo-counts.
    """

    concentration: Tensor


class DirichletStats(NamedTuple):
    """Sufficient statistics of a Dirichlet.

    Parameters
    ----------
    log_probabilities : Tensor of shape (..., K)
        ``log pi``, or its expectation.
    """

    log_probabilities: Tensor


@dataclass(frozen=True)
class Dirichlet(ExponentialFamily[DirichletParams, DirichletNatural, DirichletStats]):
    """Dirichlet on the simplex; base measure ``prod_k pi_k^-1``.

    The base measure is with respect to Lebesgue measure on the first ``K - 1`` coordinates. With
    it the natural parameters are the concentration ``a`` and observed counts add to them.
    ``log Z = sum_k log Gamma(a_k) - log Gamma(sum_k a_k)``. The unconstrained parameters are
    ``log a``, of shape (..., K).

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Dirichlet, DirichletNatural
    >>> Dirichlet().log_normalizer(DirichletNatural(torch.ones(3))).exp()  # uniform: area 1/2
    tensor(0.5000)
    """

    standard_type = DirichletParams
    natural_type = DirichletNatural
    stats_type = DirichletStats
    event_dims = (1,)
    symmetric = (False,)
    size_names = ("n_outcomes",)

    def to_natural(self, standard: DirichletParams) -> DirichletNatural:
        """Concentration."""
        return DirichletNatural(_check_positive(standard.concentration))

    def from_natural(self, natural: DirichletNatural) -> DirichletParams:
        """Concentration."""
        return DirichletParams(_check_positive(natural.concentration))

    def to_unconstrained(self, standard: DirichletParams) -> Unconstrained:
        """Logarithm of the concentration."""
        return (_check_positive(standard.concentration).log(),)

    def from_unconstrained(self, unconstrained: Unconstrained) -> DirichletParams:
        """Exponential of the coordinates."""
        (log_concentration,) = unconstrained
        return DirichletParams(log_concentration.exp())

    def unconstrained_shapes(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """Shape ``(K,)``."""
        (n_outcomes,) = sizes
        return ((n_outcomes,),)

    def log_normalizer(self, natural: DirichletNatural) -> Tensor:
        """``sum_k log Gamma(a_k) - log Gamma(sum_k a_k)``."""
        concentration = _check_positive(natural.concentration)
        return concentration.lgamma().sum(-1) - concentration.sum(-1).lgamma()

    def expected_stats(self, natural: DirichletNatural) -> DirichletStats:
        """``psi(a_k) - psi(sum_j a_j)``."""
        concentration = _check_positive(natural.concentration)
        total = concentration.sum(-1, keepdim=True)
        return DirichletStats(concentration.digamma() - total.digamma())

    def tangent_to_unconstrained(
        self, unconstrained: Unconstrained, tangent: DirichletNatural
    ) -> Unconstrained:
        """``a_dot / a``."""
        (log_concentration,) = unconstrained
        return (tangent.concentration * torch.exp(-log_concentration),)

    def log_base_measure(self, stats: DirichletStats) -> Tensor:
        """``-sum_k log pi_k``."""
        return -stats.log_probabilities.sum(-1)

    def sample(
        self, standard: DirichletParams, sample_shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw probabilities of shape ``(*sample_shape, ..., K)``, all positive."""
        concentration = _check_positive(standard.concentration)
        shape = concentration.expand(*sample_shape, *concentration.shape)
        draw = log_standard_gamma(shape, generator).softmax(-1)
        # Draws lie inside the simplex; a coordinate that underflows is put back inside.
        return draw.clamp_min(torch.finfo(draw.dtype).tiny)

    def stats_of(self, sample: Tensor) -> DirichletStats:
        """``log pi``."""
        return DirichletStats(sample.log())


def _check_positive(concentration: Tensor) -> Tensor:
    if not (concentration > 0).all():
        raise ValueError(
            f"concentration must be positive, got a smallest value of {concentration.min():.6g}."
        )
    return concentration
