# SPDX-License-Identifier: BSD-3-Clause
"""Steps along a natural gradient that never leave the domain of the parameters.

A natural gradient in natural parameters is the gradient with respect to expected statistics, and
a step along it with size one is the exact coordinate update of a conjugate model. Steps in
log-Cholesky coordinates stay in the domain but multiply: a count of 0.1 that a minibatch wants to
be 14 would grow by ``exp(139 rho)``. So steps are taken in natural parameters, where they add, and
halved for the batch entries that would leave the domain, which only the correction term of the
unbiased gradient [P, app. F] can make happen. States that share their noise are one batch entry.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sksvae.expfam.dirichlet import Dirichlet, DirichletParams
from sksvae.expfam.mniw import MNIW, MNIWNatural, MNIWParams
from sksvae.expfam.niw import NIW, NIWParams, drop_column_axes, lift_column_axes
from sksvae.expfam.numerics import symmetrize
from sksvae.expfam.tied_mniw import TiedMNIW

_MAX_HALVINGS = 40


def natural_step(
    family: Dirichlet | NIW | MNIW | TiedMNIW, standard: Any, tangent: Any, step_size: float
) -> Any:
    """Move along a tangent of the natural parameters, halving the step where it is too long.

    Parameters
    ----------
    family : Dirichlet, NIW, MNIW or TiedMNIW
        The family of the distribution.
    standard : DirichletParams, NIWParams, MNIWParams or TiedMNIWParams
        Where the step starts.
    tangent : DirichletNatural, NIWNatural or MNIWNatural
        Direction in natural parameters, such as ``eta_0 + total_stats - eta`` in a conjugate
        model.
    step_size : float
        Length ``rho`` of the step.

    Returns
    -------
    DirichletParams, NIWParams, MNIWParams or TiedMNIWParams
        Standard parameters after the step, inside the domain.

    Raises
    ------
    ValueError
        If no step, however short, stays in the domain: the tangent is not finite or far too long.

    References
    ----------
    Hoffman, Blei, Wang and Paisley (2013), section 2.4; Bendekgey et al. (2023), appendix F.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Dirichlet, DirichletNatural, DirichletParams, natural_step
    >>> start = DirichletParams(torch.tensor([1.0, 1.0]))
    >>> natural_step(Dirichlet(), start, DirichletNatural(torch.tensor([-2.0, 3.0])), 1.0)
    DirichletParams(concentration=tensor([0.5000, 1.7500]))
    """
    if isinstance(family, Dirichlet):
        return _dirichlet_step(standard, tangent.concentration, step_size)
    if isinstance(family, NIW):
        start, direction = lift_column_axes(standard), lift_column_axes(tangent)
        moved = natural_step(MNIW(), MNIWParams(*start), MNIWNatural(*direction), step_size)
        return NIWParams(*drop_column_axes(moved))
    return _mniw_step(family, standard, _centred(family, standard.mean, tangent), step_size)


def step_towards(
    family: Dirichlet | NIW | MNIW | TiedMNIW, standard: Any, target: Any, step_size: float
) -> Any:
    """Move towards natural parameters, halving the step where it is too long.

    This is `natural_step` along ``target - eta``, which needs no natural parameters ``eta``.

    Parameters
    ----------
    family : Dirichlet, NIW, MNIW or TiedMNIW
        The family of the distribution.
    standard : DirichletParams, NIWParams, MNIWParams or TiedMNIWParams
        Where the step starts.
    target : DirichletNatural, NIWNatural or MNIWNatural
        Where a step of size one ends, such as ``eta_0 + total_stats`` in a conjugate model; it need
        not be in the domain.
    step_size : float
        Length ``rho`` of the step.

    Returns
    -------
    DirichletParams, NIWParams, MNIWParams or TiedMNIWParams
        Standard parameters after the step, inside the domain.

    Raises
    ------
    ValueError
        If no step, however short, stays in the domain.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Dirichlet, DirichletNatural, DirichletParams, step_towards
    >>> start = DirichletParams(torch.tensor([1.0, 1.0]))
    >>> step_towards(Dirichlet(), start, DirichletNatural(torch.tensor([3.0, 2.0])), 0.5)
    DirichletParams(concentration=tensor([2.0000, 1.5000]))
    """
    if isinstance(family, Dirichlet):
        start = standard.concentration
        return _dirichlet_step(standard, target.concentration - start, step_size)
    if isinstance(family, NIW):
        start, end = lift_column_axes(standard), lift_column_axes(target)
        moved = step_towards(MNIW(), MNIWParams(*start), MNIWNatural(*end), step_size)
        return NIWParams(*drop_column_axes(moved))
    scale, mean, column_precision, dof = standard
    end_scale, cross, end_column, end_count = _centred(family, mean, target)
    n_columns = mean.shape[-1] * (mean.shape[-3] if isinstance(family, TiedMNIW) else 1)
    d_dof = end_count - (dof + (mean.shape[-2] + n_columns + 1))
    direction = MNIWParams(end_scale - scale, cross, end_column - column_precision, d_dof)
    return _mniw_step(family, standard, direction, step_size)


def _dirichlet_step(
    standard: DirichletParams, direction: Tensor, step_size: float
) -> DirichletParams:
    start = standard.concentration
    rho = start.new_full((*start.shape[:-1], 1), step_size)
    for _ in range(_MAX_HALVINGS):
        moved = start + rho * direction
        bad = ~((moved > 0) & (moved < math.inf)).all(-1, keepdim=True)
        if not bad.any():
            return DirichletParams(moved)
        rho = torch.where(bad, rho / 2, rho)
    raise _no_step("a Dirichlet")


def _centred(family: MNIW | TiedMNIW, mean: Tensor, natural: MNIWNatural) -> MNIWParams:
    """Natural parameters of ``X - M`` instead of ``X``, up to the factors ``(-2, 1, -2, 2)``.

    Those of a distribution with mean ``M`` are ``(S, 0, V, nu + n + m + 1)``: no large terms that
    cancel. The map is linear and applies to tangents as well. Shares of states are added up.
    """
    precision, precision_mean, quadratic, count = natural
    column = -2.0 * quadratic
    # Up to its antisymmetric part: -2 eta1 - eta2 M' - M eta2' + M V M'.
    scale = -2.0 * (precision + (precision_mean + mean @ quadratic) @ mean.mT)
    count = 2.0 * count
    if isinstance(family, TiedMNIW):
        scale, count = scale.sum(-3), count.sum(-1)
    return MNIWParams(scale, precision_mean - mean @ column, column, count)


def _mniw_step(
    family: MNIW | TiedMNIW, standard: Any, direction: MNIWParams, step_size: float
) -> Any:
    """Step in coordinates centred at the current ``M``, see `_centred`."""
    tied = isinstance(family, TiedMNIW)  # each state is a block of columns
    scale, mean, column_precision, dof = standard
    d_scale, d_cross, d_column, d_dof = direction
    rho = torch.full_like(dof, step_size)
    for _ in range(_MAX_HALVINGS):
        rho_matrix = rho[..., None, None]
        rho_columns = rho_matrix.unsqueeze(-3) if tied else rho_matrix
        new_column = symmetrize(column_precision + rho_columns * d_column)
        column_factor, column_info = torch.linalg.cholesky_ex(new_column)
        cross = rho_columns * d_cross
        whitened = torch.linalg.solve_triangular(column_factor, cross.mT, upper=False)
        column_trace, rows = _trace(column_factor), whitened
        if tied:
            column_trace, column_info = column_trace.sum(-1), column_info.amax(-1)
            rows = whitened.flatten(-3, -2)
        new_scale = symmetrize(scale + rho_matrix * d_scale - rows.mT @ rows)
        new_dof = dof + rho * d_dof
        scale_factor, scale_info = torch.linalg.cholesky_ex(new_scale)
        # LAPACK reports NaN but lets an infinite pivot through.
        finite = column_trace + _trace(scale_factor) + new_dof < math.inf
        inside = ((column_info | scale_info) == 0) & (new_dof > scale.shape[-1] - 1) & finite
        if inside.all():
            shift = torch.linalg.solve_triangular(column_factor.mT, whitened, upper=True).mT
            return family.standard_type(new_scale, mean + shift, new_column, new_dof)
        rho = torch.where(inside, rho, rho / 2)
    raise _no_step("an (M)NIW")


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _no_step(family: str) -> ValueError:
    return ValueError(
        f"the natural gradient of {family} is not finite, or so long that no step along it stays "
        "in the domain."
    )
