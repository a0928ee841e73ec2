# SPDX-License-Identifier: BSD-3-Clause
r"""Orders in which to eliminate the steps of a block tridiagonal system, and the first of them.

Eliminating a step ``e`` with neighbours ``n`` is one column of a block Cholesky factorisation.
With its pivot ``S``, its couplings ``N = J_{e,n}`` and its vector ``h``, it leaves to them ::

    J_nn <- J_nn - N' S^-1 N,    h_n <- h_n - N' S^-1 h.

The column holds the Cholesky factor ``C`` of the pivot and ``W = C^-1 N``. Together the columns are
a triangular matrix ``L`` with ``L L' = J``, and ``w = L^-1 h``. With ``K = S^-1 N`` follow ::

    Cov(z_e, z_n) = E = -K V_n,    V_e = S^-1 - E K',

once the neighbours' covariances are known, and the solution ``u`` of ``L' u = w``, which is the
mean, or a draw where noise is added to ``w``. Every pivot is a Schur complement of a positive
definite matrix, and every ``V_e`` a sum of two positive ones.

`Sequential` eliminates the first step, then the second, and so on: one neighbour, ``T`` stages.
`sksvae.inference.banded_elimination.Banded` is the same order in LAPACK's routines for banded
matrices, and `sksvae.inference.cyclic_reduction.CyclicReduction` eliminates the steps 0, 2, 4, ...
at once, then every second one of the rest: up to two neighbours, ``log2(T)`` stages of batched
work. All offer the same sweeps. What belongs to the elimination of a step (``S``, ``N``, ``C``,
``K``, ``w`` and ``E``) is in the order of elimination, everything else in the order of time. The
axis of steps comes first, then a batch axis. All neighbours of a step together have ``M``
dimensions: ``M = D`` in the sequential order and ``M = 2 D`` in cyclic reduction.

An adjoint sweep maps cotangents of a sweep's results to those of its inputs, the reverse-mode
derivative written out: its cost is that of the sweep, it factorises nothing, and what is specific
to one step only (the derivative of its pivot's Cholesky factor, for instance) is left to the
caller, who does it for all steps at once.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sksvae.inference.stepping import stepping


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
    band : Tensor, optional
        ``L`` as `Banded` stores it.
    """

    factor: Tensor
    whitened: Tensor
    info: Tensor
    band: Tensor | None = None


class Factors(NamedTuple):
    """What substitutions need of a factorisation.

    Parameters
    ----------
    root : Tensor of shape (T, B, D, D)
        ``C^-1``.
    gain : Tensor of shape (T, B, D, M)
        ``K``.
    band : Tensor, optional
        ``L`` as `Banded` stores it.
    """

    root: Tensor
    gain: Tensor
    band: Tensor | None


