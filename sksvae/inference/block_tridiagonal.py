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

Gradients are exact and written out, see `sksvae.inference.chain_adjoint`. That of the log
normaliser costs nothing, and those of means a substitution. The others take one sweep backwards
through the selected inversion and one backwards through the elimination, matrix products with what
the factorisation left. Saved for them are, per step, ``C^-1``, ``K``, the marginal covariance and
the covariance with the neighbours in the elimination: memory linear in ``T D^2``, no graph per
stage.

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

from sksvae.inference.banded_elimination import Banded, banded_pays
from sksvae.inference.chain_adjoint import ChainResults, chain_adjoint
from sksvae.inference.chain_blocks import BlockCotangents, Blocks
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


class CenteredMoments(NamedTuple):
    """Log normaliser, moments and draws of Gaussian chains, relative to a point.

    Parameters
    ----------
    log_normalizer : Tensor of shape (...)
        ``log int exp(x'y - y'(J + diag R)y/2) dy``.
    mean : Tensor of shape (..., T, D)
        Means of ``y``.
    variance : Tensor of shape (..., T, D)
        Diagonals of the covariances, whose gradient needs no array of their size.
    covariance : Tensor of shape (..., T, D, D)
        Marginal covariances.
    lag_covariance : Tensor of shape (..., T - 1, D, D)
        ``Cov(z_{t+1}, z_t)``.
    draws : Tensor of shape (n_draws, ..., T, D)
        Draws of ``y``.
    """

    log_normalizer: Tensor
    mean: Tensor
    variance: Tensor
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
    zero = torch.zeros_like(precision_mean)
    blocks = Blocks(diagonal), Blocks(lower)
    moments = centered_moments(
        zero, precision_mean, zero, *blocks, mask=mask, noise=noise, method=method
    )
    return ChainMoments(
        moments.log_normalizer,
        moments.mean,
        moments.covariance,
        moments.lag_covariance,
        moments.draws,
    )


def centered_moments(
    center: Tensor,
    slope: Tensor,
    precision: Tensor,
    diagonal: Blocks,
    lower: Blocks,
    *,
    mask: Tensor | None = None,
    noise: Tensor | None = None,
    method: ChainMethod = "auto",
) -> CenteredMoments:
    """Moments of ``y = z - c``, with log density ``x'y - y'(J + diag R)y/2 + const``.

    It stands for ``log p(z) = h'z - z'Jz/2`` times potentials ``log l(z) = r'z - z'diag(R)z/2``,
    relative to ``log l(c)``. With ``x = h - J c + r - R c`` ::

        log int p(z) l(z)/l(c) dz = (h - J c/2)'c + log int exp(x'y - y'(J + diag R)y/2) dy,

    and no large terms cancel where ``c`` is near the mean. The caller adds the first term, and
    computes ``J c`` in both places without a gradient: that of ``J`` is taken care of here.

    Parameters
    ----------
    center : Tensor of shape (..., T, D)
        ``c``, without a gradient.
    slope : Tensor of shape (..., T, D)
        ``x``.
    precision : Tensor of shape (..., T, D)
        ``R``, zero at steps that do not exist.
    diagonal : Blocks of shape (..., T, D, D)
        ``J_{t,t}``, symmetric. Only the symmetric part gets a gradient.
    lower : Blocks of shape (..., T - 1, D, D)
        ``J_{t+1,t}``.
    mask, noise, method
        See `chain_moments`.

    Returns
    -------
    CenteredMoments
        Differentiable once; a second derivative raises ``RuntimeError``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.block_tridiagonal import centered_moments
    >>> from sksvae.inference.chain_blocks import Blocks
    >>> J, c, r, R = torch.ones(1, 1, 1), torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1)
    >>> centered_moments(c, r - (1 + R) * c, R, Blocks(J), Blocks(J[:0])).mean + c
    tensor([[0.]])
    """
    _check_shapes(slope, diagonal, lower, mask, noise)
    batch_shape, (n_steps, dim) = slope.shape[:-2], slope.shape[-2:]
    if noise is None:
        noise = slope.new_zeros(0, *slope.shape)
    n_present: Tensor | int = n_steps
    if mask is not None and mask.all():
        mask = None
    if mask is not None:
        exists, linked = mask.unsqueeze(-1), (mask[..., 1:] & mask[..., :-1]).unsqueeze(-1)
        # Absent steps are independent, with unit precision and zero mean and noise.
        slope, noise = torch.where(exists, slope, 0.0), torch.where(exists, noise, 0.0)
        precision = torch.where(exists, precision, 1.0)
        diagonal, lower = diagonal.where(exists), lower.where(linked)
        # A count of integers would turn the constants, and what they are added to, into float32.
        n_present = mask.sum(-1, dtype=slope.dtype)
    n_chains = batch_shape.numel()
    log_normalizer, mean, variance, covariance, lag, draws = _Chain.apply(
        _choose_order(method, n_chains, slope),
        center.reshape(n_chains, n_steps, dim),
        slope.reshape(n_chains, n_steps, dim),
        precision.reshape(n_chains, n_steps, dim),
        noise.reshape(len(noise), n_chains, n_steps, dim),
        *diagonal.flat(n_chains, n_steps),
        *lower.transposed().flat(n_chains, n_steps - 1),
    )
    block_shape = *batch_shape, n_steps, dim, dim
    variance, covariance = variance.reshape(slope.shape), covariance.reshape(block_shape)
    if mask is not None:
        variance = torch.where(exists, variance, 0.0)
        covariance = torch.where(exists.unsqueeze(-1), covariance, 0.0)
    return CenteredMoments(
        log_normalizer.reshape(batch_shape) + (0.5 * dim * math.log(2.0 * math.pi)) * n_present,
        mean.reshape(slope.shape),
        variance,
        covariance,
        lag.reshape(*batch_shape, n_steps - 1, dim, dim),
        draws.reshape(noise.shape),
    )


