# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics: gradients, learning of q(theta), its point parameters and state."""

import dataclasses
import itertools

import pytest
import torch

from sksvae.expfam import MNIW, NIW, Dirichlet
from sksvae.graphical import DynamicsPrior, Potentials, SwitchingDynamicsModel, SwitchingPrior
from sksvae.inference import FixedPointSettings
from tests.graphical.dynamics_cases import LOCAL, assert_close, normal, random_evidence, surrogate
from tests.graphical.switching_cases import (
    LENGTHS,
    TIGHT,
    converted,
    infer,
    random_model,
    switching_data,
)

EXACT = {"rtol": 1e-9, "atol": 1e-10}


# Gradients ---------------------------------------------------------------------------------------


def objective(posterior):
    """Something that depends on all that has a gradient."""
    weights = torch.linspace(-1, 1, posterior.states.shape[-1], dtype=posterior.mean.dtype)
    values = (
        posterior.draws.sin().sum(),
        (posterior.states * weights).sin().sum(),
        posterior.covariance.sum(),
        posterior.lag_covariance.cos().sum(),
    )
    return sum(values) - posterior.local_kl.sum()


def gradients(
    model,
    potentials,
    mask,
    gradient,
    settings=TIGHT,
    function=lambda potentials, posterior: objective(posterior),
):
    leaves = Potentials(*(field.clone().requires_grad_() for field in potentials))
    params = model.expected_params()
    noise = normal(2, *mask.shape, model.latent_dim, seed=3).to(leaves.precision)
    settings = dataclasses.replace(settings, gradient=gradient)
    posterior = model.infer(leaves, params, mask, noise, settings=settings)
    return torch.autograd.grad(function(leaves, posterior), [*leaves, *params])


def relative_errors(got, want):
    return torch.stack(
        [(a - b).abs().max() / b.abs().max() for a, b in zip(got, want, strict=True)]
    )


def test_implicit_gradients_are_those_through_all_rounds():
    """In potentials and all parameters, where states are far from sure."""
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    want = gradients(model, potentials, mask, "unrolled")
    for method in ("cg", "richardson"):
        assert relative_errors(gradients(model, potentials, mask, method), want).max() < 1e-9
    # which a single round more would not do
    errors = relative_errors(gradients(model, potentials, mask, "none"), want)
    assert errors.max() > 1e-2


def test_a_gradient_may_be_taken_twice():
    """Though each solve leaves sequences out as they are done."""
    model = random_model()
    potentials, mask = random_evidence([2, 3, 6, 6, 2, 2, 2, 2])
    leaves = Potentials(*(field.clone().requires_grad_() for field in potentials))
    noise = normal(1, *mask.shape, 2, seed=3)
    posterior = model.infer(leaves, model.expected_params(), mask, noise, settings=TIGHT)
    value = objective(posterior)
    first, second = (torch.autograd.grad(value, leaves, retain_graph=True) for _ in range(2))
    for got, want in zip(second, first, strict=True):
        assert_close(got, want, **EXACT)


def test_gradients_agree_with_finite_differences():
    model = random_model(2, dim=1)
    (r, R), mask = random_evidence([4, 2], dim=1, unobserved=0.0)
    leaves = [torch.where(mask[..., None], f, 1.0).requires_grad_() for f in (r, R.log())]
    noise = normal(1, *r.shape, seed=3)

    def everything(r, log_R, *params):
        evidence = Potentials(r, log_R.exp())
        posterior = model.infer(evidence, params, mask, noise, "auto", TIGHT)
        return tuple(getattr(posterior, name) for name in (*LOCAL, "states", "draws"))

    inputs = (*leaves, *model.expected_params())
    assert torch.autograd.gradcheck(
        everything, inputs, atol=1e-6, check_undefined_grad=False, fast_mode=True
    )


