# SPDX-License-Identifier: BSD-3-Clause
"""States of switching dynamics: remembered before training, given up and ordered after it."""

import torch
from torch import Tensor

from sksvae.estimators.sequence_start import dynamics_bound
from sksvae.graphical import SwitchingDynamicsModel
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded

_MOST = 0.02  # share of the steps up to which a state may be given up


def state_weights(graphical: SwitchingDynamicsModel) -> Tensor:
    """Share of the training steps in each state, as q(theta) has counted them.

    Parameters
    ----------
    graphical : SwitchingDynamicsModel
        The model.

    Returns
    -------
    Tensor of shape (n_states,)
        They sum to one.
    """
    prior, posterior = graphical.prior, graphical.posterior
    # The last regressor is one at each transition, also where states share degrees of freedom.
    moves = (posterior.dynamics.mean_precision - prior.dynamics.mean_precision)[:, -1, -1]
    firsts = posterior.initial_states.concentration - prior.initial_states.concentration
    counts = (moves + firsts).clamp_min(0.0)
    total = counts.sum()
    return counts / total if total > 0 else torch.full_like(counts, 1.0 / len(counts))


@torch.no_grad()
def recall_states(model: SequenceVAE, rows: SequenceRows, *, chunk: int) -> None:
    """Fill the memory of rows with what a model that has been trained says of their states.

    Minibatches remember a part of the steps each, so that all have to be there before the first.

    Parameters
    ----------
    model : SequenceVAE
        Over switching dynamics.
    rows : SequenceRows
        Steps with a memory, which changes.
    chunk : int
        Steps, with padding, that are in memory at a time.
    """
    graphical, stacked = model.graphical, []
    params = graphical.expected_params()
    for part in rows.rejoined().parts(chunk):
        potentials = padded(model.encode(part), part.mask)
        posterior = graphical.infer_best(potentials, params, part.mask, settings=model.settings)
        stacked.append(posterior.states[part.mask])
    rows.memory.states = torch.cat(stacked)


def order_states(model: SequenceVAE, rows: SequenceRows) -> None:
    """Sort states by decreasing weight, also those that are remembered.

    Parameters
    ----------
    model : SequenceVAE
        Its graphical model changes.
    rows : SequenceRows
        Training steps.
    """
    order = state_weights(model.graphical).argsort(descending=True, stable=True)
    model.graphical = model.graphical.select(order)
    if rows.memory is not None and rows.memory.states is not None:
        rows.memory.states = rows.memory.states[:, order]


def drop_states(model: SequenceVAE, rows: SequenceRows, *, chunk: int) -> None:
    """Give up states of little use, the least used first, as long as the bound rises.

    A state without steps costs what its rows and columns of the transition matrix cost.

    Parameters
    ----------
    model : SequenceVAE
        Its graphical model changes.
    rows : SequenceRows
        Training steps.
    chunk : int
        Steps, with padding, that are in memory at a time.
    """
    bound = None
    while model.graphical.n_states > 1:
        current, memory = model.graphical, rows.memory
        weights = state_weights(current)
        least = int(weights.argmin())
        if weights[least] > _MOST:
            break
        if bound is None:
            bound = dynamics_bound(model, rows, chunk=chunk)
        kept = torch.arange(current.n_states, device=weights.device) != least
        remembered = None if memory is None else memory.states
        model.graphical = current.select(kept.nonzero().squeeze(1))
        if remembered is not None:
            memory.states = _renormalised(remembered[:, kept])
        without = dynamics_bound(model, rows, chunk=chunk)
        if without < bound:
            model.graphical = current
            if remembered is not None:
                memory.states = remembered
            break
        bound = without


def _renormalised(states: Tensor) -> Tensor:
    """Probabilities without those of a state that has gone; no preference where it had all."""
    total = states.sum(-1, keepdim=True)
    return torch.where(total > 1e-6, states / total, 1.0 / states.shape[-1])
