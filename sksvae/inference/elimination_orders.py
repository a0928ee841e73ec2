# SPDX-License-Identifier: BSD-3-Clause
r"""Orders in which to eliminate the steps of a block tridiagonal system, and the first of them.

Eliminating a step ``e`` with neighbours ``n`` is one column of a block Cholesky factorisation.
With its pivot ``S``, its couplings ``N = J_{e,n}`` and its vector ``h``, it leaves to them ::

    J_nn <- J_nn - N' S^-1 N,    h_n <- h_n - N' S^-1 h.

The column holds the Cholesky factor ``C`` of the pivot and ``C^-1 N``. Together the columns are
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
caller, who does it for many steps at once.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sksvae.inference.chain_blocks import Blocks
from sksvae.inference.stepping import products_by_step

OwnCotangents = Callable[[slice], tuple[Tensor, Tensor]]
PutCotangents = Callable[[slice, Tensor, Tensor], None]
_IN_CACHE = 2**17  # numbers of an array that are worked on at a time


class Factors(NamedTuple):
    """What substitutions need of a factorisation, one block column per step.

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
    band: Tensor | None = None


class Eliminated(NamedTuple):
    """The Cholesky factorisation, in the order of elimination.

    Parameters
    ----------
    factors : Factors
        The factor.
    whitened : Tensor of shape (T, B, D, 1)
        ``w``.
    info : Tensor of shape (T, B)
        Nonzero where a pivot is not positive definite.
    """

    factors: Factors
    whitened: Tensor
    info: Tensor