def test_the_gradient_of_the_surrogate_needs_no_implicit_part():
    """The envelope identity: the cotangent of q(k) vanishes at a fixed point."""
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    posterior = infer(model, potentials, mask)
    second = posterior.covariance.diagonal(dim1=-2, dim2=-1) + posterior.mean.square()
    wanted = posterior.mean, -0.5 * second, *model.total_stats(posterior)
    for method in ("cg", "richardson", "none", "unrolled"):
        got = gradients(
            model, potentials, mask, method, function=lambda r, q: surrogate(r, q).sum()
        )
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b.detach(), **EXACT)


def test_total_stats_are_the_gradient_of_the_surrogate():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()
    posterior = model.infer(potentials, params, mask, settings=TIGHT)
    gradient = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
    for got, want in zip(model.total_stats(posterior), gradient, strict=True):
        assert not got.requires_grad
        assert_close(got, want, **EXACT)
    assert_close(gradient[0], gradient[0].mT)
    assert_close(gradient[4], gradient[4].mT)


def test_nothing_flows_to_steps_that_do_not_exist():
    model = random_model()
    potentials, mask = random_evidence([4, 2, 0])
    got = gradients(model, potentials, mask, "cg")
    for gradient in got[:2]:
        assert (gradient[~mask] == 0).all()
        assert gradient.isfinite().all()
    unobserved = (potentials.precision == 0) & mask.unsqueeze(-1)
    assert unobserved.any()
    assert (got[1][unobserved] != 0).all()  # what an encoder would need to know


def test_gradients_of_a_sequence_do_not_depend_on_the_others():
    model = random_model()
    potentials, mask = random_evidence([6, 6, 3])
    noise = normal(2, *mask.shape, 2, seed=3)

    def potentials_gradient(rows):
        leaves = Potentials(*(field[rows].clone().requires_grad_() for field in potentials))
        params = model.expected_params()
        posterior = model.infer(leaves, params, mask[rows], noise[:, rows], "sequential")
        return torch.autograd.grad(objective(posterior), leaves)

    together = potentials_gradient(torch.arange(3))
    for n in range(3):
        alone = potentials_gradient(torch.tensor([n]))
        for got, want in zip(alone, together, strict=True):
            assert_close(got[0], want[n], **EXACT)


@pytest.mark.parametrize("gradient", ["cg", "richardson", "none", "unrolled"])
def test_only_unrolled_memory_grows_with_the_number_of_updates(gradient):
    model = random_model()
    potentials, mask = random_evidence([6] * 4)
    leaves = Potentials(*(field.requires_grad_() for field in potentials))

    def saved(max_updates):
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        settings = FixedPointSettings(max_updates, 0.0, gradient)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            posterior = model.infer(leaves, model.expected_params(), mask, settings=settings)
            # The hook of the backward pass builds one more graph.
            posterior.mean.sum().backward()
        return kept

    few, many = saved(4), saved(40)
    assert many > 4 * few if gradient == "unrolled" else many <= 2 * few


def test_without_gradients_nothing_is_recorded():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    params = tuple(param.detach() for param in model.expected_params())
    for gradient in ("cg", "unrolled"):
        settings = dataclasses.replace(TIGHT, gradient=gradient)
        posterior = model.infer(potentials, params, mask, settings=settings)
        assert not posterior.mean.requires_grad
        assert not posterior.local_kl.requires_grad


def test_single_precision_gradients_agree_with_double():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    want = gradients(model, potentials, mask, "cg")
    single = converted(model, torch.float32)
    floats = Potentials(*(field.float() for field in potentials))
    settings = FixedPointSettings(tol=1e-5, solver_tol=1e-5)
    got = gradients(single, floats, mask, "cg", settings)
    assert all(gradient.dtype == torch.float32 for gradient in got)
    assert relative_errors([g.double() for g in got], want).max() < 1e-2


# Learning ----------------------------------------------------------------------------------------


def clone(model):
    return SwitchingDynamicsModel.from_state(model.state())


def test_expected_params_are_those_of_the_families():
    model = random_model()
    params = model.expected_params()
    families = NIW(), MNIW(), Dirichlet(), Dirichlet()
    wanted = [
        field
        for family, part in zip(families, model.posterior, strict=True)
        for field in family.expected_stats(family.to_natural(part))
    ]
    assert [tuple(param.shape) for param in params[8:]] == [(3,), (3, 3)]
    for got, want in zip(params, wanted, strict=True):
        assert got.is_leaf
        assert got.requires_grad
        assert_close(got.detach(), want)


