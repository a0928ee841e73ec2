# SPDX-License-Identifier: BSD-3-Clause
r"""Gradients of the moments and draws of Gaussian chains, written out.

With ``m = J^-1 h`` and ``V = J^-1``, all of it, ::

    d log Z = m'dh - tr((V + m m') dJ) / 2,    dm = V (dh - dJ m),    dV = -V dJ V.

Cotangents of the mean go through one substitution, ``a = V g``, and leave ``-(a m' + m a')/2`` in
the blocks of ``J``; the log normaliser leaves what is known already. Only where draws or
covariances have cotangents is there a sweep over blocks. Write the cotangent of ``J`` as ``-T``, so
that ``T = V G V`` for a cotangent ``G`` of the covariances. As each step is ``z_e = F z_n`` with
``F = -K`` and noise of covariance ``Q = S^-1``, the blocks of ``T`` follow from those of the
neighbours, ::

    2 T_en = Y + 2 F T_nn,    T_e = sym(own + Y F') + F T_nn F',

from ``own`` and ``Y``, which are sums of

* ``own = Q g Q`` and ``Y = Q (2 g E + g_E V_n)`` for covariances, where ``g`` is the cotangent of
  ``Q`` and ``g_E`` what ``E`` has of its own;
* ``own = U'Phi(e w')U`` and ``Y = q y_n'`` for a draw ``m + y``, where ``U = C^-1``, the noise of
  the step is ``U'e``, the cotangent of that is ``gamma``, ``w = U gamma``, ``q = U'w`` and ``Phi``
  takes the lower triangle and half of the diagonal;
* ``own + Y F' = q (F m_n)' + c a'`` and ``Y = q m_n' + c a_n'`` for the mean, where ``q`` and ``c``
  are what ``a`` and ``m`` have that the neighbours do not explain, ``a = F a_n + q``;
* ``own = Q/2`` and, in ``a``, ``m/2`` for the log normaliser.

Nothing is factorised and no nearly equal matrices are subtracted.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.inference.chain_blocks import BlockCotangents
from sksvae.inference.elimination_orders import EliminationOrder, Factors, in_cache
from sksvae.inference.stepping import thin_products


class ChainResults(NamedTuple):
    """What the gradient needs of the forward pass; the axis of steps comes first.

    Parameters
    ----------
    center : Tensor of shape (T, B, D)
        The point that means are relative to.
    factors : Factors
        Of the elimination.
    noise : Tensor of shape (T, B, D, n_draws)
        Standard normal numbers, in the order of elimination.
    solutions : Tensor of shape (T, B, D, 1 + n_draws)
        Mean and draws.
    covariance : Tensor of shape (T, B, D, D)
        ``V``.
    cross : Tensor of shape (T, B, D, M)
        ``E``, in the order of elimination.
    """

    center: Tensor
    factors: Factors
    noise: Tensor
    solutions: Tensor
    covariance: Tensor
    cross: Tensor


def chain_adjoint(
    order: type[EliminationOrder],
    results: ChainResults,
    blocks: tuple[BlockCotangents, BlockCotangents],
    cotangents: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cotangents of ``h``, the blocks of ``J`` and the noise.

    Parameters
    ----------
    order : type of EliminationOrder
        Of the forward pass.
    results : ChainResults
        Of the forward pass.
    blocks : tuple of BlockCotangents
        Where those of the diagonal blocks and of ``J_{t,t+1}`` go.
    cotangents : tuple of Tensor or None
        Of the log normaliser, mean, variance, covariance, lag-one covariance and draws; sequences
        first.

    Returns
    -------
    g_h : Tensor of shape (T, B, D)
        That of ``h``.
    g_own : Tensor of shape (T, B, D)
        That of what is added to the diagonals of the diagonal blocks.
    g_noise : Tensor of shape (T, B, D, n_draws) or None
        That of the noise.
    """
    g_log_normalizer, g_mean, g_variance, g_V, g_lag, g_draws = cotangents
    center, factors, noise, solutions, covariance, cross = results
    if g_draws is None:
        noise, solutions = noise[..., :0], solutions[..., :1]
    mean = solutions[..., 0]
    point = mean + center
    pull, g_whitened = _through_solutions(order, factors, solutions, g_mean, g_draws)
    g_noise = None if g_draws is None else order.to_time(g_whitened)
    g_h, g_own, half = pull, pull * center, None
    if g_log_normalizer is not None:
        half = 0.5 * g_log_normalizer.unsqueeze(-1)
        g_h = torch.addcmul(pull, half, mean, value=2.0)
        # The caller's h depends on what is added to the diagonal, but not on the blocks.
        g_own.addcmul_(half * center, mean + point)
        pull = torch.addcmul(pull, half, point)

    def put(steps: slice, g_diagonal: Tensor, g_upper: Tensor) -> None:
        n_upper = len(mean) - 1 - steps.start
        blocks[0].put(steps, g_diagonal)
        blocks[1].put(
            slice(steps.start, steps.start + min(len(g_upper), n_upper)), g_upper[:n_upper]
        )
        g_own[steps] += g_diagonal.diagonal(dim1=-2, dim2=-1)

    g_covariance = _covariance_cotangent(g_V, g_variance, covariance, g_lag is not None)
    if g_covariance is None and not noise.shape[-1]:
        lag = order.lag(cross).mT
        for steps in in_cache(covariance):
            put(steps, *_without_sweep(steps, point, pull, half, covariance, lag))
        return g_h, g_own, g_noise
    g_inverse = g_gain = None
    if g_covariance is not None:
        # An expanded cotangent, that of a sum, would be multiplied matrix by matrix.
        g_lag = None if g_lag is None else g_lag.transpose(0, 1).contiguous()
        g_inverse, g_gain = order.covariances_adjoint(
            factors.gain, covariance, cross, g_covariance, g_lag
        )
    means = torch.stack((point, pull), -1)
    deviations = solutions[..., 1:] - solutions[..., :1]
    own = _OwnCotangents(
        factors,
        noise,
        g_whitened,
        order.to_elimination(means),
        order.neighbours(torch.cat((deviations, means), -1)),
        half,
        cross,
        g_inverse,
        g_gain,
    )
    order.eliminate_adjoint(factors.gain, own.of, put)
    return g_h, g_own, g_noise


