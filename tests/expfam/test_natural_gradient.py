# SPDX-License-Identifier: BSD-3-Clause
"""Natural gradient steps; their agreement with the inverse Fisher is in test_contract.py."""

import pytest
import torch

from sksvae.expfam import (
    EXPONENTIAL_FAMILIES,
    conjugate_step,
    kl_with_natural_gradient,
    natural_expected_stats,
)

from .cases import (
    BATCH_SHAPES,
    NAMES,
    assert_fields_close,
    concentrated_standard,
    flatten,
    generator,
    random_natural,
    random_unconstrained,
)

every_family = pytest.mark.parametrize("name", NAMES)
every_batch = pytest.mark.parametrize("batch_shape", BATCH_SHAPES)


def leaves_of(unconstrained):
    return tuple(u.detach().clone().requires_grad_() for u in unconstrained)


def conjugate_problem(name, batch_shape=()):
    """A prior, and what the data add to it: a valid posterior less the prior."""
    family = EXPONENTIAL_FAMILIES[name]
    prior = random_natural(name, batch_shape, seed=1)
    posterior = family.to_natural(concentrated_standard(name, batch_shape, seed=2))
    total = type(prior)(*(a - b for a, b in zip(posterior, prior, strict=True)))
    return prior, total, posterior


def elbo(family, unconstrained, prior, total):
    """E_q[log likelihood] - KL(q || prior), up to a constant."""
    mu = natural_expected_stats(family, unconstrained)
    kl = kl_with_natural_gradient(family, unconstrained, mu, prior)
    return family.inner(total, mu) - kl, mu


@every_family
@every_batch
def test_values_are_expected_stats_and_kl(name, batch_shape):
    family = EXPONENTIAL_FAMILIES[name]
    unconstrained = random_unconstrained(name, batch_shape)
    natural = family.to_natural(family.from_unconstrained(unconstrained))
    prior = random_natural(name, seed=1)
    mu = natural_expected_stats(family, unconstrained)
    assert type(mu) is family.stats_type
    assert_fields_close(mu, family.expected_stats(natural), 1e-10)
    kl = kl_with_natural_gradient(family, unconstrained, mu, prior)
    torch.testing.assert_close(kl, family.kl(natural, prior), rtol=1e-9, atol=1e-10)


@every_family
@every_batch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_the_shapes_and_dtype_of_their_parameters(name, batch_shape, dtype):
    family = EXPONENTIAL_FAMILIES[name]
    leaves = leaves_of(random_unconstrained(name, batch_shape, dtype=dtype))
    prior = random_natural(name, seed=1, dtype=dtype)
    total = random_natural(name, batch_shape, seed=2, dtype=dtype)
    elbo(family, leaves, prior, total)[0].sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


@every_family
@every_batch
def test_gradient_of_the_kl_is_the_difference_of_natural_parameters(name, batch_shape):
    family = EXPONENTIAL_FAMILIES[name]
    leaves = leaves_of(random_unconstrained(name, batch_shape))
    prior = random_natural(name, seed=1)
    mu = type(natural_expected_stats(family, leaves))(
        *(f.detach().requires_grad_() for f in natural_expected_stats(family, leaves))
    )
    prior = type(prior)(*(f.requires_grad_() for f in prior))
    weight = torch.rand(batch_shape, generator=generator()).double() + 0.5
    (weight * kl_with_natural_gradient(family, leaves, mu, prior)).sum().backward()
    natural = family.to_natural(family.from_unconstrained(leaves))
    for grad, eta, eta_0, n_dims in zip(
        (f.grad for f in mu), natural, prior, family.event_dims, strict=True
    ):
        scaled = weight[(..., *(None,) * n_dims)] * (eta - eta_0)
        torch.testing.assert_close(grad, scaled.detach())
    # ... and nothing else: mu is the only way in.
    assert all(leaf.grad is None for leaf in leaves)
    assert all(field.grad is None for field in prior)


@every_family
def test_total_gradient_in_mu_vanishes_at_the_conjugate_posterior_only(name):
    family = EXPONENTIAL_FAMILIES[name]
    prior, total, posterior = conjugate_problem(name, (3,))
    at_posterior = leaves_of(family.to_unconstrained(family.from_natural(posterior)))
    elbo(family, at_posterior, prior, total)[0].sum().backward()
    assert flatten([leaf.grad for leaf in at_posterior]).abs().max() < 1e-9
    elsewhere = leaves_of(random_unconstrained(name, (3,)))
    elbo(family, elsewhere, prior, total)[0].sum().backward()
    assert flatten([leaf.grad for leaf in elsewhere]).abs().max() > 1e-2


@every_family
@every_batch
def test_one_full_step_in_natural_coordinates_is_the_conjugate_posterior(name, batch_shape):
    family = EXPONENTIAL_FAMILIES[name]
    prior, total, posterior = conjugate_problem(name, batch_shape)
    unconstrained = leaves_of(random_unconstrained(name, batch_shape))
    natural = family.to_natural(family.from_unconstrained(unconstrained))
    value, mu = elbo(family, unconstrained, prior, total)
    gradient = torch.autograd.grad(value.sum(), mu)  # natural gradient in eta
    moved = tuple(eta.detach() + g for eta, g in zip(natural, gradient, strict=True))
    assert_fields_close(moved, tuple(posterior), 1e-10)
    stepped = conjugate_step(natural, prior, total, 1.0)
    assert type(stepped) is family.natural_type
    assert_fields_close(stepped, posterior, 1e-12)


