# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic on small arrays, one step after the other.

Sweeps along a chain are thousands of products of small matrices, each waiting for the one before.
What they cost is mostly the call. NumPy's calls take about half the time of torch's, and taking a
step out of an array a tenth; so on a CPU sweeps work on arrays that share the memory of tensors.
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
