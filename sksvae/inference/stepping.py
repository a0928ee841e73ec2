# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic on small arrays, one step after the other.

Sweeps along a chain are thousands of products of small matrices, each waiting for the one before.
What they cost is mostly the call. NumPy's calls take about half the time of torch's, and taking a
step out of an array a tenth; so on a CPU sweeps work on arrays that share the memory of tensors.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Numbers in a step up to which NumPy is faster although it adds products in a pass of its own: the
# time of a sweep with it is 0.5 of torch's at 64, 0.8 at 1000 and 1.3 at 8000.
_SMALL = 4096
# The same in products of many matrices at once: the time is 0.2 of torch's at 128, 0.9 at 512.
_SMALL_PRODUCT = 256


def stepping(*tensors: Tensor) -> tuple[ModuleType, list[Any]]:
    """Choose what to compute with.

    Parameters
    ----------
    *tensors : Tensor
        On one device, without gradients. They are changed where the arrays are.

    Returns
    -------
    module : module
        NumPy or torch; both have ``matmul`` and ``multiply`` with an argument ``out``.
    arrays : list of ndarray or Tensor
        The tensors, for this module.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.stepping import stepping
    >>> total = torch.zeros(2)
    >>> module, (array,) = stepping(total)
    >>> array += 1.0
    >>> module.__name__, total
    ('numpy', tensor([1., 1.]))
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return np, [tensor.numpy() for tensor in tensors]
    return torch, list(tensors)


def thin_products(left: Tensor, right: Tensor) -> Tensor:
    """Products of many small matrices with few columns and few rows.

    Parameters
    ----------
    left : Tensor of shape (..., M, n)
        First factors, without gradients.
    right : Tensor of shape (..., n, N)
        Second factors, without gradients.

    Returns
    -------
    Tensor of shape (..., M, N)
        Products.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.stepping import thin_products
    >>> thin_products(torch.ones(4, 2, 1), torch.ones(4, 1, 3)).shape
    torch.Size([4, 2, 3])
    """
    if left.shape[-2] * right.shape[-1] > _SMALL_PRODUCT:
        return left @ right
    product = left.new_empty(*left.shape[:-1], right.shape[-1])
    module, (x, y, out) = stepping(left, right.contiguous(), product)
    module.matmul(x, y, out=out)
    return product


class Products(NamedTuple):
    """Products of batches of matrices.

    Parameters
    ----------
    multiply : callable
        ``multiply(left, right, out=out)``.
    add, subtract : callable
        ``add(total, left, right)`` adds a product in place, ``subtract`` takes it away.
    """

    multiply: Callable[..., Any]
    add: Callable[[Any, Any, Any], None]
    subtract: Callable[[Any, Any, Any], None]


def products_by_step(*tensors: Tensor) -> tuple[Products, list[Any]]:
    """Choose what to multiply matrices with, one step after the other.

    Parameters
    ----------
    *tensors : Tensor of shape (T, B, M, N)
        On one device, without gradients. Those with rows in memory are changed where the steps
        are.

    Returns
    -------
    products : Products
        Of NumPy where steps are small, else of torch.
    steps : list of sequence
        The steps of each tensor, for these products.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.stepping import products_by_step
    >>> total = torch.zeros(1, 1, 1, 1)
    >>> products, (x, y) = products_by_step(total, torch.full((2, 1, 1, 1), 3.0))
    >>> products.add(x[0], y[0], y[1])
    >>> total.flatten()
    tensor([9.])
    """
    cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    if cpu and all(tensor[:1].numel() <= _SMALL for tensor in tensors):
        # Copies: products of small transposed matrices take several times as long.
        return _NUMPY, [tensor.contiguous().numpy() for tensor in tensors]
    return _TORCH, [tensor.unbind(0) for tensor in tensors]


def _numpy_add(total: Any, left: Any, right: Any) -> None:
    total += np.matmul(left, right)


def _numpy_subtract(total: Any, left: Any, right: Any) -> None:
    total -= np.matmul(left, right)


def _torch_add(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.baddbmm_(left, right)


def _torch_subtract(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.baddbmm_(left, right, alpha=-1.0)


_NUMPY = Products(np.matmul, _numpy_add, _numpy_subtract)
_TORCH = Products(torch.bmm, _torch_add, _torch_subtract)
