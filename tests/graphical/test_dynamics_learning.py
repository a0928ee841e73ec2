# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics: gradients, learning of q(theta), its point parameters and state."""

import dataclasses
import itertools

import pytest
import torch

from sksvae.expfam import MNIW, NIW, MNIWStats, NIWStats
from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials
from sksvae.graphical.gaussian_chain import chain_stats
from sksvae.graphical.transition_tables import NaturalTable
from tests.graphical.dynamics_cases import (
    LOCAL,
    assert_close,
    infer,
    normal,
    random_evidence,
    random_model,
    surrogate,
)

LENGTHS = [6, 1, 4, 2, 5]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


# Gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_gradients_agree_with_finite_differences(method):
    model = random_model()
    (r, R), mask = random_evidence([3, 2], unobserved=0.0)
    leaves = [torch.where(mask[..., None], f, 1.0).requires_grad_() for f in (r, R.log())]
    noise = normal(1, *r.shape, seed=3)

    def everything(r, log_R, *params):
        posterior = model.infer(Potentials(r, log_R.exp()), params, mask, noise, method)
        return tuple(getattr(posterior, name) for name in (*LOCAL, "draws"))

    inputs = (*leaves, *model.expected_params())
    assert torch.autograd.gradcheck(everything, inputs, atol=1e-6, check_undefined_grad=False)


def test_nothing_flows_to_steps_that_do_not_exist():
    model = random_model()
    potentials, mask = random_evidence([4, 2])
    leaves = Potentials(*(field.requires_grad_() for field in potentials))
    posterior = infer(model, leaves, mask, noise=normal(1, 2, 4, 2, seed=3))
    (posterior.draws.sin().sum() - posterior.local_kl.sum()).backward()
    for leaf in leaves:
        assert (leaf.grad[~mask] == 0).all()
        assert leaf.grad.isfinite().all()
    unobserved = leaves.precision.detach() == 0
    assert unobserved.any()
    assert (leaves.precision.grad[unobserved] != 0).all()  # what an encoder would need to know


def test_total_statsare_the_gradient_with_the_posterior_held_fixed():
    """Of ``E_q E_q(theta) log p(z | theta)``, with expected parameters in squares of residuals."""
    model, dim = random_model(3), 3
    potentials, mask = random_evidence(LENGTHS, dim)
    params = model.expected_params()
    posterior = model.infer(potentials, params, mask)
    mean, second, lag = (
        field.detach() for field in (posterior.mean, posterior.second_moment, posterior.lag_moment)
    )
    P0, h0, c0, l0, P, C, G, log_det = params
    value = torch.zeros((), dtype=torch.float64)
    for n, n_steps in enumerate(LENGTHS):
        value = value + 0.5 * (l0 - c0 - (P0 * second[n, 0]).sum()) + h0 @ mean[n, 0]
        for t in range(n_steps - 1):
            regressor = torch.cat([mean[n, t], mean.new_ones(1)])
            products = torch.outer(regressor, regressor)
            products[:dim, :dim] = second[n, t]
            cross = torch.cat([lag[n, t], mean[n, t + 1, :, None]], -1)
            squares = (P * second[n, t + 1]).sum() + (G * products).sum() - log_det
            value = value + (C * cross).sum() - 0.5 * squares
    fixed = torch.autograd.grad(value, params)
    total = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
    stats = model.total_stats(posterior)
    for got, by_hand, envelope in zip(stats, fixed, total, strict=True):
        assert not got.requires_grad
        assert_close(got, by_hand, **EXACT)
        assert_close(got, envelope, **EXACT)
        if got.ndim == 2 and got.shape[0] == got.shape[1]:
            assert_close(envelope, envelope.mT)


