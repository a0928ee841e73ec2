# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics: inference in sequences given q(theta)."""

import dataclasses

import numpy as np
import pytest
import torch

from sksvae.expfam import MNIW, NIW, Dirichlet
from sksvae.graphical import (
    SEQUENCE_MODELS,
    Potentials,
    SwitchingDynamicsModel,
    SwitchingPosterior,
)
from sksvae.inference import FixedPointSettings, draw_paths
from tests.graphical.dynamics_cases import (
    LOCAL,
    assert_close,
    normal,
    random_evidence,
    surrogate,
    take,
)
from tests.graphical.switching_cases import (
    LENGTHS,
    TIGHT,
    best_gaussian,
    converted,
    divergence,
    enumerate_paths,
    expected_log_densities,
    infer,
    log_evidence,
    path_probabilities,
    random_model,
)

EXACT = {"rtol": 1e-9, "atol": 1e-10}
BATCHED = [field.name for field in dataclasses.fields(SwitchingPosterior) if field.name != "draws"]


def test_the_model_is_registered():
    assert SEQUENCE_MODELS["switching_dynamics"] is SwitchingDynamicsModel


def assert_equal_posteriors(got, want, **tolerance):
    for field in dataclasses.fields(want):
        assert_close(getattr(got, field.name), getattr(want, field.name), **tolerance)


@pytest.mark.parametrize("gradient", ["cg", "unrolled"])
def test_accelerated_updates_end_at_the_same_point_sooner(gradient):
    model, (potentials, mask) = random_model(4, 2), random_evidence([40, 25, 33], 2)
    plain = FixedPointSettings(max_updates=1000, tol=1e-9, gradient=gradient)
    want = infer(model, potentials, mask, plain)
    got = infer(model, potentials, mask, dataclasses.replace(plain, accelerate=True))
    assert_close(got.states, want.states, rtol=1e-7, atol=1e-7)
    assert_close(got.local_kl, want.local_kl, rtol=1e-9, atol=1e-9)
    # Unrolled updates are differentiated as they are.
    sooner = 0.75 * want.n_updates if gradient == "cg" else want.n_updates
    assert (got.n_updates <= sooner).all()


# Against enumeration of all paths ----------------------------------------------------------------


@pytest.mark.parametrize(("n_states", "dim", "n_steps"), [(3, 2, 4), (2, 1, 6), (4, 1, 1)])
def test_posteriors_solve_the_fixed_point_equations_of_the_dense_joint(n_states, dim, n_steps):
    model = random_model(n_states, dim)
    potentials, mask = random_evidence([n_steps], dim)
    posterior = infer(model, potentials, mask)
    assert posterior.converged.all()
    every = enumerate_paths(model, n_steps)
    q = path_probabilities(every, posterior, 0)
    for t in range(n_steps):
        marginals = np.bincount(every.paths[:, t], q, n_states)
        assert_close(posterior.states[0, t].detach().numpy(), marginals, **EXACT)
    counts = np.zeros((n_states, n_states))
    for a, b in zip(every.paths[:, :-1].T, every.paths[:, 1:].T, strict=True):
        np.add.at(counts, (a, b), q)
    assert_close(posterior.pair_counts[0].numpy(), counts, **EXACT)
    # q(z) given q(k), and back
    mean, covariance, _ = best_gaussian(every, q, *take(potentials, mask, 0))
    blocks = covariance.reshape(n_steps, dim, n_steps, dim).swapaxes(1, 2)
    steps = np.arange(n_steps)
    assert_close(posterior.mean[0].detach().numpy().ravel(), mean, **EXACT)
    assert_close(posterior.covariance[0].detach().numpy(), blocks[steps, steps], **EXACT)
    lag = posterior.lag_covariance[0].detach().numpy()
    assert_close(lag, blocks[steps[1:], steps[:-1]], **EXACT)
    log_q = every.log_prior + expected_log_densities(every, mean, covariance)
    assert_close(np.exp(log_q - np.logaddexp.reduce(log_q)), q, **EXACT)


@pytest.mark.parametrize("max_updates", [1, 2, 5000])
def test_local_kl_is_that_of_the_dense_joint(max_updates):
    """Whether or not inference has converged."""
    model, n_steps = random_model(), 4
    potentials, mask = random_evidence([n_steps])
    settings = dataclasses.replace(TIGHT, max_updates=max_updates)
    posterior = infer(model, potentials, mask, settings)
    assert posterior.converged.item() == (max_updates == 5000)
    every = enumerate_paths(model, n_steps)
    q = path_probabilities(every, posterior, 0)
    mean, covariance, _ = best_gaussian(every, q, *take(potentials, mask, 0))
    want = divergence(every, q, mean, covariance)
    assert posterior.local_kl.item() == pytest.approx(want, abs=1e-9)


