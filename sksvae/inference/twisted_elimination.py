# SPDX-License-Identifier: BSD-3-Clause
r"""Moments of Gaussian chains by elimination from both ends, again and again in the same memory.

For the rounds of block updates, which need means and covariances of the same chains under ever new
blocks, and no log normalisers, draws or gradients. The first step and the last are eliminated
together, then their neighbours, up to the step in the middle (a twisted factorisation [1]_): the
arithmetic of one step after the other in half as many stages, of twice as many blocks each. On a
CPU what small blocks cost is mostly the calls.

With ``S`` the pivot of a step, ``N`` its coupling with the next one towards the middle and ``h``
its vector, a stage takes ``S^-1 = U U'`` from the Cholesky factor and leaves to the next ::

    S_n <- S_n - W'W,    h_n <- h_n - W'U'h,    W = U'N,

and on the way back follow, with ``K = S^-1 N``, ::

    V = S^-1 + K V_n K',    m = S^-1 h - K m_n,    Cov(z_n, z) = -V_n K'.

References
----------
.. [1] Dhillon and Parlett, "Multiple representations to compute orthogonal eigenvectors of
   symmetric tridiagonal matrices", Linear Algebra and its Applications 387, 2004, section 3.
"""

from typing import NamedTuple

import numpy as np
import torch


class _Stage(NamedTuple):
    """What the elimination of both steps of a stage works on; see `TwistedChains`."""

    pivot: np.ndarray
    side: np.ndarray
    white: np.ndarray  # ``W'`` and below them ``h'U``, of shape (2 B, D + 1, D)
    root: np.ndarray  # ``U``
    columns: torch.Tensor  # its transpose, in the same memory
    info: torch.Tensor


