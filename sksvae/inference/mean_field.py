# SPDX-License-Identifier: BSD-3-Clause
r"""Fixed points of structured mean field, and their gradients.

A structured mean field posterior ``q(z) q(k)`` couples a Gaussian block with a discrete one. For
a bilinear coupling ``<t(k), Theta t(z)>`` the block updates are ::

    omega_z = lambda + Theta' mu_k,    mu_z = mean map of the Gaussian block at omega_z,
    omega_k = log pi + Theta mu_z,     mu_k = mean map of the discrete block at omega_k,

and one round of both is a map ``mu_k -> G(mu_k)`` whose fixed point ``solve_fixed_point`` finds.
Its gradient follows from the implicit function theorem [1]_: a cotangent ``g`` of the fixed point
acts on the parameters of ``G`` as the cotangent ``b`` that solves ``(I - G'^T) b = g``. With
``F_k`` the Fisher matrix of the discrete block (the derivative of its mean map) and
``S = Theta F_z Theta'``, ``G'^T = S F_k``, hence ``(F_k - F_k S F_k) b = F_k g``: symmetric, and
positive definite on the range of ``F_k`` at a strict local maximum of the surrogate bound, so
conjugate gradients apply. Memory does not grow with the number of updates.

All functions treat the leading axis as independent problems ("rows": one observation for a
mixture, one sequence for a chain), each with a convergence of its own, so that the result for a
row does not depend on the rows it shares a batch with.

References
----------
.. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with structured
   discrete representations", NeurIPS 2023, section 4. Equation (9) is the Richardson iteration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Updates are extrapolated once no entry of a row moves by as much, as further away plain ones are
# sure to raise the bound; and by no more than this multiple of a step.
_NEAR, _LONGEST = 0.05, 100.0

# Product of each row of a batch with its own matrix; the second argument gives the indices of the
# rows that the batch holds, None for all.
Operator = Callable[[Tensor, Tensor | None], Tensor]
GradientMethod = Literal["cg", "richardson", "none", "unrolled"]


@dataclass(frozen=True)
class FixedPointSettings:
    """How block updates are iterated and differentiated.

    Parameters
    ----------
    max_updates : int, default=100
        Most rounds of block updates a row gets.
    tol : float, default=1e-6
        A row stops once no entry of ``mu_k`` moved by more than this in a round.
    gradient : {'cg', 'richardson', 'none', 'unrolled'}, default='cg'
        Gradient of the fixed point: conjugate gradients; the Richardson iteration of [P, (9)],
        capped at the number of rounds of the forward pass; no linear solve at all, that is the
        gradient of one more round; or differentiation through every round, whose memory grows
        with their number. For rows that did not converge, ``'richardson'`` takes the gradient
        without a solve (the thresholded form of [P]).
    max_solver_steps : int, default=100
        Most steps of the linear solver.
    solver_tol : float, default=1e-8
        A row's solve stops once its residual is below this fraction of its right-hand side.
    accelerate : bool, default=False
        Whether to extrapolate updates near the fixed point, see `solve_fixed_point`. Not if the
        gradient is ``'unrolled'``, which differentiates updates as they are.

    Examples
    --------
    >>> from sksvae.inference import FixedPointSettings
    >>> FixedPointSettings(max_updates=20).gradient
    'cg'
    """

    max_updates: int = 100
    tol: float = 1e-6
    gradient: GradientMethod = "cg"
    max_solver_steps: int = 100
    solver_tol: float = 1e-8
    accelerate: bool = False


class FixedPoint(NamedTuple):
    """Where the block updates of each row ended.

    Parameters
    ----------
    point : Tensor of shape (n_rows, ...)
        ``mu_k``.
    n_updates : Tensor of shape (n_rows,)
        Rounds that each row took.
    converged : Tensor of shape (n_rows,)
        Whether each row met the tolerance.
    """

    point: Tensor
    n_updates: Tensor
    converged: Tensor


def solve_fixed_point(
    update: Callable[[Tensor, Tensor | None], Tensor],
    start: Tensor,
    max_updates: int,
    tol: float,
    accelerate: bool = False,
) -> FixedPoint:
    """Iterate ``update`` from ``start`` until every row has converged, without gradients.

    Parameters
    ----------
    update : callable
        ``update(point, rows)`` returns the next point of the rows with the given indices
        (``None``: all), without mixing rows.
    start : Tensor of shape (n_rows, ...)
        First point.
    max_updates : int
        Most updates per row.
    tol : float
        Largest absolute change of an entry at which a row stops.
    accelerate : bool, default=False
        Whether the next update of a row that hardly moves any more starts from a secant step, by
        Anderson's method [1]_ with the update before, along each last axis by itself. Points must
        be weights: none becomes negative by it, and sums are kept up to rounding.

    Returns
    -------
    FixedPoint
        Rows that have converged are left as they are while others go on.

    References
    ----------
    .. [1] Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM Journal on
       Numerical Analysis 49(4), 2011, section 2, with m = 1.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import solve_fixed_point
    >>> halve = lambda point, rows: point / 2
    >>> solve_fixed_point(halve, torch.tensor([[1.0], [0.0]]), 50, 0.1).n_updates
    tensor([4, 1])
    """
    with torch.no_grad():
        point = current = start
        n_updates = torch.zeros(len(start), dtype=torch.long, device=start.device)
        rows: Tensor | None = None  # indices of the rows still moving; None while all are
        before: tuple[Tensor, ...] = ()  # what the last update gave, and how far that was
        for step in range(1, max_updates + 1):
            following = update(current, rows)
            change = following - current
            size = change.abs().flatten(1).amax(1)
            moving = ~(size <= tol)  # NaN moves
            if rows is None:
                point = following
                n_updates.fill_(step)
            else:
                point[rows] = following
                n_updates[rows] = step
            left = moving.nonzero().squeeze(1)
            if len(left) < len(moving):
                rows = left if rows is None else rows[left]
                following, change, size = following[left], change[left], size[left]
                before = tuple(field[left] for field in before)
            if rows is not None and not len(rows):
                break
            current = following
            if accelerate:
                if before:
                    near = (size < _NEAR).view(-1, *(1,) * (change.ndim - 1))
                    current = torch.where(near, _secant_step(following, change, *before), following)
                before = following, change
        converged = torch.full_like(n_updates, rows is not None, dtype=torch.bool)
        if rows is not None:
            converged[rows] = False
    return FixedPoint(point, n_updates, converged)


def _secant_step(following: Tensor, change: Tensor, older: Tensor, older_change: Tensor) -> Tensor:
    """Where changes would vanish if they went on to shrink as in the last update."""
    bend, path = change - older_change, following - older
    square = bend.square().sum(-1, keepdim=True)
    length = torch.where(square > 0, -(change * bend).sum(-1, keepdim=True) / square, 0.0)
    most = torch.where(path < 0, following / -path, torch.inf).amin(-1, keepdim=True)
    # Rounding may lead below zero where the path is cut off there.
    return (following + torch.minimum(length.clamp(0.0, _LONGEST), most) * path).clamp_min(0.0)


def solve_adjoint(
    fisher: Operator,
    curvature: Operator,
    cotangent: Tensor,
    *,
    method: GradientMethod,
    max_steps: Tensor | int,
    tol: float,
    converged: Tensor,
) -> Tensor:
    """Solve ``(I - S F) b = g`` for each row.

    Parameters
    ----------
    fisher : callable
        ``fisher(v, rows)``: product with ``F``, symmetric positive semi-definite, of the rows with
        the given indices (``None``: all).
    curvature : callable
        The same for ``S``, symmetric positive semi-definite.
    cotangent : Tensor of shape (n_rows, ...)
        ``g``.
    method : {'cg', 'richardson', 'none'}
        See `FixedPointSettings`.
    max_steps : int or Tensor of shape (n_rows,)
        Most steps, for each row if a tensor.
    tol : float
        Relative residual at which a row stops.
    converged : Tensor of shape (n_rows,)
        Rows whose forward pass converged.

    Returns
    -------
    Tensor of shape (n_rows, ...)
        ``b``. Conjugate gradients leave a row at its current iterate where they meet a direction
        without positive curvature, as may happen when the forward pass stopped early.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import solve_adjoint
    >>> scale = lambda v, rows: v / 2
    >>> solve_adjoint(scale, scale, torch.ones(1, 1), method="cg", max_steps=5, tol=1e-6,
    ...               converged=torch.tensor([True]))
    tensor([[1.3333]])
    """
    if method == "none":
        return cotangent
    if method == "richardson":
        return _richardson(fisher, curvature, cotangent, max_steps, tol, converged)
    return _conjugate_gradients(fisher, curvature, cotangent, max_steps, tol)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per row, shaped to broadcast against rows."""
    return (a * b).flatten(1).sum(1).view(-1, *(1,) * (a.ndim - 1))


