# SPDX-License-Identifier: BSD-3-Clause
"""The bound against exact evidence, enumeration of paths and slow twins."""

import itertools

import numpy as np
import pytest
import torch

from sksvae.autoregressive_hmm import point_sequences, transition_moments
from sksvae.autoregressive_hmm.model import Problem
from sksvae.autoregressive_hmm.sequences import point_part
from sksvae.expfam import MNIW, NIW, Dirichlet
from sksvae.graphical.gaussian_chain import chain_stats
from sksvae.graphical.transition_tables import EnergyTable
from tests.expfam.test_tied_mniw import stacked

from . import cases

LENGTHS = [5, 1, 8, 2]

each_kind = pytest.mark.parametrize("tied", [False, True], ids=["separate", "tied"])


def split(points, lengths):
    return [z.numpy() for z in points.split(list(lengths))]


def assert_close(got, want, **tolerance):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want), **tolerance)


@each_kind
def test_the_bound_of_one_state_is_the_evidence(tied):
    points, _ = cases.switching(0, n_states=1, lengths=LENGTHS)
    prior = cases.prior(1, tied=tied)
    problem = Problem.build(point_sequences(points, LENGTHS, max_rows=8).parts, prior)
    zeros = [[0] * length for length in LENGTHS]
    want = cases.path_evidence(split(points, LENGTHS), zeros, prior)
    expectation, bounds = problem.ascend(prior, 5, 0.0)
    assert bounds[0] < want - 1.0
    assert expectation.bound == pytest.approx(want, rel=1e-10)


@each_kind
def test_the_bound_is_between_the_best_path_and_the_evidence(tied):
    lengths = [4, 3]
    points, _ = cases.switching(3, n_states=2, lengths=lengths, stay=0.6)
    prior = cases.prior(2, stickiness=2.0, tied=tied)
    problem = Problem.build(point_sequences(points, lengths).parts, prior)
    paths = list(itertools.product(*(itertools.product(range(2), repeat=n) for n in lengths)))
    joint = [cases.path_evidence(split(points, lengths), path, prior) for path in paths]
    evidence = np.logaddexp.reduce(joint)
    # Shorter sequences come first in the stacking.
    best = max(zip(joint, paths, strict=True))[1]
    bounds = [
        problem.ascend(problem.with_labels(torch.tensor(labels)), 100, 1e-9)[0].bound
        for labels in (best[1] + best[0], (0, 1) * 3 + (0,), (0,) * 7)
    ]
    assert max(joint) <= bounds[0]
    assert max(bounds) <= evidence


@each_kind
@pytest.mark.parametrize("certain", [False, True])
def test_the_bound_sums_over_all_paths(certain, tied):
    part = cases.random_posteriors([4, 1, 3])
    if certain:
        part = point_part(part.mean, part.mask)
    prior = cases.prior(3, tied=tied)
    problem = Problem.build([part], prior)
    posterior = problem.with_labels(torch.tensor([0, 1, 2, 1, 1, 2, 0, 0]))
    log_initial, log_rows = (
        Dirichlet().standard_expected_stats(p).log_probabilities for p in posterior[2:]
    )
    stats = MNIW().standard_expected_stats(posterior.state_dynamics)
    energies, want = EnergyTable.build(stats).energies(part), 0.0
    for chain, length in zip(energies, part.mask.sum(-1).tolist(), strict=True):
        terms = [
            log_initial[path[0]]
            + sum(log_rows[i, j] for i, j in itertools.pairwise(path))
            + sum(chain[t, k] for t, k in enumerate(path[1:]))
            for path in itertools.product(range(3), repeat=length)
        ]
        want += torch.logsumexp(torch.stack(terms), 0)
    # E log p(z_1) from natural parameters
    first = NIW().standard_expected_stats(problem.initial)
    second = part.second_moment[:, 0]
    want += (part.mean[:, 0] @ first.precision_mean).sum() - 0.5 * (second * first.precision).sum()
    want += 0.5 * 3 * (first.log_det_precision - first.quadratic - 2 * np.log(2 * np.pi))
    joint = stacked if tied else lambda dynamics: dynamics
    for family, q, p in zip(
        (NIW(), MNIW(), Dirichlet(), Dirichlet()),
        posterior._replace(initial=problem.initial, dynamics=joint(posterior.dynamics)),
        prior._replace(dynamics=joint(prior.dynamics)),
        strict=True,
    ):
        want -= family.kl(family.to_natural(q), family.to_natural(p)).sum()
    assert problem.expect(posterior).bound == pytest.approx(float(want), rel=1e-10)


