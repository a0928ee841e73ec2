# SPDX-License-Identifier: BSD-3-Clause
"""Normal inverse Wishart: the conjugate prior of a Gaussian with unknown mean and covariance.

It is the matrix normal inverse Wishart with a single column, and all its mathematics is there:
this module only adds and drops the axes of length one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.base import ExponentialFamily, Unconstrained
from sksvae.expfam.mniw import MNIW, MNIWNatural, MNIWParams, MNIWSample


class NIWParams(NamedTuple):
    """Standard parameters ``(S, m, kappa, nu)`` of a normal inverse Wishart.

    Parameters
    ----------
    scale : Tensor of shape (..., D, D)
        ``S``, symmetric positive definite.
    mean : Tensor of shape (..., D)
        ``m``, the mean of ``mu``.
    mean_precision : Tensor of shape (...)
        ``kappa > 0``, the pseudo-count behind the mean.
    dof : Tensor of shape (...)
        ``nu > D - 1``, the degrees of freedom.
    """

    scale: Tensor
    mean: Tensor
    mean_precision: Tensor
    dof: Tensor


class NIWNatural(NamedTuple):
    """Natural parameters of a normal inverse Wishart, named after their statistics.

    Parameters
    ----------
    precision : Tensor of shape (..., D, D)
        ``-(S + kappa m m') / 2``, multiplies ``Sigma^-1``.
    precision_mean : Tensor of shape (..., D)
        ``kappa m``, multiplies ``Sigma^-1 mu``.
    quadratic : Tensor of shape (...)
        ``-kappa / 2``, multiplies ``mu' Sigma^-1 mu``.
    log_det_precision : Tensor of shape (...)
        ``(nu + D + 2) / 2``, multiplies ``log|Sigma^-1|``.
    """

    precision: Tensor
    precision_mean: Tensor
    quadratic: Tensor
    log_det_precision: Tensor


class NIWStats(NamedTuple):
    """Sufficient statistics of a normal inverse Wishart, or their expectations.

    Parameters
    ----------
    precision : Tensor of shape (..., D, D)
        ``Sigma^-1``; in expectation ``nu S^-1``.
    precision_mean : Tensor of shape (..., D)
        ``Sigma^-1 mu``; in expectation ``nu S^-1 m``.
    quadratic : Tensor of shape (...)
        ``mu' Sigma^-1 mu``; in expectation ``D / kappa + nu m' S^-1 m``.
    log_det_precision : Tensor of shape (...)
        ``log|Sigma^-1|``; in expectation ``D log 2 - log|S| + sum_{i<D} psi((nu - i) / 2)``.
    """

    precision: Tensor
    precision_mean: Tensor
    quadratic: Tensor
    log_det_precision: Tensor


class NIWSample(NamedTuple):
    """A draw from a normal inverse Wishart.

    Parameters
    ----------
    mean : Tensor of shape (..., D)
        ``mu``.
    covariance : Tensor of shape (..., D, D)
        ``Sigma``.
    """

    mean: Tensor
    covariance: Tensor


_MNIW = MNIW()


@dataclass(frozen=True)
class NIW(ExponentialFamily[NIWParams, NIWNatural, NIWStats]):
    """Normal inverse Wishart over ``mu`` (D,) and ``Sigma`` (D, D); base measure 1.

    ``Sigma ~ IW(S, nu)`` and ``mu | Sigma ~ N(m, Sigma / kappa)``, with respect to Lebesgue
    measure on ``mu`` and the lower triangle of ``Sigma``. An observation ``z ~ N(mu, Sigma)``
    adds ``(-z z'/2, z, -1/2, 1/2)`` to the natural parameters. The unconstrained parameters are
    the log-Cholesky matrix of ``S``, ``m``, ``log(kappa) / 2`` (the log-Cholesky matrix of a
    number) and ``log(nu - D + 1)``. See `sksvae.expfam.MNIW` for the formulas, with
    ``V = kappa``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import NIW, NIWParams
    >>> prior = NIWParams(torch.eye(2), torch.ones(2), torch.tensor(4.0), torch.tensor(4.0))
    >>> NIW().expected_stats(NIW().to_natural(prior)).quadratic  # D / kappa + nu m'm
    tensor(8.5000)
    """

    standard_type = NIWParams
    natural_type = NIWNatural
    stats_type = NIWStats
    event_dims = (2, 1, 0, 0)
    symmetric = (True, False, False, False)

    def to_natural(self, standard: NIWParams) -> NIWNatural:
        """``(-(S + kappa m m')/2, kappa m, -kappa/2, (nu + D + 2)/2)``."""
        return NIWNatural(
            *drop_column_axes(_MNIW.to_natural(MNIWParams(*lift_column_axes(standard))))
        )

    def from_natural(self, natural: NIWNatural) -> NIWParams:
        """Invert `to_natural`; ``S`` is a difference and loses what ``kappa m m'`` dwarfs."""
        return NIWParams(
            *drop_column_axes(_MNIW.from_natural(MNIWNatural(*lift_column_axes(natural))))
        )

    def to_unconstrained(self, standard: NIWParams) -> Unconstrained:
        """Log-Cholesky of ``S``, ``m``, ``log(kappa) / 2``, ``log(nu - D + 1)``."""
        return drop_column_axes(_MNIW.to_unconstrained(MNIWParams(*lift_column_axes(standard))))

    def from_unconstrained(self, unconstrained: Unconstrained) -> NIWParams:
        """Invert `to_unconstrained`; any real values give valid parameters."""
        return NIWParams(
            *drop_column_axes(_MNIW.from_unconstrained(lift_column_axes(unconstrained)))
        )

    def unconstrained_shapes(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """Shapes ``(D, D)``, ``(D,)``, ``()`` and ``()``."""
        (dim,) = sizes
        return (dim, dim), (dim,), (), ()

    def log_normalizer(self, natural: NIWNatural) -> Tensor:
        """``nu/2 (D log 2 - log|S|) + log Gamma_D(nu/2) + D/2 log(2 pi / kappa)``."""
        return _MNIW.log_normalizer(MNIWNatural(*lift_column_axes(natural)))

    def expected_stats(self, natural: NIWNatural) -> NIWStats:
        """``(nu S^-1, nu S^-1 m, D / kappa + nu m' S^-1 m, E log|Sigma^-1|)``."""
        return NIWStats(
            *drop_column_axes(_MNIW.expected_stats(MNIWNatural(*lift_column_axes(natural))))
        )

    def unconstrained_expected_stats(self, unconstrained: Unconstrained) -> NIWStats:
        """Compute without any factorisation: the coordinates are the factors."""
        return NIWStats(
            *drop_column_axes(_MNIW.unconstrained_expected_stats(lift_column_axes(unconstrained)))
        )

    def tangent_to_unconstrained(
        self, unconstrained: Unconstrained, tangent: NIWNatural
    ) -> Unconstrained:
        """Apply the closed form of `sksvae.expfam.MNIW.tangent_to_unconstrained`."""
        lifted = MNIWNatural(*lift_column_axes(tangent))
        return drop_column_axes(
            _MNIW.tangent_to_unconstrained(lift_column_axes(unconstrained), lifted)
        )

    def kl(self, natural_q: NIWNatural, natural_p: NIWNatural) -> Tensor:
        """Divergence of the inverse Wisharts plus the mean one of the Gaussians."""
        return _MNIW.kl(
            MNIWNatural(*lift_column_axes(natural_q)), MNIWNatural(*lift_column_axes(natural_p))
        )

    def unconstrained_kl(self, unconstrained_q: Unconstrained, natural_p: NIWNatural) -> Tensor:
        """Divergence that never forms the natural parameters of ``q``, as `kl`."""
        return _MNIW.unconstrained_kl(
            lift_column_axes(unconstrained_q), MNIWNatural(*lift_column_axes(natural_p))
        )

    def standard_expected_stats(self, standard: NIWParams) -> NIWStats:
        """Compute without the natural parameters, and so without their cancellation."""
        lifted = MNIWParams(*lift_column_axes(standard))
        return NIWStats(*drop_column_axes(_MNIW.standard_expected_stats(lifted)))

    def standard_kl(self, standard_q: NIWParams, standard_p: NIWParams) -> Tensor:
        """Divergence that never forms natural parameters, as `kl`."""
        lifted = (MNIWParams(*lift_column_axes(params)) for params in (standard_q, standard_p))
        return _MNIW.standard_kl(*lifted)

    def sample(
        self, standard: NIWParams, sample_shape: tuple[int, ...], generator: torch.Generator
    ) -> NIWSample:
        """Draw ``(mu, Sigma)``, leading shape ``(*sample_shape, ...)``."""
        mean, covariance = _MNIW.sample(
            MNIWParams(*lift_column_axes(standard)), sample_shape, generator
        )
        return NIWSample(mean.squeeze(-1), covariance)

    def stats_of(self, sample: NIWSample) -> NIWStats:
        """``(Sigma^-1, Sigma^-1 mu, mu' Sigma^-1 mu, log|Sigma^-1|)``."""
        lifted = MNIWSample(sample.mean.unsqueeze(-1), sample.covariance)
        return NIWStats(*drop_column_axes(_MNIW.stats_of(lifted)))


def lift_column_axes(fields: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add the axes of length one that make it a matrix normal inverse Wishart.

    Parameters
    ----------
    fields : sequence of Tensor
        Any of the four forms of the parameters; all share the layout (..., D, D), (..., D),
        (...), (...).

    Returns
    -------
    tuple of Tensor
        Of shapes (..., D, D), (..., D, 1), (..., 1, 1) and (...).

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.niw import lift_column_axes
    >>> fields = torch.eye(3), torch.zeros(3), torch.tensor(1.0), torch.tensor(4.0)
    >>> [tuple(field.shape) for field in lift_column_axes(fields)]
    [(3, 3), (3, 1), (1, 1), ()]
    """
    matrix, vector, scalar, count = fields
    return matrix, vector.unsqueeze(-1), scalar[..., None, None], count


def drop_column_axes(fields: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drop the axes that `lift_column_axes` added.

    Parameters
    ----------
    fields : sequence of Tensor
        Of shapes (..., D, D), (..., D, 1), (..., 1, 1) and (...).

    Returns
    -------
    tuple of Tensor
        Of shapes (..., D, D), (..., D), (...) and (...).

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.niw import drop_column_axes
    >>> fields = torch.eye(3), torch.zeros(3, 1), torch.ones(1, 1), torch.tensor(4.0)
    >>> [tuple(field.shape) for field in drop_column_axes(fields)]
    [(3, 3), (3,), (), ()]
    """
    matrix, column, square, count = fields
    return matrix, column.squeeze(-1), square[..., 0, 0], count
