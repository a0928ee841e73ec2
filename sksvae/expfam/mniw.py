# SPDX-License-Identifier: BSD-3-Clause
"""Matrix normal inverse Wishart: the conjugate prior of a linear regression with full noise.

The formulas follow from the densities below and are tested against automatic differentiation of
the log normaliser; the printed ones of [P, (187)-(190)] lack a factor 1/2 and a logarithm.
"""

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
    log_standard_gamma,
    solve_from_cholesky,
    standard_normal,
    symmetrize,
    whiten,
)


class MNIWParams(NamedTuple):
    """Standard parameters ``(S, M, V, nu)`` of a matrix normal inverse Wishart.

    Parameters
    ----------
    scale : Tensor of shape (..., n, n)
        ``S``, symmetric positive definite.
    mean : Tensor of shape (..., n, m)
        ``M``, the mean of ``X``.
    mean_precision : Tensor of shape (..., m, m)
        ``V``, the precision between the columns of ``X``, symmetric positive definite.
    dof : Tensor of shape (...)
        ``nu > n - 1``, the degrees of freedom.
    """

    scale: Tensor
    mean: Tensor
    mean_precision: Tensor
    dof: Tensor


class MNIWNatural(NamedTuple):
    """Natural parameters of a matrix normal inverse Wishart, named after their statistics.

    Parameters
    ----------
    precision : Tensor of shape (..., n, n)
        ``-(S + M V M') / 2``, multiplies ``Sigma^-1``.
    precision_mean : Tensor of shape (..., n, m)
        ``M V``, multiplies ``Sigma^-1 X``.
    quadratic : Tensor of shape (..., m, m)
        ``-V / 2``, multiplies ``X' Sigma^-1 X``.
    log_det_precision : Tensor of shape (...)
        ``(nu + n + m + 1) / 2``, multiplies ``log|Sigma^-1|``.
    """

    precision: Tensor
    precision_mean: Tensor
    quadratic: Tensor
    log_det_precision: Tensor


class MNIWStats(NamedTuple):
    """Sufficient statistics of a matrix normal inverse Wishart, or their expectations.

    Parameters
    ----------
    precision : Tensor of shape (..., n, n)
        ``Sigma^-1``; in expectation ``nu S^-1``.
    precision_mean : Tensor of shape (..., n, m)
        ``Sigma^-1 X``; in expectation ``nu S^-1 M``.
    quadratic : Tensor of shape (..., m, m)
        ``X' Sigma^-1 X``; in expectation ``n V^-1 + nu M' S^-1 M``.
    log_det_precision : Tensor of shape (...)
        ``log|Sigma^-1|``; in expectation ``n log 2 - log|S| + sum_{i<n} psi((nu - i) / 2)``.
    """

    precision: Tensor
    precision_mean: Tensor
    quadratic: Tensor
    log_det_precision: Tensor


class MNIWSample(NamedTuple):
    """A draw from a matrix normal inverse Wishart.

    Parameters
    ----------
    mean : Tensor of shape (..., n, m)
        ``X``.
    covariance : Tensor of shape (..., n, n)
        ``Sigma``.
    """

    mean: Tensor
    covariance: Tensor


class MNIWFactors(NamedTuple):
    """Standard parameters with lower Cholesky factors in place of ``S`` and ``V``."""

    scale: Tensor
    mean: Tensor
    mean_precision: Tensor
    dof: Tensor


