# SPDX-License-Identifier: BSD-3-Clause
import math

import numpy as np
import pytest
import torch

from sksvae.autoregressive_hmm import (
    choose_prior,
    fit_autoregressive_hmm,
    point_sequences,
)
from sksvae.autoregressive_hmm.model import Problem
from sksvae.autoregressive_hmm.pooling import pooled_priors, pooling_price
from sksvae.expfam import TiedMNIWParams
from sksvae.graphical import DynamicsPrior, SwitchingPrior

from . import cases

WEIGHTS = (1.0, 4.0, 16.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weak_prior(n_states, dim, **options):
    dynamics = DynamicsPrior.isotropic(
        dim, persistence=0.0, transition_precision=1e-6, noise_scale=1e-6
    )
    return SwitchingPrior.sticky(n_states, dynamics, **options)


def regression(points, lengths):
    """Coefficients, covariance of residuals and mean second moment of regressors."""
    sequences = np.split(points.numpy(), np.cumsum(lengths)[:-1])
    before = np.vstack([z[:-1] for z in sequences])
    after = np.vstack([z[1:] for z in sequences])
    regressors = np.column_stack([before, np.ones(len(before))])
    coefficients = np.linalg.lstsq(regressors, after, rcond=None)[0].T
    residuals = after - regressors @ coefficients.T
    n = len(before)
    return coefficients, residuals.T @ residuals / n, regressors.T @ regressors / n


@pytest.mark.parametrize("tied", [False, True])
def test_each_state_is_expected_to_move_as_all_do(tied):
    lengths = [300, 1, 200]
    points, _ = cases.switching(0, lengths=lengths)
    parts = point_sequences(points, lengths).parts
    problem = Problem.build(parts, weak_prior(3, 2, tied=tied))
    coefficients, noise, second = regression(points, lengths)
    priors = pooled_priors(problem, WEIGHTS)
    assert len(priors) == len(WEIGHTS)
    for weight, prior in zip(WEIGHTS, priors, strict=True):
        assert isinstance(prior.dynamics, TiedMNIWParams) == tied
        scale, mean, precision, dof = (field[-1].numpy() for field in prior.state_dynamics)
        np.testing.assert_allclose(mean, coefficients, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scale / (dof - 3), noise, rtol=0.02)
        np.testing.assert_allclose(precision / weight, second, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(prior.transitions, problem.prior.transitions)


def test_latents_that_are_turned_and_scaled_have_the_same_evidence():
    # Bounds differ by the log volume of the map for each transition; a prior around zero asks
    # for units.
    lengths, map_ = [400], torch.tensor([[30.0, 4.0], [0.0, 0.02]], dtype=torch.float64)
    points, states = cases.switching(1, lengths=lengths)

    def bound(z, pooled):
        problem = Problem.build(point_sequences(z, lengths).parts, weak_prior(3, 2))
        if pooled:
            problem = problem.under(pooled_priors(problem, [4.0])[0])
        start = problem.with_labels(torch.tensor(states))
        return problem.ascend(start, 20, 1e-6)[0].bound - problem.initial_evidence

    shift = 399 * float(torch.linalg.slogdet(map_)[1])
    assert bound(points @ map_.T + 5.0, True) + shift == pytest.approx(bound(points, True), abs=0.5)
    assert abs(bound(points @ map_.T + 5.0, False) + shift - bound(points, False)) > 5


def test_what_outweighs_the_steps_is_left_out():
    points, _ = cases.switching(0, lengths=[13])
    for lengths, n_priors in (([13], 2), ([1] * 13, 0)):
        problem = Problem.build(point_sequences(points, lengths).parts, weak_prior(3, 2))
        assert len(pooled_priors(problem, WEIGHTS)) == n_priors


def like_states(lengths, dim=6, n_states=4):
    """States that differ a little from dynamics which they share, in units of their own."""
    rng = np.random.default_rng(0)
    shared = 0.9 * np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    A = shared + 0.1 * rng.standard_normal((n_states, dim, dim))
    A /= np.maximum(abs(np.linalg.eigvals(A)).max(-1), 0.95)[:, None, None] / 0.95
    b, units = rng.standard_normal((n_states, dim)), np.geomspace(0.03, 30, dim)
    points = []
    for length in lengths:
        z = np.zeros(dim)
        for t in range(length):
            k = t // 40 % n_states
            z = A[k] @ z + b[k] + 0.3 * rng.standard_normal(dim)
            points.append(units * z)
    return torch.tensor(np.array(points))


def held_out(train, test, prior):
    """What states that are fitted to some steps say of others, whose states they find."""
    fit = fit_autoregressive_hmm(train, prior, n_starts=3, generator=generator())
    problem = Problem.build(test, weak_prior(prior.n_states, prior.initial.mean.shape[0]))
    parts = list(zip(prior.families, fit.posterior, problem.prior, strict=True))
    penalty = sum(float(family.standard_kl(q, p).sum()) for family, q, p in parts[1:])
    return problem.expect(fit.posterior).bound + penalty


def test_pooling_is_chosen_where_it_tells_more_of_new_steps():
    points = like_states([800, 400])
    train, test = (point_sequences(z, [len(z)]).parts for z in points.split([800, 400]))
    priors = [
        SwitchingPrior.sticky(4, DynamicsPrior.isotropic(6, persistence=0.0, noise_scale=scale))
        for scale in (1.0, 0.1, 1e-3)
    ]
    alone = choose_prior(train, priors, generator=generator())
    pooled = choose_prior(train, priors, pooled_weights=WEIGHTS, generator=generator())
    assert any(alone is prior for prior in priors)
    assert float(pooled.dynamics.dof[0]) - 7 in WEIGHTS
    assert held_out(train, test, pooled) > held_out(train, test, alone) + 20


@pytest.mark.parametrize("n_steps", [100, 400])
def test_pooling_is_not_chosen_where_there_is_nothing_to_share(n_steps):
    points = torch.as_tensor(np.random.default_rng(0).standard_normal((n_steps, 6)))
    prior = SwitchingPrior.sticky(1, DynamicsPrior.isotropic(6, persistence=0.0))
    parts = point_sequences(points, [n_steps]).parts
    chosen = choose_prior(parts, [prior], pooled_weights=WEIGHTS, generator=generator())
    assert chosen is prior


@pytest.mark.parametrize("seed", range(3))
def test_no_states_are_made_up(seed):
    points, _ = cases.switching(seed, n_states=2, lengths=[600])
    parts = point_sequences(points, [600]).parts
    problem = Problem.build(parts, weak_prior(6, 2))
    for prior in pooled_priors(problem, [1.0, 16.0]):
        fit = fit_autoregressive_hmm(parts, prior, n_starts=4, generator=generator())
        used = [int((fit.states[0][0].argmax(-1) == k).sum()) for k in range(6)]
        assert sum(n > 12 for n in used) == 2


def test_the_price_is_that_of_its_numbers():
    # Two by two of A, two of b, three of Q.
    assert pooling_price(2, 500) == pytest.approx(4.5 * math.log(500))


def test_a_prior_keeps_the_type_of_the_others():
    lengths = [800]
    points = like_states(lengths).float()
    prior = SwitchingPrior.sticky(
        4, DynamicsPrior.isotropic(6, persistence=0.0, dtype=torch.float32)
    )
    chosen = choose_prior(
        point_sequences(points, lengths).parts,
        [prior],
        pooled_weights=WEIGHTS,
        generator=generator(),
    )
    assert chosen is not prior
    assert {field.dtype for part in chosen for field in part} == {torch.float32}
