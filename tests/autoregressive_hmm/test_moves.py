# SPDX-License-Identifier: BSD-3-Clause
"""Moves out of known local optima, and estimates of what they gain."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from sksvae.autoregressive_hmm.merging import disjoint_pairs, merge_gains, merged
from sksvae.autoregressive_hmm.model import Statistics
from sksvae.autoregressive_hmm.moves import (
    Climb,
    hard_labels,
    improve,
    label_evidence,
    reassigned,
    try_birth,
    try_deletion,
    try_fresh_chain,
    try_merges,
)
from sksvae.autoregressive_hmm.segments import Segments

from . import cases

TOL = 1e-5

each_kind = pytest.mark.parametrize("tied", [False, True], ids=["separate", "tied"])


def climb_from(problem, labels, max_iter=50):
    return Climb(problem, problem.with_labels(labels), TOL, max_iter)


def agreement(climb, states):
    return adjusted_rand_score(states, hard_labels(climb.problem, climb.current))


def used(climb):
    return int((climb.current.statistics.weights > 0.5).sum())


def hard_statistics(problem, labels):
    posterior, prior = problem.with_labels(labels), problem.prior
    stats = problem._dynamics(
        [
            torch.nn.functional.one_hot(labels[rows], prior.n_states).double()
            for rows in problem.stacking.rows
        ]
    )
    return Statistics(
        stats,
        posterior.initial_states.concentration - prior.initial_states.concentration,
        posterior.transitions.concentration - prior.transitions.concentration,
    )


@each_kind
def test_gains_of_merges_are_exact_where_states_are_certain(tied):
    problem, _, labels = cases.problem(n_prior=4, lengths=(60,), tied=tied)
    labels = torch.where(torch.arange(60) < 20, 3, labels)
    sequence = [problem.stacking.means.numpy()]
    before = cases.path_evidence(sequence, [labels.tolist()], problem.prior)
    gains = merge_gains(problem, hard_statistics(problem, labels))
    present = labels.unique().tolist()
    for i in range(4):
        for j in range(4):
            if i < j and {i, j} <= set(present):
                after = torch.where(labels == j, i, labels).tolist()
                want = cases.path_evidence(sequence, [after], problem.prior) - before
                assert float(gains[i, j]) == pytest.approx(want, rel=1e-8)
            else:
                assert gains[i, j] == -torch.inf


def test_merged_statistics_are_those_of_merged_states():
    problem, _, labels = cases.problem(lengths=(60,))
    got = merged(hard_statistics(problem, labels), 0, 2)
    want = hard_statistics(problem, torch.where(labels == 2, 0, labels))
    for a, b in zip((*got.dynamics, *got[1:]), (*want.dynamics, *want[1:]), strict=True):
        torch.testing.assert_close(a, b)


def test_pairs_to_merge_have_no_state_in_common():
    gains = torch.full((4, 4), -torch.inf)
    gains[0, 1], gains[1, 2], gains[2, 3], gains[0, 3] = 3.0, 5.0, 4.0, -1.0
    assert disjoint_pairs(gains) == [(1, 2)]
    gains[0, 3] = 1.0
    assert disjoint_pairs(gains) == [(1, 2), (0, 3)]


@each_kind
def test_a_merge_repairs_a_state_that_is_split(tied):
    problem, _, states = cases.problem(n_prior=4, tied=tied)
    half = torch.arange(len(states)) < 300
    climb = climb_from(problem, torch.where((states == 0) & half, 3, states))
    assert used(climb) == 4
    assert try_merges(climb)
    assert used(climb) == 3
    assert agreement(climb, states) > 0.95


def test_several_merges_at_once():
    problem, _, states = cases.problem(n_prior=6)
    half = torch.arange(len(states)) < 300
    climb = climb_from(problem, states + 3 * half, max_iter=0)
    assert used(climb) == 6
    while try_merges(climb):
        pass
    assert used(climb) == 3
    assert agreement(climb, states) > 0.95


@each_kind
def test_a_birth_repairs_two_states_that_are_one(tied):
    problem, _, states = cases.problem(tied=tied)
    climb = climb_from(problem, states.clamp_min(1))
    assert used(climb) == 2
    assert agreement(climb, states) < 0.8
    assert try_birth(climb, torch.Generator().manual_seed(0))
    assert used(climb) == 3
    assert agreement(climb, states) > 0.95


def test_a_birth_takes_the_place_of_a_merge():
    problem, _, states = cases.problem()
    half = torch.arange(len(states)) < 300
    wrong = torch.where((states == 2) & half, 0, states.clamp_min(1))
    climb = climb_from(problem, wrong, max_iter=1)
    assert used(climb) == 3
    assert agreement(climb, states) < 0.8
    assert try_birth(climb, torch.Generator().manual_seed(0))
    assert agreement(climb, states) > 0.95


def test_a_deletion_removes_junk():
    problem, _, states = cases.problem(2, n_prior=4, dim=5)
    generator = torch.Generator().manual_seed(2)
    junk = torch.rand(120, generator=generator).repeat_interleave(5) < 0.3
    climb = climb_from(problem, torch.where(junk, 3, states))
    bound = climb.current.bound
    assert used(climb) == 4  # with a few steps that need not be told apart
    assert try_deletion(climb)
    assert used(climb) == 3
    assert agreement(climb, states) > 0.99
    assert climb.current.bound > bound + 10


def test_a_fresh_chain_forgets_where_sequences_seemed_to_begin():
    problem, _, states = cases.problem(lengths=[60] * 8)
    best = climb_from(problem, states).current
    counts = best.statistics.initial_states
    assert (counts > 0.9).sum() > 1
    wrong = torch.zeros_like(counts).index_fill(0, counts.argmin(), 8.0)
    start = problem.maximize(best.statistics._replace(initial_states=wrong))
    climb = Climb(problem, start, TOL, 50)
    assert climb.current.bound < best.bound - 1.0
    assert try_fresh_chain(climb)
    assert climb.current.bound > best.bound - 0.1


def test_steps_of_a_deleted_state_go_to_their_neighbours():
    problem, *_ = cases.problem(lengths=(4, 3, 2))
    labels = torch.tensor([1, 1, 0, 1, 2, 1, 1, 0, 2])
    before, after = reassigned(problem, labels, 1)
    assert problem.stacking.lengths.tolist() == [2, 3, 4]
    assert before.tolist() == [-1, -1, 0, 0, 2, 0, 0, 0, 2]
    assert after.tolist() == [-1, -1, 0, 2, 2, 0, 0, 0, 2]


def test_nothing_is_kept_that_loses():
    problem, _, states = cases.problem()
    climb = climb_from(problem, states)
    best = climb.current.bound
    for proposal in (states.clamp_min(1), states.clamp_max(1), torch.zeros_like(states)):
        assert not climb.attempt(problem.with_labels(proposal))
    assert climb.current.bound == best
    assert not try_merges(climb)
    assert not try_deletion(climb)


@each_kind
def test_moves_with_no_transition(tied):
    problem, *_ = cases.problem(lengths=[1] * 6, tied=tied)
    climb = climb_from(problem, torch.arange(6) % 3)
    improve(climb, 5, torch.Generator().manual_seed(0))
    assert climb.history == sorted(climb.history)


@each_kind
def test_the_evidence_of_labels_is_exact(tied):
    lengths = [9, 6, 30]
    problem, _, labels = cases.problem(n_prior=4, lengths=lengths, tied=tied)
    proposals = [labels, torch.where(labels == 1, 3, labels), torch.zeros_like(labels)]
    segments = Segments.of(problem, labels, 4)
    sequences = [z.numpy() for z in problem.stacking.means.split(sorted(lengths))]
    want = [
        cases.path_evidence(
            sequences, [path.tolist() for path in p.split(sorted(lengths))], problem.prior
        )
        for p in proposals
    ]
    got = label_evidence(problem, segments, proposals).numpy()
    np.testing.assert_allclose(np.diff(got), np.diff(want), rtol=1e-8, atol=1e-10)