class EliminationOrder(Protocol):
    """What an order of elimination offers: sweeps and their adjoints."""

    @staticmethod
    def eliminate(diagonal: Tensor, lower: Tensor, vector: Tensor) -> Eliminated:
        """Factorise the system with blocks ``diagonal`` and ``lower[t] = J_{t+1,t}``."""

    @staticmethod
    def substitute_back(factors: Factors, columns: Tensor) -> Tensor:
        """Solve ``L' u = w`` for ``w`` of shape (T, B, D, n_columns)."""

    @staticmethod
    def substitute_forward(factors: Factors, columns: Tensor) -> Tensor:
        """Solve ``L w = u`` for ``u`` of shape (T, B, D, n_columns)."""

    @staticmethod
    def covariances(gain: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Compute ``V`` and ``E`` from ``K`` and ``S^-1``."""

    @staticmethod
    def covariances_adjoint(
        gain: Tensor, covariance: Tensor, cross: Tensor, g_covariance: Tensor, g_lag: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of ``K`` and ``S^-1``, from those of ``V`` and of the result of `lag`."""

    @staticmethod
    def neighbours(steps: Tensor) -> Tensor:
        """What each step eliminated finds at its neighbours, of shape (T, B, M, n_columns)."""

    @staticmethod
    def eliminate_adjoint(
        gain: Tensor, center: Tensor, g_pivot: Tensor, g_couplings: Tensor, g_vector: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of ``diagonal`` and ``lower``.

        ``center`` is ``S^-1 h``; ``g_pivot`` and ``g_couplings`` are the cotangents of ``S`` and
        ``N`` that do not pass through the Schur complements, ``g_vector`` is that of ``vector``.
        """

    @staticmethod
    def to_elimination(steps: Tensor) -> Tensor:
        """Reorder from the order of time to that of elimination."""

    @staticmethod
    def to_time(steps: Tensor) -> Tensor:
        """Reorder from the order of elimination to that of time."""

    @staticmethod
    def lag(cross: Tensor) -> Tensor:
        """Return ``Cov(z_{t+1}, z_t)``, of shape (T - 1, B, D, D), from ``E``."""


class Sequential:
    """First step first; the only neighbour of a step is the next one, and the last has none."""

    @staticmethod
    def eliminate(diagonal: Tensor, lower: Tensor, vector: Tensor) -> Eliminated:
        """Factorise, one step after the other."""
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
    def substitute_back(factors: Factors, columns: Tensor) -> Tensor:
        """Sweep from the last step to the first."""
        solution = factors.root.mT @ columns
        module, (gain, u) = stepping(factors.gain, solution)
        for t in range(len(gain) - 2, -1, -1):
            u[t] -= module.matmul(gain[t], u[t + 1])
        return solution

    @staticmethod
    def substitute_forward(factors: Factors, columns: Tensor) -> Tensor:
        """Sweep from the first step to the last."""
        passed = columns.clone(memory_format=torch.contiguous_format)
        module, (transposed, u) = stepping(factors.gain.mT.contiguous(), passed)
        for t in range(1, len(u)):
            u[t] -= module.matmul(transposed[t - 1], u[t - 1])
        return factors.root @ passed

    @staticmethod
    def covariances(gain: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Sweep from the last step to the first."""
        covariance, products = _congruences(gain, inverse)
        return covariance, products.neg_()

    @staticmethod
    def covariances_adjoint(
        gain: Tensor, covariance: Tensor, cross: Tensor, g_covariance: Tensor, g_lag: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sweep from the first step to the last."""
        g_inverse = g_covariance.clone(memory_format=torch.contiguous_format)
        g_cross = _pad_end(g_lag.mT)
        # A copy: products of small transposed matrices take several times as long.
        steps = gain.contiguous(), gain.mT.contiguous(), g_inverse, g_cross
        module, (K, transposed, g_V, g_E) = stepping(*steps)
        for t in range(len(g_E)):
            if t:
                g_V[t] -= module.matmul(transposed[t - 1], g_E[t - 1])
            g_E[t] -= module.matmul(g_V[t], K[t])
        g_gain = g_cross @ _pad_end(covariance[1:]).mT
        g_gain += g_inverse.mT @ cross
        return g_gain.neg_(), g_inverse

    @staticmethod
    def neighbours(steps: Tensor) -> Tensor:
        """Return the following step of each."""
        return _pad_end(steps[1:])

    @staticmethod
    def eliminate_adjoint(
        gain: Tensor, center: Tensor, g_pivot: Tensor, g_couplings: Tensor, g_vector: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sweep from the last step to the first."""
        outer = center @ _pad_end(g_vector[1:]).mT
        mixed = 0.5 * outer @ gain.mT
        g_diagonal, products = _congruences(gain, g_pivot + mixed + mixed.mT)
        g_N = g_couplings - outer - 2.0 * products
        return g_diagonal, g_N[:-1].mT

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


def _congruences(gain: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """``X_t = own_t + K_t X_{t+1} K_t'`` from the last step to the first, and ``K_t X_{t+1}``."""
    result, products = own.clone(memory_format=torch.contiguous_format), torch.zeros_like(gain)
    steps = gain.contiguous(), gain.mT.contiguous(), result, products
    module, (K, transposed, X, product) = stepping(*steps)
    for t in range(len(K) - 2, -1, -1):
        module.matmul(K[t], X[t + 1], out=product[t])
        X[t] += module.matmul(product[t], transposed[t])
    return result, products


def _pad_end(steps: Tensor) -> Tensor:
    """Append a step of zeros."""
    return torch.cat((steps, steps.new_zeros(1, *steps.shape[1:])))
