# SPDX-License-Identifier: BSD-3-Clause
"""The bound over sequences: sums of single sequences, dense Gaussians, gradients, and padding."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from sksvae.inference.elimination_orders import Sequential

from .models import (
    LATENT_DIM,
    NOISE,
    bent_coordinates,
    cubature,
    normal,
)
from .sequence_cases import LENGTHS, build, data, noise_for, terms_of

# Sums over sequences -----------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
def test_the_bound_is_the_sum_over_single_sequences(gaps):
    model, _, _ = build()
    rows = data(gaps=gaps)
    noise = noise_for(rows)
    terms = terms_of(model, rows, noise)
    total = 0.0
    for i, length in enumerate(LENGTHS):
        one = terms_of(model, rows.take(torch.tensor([i])), noise[:, i : i + 1, :length])
        total = total + one.total
        stop = sum(LENGTHS[: i + 1])
        torch.testing.assert_close(
            terms.reconstruction[stop - length : stop], one.reconstruction, rtol=0, atol=1e-10
        )
        torch.testing.assert_close(
            terms.posterior.local_kl[i], one.posterior.local_kl[0], rtol=0, atol=1e-10
        )
    torch.testing.assert_close(terms.total, total, rtol=0, atol=1e-9)


def test_the_order_of_sequences_does_not_matter():
    model, _, _ = build()
    rows = data(gaps=True)
    noise = noise_for(rows)
    order = torch.tensor([2, 0, 3, 1])
    there = terms_of(model, rows.take(order), noise[:, order])
    here = terms_of(model, rows, noise)
    torch.testing.assert_close(there.total, here.total, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        there.posterior.local_kl, here.posterior.local_kl[order], rtol=0, atol=1e-10
    )


def test_noise_at_steps_that_do_not_exist_does_not_matter():
    model, _, _ = build()
    rows = data()
    noise = noise_for(rows)
    other = torch.where(rows.mask[:, :, None], noise, 100.0)
    assert torch.equal(terms_of(model, rows, other).total, terms_of(model, rows, noise).total)


def test_unobserved_sequences_count_for_nothing():
    """Their posterior is the prior, so that the KL is what expected parameters lack of one."""
    model, _, _ = build(certainty=1e9)
    rows = data(gaps=True)
    terms = terms_of(model, rows, noise_for(rows))
    assert (terms.reconstruction[6:9] == 0).all()
    assert abs(float(terms.posterior.local_kl[2])) < 1e-6


# Dense Gaussians ---------------------------------------------------------------------------------


def joint(model, W, b, n_steps):
    """Distribution of the stacked rows of one sequence under point parameters."""
    A, offset, Q, mean, covariance = model.graphical.point_parameters()
    means, covariances = [mean], [covariance]
    for _ in range(n_steps - 1):
        means.append(A @ means[-1] + offset)
        covariances.append(A @ covariances[-1] @ A.mT + Q)

    def block(t, s):
        if t < s:
            return block(s, t).mT
        return torch.linalg.matrix_power(A, t - s) @ covariances[s]

    latent = torch.cat(
        [torch.cat([block(t, s) for s in range(n_steps)], 1) for t in range(n_steps)]
    )
    spread = torch.kron(torch.eye(n_steps, dtype=torch.float64), W.contiguous())
    eye = torch.eye(n_steps * len(b), dtype=torch.float64)
    return MultivariateNormal(
        spread @ torch.cat(means) + b.repeat(n_steps), spread @ latent @ spread.mT + NOISE * eye
    )


@pytest.mark.parametrize("n_draws", [1, 2])
def test_an_exact_encoder_makes_the_bound_the_evidence_for_every_draw(n_draws):
    model, W, b = build(hidden=(), certainty=1e9)
    rows = data()
    noise = noise_for(rows, n_draws)
    for i, x in enumerate(rows.observed.split(LENGTHS)):
        one = terms_of(model, rows.take(torch.tensor([i])), noise[:, i : i + 1, : len(x)])
        want = joint(model, W, b, len(x)).log_prob(x.flatten())
        torch.testing.assert_close(one.total, want, rtol=0, atol=1e-5)


def test_a_wrong_encoder_falls_short_of_the_evidence():
    model, W, b = build(hidden=(), certainty=1e9)
    with torch.no_grad():
        model.encoder.log_precision.add_(0.5)
        model.encoder.bias.add_(0.3)
    rows = data()
    for i, x in enumerate(rows.observed.split(LENGTHS)):
        part = rows.take(torch.tensor([i]))
        slack = joint(model, W, b, len(x)).log_prob(x.flatten())
        slack = slack - terms_of(model, part, noise_for(part, 2000)).total
        assert slack > 0.05


def test_uncertain_dynamics_lower_the_bound():
    rows = data()
    totals = [
        terms_of(build(hidden=(), certainty=certainty)[0], rows, noise_for(rows)).total
        for certainty in (1.0, 10.0, 1e9)
    ]
    assert totals[0] < totals[1] < totals[2]


def test_sequences_of_one_step_are_rows_with_a_gaussian_prior():
    """Everything by the closed forms of Gaussians, any networks."""
    model, _, _ = build(certainty=1e9)
    rows = data((1,) * 6)
    noise = cubature(6)[:, :, None]
    terms = terms_of(model, rows, noise)
    parameters = model.graphical.point_parameters()
    prior = MultivariateNormal(parameters.initial_mean, parameters.initial_covariance)
    r, R = model.encode(rows)
    covariance = torch.linalg.inv(prior.precision_matrix + torch.diag_embed(R))
    mean = (covariance @ (prior.precision_matrix @ prior.mean + r).unsqueeze(-1)).squeeze(-1)
    posterior = MultivariateNormal(mean, covariance)
    torch.testing.assert_close(terms.posterior.mean[:, 0], mean)
    torch.testing.assert_close(terms.posterior.covariance[:, 0], covariance)
    want = kl_divergence(posterior, prior)
    torch.testing.assert_close(terms.posterior.local_kl, want, rtol=0, atol=1e-6)
    # The points have exact moments, so that the control variate adds nothing.
    means = model.decode(terms.posterior.draws[:, :, 0])[..., 0, :]
    log_density = -0.5 * ((rows.observed - means) ** 2 / NOISE + math.log(2 * math.pi * NOISE))
    torch.testing.assert_close(terms.reconstruction, log_density.sum(-1).mean(0))


# Gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
def test_every_parameter_has_a_gradient(gaps):
    model, _, _ = build()
    rows = data(gaps=gaps)
    params = model.graphical.expected_params()
    model.elbo(rows, params, noise_for(rows)).total.backward()
    for name, parameter in [*model.named_parameters(), *enumerate(params)]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("bent", [False, True])
def test_gradient_of_the_bound_agrees_with_finite_differences(bent):
    """With noise of exact moments, what the control variate leaves out is exactly zero."""
    model, _, _ = build()
    if bent:
        model.coordinates = bent_coordinates(LATENT_DIM)
    lengths = (3, 1)
    rows = data(lengths)
    # Antithetic draws along each axis of the noise of all steps together.
    size = 2 * 3 * LATENT_DIM
    points = math.sqrt(size) * torch.eye(size, dtype=torch.float64)
    noise = torch.cat([points, -points]).view(-1, 2, 3, LATENT_DIM)
    params = model.graphical.expected_params()
    leaves = [*model.parameters(), *params]
    gradient = torch.autograd.grad(model.elbo(rows, params, noise).total, leaves)
    direction = [normal(1, *leaf.shape, seed=i)[0] for i, leaf in enumerate(leaves)]
    # Statistics of q(theta) are symmetric where they are matrices.
    direction = [d + d.mT if d.ndim == 2 and d.shape[0] == d.shape[1] else d for d in direction]
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.add_(sign * step * d)
            values.append(model.elbo(rows, params, noise).total)
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.sub_(sign * step * d)
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    torch.testing.assert_close(slope, (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("n_draws", [1, 2])
def test_covariances_have_no_cotangent_in_the_bound_itself(monkeypatch, weight, n_draws):
    """What divergence and control variate add cancels exactly, and the sweep for it is saved."""
    model, _, _ = build()
    rows = data()
    terms = terms_of(model, rows, noise_for(rows, n_draws))
    loss = (weight * terms.posterior.local_kl.sum() - terms.reconstruction.sum()) / len(rows)
    swept, adjoint = [], Sequential.covariances_adjoint

    def counted(*arguments):
        swept.append(arguments)
        return adjoint(*arguments)

    monkeypatch.setattr(Sequential, "covariances_adjoint", staticmethod(counted))
    torch.autograd.grad(loss, list(model.encoder.parameters()), allow_unused=True)
    assert len(swept) == (weight != 1.0)
