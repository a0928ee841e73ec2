# SPDX-License-Identifier: BSD-3-Clause
r"""Derivatives of the energies of switching dynamics, written out.

The energies ``E`` are expectations under q(z) of what the weights of the states multiply in its
natural parameters. So the derivative of q(z)'s moments along weights ``v``, a product with its
Fisher matrix, serves twice: put into the energies it is ``S v``, the change of energies with
weights; and as the matrix is symmetric, it is the cotangent of the natural parameters for a
cotangent ``v`` of the energies. Nothing is factorised for it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sksvae.graphical.switching_problem import SwitchingProblem
from sksvae.graphical.switching_updates import SwitchingUpdates, pair_products
from sksvae.inference.derivatives import differentiated_once


def differentiable_energies(problem: SwitchingProblem, updates: SwitchingUpdates) -> Tensor:
    """Energies after `SwitchingUpdates.infer_latents`, with gradients in all but the states.

    Parameters
    ----------
    problem : SwitchingProblem
        Evidence and expected parameters, with gradients.
    updates : SwitchingUpdates
        Rounds of the same problem, which may not run again before the gradient is taken.

    Returns
    -------
    Tensor of shape (n_sequences, n_steps, n_states)
        As of `SwitchingProblem.energies`; differentiable once.
    """
    natural, table = problem.natural_table, problem.energy_table
    return _Energies.apply(
        updates,
        *problem.potentials,
        torch.cat([natural.blocks, natural.shifts.unsqueeze(1)], 1),
        natural.lower,
        torch.cat([table.factor, table.regression @ table.factor], 1),
        table.doubt,
        table.steps,
        table.lags,
        table.constant,
    )


@torch.no_grad()
def energy_change(updates: SwitchingUpdates, v: Tensor) -> Tensor:
    """Derivative of the energies along weights of the states.

    Parameters
    ----------
    updates : SwitchingUpdates
        After `SwitchingUpdates.infer_latents`.
    v : Tensor of shape (n_sequences, n_steps, n_states)
        Change of the weights.

    Returns
    -------
    Tensor of shape (n_sequences, n_steps, n_states)
        ``S v``.
    """
    _, moments, products = _latent_change(updates, v)
    tables, y, dim = updates.tables, updates.regressors, moments.shape[-1]
    mean = updates.chains.in_time(moments[..., dim, :])
    rates = np.concatenate([mean[1:], mean[:-1], np.zeros_like(mean[1:, :, :1])], -1)
    change = np.zeros_like(updates.sweeps.energies)
    flat = change[1:].reshape(-1, change.shape[-1])
    rows, rates = (x.reshape(-1, x.shape[-1]) for x in (y, rates))
    for part in updates.in_cache():
        residuals = rows[part] @ tables.residuals
        residuals *= rates[part] @ tables.residuals
        square = residuals @ tables.squares
        square += pair_products(rows[part, dim:], rates[part, dim:]) @ tables.doubt
        np.multiply(square, 2.0, out=flat[part])
    updates.add_covariances(moments, products, change[1:])
    change *= -0.5
    absent = ~updates.mask.unsqueeze(-1)
    return torch.from_numpy(change).transpose(0, 1).masked_fill(absent, 0.0)


def _latent_change(
    updates: SwitchingUpdates, v: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of stages, and derivatives along them of what `TwistedChains` returns."""
    chains, weights = updates.chains, np.zeros_like(updates.weights)
    updates.fill_weights(v, weights)
    pivots, sides = np.empty_like(chains.pivots), np.zeros_like(chains.sides)
    updates.combine(weights, pivots, sides)
    return weights, *chains.tangent(pivots, sides)


class _Energies(torch.autograd.Function):
    """Energies of q(z) as it is, with the derivatives of all that they depend on."""

    @staticmethod
    def forward(ctx: Any, updates: SwitchingUpdates, *inputs: Tensor) -> Tensor:
        ctx.updates = updates
        energies = updates.energies()
        ctx.save_for_backward(energies)
        return energies

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = [torch.from_numpy(g) for g in _adjoint(ctx.updates, cotangents[0])]
        return None, *differentiated_once(gradients, ctx.saved_tensors[0], "energies")


