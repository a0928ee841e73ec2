# SPDX-License-Identifier: BSD-3-Clause
"""Categorical distribution in its over-complete form."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.base import ExponentialFamily, Unconstrained


class CategoricalParams(NamedTuple):
    """Standard parameters of a categorical distribution.

    Parameters
    ----------
    probabilities : Tensor of shape (..., K)
        Nonnegative, sum to one.
    """

    probabilities: Tensor


class CategoricalNatural(NamedTuple):
    """Natural parameters of a categorical distribution.

    Parameters
    ----------
    logits : Tensor of shape (..., K)
        Logarithms of unnormalised probabilities.
    """

    logits: Tensor


class CategoricalStats(NamedTuple):
    """Sufficient statistics of a categorical distribution.

    Parameters
    ----------
    probabilities : Tensor of shape (..., K)
        One-hot indicator of the outcome, or its expectation.
    """

    probabilities: Tensor


@dataclass(frozen=True)
class Categorical(ExponentialFamily[CategoricalParams, CategoricalNatural, CategoricalStats]):
    """Categorical over ``K`` outcomes as one-hot vectors; base measure 1 (counting measure).

    Over-complete: adding a constant to all logits leaves the distribution as it is and adds the
    constant to ``log Z = logsumexp(logits)``. The unconstrained parameters are the normalised
    logits, of shape (..., K). The Fisher matrix is singular along the constant direction, and
    natural gradients are determined up to it. Probabilities of zero are allowed.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Categorical, CategoricalNatural
    >>> Categorical().expected_stats(CategoricalNatural(torch.zeros(4))).probabilities
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    standard_type = CategoricalParams
    natural_type = CategoricalNatural
    stats_type = CategoricalStats
    event_dims = (1,)
    symmetric = (False,)
    size_names = ("n_outcomes",)

    def to_natural(self, standard: CategoricalParams) -> CategoricalNatural:
        """Normalised logits, ``log p``."""
        return CategoricalNatural(standard.probabilities.log())

    def from_natural(self, natural: CategoricalNatural) -> CategoricalParams:
        """Probabilities, ``softmax(logits)``."""
        return CategoricalParams(natural.logits.softmax(-1))

    def to_unconstrained(self, standard: CategoricalParams) -> Unconstrained:
        """Normalised logits, ``log p``."""
        return (standard.probabilities.log(),)

    def from_unconstrained(self, unconstrained: Unconstrained) -> CategoricalParams:
        """Probabilities, ``softmax(logits)``."""
        (logits,) = unconstrained
        return CategoricalParams(logits.softmax(-1))

    def unconstrained_shapes(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """Shape ``(K,)``."""
        (n_outcomes,) = sizes
        return ((n_outcomes,),)

    def log_normalizer(self, natural: CategoricalNatural) -> Tensor:
        """``logsumexp(logits)``."""
        return natural.logits.logsumexp(-1)

    def expected_stats(self, natural: CategoricalNatural) -> CategoricalStats:
        """Probabilities, ``softmax(logits)``."""
        return CategoricalStats(natural.logits.softmax(-1))

    def tangent_to_unconstrained(
        self, unconstrained: Unconstrained, tangent: CategoricalNatural
    ) -> Unconstrained:
        """Tangent of the logits, less its mean under ``p`` since these are normalised."""
        (probabilities,) = self.from_unconstrained(unconstrained)
        (logits,) = tangent
        return (logits - (probabilities * logits).sum(-1, keepdim=True),)

    def kl(self, natural_q: CategoricalNatural, natural_p: CategoricalNatural) -> Tensor:
        """``sum_k q_k (log q_k - log p_k)``, where outcomes with ``q_k = 0`` count nothing."""
        log_q, log_p = natural_q.logits.log_softmax(-1), natural_p.logits.log_softmax(-1)
        probabilities = log_q.exp()
        # Masking the ratio, not the product, keeps the gradient free of 0 * inf.
        log_ratio = torch.where(probabilities > 0, log_q - log_p, 0.0)
        return (probabilities * log_ratio).sum(-1)

    def entropy(self, natural: CategoricalNatural) -> Tensor:
        """``-sum_k p_k log p_k``, where outcomes with ``p_k = 0`` count nothing."""
        return torch.special.entr(natural.logits.softmax(-1)).sum(-1)

    def sample(
        self,
        standard: CategoricalParams,
        sample_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> Tensor:
        """Draw one-hot vectors of shape ``(*sample_shape, ..., K)``."""
        probabilities = standard.probabilities.expand(*sample_shape, *standard.probabilities.shape)
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        index = torch.multinomial(rows, 1, generator=generator)
        return torch.zeros_like(rows).scatter_(-1, index, 1.0).reshape(probabilities.shape)

    def stats_of(self, sample: Tensor) -> CategoricalStats:
        """One-hot vectors are their own statistics."""
        return CategoricalStats(sample)
