# SPDX-License-Identifier: BSD-3-Clause
"""Merges of states, judged by the statistics that would add up."""

import math

import torch
from torch import Tensor

from sksvae.autoregressive_hmm.evidence import merge_evidence
from sksvae.autoregressive_hmm.model import Problem, Statistics
from sksvae.expfam import Dirichlet, DirichletNatural, MNIWNatural
from sksvae.graphical import SwitchingPrior

_DIRICHLET = Dirichlet()
_MOST_ENTRIES = 2_000_000  # of the tables worked on at a time
UNUSED = 0.5  # steps, up to which a state counts as not in use


def merge_gains(problem: Problem, statistics: Statistics) -> Tensor:
    """What the bound gains from merging pairs of states, but for the entropy of q(k).

    A merge adds up the statistics of two states and leaves none to the second. With the best
    ``q(theta)`` for given statistics the bound is a sum of ``log Z(eta_0 + s) - log Z(eta_0)`` and
    the entropy of q(k), which a merge can only lower: by nothing if it is certain which of the two
    a step belongs to.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    statistics : Statistics
        Under the current q(k).

    Returns
    -------
    Tensor of shape (n_states, n_states)
        Gains of pairs ``i < j`` that are both in use; minus infinity elsewhere.

    References
    ----------
    Hughes, Stephenson and Sudderth, "Scalable adaptation of state complexity for nonparametric
    hidden Markov models", NeurIPS 2015, section 4.2.
    """
    prior, n_states = problem.prior, problem.prior.n_states
    used = statistics.weights > UNUSED
    gains = torch.full_like(statistics.transitions, -math.inf)
    pairs = torch.triu(used[:, None] & used, 1).nonzero()
    dynamics = merge_evidence(prior.dynamics, statistics.dynamics)
    chain = chain_evidence(prior, statistics.initial_states, statistics.transitions)
    for i, j in (p.unbind(-1) for p in pairs.split(max(1, _MOST_ENTRIES // n_states**2))):
        moving = _moves_of_pairs(i, j, n_states)
        initial = (statistics.initial_states @ moving).squeeze(-2)
        transitions = moving.mT @ statistics.transitions @ moving
        gains[i, j] = dynamics(i, j) + chain_evidence(prior, initial, transitions) - chain
    return gains


def merged(statistics: Statistics, kept: int, emptied: int) -> Statistics:
    """Statistics with those of one state added to another's.

    Parameters
    ----------
    statistics : Statistics
        Not changed.
    kept, emptied : int
        States.

    Returns
    -------
    Statistics
        With nothing for ``emptied``.
    """
    pair = torch.tensor([[kept], [emptied]], device=statistics.initial_states.device)
    moving = _moves_of_pairs(*pair, len(statistics.initial_states))[0]
    return Statistics(
        MNIWNatural(*(torch.tensordot(moving.T, field, 1) for field in statistics.dynamics)),
        statistics.initial_states @ moving,
        moving.T @ statistics.transitions @ moving,
    )


def disjoint_pairs(gains: Tensor, above: float = 0.0) -> list[tuple[int, int]]:
    """Pairs of states, each state in one of them at most.

    Parameters
    ----------
    gains : Tensor of shape (n_states, n_states)
        From `merge_gains`.
    above : float, default=0.0
        Gain that pairs have to exceed.

    Returns
    -------
    list of tuple of int
        Best first.
    """
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    i, j = (gains > above).nonzero(as_tuple=True)
    for rank in gains[i, j].argsort(descending=True).tolist():
        pair = int(i[rank]), int(j[rank])
        if taken.isdisjoint(pair):
            pairs.append(pair)
            taken.update(pair)
    return pairs


def chain_evidence(prior: SwitchingPrior, initial_states: Tensor, transitions: Tensor) -> Tensor:
    """``log Z(eta_0 + s)`` of the Markov chain of states.

    Parameters
    ----------
    prior : SwitchingPrior
        Prior.
    initial_states : Tensor of shape (..., n_states)
        Counts.
    transitions : Tensor of shape (..., n_states, n_states)
        Counts.

    Returns
    -------
    Tensor of shape (...)
        Log evidence up to a constant of the prior.
    """
    first = DirichletNatural(prior.initial_states.concentration + initial_states)
    rows = DirichletNatural(prior.transitions.concentration + transitions)
    return _DIRICHLET.log_normalizer(first) + _DIRICHLET.log_normalizer(rows).sum(-1)


def _moves_of_pairs(kept: Tensor, emptied: Tensor, n_states: int) -> Tensor:
    """Matrices that add entry ``emptied`` of a row vector to ``kept``, one for each pair."""
    moving = torch.eye(n_states, dtype=torch.float64, device=kept.device)
    moving = moving.repeat(len(kept), 1, 1)
    pair = torch.arange(len(kept), device=kept.device)
    moving[pair, emptied, emptied] = 0.0
    moving[pair, emptied, kept] = 1.0
    return moving
