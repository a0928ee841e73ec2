# SPDX-License-Identifier: BSD-3-Clause
"""Moments and draws of batches of Gaussians given in information form."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sksvae.expfam.numerics import symmetrize


class GaussianMoments(NamedTuple):
    """Moments of Gaussians with precision ``J`` and precision-weighted mean ``h``.

    Parameters
    ----------
    mean : Tensor of shape (..., D)
        ``J^-1 h``.
    covariance : Tensor of shape (..., D, D)
        ``J^-1``.
    log_det_precision : Tensor of shape (...)
        ``log|J|``.
    """

    mean: Tensor
    covariance: Tensor
    log_det_precision: Tensor

    @property
    def second_moment(self) -> Tensor:
        """``E[z z']``, of shape (..., D, D)."""
        return self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)


class _GaussianMoments(torch.autograd.Function):
    """``(h, J) -> (J^-1 h, J^-1, log|J|)`` with a backward pass of matrix products only.

    With ``V = J^-1`` and ``m = V h``: ``dm = V (dh - dJ m)``, ``dV = -V dJ V`` and
    ``d log|J| = tr(V dJ)``. It saves ``m`` and ``V`` and factorises nothing again.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor, info = torch.linalg.cholesky_ex(J)
        if info.any():
            raise torch.linalg.LinAlgError(
                f"{int((info != 0).sum())} of {info.numel()} posterior precisions are not positive "
                "definite: the potentials or the graphical model hold non-finite or extreme values."
            )
        covariance = torch.cholesky_inverse(factor)
        mean = (covariance @ h.unsqueeze(-1)).squeeze(-1)
        log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        ctx.save_for_backward(mean, covariance)
        return mean, covariance, log_det

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_mean: Tensor, g_covariance: Tensor, g_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean, covariance = ctx.saved_tensors
        g_h = (covariance @ g_mean.unsqueeze(-1)).squeeze(-1)
        g_J = -g_h.unsqueeze(-1) * mean.unsqueeze(-2)
        g_J = g_J - covariance @ g_covariance @ covariance
        g_J = g_J + g_log_det[..., None, None] * covariance
        # J is symmetric: only the symmetric part of its gradient means anything.
        return g_h, symmetrize(g_J)


def gaussian_moments(precision_mean: Tensor, precision: Tensor) -> GaussianMoments:
    """Moments of Gaussians with log density ``h'z - z'Jz/2 + const``.

    Parameters
    ----------
    precision_mean : Tensor of shape (..., D)
        ``h``.
    precision : Tensor of shape (..., D, D)
        ``J``, symmetric positive definite. Only its symmetric part gets a gradient.

    Returns
    -------
    GaussianMoments
        Mean, covariance and ``log|J|``; differentiable once.

    Raises
    ------
    torch.linalg.LinAlgError
        If a precision is not positive definite.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import gaussian_moments
    >>> gaussian_moments(torch.tensor([2.0, 1.0]), torch.diag(torch.tensor([2.0, 4.0]))).mean
    tensor([1.0000, 0.2500])
    """
    return GaussianMoments(*_GaussianMoments.apply(precision_mean, precision))


def draw_gaussian(mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """Reparameterised draws ``m + chol(V) eps``.

    Parameters
    ----------
    mean : Tensor of shape (..., D)
        Means.
    covariance : Tensor of shape (..., D, D)
        Covariances.
    noise : Tensor of shape (n_draws, ..., D)
        Standard normal numbers.

    Returns
    -------
    Tensor of shape (n_draws, ..., D)
        Draws, differentiable in both moments.

    Raises
    ------
    torch.linalg.LinAlgError
        If a covariance is not positive definite.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import draw_gaussian
    >>> draw_gaussian(torch.zeros(2), 4 * torch.eye(2), torch.ones(1, 2))
    tensor([[2., 2.]])
    """
    factor, info = torch.linalg.cholesky_ex(covariance)
    if info.any():
        raise torch.linalg.LinAlgError(
            f"{int((info != 0).sum())} of {info.numel()} posterior covariances are not positive "
            "definite in the working precision; float64 input or a larger covariance prior helps."
        )
    return mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)
