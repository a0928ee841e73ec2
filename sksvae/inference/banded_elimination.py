# SPDX-License-Identifier: BSD-3-Clause
"""Elimination of block tridiagonal systems by LAPACK's routines for banded matrices.

The factor of a block tridiagonal matrix with blocks of size ``D`` is a banded matrix, so that one
call factorises a whole chain, or substitutes in it. Step by step, a batch of small blocks pays the
price of several calls for each step, which is most of the time where blocks are small and chains
are few.
"""

import torch
from scipy.linalg import lapack
from torch import Tensor

from sksvae.inference.chain_blocks import Blocks
from sksvae.inference.elimination_orders import (
    Eliminated,
    Factors,
    Sequential,
    finished_factors,
)

_ROUTINES = {
    torch.float32: (lapack.spbtrf, lapack.stbtrs),
    torch.float64: (lapack.dpbtrf, lapack.dtbtrs),
}
# Time of LAPACK / time step by step on one thread in float64: 0.15 at B D^2 = 256, 0.35 at 1000,
# 0.4 to 0.6 at 2000, 1.1 at 8000, where arithmetic counts and batches of blocks do it better.
_LARGEST = 4096
_SHORT = 20  # chains for each step, above which calls for chains cost more than calls for steps


def banded_pays(
    n_chains: int, n_steps: int, dim: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Say whether `Banded` is possible and expected to be the faster way.

    Parameters
    ----------
    n_chains, n_steps, dim : int
        ``B``, ``T`` and ``D``.
    dtype : torch.dtype
        Type of the numbers.
    device : torch.device
        Where they are.

    Returns
    -------
    bool
        On a CPU, for blocks of a small total size in chains that are not too short.
    """
    possible = device.type == "cpu" and dtype in _ROUTINES
    return possible and n_chains * dim**2 <= _LARGEST and n_chains <= _SHORT * n_steps


class Banded(Sequential):
    """First step first, whole chains at a time where there is a routine for it."""

    @staticmethod
    def eliminate(diagonal: Blocks, own: Tensor, upper: Blocks, vector: Tensor) -> Eliminated:
        """Factorise, one chain after the other.

        What is computed after a pivot that is not positive definite is void.
        """
        n_steps, n_chains, dim = vector.shape
        # Column c of step t holds the entries from the diagonal down, one more than the band has:
        # in a band of 2 D + 1 rows the D columns of a step, each with the rows of two blocks, lie
        # one after the other without overlap.
        height, width = 2 * dim + 1, 2 * dim
        band = vector.new_zeros(n_chains, n_steps * dim, height)
        strides = (n_steps * dim * height, dim * height, width, 1)
        columns = band.as_strided((n_chains, n_steps, dim, width), strides)
        # The upper triangle of each block is read.
        columns[..., :dim] = diagonal.whole().transpose(0, 1).triu()
        columns[..., :dim].diagonal(dim1=-2, dim2=-1).add_(own.transpose(0, 1))
        columns[:, :-1, :, dim:] = upper.whole().transpose(0, 1)
        white = vector.new_empty(n_chains, n_steps * dim, 1)
        white.view(n_chains, n_steps, dim).copy_(vector.transpose(0, 1))
        info = torch.zeros(n_steps, n_chains, dtype=torch.int32)
        factorise, solve = _ROUTINES[vector.dtype]
        for chain, (matrix, column) in enumerate(zip(band.numpy(), white.numpy(), strict=True)):
            # The transpose is in the order of Fortran, so that both work in place.
            factor, failed = factorise(matrix.T, lower=1, overwrite_ab=1)
            if failed:
                info[(failed - 1) // dim, chain] = 1
            else:
                solve(factor, column, uplo="L", overwrite_b=1)
        factor = columns[..., :dim].mT.transpose(0, 1)
        factors = finished_factors(factor, columns[..., dim:].transpose(0, 1), band)
        whitened = white.view(n_chains, n_steps, dim, 1).transpose(0, 1)
        return Eliminated(factors, whitened, info)

    @staticmethod
    def substitute_back(factors: Factors, columns: Tensor) -> Tensor:
        """Solve, one chain after the other."""
        return _substitute(factors, columns, "T")

    @staticmethod
    def substitute_forward(factors: Factors, columns: Tensor) -> Tensor:
        """Solve, one chain after the other."""
        return _substitute(factors, columns, "N")


def _substitute(factors: Factors, columns: Tensor, transposed: str) -> Tensor:
    n_steps, n_chains, dim, n_columns = columns.shape
    band = factors.band
    if band is None:
        raise ValueError("factors must be those of Banded.eliminate.")
    solution = columns.new_empty(n_chains, n_columns, n_steps, dim)
    solution.copy_(columns.permute(1, 3, 0, 2))
    _, solve = _ROUTINES[columns.dtype]
    flat = solution.view(n_chains, n_columns, n_steps * dim)
    for matrix, column in zip(band.numpy(), flat.numpy(), strict=True):
        solve(matrix.T, column.T, uplo="L", trans=transposed, overwrite_b=1)
    return solution.permute(2, 0, 3, 1)
