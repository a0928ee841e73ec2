# SPDX-License-Identifier: BSD-3-Clause
r"""Moments and draws of Gaussian chains whose joint precision is block tridiagonal.

The density of a chain ``z = (z_1, ..., z_T)`` of D-dimensional steps is given in information form,
``log p(z) = h'z - z'Jz/2 - log Z``, where ``J`` couples neighbouring steps only: the posterior of
a linear dynamical system, for instance, with expected parameters and Gaussian potentials [1]_.
One block Cholesky factorisation gives the log normaliser, the means, the marginal and lag-one
covariances (selected inversion) and exact draws (back-substitution of noise). Nothing subtracts
nearly equal matrices as filters and smoothers in information form do [1]_, and no jitter is added.

Two orders of elimination are offered, see `sksvae.inference.elimination_orders`: one step after
the other, or cyclic reduction, which takes the steps in ``log2(T)`` batches at about twice the
arithmetic.

Gradients are exact and written out. With ``m = J^-1 h`` and ``V = J^-1`` ::

    d log Z = m'dh - tr((V + m m') dJ) / 2,    dm = V (dh - dJ m),    dV = -V dJ V,

so the gradient of the log normaliser costs nothing. The others take one sweep backwards through
the selected inversion and one backwards through the elimination, matrix products with what the
factorisation left. Saved for them are, per step, ``C^-1``, ``K``, the marginal covariance and the
covariance with the neighbours in the elimination: memory linear in ``T D^2``, no graph per stage.

References
----------
.. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with structured
   discrete representations", NeurIPS 2023, appendix D: the filter and smoother in information
   form, equations (81)-(83), and the associative scan, D.2, that this replaces.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.numerics import symmetrize
from sksvae.inference.banded_elimination import Banded, banded_pays
from sksvae.inference.cyclic_reduction import CyclicReduction
from sksvae.inference.derivatives import differentiated_once
from sksvae.inference.elimination_orders import EliminationOrder, Factors, Sequential

ChainMethod = Literal["auto", "sequential", "parallel"]


class ChainMoments(NamedTuple):
    """Log normaliser, moments and draws of Gaussian chains.

    Parameters
    ----------
    log_normalizer : Tensor of shape (...)
        ``log Z``, the logarithm of the integral of ``exp(h'z - z'Jz/2)`` over all steps, with
        all constants.
    mean : Tensor of shape (..., T, D)
        Means.
    covariance : Tensor of shape (..., T, D, D)
        Marginal covariances.
    lag_covariance : Tensor of shape (..., T - 1, D, D)
        ``Cov(z_{t+1}, z_t)``: rows belong to the later step.
    draws : Tensor of shape (n_draws, ..., T, D)
        Draws from the joint density; ``n_draws`` is zero if no noise was given.
    """

    log_normalizer: Tensor
    mean: Tensor
    covariance: Tensor
    lag_covariance: Tensor
    draws: Tensor


def chain_moments(
    precision_mean: Tensor,
    diagonal: Tensor,
    lower: Tensor,
    *,
    mask: Tensor | None = None,
    noise: Tensor | None = None,
    method: ChainMethod = "auto",
) -> ChainMoments:
    """Log normaliser, moments and draws of chains with log density ``h'z - z'Jz/2 + const``.

    Parameters
    ----------
    precision_mean : Tensor of shape (..., T, D)
        ``h``.
    diagonal : Tensor of shape (..., T, D, D)
        Blocks ``J_{t,t}``, symmetric. Only the symmetric part gets a gradient.
    lower : Tensor of shape (..., T - 1, D, D)
        Blocks ``J_{t+1,t}`` below the diagonal: rows belong to the later step.
    mask : Tensor of bool of shape (..., T), optional
        Which steps exist, in batches of sequences of unequal length. What stands at the others,
        NaN included, is not read and gets a zero gradient; a coupling with one is taken as zero;
        they count for nothing in the log normaliser and have zero mean, covariances and draws.
        An unobserved step of a sequence is not one of them: it exists, with a zero potential.
    noise : Tensor of shape (n_draws, ..., T, D), optional
        Standard normal numbers, for the draws. The draws are differentiable in everything. The
        methods turn the same noise into different draws of the same distribution: name one if
        the draws may not depend on the size of the batch.
    method : {'auto', 'sequential', 'parallel'}, default='auto'
        One step after the other, cyclic reduction, or the one expected to be faster: cyclic
        reduction for a few long chains of low dimension.

    Returns
    -------
    ChainMoments
        Differentiable once; a second derivative raises ``RuntimeError``.

    Raises
    ------
    torch.linalg.LinAlgError
        If a joint precision is not positive definite, or if it or ``h`` is not finite. The batch
        index in the message counts the chains in row-major order.
    ValueError
        If shapes do not fit together or the method is unknown.

    Examples
    --------
    A random walk that is observed at its ends:

    >>> import torch
    >>> from sksvae.inference import chain_moments
    >>> diagonal = torch.tensor([2.0, 2.0, 2.0]).view(3, 1, 1)
    >>> lower = -torch.ones(2, 1, 1)
    >>> chain = chain_moments(torch.tensor([[1.0], [0.0], [3.0]]), diagonal, lower)
    >>> chain.mean.squeeze(-1)
    tensor([1.5000, 2.0000, 2.5000])
    >>> chain.covariance.flatten()
    tensor([0.7500, 1.0000, 0.7500])
    """
    _check_shapes(precision_mean, diagonal, lower, mask, noise)
    batch_shape, (n_steps, dim) = precision_mean.shape[:-2], precision_mean.shape[-2:]
    if noise is None:
        noise = precision_mean.new_zeros(0, *precision_mean.shape)
    n_present: Tensor | int = n_steps
    if mask is not None and mask.all():
        mask = None
    if mask is not None:
        precision_mean, diagonal, lower, noise = _decouple_absent(
            precision_mean, diagonal, lower, noise, mask
        )
        # A count of integers would turn the constants, and what they are added to, into float32.
        n_present = mask.sum(-1, dtype=precision_mean.dtype)
    n_chains = batch_shape.numel()
    order = _choose_order(method, n_chains, precision_mean)
    half_quadratic, mean, covariance, lag, draws = _Chain.apply(
        order,
        precision_mean.reshape(n_chains, n_steps, dim),
        diagonal.reshape(n_chains, n_steps, dim, dim),
        lower.reshape(n_chains, n_steps - 1, dim, dim),
        noise.reshape(len(noise), n_chains, n_steps, dim),
    )
    covariance = covariance.reshape(diagonal.shape)
    if mask is not None:
        covariance = torch.where(mask[..., None, None], covariance, 0.0)
    return ChainMoments(
        half_quadratic.reshape(batch_shape) + (0.5 * dim * math.log(2.0 * math.pi)) * n_present,
        mean.reshape(precision_mean.shape),
        covariance,
        lag.reshape(lower.shape),
        draws.reshape(noise.shape),
    )


def _check_shapes(
    h: Tensor, diagonal: Tensor, lower: Tensor, mask: Tensor | None, noise: Tensor | None
) -> None:
    if h.ndim < 2 or 0 in h.shape[-2:]:
        raise ValueError(f"precision_mean must have shape (..., T, D), got {tuple(h.shape)}.")
    *batch, n_steps, dim = h.shape
    expected = {
        "diagonal": (diagonal, (*batch, n_steps, dim, dim)),
        "lower": (lower, (*batch, n_steps - 1, dim, dim)),
        "mask": (mask, (*batch, n_steps)),
        "noise": (noise, (*(() if noise is None else noise.shape[:1]), *h.shape)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} to fit precision_mean of shape "
                f"{tuple(h.shape)}, got {tuple(tensor.shape)}."
            )


def _decouple_absent(
    h: Tensor, diagonal: Tensor, lower: Tensor, noise: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make absent steps independent, with unit precision and zero mean, and their noise zero."""
    block, pair = mask[..., None, None], (mask[..., 1:] & mask[..., :-1])[..., None, None]
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    return (
        torch.where(mask[..., None], h, 0.0),
        torch.where(block, diagonal, eye),
        torch.where(pair, lower, 0.0),
        torch.where(mask[..., None], noise, 0.0),
    )


