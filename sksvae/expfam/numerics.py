# SPDX-License-Identifier: BSD-3-Clause
"""Small numerical helpers shared by the exponential families.

Positive definite matrices are handled through their Cholesky factors only: one factorisation
serves inverse, determinant, sampling and the unconstrained coordinates. No jitter is added
anywhere; a matrix that cannot be factorised raises.
"""

import math

import torch
from torch import Tensor


def symmetrize(matrix: Tensor) -> Tensor:
    """Return the symmetric part of a matrix.

    Parameters
    ----------
    matrix : Tensor of shape (..., D, D)
        Any square matrix.

    Returns
    -------
    Tensor of shape (..., D, D)
        ``(matrix + matrix.T) / 2``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import symmetrize
    >>> symmetrize(torch.tensor([[1.0, 4.0], [2.0, 1.0]]))
    tensor([[1., 3.],
            [3., 1.]])
    """
    return 0.5 * (matrix + matrix.mT)


def sum_event(tensor: Tensor, n_dims: int) -> Tensor:
    """Sum a tensor over its last dimensions.

    Parameters
    ----------
    tensor : Tensor of shape (..., *event)
        Any tensor.
    n_dims : int
        Number of trailing dimensions to sum over; may be zero.

    Returns
    -------
    Tensor of shape (...)
        The sums.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import sum_event
    >>> sum_event(torch.ones(5, 2, 3), 2)
    tensor([6., 6., 6., 6., 6.])
    """
    # torch takes an empty tuple of dimensions to mean all of them.
    return tensor.sum(tuple(range(-n_dims, 0))) if n_dims else tensor