@every_family
def test_conjugate_step_is_natural_gradient_ascent_of_any_step_size(name):
    family = EXPONENTIAL_FAMILIES[name]
    prior, total, _ = conjugate_problem(name, (3,))
    unconstrained = leaves_of(random_unconstrained(name, (3,)))
    natural = family.to_natural(family.from_unconstrained(unconstrained))
    value, mu = elbo(family, unconstrained, prior, total)
    gradient = torch.autograd.grad(value.sum(), mu)
    moved = tuple(eta + 0.3 * g for eta, g in zip(natural, gradient, strict=True))
    assert_fields_close(tuple(conjugate_step(natural, prior, total, 0.3)), moved, 1e-12)
    assert_fields_close(conjugate_step(natural, prior, total, 0.0), natural, 0.0)


@every_family
def test_small_unconstrained_steps_agree_with_small_natural_steps(name):
    """They differ at second order at most: halving the step quarters the difference."""
    family = EXPONENTIAL_FAMILIES[name]
    prior, total, _ = conjugate_problem(name)
    leaves = leaves_of(random_unconstrained(name))
    elbo(family, leaves, prior, total)[0].backward()
    value, mu = elbo(family, leaves, prior, total)
    gradient = torch.autograd.grad(value, mu)
    natural = family.to_natural(family.from_unconstrained(leaves))

    def difference(step):
        u = tuple(leaf.detach() + step * leaf.grad for leaf in leaves)
        eta = tuple(e.detach() + step * g for e, g in zip(natural, gradient, strict=True))
        # As distributions: the categorical's logits are determined up to a constant.
        by_u = family.unconstrained_expected_stats(u)
        by_eta = family.expected_stats(family.natural_type(*eta))
        return (flatten(by_u) - flatten(by_eta)).norm()

    step = 1e-3 / flatten(gradient).norm()
    moved = tuple(leaf.detach() + step * leaf.grad for leaf in leaves)
    distance = (flatten(family.unconstrained_expected_stats(moved)) - flatten(mu)).norm()
    assert difference(step) < 1e-2 * distance
    assert difference(step / 2) < 0.28 * difference(step) + 1e-14


@every_family
def test_ascent_in_unconstrained_coordinates_reaches_the_posterior(name):
    family = EXPONENTIAL_FAMILIES[name]
    prior, total, posterior = conjugate_problem(name)
    leaves = leaves_of(random_unconstrained(name))
    optimizer = torch.optim.SGD(leaves, lr=0.2, maximize=True)
    for _ in range(120):
        optimizer.zero_grad()
        elbo(family, leaves, prior, total)[0].backward()
        optimizer.step()
    found = family.to_natural(family.from_unconstrained(leaves))
    assert family.kl(found, posterior) < 1e-8


def test_biased_and_unbiased_gradients_differ_by_the_path_through_local_inference():
    """Detaching mu on its way into local inference leaves the conjugate direction."""
    family = EXPONENTIAL_FAMILIES["dirichlet"]
    prior = random_natural("dirichlet", seed=1)
    potential = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    reward = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)

    def direction(biased):
        leaves = leaves_of(random_unconstrained("dirichlet"))
        mu = natural_expected_stats(family, leaves)
        seen = mu.log_probabilities.detach() if biased else mu.log_probabilities
        local = (seen + potential).softmax(-1)
        kl_local = (local * (local.log() - mu.log_probabilities)).sum()
        value = reward @ local - kl_local
        value = value - kl_with_natural_gradient(family, leaves, mu, prior)
        gradient = torch.autograd.grad(value, mu.log_probabilities)[0]
        return gradient, local.detach(), family.to_natural(family.from_unconstrained(leaves))

    biased, local, natural = direction(True)
    svi = conjugate_step(natural, prior, type(prior)(local), 1.0)
    torch.testing.assert_close(biased, svi.concentration.detach() - natural.concentration.detach())
    unbiased, local, _ = direction(False)
    # d/d mu of the terms that [J] forgets: F (reward - potential), F the Fisher matrix of q(k),
    # since log(local) - mu = potential + constant.
    fisher = torch.diag(local) - torch.outer(local, local)
    torch.testing.assert_close(unbiased - biased, fisher @ (reward - potential))
    assert (unbiased - biased).abs().max() > 0.1


def test_the_natural_gradient_is_not_the_ordinary_one():
    family = EXPONENTIAL_FAMILIES["niw"]
    leaves = leaves_of(random_unconstrained("niw"))
    weights = random_natural("niw", seed=3)
    natural = torch.autograd.grad(
        family.inner(weights, natural_expected_stats(family, leaves)), leaves
    )
    ordinary = torch.autograd.grad(
        family.inner(weights, family.unconstrained_expected_stats(leaves)), leaves
    )
    assert (flatten(natural) - flatten(ordinary)).norm() > 0.1 * flatten(ordinary).norm()


def test_an_asymmetric_gradient_counts_by_its_symmetric_part():
    """Only one triangle of E[Sigma^-1] read: the same number, so the same natural gradient."""
    family = EXPONENTIAL_FAMILIES["niw"]
    unconstrained = random_unconstrained("niw")
    gradients = []
    for entry in [(0, 1), (1, 0)]:
        leaves = leaves_of(unconstrained)
        natural_expected_stats(family, leaves).precision[entry].backward()
        gradients.append(flatten([leaf.grad for leaf in leaves]))
    torch.testing.assert_close(*gradients)


def test_second_derivatives_are_refused():
    family = EXPONENTIAL_FAMILIES["dirichlet"]
    leaves = leaves_of(random_unconstrained("dirichlet"))
    value = natural_expected_stats(family, leaves).log_probabilities.square().sum()
    (gradient,) = torch.autograd.grad(value, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("step_size", [-0.1, 1.1, float("nan")])
def test_step_sizes_outside_the_unit_interval_are_refused(step_size):
    natural = random_natural("dirichlet")
    with pytest.raises(ValueError, match=r"step_size must be in \[0, 1\], got"):
        conjugate_step(natural, natural, natural, step_size)