@dataclass(frozen=True)
class MNIW(ExponentialFamily[MNIWParams, MNIWNatural, MNIWStats]):
    """Matrix normal inverse Wishart over ``X`` (n, m) and ``Sigma`` (n, n); base measure 1.

    ``Sigma ~ IW(S, nu)`` and ``X | Sigma ~ MN(M, Sigma, V^-1)``: rows covary by ``Sigma``,
    columns by ``V^-1``. The base measure is with respect to Lebesgue measure on the entries of
    ``X`` and the lower triangle of ``Sigma``, the convention of ``scipy.stats``, and ::

        log Z = nu/2 (n log 2 - log|S|) + log Gamma_n(nu/2) - n/2 log|V| + nm/2 log(2 pi).

    An observation ``x ~ N(X y, Sigma)`` adds ``(-x x'/2, x y', -y y'/2, 1/2)`` to the natural
    parameters. The unconstrained parameters are the log-Cholesky matrix of ``S``, ``M``, the
    log-Cholesky matrix of ``V`` and ``log(nu - n + 1)``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import MNIW, MNIWParams
    >>> prior = MNIWParams(torch.eye(2), torch.zeros(2, 3), torch.eye(3), torch.tensor(4.0))
    >>> MNIW().expected_stats(MNIW().to_natural(prior)).precision.diagonal()
    tensor([4., 4.])
    """

    standard_type = MNIWParams
    natural_type = MNIWNatural
    stats_type = MNIWStats
    event_dims = (2, 2, 2, 0)
    symmetric = (True, False, True, False)
    size_names = ("n_rows", "n_columns")

    def to_natural(self, standard: MNIWParams) -> MNIWNatural:
        """``(-(S + M V M')/2, M V, -V/2, (nu + n + m + 1)/2)``."""
        scale, mean, mean_precision, dof = standard
        n_rows, n_columns = mean.shape[-2:]
        cross = mean @ mean_precision
        precision = -0.5 * symmetrize(scale + cross @ mean.mT)
        return MNIWNatural(
            precision, cross, -0.5 * mean_precision, 0.5 * (dof + (n_rows + n_columns + 1))
        )

    def from_natural(self, natural: MNIWNatural) -> MNIWParams:
        """Invert `to_natural`; ``S`` is a difference and loses what ``M V M'`` dwarfs."""
        standard, _ = _solve_natural(natural)
        return standard

    def to_unconstrained(self, standard: MNIWParams) -> Unconstrained:
        """Log-Cholesky of ``S``, ``M``, log-Cholesky of ``V``, ``log(nu - n + 1)``."""
        scale, mean, mean_precision, dof = factorize(standard)
        excess = dof - (mean.shape[-2] - 1)
        return log_cholesky(scale), mean, log_cholesky(mean_precision), excess.log()

    def from_unconstrained(self, unconstrained: Unconstrained) -> MNIWParams:
        """Invert `to_unconstrained`; any real values give valid parameters."""
        scale, mean, mean_precision, dof = _factors_of_unconstrained(unconstrained)
        return MNIWParams(scale @ scale.mT, mean, mean_precision @ mean_precision.mT, dof)

    def unconstrained_shapes(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """Shapes ``(n, n)``, ``(n, m)``, ``(m, m)`` and ``()``."""
        n_rows, n_columns = sizes
        return (n_rows, n_rows), (n_rows, n_columns), (n_columns, n_columns), ()

    def log_normalizer(self, natural: MNIWNatural) -> Tensor:
        """``nu/2 (n log 2 - log|S|) + log Gamma_n(nu/2) - n/2 log|V| + nm/2 log(2 pi)``."""
        factors = _factors_of_natural(natural)
        return wishart_log_normalizer(factors) + normal_log_normalizer(factors)

    def expected_stats(self, natural: MNIWNatural) -> MNIWStats:
        """``(nu S^-1, nu S^-1 M, n V^-1 + nu M' S^-1 M, E log|Sigma^-1|)``."""
        return _expected_stats(_factors_of_natural(natural))

    def unconstrained_expected_stats(self, unconstrained: Unconstrained) -> MNIWStats:
        """Compute without any factorisation: the coordinates are the factors."""
        return _expected_stats(_factors_of_unconstrained(unconstrained))

    def tangent_to_unconstrained(
        self, unconstrained: Unconstrained, tangent: MNIWNatural
    ) -> Unconstrained:
        """Differentiate the four natural parameters and solve for the velocities.

        ``V_dot = -2 eta3_dot``, ``M_dot = (eta2_dot - M V_dot) V^-1``, ``S_dot = -2 eta1_dot -
        eta2_dot M' - M eta2_dot' + M V_dot M'`` and ``nu_dot = 2 eta4_dot``.
        """
        scale, mean, mean_precision, _ = _factors_of_unconstrained(unconstrained)
        precision_dot, cross_dot, quadratic_dot, log_det_dot = tangent
        precision_velocity = -2.0 * quadratic_dot
        residual = cross_dot - mean @ precision_velocity
        mean_velocity = solve_from_cholesky(mean_precision, residual.mT).mT
        # -eta2_dot M' - M eta2_dot' + M V_dot M' = -2 sym((eta2_dot - M V_dot / 2) M')
        outer = (cross_dot + mean @ quadratic_dot) @ mean.mT
        scale_velocity = -2.0 * (precision_dot + symmetrize(outer))
        return (
            log_cholesky_tangent(scale, whiten(scale, scale_velocity)),
            mean_velocity,
            log_cholesky_tangent(mean_precision, whiten(mean_precision, precision_velocity)),
            2.0 * log_det_dot * torch.exp(-unconstrained[3]),
        )

    def kl(self, natural_q: MNIWNatural, natural_p: MNIWNatural) -> Tensor:
        """Divergence of the inverse Wisharts plus the mean one of the matrix normals."""
        return _kl(_factors_of_natural(natural_q), _factors_of_natural(natural_p))

    def unconstrained_kl(self, unconstrained_q: Unconstrained, natural_p: MNIWNatural) -> Tensor:
        """Divergence that never forms the natural parameters of ``q``, as `kl`."""
        return _kl(_factors_of_unconstrained(unconstrained_q), _factors_of_natural(natural_p))

    def standard_expected_stats(self, standard: MNIWParams) -> MNIWStats:
        """Compute without the natural parameters, and so without their cancellation."""
        return _expected_stats(factorize(standard))

    def standard_kl(self, standard_q: MNIWParams, standard_p: MNIWParams) -> Tensor:
        """Divergence that never forms natural parameters, as `kl`."""
        return _kl(factorize(standard_q), factorize(standard_p))

    def sample(
        self, standard: MNIWParams, sample_shape: tuple[int, ...], generator: torch.Generator
    ) -> MNIWSample:
        """Draw by Bartlett's decomposition, leading shape ``(*sample_shape, ...)``.

        With ``S = L L'`` and ``Sigma^-1 = L^-T A A' L^-1``, where ``A`` is lower triangular with
        standard normals below the diagonal and ``A_ii^2 ~ chi^2(nu - i)`` for i = 0..n-1, the
        matrix ``B = L A^-T`` is a square root of ``Sigma``. Then ``X = M + B E C^-1`` with
        ``V = C C'`` and standard normal ``E``.
        """
        scale, mean, mean_precision, dof = factorize(standard)
        n_rows = mean.shape[-2]
        shape = (*sample_shape, *mean.shape)
        below = standard_normal((*shape[:-1], n_rows), mean, generator).tril(-1)
        degrees = dof.unsqueeze(-1) - torch.arange(n_rows, dtype=dof.dtype, device=dof.device)
        log_gamma = log_standard_gamma((0.5 * degrees).expand(shape[:-1]), generator)
        bartlett = below + torch.diag_embed(torch.exp(0.5 * (math.log(2.0) + log_gamma)))
        # B' = A^-1 L', so that only triangular systems are solved.
        root = torch.linalg.solve_triangular(bartlett, scale.mT.expand(below.shape), upper=False).mT
        noise = standard_normal(shape, mean, generator)
        noise = torch.linalg.solve_triangular(
            mean_precision.expand(*sample_shape, *mean_precision.shape),
            noise,
            upper=False,
            left=False,
        )
        return MNIWSample(mean + root @ noise, root @ root.mT)

    def stats_of(self, sample: MNIWSample) -> MNIWStats:
        """``(Sigma^-1, Sigma^-1 X, X' Sigma^-1 X, log|Sigma^-1|)``."""
        factor = cholesky(sample.covariance, "covariance")
        whitened = torch.linalg.solve_triangular(factor, sample.mean, upper=False)
        return MNIWStats(
            inverse_from_cholesky(factor),
            torch.linalg.solve_triangular(factor.mT, whitened, upper=True),
            whitened.mT @ whitened,
            -log_det(factor),
        )


def _check_dof(dof: Tensor, n_rows: int) -> Tensor:
    if not (dof > n_rows - 1).all():
        raise ValueError(
            f"dof must exceed {n_rows - 1} for a {n_rows} x {n_rows} scale, "
            f"got a smallest value of {dof.min():.6g}."
        )
    return dof


def factorize(standard: MNIWParams) -> MNIWFactors:
    """Check standard parameters and factorise their matrices.

    Parameters
    ----------
    standard : MNIWParams
        Textbook parameters.

    Returns
    -------
    MNIWFactors
        Of the same shapes.

    Raises
    ------
    torch.linalg.LinAlgError, ValueError
        If the parameters are outside their domain.
    """
    return MNIWFactors(
        cholesky(standard.scale, "scale"),
        standard.mean,
        cholesky(standard.mean_precision, "mean_precision"),
        _check_dof(standard.dof, standard.mean.shape[-2]),
    )


def _solve_natural(natural: MNIWNatural) -> tuple[MNIWParams, Tensor]:
    """Return standard parameters and the Cholesky factor of ``V`` needed to find them."""
    precision, cross, quadratic, log_det_precision = natural
    n_rows, n_columns = cross.shape[-2:]
    mean_precision = -2.0 * quadratic
    factor = cholesky(mean_precision, "mean_precision")
    mean = solve_from_cholesky(factor, cross.mT).mT
    scale = symmetrize(-2.0 * precision - mean @ cross.mT)
    dof = _check_dof(2.0 * log_det_precision - (n_rows + n_columns + 1), n_rows)
    return MNIWParams(scale, mean, mean_precision, dof), factor


def _factors_of_natural(natural: MNIWNatural) -> MNIWFactors:
    (scale, mean, _, dof), factor = _solve_natural(natural)
    return MNIWFactors(cholesky(scale, "scale"), mean, factor, dof)


def _factors_of_unconstrained(unconstrained: Unconstrained) -> MNIWFactors:
    log_scale, mean, log_mean_precision, log_excess_dof = unconstrained
    dof = log_excess_dof.exp() + (mean.shape[-2] - 1)
    return MNIWFactors(exp_cholesky(log_scale), mean, exp_cholesky(log_mean_precision), dof)


def _sum_digamma(dof: Tensor, n_rows: int) -> Tensor:
    """``sum_{i<n} psi((nu - i) / 2)``, the derivative of ``log Gamma_n`` at ``nu / 2``."""
    steps = torch.arange(n_rows, dtype=dof.dtype, device=dof.device)
    return (0.5 * (dof.unsqueeze(-1) - steps)).digamma().sum(-1)


def _expected_stats(factors: MNIWFactors) -> MNIWStats:
    scale, mean, mean_precision, dof = factors
    n_rows = mean.shape[-2]
    precision = dof[..., None, None] * inverse_from_cholesky(scale)
    precision_mean = precision @ mean
    quadratic = n_rows * inverse_from_cholesky(mean_precision) + mean.mT @ precision_mean
    log_det_precision = n_rows * math.log(2.0) - log_det(scale) + _sum_digamma(dof, n_rows)
    return MNIWStats(precision, precision_mean, quadratic, log_det_precision)


def wishart_log_normalizer(factors: MNIWFactors) -> Tensor:
    """Log normaliser of the inverse Wishart part.

    Parameters
    ----------
    factors : MNIWFactors
        Parameters; the matrix normal part only tells the number of rows.

    Returns
    -------
    Tensor of shape (...)
        ``nu/2 (n log 2 - log|S|) + log Gamma_n(nu/2)``.
    """
    scale, mean, _, dof = factors
    n_rows = mean.shape[-2]
    wishart = 0.5 * dof * (n_rows * math.log(2.0) - log_det(scale))
    return wishart + torch.mvlgamma(0.5 * dof, n_rows)


def normal_log_normalizer(factors: MNIWFactors) -> Tensor:
    """Log normaliser of the matrix normal part, up to the power of ``|Sigma|``.

    Parameters
    ----------
    factors : MNIWFactors
        Parameters.

    Returns
    -------
    Tensor of shape (...)
        ``-n/2 log|V| + nm/2 log(2 pi)``.
    """
    n_rows, n_columns = factors.mean.shape[-2:]
    return 0.5 * n_rows * (n_columns * math.log(2.0 * math.pi) - log_det(factors.mean_precision))


def wishart_kl(q: MNIWFactors, p: MNIWFactors) -> Tensor:
    """Divergence of inverse Wisharts, in terms of a ratio that is near one when q is near p.

    Parameters
    ----------
    q, p : MNIWFactors
        Parameters, batch shapes broadcasting.

    Returns
    -------
    Tensor of shape (...)
        ``nu_q/2 (tr(S_p S_q^-1) - n) - nu_p/2 log|S_p S_q^-1| + log Gamma_n(nu_p/2)
        - log Gamma_n(nu_q/2) + (nu_q - nu_p)/2 sum_i psi((nu_q - i)/2)``.
    """
    n_rows = q.mean.shape[-2]
    scale_ratio = torch.linalg.solve_triangular(q.scale, p.scale, upper=False)
    wishart = 0.5 * (
        q.dof * (scale_ratio.square().sum((-2, -1)) - n_rows)
        - p.dof * log_det(scale_ratio)
        + (q.dof - p.dof) * _sum_digamma(q.dof, n_rows)
    )
    return wishart + torch.mvlgamma(0.5 * p.dof, n_rows) - torch.mvlgamma(0.5 * q.dof, n_rows)


def normal_kl(q: MNIWFactors, p: MNIWFactors) -> Tensor:
    """Divergence of matrix normals, in expectation over the ``Sigma`` of q.

    Parameters
    ----------
    q, p : MNIWFactors
        Parameters, batch shapes broadcasting.

    Returns
    -------
    Tensor of shape (...)
        ``n/2 (tr(V_p V_q^-1) - m - log|V_p V_q^-1|) + nu_q/2
        tr(V_p (M_q - M_p)' S_q^-1 (M_q - M_p))``.
    """
    n_rows, n_columns = q.mean.shape[-2:]
    precision_ratio = torch.linalg.solve_triangular(q.mean_precision, p.mean_precision, upper=False)
    shift = torch.linalg.solve_triangular(q.scale, q.mean - p.mean, upper=False) @ p.mean_precision
    trace = precision_ratio.square().sum((-2, -1)) - n_columns
    normal = n_rows * (trace - log_det(precision_ratio)) + q.dof * shift.square().sum((-2, -1))
    return 0.5 * normal


def _kl(q: MNIWFactors, p: MNIWFactors) -> Tensor:
    return wishart_kl(q, p) + normal_kl(q, p)
