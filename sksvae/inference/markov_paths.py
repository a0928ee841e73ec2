# SPDX-License-Identifier: BSD-3-Clause
"""Paths of discrete Markov chains: the most probable one, and draws.

References
----------
.. [1] Rabiner, "A tutorial on hidden Markov models and selected applications in speech
   recognition", Proceedings of the IEEE 77(2), 1989: the Viterbi algorithm, (104)-(105).
"""

import torch
from torch import Tensor

from sksvae.inference.forward_backward import MarkovProblem, check_finite
from sksvae.inference.markov_sweeps import steps_exist


@torch.no_grad()
def most_probable_path(
    log_initial: Tensor,
    log_transition: Tensor,
    log_likelihood: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Most probable path of states: the Viterbi algorithm.

    Parameters
    ----------
    log_initial : Tensor of shape (..., K) or (K,)
        Log weights of the first state, of each chain or shared.
    log_transition : Tensor of shape (..., K, K) or (K, K)
        Log weights of transitions, of each chain or shared: rows belong to the earlier step.
    log_likelihood : Tensor of shape (..., T, K)
        Log weights of the states at each step.
    mask : Tensor of bool of shape (..., T), optional
        Which steps exist, see `markov_moments`.

    Returns
    -------
    path : Tensor of int64 of shape (..., T)
        States, -1 at steps that do not exist. Of paths that are equally probable, the one whose
        last state is lowest, then the one before the last, and so on.
    log_prob : Tensor of shape (...)
        Its unnormalised log probability: subtract the log normaliser for that given the data.

    Raises
    ------
    ValueError
        As `markov_moments`.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import most_probable_path
    >>> log_transition = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    >>> log_likelihood = torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 9.0]])
    >>> most_probable_path(torch.zeros(2), log_transition, log_likelihood)[0]
    tensor([0, 0, 0, 1])
    """
    problem = MarkovProblem.build(log_initial, log_transition, log_likelihood, mask, "auto")
    energy, n_states = problem.energy, problem.energy.shape[-1]
    n_steps = len(energy)
    exists = None if problem.lengths is None else steps_exist(problem.lengths, n_steps)
    table = problem.log_transition.mT.contiguous()  # the earlier state in the last axis
    states = torch.arange(n_states, device=energy.device)
    kind = torch.int16 if n_states < 2**15 else torch.int64
    previous = torch.empty(energy.shape, dtype=kind, device=energy.device)
    steps = zip(energy.unbind(0), previous.unbind(0), strict=True)
    score = next(steps)[0].unsqueeze(-2)
    for t, (weights, came_from) in enumerate(steps, 1):
        # The first maximum, that is the lowest state.
        best, origin = torch.max(table + score, -1)
        best += weights
        if exists is not None:  # the best path of a sequence that is over stays as it is
            origin = torch.where(exists[t], origin, states)
            best = torch.where(exists[t], best, score.squeeze(-2))
        came_from.copy_(origin)
        score = best.unsqueeze(-2)
    score = score.squeeze(-2)
    log_prob, state = score.max(-1)
    if problem.lengths is not None:
        log_prob = torch.where(problem.lengths > 0, log_prob, 0.0)
    check_finite(log_prob)
    state = state.unsqueeze(-1)
    path = [state]
    for came_from in previous[1:].flip(0).unbind(0):
        state = came_from.gather(-1, state).long()
        path.append(state)
    shape = log_likelihood.shape
    states = torch.cat(path[::-1], -1).mT
    return problem.paths(states).reshape(shape[:-1]), log_prob.reshape(shape[:-2])


@torch.no_grad()
def draw_paths(
    log_initial: Tensor,
    log_transition: Tensor,
    log_likelihood: Tensor,
    n_draws: int,
    generator: torch.Generator,
    mask: Tensor | None = None,
) -> Tensor:
    """Exact, independent draws of whole paths.

    The first state is drawn from its marginal, and each of the others given the one before it and
    all that is observed later: one sweep of messages backwards, one of draws forwards.

    Parameters
    ----------
    log_initial : Tensor of shape (..., K) or (K,)
        Log weights of the first state, of each chain or shared.
    log_transition : Tensor of shape (..., K, K) or (K, K)
        Log weights of transitions, of each chain or shared: rows belong to the earlier step.
    log_likelihood : Tensor of shape (..., T, K)
        Log weights of the states at each step.
    n_draws : int
        Number of draws.
    generator : torch.Generator
        Source of random numbers.
    mask : Tensor of bool of shape (..., T), optional
        Which steps exist, see `markov_moments`.

    Returns
    -------
    Tensor of int64 of shape (n_draws, ..., T)
        States, -1 at steps that do not exist.

    Raises
    ------
    ValueError
        As `markov_moments`.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import draw_paths
    >>> log_transition = torch.tensor([[0.0, -9.0], [-9.0, 0.0]])
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw_paths(torch.zeros(2), log_transition, torch.zeros(4, 2), 2, generator)
    tensor([[1, 1, 1, 1],
            [0, 0, 0, 0]])
    """
    problem = MarkovProblem.build(log_initial, log_transition, log_likelihood, mask, "auto")
    messages = problem.messages()
    log_later, marginals = messages.log_later, messages.marginals
    n_steps, n_chains, n_states = marginals.shape
    table = problem.log_transition.to(marginals.dtype).expand(n_chains, n_states, n_states)
    chains = torch.arange(n_chains, device=table.device)
    paths = torch.empty(n_draws, n_steps, n_chains, dtype=torch.long, device=table.device)
    race = marginals.new_empty(n_draws, n_chains, n_states)
    logits: Tensor = marginals[0].log()
    for t in range(n_steps):
        if t:
            logits = table[chains, paths[:, t - 1]] + log_later[t]
        # With standard exponential E_k, argmax(logits_k - log E_k) has the wanted probabilities.
        race.exponential_(generator=generator).log_()
        paths[:, t] = torch.sub(logits, race, out=race).argmax(-1)
    return problem.paths(paths).reshape(n_draws, *log_likelihood.shape[:-1])
