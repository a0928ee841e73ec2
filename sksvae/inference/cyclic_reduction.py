# SPDX-License-Identifier: BSD-3-Clause
"""Elimination of every second step of a block tridiagonal system at once.

See `sksvae.inference.elimination_orders` for what the sweeps compute, and for the notation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.inference.chain_blocks import Blocks
from sksvae.inference.elimination_orders import (
    Eliminated,
    Factors,
    OwnCotangents,
    PutCotangents,
    finished_factors,
)


class CyclicReduction:
    """Every second step at once, starting with the first, until none is left."""

    @staticmethod
    def eliminate(diagonal: Blocks, own: Tensor, upper: Blocks, vector: Tensor) -> Eliminated:
        """Factorise, half of the remaining steps per stage."""
        return _eliminate(diagonal.whole() + torch.diag_embed(own), upper.whole().mT, vector)

    @staticmethod
    def substitute_back(factors: Factors, columns: Tensor) -> Tensor:
        """Sweep from the coarsest level to the finest."""
        base = factors.root.mT @ columns
        u = base[:0]
        for stage in reversed(_stages(len(base))):
            K = factors.gain[stage.where]
            u = _interleave(base[stage.where] - K @ _gather_columns(u, stage.n_eliminated), u)
        return u

    @staticmethod
    def substitute_forward(factors: Factors, columns: Tensor) -> Tensor:
        """Sweep from the finest level to the coarsest."""
        levels = []
        for stage in _stages(len(columns)):
            u = columns[::2]
            levels.append(u)
            passed = factors.gain[stage.where].mT @ u
            columns = columns[1::2] - _scatter_columns(passed, stage.n_kept)
        return factors.root @ torch.cat(levels)

    @staticmethod
    def covariances(factors: Factors) -> tuple[Tensor, Tensor]:
        """Sweep from the coarsest level to the finest."""
        inverse = factors.root.mT @ factors.root
        V, lag = inverse[:0], inverse[:0]
        crosses = []
        for stage in reversed(_stages(len(inverse))):
            K = factors.gain[stage.where]
            negative_cross = K @ _gather_blocks(V, lag, stage.n_eliminated)
            V = _interleave(inverse[stage.where] + negative_cross @ K.mT, V)
            crosses.append(negative_cross.neg_())
            lag = _from_couplings(crosses[-1], stage.n_kept)
        return V, torch.cat(crosses[::-1])

    @staticmethod
    def covariances_adjoint(
        gain: Tensor, covariance: Tensor, cross: Tensor, g_covariance: Tensor, g_lag: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Sweep from the finest level to the coarsest."""
        V = covariance
        stages = _stages(len(gain))
        levels = []
        if g_lag is None:
            g_lag = V.new_zeros(len(V) - 1, *V.shape[1:])
        for stage, coarser in zip(stages, [*stages[1:], None], strict=True):
            K, n_eliminated, n_kept = gain[stage.where], stage.n_eliminated, stage.n_kept
            # What the sweep knew at this level: the steps kept, and their lag-one covariances.
            V = V[1::2]
            lag = _from_couplings(cross[coarser.where], coarser.n_kept) if coarser else V[:0]
            g_V = g_covariance[::2]
            own = _to_couplings(g_lag, n_eliminated + n_kept)
            levels.append((g_V, own @ _gather_blocks(V, lag, n_eliminated)))
            passed, g_lag = _scatter_blocks(K.mT @ (own - g_V @ K), n_kept)
            g_lag = g_lag.neg_()
            g_covariance = g_covariance[1::2] - passed
        g_inverse, g_gain = (torch.cat(parts) for parts in zip(*levels, strict=True))
        return g_inverse, g_gain

    @staticmethod
    def neighbours(steps: Tensor) -> Tensor:
        """Return the two steps kept next to each, one above the other."""
        return torch.cat(
            [
                _gather_columns(steps[stage.kept], stage.n_eliminated)
                for stage in _stages(len(steps))
            ]
        )

    @staticmethod
    def eliminate_adjoint(gain: Tensor, own: OwnCotangents, put: PutCotangents) -> None:
        """Sweep from the coarsest level to the finest."""
        g_pivot, g_couplings = own(slice(None))
        g_diagonal, g_lower = g_pivot[:0], g_pivot[:0]
        for stage in reversed(_stages(len(gain))):
            K = gain[stage.where]
            # Cotangents of what this stage subtracted from its neighbours.
            image = K @ _gather_blocks(g_diagonal, 0.5 * g_lower, stage.n_eliminated)
            g_diagonal = _interleave(g_pivot[stage.where] + image @ K.mT, g_diagonal)
            g_N = g_couplings[stage.where].sub_(image, alpha=2.0)
            g_lower = _from_couplings(g_N, stage.n_kept)
        put(slice(0, len(gain)), g_diagonal, g_lower.mT)

    @staticmethod
    def to_elimination(steps: Tensor) -> Tensor:
        """Put the levels one after the other, finest first."""
        return torch.cat([steps[stage.steps] for stage in _stages(len(steps))])

    @staticmethod
    def to_time(steps: Tensor) -> Tensor:
        """Merge the levels."""
        ordered = torch.empty_like(steps)
        for stage in _stages(len(steps)):
            ordered[stage.steps] = steps[stage.where]
        return ordered

    @staticmethod
    def lag(cross: Tensor) -> Tensor:
        """Read from the finest level, where neighbours are one step apart."""
        first = _stages(len(cross))[0]
        return _from_couplings(cross[first.where], first.n_kept)