class TwistedChains:
    """Memory for ``B`` chains of ``T`` steps in ``D`` dimensions, on a CPU.

    Stage ``s`` holds the steps ``s`` and ``-1 - s``, the last stage the middle twice. Chains of an
    even length get one more step at their end, which nothing is coupled to.

    Parameters
    ----------
    n_steps, n_chains, dim : int
        ``T``, ``B`` and ``D``.
    dtype : torch.dtype
        Type of the numbers.

    Attributes
    ----------
    pivots : ndarray of shape (n_stages, 2, B, D + 1, D)
        Diagonal blocks of ``J`` and below them ``h``, to be filled before each run. What is no step
        keeps an independent one while it is left alone.
    sides : ndarray of shape (n_stages, 2, B, D + 1, D)
        Transposed couplings ``N'``, to be filled likewise, and a row that is not. There is no
        coupling in the last stage.
    moments : ndarray of shape (n_stages, 2, B, D + 1, D)
        Covariances and below them means.
    products : ndarray of shape (n_stages, 2, B, D + 1, D)
        ``V_n K'``, minus the covariance between the next step towards the middle (rows) and the
        step, and a row that means nothing. There is nothing in the last stage.

    Examples
    --------
    Three steps of a random walk that is observed at its ends:

    >>> import torch
    >>> from sksvae.inference.twisted_elimination import TwistedChains
    >>> chains = TwistedChains(3, 1, 1, torch.float64)
    >>> chains.pivots[..., 0, 0] = 2.0
    >>> chains.pivots[0, :, 0, 1, 0] = 1.0, 3.0
    >>> chains.sides[0, ..., 0, 0] = -1.0
    >>> chains.run()
    True
    >>> chains.in_time(chains.moments[..., 1, :]).flatten()
    array([1.5, 2. , 2.5])
    """

    def __init__(self, n_steps: int, n_chains: int, dim: int, dtype: torch.dtype) -> None:
        self.n_steps, self.n_stages = n_steps, n_steps // 2 + 1
        # Both halves of a stage are one batch.
        size, flat = 2 * n_chains, (self.n_stages, 2 * n_chains)
        eye = torch.eye(dim, dtype=dtype)
        pivots, sides, whites, moments, products = torch.zeros(5, *flat, dim + 1, dim, dtype=dtype)
        pivots[..., :dim, :] = eye
        self._whites, self._gains = whites, torch.empty_like(whites)
        self._roots, self._inverses = torch.empty(2, *flat, dim, dim, dtype=dtype)
        self._info = torch.zeros(flat, dtype=torch.int32)
        self._moments, self._products = moments.numpy(), products.numpy()
        # What turns [V_n K'; m_n K'] into [K V_n K'; -m_n K'], so that one sum adds both.
        self._turns = np.zeros((*flat, dim + 1, dim + 1), self._moments.dtype)
        self._turns[..., dim, dim] = -1.0
        # LAPACK's order of a matrix is that of columns.
        self._block, self._eye = eye.repeat(size, 1, 1), eye.repeat(size, 1, 1).mT
        self._factor = torch.zeros_like(self._eye)
        # To take views of stages again and again would be a tenth of the time.
        views = pivots.numpy(), sides.numpy(), whites.numpy(), self._roots.numpy()
        columns = self._roots.mT.unbind(), self._info.unbind()
        self._stages = [_Stage(*stage) for stage in zip(*views, *columns, strict=True)]
        shape = self.n_stages, 2, n_chains, dim + 1, dim
        self.pivots, self.sides, self.moments, self.products = (
            array.view(shape).numpy() for array in (pivots, sides, moments, products)
        )

    def run(self) -> bool:
        """Compute the moments, overwriting what was filled in.

        Returns
        -------
        bool
            Whether all pivots were positive definite and finite. If not, results are void.
        """
        self._eliminate()
        diagonal = self._roots.diagonal(dim1=-2, dim2=-1)
        # An infinite pivot passes LAPACK; its inverse is zero.
        if self._info.any() or not (diagonal > 0).all():
            return False
        transposed = self._roots.mT.flatten(0, 1)
        torch.bmm(self._whites.flatten(0, 1), transposed, out=self._gains.flatten(0, 1))
        torch.bmm(self._roots.flatten(0, 1), transposed, out=self._inverses.flatten(0, 1))
        moments, dim = self._moments, self._roots.shape[-1]
        moments[..., :dim, :] = self._inverses.numpy()
        gains = self._gains.numpy()
        moments[..., dim, :] = gains[..., dim, :]
        self._turns[..., :dim, :dim] = gains[..., :dim, :].swapaxes(-1, -2)
        self._substitute(moments, self._products)
        return True

    def _eliminate(self) -> None:
        """Sweep from the ends to the middle."""
        dim, block = self._roots.shape[-1], self._block.numpy()
        transposed, left = np.empty_like(block), np.empty_like(self._moments[0])
        for s, stage in enumerate(self._stages):
            pivot, side, white = stage.pivot, stage.side, stage.white
            if s:
                self._pass_on(left, pivot, s)
            block[:], side[:, dim] = pivot[:, :dim], pivot[:, dim]
            torch.linalg.cholesky_ex(self._block, out=(self._factor, stage.info))
            torch.linalg.solve_triangular(self._factor, self._eye, upper=False, out=stage.columns)
            np.matmul(side, stage.root, white)
            # Products of small transposed matrices take longer than a copy.
            transposed[:] = white[:, :dim].swapaxes(-1, -2)
            np.matmul(white, transposed, left)

    def _pass_on(self, left: np.ndarray, following: np.ndarray, s: int) -> None:
        """Subtract what a stage leaves to stage s; both halves leave it to the middle."""
        np.subtract(following, left, following)
        if s + 1 == self.n_stages:
            n_chains = len(left) // 2
            following[:n_chains] -= left[n_chains:]
            following[n_chains:] = following[:n_chains]

    def _substitute(self, moments: np.ndarray, products: np.ndarray) -> None:
        """Sweep from the middle to the ends, adding what comes from there to the moments."""
        gains = self._gains.numpy()[..., :-1, :]
        change = np.empty_like(moments[0])
        for s in range(self.n_stages - 2, -1, -1):
            np.matmul(moments[s + 1], gains[s], out=products[s])
            np.matmul(self._turns[s], products[s], out=change)
            moments[s] += change

    def tangent(self, pivots: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Change of the moments of the last run, to first order.

        By the product rule, stage by stage, ::

            dK' = (dN' - K' dS) S^-1,    dS_n = dJ_n - (dN' - K' dS) K - K' dN,
            dV = dK V_n K' + (dK V_n K')' - S^-1 dS S^-1 + K dV_n K'.

        Parameters
        ----------
        pivots, sides : ndarray of shape (n_stages, 2, B, D + 1, D)
            Changes of what was filled in; they are overwritten.

        Returns
        -------
        moments, products : ndarray of shape (n_stages, 2, B, D + 1, D)
            Changes of the results.
        """
        shape, dim = pivots.shape, pivots.shape[-1]
        rates, sides = (x.reshape(self._whites.shape) for x in (pivots, sides))
        gains = self._gains.numpy()
        gain = self._turns[..., :dim, :dim]
        known = _multiply(gains, sides[..., :dim, :].swapaxes(-1, -2))
        changed = np.empty_like(rates)  # (dK', dx') S
        for s in range(self.n_stages):
            sides[s, :, dim] = rates[s, :, dim]
            np.matmul(gains[s], rates[s, :, :dim], out=changed[s])
            np.subtract(sides[s], changed[s], out=changed[s])
            if s + 1 < self.n_stages:
                left = np.matmul(changed[s], gain[s])
                left += known[s]
                self._pass_on(left, rates[s + 1], s + 1)
        inverses = self._inverses.numpy()
        g = changed @ inverses
        moments, products = np.empty_like(rates), np.zeros_like(rates)
        own = inverses @ rates[..., :dim, :] @ inverses
        np.negative(own, out=moments[..., :dim, :])
        moments[..., dim, :] = g[..., dim, :]
        images = self._moments[1:] @ g[:-1, :, :dim]
        half = _multiply(g[:-1, :, :dim].swapaxes(-1, -2), self._products[:-1, :, :dim])
        moments[:-1, :, :dim] += half
        moments[:-1, :, :dim] += half.swapaxes(-1, -2)
        moments[:-1, :, dim] -= images[..., dim, :]
        self._substitute(moments, products)
        products[:-1] += images
        return moments.reshape(shape), products.reshape(shape)

    def in_time(self, stages: np.ndarray) -> np.ndarray:
        """Steps (T, B, ...) in the order of time, from stages (n_stages, 2, B, ...)."""
        middle = self.n_steps // 2
        ordered = np.empty((self.n_steps, *stages.shape[2:]), stages.dtype)
        ordered[: middle + 1] = stages[:, 0]
        ordered[middle + 1 :] = stages[self._first : -1, 1][::-1]
        return ordered

    def to_stages(self, steps: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write steps (T, B, ...) into stages; what is no step and the last half are left alone."""
        middle = self.n_steps // 2
        out[:, 0] = steps[: middle + 1]
        out[self._first : -1, 1] = steps[middle + 1 :][::-1]
        return out

    @property
    def _first(self) -> int:
        """First stage whose later half is a step."""
        return 1 - self.n_steps % 2


def _multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of many small matrices, which torch does faster where one is transposed."""
    x, y = (torch.from_numpy(array).flatten(0, 1) for array in (left, right))
    return torch.bmm(x, y).unflatten(0, left.shape[:2]).numpy()