def test_local_kl_is_the_kl_monte_carlo():
    """Over draws of latents, states and theta."""
    model, n_steps, n_draws = random_model(), 3, 20_000
    potentials, mask = random_evidence([n_steps])
    params = model.expected_params()
    noise = normal(n_draws, 1, n_steps, 2, seed=5)
    posterior = model.infer(potentials, params, mask, noise, settings=TIGHT)
    generator = torch.Generator().manual_seed(0)
    log_pi = [field.detach() for field in params[8:]]
    paths = draw_paths(*log_pi, posterior.energies, n_draws, generator)[:, 0]
    every = enumerate_paths(model, n_steps)
    q = torch.from_numpy(path_probabilities(every, posterior, 0))
    log_q_k = q[(paths * torch.tensor([9, 3, 1])).sum(-1)].log()
    _, _, joint = best_gaussian(every, q.numpy(), *take(potentials, mask, 0))
    q_z = torch.distributions.MultivariateNormal(
        posterior.mean[0].detach().flatten(), precision_matrix=torch.from_numpy(joint)
    )
    initial, dynamics, first, table = model.posterior
    z = posterior.draws[:, 0].detach()
    normals = torch.distributions.MultivariateNormal
    log_p = normals(*NIW().sample(initial, (n_draws,), generator)).log_prob(z[:, 0])
    X, Q = MNIW().sample(dynamics, (n_draws,), generator)
    pi_0 = Dirichlet().sample(first, (n_draws,), generator)
    pi = Dirichlet().sample(table, (n_draws,), generator)
    each = torch.arange(n_draws)
    log_p = log_p + pi_0[each, paths[:, 0]].log()
    for t in range(1, n_steps):
        k = paths[:, t]
        regressors = torch.cat([z[:, t - 1], torch.ones(n_draws, 1).double()], -1)
        mean = (X[each, k] @ regressors.unsqueeze(-1)).squeeze(-1)
        log_p = log_p + normals(mean, Q[each, k]).log_prob(z[:, t])
        log_p = log_p + pi[each, paths[:, t - 1], k].log()
    values = q_z.log_prob(z.flatten(1)) + log_q_k - log_p
    error = values.std() / n_draws**0.5
    assert abs(values.mean() - posterior.local_kl.item()) < 5 * error
    assert error < 0.05


def test_the_surrogate_is_a_local_maximum_below_the_evidence():
    """No other q(k), with the best q(z) for it, does better nearby."""
    model, n_steps = random_model(), 4
    potentials, mask = random_evidence([n_steps])
    posterior = infer(model, potentials, mask)
    every, evidence = enumerate_paths(model, n_steps), take(potentials, mask, 0)
    best = surrogate(potentials, posterior).item()
    q = path_probabilities(every, posterior, 0)

    def bound(q):
        mean, covariance, _ = best_gaussian(every, q, *evidence)
        r, R = (field.ravel() for field in evidence)
        expected = r @ mean - 0.5 * R @ (mean**2 + np.diag(covariance))
        return expected - divergence(every, q, mean, covariance)

    assert bound(q) == pytest.approx(best, abs=1e-9)
    for seed in range(20):
        other = q * np.exp(0.3 * normal(len(q), seed=seed).numpy())
        assert bound(other / other.sum()) < best
    evidence = log_evidence(every, *evidence)
    assert evidence - 2.0 < best < evidence  # and a bound of some use


def test_the_most_probable_path_is_that_of_all():
    model, n_steps = random_model(), 4
    potentials, mask = random_evidence([n_steps, 2])
    posterior = infer(model, potentials, mask)
    paths = model.most_probable_path(posterior)
    assert torch.equal(paths, model.most_probable_path(posterior, model.expected_params()))
    for n, length in enumerate([n_steps, 2]):
        every = enumerate_paths(model, length)
        energies = posterior.energies[n, :length].numpy()
        log_q = every.log_prior + energies[np.arange(length), every.paths].sum(-1)
        assert paths[n, :length].tolist() == every.paths[log_q.argmax()].tolist()
        assert (paths[n, length:] == -1).all()


# The divergence, step by step --------------------------------------------------------------------