def test_statistics_of_several_dynamics_are_gradients():
    """With fractional weights, as where dynamics switch; so are expected log densities."""
    models = [random_model(seed=seed) for seed in (0, 20)]
    potentials, mask = random_evidence(LENGTHS)
    q = infer(models[0], potentials, mask)
    q = dataclasses.replace(q, **{name: getattr(q, name).detach() for name in LOCAL})
    moves = normal(len(LENGTHS), 5, 2, seed=4).softmax(-1) * (mask[:, 1:] & mask[:, :-1])[..., None]
    starts = torch.zeros(mask.shape, dtype=moves.dtype)
    starts[:, 0] = 1.0

    def value(initial, dynamics, moves):
        h, J, lower, constant = NaturalTable.build(initial, dynamics).chain(starts, moves)
        expected = (h * q.mean).sum() - 0.5 * (J.whole() * q.second_moment).sum()
        return expected - (lower.whole() * q.lag_moment).sum() + constant.sum()

    each = [model.expected_params() for model in models]
    initial = NIWStats(*each[0][:4])
    dynamics = MNIWStats(*(torch.stack(pair) for pair in zip(*(p[4:] for p in each), strict=True)))
    moves.requires_grad_()
    total = value(initial, dynamics, moves)
    gradient = torch.autograd.grad(total, (*initial, *dynamics, moves))
    stats = chain_stats(q, starts, moves.detach())
    for got, want in zip((*stats[0], *stats[1]), gradient[:-1], strict=True):
        assert_close(got, want, **EXACT)
    for k in range(2):
        only = torch.zeros_like(moves)
        only[0, 2, k] = 1.0
        alone = value(initial, dynamics, only) - value(initial, dynamics, 0 * only)
        assert_close(gradient[-1][0, 2, k], alone.detach(), **EXACT)


# Learning ----------------------------------------------------------------------------------------


def test_variational_em_never_lowers_the_bound():
    truth = random_model(2, certainty=100.0)
    z, _ = truth.sample(60, 4, torch.Generator().manual_seed(0))
    mask = torch.arange(60) < torch.tensor([60, 45, 30, 1])[:, None]
    R = torch.full_like(z, 20.0)
    potentials = Potentials(R * (z + normal(*z.shape, seed=1) / R.sqrt()), R)
    model = LinearDynamicsModel(DynamicsPrior.isotropic(2))
    bounds = []
    for _ in range(60):
        posterior = infer(model, potentials, mask)
        bounds.append((surrogate(potentials, posterior).sum() - model.prior_kl()).item())
        model.coordinate_update(model.total_stats(posterior))
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0] + 10
    got, want = model.point_parameters(), truth.point_parameters()
    assert_close(got.transition_matrix, want.transition_matrix, rtol=0.0, atol=0.15)
    assert model.spectral_radius == pytest.approx(0.95, abs=0.05)


def test_exact_observations_give_bayesian_regression():
    """Latents seen through precise potentials: the conjugate posterior of the textbook."""
    model = random_model(2)
    z = normal(1, 30, 2, seed=0)
    R = torch.full_like(z, 1e10)
    posterior = infer(model, Potentials(R * z, R), torch.ones(1, 30, dtype=torch.bool))
    model.coordinate_update(model.total_stats(posterior))
    Y = torch.cat([z[0, :-1], torch.ones(29, 1, dtype=z.dtype)], -1)
    S, M, V, nu = model.prior.dynamics
    V_new = V + Y.T @ Y
    M_new = (M @ V + z[0, 1:].T @ Y) @ torch.linalg.inv(V_new)
    S_new = S + z[0, 1:].T @ z[0, 1:] + M @ V @ M.T - M_new @ V_new @ M_new.T
    for got, want in zip(model.posterior.dynamics, (S_new, M_new, V_new, nu + 29), strict=True):
        assert_close(got, want, rtol=1e-7, atol=1e-7)
    assert model.posterior.initial.mean_precision == model.prior.initial.mean_precision + 1


def test_a_full_natural_step_is_the_coordinate_update():
    """With the statistics, and with the gradient of the bound on the potentials."""
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()
    posterior = model.infer(potentials, params, mask)
    gradient = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
    want = LinearDynamicsModel.from_state(model.state())
    want.coordinate_update(model.total_stats(posterior))
    model.natural_step(gradient, 1.0)
    for name, value in model.state().items():
        assert_close(value, want.state()[name], rtol=1e-9, atol=1e-9)


def test_without_data_a_full_natural_step_returns_to_the_prior():
    model = random_model()
    assert model.prior_kl() > 1
    model.natural_step([torch.zeros_like(param) for param in model.expected_params()], 1.0)
    assert model.prior_kl().abs() < 1e-9


