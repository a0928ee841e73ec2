# SPDX-License-Identifier: BSD-3-Clause
r"""Recursions ``x_t = q_t + s_t * (x_{t-1} M)`` over the steps of discrete Markov chains.

Every sweep that inference in such a chain needs is of this form: the forward and the backward
messages (``q = 0``, ``s`` the likelihoods, ``M`` the transition matrix or its transpose) and their
derivatives. Two orders of computation give the same numbers.

`run_steps` takes one step after the other, two small tensor operations each. `Blocks` cuts the
steps into about ``sqrt(T)`` blocks that advance side by side: the products of ``M diag(s_t)`` over
each block carry the vectors from block to block, after which each block knows where it starts.
That is about ``3 sqrt(T)`` tensor operations instead of ``T``, at ``K`` times the arithmetic.

Shapes: steps first, then ``N`` matrices, then ``n`` chains that share one, then ``K`` states.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.inference.stepping import stepping


def run_steps(
    start: Tensor, scale: Tensor, matrices: Tensor, source: Tensor | None = None, period: int = 0
) -> tuple[Tensor, Tensor]:
    """Run ``x_t = source_t + scale_t * (x_{t-1} M)`` from ``start``, one step after the other.

    Parameters
    ----------
    start : Tensor of shape (N, n, K)
        The vectors before the first step.
    scale : Tensor of shape (S, N, n, K)
        ``s``.
    matrices : Tensor of shape (N, K, K)
        ``M``.
    source : Tensor of shape (S, N, n, K), optional
        ``q``, zero if not given.
    period : int, default=0
        If positive, every ``x`` including the first is divided by its sum. That is done at every
        ``period``-th step on the way, and at the others at the end.

    Returns
    -------
    vectors, images : Tensor of shape (S, N, n, K)
        ``x_t`` and ``x_{t-1} M``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.markov_sweeps import run_steps
    >>> vectors, _ = run_steps(torch.ones(1, 1, 2), torch.ones(3, 1, 1, 2), torch.eye(2)[None] / 2)
    >>> vectors[:, 0, 0, 0]
    tensor([0.5000, 0.2500, 0.1250])
    """
    vectors, images = torch.empty_like(scale), torch.empty_like(scale)
    steps = start, scale.contiguous(), matrices.contiguous(), vectors, images
    sources = () if source is None else (source,)
    module, (x, s, M, following, image, *q) = stepping(*steps, *sources)
    for t in range(len(s)):
        module.matmul(x, M, out=image[t])
        x = following[t]
        module.multiply(image[t], s[t], out=x)
        if q:
            x += q[0][t]
        if period and (t + 1) % period == 0:
            x /= x.sum(-1)[..., None]
    if period and len(scale):
        sums = vectors.sum(-1, keepdim=True)
        images /= torch.cat((start.sum(-1, keepdim=True).unsqueeze(0), sums[:-1]))
        vectors /= sums
    return vectors, images


class Blocks(NamedTuple):
    """Products of ``M diag(s_t)`` over the blocks of a recursion.

    Parameters
    ----------
    transfers : Tensor of shape (C, N, n, K, K)
        The product over each of the ``C`` blocks, divided by its ``exp(log_weight)``.
    log_weight : Tensor of shape (C, N, n)
        See above.
    """

    transfers: Tensor
    log_weight: Tensor

    @classmethod
    def build(cls, scale: Tensor, matrices: Tensor, period: int) -> "Blocks":
        """Multiply the steps of each of about ``sqrt(S)`` blocks, all blocks at once."""
        n_blocks = max(1, math.isqrt(len(scale)))
        (_, groups, chains, states), split = scale.shape, _split(scale, n_blocks, 1.0)
        shape = groups, split.shape[2], states, states
        product = torch.eye(states, dtype=scale.dtype, device=scale.device).expand(shape)
        product, image = product.contiguous(), scale.new_empty(shape)
        rows, image_rows = product.view(groups, -1, states), image.view(groups, -1, states)
        log_weight = scale.new_zeros(shape[:2])
        for t, s in enumerate(split.unsqueeze(-2).unbind(0), 1):
            torch.bmm(rows, matrices, out=image_rows)
            torch.mul(image, s, out=product)
            if t % period == 0:
                total = product.sum((-2, -1), keepdim=True)
                product /= total
                log_weight += total[..., 0, 0].log()
        transfers = product.view(groups, n_blocks, chains, states, states).transpose(0, 1)
        return cls(transfers, log_weight.view(groups, n_blocks, chains).transpose(0, 1))

    def rescaled(self, log_scale: Tensor) -> "Blocks":
        """Products for scales multiplied by ``exp(log_scale)``, of shape (S, N, n), no weights."""
        n_blocks = len(self.transfers)
        shape = *self.log_weight.shape[1:2], n_blocks, -1
        total = _split(log_scale.unsqueeze(-1), n_blocks, 0.0).sum(0).view(shape).transpose(0, 1)
        weight = (self.log_weight + total).exp()[..., None, None]
        return Blocks(self.transfers * weight, torch.zeros_like(self.log_weight))

    def run(
        self,
        start: Tensor,
        scale: Tensor,
        matrices: Tensor,
        source: Tensor | None = None,
        period: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Do the same as `run_steps`."""
        n_blocks, n_steps = len(self.transfers), len(scale)
        blocked, ends = _split(scale, n_blocks, 1.0), [None] * n_blocks
        if source is not None:
            source = _split(source, n_blocks, 0.0)
            zero = torch.zeros_like(source[0])
            end = run_steps(zero, blocked, matrices, source)[0][-1]
            ends = end.view(len(matrices), n_blocks, *start.shape[1:]).unbind(1)
        starts = []
        for transfer, end in zip(self.transfers, ends, strict=True):
            if period:
                start = start / start.sum(-1, keepdim=True)
            starts.append(start)
            start = (start.unsqueeze(-2) @ transfer).squeeze(-2)
            if end is not None:
                start = start + end
        first = torch.stack(starts, 1).flatten(1, 2)
        vectors, images = run_steps(first, blocked, matrices, source, period)
        return _join(vectors, n_blocks, n_steps), _join(images, n_blocks, n_steps)