@pytest.mark.parametrize("max_updates", [1, 5000])
@pytest.mark.parametrize("n_states", [1, 3])
def test_terms_sum_to_local_kl_at_any_q(max_updates, n_states):
    model = random_model(n_states)
    potentials, mask = random_evidence([*LENGTHS, 0])
    params = model.expected_params()
    settings = dataclasses.replace(TIGHT, max_updates=max_updates)
    posterior = model.infer(potentials, params, mask, settings=settings)
    terms = model.local_kl_terms(posterior, params)
    assert not terms.requires_grad
    assert (terms[~mask] == 0).all()
    assert_close(terms.sum(-1), posterior.local_kl.detach(), rtol=1e-12, atol=1e-11)


def test_terms_are_divergences_and_largest_at_a_surprise():
    """Each is one of conditional densities, of which the expected ones integrate to less."""
    model = random_model()
    (r, R), mask = random_evidence([6], unobserved=0.0)
    params = model.expected_params()
    terms = model.local_kl_terms(infer(model, Potentials(r, R), mask), params)
    assert (terms > 0).all()
    surprising = r.clone()
    surprising[:, 4] += 20 * R[:, 4]
    moved = model.local_kl_terms(infer(model, Potentials(surprising, R), mask), params)
    assert moved[0].argmax() == 4


def test_terms_in_single_precision_of_precise_dynamics():
    model = random_model()
    dynamics = model.posterior.dynamics
    dynamics = dynamics._replace(scale=1e-3 * dynamics.scale)
    model.posterior = model.posterior._replace(dynamics=dynamics)
    potentials, mask = random_evidence([20] * 3, unobserved=0.5)
    want = infer(model, potentials, mask, FixedPointSettings())
    single = converted(model, torch.float32)
    got = infer(single, Potentials(*(f.float() for f in potentials)), mask, FixedPointSettings())
    terms = single.local_kl_terms(got, single.expected_params())
    assert terms.dtype == torch.float32
    assert_close(terms.sum(-1).double(), want.local_kl.detach(), rtol=1e-2, atol=0.5)


# Symmetry and precision --------------------------------------------------------------------------


def test_permuting_states_permutes_everything():
    model, order = random_model(4), torch.tensor([2, 0, 3, 1])
    potentials, mask = random_evidence(LENGTHS)
    got, want = infer(model.select(order), potentials, mask), infer(model, potentials, mask)
    for name in (*LOCAL, "n_updates", "converged"):
        assert_close(getattr(got, name), getattr(want, name), **EXACT)
    assert_close(got.states, want.states[..., order], **EXACT)
    assert_close(got.energies, want.energies[..., order], **EXACT)
    assert_close(got.pair_counts, want.pair_counts[:, order][:, :, order], **EXACT)
    paths = model.select(order).most_probable_path(got)
    assert torch.equal(order[paths][mask], model.most_probable_path(want)[mask])
    assert_close(model.select(order).prior_kl(), model.prior_kl())


def test_single_precision_agrees_with_double():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    settings = FixedPointSettings(tol=1e-5)
    single = converted(model, torch.float32)
    floats = Potentials(*(field.float() for field in potentials))
    got = infer(single, floats, mask, settings)
    want = infer(model, potentials, mask)
    for name in (*LOCAL, "states", "energies", "pair_counts"):
        assert getattr(got, name).dtype == torch.float32
        assert_close(getattr(got, name).double(), getattr(want, name), rtol=1e-3, atol=1e-3)
    for a, b in zip(single.total_stats(got), model.total_stats(want), strict=True):
        assert a.dtype == torch.float32
        assert_close(a.double(), b, rtol=1e-3, atol=1e-2)


def test_precise_potentials_in_single_precision():
    model = random_model(3, 3, certainty=10.0)
    (r, R), mask = random_evidence([100] * 2, 3, unobserved=0.0)
    potentials = Potentials(1e4 * r, 1e4 * R)
    want = infer(model, potentials, mask)
    single = converted(model, torch.float32)
    floats = Potentials(*(field.float() for field in potentials))
    got = infer(single, floats, mask, FixedPointSettings(tol=1e-5))
    assert ((got.local_kl - want.local_kl).abs() < 1e-3 * 100).all()


def test_local_kl_is_not_negative():
    model = random_model()
    potentials, mask = random_evidence([7] * 8)
    for exponent in range(-8, 9, 4):
        scaled = Potentials(*(10.0**exponent * field for field in potentials))
        assert (infer(model, scaled, mask, FixedPointSettings()).local_kl >= 0).all()