def test_a_full_natural_step_is_the_coordinate_update():
    """With the statistics, and with the gradient of the bound on the potentials."""
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()
    posterior = model.infer(potentials, params, mask, settings=TIGHT)
    stats = model.total_stats(posterior)
    gradient = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
    want = clone(model)
    want.coordinate_update(stats)
    for direction in (stats, gradient):
        got = clone(model)
        got.natural_step(direction, 1.0)
        for name, value in got.state().items():
            assert_close(value, want.state()[name], rtol=1e-8, atol=1e-8)


def test_without_data_a_full_natural_step_returns_to_the_prior():
    model = random_model()
    assert model.prior_kl() > 1
    model.natural_step([torch.zeros_like(param) for param in model.expected_params()], 1.0)
    assert model.prior_kl().abs() < 1e-9


def test_prior_kl_agrees_with_monte_carlo():
    model, n_draws = random_model(), 20_000
    generator = torch.Generator().manual_seed(0)
    values = 0.0
    families = NIW(), MNIW(), Dirichlet(), Dirichlet()
    for family, q, p in zip(families, model.posterior, model.prior, strict=True):
        draws = family.sample(q, (n_draws,), generator)
        for sign, standard in ((1, q), (-1, p)):
            log_prob = family.log_prob(family.to_natural(standard), draws)
            values = values + sign * log_prob.view(n_draws, -1).sum(-1)
    assert (values.mean() - model.prior_kl()).abs() < 5 * values.std() / n_draws**0.5


def learning_model(n_states=3):
    """Prior with states made unequal by a first guess, as nothing else breaks their symmetry."""
    model = SwitchingDynamicsModel(
        SwitchingPrior.sticky(n_states, DynamicsPrior.isotropic(2), stickiness=10.0)
    )
    dynamics = model.prior.dynamics
    mean = dynamics.mean + 0.5 * normal(*dynamics.mean.shape, seed=1)
    model.posterior = model.prior._replace(
        dynamics=dynamics._replace(mean=mean, dof=dynamics.dof + 20, scale=5 * dynamics.scale)
    )
    return model


def test_variational_em_never_lowers_the_bound():
    _, potentials, _ = switching_data(40)
    mask = torch.arange(40) < torch.tensor([40, 25, 1])[:, None]
    model, start = learning_model(), None
    bounds = []
    for _ in range(12):
        with torch.no_grad():
            posterior = infer(model, potentials, mask, FixedPointSettings(1000, 1e-7), start=start)
        assert posterior.converged.all()
        bounds.append((surrogate(potentials, posterior).sum() - model.prior_kl()).item())
        model.coordinate_update(model.total_stats(posterior))
        start = posterior.states
    assert all(after >= before - 1e-8 for before, after in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0] + 20


def test_the_truth_tells_states_apart():
    truth, potentials, states = switching_data()
    mask = torch.ones(states.shape, dtype=torch.bool)
    posterior = truth.infer_best(potentials, truth.expected_params(), mask)
    path = truth.most_probable_path(posterior)
    # The first state shows in nothing but the second, and single steps look alike.
    assert (path == states)[:, 1:].double().mean() > 0.85