def _eliminate(diagonal: Tensor, lower: Tensor, vector: Tensor) -> Eliminated:
    vector = vector.unsqueeze(-1)
    width = 2 * vector.shape[-2]
    levels = []
    while n_steps := len(diagonal):
        border = torch.cat((_to_couplings(lower, n_steps), vector[::2]), -1)
        factor, info = torch.linalg.cholesky_ex(diagonal[::2])
        white = torch.linalg.solve_triangular(factor, border, upper=False)
        levels.append((factor, white, info))
        product = white[..., :width].mT @ white
        schur, lag = _scatter_blocks(product[..., :width], n_steps // 2)
        diagonal = diagonal[1::2] - schur
        lower = -0.5 * lag  # both triangles of the product were added
        vector = vector[1::2] - _scatter_columns(product[..., width:], n_steps // 2)
    factor, white, info = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return Eliminated(finished_factors(factor, white[..., :width]), white[..., width:], info)


class _Stage(NamedTuple):
    """One level of cyclic reduction."""

    where: slice  # where its eliminated steps are, in the order of elimination
    steps: slice  # which ones they are, in the order of time
    kept: slice  # which ones are left
    n_eliminated: int
    n_kept: int


def _stages(n_steps: int) -> list[_Stage]:
    """Levels of cyclic reduction, finest first."""
    stages, start, stride = [], 0, 1
    while n_steps:
        n_eliminated = (n_steps + 1) // 2
        where = slice(start, start + n_eliminated)
        steps = slice(stride - 1, None, 2 * stride)
        kept = slice(2 * stride - 1, None, 2 * stride)
        stages.append(_Stage(where, steps, kept, n_eliminated, n_steps // 2))
        start, stride, n_steps = start + n_eliminated, 2 * stride, n_steps // 2
    return stages


# The eliminated step i of a level stands between the kept steps i - 1, which the first one lacks,
# and i, which the last one lacks if their number is odd. What is lacking is filled with zeros.


def _interleave(eliminated: Tensor, kept: Tensor) -> Tensor:
    """Put the steps of a level in the order of time."""
    merged = eliminated.new_empty(len(eliminated) + len(kept), *eliminated.shape[1:])
    merged[::2] = eliminated
    merged[1::2] = kept
    return merged


def _to_couplings(lower: Tensor, n_steps: int) -> Tensor:
    """Blocks ``[J_{e,left}, J_{e,right}]`` of each eliminated step, from ``J_{t+1,t}``."""
    _, n_batch, dim, _ = lower.shape
    couplings = lower.new_zeros((n_steps + 1) // 2, n_batch, dim, 2 * dim)
    couplings[1:, ..., :dim] = lower[1::2]
    couplings[: n_steps // 2, ..., dim:] = lower[::2].mT
    return couplings


def _from_couplings(couplings: Tensor, n_kept: int) -> Tensor:
    """Inverse of `_to_couplings`."""
    dim = couplings.shape[-2]
    return _interleave(couplings[:n_kept, ..., dim:].mT, couplings[1:, ..., :dim])


def _gather_blocks(diagonal: Tensor, lower: Tensor, n_eliminated: int) -> Tensor:
    """Joint 2 D x 2 D block of the two neighbours of each eliminated step."""
    n_kept, n_batch, dim, _ = diagonal.shape
    joint = diagonal.new_zeros(n_eliminated, n_batch, 2 * dim, 2 * dim)
    joint[1:, :, :dim, :dim] = diagonal[: n_eliminated - 1]
    joint[:n_kept, :, dim:, dim:] = diagonal
    joint[1:n_kept, :, dim:, :dim] = lower
    joint[1:n_kept, :, :dim, dim:] = lower.mT
    return joint


def _scatter_blocks(joint: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """Adjoint of `_gather_blocks`."""
    dim = joint.shape[-1] // 2
    diagonal = joint[:n_kept, :, dim:, dim:].clone()
    diagonal[: len(joint) - 1] += joint[1:, :, :dim, :dim]
    return diagonal, joint[1:n_kept, :, dim:, :dim] + joint[1:n_kept, :, :dim, dim:].mT


def _gather_columns(columns: Tensor, n_eliminated: int) -> Tensor:
    """Columns of the two neighbours of each eliminated step, one above the other."""
    n_kept, n_batch, dim, n_columns = columns.shape
    joint = columns.new_zeros(n_eliminated, n_batch, 2 * dim, n_columns)
    joint[1:, :, :dim] = columns[: n_eliminated - 1]
    joint[:n_kept, :, dim:] = columns
    return joint


def _scatter_columns(joint: Tensor, n_kept: int) -> Tensor:
    """Adjoint of `_gather_columns`."""
    dim = joint.shape[-2] // 2
    columns = joint[:n_kept, :, dim:].clone()
    columns[: len(joint) - 1] += joint[1:, :, :dim]
    return columns