def _limits(max_steps: Tensor | int, like: Tensor) -> Tensor:
    return torch.as_tensor(max_steps, device=like.device).expand(like.shape[0])


def _conjugate_gradients(
    fisher: Operator, curvature: Operator, cotangent: Tensor, max_steps: Tensor | int, tol: float
) -> Tensor:
    """Conjugate gradients for ``(F - F S F) b = F g``, started at ``b = g``.

    In the inner product of ``F`` the operator ``I - S F`` is self-adjoint, so iterating on the
    residual ``r = g - (I - S F) b`` needs one product with each of ``F`` and ``S`` per step, and
    never leaves the range where the singular ``F`` is positive. Most rows are done at once: they
    are sure of one component, or soon near enough. The others go on by themselves.
    """
    solution = cotangent.clone()
    weighted_cotangent = fisher(cotangent, None)
    residual = curvature(weighted_cotangent, None)  # g - (I - S F) g
    weighted = fisher(residual, None)
    norm = _row_dot(residual, weighted)  # r'F r
    # Rows that are sure of one component have products that underflow: nothing left to solve.
    finfo = torch.finfo(norm.dtype)
    negligible = finfo.tiny / finfo.eps**2
    threshold = (tol**2 * _row_dot(cotangent, weighted_cotangent)).clamp_min(negligible)
    limit = _limits(max_steps, cotangent)
    rows = ((norm > threshold).flatten() & (limit > 0)).nonzero().squeeze(1)
    residual, weighted, norm, threshold, limit = (
        field[rows] for field in (residual, weighted, norm, threshold, limit)
    )
    direction = residual
    step = 0
    while rows.numel():
        image = direction - curvature(weighted, rows)  # (I - S F) p
        bend = _row_dot(weighted, image)  # p'F (I - S F) p
        rising = bend > 0
        length = torch.where(rising, norm / bend, 0.0)
        solution[rows] += length * direction
        residual = residual - length * image
        weighted_residual = fisher(residual, rows)
        next_norm = _row_dot(residual, weighted_residual)
        ratio = next_norm / norm
        direction = residual + ratio * direction
        weighted = weighted_residual + ratio * weighted
        norm = next_norm
        step += 1
        moving = (rising & (norm > threshold)).flatten() & (step < limit)
        if not moving.all():
            rows, residual, direction, weighted, norm, threshold, limit = (
                field[moving]
                for field in (rows, residual, direction, weighted, norm, threshold, limit)
            )
    return solution