def automatic_method(
    n_chains: int, n_steps: int, dim: int, device: torch.device
) -> Literal["sequential", "parallel"]:
    """Say what ``method='auto'`` of `chain_moments` means for chains of a size.

    Parameters
    ----------
    n_chains, n_steps, dim : int
        ``B``, ``T`` and ``D``.
    device : torch.device
        Where they are.

    Returns
    -------
    {'sequential', 'parallel'}
        The order of elimination that is expected to be faster.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.block_tridiagonal import automatic_method
    >>> automatic_method(n_chains=1, n_steps=5000, dim=2, device=torch.device("cpu"))
    'parallel'
    """
    # Time of sequential / parallel on one CPU thread in float64, forward and with gradients, for
    # one chain: at T = 1000 it is 0.8 and 0.9 with D = 4 or 8; at 4000 1.6 and 2.3 with D = 2, 1.1
    # with 8; at 10000 2.3 and 3.1 with D = 2, 0.9 and 1.2 with 8. With 4 to 8 of them it is 0.5 to
    # 0.9. Accelerators wait for every step.
    if device.type != "cpu":
        return "parallel" if n_steps > 120 else "sequential"
    return "parallel" if n_steps > 2000 and n_chains * dim**2 <= 32 else "sequential"


def _choose_order(method: ChainMethod, n_chains: int, like: Tensor) -> type[EliminationOrder]:
    n_steps, dim = like.shape[-2:]
    if method == "auto":
        method = automatic_method(n_chains, n_steps, dim, like.device)
    if method == "parallel":
        return CyclicReduction
    if method == "sequential":
        return Banded if banded_pays(n_chains, dim, like.dtype, like.device) else Sequential
    raise ValueError(f"method must be 'auto', 'sequential' or 'parallel', got {method!r}.")