def test_prior_kl_agrees_with_monte_carlo():
    model, n_draws = random_model(), 20_000
    generator = torch.Generator().manual_seed(0)
    values = 0.0
    for family, q, p in zip((NIW(), MNIW()), model.posterior, model.prior, strict=True):
        draws = family.sample(q, (n_draws,), generator)
        for sign, standard in ((1, q), (-1, p)):
            values = values + sign * family.log_prob(family.to_natural(standard), draws)
    assert (values.mean() - model.prior_kl()).abs() < 5 * values.std() / n_draws**0.5


# Parameters and state ----------------------------------------------------------------------------


def test_point_parameters_are_those_of_q_theta():
    model = random_model(3)
    initial, dynamics = model.posterior
    point = model.point_parameters()
    assert_close(torch.cat([point.transition_matrix, point.offset[:, None]], -1), dynamics.mean)
    precision = NIWStats(*model.expected_params()[:4]).precision
    assert_close(point.initial_covariance, torch.linalg.inv(precision).detach())
    assert_close(point.noise_covariance, torch.linalg.inv(model.expected_params()[4]).detach())
    assert_close(point.initial_mean, initial.mean)
    assert model.spectral_radius == pytest.approx(0.95)


def test_replaced_dynamics_are_exactly_the_given_ones():
    model = random_model()
    A, b = torch.tensor([[0.5, 0.1], [0.0, 1.2]]).double(), torch.tensor([1.0, 2.0]).double()
    Q = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    before = model.state()
    edited = model.replace_dynamics(transition_matrix=A, offset=b, noise_covariance=Q)
    point = edited.point_parameters()
    assert torch.equal(point.transition_matrix, A)
    assert torch.equal(point.offset, b)
    assert_close(point.noise_covariance, Q, rtol=1e-15, atol=0.0)
    for field in ("mean_precision", "dof"):
        got, want = (getattr(m.posterior.dynamics, field) for m in (edited, model))
        assert torch.equal(got, want)
    assert edited.spectral_radius == pytest.approx(1.2)
    assert all(torch.equal(before[name], value) for name, value in model.state().items())
    only = model.replace_dynamics(offset=[0.0, 1.0]).point_parameters()
    assert torch.equal(only.transition_matrix, model.point_parameters().transition_matrix)
    assert torch.equal(only.noise_covariance, model.point_parameters().noise_covariance)


def test_replacements_that_do_not_fit_are_an_error():
    model = random_model()
    with pytest.raises(ValueError, match=r"offset must be finite and of shape \(2,\), got \(3,\)"):
        model.replace_dynamics(offset=torch.zeros(3))
    with pytest.raises(ValueError, match="transition_matrix must be finite"):
        model.replace_dynamics(transition_matrix=torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="noise_covariance must be symmetric"):
        model.replace_dynamics(noise_covariance=torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(torch.linalg.LinAlgError, match="noise_covariance must be positive"):
        model.replace_dynamics(noise_covariance=-torch.eye(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_isotropic_prior(dtype):
    prior = DynamicsPrior.isotropic(
        3, persistence=0.0, transition_precision=2.0, noise_scale=0.5, noise_dof=9.0, dtype=dtype
    )
    eye = torch.eye(4, dtype=dtype)
    want = (0.5 * eye[:3, :3], 0 * eye[:3], 2 * eye, torch.tensor(9.0, dtype=dtype))
    for got, expected in zip(prior.dynamics, want, strict=True):
        assert_close(got, expected)
    assert all(field.dtype == dtype for part in prior for field in part)
    assert prior.initial.dof == 5
    assert LinearDynamicsModel(prior).latent_dim == 3


def test_state_round_trip():
    model = random_model()
    again = LinearDynamicsModel.from_state(model.state())
    potentials, mask = random_evidence(LENGTHS)
    first, second = infer(model, potentials, mask), infer(again, potentials, mask)
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))


def test_a_state_is_not_changed_by_learning():
    model = random_model()
    state = model.state()
    kept = {name: value.clone() for name, value in state.items()}
    potentials, mask = random_evidence(LENGTHS)
    stats = model.total_stats(infer(model, potentials, mask))
    model.natural_step(stats, 0.3)
    model.coordinate_update(stats)
    assert all(torch.equal(state[name], kept[name]) for name in state)
