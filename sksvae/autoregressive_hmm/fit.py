# SPDX-License-Identifier: BSD-3-Clause
"""Autoregressive hidden Markov models: several starts, moves, the best bound kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sksvae.autoregressive_hmm.model import Problem, converted
from sksvae.autoregressive_hmm.moves import Climb, improve
from sksvae.autoregressive_hmm.starts import propose_starts
from sksvae.graphical import ChainPosterior, SwitchingPrior

_START_ROUNDS = 8  # after which starts are compared
_FINALISTS = 2
_FINALIST_ROUNDS = 30
_MOVE_ROUNDS = 10  # of all kinds of moves
_WINDOW = 250  # most steps of a sequence in the search: shorter ones, side by side, are faster


@dataclass(frozen=True, eq=False)
class AutoregressiveHMM:
    """A fitted autoregressive hidden Markov model, states in order of their weights.

    Parameters
    ----------
    prior : SwitchingPrior
        ``p(theta)``.
    posterior : SwitchingPrior
        ``q(theta)``.
    states : list of Tensor of shape (n_sequences, n_steps, n_states)
        For each part, probabilities of the states at each step; zero where there is no step.
    bound : float
        On the log evidence of all sequences, in nats.
    history : list of float
        Bounds on the way, increasing: of the best start, and of moves that were kept.
    converged : bool
        Whether the last round gained less than the tolerance.

    Examples
    --------
    >>> import torch
    >>> from sksvae.autoregressive_hmm import fit_autoregressive_hmm, point_sequences
    >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(100, 1, generator=generator, dtype=torch.float64)
    >>> prior = SwitchingPrior.sticky(2, DynamicsPrior.isotropic(1))
    >>> fit = fit_autoregressive_hmm(
    ...     point_sequences(noise, [100]).parts, prior, n_starts=1, generator=generator)
    >>> fit.weights.round().tolist()
    [100.0, 0.0]
    """

    prior: SwitchingPrior
    posterior: SwitchingPrior
    states: list[Tensor]
    bound: float
    history: list[float]
    converged: bool

    @property
    def weights(self) -> Tensor:
        """Expected number of steps in each state, of shape (n_states,)."""
        return sum(part.sum((0, 1)) for part in self.states)


@torch.no_grad()
def fit_autoregressive_hmm(
    parts: Sequence[ChainPosterior],
    prior: SwitchingPrior,
    *,
    n_starts: int = 8,
    max_iter: int = 100,
    tol: float = 1e-5,
    moves: bool = True,
    max_rows: int = 10_000,
    generator: torch.Generator,
) -> AutoregressiveHMM:
    """Fit a Bayesian autoregressive hidden Markov model to latent sequences.

    The model is ``z_1 ~ N(mu_0, Sigma_0)``, ``z_t ~ N(A_k z_{t-1} + b_k, Q_k)`` with ``k = k_t`` a
    Markov chain, and ``p(theta)`` conjugate [1]_; the prior may have one ``Q`` for all states.
    Coordinate ascent on q(k) and q(theta), from several starts: k-means on means and standard
    deviations over windows of several widths, with three times as many clusters merged down by the
    bound; k-means on means and increments over windows, clusters of stretches of time by their
    dynamics, twice as many of those merged down, chance. The best of them then try merge, delete
    and birth moves [2]_, and the best bound of all is kept.

    Parameters
    ----------
    parts : sequence of ChainPosterior
        Moments of latents: posteriors, or points from `point_sequences`. How sequences are grouped
        in parts makes no difference.
    prior : SwitchingPrior
        That treats all states alike, such as `SwitchingPrior.sticky`. It says how many states there
        are; those that the data do not need stay at their prior.
    n_starts : int, default=8
        Number of starts, of different kinds in turn.
    max_iter : int, default=100
        Most rounds of coordinate ascent after everything else.
    tol : float, default=1e-5
        Gain in nats per step of the sequences at which to stop. Moves that gain less are not kept.
    moves : bool, default=True
        Whether to try moves.
    max_rows : int, default=10_000
        Most steps for the search, which is on windows of the sequences, drawn if there are more.
        What it finds goes on with the whole sequences.
    generator : torch.Generator
        Source of all randomness.

    Returns
    -------
    AutoregressiveHMM
        Of the type of ``parts``; computed in double precision. With points its bound is one on the
        log evidence ``log p(z_1:T)``, with all constants. With posteriors q(z) the expectation
        under them takes its place, without the entropy of q(z).

    Raises
    ------
    ValueError
        If there are no sequences, means are not finite, or the prior tells states apart.

    References
    ----------
    .. [1] Fox, Sudderth, Jordan and Willsky, "Bayesian nonparametric inference of switching dynamic
       linear models", IEEE Transactions on Signal Processing 59(4), 2011.
    .. [2] Hughes, Stephenson and Sudderth, "Scalable adaptation of state complexity for
       nonparametric hidden Markov models", NeurIPS 2015.

    Examples
    --------
    A walk that changes its direction:

    >>> import torch
    >>> from sksvae.autoregressive_hmm import fit_autoregressive_hmm, point_sequences
    >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> drift = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(50).unsqueeze(-1).double()
    >>> steps = drift + 0.1 * torch.randn(150, 1, generator=generator).double()
    >>> sequences = point_sequences(steps.cumsum(0), [150])
    >>> prior = SwitchingPrior.sticky(4, DynamicsPrior.isotropic(1, noise_scale=0.01))
    >>> fit = fit_autoregressive_hmm(sequences.parts, prior, generator=generator)
    >>> fit.weights.round().tolist()
    [100.0, 50.0, 0.0, 0.0]
    >>> labels = sequences.stack(fit.states).argmax(-1)
    >>> labels[[0, 49, 50, 99, 100, 149]].tolist()
    [0, 0, 1, 1, 0, 0]
    """
    problem = Problem.build(parts, prior)
    sample = problem
    if problem.n_rows > max_rows or problem.stacking.lengths[-1] > _WINDOW:
        windows = problem.stacking.sample(problem.parts, max_rows, _WINDOW, generator)
        sample = Problem.build(windows, problem.prior)
    climb = _search(sample, n_starts, tol, moves, generator)
    if sample is not problem:
        climb = Climb(problem, climb.current.posterior, tol, _FINALIST_ROUNDS)
        if moves and problem.n_rows <= max_rows:  # what a sample has settled is not tried again
            improve(climb, _MOVE_ROUNDS, generator)
    converged = climb.ascend(max_iter)
    return _result(problem, climb, converged, parts[0].mean.dtype)


def _search(
    problem: Problem, n_starts: int, tol: float, moves: bool, generator: torch.Generator
) -> Climb:
    """The best of several starts, or of what moves make of the best few of them."""
    if problem.prior.n_states == 1:
        n_starts = 1  # they all find the same
    starts = propose_starts(problem, n_starts, generator)
    climbs = [Climb(problem, start, tol, _START_ROUNDS) for start in starts]
    climbs.sort(key=lambda climb: -climb.current.bound)
    reached: list[float] = []
    for climb in climbs[:_FINALISTS]:
        climb.ascend(_FINALIST_ROUNDS)
        bound = climb.current.bound
        # Starts that found the same have nothing to add.
        if moves and all(abs(bound - other) > climb.least_gain for other in reached):
            improve(climb, _MOVE_ROUNDS, generator)
        reached += [bound, climb.current.bound]
    return max(climbs, key=lambda climb: climb.current.bound)


@torch.no_grad()
def prune_states(
    fit: AutoregressiveHMM,
    parts: Sequence[ChainPosterior],
    *,
    min_weight: float = 1.0,
    max_iter: int = 100,
    tol: float = 1e-5,
) -> AutoregressiveHMM:
    """Drop the states that carry next to nothing, if the bound without them is not lower.

    Each number of states has a prior of its own, and all numbers are equally probable beforehand,
    so that bounds compare as they are: the concentrations of the states that are left stay what
    they were, which makes Dirichlets of smaller size. That favours fewer states. Those that are
    not used cost the rows of the transition matrix what is expected of moving there.

    Parameters
    ----------
    fit : AutoregressiveHMM
        Not changed.
    parts : sequence of ChainPosterior
        The sequences it is for.
    min_weight : float, default=1.0
        Expected number of steps from which on a state is kept in any case.
    max_iter : int, default=100
        Most rounds of coordinate ascent without the states.
    tol : float, default=1e-5
        Gain in nats per step of the sequences at which to stop.

    Returns
    -------
    AutoregressiveHMM
        With fewer states, also in its prior; or the same fit. One state is always left.

    Examples
    --------
    >>> import torch
    >>> from sksvae.autoregressive_hmm import (
    ...     fit_autoregressive_hmm, point_sequences, prune_states)
    >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> walk = torch.randn(100, 1, generator=generator, dtype=torch.float64).cumsum(0)
    >>> parts = point_sequences(walk, [100]).parts
    >>> prior = SwitchingPrior.sticky(3, DynamicsPrior.isotropic(1))
    >>> fit = fit_autoregressive_hmm(parts, prior, generator=generator)
    >>> prune_states(fit, parts).prior.n_states
    1
    """
    n_kept = max(int((fit.weights >= min_weight).sum()), 1)
    if n_kept == fit.prior.n_states:
        return fit
    kept = torch.arange(n_kept, device=fit.weights.device)
    problem = Problem.build(parts, fit.prior.select(kept))
    climb = Climb(problem, converted(fit.posterior.select(kept), torch.float64), tol, max_iter)
    if climb.current.bound < fit.bound:
        return fit
    return _result(problem, climb, climb.ascend(max_iter), parts[0].mean.dtype)


def _result(
    problem: Problem, climb: Climb, converged: bool, dtype: torch.dtype
) -> AutoregressiveHMM:
    """States in order of their weights, in the type of the latents."""
    posterior, bound, marginals, statistics = climb.current
    order = statistics.weights.argsort(descending=True, stable=True)
    return AutoregressiveHMM(
        prior=converted(problem.prior, dtype),
        posterior=converted(posterior.select(order), dtype),
        states=[part[..., order].to(dtype) for part in marginals],
        bound=bound,
        history=climb.history,
        converged=converged,
    )