def _richardson(
    fisher: Operator,
    curvature: Operator,
    cotangent: Tensor,
    max_steps: Tensor | int,
    tol: float,
    converged: Tensor,
) -> Tensor:
    """Iterate ``b <- g + S F b`` [P, (9)], with the caps and thresholds of [P]."""
    solution = cotangent.clone()
    limit = _limits(max_steps, cotangent)
    scale = cotangent.flatten(1).abs().amax(1)
    rows = (converged & (limit > 0)).nonzero().squeeze(1)
    step = 0
    while rows.numel():
        current = solution[rows]
        following = cotangent[rows] + curvature(fisher(current, rows), rows)
        change = (following - current).flatten(1).abs().amax(1)
        solution[rows] = following
        step += 1
        rows = rows[(change > tol * scale[rows]) & (step < limit[rows])]
    return solution


def attach_implicit_gradient(
    following: Tensor,
    fixed_point: FixedPoint,
    fisher: Operator,
    curvature: Operator,
    settings: FixedPointSettings,
) -> Tensor:
    """Give a fixed point its gradient in whatever parameters a round of updates depends on.

    Parameters
    ----------
    following : Tensor of shape (n_rows, ...)
        One more, differentiable round ``G`` from the fixed point.
    fixed_point : FixedPoint
        Where the rounds ended.
    fisher, curvature : callable
        Products with ``F_k`` and ``S = Theta F_z Theta'`` at the fixed point, see `solve_adjoint`.
    settings : FixedPointSettings
        Its ``gradient`` may be anything but ``'unrolled'``.

    Returns
    -------
    Tensor of shape (n_rows, ...)
        ``following``, with the gradient of the fixed point.

    References
    ----------
    [P] section 4: implicit function theorem; the envelope identity of section 4.1 comes out by
    itself, as the cotangent of the surrogate bound vanishes at its fixed point.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import (
    ...     FixedPointSettings, attach_implicit_gradient, solve_fixed_point)
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> end = solve_fixed_point(lambda v, rows: (a + v) / 2, torch.zeros(1, 1), 50, 1e-7)
    >>> point = attach_implicit_gradient(  # here G' = S F with F = 1, S = 1/2
    ...     (a + end.point) / 2, end, lambda v, rows: v, lambda v, rows: v / 2,
    ...     FixedPointSettings())
    >>> point.sum().backward()
    >>> a.grad  # the fixed point is v = a
    tensor(1.)
    """
    if following.requires_grad:
        steps: Tensor | int = settings.max_solver_steps
        if settings.gradient == "richardson":
            steps = fixed_point.n_updates  # capped

        def solve(cotangent: Tensor) -> Tensor:
            return solve_adjoint(
                fisher,
                curvature,
                cotangent,
                method=settings.gradient,
                max_steps=steps,
                tol=settings.solver_tol,
                converged=fixed_point.converged,
            )

        following.register_hook(solve)
    return following
