# SPDX-License-Identifier: BSD-3-Clause
"""Multivariate Gaussian in information form."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.base import ExponentialFamily, Unconstrained
from sksvae.expfam.numerics import (
    cholesky,
    exp_cholesky,
    inverse_from_cholesky,
    log_cholesky,
    log_cholesky_tangent,
    log_det,
    solve_from_cholesky,
    standard_normal,
)


class GaussianParams(NamedTuple):
    """Standard parameters of a Gaussian.

    Parameters
    ----------
    mean : Tensor of shape (..., D)
        Mean.
    covariance : Tensor of shape (..., D, D)
        Covariance, symmetric positive definite.
    """

    mean: Tensor
    covariance: Tensor


class GaussianNatural(NamedTuple):
    """Natural parameters of a Gaussian: the log density is ``h'z - z'Jz / 2 - log Z``.

    Parameters
    ----------
    precision_mean : Tensor of shape (..., D)
        ``h = J m``.
    precision : Tensor of shape (..., D, D)
        ``J``, symmetric positive definite.
    """

    precision_mean: Tensor
    precision: Tensor


class GaussianStats(NamedTuple):
    """Sufficient statistics of a Gaussian.

    Parameters
    ----------
    mean : Tensor of shape (..., D)
        ``z``, or its expectation.
    negative_half_outer : Tensor of shape (..., D, D)
        ``-z z' / 2``, or its expectation ``-(covariance + mean mean') / 2``.
    """

    mean: Tensor
    negative_half_outer: Tensor


@dataclass(frozen=True)
class Gaussian(ExponentialFamily[GaussianParams, GaussianNatural, GaussianStats]):
    """Gaussian on ``R^D``; base measure 1 with respect to Lebesgue measure.

    ``log Z = h' J^-1 h / 2 - log|J| / 2 + D log(2 pi) / 2``. The unconstrained parameters are
    the mean of shape (..., D) and the log-Cholesky matrix of the covariance of shape
    (..., D, D), see `sksvae.expfam.numerics.log_cholesky`. The mean field of the statistics is
    named as in the standard parameters because it is the same number.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Gaussian, GaussianParams
    >>> natural = Gaussian().to_natural(GaussianParams(torch.ones(2), 2 * torch.eye(2)))
    >>> natural.precision_mean
    tensor([0.5000, 0.5000])
    """

    standard_type = GaussianParams
    natural_type = GaussianNatural
    stats_type = GaussianStats
    event_dims = (1, 2)
    symmetric = (False, True)

    def to_natural(self, standard: GaussianParams) -> GaussianNatural:
        """Natural parameters ``(C^-1 m, C^-1)`` of mean ``m`` and covariance ``C``."""
        factor = cholesky(standard.covariance, "covariance")
        precision_mean = solve_from_cholesky(factor, standard.mean.unsqueeze(-1)).squeeze(-1)
        return GaussianNatural(precision_mean, inverse_from_cholesky(factor))

    def from_natural(self, natural: GaussianNatural) -> GaussianParams:
        """Mean ``J^-1 h`` and covariance ``J^-1``."""
        factor = cholesky(natural.precision, "precision")
        return GaussianParams(_mean(natural, factor).squeeze(-1), inverse_from_cholesky(factor))

    def to_unconstrained(self, standard: GaussianParams) -> Unconstrained:
        """Mean and log-Cholesky matrix of the covariance."""
        return standard.mean, log_cholesky(cholesky(standard.covariance, "covariance"))

    def from_unconstrained(self, unconstrained: Unconstrained) -> GaussianParams:
        """Mean and covariance."""
        mean, log_factor = unconstrained
        factor = exp_cholesky(log_factor)
        return GaussianParams(mean, factor @ factor.mT)

    def unconstrained_shapes(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """Shapes ``(D,)`` and ``(D, D)``."""
        (dim,) = sizes
        return (dim,), (dim, dim)

    def log_normalizer(self, natural: GaussianNatural) -> Tensor:
        """``h' J^-1 h / 2 - log|J| / 2 + D log(2 pi) / 2``."""
        factor = cholesky(natural.precision, "precision")
        whitened = torch.linalg.solve_triangular(
            factor, natural.precision_mean.unsqueeze(-1), upper=False
        )
        constant = natural.precision_mean.shape[-1] * math.log(2.0 * math.pi)
        return 0.5 * (whitened.square().sum((-2, -1)) - log_det(factor) + constant)

    def expected_stats(self, natural: GaussianNatural) -> GaussianStats:
        """``(m, -(C + m m') / 2)`` with ``C = J^-1`` and ``m = C h``."""
        return _expected_stats(self.from_natural(natural))

    def unconstrained_expected_stats(self, unconstrained: Unconstrained) -> GaussianStats:
        """``(m, -(C + m m') / 2)`` without any factorisation."""
        return _expected_stats(self.from_unconstrained(unconstrained))

    def tangent_to_unconstrained(
        self, unconstrained: Unconstrained, tangent: GaussianNatural
    ) -> Unconstrained:
        """``m_dot = C (h_dot - J_dot m)``; ``C_dot = -C J_dot C`` in log-Cholesky form."""
        mean, log_factor = unconstrained
        factor = exp_cholesky(log_factor)
        residual = tangent.precision_mean.unsqueeze(-1) - tangent.precision @ mean.unsqueeze(-1)
        mean_tangent = (factor @ (factor.mT @ residual)).squeeze(-1)
        # Whitening C_dot = -L L' J_dot L L' by L leaves a product: no triangular solve needed.
        whitened = -factor.mT @ tangent.precision @ factor
        return mean_tangent, log_cholesky_tangent(factor, whitened)

    def kl(self, natural_q: GaussianNatural, natural_p: GaussianNatural) -> Tensor:
        """``(tr(J_p C_q) - D - log|J_p C_q| + (m_q - m_p)' J_p (m_q - m_p)) / 2``.

        Unlike the Bregman form it does not cancel when means are large against deviations.
        """
        factor_q = cholesky(natural_q.precision, "precision of q")
        factor_p = cholesky(natural_p.precision, "precision of p")
        # tr(J_p C_q) = ||L_q^-1 L_p||^2
        ratio = torch.linalg.solve_triangular(factor_q, factor_p, upper=False)
        shift = factor_p.mT @ (_mean(natural_q, factor_q) - _mean(natural_p, factor_p))
        trace = ratio.square().sum((-2, -1)) - factor_q.shape[-1]
        return 0.5 * (trace - log_det(ratio) + shift.square().sum((-2, -1)))

    def sample(
        self, standard: GaussianParams, sample_shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """Draw ``z = m + L e`` of shape ``(*sample_shape, ..., D)`` with ``C = L L'``."""
        factor = cholesky(standard.covariance, "covariance")
        mean = standard.mean
        noise = standard_normal((*sample_shape, *mean.shape), mean, generator)
        return mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)

    def stats_of(self, sample: Tensor) -> GaussianStats:
        """``(z, -z z' / 2)``."""
        return GaussianStats(sample, -0.5 * sample.unsqueeze(-1) * sample.unsqueeze(-2))


def _mean(natural: GaussianNatural, factor: Tensor) -> Tensor:
    """Mean ``J^-1 h`` as a column, from the Cholesky factor of ``J``."""
    return solve_from_cholesky(factor, natural.precision_mean.unsqueeze(-1))


def _expected_stats(standard: GaussianParams) -> GaussianStats:
    mean, covariance = standard
    second = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    return GaussianStats(mean, -0.5 * second)