def test_certain_latents_and_states_give_bayesian_regression():
    """Each state learns from the transitions into its own steps only."""
    truth, _, _ = switching_data()
    z, states = truth.sample(60, 1, torch.Generator().manual_seed(3))
    R = torch.full_like(z, 1e10)
    model = SwitchingDynamicsModel(SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2)))
    mask = torch.ones(1, 60, dtype=torch.bool)
    posterior = infer(model, Potentials(R * z, R), mask)
    known = torch.nn.functional.one_hot(states, 3).double()
    counts = known[:, :-1].mT @ known[:, 1:]
    known = dataclasses.replace(posterior, states=known, pair_counts=counts)
    model.coordinate_update(model.total_stats(known))
    y = torch.cat([z[0, :-1], torch.ones(59, 1, dtype=z.dtype)], -1)
    for k in range(3):
        S, M, V, nu = (field[k] for field in model.prior.dynamics)
        mine = states[0, 1:] == k
        Y, x = y[mine], z[0, 1:][mine]
        V_new = V + Y.T @ Y
        M_new = (M @ V + x.T @ Y) @ torch.linalg.inv(V_new)
        S_new = S + x.T @ x + M @ V @ M.T - M_new @ V_new @ M_new.T
        wanted = S_new, M_new, V_new, nu + mine.sum()
        for got, want in zip(model.posterior.dynamics, wanted, strict=True):
            assert_close(got[k], want, rtol=1e-7, atol=1e-7)
    first = model.posterior.initial_states.concentration - model.prior.initial_states.concentration
    assert_close(first, torch.nn.functional.one_hot(states[0, 0], 3).double())
    moved = model.posterior.transitions.concentration - model.prior.transitions.concentration
    assert moved.sum() == pytest.approx(59)


# Parameters and state ----------------------------------------------------------------------------


def test_point_parameters_and_their_statistics():
    model = random_model()
    initial, dynamics, _, table = model.posterior
    point = model.point_parameters()
    regression = torch.cat([point.transition_matrices, point.offsets.unsqueeze(-1)], -1)
    assert_close(regression, dynamics.mean)
    params = model.expected_params()
    assert_close(point.noise_covariances, torch.linalg.inv(params[4]).detach())
    assert_close(point.initial_covariance, torch.linalg.inv(params[0]).detach())
    assert_close(point.initial_mean, initial.mean)
    assert_close(point.initial_state_probabilities.sum(), torch.ones(()).double())
    rows = table.concentration / table.concentration.sum(1, keepdim=True)
    assert_close(point.state_transition_probabilities, rows)
    assert_close(point.spectral_radii, torch.full((3,), 0.9).double())
    # Where q(theta) is certain, expected statistics are those of the point parameters.
    sure = random_model(certainty=1e9)
    pairs = zip(sure.point_stats(), sure.expected_params(), strict=True)
    for got, want in pairs:
        assert not got.requires_grad
        assert_close(got, want.detach(), rtol=1e-6, atol=1e-6)


def test_inference_with_point_parameters():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    known = model.infer(potentials, model.point_stats(), mask, settings=TIGHT)
    unsure = infer(model, potentials, mask)
    assert known.converged.all()
    assert (known.local_kl < unsure.local_kl).all()


def test_state_round_trip():
    model = random_model()
    again = clone(model)
    assert (again.n_states, again.latent_dim) == (model.n_states, model.latent_dim) == (3, 2)
    potentials, mask = random_evidence(LENGTHS)
    first, second = infer(model, potentials, mask), infer(again, potentials, mask)
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))
    for name, value in again.state().items():
        assert torch.equal(value, model.state()[name])


def test_a_state_is_not_changed_by_learning():
    model = random_model()
    state = model.state()
    kept = {name: value.clone() for name, value in state.items()}
    potentials, mask = random_evidence(LENGTHS)
    stats = model.total_stats(infer(model, potentials, mask))
    model.natural_step(stats, 0.3)
    model.coordinate_update(stats)
    assert all(torch.equal(state[name], kept[name]) for name in state)
    assert any(not torch.equal(model.state()[name], kept[name]) for name in kept)


def test_selected_states_keep_their_parameters():
    model = random_model(4)
    some = model.select(torch.tensor([3, 1]))
    assert some.n_states == 2
    got, want = some.point_parameters(), model.point_parameters()
    assert torch.equal(got.transition_matrices, want.transition_matrices[[3, 1]])
    table = want.state_transition_probabilities[[3, 1]][:, [3, 1]]
    table = table / table.sum(1, keepdim=True)
    assert_close(got.state_transition_probabilities, table)
    assert some.prior.transitions.concentration.shape == (2, 2)
