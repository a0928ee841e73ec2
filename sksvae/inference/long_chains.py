# SPDX-License-Identifier: BSD-3-Clause
"""Moments of Gaussian chains of any length, in memory for a stretch of steps at a time.

A stretch of a chain feels the rest through messages at its two ends only. What is left of it after
the steps before are integrated out, with ``m`` and ``V`` the moments of the last of them given
everything before and ``L`` the block that couples it with the first of the stretch, is ``-L m``
added to ``h`` and ``-L V L'`` added to ``J``; likewise from the other end, with ``L'``. So three
sweeps of `chain_moments`, one from each end for the messages and one for the moments, do what one
call would, at three times the cost. The last two go together, from the first stretch to the last:
only messages are held.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sksvae.inference.block_tridiagonal import ChainMoments, chain_moments

Message = tuple[int, Tensor, Tensor]  # the step that feels it, and what it adds to h and J there


@torch.no_grad()
def long_chain_moments(
    read: Callable[[int, int], tuple[Tensor, Tensor, Tensor]], cuts: Sequence[int]
) -> Iterator[ChainMoments]:
    """`chain_moments` stretch by stretch, without gradients, masks and draws.

    Parameters
    ----------
    read : callable
        ``read(a, b)`` gives ``h`` and the blocks ``J_{t,t}`` of the steps t from a to b, without b,
        and the blocks ``J_{t+1,t}`` that couple each of them with the next, of shapes (..., n, D),
        (..., n, D, D) and (..., n, D, D); the last step has no coupling. Each step is read more
        than once, the last time just before its moments come.
    cuts : sequence of int
        Where stretches begin, in order and from 0, and the number of steps.

    Yields
    ------
    ChainMoments
        Of each stretch in order, exact. Lag covariances begin with that of the last step of the
        stretch before and the first of this. Log normalisers add up to that of the chain.

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
    >>> def read(a, b):
    ...     return h[a:b], diagonal[a:b], lower[a:b]
    >>> [chain.mean.flatten() for chain in long_chain_moments(read, [0, 2, 3])]
    [tensor([1.5000, 2.0000]), tensor([2.5000])]
    """
    stretches = list(pairwise(cuts))
    from_right: list[list[Message]] = [[]]
    for a, b in reversed(stretches[1:]):
        h, diagonal, lower = read(a, b)
        later = _moments(h, diagonal, lower, from_right[-1])
        # The coupling across the seam stands with the step before it.
        coupling = read(a - 1, a)[2][..., 0, :, :]
        from_right.append([_message(-1, later, 0, coupling.mT)])

    from_left: list[Message] = []
    across: Tensor | None = None
    for a, b in stretches:
        h, diagonal, lower = read(a, b)
        messages = from_right.pop()
        earlier = chain = _moments(h, diagonal, lower, from_left)
        if messages:
            chain = _moments(h, diagonal, lower, from_left + messages)
        lag = chain.lag_covariance
        if across is not None:
            # Given z_{t+1}, z_t has covariance W, that under the message from its left alone, and
            # a mean that moves by -W L' with it.
            seam = -chain.covariance[..., :1, :, :] @ across
            lag = torch.cat([seam, lag], -3)
        yield chain._replace(log_normalizer=earlier.log_normalizer, lag_covariance=lag)
        if messages:
            coupling = lower[..., -1, :, :]
            from_left = [_message(0, earlier, -1, coupling)]
            across = (coupling @ earlier.covariance[..., -1, :, :]).unsqueeze(-3)


def _moments(
    h: Tensor, diagonal: Tensor, lower: Tensor, messages: Sequence[Message]
) -> ChainMoments:
    """Moments of a stretch that feels messages."""
    h, diagonal = h.clone(), diagonal.clone()
    for step, shift, precision in messages:
        h[..., step, :] += shift
        diagonal[..., step, :, :] += precision
    return chain_moments(h, diagonal, lower[..., : h.shape[-2] - 1, :, :])


def _message(step: int, chain: ChainMoments, end: int, coupling: Tensor) -> Message:
    """What the neighbour feels at a step of its own, from the end of a stretch next to it."""
    mean, covariance = chain.mean[..., end, :, None], chain.covariance[..., end, :, :]
    return step, -(coupling @ mean).squeeze(-1), -coupling @ covariance @ coupling.mT
