# SPDX-License-Identifier: BSD-3-Clause
"""Block Cholesky factors of block tridiagonal systems by LAPACK's routines for banded matrices.

The factor of a block tridiagonal matrix with blocks of size ``D`` is a banded matrix, so that one
call factorises a whole chain. Step by step, a batch of small blocks pays the price of five calls
for each step, which is most of the time where blocks are small and chains are few.
"""

import torch
from scipy.linalg import lapack
from torch import Tensor

_ROUTINES = {
    torch.float32: (lapack.spbtrf, lapack.stbtrs),
    torch.float64: (lapack.dpbtrf, lapack.dtbtrs),
}
# Time of LAPACK / time step by step on one thread in float64: 0.15 at B D^2 = 256, 0.35 at 1000,
# 0.4 to 0.6 at 2000, 1.1 at 8000, where arithmetic counts and batches of blocks do it better.
_LARGEST = 4096


def banded_pays(diagonal: Tensor) -> bool:
    """Say whether `banded_cholesky` is possible and expected to be the faster way.

    Parameters
    ----------
    diagonal : Tensor of shape (T, B, D, D)
        Diagonal blocks.

    Returns
    -------
    bool
        On a CPU, for blocks of a small total size.
    """
    _, n_chains, dim, _ = diagonal.shape
    on_cpu = diagonal.device.type == "cpu" and diagonal.dtype in _ROUTINES
    return on_cpu and n_chains * dim**2 <= _LARGEST


def banded_cholesky(
    diagonal: Tensor, lower: Tensor, vector: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Factorise chains and whiten a vector, as `Sequential.eliminate` does.

    Parameters
    ----------
    diagonal : Tensor of shape (T, B, D, D)
        Blocks ``J_{t,t}``, of which the upper triangle is read.
    lower : Tensor of shape (T - 1, B, D, D)
        Blocks ``J_{t+1,t}``.
    vector : Tensor of shape (T, B, D)
        ``h``.

    Returns
    -------
    factor : Tensor of shape (T, B, D, D)
        Lower Cholesky factors ``C`` of the pivots.
    whitened : Tensor of shape (T, B, D, D + 1)
        ``C^-1 [J_{t,t+1}, h]``, where the vector is what earlier steps leave of it.
    info : Tensor of shape (T, B)
        Nonzero where a pivot is not positive definite; then what is computed after it is void.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.banded_cholesky import banded_cholesky
    >>> four, two = torch.full((2, 1, 1, 1), 4.0), torch.full((1, 1, 1, 1), 2.0)
    >>> factor, whitened, info = banded_cholesky(four, two, torch.tensor([[[2.0]], [[4.0]]]))
    >>> factor.flatten(), whitened[0].flatten()  # of [[4, 2], [2, 4]]
    (tensor([2.0000, 1.7321]), tensor([1., 1.]))
    """
    n_steps, n_chains, dim, _ = diagonal.shape
    # Column c of step t holds the entries from the diagonal down, one more than the band has: in
    # a band of 2 D + 1 rows the D columns of a step, each with the rows of two blocks, lie one
    # after the other without overlap.
    height, width = 2 * dim + 1, 2 * dim
    band = diagonal.new_zeros(n_chains, n_steps * dim, height)
    strides = (n_steps * dim * height, dim * height, width, 1)
    columns = band.as_strided((n_chains, n_steps, dim, width), strides)
    columns[..., :dim] = diagonal.transpose(0, 1).triu()
    columns[:, :-1, :, dim:] = lower.transpose(0, 1).mT
    white = vector.new_empty(n_chains, n_steps * dim, 1)
    white.view(n_chains, n_steps, dim).copy_(vector.transpose(0, 1))
    info = torch.zeros(n_steps, n_chains, dtype=torch.int32)
    factorise, solve = _ROUTINES[diagonal.dtype]
    for chain, (matrix, column) in enumerate(zip(band.numpy(), white.numpy(), strict=True)):
        # The transpose is in the order of Fortran, so that both work in place.
        factor, failed = factorise(matrix.T, lower=1, overwrite_ab=1)
        if failed:
            info[(failed - 1) // dim, chain] = 1
        else:
            solve(factor, column, uplo="L", overwrite_b=1)
    whitened = torch.cat((columns[..., dim:], white.view(n_chains, n_steps, dim, 1)), -1)
    return columns[..., :dim].mT.transpose(0, 1), whitened.transpose(0, 1), info
