# SPDX-License-Identifier: BSD-3-Clause
"""Fits with one noise covariance for all states."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from sksvae.autoregressive_hmm import fit_autoregressive_hmm, point_sequences, prune_states
from sksvae.autoregressive_hmm.model import Problem
from sksvae.expfam import TiedMNIWParams
from sksvae.graphical import DynamicsPrior, SwitchingPrior

from . import cases


def drifts(seed, n_steps=1000, dim=4, noise=0.05):
    """A walk with three drifts and small noise, and its states."""
    rng = np.random.default_rng(seed)
    offsets = 0.3 * rng.standard_normal((3, dim))
    turns = rng.uniform(size=n_steps) < 0.03
    drawn = rng.integers(3, size=n_steps)
    states = drawn[np.maximum.accumulate(np.where(turns, np.arange(n_steps), 0))]
    steps = offsets[states] + noise * rng.standard_normal((n_steps, dim))
    return torch.tensor(steps.cumsum(0)), states


def fit(points, lengths, prior, **options):
    sequences = point_sequences(points, lengths)
    generator = torch.Generator().manual_seed(0)
    fitted = fit_autoregressive_hmm(sequences.parts, prior, generator=generator, **options)
    return fitted, sequences


def used(fitted):
    return int((fitted.weights > 0.5).sum())


@pytest.mark.parametrize("seed", range(3))
def test_drifts_with_the_same_small_noise_are_found_again(seed):
    points, states = drifts(seed)
    # The precision is relative to the noise, and drifts are six times as large.
    dynamics = DynamicsPrior.isotropic(4, noise_scale=0.05**2, transition_precision=0.01)
    fitted, sequences = fit(
        points, [1000], SwitchingPrior.sticky(6, dynamics, tied=True), n_starts=4
    )
    assert used(fitted) == 3
    labels = sequences.stack(fitted.states).argmax(-1)
    assert adjusted_rand_score(states, labels) > 0.99
    # The noise is learned from all states together.
    found = fitted.posterior.dynamics
    assert type(found) is TiedMNIWParams
    assert found.dof == pytest.approx(float(dynamics.dynamics.dof) + 999, abs=1e-6)
    root = (found.scale / found.dof).diagonal().sqrt()
    torch.testing.assert_close(root, torch.full_like(root, 0.05), rtol=0.1, atol=0)
    apart, _ = fit(points, [1000], SwitchingPrior.sticky(6, dynamics), n_starts=4)
    assert fitted.bound > apart.bound + 10


def test_results_are_consistent():
    lengths = [80, 1, 40]
    points, _ = cases.switching(2, lengths=lengths)
    prior = cases.prior(5, tied=True)
    fitted, sequences = fit(points, lengths, prior, n_starts=6)
    assert (np.diff(fitted.history) >= -1e-9).all()  # up to rounding
    assert fitted.history[-1] == fitted.bound
    assert (fitted.weights.diff() <= 1e-9).all()
    again = Problem.build(sequences.parts, prior).expect(fitted.posterior)
    assert again.bound == pytest.approx(fitted.bound, rel=1e-12)
    for got, want in zip(again.marginals, fitted.states, strict=True):
        torch.testing.assert_close(got, want)
    # Coefficients of those that are not used are at their prior.
    idle = fitted.weights < 1e-3
    assert idle.any()
    for got, want in zip(fitted.posterior.dynamics[1:3], prior.dynamics[1:3], strict=True):
        torch.testing.assert_close(got[idle], want[idle], rtol=1e-2, atol=1e-2)


def test_states_of_no_use_are_pruned_and_the_noise_stays():
    points, _ = cases.switching(2, lengths=(300,))
    prior = cases.prior(6, tied=True)
    fitted, sequences = fit(points, [300], prior, n_starts=4)
    pruned = prune_states(fitted, sequences.parts)
    assert pruned.prior.n_states == used(fitted) < 6
    assert pruned.bound >= fitted.bound
    assert torch.equal(pruned.prior.dynamics.scale, prior.dynamics.scale)
    got, want = (f.posterior.dynamics for f in (pruned, fitted))
    torch.testing.assert_close(got.scale, want.scale, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(got.dof, want.dof)


@pytest.mark.parametrize("certain", [False, True])
def test_posteriors_of_latents_and_windows_of_sequences(certain):
    lengths = [150, 120, 100]
    part = cases.random_posteriors(lengths, seed=1)
    if certain:
        points = torch.cat([z[:n] for z, n in zip(part.mean, lengths, strict=True)])
        (part,) = point_sequences(points, lengths).parts
    generator = torch.Generator().manual_seed(0)
    fitted = fit_autoregressive_hmm(
        [part], cases.prior(3, tied=True), n_starts=6, max_rows=200, generator=generator
    )
    assert (np.diff(fitted.history) >= -1e-9).all()
    assert fitted.posterior.dynamics.dof == pytest.approx(4 + 370 - 3)


def test_single_precision():
    points, states = cases.switching(0, lengths=(200,))
    single, sequences = fit(
        points.float(), [200], cases.prior(3, dtype=torch.float32, tied=True), n_starts=2
    )
    double, _ = fit(points, [200], cases.prior(3, tied=True), n_starts=2)
    assert {field.dtype for part in single.posterior for field in part} == {torch.float32}
    assert single.bound == pytest.approx(double.bound, rel=1e-4)
    labels = sequences.stack(single.states).argmax(-1)
    assert adjusted_rand_score(states, labels) >= 0.95


def test_equal_seeds_give_equal_results():
    points, _ = cases.switching(0, lengths=(150,))
    first, second = (fit(points, [150], cases.prior(4, tied=True), n_starts=3)[0] for _ in "ab")
    assert first.history == second.history
    assert torch.equal(first.states[0], second.states[0])


def test_one_state_is_a_fit_with_noise_of_its_own():
    points, _ = cases.switching(0, n_states=1, lengths=(100,))
    tied, apart = (fit(points, [100], cases.prior(1, tied=kind))[0] for kind in (True, False))
    assert tied.bound == pytest.approx(apart.bound, rel=1e-12)
    for got, want in zip(
        tied.posterior.state_dynamics, apart.posterior.state_dynamics, strict=True
    ):
        torch.testing.assert_close(got, want)
