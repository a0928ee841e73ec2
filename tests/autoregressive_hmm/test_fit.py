# SPDX-License-Identifier: BSD-3-Clause
"""Fits: states that are found again, invariances, unkind data."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from sksvae.autoregressive_hmm import fit_autoregressive_hmm, point_sequences, prune_states
from sksvae.autoregressive_hmm.model import Problem
from sksvae.autoregressive_hmm.moves import Climb, hard_labels, improve
from sksvae.autoregressive_hmm.starts import from_windows, propose_starts, window_features
from sksvae.graphical import ChainPosterior

from . import cases


def fit(parts, prior, seed=0, **options):
    return fit_autoregressive_hmm(
        parts, prior, generator=torch.Generator().manual_seed(seed), **options
    )


def fit_points(points, lengths, prior, seed=0, max_rows=20_000, **options):
    sequences = point_sequences(points, lengths, max_rows)
    fitted = fit(sequences.parts, prior, seed, **options)
    return fitted, sequences.stack(fitted.states)


@pytest.mark.parametrize("surplus", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_states_are_found_again(seed, surplus):
    lengths = (600, 200)
    points, states = cases.switching(seed, n_states=3, dim=3, lengths=lengths)
    fitted, probabilities = fit_points(points, lengths, cases.prior(3 * surplus, 3), n_starts=5)
    assert adjusted_rand_score(states, probabilities.argmax(-1)) >= 0.95
    assert int((fitted.weights > 0.5).sum()) == 3
    assert fitted.converged


@pytest.mark.parametrize("seed", [3, 4])
def test_moves_find_what_a_start_does_not(seed):
    problem, _, states = cases.problem(seed, n_states=6, dim=4, lengths=(1200,))
    generator = torch.Generator().manual_seed(0)
    climb = Climb(problem, from_windows(problem, 10, generator), 1e-5, 50)
    scores, bounds = [], []
    for _ in range(2):
        labels = hard_labels(problem, climb.current)
        scores.append(adjusted_rand_score(states, labels))
        bounds.append(climb.current.bound)
        improve(climb, 10, generator)
    assert scores[0] < 0.95 < scores[1]
    assert bounds[1] > bounds[0] + 100


def test_results_are_consistent():
    lengths = [80, 1, 40]
    points, _ = cases.switching(2, lengths=lengths)
    sequences, prior = point_sequences(points, lengths, 80), cases.prior(5)
    fitted = fit(sequences.parts, prior, n_starts=4)
    rises = np.diff(fitted.history)
    assert (rises >= -1e-9).all()  # up to rounding
    assert fitted.history[-1] == fitted.bound
    assert (fitted.weights.diff() <= 1e-9).all()
    for part, states in zip(sequences.parts, fitted.states, strict=True):
        torch.testing.assert_close(states.sum(-1), part.mask.double())
    again = Problem.build(sequences.parts, prior).expect(fitted.posterior)
    assert again.bound == pytest.approx(fitted.bound, rel=1e-12)
    for got, want in zip(again.marginals, fitted.states, strict=True):
        torch.testing.assert_close(got, want)
    # Those that are not used are at their prior.
    idle = fitted.weights < 1e-3
    assert idle.any()
    for got, want in zip(fitted.posterior.dynamics, prior.dynamics, strict=True):
        torch.testing.assert_close(got[idle], want[idle], rtol=1e-2, atol=1e-2)


def test_the_grouping_in_parts_does_not_matter():
    lengths = [40, 20, 1, 20]
    points, _ = cases.switching(0, lengths=lengths)
    results = []
    for max_rows, step in ((1000, 1), (21, -1)):
        sequences = point_sequences(points, lengths, max_rows)
        fitted = fit(sequences.parts[::step], cases.prior(4), n_starts=2)
        results.append((fitted.bound, sequences.stack(fitted.states[::step])))
    bound, states = results[0]
    for other_bound, other_states in results[1:]:
        assert other_bound == pytest.approx(bound, rel=1e-8)
        torch.testing.assert_close(other_states, states, rtol=0, atol=1e-8)


def test_the_generator_is_the_only_source_of_chance():
    points, _ = cases.switching(0, lengths=[150])
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (
        fit_points(points, [150], cases.prior(4), seed=3, n_starts=3)[0] for _ in range(2)
    )
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert first.history == second.history
    assert torch.equal(first.states[0], second.states[0])


def test_a_search_on_windows_carries_over():
    lengths = [300] * 8
    points, states = cases.switching(0, lengths=lengths)
    sequences = point_sequences(points, lengths)
    everything = fit(sequences.parts, cases.prior(3), n_starts=4)
    sampled = fit(sequences.parts, cases.prior(3), n_starts=4, max_rows=700)
    labels = sequences.stack(sampled.states).argmax(-1)
    assert adjusted_rand_score(states, labels) >= 0.95
    assert sampled.bound == pytest.approx(everything.bound, abs=0.1)


def test_posteriors_of_latents():
    points, states = cases.switching(0, lengths=(500,))
    generator = torch.Generator().manual_seed(0)
    deviation = 0.02
    noisy = points + deviation * torch.randn(points.shape, generator=generator).double()
    (part,) = point_sequences(noisy, [500]).parts
    eye = deviation**2 * torch.eye(2, dtype=torch.float64)
    part = ChainPosterior(
        part.mean,
        eye.expand_as(part.covariance).clone(),
        part.lag_covariance,
        part.draws,
        part.local_kl,
        part.mask,
    )
    fitted = fit([part], cases.prior(3), n_starts=4)
    assert adjusted_rand_score(states, fitted.states[0][0].argmax(-1)) >= 0.95


def test_single_precision():
    points, states = cases.switching(0, lengths=(200,))
    single, probabilities = fit_points(
        points.float(), [200], cases.prior(3, dtype=torch.float32), n_starts=2
    )
    double, _ = fit_points(points, [200], cases.prior(3), n_starts=2)
    assert {field.dtype for part in single.posterior for field in part} == {torch.float32}
    assert probabilities.dtype == torch.float32
    assert single.bound == pytest.approx(double.bound, rel=1e-4)
    assert adjusted_rand_score(states, probabilities.argmax(-1)) >= 0.95


@pytest.mark.parametrize(
    ("points", "lengths"),
    [
        (torch.zeros(30, 2), [30]),
        (torch.ones(30, 2), [29, 1]),
        (torch.arange(12.0).view(6, 2), [1] * 6),
        (torch.arange(2.0).view(1, 2), [1]),
        (torch.arange(6.0).view(3, 2), [2, 1]),
        (1e4 * torch.arange(60.0).view(30, 2).sin(), [25, 5]),
        (torch.zeros(40, 2).index_fill(0, torch.tensor([20]), 1e6), [40]),
    ],
    ids=["zero", "constant", "length 1", "one step", "three steps", "large", "outlier"],
)
@pytest.mark.parametrize("n_states", [1, 5])
def test_unkind_data(points, lengths, n_states):
    prior = cases.prior(n_states)
    fitted, probabilities = fit_points(points.double(), lengths, prior)
    assert np.isfinite(fitted.bound)
    rises = np.diff(fitted.history)
    assert (rises >= -1e-9).all()  # up to rounding
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(points)).double())
    pruned = prune_states(fitted, point_sequences(points.double(), lengths).parts)
    assert 1 <= pruned.prior.n_states <= n_states


def test_pruning_drops_what_is_not_used_and_nothing_else():
    points, states = cases.switching(0, lengths=(500,))
    (part,) = point_sequences(points, [500]).parts
    fitted = fit([part], cases.prior(6), n_starts=4)
    pruned = prune_states(fitted, [part])
    assert pruned.prior.n_states == pruned.posterior.n_states == 3
    assert pruned.bound > fitted.bound
    assert adjusted_rand_score(states, pruned.states[0][0].argmax(-1)) >= 0.95
    assert prune_states(pruned, [part]) is pruned
    assert prune_states(pruned, [part], min_weight=200.0) is pruned  # the bound would be lower


def test_window_features_are_means():
    problem, *_ = cases.problem(lengths=(7, 1, 4))
    got, means = window_features(problem, 4).numpy(), problem.stacking.means.numpy()
    first, last = (bound.tolist() for bound in problem.stacking.bounds)
    for row in range(12):
        inside = range(max(row - 2, first[row]), min(row + 1, last[row]) + 1)
        moves = [means[i] - means[i - 1] for i in inside if i > first[row]] or [np.zeros(2)]
        want = np.append(means[inside].mean(0), np.mean(moves, 0))
        np.testing.assert_allclose(got[row], want, atol=1e-12)


def test_starts_differ_but_not_with_the_grouping_in_parts():
    lengths = [50, 20, 1, 20]
    points, _ = cases.switching(0, lengths=lengths)
    bounds = []
    for max_rows, step in ((1000, 1), (50, 1), (1, -1)):
        parts = point_sequences(points, lengths, max_rows).parts[::step]
        problem = Problem.build(parts, cases.prior(3))
        starts = propose_starts(problem, 8, torch.Generator().manual_seed(0))
        bounds.append([problem.expect(start).bound for start in starts])
    assert len(set(np.round(bounds[0], 6))) > 5
    np.testing.assert_allclose(bounds, bounds[:1] * 3, rtol=1e-8)
