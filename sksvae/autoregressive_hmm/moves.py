# SPDX-License-Identifier: BSD-3-Clause
r"""Merge, delete and birth moves: ways out of local optima, kept where the bound improves [1]_.

What a move would gain is estimated from statistics, and the best candidates are then tried: a few
rounds of coordinate ascent from the proposal decide. The number of states never changes. A state
that is merged or deleted goes back to its prior, from where a birth may take it.

Deletions and births are estimated from means and most probable states; the trials take everything
into account.

References
----------
.. [1] Hughes, Stephenson and Sudderth, "Scalable adaptation of state complexity for nonparametric
   hidden Markov models", NeurIPS 2015, section 4.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sksvae.autoregressive_hmm.evidence import dynamics_evidence
from sksvae.autoregressive_hmm.merging import (
    UNUSED,
    chain_evidence,
    disjoint_pairs,
    merge_gains,
    merged,
)
from sksvae.autoregressive_hmm.model import Expectation, Problem
from sksvae.autoregressive_hmm.segments import Segments, group_sums, split_groups
from sksvae.expfam import MNIWNatural
from sksvae.graphical import SwitchingPrior

_TRIAL_ROUNDS = 10  # of coordinate ascent, after which a proposal is judged
_TRIALS = 4  # proposals of one kind that are tried, until one is kept
_LEAST_GAIN = 0.1  # nats, lest moves go on for nothing
_DELETIONS = 2  # the same for deletions, which seldom have to be tried twice
_STRETCH = 20  # most steps that move together


class Climb:
    """Coordinate ascent with proposals that are kept only if the bound improves.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    start : SwitchingPrior
        First ``q(theta)``.
    tol : float
        Gain in nats per step at which to stop, and least gain of a proposal that is kept.
    max_iter : int
        Most rounds of coordinate ascent at the start.

    Attributes
    ----------
    current : Expectation
        The best so far.
    history : list of float
        Bounds on the way to it, increasing.
    """

    def __init__(self, problem: Problem, start: SwitchingPrior, tol: float, max_iter: int) -> None:
        self.problem, self.tol = problem, tol
        self.current, self.history = problem.ascend(start, max_iter, tol)

    def ascend(self, max_iter: int) -> bool:
        """Go on without a proposal.

        Parameters
        ----------
        max_iter : int
            Most rounds.

        Returns
        -------
        bool
            Whether the last round gained less than the tolerance.
        """
        self.current, bounds = self.problem.ascend(self.current.posterior, max_iter, self.tol)
        self._record(bounds)
        return len(bounds) > 1 and bounds[-1] - bounds[-2] < self.least_gain

    def attempt(self, proposal: SwitchingPrior) -> bool:
        """Try a proposal.

        Parameters
        ----------
        proposal : SwitchingPrior
            Where to go on from.

        Returns
        -------
        bool
            Whether it is kept.
        """
        target = self.current.bound + max(self.least_gain, _LEAST_GAIN)
        trial, bounds = self.problem.ascend(proposal, _TRIAL_ROUNDS, self.tol, target)
        if not trial.bound > target:
            return False
        self.current = trial
        self._record(bounds)
        return True

    @property
    def least_gain(self) -> float:
        """The tolerance in nats."""
        return self.tol * self.problem.n_rows

    def _record(self, bounds: list[float]) -> None:
        for bound in bounds:
            if bound > self.history[-1]:
                self.history.append(bound)


def improve(climb: Climb, max_rounds: int, generator: torch.Generator) -> None:
    """Try moves until none is kept.

    Parameters
    ----------
    climb : Climb
        Changed in place.
    max_rounds : int
        Most rounds of all kinds of moves.
    generator : torch.Generator
        For births.
    """
    if climb.problem.prior.n_states == 1:
        return
    for _ in range(max_rounds):
        kept = [
            try_fresh_chain(climb),
            try_merges(climb),
            _repeat(lambda: try_deletion(climb), climb),
            _repeat(lambda: try_birth(climb, generator), climb),
        ]
        if not any(kept):
            break


def _repeat(move: Callable[[], bool], climb: Climb) -> bool:
    """Move until that is not kept; return whether it ever was."""
    n_kept = 0
    while n_kept < climb.problem.prior.n_states and move():
        n_kept += 1
    return n_kept > 0


def try_fresh_chain(climb: Climb) -> bool:
    """Forget what was learned of the Markov chain, and learn it again from the dynamics.

    Sparse Dirichlets hold on to what they have: all sequences seem to begin in one state, say, if
    they did so once, as the first step itself does not tell its state.

    Parameters
    ----------
    climb : Climb
        Changed in place.

    Returns
    -------
    bool
        Whether that was kept.
    """
    prior = climb.problem.prior
    return climb.attempt(
        climb.current.posterior._replace(
            initial_states=prior.initial_states, transitions=prior.transitions
        )
    )


def try_merges(climb: Climb) -> bool:
    """Merge pairs of states: as many as are promising at once, or else fewer.

    Parameters
    ----------
    climb : Climb
        Changed in place.

    Returns
    -------
    bool
        Whether any merge was kept.
    """
    pairs = disjoint_pairs(merge_gains(climb.problem, climb.current.statistics))
    while pairs:
        statistics = climb.current.statistics
        for kept, emptied in pairs:
            statistics = merged(statistics, kept, emptied)
        if climb.attempt(climb.problem.maximize(statistics)):
            return True
        pairs = pairs[: len(pairs) // 2]
    return False


def try_deletion(climb: Climb) -> bool:
    """Hand the steps of a state to the states before or after them, as these seldom change.

    Parameters
    ----------
    climb : Climb
        Changed in place.

    Returns
    -------
    bool
        Whether a deletion was kept.
    """
    problem = climb.problem
    labels = hard_labels(problem, climb.current)
    segments = Segments.of(problem, labels, _STRETCH)
    proposals = [
        way for state in labels.unique().tolist() for way in reassigned(problem, labels, state)
    ]
    # The better of the two ways for each state, and these in order. Estimates are not held against
    # zero: they are too low where neighbours have to sort out whose a step is.
    evidence = label_evidence(problem, segments, proposals).view(-1, 2)
    best = evidence.argmax(-1)
    order = evidence.amax(-1).argsort(descending=True).tolist()
    return any(
        climb.attempt(problem.with_labels(proposals[2 * rank + int(best[rank])]))
        for rank in order[:_DELETIONS]
    )


def reassigned(problem: Problem, labels: Tensor, state: int) -> list[Tensor]:
    """States with each step of one of them given to a neighbour in time.

    Parameters
    ----------
    problem : Problem
        Sequences.
    labels : Tensor of int64 of shape (n_rows,)
        State of each step.
    state : int
        The one that loses its steps.

    Returns
    -------
    list of Tensor of int64 of shape (n_rows,)
        Given to the state before, or to the one after; to the other where the sequence ends; -1 in
        sequences that know no other state.
    """
    stacking, keep = problem.stacking, labels != state
    row = torch.arange(len(labels), device=labels.device)
    first, last = stacking.bounds
    before = torch.where(keep, row, -1).cummax(0).values
    after = torch.where(keep, row, len(row)).flip(0).cummin(0).values.flip(0)
    before = torch.where(before >= first, before, -1)
    after = torch.where(after <= last, after, -1)
    known = torch.cat((labels, labels.new_full((1,), -1)))  # -1 for -1
    return [
        known[torch.where(near >= 0, near, far)] for near, far in ((before, after), (after, before))
    ]


def label_evidence(problem: Problem, segments: Segments, proposals: list[Tensor]) -> Tensor:
    """Log evidence of transitions and of states, if the states were known.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    segments : Segments
        Stretches over each of which the labels below are constant.
    proposals : list of Tensor of int64 of shape (n_rows,)
        State of each step; -1 for steps that are left out.

    Returns
    -------
    Tensor of shape (n_proposals,)
        Up to a constant.
    """
    prior, n_states = problem.prior, problem.prior.n_states
    first, _ = problem.stacking.bounds
    starts = torch.arange(len(first), device=first.device) == first
    dynamics, initial, counts = [], [], []
    for labels in proposals:
        owner = segments.values(labels)
        owner = torch.where(owner < 0, n_states, owner)
        dynamics.append([field[:-1] for field in group_sums(segments.stats, owner, n_states + 1)])
        initial.append(torch.bincount(labels[starts] + 1, minlength=n_states + 1)[1:])
        known = ~starts[1:] & (labels[1:] >= 0) & (labels[:-1] >= 0)
        pairs = (labels[:-1] * n_states + labels[1:])[known]
        counts.append(torch.bincount(pairs, minlength=n_states**2).view(n_states, n_states))
    stats = MNIWNatural(*(torch.stack(fields) for fields in zip(*dynamics, strict=True)))
    return dynamics_evidence(prior.dynamics, stats) + chain_evidence(
        prior, torch.stack(initial).double(), torch.stack(counts).double()
    )


def try_birth(climb: Climb, generator: torch.Generator) -> bool:
    """Split a state in two by the dynamics in stretches of its steps.

    One half goes to a state that is not in use. If there is none, to any states that explain it
    better; or the pair of states whose merge costs least makes room.

    Parameters
    ----------
    climb : Climb
        Changed in place.
    generator : torch.Generator
        Draws seeds of the halves.

    Returns
    -------
    bool
        Whether a birth was kept.
    """
    problem, statistics = climb.problem, climb.current.statistics
    labels = hard_labels(problem, climb.current)
    free = (statistics.weights <= UNUSED).nonzero().flatten()
    merges = merge_gains(problem, statistics) if not len(free) else None
    splits = sorted(propose_splits(problem, labels, generator), key=lambda split: -split[0])
    for gain, state, leaves in splits[:_TRIALS]:
        if not gain > 0:
            break
        if merges is None:
            proposals = [labels.where(~leaves, free[0])]
        else:
            proposals = [labels.where(~leaves, -1)]
            others = merges.clone()
            others[state, :] = others[:, state] = -math.inf
            kept, emptied = divmod(int(others.argmax()), len(others))
            if gain + float(others[kept, emptied]) > 0:
                rest = torch.where(labels == emptied, kept, labels)
                proposals.append(rest.where(~leaves, emptied))
        if any(climb.attempt(problem.with_labels(proposal)) for proposal in proposals):
            return True
    return False


def propose_splits(
    problem: Problem, labels: Tensor, generator: torch.Generator
) -> list[tuple[float, int, Tensor]]:
    """Ways to split each state, and what they would gain but for the Markov chain.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    labels : Tensor of int64 of shape (n_rows,)
        State of each step.
    generator : torch.Generator
        Draws seeds of the halves.

    Returns
    -------
    list of tuple of float, int and Tensor of bool of shape (n_rows,)
        Gain, state, and which steps leave it.
    """
    segments, prior = Segments.of(problem, labels, _STRETCH), problem.prior
    states = segments.values(labels)
    splits = []
    # Each half has noise of its own, also where states share it: gains only say which proposals to
    # try, and the bound decides on those.
    for leaves, gains in split_groups(
        prior.state_dynamics, segments.stats, states, prior.n_states, generator
    ):
        for state in states[leaves].unique().tolist():
            own = leaves & (states == state)
            if not torch.equal(own, states == state):
                splits.append((float(gains[state]), state, own[segments.of_row]))
    return splits


def hard_labels(problem: Problem, current: Expectation) -> Tensor:
    """Most probable state of each step by itself.

    Parameters
    ----------
    problem : Problem
        Sequences.
    current : Expectation
        q(k).

    Returns
    -------
    Tensor of int64 of shape (n_rows,)
        In the order of the stacking.
    """
    labels = [marginals.argmax(-1) for marginals in current.marginals]
    return problem.stacking.stack(labels)