def _split(steps: Tensor, n_blocks: int, fill: float) -> Tensor:
    """Put blocks side by side: (S, N, n, K) to (L, N, n_blocks * n, K), filled up at the end."""
    n_steps, *shape = steps.shape
    length = -(-n_steps // n_blocks)
    padded = steps.new_full((n_blocks * length, *shape), fill)
    padded[:n_steps] = steps
    blocks = padded.view(n_blocks, length, *shape).permute(1, 2, 0, 3, 4)
    return blocks.flatten(2, 3).contiguous()


def _join(blocks: Tensor, n_blocks: int, n_steps: int) -> Tensor:
    length, groups, _, states = blocks.shape
    steps = blocks.view(length, groups, n_blocks, -1, states).permute(2, 0, 1, 3, 4)
    return steps.flatten(0, 1)[:n_steps]


class PairWeights(NamedTuple):
    """Function of pairs of states, ``constant`` plus ``stepwise``, either may be None.

    Parameters
    ----------
    constant : Tensor of shape (B, K, K), optional
        The same at all steps.
    stepwise : Tensor of shape (B, T - 1, K, K), optional
        One for each step.
    """

    constant: Tensor | None = None
    stepwise: Tensor | None = None


def steps_exist(lengths: Tensor | None, n_steps: int) -> Tensor | None:
    """Whether each step exists, of shape (T, B, 1)."""
    if lengths is None:
        return None
    return (torch.arange(n_steps, device=lengths.device)[:, None] < lengths).unsqueeze(-1)


def where_present(present: Tensor | None, values: Tensor, other: float) -> Tensor:
    """Values of steps that exist, and ``other`` for those that do not."""
    return values if present is None else torch.where(present, values, other)


def reverse_steps(steps: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the steps (T, B, K) of each chain, leaving those that do not exist in place."""
    if lengths is None:
        return steps.flip(0)
    time = torch.arange(len(steps), device=steps.device)[:, None]
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return steps.gather(0, index.unsqueeze(-1).expand_as(steps))
