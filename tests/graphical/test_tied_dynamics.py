# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics with one noise covariance; see test_sequence_contract.py for the rest."""

import pytest
import torch

from sksvae.expfam import MNIW, MNIWNatural, MNIWParams, TiedMNIW, TiedMNIWParams
from sksvae.graphical import DynamicsPrior, SwitchingDynamicsModel, SwitchingPrior
from tests.expfam.test_tied_mniw import stacked, stacked_natural
from tests.graphical.dynamics_cases import LOCAL, assert_close, random_evidence, surrogate
from tests.graphical.switching_cases import (
    LENGTHS,
    TIGHT,
    best_gaussian,
    converted,
    divergence,
    enumerate_paths,
    infer,
    path_probabilities,
    random_model,
)


def tied_model(n_states=3, **options):
    return random_model(n_states, tied=True, **options)


def clone(model):
    return SwitchingDynamicsModel.from_state(model.state())


# Inference ---------------------------------------------------------------------------------------


def test_inference_is_that_with_the_marginals_of_the_states():
    """q(theta) enters it through expected statistics alone; and by enumeration of paths."""
    model = tied_model()
    apart = SwitchingDynamicsModel(
        model.prior._replace(dynamics=model.prior.state_dynamics),
        model.posterior._replace(dynamics=model.posterior.state_dynamics),
    )
    for got, want in zip(model.expected_params(), apart.expected_params(), strict=True):
        assert got.is_leaf
        assert got.requires_grad
        assert_close(got.detach(), want.detach())
    potentials, mask = random_evidence([3])
    (r, R), posterior = potentials, infer(model, potentials, mask)
    every = enumerate_paths(model, 3)
    q = path_probabilities(every, posterior, 0)
    mean, covariance, _ = best_gaussian(every, q, r[0].numpy(), R[0].numpy())
    assert_close(posterior.mean[0].flatten(), torch.as_tensor(mean), rtol=1e-7, atol=1e-7)
    want = torch.as_tensor(divergence(every, q, mean, covariance))
    assert_close(posterior.local_kl[0], want, rtol=1e-7, atol=1e-7)


def test_one_state_is_a_model_with_noise_of_its_own():
    model = tied_model(1)
    apart = SwitchingDynamicsModel(
        model.prior._replace(dynamics=model.prior.state_dynamics),
        model.posterior._replace(dynamics=model.posterior.state_dynamics),
    )
    potentials, mask = random_evidence(LENGTHS)
    first, second = (infer(m, potentials, mask) for m in (model, apart))
    for field in LOCAL:
        assert_close(getattr(first, field), getattr(second, field))
    assert_close(model.prior_kl(), apart.prior_kl())
    for m in (model, apart):
        m.natural_step(m.total_stats(first), 0.4)
    for got, want in zip(
        model.posterior.state_dynamics, apart.posterior.state_dynamics, strict=True
    ):
        assert_close(got, want, rtol=1e-10, atol=1e-10)


# Learning ----------------------------------------------------------------------------------------


def test_the_prior_divergence_counts_the_noise_once():
    model = tied_model()
    parts = zip(model.families, model.posterior, model.prior, strict=True)
    want = sum(
        family.standard_kl(q, p).sum() for family, q, p in parts if type(family) is not TiedMNIW
    )
    want = want + MNIW().standard_kl(*(stacked(p.dynamics) for p in (model.posterior, model.prior)))
    assert_close(model.prior_kl(), want)


def test_the_direction_of_natural_steps_is_the_gradient_of_the_bound():
    """Chain rule: ``d bound = <gradient + eta_0 - eta, d mu>`` in any coordinates of q(theta).

    The standard parameters are the coordinates, and autograd goes through inference.
    """
    model = tied_model()
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()

    def evidence(dynamics):
        mixed = *params[:4], *dynamics, *params[8:]
        return surrogate(potentials, model.infer(potentials, mixed, mask, settings=TIGHT)).sum()

    gradient = torch.autograd.grad(evidence(params[4:8]), params[4:8])
    leaves = TiedMNIWParams(*(f.clone().requires_grad_() for f in model.posterior.dynamics))
    mu = TiedMNIW().standard_expected_stats(leaves)
    bound = evidence(mu) - TiedMNIW().standard_kl(leaves, model.prior.dynamics)
    want = torch.autograd.grad(bound, leaves, retain_graph=True)
    with torch.no_grad():
        prior, eta = (TiedMNIW().to_natural(p) for p in (model.prior.dynamics, leaves))
        direction = [g + a - b for g, a, b in zip(gradient, prior, eta, strict=True)]
    got = torch.autograd.grad(mu, leaves, direction)
    for a, b in zip(got, want, strict=True):
        # Gradients of symmetric matrices are known up to their antisymmetric part.
        a, b = (a + a.mT, b + b.mT) if a.ndim > 1 and a.shape[-1] == a.shape[-2] else (a, b)
        assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_natural_steps_are_straight_lines_in_natural_parameters(step_size):
    """Of the noise covariance that all states share."""
    model = tied_model()
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()
    posterior = model.infer(potentials, params, mask, settings=TIGHT)
    gradient = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
    start, prior = (MNIW().to_natural(stacked(p.dynamics)) for p in (model.posterior, model.prior))
    pull = stacked_natural(MNIWNatural(*gradient[4:8]))
    model.natural_step(gradient, step_size)
    got = MNIW().to_natural(stacked(model.posterior.dynamics))
    for field, eta, eta_0, g in zip(got, start, prior, pull, strict=True):
        assert_close(field, eta + step_size * (g + eta_0 - eta), rtol=1e-9, atol=1e-9)


