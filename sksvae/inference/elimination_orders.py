# SPDX-License-Identifier: BSD-3-Clause
r"""Two orders in which to eliminate the steps of a block tridiagonal system.

Eliminating a step ``e`` with neighbours ``n`` is one column of a block Cholesky factorisation.
With its pivot ``S``, its couplings ``N = J_{e,n}`` and its vector ``h``, it leaves to them ::

    J_nn <- J_nn - N' S^-1 N,    h_n <- h_n - N' S^-1 h,

and, given its neighbours, ``z_e = c - K z_n + noise`` with ``K = S^-1 N``, ``c = S^-1 h`` and noise
covariance ``S^-1``. Restoring it, once its neighbours are known, is therefore ::

    Cov(z_e, z_n) = E = -K V_n,    V_e = S^-1 - E K',    u_e = base_e - K u_n,

where ``u`` stands for any solution: the mean has ``base = c``, a draw ``c`` plus noise. Every
pivot is a Schur complement of a positive definite matrix, and every ``V_e`` a sum of two positive
ones.

`Sequential` eliminates the first step, then the second, and so on: one neighbour, ``T`` stages.
`CyclicReduction` eliminates the steps 0, 2, 4, ... at once, then every second one of the rest:
up to two neighbours, ``log2(T)`` stages of batched work. Both offer the same four sweeps. What
belongs to the elimination of a step (``S``, ``N``, ``C``, ``K``, ``c``, bases and ``E``) is in the
order of elimination, everything else in the order of time. The axis of steps comes first, then a
batch axis. All neighbours of a step together have ``M`` dimensions: ``M = D`` in the sequential
order and ``M = 2 D`` in cyclic reduction.

An adjoint sweep maps cotangents of a sweep's results to those of its inputs, the reverse-mode
derivative written out: its cost is that of the sweep, it factorises nothing, and what is specific
to one step only (the derivative of its pivot's Cholesky factor, for instance) is left to the
caller, who does it for all steps at once.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sksvae.inference.banded_cholesky import banded_cholesky, banded_pays


class Eliminated(NamedTuple):
    """The Cholesky factorisation, one block column per step, in the order of elimination.

    Parameters
    ----------
    factor : Tensor of shape (T, B, D, D)
        Lower Cholesky factors ``C`` of the pivots.
    whitened : Tensor of shape (T, B, D, M + 1)
        ``C^-1 [N, h]``.
    info : Tensor of shape (T, B)
        Nonzero where a pivot is not positive definite.
    """

    factor: Tensor
    whitened: Tensor
    info: Tensor


class Restored(NamedTuple):
    """Covariances and solutions.

    Parameters
    ----------
    covariance : Tensor of shape (T, B, D, D)
        Diagonal blocks of the inverse.
    solution : Tensor of shape (T, B, D, n_columns)
        Solutions, one per column.
    cross : Tensor of shape (T, B, D, M)
        ``Cov(z_e, z_n)`` of each step with its neighbours, in the order of elimination.
    """

    covariance: Tensor
    solution: Tensor
    cross: Tensor


class EliminationOrder(Protocol):
    """What an order of elimination offers: two sweeps and the adjoint of each."""

    @staticmethod
    def eliminate(diagonal: Tensor, lower: Tensor, vector: Tensor) -> Eliminated:
        """Factorise the system with blocks ``diagonal`` and ``lower[t] = J_{t+1,t}``."""

    @staticmethod
    def restore(gain: Tensor, inverse: Tensor, base: Tensor) -> Restored:
        """Inverse blocks and solutions from ``K``, ``S^-1`` and the bases of the solutions."""

    @staticmethod
    def restore_adjoint(
        gain: Tensor, restored: Restored, g_covariance: Tensor, g_lag: Tensor, g_solution: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cotangents of ``gain``, ``inverse`` and ``base``."""

    @staticmethod
    def eliminate_adjoint(
        gain: Tensor, center: Tensor, g_pivot: Tensor, g_couplings: Tensor, g_vector: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cotangents of ``diagonal``, ``lower`` and ``vector``.

        ``center`` is ``c``; ``g_pivot``, ``g_couplings`` and ``g_vector`` are the cotangents of
        ``S``, ``N`` and ``h`` that do not pass through the Schur complements.
        """

    @staticmethod
    def to_elimination(steps: Tensor) -> Tensor:
        """Reorder from the order of time to that of elimination."""

    @staticmethod
    def to_time(steps: Tensor) -> Tensor:
        """Reorder from the order of elimination to that of time."""

    @staticmethod
    def lag(cross: Tensor) -> Tensor:
        """Return ``Cov(z_{t+1}, z_t)``, of shape (T - 1, B, D, D), from ``cross``."""


class Sequential:
    """First step first; the only neighbour of a step is the next one, and the last has none."""

    @staticmethod
    def eliminate(diagonal: Tensor, lower: Tensor, vector: Tensor) -> Eliminated:
        """Factorise, one step after the other."""
        if banded_pays(diagonal):
            return Eliminated(*banded_cholesky(diagonal, lower, vector))
        dim = vector.shape[-1]
        border = torch.cat((_pad_end(lower.mT), vector.unsqueeze(-1)), -1)
        pivots, borders = diagonal.clone().unbind(0), border.unbind(0)
        factors, whitened, infos = [], [], []
        for t, (pivot, rhs) in enumerate(zip(pivots, borders, strict=True)):
            factor, info = torch.linalg.cholesky_ex(pivot)
            white = torch.linalg.solve_triangular(factor, rhs, upper=False)
            factors.append(factor)
            whitened.append(white)
            infos.append(info)
            if t + 1 < len(pivots):
                product = white[..., :dim].mT @ white
                pivots[t + 1].sub_(product[..., :dim])
                borders[t + 1][..., dim].sub_(product[..., dim])
        return Eliminated(torch.stack(factors), torch.stack(whitened), torch.stack(infos))

    @staticmethod
    def restore(gain: Tensor, inverse: Tensor, base: Tensor) -> Restored:
        """Sweep from the last step to the first."""
        covariance, solution = torch.zeros_like(inverse[0]), torch.zeros_like(base[0])
        rows = []
        steps = zip(gain.flip(0), inverse.flip(0), base.flip(0), strict=True)
        for K, S_inverse, u in steps:
            negative_cross = K @ covariance
            covariance = torch.baddbmm(S_inverse, negative_cross, K.mT)
            solution = torch.baddbmm(u, K, solution, alpha=-1.0)
            rows.append((covariance, solution, negative_cross))
        covariances, solutions, negative = (torch.stack(r[::-1]) for r in zip(*rows, strict=True))
        return Restored(covariances, solutions, negative.neg_())

    @staticmethod
    def restore_adjoint(
        gain: Tensor, restored: Restored, g_covariance: Tensor, g_lag: Tensor, g_solution: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sweep from the first step to the last."""
        g_V, g_u = g_covariance[0], g_solution[0]
        rows = []
        for t, (K, g_E) in enumerate(zip(gain, _pad_end(g_lag.mT), strict=True)):
            g_E = torch.baddbmm(g_E, g_V, K, alpha=-1.0)
            rows.append((g_V, g_u, g_E))
            if t + 1 < gain.shape[0]:
                g_V = torch.baddbmm(g_covariance[t + 1], K.mT, g_E, alpha=-1.0)
                g_u = torch.baddbmm(g_solution[t + 1], K.mT, g_u, alpha=-1.0)
        g_inverse, g_base, g_cross = (torch.stack(r) for r in zip(*rows, strict=True))
        g_gain = g_cross @ _pad_end(restored.covariance[1:]).mT
        g_gain += g_base @ _pad_end(restored.solution[1:]).mT
        g_gain += g_inverse.mT @ restored.cross
        return g_gain.neg_(), g_inverse, g_base

    @staticmethod
    def eliminate_adjoint(
        gain: Tensor, center: Tensor, g_pivot: Tensor, g_couplings: Tensor, g_vector: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sweep from the last step to the first."""
        # The cotangent of h needs no other: solve for it first.
        g_h, rows = torch.zeros_like(g_vector[0]), []
        for K, own in zip(gain.flip(0), g_vector.flip(0), strict=True):
            g_h = torch.baddbmm(own, K, g_h, alpha=-1.0)
            rows.append(g_h)
        g_h_all = torch.stack(rows[::-1])
        next_g_h = _pad_end(g_h_all[1:])
        outer = center @ next_g_h.mT
        mixed = 0.5 * outer @ gain.mT
        g_S, rows = torch.zeros_like(g_pivot[0]), []
        for K, own in zip(gain.flip(0), (g_pivot + mixed + mixed.mT).flip(0), strict=True):
            g_S = torch.baddbmm(own, K @ g_S, K.mT)
            rows.append(g_S)
        g_diagonal = torch.stack(rows[::-1])
        g_N = g_couplings - outer - 2.0 * (gain @ _pad_end(g_diagonal[1:]))
        return g_diagonal, g_N[:-1].mT, g_h_all.squeeze(-1)

    @staticmethod
    def to_elimination(steps: Tensor) -> Tensor:
        """Return the steps, which are in this order already."""
        return steps

    @staticmethod
    def to_time(steps: Tensor) -> Tensor:
        """Return the steps, which are in this order already."""
        return steps

    @staticmethod
    def lag(cross: Tensor) -> Tensor:
        """Transpose: rows are to belong to the later step."""
        return cross[:-1].mT


class CyclicReduction:
    """Every second step at once, starting with the first, until none is left."""

    @staticmethod
    def eliminate(diagonal: Tensor, lower: Tensor, vector: Tensor) -> Eliminated:
        """Factorise, half of the remaining steps per stage."""
        vector = vector.unsqueeze(-1)
        width = 2 * vector.shape[-2]
        levels = []
        while n_steps := len(diagonal):
            border = torch.cat((_to_couplings(lower, n_steps), vector[::2]), -1)
            factor, info = torch.linalg.cholesky_ex(diagonal[::2])
            white = torch.linalg.solve_triangular(factor, border, upper=False)
            levels.append(Eliminated(factor, white, info))
            product = white[..., :width].mT @ white
            schur, lag = _scatter_blocks(product[..., :width], n_steps // 2)
            diagonal = diagonal[1::2] - schur
            lower = -0.5 * lag  # both triangles of the product were added
            vector = vector[1::2] - _scatter_columns(product[..., width:], n_steps // 2)
        return Eliminated(*(torch.cat(parts) for parts in zip(*levels, strict=True)))

    @staticmethod
    def restore(gain: Tensor, inverse: Tensor, base: Tensor) -> Restored:
        """Sweep from the coarsest level to the finest."""
        V, lag, u = inverse[:0], inverse[:0], base[:0]
        crosses = []
        for stage in reversed(_stages(len(gain))):
            K = gain[stage.where]
            negative_cross = K @ _gather_blocks(V, lag, stage.n_eliminated)
            V = _interleave(inverse[stage.where] + negative_cross @ K.mT, V)
            u = _interleave(base[stage.where] - K @ _gather_columns(u, stage.n_eliminated), u)
            crosses.append(negative_cross.neg_())
            lag = _from_couplings(crosses[-1], stage.n_kept)
        return Restored(V, u, torch.cat(crosses[::-1]))

    @staticmethod
    def restore_adjoint(
        gain: Tensor, restored: Restored, g_covariance: Tensor, g_lag: Tensor, g_solution: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sweep from the finest level to the coarsest."""
        V, u, cross = restored
        stages = _stages(len(gain))
        levels = []
        for stage, coarser in zip(stages, [*stages[1:], None], strict=True):
            K, n_eliminated, n_kept = gain[stage.where], stage.n_eliminated, stage.n_kept
            # What the sweep knew at this level: the steps kept, and their lag-one covariances.
            V, u = V[1::2], u[1::2]
            lag = _from_couplings(cross[coarser.where], coarser.n_kept) if coarser else V[:0]
            g_V, g_u = g_covariance[::2], g_solution[::2]
            g_E = _to_couplings(g_lag, stage.n_eliminated + n_kept) - g_V @ K
            g_K = g_E @ _gather_blocks(V, lag, n_eliminated).mT
            g_K += g_u @ _gather_columns(u, n_eliminated).mT
            g_K += g_V.mT @ cross[stage.where]
            levels.append((g_K.neg_(), g_V, g_u))
            passed, g_lag = _scatter_blocks(K.mT @ g_E, n_kept)
            g_lag = g_lag.neg_()
            g_covariance = g_covariance[1::2] - passed
            g_solution = g_solution[1::2] - _scatter_columns(K.mT @ g_u, n_kept)
        g_gain, g_inverse, g_base = (torch.cat(parts) for parts in zip(*levels, strict=True))
        return g_gain, g_inverse, g_base

    @staticmethod
    def eliminate_adjoint(
        gain: Tensor, center: Tensor, g_pivot: Tensor, g_couplings: Tensor, g_vector: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sweep from the coarsest level to the finest."""
        g_diagonal, g_lower, g_h = g_pivot[:0], g_pivot[:0], g_vector[:0]
        for stage in reversed(_stages(len(gain))):
            K, c = gain[stage.where], center[stage.where]
            # Cotangents of what this stage subtracted from its neighbours.
            blocks = _gather_blocks(g_diagonal, 0.5 * g_lower, stage.n_eliminated)
            columns = _gather_columns(g_h, stage.n_eliminated)
            image = K @ blocks + 0.5 * c @ columns.mT
            column_image = K @ columns
            g_S = g_pivot[stage.where] + image @ K.mT + 0.5 * column_image @ c.mT
            g_N = g_couplings[stage.where] - 2.0 * image
            g_diagonal = _interleave(g_S, g_diagonal)
            g_lower = _from_couplings(g_N, stage.n_kept)
            g_h = _interleave(g_vector[stage.where] - column_image, g_h)
        return g_diagonal, g_lower, g_h.squeeze(-1)

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


class _Stage(NamedTuple):
    """One level of cyclic reduction."""

    where: slice  # where its eliminated steps are, in the order of elimination
    steps: slice  # which ones they are, in the order of time
    n_eliminated: int
    n_kept: int


def _stages(n_steps: int) -> list[_Stage]:
    """Levels of cyclic reduction, finest first."""
    stages, start, stride = [], 0, 1
    while n_steps:
        n_eliminated = (n_steps + 1) // 2
        where = slice(start, start + n_eliminated)
        stages.append(
            _Stage(where, slice(stride - 1, None, 2 * stride), n_eliminated, n_steps // 2)
        )
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


def _pad_end(steps: Tensor) -> Tensor:
    """Append a step of zeros."""
    return torch.cat((steps, steps.new_zeros(1, *steps.shape[1:])))
