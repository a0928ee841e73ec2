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
    root : Tensor of shape (..., D, D)
        Lower Cholesky factor ``U`` of the covariance, for draws ``J^-1 h + U eps``.
    """

    mean: Tensor
    covariance: Tensor
    log_det_precision: Tensor
    root: Tensor

    @property
    def second_moment(self) -> Tensor:
        """``E[z z']``, of shape (..., D, D)."""
        return torch.addcmul(self.covariance, self.mean.unsqueeze(-1), self.mean.unsqueeze(-2))


class _GaussianMoments(torch.autograd.Function):
    """`GaussianMoments` of ``(h, J)`` with a backward pass of matrix products only.

    With ``V = J^-1 = U U'`` and ``m = V h``: ``dm = V (dh - dJ m)``, ``dV = -V dJ V``,
    ``d log|J| = tr(U' dJ U)`` and ``dU = -U phi(U' dJ U)``, where ``phi`` keeps the lower triangle
    and halves its diagonal. It saves ``m``, ``V`` and ``U`` and factorises nothing again.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, J: Tensor) -> tuple[Tensor, ...]:
        moments = _moments(h, J)
        ctx.save_for_backward(moments.mean, moments.covariance, moments.root)
        ctx.set_materialize_grads(False)
        return tuple(moments)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        g_mean: Tensor | None,
        g_covariance: Tensor | None,
        g_log_det: Tensor | None,
        g_root: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        mean, covariance, root = ctx.saved_tensors
        g_h, g_J = torch.zeros_like(mean), torch.zeros_like(covariance)
        if g_mean is not None:
            g_h = (covariance @ g_mean.unsqueeze(-1)).squeeze(-1)
            g_J = -g_h.unsqueeze(-1) * mean.unsqueeze(-2)
        if g_covariance is not None:
            g_J = g_J - covariance @ g_covariance @ covariance
        if g_log_det is not None:
            g_J = g_J + g_log_det[..., None, None] * covariance
        if g_root is not None:
            whitened = (root.mT @ g_root).tril()
            whitened.diagonal(dim1=-2, dim2=-1).mul_(0.5)
            g_J = g_J - root @ whitened @ root.mT
        # J is symmetric: only the symmetric part of its gradient means anything.
        return g_h, symmetrize(g_J)


def _moments(h: Tensor, J: Tensor) -> GaussianMoments:
    # In reverse order of the axes, the inverse of the factor of J is that of the covariance.
    factor, info = torch.linalg.cholesky_ex(J.flip((-2, -1)))
    if info.any():
        raise torch.linalg.LinAlgError(
            f"{int((info != 0).sum())} of {info.numel()} posterior precisions are not positive "
            "definite: the potentials or the graphical model hold non-finite or extreme values."
        )
    identity = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
    root = torch.linalg.solve_triangular(factor, identity, upper=False).mT.flip((-2, -1))
    covariance = root @ root.mT
    mean = (covariance @ h.unsqueeze(-1)).squeeze(-1)
    log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return GaussianMoments(mean, covariance, log_det, root)


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
        Differentiable once.

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
    if torch.is_grad_enabled():
        return GaussianMoments(*_GaussianMoments.apply(precision_mean, precision))
    return _moments(precision_mean, precision)


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