def test_a_full_natural_step_is_the_coordinate_update():
    model = tied_model()
    potentials, mask = random_evidence(LENGTHS)
    stats = model.total_stats(infer(model, potentials, mask))
    got, want = clone(model), clone(model)
    got.natural_step(stats, 1.0)
    want.coordinate_update(stats)
    for name, value in want.state().items():
        assert_close(got.state()[name], value, rtol=1e-9, atol=1e-9)
    n_moves = (mask[:, 1:] & mask[:, :-1]).sum()
    assert_close(want.posterior.dynamics.dof, model.prior.dynamics.dof + n_moves)


# Parameters and state ----------------------------------------------------------------------------


def test_point_parameters_have_one_noise_covariance():
    model = tied_model()
    point, params = model.point_parameters(), model.expected_params()
    assert point.noise_covariances.shape == (3, 2, 2)
    assert_close(point.noise_covariances, torch.linalg.inv(params[4]).detach())
    assert (point.noise_covariances == point.noise_covariances[0]).all()
    sure = tied_model(certainty=1e9)
    for got, want in zip(sure.point_stats(), sure.expected_params(), strict=True):
        assert_close(got, want.detach(), rtol=1e-6, atol=1e-6)


def test_selected_states_keep_the_noise():
    model = tied_model(4)
    some = model.select(torch.tensor([3, 1]))
    assert some.n_states == 2
    assert type(some.posterior.dynamics) is TiedMNIWParams
    got, want = some.point_parameters(), model.point_parameters()
    assert torch.equal(got.transition_matrices, want.transition_matrices[[3, 1]])
    assert torch.equal(got.offsets, want.offsets[[3, 1]])
    assert torch.equal(got.noise_covariances, want.noise_covariances[[3, 1]])
    assert torch.equal(some.posterior.dynamics.scale, model.posterior.dynamics.scale)
    assert some.prior.dynamics.mean_precision.shape == (2, 3, 3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kind_is_kept_in_a_state(tied, dtype):
    model = random_model(1, tied=tied, dtype=dtype)
    again = clone(model)
    kind = TiedMNIWParams if tied else MNIWParams
    for params in (again.prior, again.posterior):
        assert type(params.dynamics) is kind
        assert {field.dtype for part in params for field in part} == {dtype}
    assert again.families == model.families
    assert {name: tuple(value.shape) for name, value in again.state().items()} == {
        name: tuple(value.shape) for name, value in model.state().items()
    }


def test_prior_and_posterior_are_of_one_kind():
    model = tied_model()
    with pytest.raises(ValueError, match="families of the prior"):
        SwitchingDynamicsModel(model.prior, random_model().posterior)


def test_a_sticky_prior_is_one_noise_prior_and_the_same_for_each_state():
    dynamics = DynamicsPrior.isotropic(2, noise_scale=0.3)
    tied, apart = (SwitchingPrior.sticky(3, dynamics, tied=kind) for kind in (True, False))
    assert_close(tied.dynamics.scale, dynamics.dynamics.scale)
    assert_close(tied.dynamics.dof, dynamics.dynamics.dof)
    for got, want in zip(tied.state_dynamics, apart.dynamics, strict=True):
        assert_close(got, want)
    assert apart.state_dynamics is apart.dynamics


def test_single_precision():
    model = tied_model()
    potentials, mask = random_evidence(LENGTHS)
    stats = model.total_stats(infer(model, potentials, mask))
    single = converted(model, torch.float32)
    assert_close(single.prior_kl().double(), model.prior_kl(), rtol=1e-5, atol=1e-5)
    single.natural_step([field.float() for field in stats], 0.5)
    model.natural_step(stats, 0.5)
    for name, value in single.state().items():
        assert value.dtype == torch.float32
        assert_close(value.double(), model.state()[name], rtol=1e-4, atol=1e-4)