class EliminationOrder(Protocol):
    """What an order of elimination offers: sweeps and their adjoints."""

    @staticmethod
    def eliminate(diagonal: Blocks, own: Tensor, upper: Blocks, vector: Tensor) -> Eliminated:
        """Factorise the system with blocks ``diagonal + diag(own)`` and ``J_{t,t+1}``.

        ``own`` and ``vector`` have shape (T, B, D).
        """

    @staticmethod
    def substitute_back(factors: Factors, columns: Tensor) -> Tensor:
        """Solve ``L' u = w`` for ``w`` of shape (T, B, D, n_columns)."""

    @staticmethod
    def substitute_forward(factors: Factors, columns: Tensor) -> Tensor:
        """Solve ``L w = u`` for ``u`` of shape (T, B, D, n_columns)."""

    @staticmethod
    def covariances(factors: Factors) -> tuple[Tensor, Tensor]:
        """Compute ``V`` and ``E``."""

    @staticmethod
    def covariances_adjoint(
        gain: Tensor, covariance: Tensor, cross: Tensor, g_covariance: Tensor, g_lag: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Cotangents from those of ``V``, which are overwritten, and of the result of `lag`.

        Returns
        -------
        g_inverse : Tensor of shape (T, B, D, D)
            Cotangent ``G`` of ``S^-1``; that of ``K`` is ``-2 G E`` and the following. Only its
            symmetric part means anything.
        g_gain : Tensor of shape (T, B, D, M) or None
            The part of the cotangent of ``-K`` that comes from ``E``.
        """

    @staticmethod
    def neighbours(steps: Tensor) -> Tensor:
        """What each step eliminated finds at its neighbours, of shape (T, B, M, n_columns)."""

    @staticmethod
    def eliminate_adjoint(gain: Tensor, own: OwnCotangents, put: PutCotangents) -> None:
        """Cotangents of ``diagonal`` and of ``J_{t,t+1}``.

        ``own`` gives those of ``S``, symmetric, and ``N`` of some steps eliminated, without what
        passes through the Schur complements; ``put`` takes the results of some steps.
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
    """First step first; the only neighbour of a step is the next one, and the last has none.

    Sweeps are products of small matrices, each waiting for the one before. They go into memory that
    is there: to allocate a whole array takes longer than a product that fills it.
    """

    @staticmethod
    def eliminate(diagonal: Blocks, own: Tensor, upper: Blocks, vector: Tensor) -> Eliminated:
        """Factorise, one step after the other."""
        n_steps, n_chains, dim = vector.shape
        root, gain = (vector.new_empty(*vector.shape, dim) for _ in range(2))
        whitened = vector.new_empty(*vector.shape, 1)
        info = torch.zeros(n_steps, n_chains, dtype=torch.int32, device=vector.device)
        # The pivot and what is left of the vector, [S, h], and right-hand sides [N, h, I].
        system = vector.new_empty(n_chains, dim, dim + 1)
        sides = vector.new_zeros(n_chains, dim, 2 * dim + 1)
        sides[..., dim + 1 :].diagonal(dim1=-2, dim2=-1).fill_(1.0)
        block, white = torch.empty_like(root[0]), torch.empty_like(sides)
        factor = torch.empty_like(block)
        pivot, column = system.split((dim, 1), -1)
        W_N, w, W = white.split((dim, 1, dim), -1)
        for t in range(n_steps):
            diagonal.copy_step(t, block)
            block.diagonal(dim1=-2, dim2=-1).add_(own[t])
            pivot.copy_(block)
            column.copy_(vector[t].unsqueeze(-1))
            if t:
                system.baddbmm_(W_N.mT, white[..., : dim + 1], alpha=-1.0)
            if t + 1 < n_steps:
                upper.copy_step(t, block)
                sides[..., :dim].copy_(block)
            else:
                sides[..., :dim].zero_()
            sides[..., dim : dim + 1].copy_(column)
            torch.linalg.cholesky_ex(pivot, out=(factor, info[t]))
            torch.linalg.solve_triangular(factor, sides, upper=False, out=white)
            root[t], whitened[t] = W, w
            torch.bmm(W.mT, W_N, out=gain[t])
        return Eliminated(Factors(root, gain), whitened, info)

    @staticmethod
    def substitute_back(factors: Factors, columns: Tensor) -> Tensor:
        """Sweep from the last step to the first."""
        solution = factors.root.mT @ columns
        products, (gain, u) = products_by_step(factors.gain, solution)
        for t in range(len(u) - 2, -1, -1):
            products.subtract(u[t], gain[t], u[t + 1])
        return solution

    @staticmethod
    def substitute_forward(factors: Factors, columns: Tensor) -> Tensor:
        """Sweep from the first step to the last."""
        passed = columns.clone(memory_format=torch.contiguous_format)
        products, (transposed, u) = products_by_step(factors.gain.mT, passed)
        for t in range(1, len(u)):
            products.subtract(u[t], transposed[t - 1], u[t - 1])
        return factors.root @ passed

    @staticmethod
    def covariances(factors: Factors) -> tuple[Tensor, Tensor]:
        """Sweep from the last step to the first."""
        root, gain, _ = factors
        covariance, cross = root.mT @ root, root.new_empty(root.shape)
        products, (K, transposed, V, E) = products_by_step(gain, gain.mT, covariance, cross)
        for t in range(len(V) - 2, -1, -1):
            products.multiply(K[t], V[t + 1], out=E[t])
            products.add(V[t], E[t], transposed[t])
        cross[-1:].zero_()
        return covariance, cross.neg_()

    @staticmethod
    def covariances_adjoint(
        gain: Tensor, covariance: Tensor, cross: Tensor, g_covariance: Tensor, g_lag: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Sweep from the first step to the last."""
        g_inverse, image = g_covariance, torch.empty_like(covariance[:1])
        products, (K, transposed, g_V, (product,)) = products_by_step(
            gain, gain.mT, g_inverse, image
        )
        if g_lag is None:
            for t in range(1, len(g_V)):
                products.multiply(g_V[t - 1], K[t - 1], out=product)
                products.add(g_V[t], transposed[t - 1], product)
            return g_inverse, None
        _, (g_E,) = products_by_step(g_lag.mT.clone(memory_format=torch.contiguous_format))
        for t in range(1, len(g_V)):
            products.subtract(g_E[t - 1], g_V[t - 1], K[t - 1])
            products.subtract(g_V[t], transposed[t - 1], g_E[t - 1])
        return g_inverse, _pad_end(g_lag.mT @ covariance[1:])

    @staticmethod
    def neighbours(steps: Tensor) -> Tensor:
        """Return the following step of each."""
        return _pad_end(steps[1:])

    @staticmethod
    def eliminate_adjoint(gain: Tensor, own: OwnCotangents, put: PutCotangents) -> None:
        """Sweep from the last step to the first."""
        following = None
        for stretch in reversed(in_cache(gain)):
            g_pivot, g_couplings = own(stretch)
            images = g_pivot.new_zeros(g_pivot.shape)
            products, (K, transposed, S, image) = products_by_step(
                gain[stretch], gain[stretch].mT, g_pivot, images
            )
            for t in range(len(S) - 1, -1, -1):
                if following is not None:
                    products.multiply(K[t], following, out=image[t])
                    products.add(S[t], image[t], transposed[t])
                following = S[t]
            put(stretch, g_pivot, g_couplings.sub(images, alpha=2.0))

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


def in_cache(like: Tensor) -> list[slice]:
    """Stretches of steps of an array such that what is computed of each stays in the cache."""
    n_steps = at_once = max(len(like), 1)
    if like.device.type == "cpu":
        at_once = max(1, _IN_CACHE * n_steps // max(like.numel(), 1))
    return [slice(start, start + at_once) for start in range(0, len(like), at_once)]


def finished_factors(factor: Tensor, whitened: Tensor, band: Tensor | None = None) -> Factors:
    """Make `Factors` of Cholesky factors ``C`` and of ``C^-1 N``, of all steps at once."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    root = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return Factors(root, root.mT @ whitened, band)


def _pad_end(steps: Tensor) -> Tensor:
    """Append a step of zeros."""
    return torch.cat((steps, steps.new_zeros(1, *steps.shape[1:])))
