# SPDX-License-Identifier: BSD-3-Clause
"""Moments of Gaussian chains of any length, in memory for a stretch of steps at a time.

A stretch of a chain feels the rest through messages at its two ends only. What is left of it after
the steps before are integrated out, with ``m`` and ``V`` the moments of the last of them given
everything before and ``L`` the block that couples it with the first of the stretch, is ``-L m``
added to ``h`` and ``-L V L'`` added to ``J``; likewise from the other end, with ``L'``. So three
sweeps of `chain_moments`, one from each end for the messages and one for the moments, do what one
call would, at three times the cost.
"""

import torch
from torch import Tensor

from sksvae.inference.block_tridiagonal import ChainMoments, chain_moments


@torch.no_grad()
def long_chain_moments(
    precision_mean: Tensor, diagonal: Tensor, lower: Tensor, n_steps: int
) -> ChainMoments:
    """`chain_moments` in bounded working memory, without gradients, masks and draws.

    Parameters
    ----------
    precision_mean : Tensor of shape (..., T, D)
        ``h``.
    diagonal : Tensor of shape (..., T, D, D)
        Blocks ``J_{t,t}``, symmetric.
    lower : Tensor of shape (..., T - 1, D, D)
        Blocks ``J_{t+1,t}`` below the diagonal.
    n_steps : int
        Steps that are worked on at a time.

    Returns
    -------
    ChainMoments
        Exact, as from `chain_moments`; no draws.

    Raises
    ------
    torch.linalg.LinAlgError
        If the joint precision is not positive definite or not finite.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import long_chain_moments
    >>> diagonal = torch.tensor([2.0, 2.0, 2.0]).view(3, 1, 1)
    >>> lower = -torch.ones(2, 1, 1)
    >>> h = torch.tensor([[1.0], [0.0], [3.0]])
    >>> long_chain_moments(h, diagonal, lower, n_steps=2).mean.squeeze(-1)
    tensor([1.5000, 2.0000, 2.5000])
    """
    total = precision_mean.shape[-2]
    stretches = [(a, min(a + n_steps, total)) for a in range(0, total, n_steps)]

    def moments(stretch: tuple[int, int], *messages: tuple[int, Tensor, Tensor]) -> ChainMoments:
        a, b = stretch
        h, P = precision_mean[..., a:b, :].clone(), diagonal[..., a:b, :, :].clone()
        for step, shift, precision in messages:
            h[..., step, :] += shift
            P[..., step, :, :] += precision
        return chain_moments(h, P, lower[..., a : b - 1, :, :])

    def message(
        step: int, chain: ChainMoments, end: int, coupling: Tensor
    ) -> tuple[int, Tensor, Tensor]:
        """What the neighbour feels at a step of its own, from the end of a stretch next to it."""
        mean, covariance = chain.mean[..., end, :, None], chain.covariance[..., end, :, :]
        return step, -(coupling @ mean).squeeze(-1), -coupling @ covariance @ coupling.mT

    from_left: dict[tuple[int, int], tuple] = {stretches[0]: ()}
    log_normalizer = precision_mean.new_zeros(())
    for stretch, following in zip(stretches, [*stretches[1:], None], strict=True):
        chain = moments(stretch, *from_left[stretch])
        log_normalizer = log_normalizer + chain.log_normalizer
        if following is not None:
            coupling = lower[..., stretch[1] - 1, :, :]
            from_left[following] = (message(0, chain, -1, coupling),)

    mean, covariance = torch.empty_like(precision_mean), torch.empty_like(diagonal)
    lag_covariance = torch.empty_like(lower)
    from_right: tuple = ()
    later: ChainMoments | None = None
    for a, b in reversed(stretches):
        chain = moments((a, b), *from_left[a, b], *from_right)
        mean[..., a:b, :], covariance[..., a:b, :, :] = chain.mean, chain.covariance
        lag_covariance[..., a : b - 1, :, :] = chain.lag_covariance
        if later is not None:
            lag_covariance[..., b - 1, :, :] = _across(chain, later, lower[..., b - 1, :, :])
        if a > 0:
            later = moments((a, b), *from_right)
            coupling = lower[..., a - 1, :, :].mT
            from_right = (message(-1, later, 0, coupling),)
    draws = precision_mean.new_zeros(0, *precision_mean.shape)
    return ChainMoments(log_normalizer, mean, covariance, lag_covariance, draws)


def _across(chain: ChainMoments, later: ChainMoments, coupling: Tensor) -> Tensor:
    """``Cov(z_{t+1}, z_t)`` of the last step of a stretch and the first of the next.

    Given ``z_t`` the next step has covariance ``W``, that under the message from its right alone,
    and a mean that moves by ``-W L`` with it.
    """
    return -later.covariance[..., 0, :, :] @ coupling @ chain.covariance[..., -1, :, :]