class _Chain(torch.autograd.Function):
    """``(h, J, noise)`` to the log normaliser without ``2 pi``, moments and draws."""

    @staticmethod
    def forward(
        ctx: Any, order: type[EliminationOrder], h: Tensor, P: Tensor, L: Tensor, noise: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        factor, whitened, info, band = order.eliminate(
            P.transpose(0, 1), L.transpose(0, 1), h.transpose(0, 1)
        )
        whitened_h = whitened[..., -1:]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum((0, -1))  # half of log|J|
        log_normalizer = 0.5 * whitened_h.square().sum((0, -2, -1)) - log_det
        _check_elimination(info, log_normalizer)

        eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
        root = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        factors = Factors(root, root.mT @ whitened[..., :-1], band)
        covariance, cross = order.covariances(factors.gain, root.mT @ root)
        noise = order.to_elimination(noise.permute(2, 1, 3, 0))
        u = order.substitute_back(factors, torch.cat((whitened_h, whitened_h + noise), -1))

        V = covariance.transpose(0, 1)
        mean = u[..., 0].transpose(0, 1).contiguous()
        draws = u[..., 1:].permute(3, 1, 0, 2).contiguous()
        lag = order.lag(cross).transpose(0, 1)
        ctx.order = order
        ctx.save_for_backward(*factors, whitened_h, noise, u, cross, mean, V, lag)
        return log_normalizer, mean, V, lag, draws

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, mean, V, lag = ctx.saved_tensors
        with torch.no_grad():
            gradients = _adjoint(ctx.order, saved, mean, V, lag, *cotangents)
        gradients = differentiated_once(gradients, mean, "chain_moments")
        return None, *gradients


def _adjoint(
    order: type[EliminationOrder],
    saved: list[Tensor],
    mean: Tensor,
    V: Tensor,
    lag: Tensor,
    g_log_normalizer: Tensor | None,
    *g_moments: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Cotangents of ``h``, ``J`` and the noise, from those of all outputs."""
    g_h = g_P = g_L = g_noise = None
    if any(g is not None for g in g_moments):
        draws_shape = (saved[4].shape[-1], *mean.shape)
        shapes = (mean.shape, V.shape, lag.shape, draws_shape)
        g_mean, g_V, g_lag, g_draws = (
            mean.new_zeros(shape) if g is None else g
            for g, shape in zip(g_moments, shapes, strict=True)
        )
        g_h, g_P, g_L, g_noise = _moments_adjoint(
            order,
            saved,
            V.transpose(0, 1),
            # An expanded cotangent, that of a sum, would be multiplied matrix by matrix.
            g_V.transpose(0, 1).contiguous(),
            g_lag.transpose(0, 1).contiguous(),
            torch.cat((g_mean.unsqueeze(0), g_draws)).permute(2, 1, 3, 0).contiguous(),
        )
    if g_log_normalizer is not None:
        weight = g_log_normalizer[:, None, None]
        weighted = weight * mean
        weight = weight.unsqueeze(-1)
        second = weight * V + weighted.unsqueeze(-1) * mean.unsqueeze(-2)
        second_lag = weight * lag + weighted[:, 1:, :, None] * mean[:, :-1, None, :]
        g_h = weighted if g_h is None else g_h + weighted
        g_P = second.mul_(-0.5) if g_P is None else g_P.sub(second, alpha=0.5)
        # A block below the diagonal stands for the one above it too: twice one half.
        g_L = second_lag.neg_() if g_L is None else g_L - second_lag
    return g_h, g_P, g_L, g_noise


def _moments_adjoint(
    order: type[EliminationOrder],
    saved: list[Tensor],
    V: Tensor,
    g_V: Tensor,
    g_lag: Tensor,
    g_u: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cotangents of ``h``, ``J`` and the noise, from those of the moments and draws.

    What concerns one step only is done for all at once, between the two sweeps. With ``W = C^-1``,
    ``S^-1 = W'W``: ``d(S^-1) = -S^-1 dS S^-1`` (which covers ``K = S^-1 N`` and ``c = S^-1 h``),
    and for the noise ``y = W' e`` of a draw, ``dC = C Phi(W dS W')`` where ``Phi`` takes the lower
    triangle and half of the diagonal.
    """
    root, gain, band, whitened_h, noise, u, cross = saved
    factors = Factors(root, gain, band)
    g_gain, g_inverse = order.covariances_adjoint(gain, V, cross, g_V, g_lag)
    g_whitened = order.substitute_forward(factors, g_u)
    g_whitened_h = g_whitened.sum(-1, keepdim=True)
    phi = (noise @ g_whitened[..., 1:].mT).tril_()
    phi.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    phi += root @ g_inverse @ root.mT
    phi += g_whitened_h @ whitened_h.mT
    transposed = root.mT.contiguous()
    g_couplings = root @ g_gain
    g_couplings -= g_whitened @ order.neighbours(u).mT
    g_couplings = transposed @ g_couplings
    g_pivot = transposed @ phi @ root
    g_pivot += g_couplings @ gain.mT
    g_h = order.substitute_back(factors, g_whitened_h)
    g_P, g_L = order.eliminate_adjoint(
        gain, transposed @ whitened_h, -symmetrize(g_pivot), g_couplings, g_h
    )
    g_noise = order.to_time(g_whitened[..., 1:]).permute(3, 1, 0, 2)
    return g_h.squeeze(-1).transpose(0, 1), g_P.transpose(0, 1), g_L.transpose(0, 1), g_noise


def _check_elimination(info: Tensor, log_normalizer: Tensor) -> None:
    # LAPACK lets an infinite pivot through and sees no potential: the log normaliser shows both.
    bad = (info != 0).any(0) | ~log_normalizer.isfinite()
    if bad.any():
        raise torch.linalg.LinAlgError(
            f"{int(bad.sum())} of {bad.numel()} chains have a joint precision that is not positive "
            f"definite, or are not finite, the first at batch index {int(bad.nonzero()[0])}: the "
            "potentials or the dynamics hold non-finite or extreme values."
        )