@each_kind
def test_coordinate_ascent_never_loses(tied):
    for part in (cases.random_posteriors([30, 20]), None):
        if part is None:
            points, _ = cases.switching(1, lengths=[60, 40])
            part = point_sequences(points, [60, 40]).parts[0]
        problem = Problem.build([part], cases.prior(4, tied=tied))
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(4, (problem.n_rows,), generator=generator)
        _, bounds = problem.ascend(problem.with_labels(labels), 40, -1.0)
        assert len(bounds) == 41
        assert min(np.diff(bounds)) > -1e-10 * abs(bounds[-1])


def test_statistics_of_the_expectation_are_those_of_its_marginals():
    problem, *_ = cases.problem(lengths=(40, 30))
    expectation = problem.expect(problem.with_labels(torch.arange(70) // 24))
    weights = sum(part.sum((0, 1)) for part in expectation.marginals)
    assert_close(expectation.statistics.weights, weights)
    assert_close(weights.sum(), 70.0, check_dtype=False)
    assert_close(2 * expectation.statistics.dynamics.log_det_precision.sum().item(), 68.0)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "found anew"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["points", "posteriors", "single steps"])
def test_moments_of_transitions_tell_energies_and_statistics(monkeypatch, kind, dim, kept):
    """As the slow functions for sequences have them; also where chunks and parts begin."""
    monkeypatch.setattr(transition_moments, "_CHUNK", 7)
    if not kept:
        monkeypatch.setattr(transition_moments, "_MOST_KEPT", 0)
    lengths = [1, 1] if kind == "single steps" else [50, 30]
    if kind == "posteriors":
        parts = [cases.random_posteriors(some, dim) for some in ([30, 20], [4])]
    else:
        points, _ = cases.switching(0, dim=dim, lengths=lengths)
        parts = point_sequences(points, lengths).parts
    problem = Problem.build(parts, cases.prior(3, dim))
    dynamics = problem.with_labels(torch.arange(problem.n_rows) * 3 // problem.n_rows).dynamics
    generator, table = torch.Generator().manual_seed(0), EnergyTable.build(_expected(dynamics))
    slow, weights = [], []
    energies = problem.moments.energies(dynamics)
    for part, got in zip(problem.parts, energies, strict=True):
        moves = part.mask[:, 1:]
        assert got.shape == (*moves.shape, 3)
        assert_close(got[moves], table.energies(part)[moves], rtol=1e-10, atol=1e-10)
        drawn = torch.rand(got.shape, generator=generator).double() * moves.unsqueeze(-1)
        weights.append(drawn)
        slow.append(chain_stats(part, part.mask.double(), drawn)[1])
    for got, *wanted in zip(problem.moments.statistics(weights), *slow, strict=True):
        assert_close(got, sum(wanted), rtol=1e-10, atol=1e-10)


def _expected(dynamics):
    return MNIW().standard_expected_stats(dynamics)


@each_kind
def test_steps_without_a_label_are_left_out(tied):
    problem, points, labels = cases.problem(lengths=(30,), tied=tied)
    known = labels.clone()
    known[20:] = -1
    part = Problem.build(point_sequences(points[:20], [20]).parts, problem.prior)
    got, want = problem.with_labels(known), part.with_labels(labels[:20])
    for first, second in zip(got[1:], want[1:], strict=True):
        for a, b in zip(first, second, strict=True):
            assert_close(a, b)


def test_moments_without_covariances_are_points():
    points, _ = cases.switching(0, lengths=(20,))
    (part,) = point_sequences(points, [20]).parts
    dense = type(part)(
        part.mean,
        part.covariance.clone(),
        part.lag_covariance.clone(),
        part.draws,
        part.local_kl,
        part.mask,
    )
    first, second = (Problem.build([p], cases.prior(2)).parts[0] for p in (part, dense))
    assert first.covariance.stride() == second.covariance.stride()


def test_what_cannot_be_fitted_is_refused():
    points, _ = cases.switching(0, lengths=(20,))
    parts, prior = point_sequences(points, [20]).parts, cases.prior(3)
    with pytest.raises(ValueError, match="at least one sequence"):
        Problem.build([], prior)
    for field in ("dynamics", "transitions", "initial_states"):
        part = getattr(prior, field)
        uneven = part[-1].clone()
        uneven[(0,) * uneven.ndim] += 1.0
        changed = prior._replace(**{field: part._replace(**{part._fields[-1]: uneven})})
        with pytest.raises(ValueError, match="treat all states alike"):
            Problem.build(parts, changed)
    bad = points.clone()
    bad[3] = torch.nan
    with pytest.raises(ValueError, match="finite means"):
        Problem.build(point_sequences(bad, [20]).parts, prior)
    mask = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="without gaps"):
        Problem.build([point_part(torch.zeros(1, 3, 2), mask)], prior)