def _through_solutions(
    order: type[EliminationOrder],
    factors: Factors,
    solutions: Tensor,
    g_mean: Tensor | None,
    g_draws: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``a`` for the mean and ``w`` for the draws, from the cotangents of both."""
    g_solutions = torch.zeros_like(solutions)
    if g_mean is None and g_draws is None:
        return g_solutions[..., 0], g_solutions[..., 1:]
    if g_mean is not None:
        g_solutions[..., 0] = g_mean.transpose(0, 1)
    if g_draws is not None:
        g_solutions[..., 1:] = g_draws.permute(2, 1, 3, 0)
    g_whitened = order.substitute_forward(factors, g_solutions)
    pull = order.substitute_back(factors, g_whitened.sum(-1, keepdim=True)).squeeze(-1)
    return pull, g_whitened[..., 1:]


def _covariance_cotangent(
    g_V: Tensor | None, g_variance: Tensor | None, like: Tensor, wanted: bool
) -> Tensor | None:
    """Sum of the cotangents of ``V``, in memory of its own; None if it is zero and not wanted.

    In the bound of a VAE what the divergence and the control variate add cancels exactly.
    """
    if g_V is None:
        if g_variance is not None and g_variance.any():
            return torch.diag_embed(g_variance.transpose(0, 1))
        return torch.zeros_like(like) if wanted else None
    if g_variance is not None and not wanted:
        diagonal = g_V.diagonal(dim1=-2, dim2=-1)
        if not (diagonal + g_variance).any() and g_V.count_nonzero() == diagonal.count_nonzero():
            return None
    total = torch.empty_like(like).copy_(g_V.transpose(0, 1))
    if g_variance is not None:
        total.diagonal(dim1=-2, dim2=-1).add_(g_variance.transpose(0, 1))
    return total


def _without_sweep(
    steps: slice, point: Tensor, pull: Tensor, half: Tensor | None, V: Tensor, upper_lag: Tensor
) -> tuple[Tensor, Tensor]:
    """Cotangents of the blocks of some steps from those of mean and log normaliser alone."""
    m, a = point.unsqueeze(-1), pull.unsqueeze(-1)
    later = slice(steps.start + 1, steps.stop + 1)
    before = slice(steps.start, steps.start + len(m[later]))
    g_diagonal = (-0.5 * a[steps]) * m[steps].mT
    g_diagonal.addcmul_(m[steps], a[steps].mT, value=-0.5)
    # A block beside the diagonal stands for that on the other side too: twice one half.
    g_upper = -a[before] * m[later].mT
    g_upper.addcmul_(m[before], a[later].mT, value=-1.0)
    if half is not None:
        weight = half.unsqueeze(-1)
        g_diagonal.addcmul_(V[steps], weight, value=-1.0)
        g_upper.addcmul_(upper_lag[before], weight, value=-2.0)
    return g_diagonal, g_upper


class _OwnCotangents(NamedTuple):
    """Cotangents of pivots and couplings that do not pass through Schur complements.

    All are in the order of elimination.

    Parameters
    ----------
    factors, noise, cross
        See `ChainResults`.
    g_whitened : Tensor of shape (T, B, D, n_draws)
        ``w``; no columns if draws have no cotangent.
    columns : Tensor of shape (T, B, D, 2)
        ``m`` and ``a``.
    following : Tensor of shape (T, B, M, n_draws + 2)
        ``y_n``, ``m_n`` and ``a_n``.
    half : Tensor of shape (B, 1) or None
        Half of the cotangent of the log normaliser.
    g_inverse, g_gain : Tensor or None
        ``g`` and ``g_E V_n``.
    """

    factors: Factors
    noise: Tensor
    g_whitened: Tensor
    columns: Tensor
    following: Tensor
    half: Tensor | None
    cross: Tensor
    g_inverse: Tensor | None
    g_gain: Tensor | None

    def of(self, steps: slice) -> tuple[Tensor, Tensor]:
        """Those of some steps."""
        U, K, following = self.factors.root[steps], self.factors.gain[steps], self.following[steps]
        transposed, images = U.mT, K @ following
        m, a = self.columns[steps].split(1, -1)
        q = transposed @ self.g_whitened[steps], a + images[..., -1:]
        # The sign is in small factors, not in blocks, and so is one half for the symmetric part.
        left = torch.cat((*q, m + images[..., -2:-1]), -1).neg_()
        right = torch.cat((images[..., :-1].neg(), a), -1).mul_(0.5)
        # Small products of the same left factor at once.
        products = thin_products(left, torch.cat((right, following), -2).mT)
        own, g_couplings = products.split(K.shape[-2:], -1)
        if self.half is not None or self.noise.shape[-1]:
            own = (transposed @ (self._core(steps) @ U)).add_(own)
        if self.g_inverse is not None:
            Q = transposed @ U
            twice = Q @ (self.g_inverse[steps] + self.g_inverse[steps].mT)
            Y = twice @ self.cross[steps]
            if self.g_gain is not None:
                Y += Q @ self.g_gain[steps]
            own = torch.add(own, Y @ K.mT, alpha=0.5).sub_(twice @ Q, alpha=0.25)
            g_couplings = g_couplings - Y
        return own + own.mT, g_couplings

    def _core(self, steps: slice) -> Tensor:
        """What stands between ``U'`` and ``U``, times minus one half."""
        e, w = -0.5 * self.noise[steps], self.g_whitened[steps]
        if e.shape[-1]:
            # Products with single columns would be slow.
            core = e * w.mT if e.shape[-1] == 1 else e @ w.mT
            core.tril_().diagonal(dim1=-2, dim2=-1).mul_(0.5)
        else:
            core = e.new_zeros(*e.shape[:-1], e.shape[-2])
        if self.half is not None:
            core.diagonal(dim1=-2, dim2=-1).sub_(self.half, alpha=0.5)
        return core