def _adjoint(updates: SwitchingUpdates, cotangent: Tensor) -> list[np.ndarray]:
    """Cotangents of potentials, natural parameters and what energies are computed with."""
    chains = updates.chains
    weights, d_moments, d_products = _latent_change(updates, cotangent)
    moments, products, dim = chains.moments, chains.products, d_moments.shape[-1]
    m, dm = moments[..., dim, :], d_moments[..., dim, :]
    # Derivatives of -z z'/2 and z, as those of the moments go through the natural parameters.
    outer = m[..., :, None] * dm[..., None, :]
    natural = d_moments.copy()
    natural[..., :dim, :] += outer + outer.swapaxes(-1, -2)
    natural[..., :dim, :] *= -0.5
    variance = natural[..., :dim, :].diagonal(axis1=-2, axis2=-1)
    of_natural = _total(updates.weights, natural).reshape(-1, dim + 1, dim)
    # The step nearer the middle comes first; minus twice one half of what is off the diagonal.
    cross = d_products[:-1, ..., :dim, :] - m[1:, ..., :, None] * dm[:-1, ..., None, :]
    cross -= dm[1:, ..., :, None] * m[:-1, ..., None, :]
    n_states = cotangent.shape[-1]
    of_lower = _by_pair(updates.weights, cross, n_states)
    of_steps = -0.5 * _total(weights[..., 1:], moments[..., :dim, :]).T
    of_lags = 0.5 * _by_pair(weights, products[:-1, ..., :dim, :], n_states)
    of_residuals, of_doubt, of_constant = _of_means(updates, cotangent)
    return [
        np.ascontiguousarray(chains.in_time(dm).swapaxes(0, 1)),
        np.ascontiguousarray(chains.in_time(variance).swapaxes(0, 1)),
        of_natural,
        of_lower,
        of_residuals,
        of_doubt,
        of_steps,
        of_lags.reshape(n_states, -1).T,
        of_constant,
    ]


def _total(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums over steps and sequences of flattened values, of shape (n_weights, n_values)."""
    rows = values.reshape(-1, values.shape[-2] * values.shape[-1])
    return weights.reshape(-1, weights.shape[-1]).T @ rows


def _by_pair(weights: np.ndarray, values: np.ndarray, n_states: int) -> np.ndarray:
    """Sums of values (n_stages - 1, 2, B, D, D) of pairs of steps, by the state of the later."""
    earlier, later = weights[:-1, 0, :, n_states + 1 :], weights[:-1, 1, :, 1 : n_states + 1]
    shape = n_states, *values.shape[-2:]
    left = _total(earlier, values[:, 0]).reshape(shape)
    return left + _total(later, values[:, 1]).reshape(shape).swapaxes(-1, -2)


def _of_means(
    updates: SwitchingUpdates, cotangent: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cotangents of the residuals (by state), of doubt and of the constants."""
    tables, y = updates.tables, updates.regressors
    values = cotangent.transpose(0, 1).numpy().copy()
    updates.clear(values)
    n_states, dim = values.shape[-1], (y.shape[-1] - 1) // 2
    rows, values = y.reshape(-1, y.shape[-1]), values[1:].reshape(-1, n_states)
    of_residuals, of_doubt = np.zeros_like(tables.residuals), np.zeros_like(tables.doubt)
    for part in updates.in_cache():
        residuals = rows[part] @ tables.residuals
        residuals *= values[part] @ tables.squares.T
        of_residuals -= rows[part].T @ residuals
        of_doubt -= 0.5 * pair_products(rows[part, dim:], rows[part, dim:]).T @ values[part]
    by_state = of_residuals.reshape(len(of_residuals), n_states, dim)
    return np.ascontiguousarray(by_state.swapaxes(0, 1)), of_doubt, 0.5 * values.sum(0)
