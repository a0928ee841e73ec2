# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of chains, one by one or as weighted sums of a few.

Dynamics that do not change have the same blocks at every step, and those that switch average the
blocks of their states. Where the steps are many, an array with a block for each is the largest of
all, and filling it takes longer than the products that it is needed for.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """A block for each step of each chain.

    Parameters
    ----------
    table : Tensor of shape (R, D, D) or (..., D, D)
        Blocks that are added up, or all blocks if there are no weights. Leading axes are those of
        chains and steps.
    weights : Tensor of shape (..., R) or None, default=None
        How much of each there is in a step.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.chain_blocks import Blocks
    >>> Blocks(torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[1.0, 3.0]]])).whole()
    tensor([[[[7.]]]])
    """

    table: Tensor
    weights: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of all blocks."""
        if self.weights is None:
            return self.table.shape
        return self.weights.shape[:-1] + self.table.shape[1:]

    def where(self, mask: Tensor) -> "Blocks":
        """Zero where a mask, which has a last axis of length one, is false."""
        if self.weights is None:
            return Blocks(torch.where(mask.unsqueeze(-1), self.table, 0.0))
        return Blocks(self.table, torch.where(mask, self.weights, 0.0))

    def transposed(self) -> "Blocks":
        """Transpose each block."""
        return Blocks(self.table.mT, self.weights)

    def flat(self, *leading: int) -> "Blocks":
        """The same with other leading axes."""
        if self.weights is None:
            return Blocks(self.table.reshape(*leading, *self.table.shape[-2:]))
        return Blocks(self.table, self.weights.reshape(*leading, len(self.table)))

    def steps_first(self) -> "Blocks":
        """The same with the first two axes, of chains and of steps, exchanged."""
        if self.weights is None:
            return Blocks(self.table.transpose(0, 1))
        return Blocks(self.table.contiguous(), self.weights.transpose(0, 1).contiguous())

    def times(self, points: Tensor) -> Tensor:
        """Product of each block with a vector."""
        if self.weights is None:
            return (self.table @ points.unsqueeze(-1)).squeeze(-1)
        images = (points @ self.table.flatten(0, 1).mT).unflatten(-1, self.table.shape[:2])
        return (self.weights.unsqueeze(-1) * images).sum(-2)

    def diagonals(self) -> Tensor:
        """Diagonal of each block."""
        diagonals = self.table.diagonal(dim1=-2, dim2=-1)
        return diagonals if self.weights is None else self.weights @ diagonals

    def copy_step(self, t: int, out: Tensor) -> None:
        """Write the blocks of a step, of shape (B, D, D), where the axis of steps comes first."""
        if self.weights is None:
            out.copy_(self.table[t])
        else:
            torch.mm(self.weights[t], self.table.flatten(1), out=out.view(len(out), -1))

    def whole(self) -> Tensor:
        """All blocks, of shape (..., D, D)."""
        if self.weights is None:
            return self.table
        return (self.weights @ self.table.flatten(1)).unflatten(-1, self.table.shape[-2:])


class BlockCotangents:
    """Collects cotangents of blocks, some steps at a time.

    Parameters
    ----------
    blocks : Blocks
        What they are of, with the axis of steps first.
    wants_weights : bool, default=True
        Whether the weights get a cotangent.
    """

    def __init__(self, blocks: Blocks, wants_weights: bool = True) -> None:
        table, weights = blocks
        self.blocks, self.table = blocks, torch.zeros_like(table.flatten(1))
        self.weights: Tensor | None = None
        if weights is None:
            self.table = table.new_empty(table.shape)
        elif wants_weights:
            self.weights = weights.new_empty(weights.shape)

    def put(self, steps: slice, cotangents: Tensor) -> None:
        """Take those of some steps, of shape (n_steps, B, D, D). Every step comes once."""
        table, weights = self.blocks
        if weights is None:
            self.table[steps] = cotangents
            return
        flat = cotangents.flatten(0, 1).flatten(1)
        self.table.addmm_(weights[steps].flatten(0, 1).mT, flat)
        if self.weights is not None:
            self.weights[steps] = (flat @ table.flatten(1).mT).view_as(self.weights[steps])

    def result(self) -> tuple[Tensor, Tensor | None]:
        """Cotangents of the table and of the weights, with the axis of chains first."""
        if self.blocks.weights is None:
            return self.table.transpose(0, 1), None
        weights = None if self.weights is None else self.weights.transpose(0, 1)
        return self.table.view(self.blocks.table.shape), weights