def _check_shapes(
    h: Tensor, diagonal: Blocks, lower: Blocks, mask: Tensor | None, noise: Tensor | None
) -> None:
    if h.ndim < 2 or 0 in h.shape[-2:]:
        raise ValueError(f"precision_mean must have shape (..., T, D), got {tuple(h.shape)}.")
    *batch, n_steps, dim = h.shape
    expected = {
        "diagonal": (diagonal.shape, (*batch, n_steps, dim, dim)),
        "lower": (lower.shape, (*batch, n_steps - 1, dim, dim)),
        "mask": (None if mask is None else mask.shape, (*batch, n_steps)),
    }
    if noise is not None:
        expected["noise"] = (noise.shape, (*noise.shape[:1], *h.shape))
    for name, (got, shape) in expected.items():
        if got is not None and got != shape:
            raise ValueError(
                f"{name} must have shape {tuple(shape)} to fit precision_mean of shape "
                f"{tuple(h.shape)}, got {tuple(got)}."
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
        pays = banded_pays(n_chains, n_steps, dim, like.dtype, like.device)
        return Banded if pays else Sequential
    raise ValueError(f"method must be 'auto', 'sequential' or 'parallel', got {method!r}.")


class _Chain(torch.autograd.Function):
    """Log normaliser without ``2 pi``, moments and draws; see `chain_adjoint` for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        order: type[EliminationOrder],
        center: Tensor,
        h: Tensor,
        own: Tensor,
        noise: Tensor,
        P: Tensor,
        P_weights: Tensor | None,
        U: Tensor,
        U_weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        center, h, own = (x.transpose(0, 1) for x in (center, h, own))
        diagonal, upper = Blocks(P, P_weights), Blocks(U, U_weights)
        factors, whitened, info = order.eliminate(
            diagonal.steps_first(), own, upper.steps_first(), h
        )
        half_log_det = factors.root.diagonal(dim1=-2, dim2=-1).log().sum((0, -1))  # of J^-1
        log_normalizer = 0.5 * whitened.square().sum((0, -2, -1)) + half_log_det
        _check_elimination(info, log_normalizer)

        covariance, cross = order.covariances(factors)
        noise = order.to_elimination(noise.permute(2, 1, 3, 0).contiguous())
        u = order.substitute_back(factors, torch.cat((whitened, whitened + noise), -1))
        mean = u[..., 0].transpose(0, 1).contiguous()
        ctx.order = order
        ctx.save_for_backward(
            *diagonal, *upper, mean, center, *factors, noise, u, covariance, cross
        )
        return (
            log_normalizer,
            mean,
            covariance.diagonal(dim1=-2, dim2=-1).transpose(0, 1).contiguous(),
            covariance.transpose(0, 1),
            order.lag(cross).transpose(0, 1),
            u[..., 1:].permute(3, 1, 0, 2).contiguous(),
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        P, P_weights, U, U_weights, mean, center, *rest = ctx.saved_tensors
        root, gain, band, *results = rest
        factors = Factors(root, gain, band)
        with torch.no_grad():
            diagonal, upper = (
                BlockCotangents(blocks.steps_first(), wants_weights)
                for blocks, wants_weights in (
                    (Blocks(P, P_weights), ctx.needs_input_grad[6]),
                    (Blocks(U, U_weights), ctx.needs_input_grad[8]),
                )
            )
            g_h, g_own, g_noise = chain_adjoint(
                ctx.order, ChainResults(center, factors, *results), (diagonal, upper), cotangents
            )
            gradients = [
                g_h.transpose(0, 1),
                g_own.transpose(0, 1),
                None if g_noise is None else g_noise.permute(3, 1, 0, 2),
                *diagonal.result(),
                *upper.result(),
            ]
        return None, None, *differentiated_once(gradients, mean, "chain_moments")


def _check_elimination(info: Tensor, log_normalizer: Tensor) -> None:
    # LAPACK lets an infinite pivot through and sees no potential: the log normaliser shows both.
    bad = (info != 0).any(0) | ~log_normalizer.isfinite()
    if bad.any():
        raise torch.linalg.LinAlgError(
            f"{int(bad.sum())} of {bad.numel()} chains have a joint precision that is not positive "
            f"definite, or are not finite, the first at batch index {int(bad.nonzero()[0])}: the "
            "potentials or the dynamics hold non-finite or extreme values."
        )