def cholesky(matrix: Tensor, name: str) -> Tensor:
    """Return the lower Cholesky factor, or raise an error that names the culprit.

    Parameters
    ----------
    matrix : Tensor of shape (..., D, D)
        Symmetric positive definite matrix; only its lower triangle is read.
    name : str
        What the matrix is called in the error message.

    Returns
    -------
    Tensor of shape (..., D, D)
        Lower triangular ``L`` with ``L @ L.T == matrix``.

    Raises
    ------
    torch.linalg.LinAlgError
        If an entry of the batch is not positive definite or not finite.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import cholesky
    >>> cholesky(torch.tensor([[4.0]]), "covariance")
    tensor([[2.]])
    >>> try:
    ...     cholesky(torch.tensor([[-4.0]]), "covariance")
    ... except torch.linalg.LinAlgError as error:
    ...     print(error)
    covariance must be positive definite and finite; it is not in batch entry ().
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    # LAPACK reports NaN but lets an infinite pivot through, hence the second condition.
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1)
    if info.any() or not pivots.sum() < math.inf:
        valid = (info == 0) & (pivots.sum(-1) < math.inf)
        if valid.all():  # only the sum over the batch overflows
            return factor
        index = tuple((~valid).nonzero()[0].tolist())
        raise torch.linalg.LinAlgError(
            f"{name} must be positive definite and finite; it is not in batch entry {index}."
        )
    return factor


def log_det(factor: Tensor) -> Tensor:
    """Return the log-determinant of ``L @ L.T`` from its Cholesky factor ``L``.

    Parameters
    ----------
    factor : Tensor of shape (..., D, D)
        Lower Cholesky factor.

    Returns
    -------
    Tensor of shape (...)
        Twice the sum of the logged diagonal.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import log_det
    >>> log_det(torch.eye(3))
    tensor(0.)
    """
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def solve_from_cholesky(factor: Tensor, rhs: Tensor) -> Tensor:
    """Solve ``L @ L.T @ x = b`` given the Cholesky factor ``L``.

    Parameters
    ----------
    factor : Tensor of shape (..., D, D)
        Lower Cholesky factor.
    rhs : Tensor of shape (..., D, K)
        Right-hand sides ``b``.

    Returns
    -------
    Tensor of shape (..., D, K)
        Solutions.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import solve_from_cholesky
    >>> solve_from_cholesky(torch.tensor([[2.0]]), torch.tensor([[8.0]]))
    tensor([[2.]])
    """
    # Not torch.cholesky_solve, for the same reason as below (pytorch issue 196694).
    half = torch.linalg.solve_triangular(factor, rhs, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def inverse_from_cholesky(factor: Tensor) -> Tensor:
    """Return the inverse of ``L @ L.T`` from its Cholesky factor ``L``.

    Parameters
    ----------
    factor : Tensor of shape (..., D, D)
        Lower Cholesky factor.

    Returns
    -------
    Tensor of shape (..., D, D)
        ``L^-T @ L^-1``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import inverse_from_cholesky
    >>> inverse_from_cholesky(torch.tensor([[2.0]]))
    tensor([[0.2500]])
    """
    # Not torch.cholesky_inverse: its forward-mode derivative is wrong in torch 2.13
    # (pytorch issue 196682), and `ExponentialFamily.tangent_to_unconstrained` needs it.
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse_factor.mT @ inverse_factor


def log_cholesky(factor: Tensor) -> Tensor:
    """Log the diagonal of a Cholesky factor, which makes its lower triangle unconstrained.

    Parameters
    ----------
    factor : Tensor of shape (..., D, D)
        Lower Cholesky factor, positive diagonal.

    Returns
    -------
    Tensor of shape (..., D, D)
        The strict lower triangle as it is, the logged diagonal, and zeros above it.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import log_cholesky
    >>> log_cholesky(torch.tensor([[1.0, 0.0], [5.0, 1.0]]))
    tensor([[0., 0.],
            [5., 0.]])
    """
    log_factor = factor.tril()
    log_factor.diagonal(dim1=-2, dim2=-1).log_()
    return log_factor


def exp_cholesky(log_factor: Tensor) -> Tensor:
    """Invert `log_cholesky`; entries above the diagonal are ignored.

    Parameters
    ----------
    log_factor : Tensor of shape (..., D, D)
        Any matrix.

    Returns
    -------
    Tensor of shape (..., D, D)
        Lower triangular with a positive diagonal.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import exp_cholesky
    >>> exp_cholesky(torch.tensor([[0.0, 7.0], [5.0, 0.0]]))
    tensor([[1., 0.],
            [5., 1.]])
    """
    factor = log_factor.tril()
    factor.diagonal(dim1=-2, dim2=-1).exp_()
    return factor


def whiten(factor: Tensor, matrix: Tensor) -> Tensor:
    """Return ``L^-1 A L^-T`` for symmetric ``A`` without forming an inverse.

    Parameters
    ----------
    factor : Tensor of shape (..., D, D)
        Lower Cholesky factor ``L``.
    matrix : Tensor of shape (..., D, D)
        Symmetric ``A``.

    Returns
    -------
    Tensor of shape (..., D, D)
        The whitened matrix.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import whiten
    >>> whiten(torch.tensor([[2.0]]), torch.tensor([[4.0]]))
    tensor([[1.]])
    """
    half = torch.linalg.solve_triangular(factor, matrix, upper=False)
    return torch.linalg.solve_triangular(factor, half.mT, upper=False)


def log_cholesky_tangent(factor: Tensor, whitened: Tensor) -> Tensor:
    """Return the velocity of `log_cholesky` when the factorised matrix moves.

    If ``S = L L'`` has velocity ``S_dot``, then ``L_dot = L phi(L^-1 S_dot L^-T)``, where
    ``phi`` keeps the lower triangle and halves its diagonal; the diagonal of ``L_dot`` divided
    by that of ``L`` is the velocity of the logged diagonal.

    Parameters
    ----------
    factor : Tensor of shape (..., D, D)
        Lower Cholesky factor ``L``.
    whitened : Tensor of shape (..., D, D)
        ``L^-1 S_dot L^-T``, symmetric.

    Returns
    -------
    Tensor of shape (..., D, D)
        Lower triangular velocity of the log-Cholesky coordinates.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import log_cholesky_tangent
    >>> log_cholesky_tangent(torch.tensor([[3.0]]), torch.tensor([[2.0]]))  # d log L = dS / 2S
    tensor([[1.]])
    """
    phi = whitened.tril()
    half_diagonal = phi.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    tangent = (factor @ phi).tril()
    tangent.diagonal(dim1=-2, dim2=-1).copy_(half_diagonal)
    return tangent


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal variables with the dtype and device of another tensor.

    Parameters
    ----------
    shape : tuple of int
        Shape of the draws.
    like : Tensor
        Tensor whose dtype and device are used.
    generator : torch.Generator
        Source of randomness, on the same device.

    Returns
    -------
    Tensor of shape ``shape``
        Independent draws.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import standard_normal
    >>> draw = standard_normal((2, 3), torch.zeros(1).double(), torch.Generator().manual_seed(0))
    >>> draw.shape, draw.dtype
    (torch.Size([2, 3]), torch.float64)
    """
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def log_standard_gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the logarithm of Gamma(shape, 1) variables.

    In logarithms because a draw with a small shape underflows: ``log G(a)`` is distributed as
    ``log G(a + 1) + log(U) / a`` with ``U`` uniform, and neither term underflows.

    Parameters
    ----------
    shape : Tensor
        Positive shape parameters, one draw each.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Tensor
        Finite draws, same shape as ``shape``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam.numerics import log_standard_gamma
    >>> draw = log_standard_gamma(torch.full((4,), 1e-3), torch.Generator().manual_seed(0))
    >>> bool(draw.isfinite().all())
    True
    """
    boosted = torch._standard_gamma(shape + 1.0, generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, dtype=shape.dtype, device=shape.device)
    # rand is in [0, 1); 1 - rand is in (0, 1], where the logarithm is finite.
    return boosted.log() + (1.0 - uniform).log() / shape
