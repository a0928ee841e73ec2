# SPDX-License-Identifier: BSD-3-Clause
"""Hand-written gradients that have no derivative themselves."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class _DifferentiatedOnce(torch.autograd.Function):
    """Mark a gradient as dependent on a result, with unknown derivative."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, result: Tensor, name: str) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f"{ctx.name} is differentiable only once.")


def differentiated_once(
    gradients: Iterable[Tensor | None], result: Tensor, name: str
) -> list[Tensor | None]:
    """Gradients whose own derivative is an error, for the backward of an autograd function.

    With ``create_graph``, `torch.autograd.function.once_differentiable` would let through, as
    constants, gradients of sums: their cotangents do not require a gradient although what is saved
    does.

    Parameters
    ----------
    gradients : iterable of Tensor or None
        What the backward pass found.
    result : Tensor
        A result of the function, saved in its forward pass.
    name : str
        What the function is called in the error.

    Returns
    -------
    list of Tensor or None
        The same values.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference.derivatives import differentiated_once
    >>> x = torch.ones(2, requires_grad=True)
    >>> (gradient,) = differentiated_once([torch.ones(2)], x, "f")
    >>> try:
    ...     gradient.sum().backward()
    ... except RuntimeError as error:
    ...     print(error)
    f is differentiable only once.
    """
    if not torch.is_grad_enabled():
        return list(gradients)
    return [g if g is None else _DifferentiatedOnce.apply(g, result, name) for g in gradients]
