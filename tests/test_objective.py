# SPDX-License-Identifier: BSD-3-Clause
"""The bound and the importance-weighted bound, against linear-Gaussian closed forms and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, kl_divergence

from sksvae.graphical import StandardNormalModel
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods import get_likelihood
from sksvae.objective import Rows

from .models import (
    LATENT_DIM,
    N_FEATURES,
    NOISE,
    build,
    cubature,
    data,
    generator,
    linear_model,
    log_marginal,
    mixture,
    nonlinear_model,
    normal,
)


def bound_of(model, rows, noise):
    return model.elbo(rows, model.graphical.expected_params(), noise).bound


# The bound in the linear limit -------------------------------------------------------------------


def evidence_of_one_component(model, W, b, x):
    """``log int N(x | W z + b, noise) exp E[log N(z | mu, Sigma)] dz`` in closed form.

    ``E[log N] = log N(z | m, S / nu) + (E log|Sigma^-1| - log|nu S^-1| - D / kappa) / 2``.
    """
    scale, mean, kappa, dof = (field[0] for field in model.graphical.posterior.components)
    dim = len(mean)
    digamma = sum(torch.digamma((dof - i) / 2) for i in range(dim))
    missing = 0.5 * (dim * math.log(2) + digamma - dim * dof.log() - dim / kappa)
    covariance = W @ (scale / dof) @ W.T + NOISE * torch.eye(len(b), dtype=torch.float64)
    return MultivariateNormal(W @ mean + b, covariance).log_prob(x) + missing


def test_an_exact_linear_encoder_makes_the_bound_the_evidence_for_every_draw():
    model, W, b = linear_model(mixture(1))
    rows = data()
    want = evidence_of_one_component(model, W, b, rows.observed)
    for seed in range(3):
        noise = normal(1, len(rows), LATENT_DIM, seed=seed)
        torch.testing.assert_close(bound_of(model, rows, noise), want, rtol=1e-10, atol=1e-10)


def test_a_wrong_encoder_loses_the_divergence_of_its_posterior():
    exact, W, b = linear_model(mixture(1))
    wrong, _, _ = linear_model(mixture(1), shift=0.4, log_factor=0.4)
    rows = data()
    posteriors = []
    for model in (wrong, exact):
        posterior = model.infer(rows)
        posteriors.append(MultivariateNormal(posterior.mean, posterior.covariance))
    want = evidence_of_one_component(exact, W, b, rows.observed) - kl_divergence(*posteriors)
    got = bound_of(wrong, rows, cubature(len(rows)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    assert (kl_divergence(*posteriors) > 0.05).all()


def test_a_standard_normal_prior_gives_probabilistic_pca():
    model, W, b = linear_model(StandardNormalModel(LATENT_DIM))
    rows = data()
    covariance = W @ W.T + NOISE * torch.eye(N_FEATURES, dtype=torch.float64)
    want = MultivariateNormal(b, covariance).log_prob(rows.observed)
    got = bound_of(model, rows, normal(1, len(rows), LATENT_DIM))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_the_bound_of_a_mixture_lies_below_its_evidence():
    model, W, b = linear_model(mixture(3, certainty=1e9))
    rows = data(50)
    slack = log_marginal(model, W, b, rows.observed) - bound_of(model, rows, cubature(50))
    assert slack.min() > -1e-6
    assert slack.max() > 1e-2  # mean field is not exact here
    assert slack.mean() < 0.5


def test_terms_add_up_and_the_local_kl_is_that_of_inference():
    model, rows = nonlinear_model(mixture(3)), data()
    terms = model.elbo(rows, model.graphical.expected_params(), cubature(len(rows)))
    assert torch.equal(terms.bound, terms.reconstruction - terms.posterior.local_kl)
    posterior = model.infer(rows)
    torch.testing.assert_close(terms.posterior.local_kl, posterior.local_kl)
    torch.testing.assert_close(terms.posterior.mean, posterior.mean)


@pytest.mark.parametrize(
    "graphical", [mixture(3), StandardNormalModel(LATENT_DIM)], ids=["mixture", "standard normal"]
)
def test_gradient_of_the_bound_agrees_with_finite_differences(graphical):
    """With noise of exact moments, what the control variate leaves out is exactly zero."""
    model, rows = nonlinear_model(graphical), data()
    noise = cubature(len(rows))
    params = model.graphical.expected_params()
    leaves = [*model.parameters(), *params]
    gradient = torch.autograd.grad(model.elbo(rows, params, noise).bound.sum(), leaves)
    direction = [normal(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    values = []
    step = 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.add_(sign * step * d)
            values.append(model.elbo(rows, params, noise).bound.sum())
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.sub_(sign * step * d)
    slope = (values[0] - values[1]) / (2 * step)
    want = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    assert want.abs() > 1.0
    torch.testing.assert_close(slope, want, rtol=1e-6, atol=1e-6)


# The control variate -----------------------------------------------------------------------------


def both_reconstructions(model, rows, params, noise):
    """With and without the control variate, of shape (n_rows,)."""
    terms = model.elbo(rows, params, noise)
    plain = model.log_likelihood(rows, terms.posterior.draw(noise)).mean(0)
    return terms.reconstruction, plain


def gradient_vector(value, leaves):
    fields = torch.autograd.grad(value, leaves, retain_graph=True)
    return torch.cat([field.flatten() for field in fields])


def test_the_control_variate_is_exactly_zero_for_noise_of_exact_moments():
    """In value and in gradient, for potentials that do not match the likelihood."""
    model, rows = nonlinear_model(mixture(3)), data()
    params = model.graphical.expected_params()
    leaves = [*model.parameters(), *params]
    controlled, plain = both_reconstructions(model, rows, params, cubature(len(rows)))
    torch.testing.assert_close(controlled, plain, rtol=0.0, atol=1e-11)
    torch.testing.assert_close(
        gradient_vector(controlled.sum(), leaves),
        gradient_vector(plain.sum(), leaves),
        rtol=1e-9,
        atol=1e-10,
    )


def test_the_control_variate_has_zero_mean_by_monte_carlo():
    """40 batches of 100 draws; every entry within 4.5 standard errors of zero."""
    model = nonlinear_model(mixture(3))
    row = data(1)
    rows = Rows(row.observed.expand(100, -1), row.encoded.expand(100, -1))
    params = model.graphical.expected_params()
    leaves = [*model.encoder.parameters(), *params]
    values, gradients = [], []
    for seed in range(40):
        controlled, plain = both_reconstructions(
            model, rows, params, normal(1, 100, LATENT_DIM, seed=seed)
        )
        difference = (controlled - plain).mean()
        values.append(difference.detach()[None])
        gradients.append(gradient_vector(difference, leaves))
    for samples in (torch.stack(values), torch.stack(gradients)):
        error = samples.std(0) / 40**0.5
        assert error.max() > 1e-3  # it is not zero itself
        assert (samples.mean(0).abs() <= 4.5 * error + 1e-12).all()


def test_where_potentials_match_the_likelihood_no_noise_is_left():
    model, _, _ = linear_model(mixture(3))
    rows = data()
    params = model.graphical.expected_params()
    leaves = [*model.encoder.parameters(), *params]
    samples = [
        both_reconstructions(model, rows, params, normal(1, len(rows), LATENT_DIM, seed=seed))
        for seed in range(5)
    ]
    spreads = [torch.stack(values).std(0).min() for values in zip(*samples, strict=True)]
    assert spreads[0] < 1e-10
    assert spreads[1] > 0.1
    gradients = [[gradient_vector(v.sum(), leaves) for v in pair] for pair in samples]
    spreads = [torch.stack(values).std(0).max() for values in zip(*gradients, strict=True)]
    assert spreads[0] < 1e-8
    assert spreads[1] > 0.1


def test_where_potentials_nearly_match_the_noise_shrinks():
    model, _, _ = linear_model(mixture(3), shift=0.1, log_factor=0.1)
    rows = data().take(torch.arange(6).repeat(100))
    params = model.graphical.expected_params()
    samples = both_reconstructions(model, rows, params, normal(1, len(rows), LATENT_DIM))
    controlled, plain = (values.view(100, 6).std(0) for values in samples)
    assert (controlled < 0.5 * plain).all()


def as_single(model):
    """The same model and rows of it in float32."""
    state = {name: value.float() for name, value in model.graphical.state().items()}
    single = model.to(torch.float32)
    single.graphical = type(model.graphical).from_state(state)
    return single


def test_single_precision_agrees_with_double():
    rows, noise = data(), normal(3, 6, LATENT_DIM)
    want = bound_of(nonlinear_model(mixture(3)), rows, noise).detach()
    single = as_single(nonlinear_model(mixture(3)))
    single.settings = FixedPointSettings()
    got = bound_of(single, Rows(*(field.float() for field in rows)), noise.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3)


def test_precise_potentials_far_from_the_origin_in_single_precision():
    """``R z^2`` is 1e10 there, and the control variate a difference of such terms."""
    bounds = []
    for single in (False, True):
        model = nonlinear_model(StandardNormalModel(LATENT_DIM))
        with torch.no_grad():
            model.encoder.bias.fill_(30.0)
            model.encoder.log_precision.fill_(17.0)  # R = 4e6
        rows, noise = data(), normal(1, 6, LATENT_DIM)
        if single:
            model = model.to(torch.float32)
            rows, noise = Rows(*(field.float() for field in rows)), noise.float()
        params = model.graphical.expected_params()
        controlled, plain = both_reconstructions(model, rows, params, noise)
        bounds.append((controlled - plain).detach().double())
    torch.testing.assert_close(bounds[1], bounds[0], rtol=0.0, atol=0.05)


# Likelihoods in units of their own ---------------------------------------------------------------


LOCATION = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
SCALE = torch.tensor([0.1, 1.0, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("name", ["poisson", "bernoulli"])
def test_the_link_standardisation_is_undone_before_the_likelihood(name):
    model = nonlinear_model(
        StandardNormalModel(LATENT_DIM), get_likelihood(name), location=LOCATION, scale=SCALE
    )
    z = normal(3, 6, LATENT_DIM)
    link = (LOCATION + SCALE * model.decoder(z)[..., 0, :]).detach().numpy()
    frozen = {
        "poisson": lambda: stats.poisson(np.exp(link)),
        "bernoulli": lambda: stats.bernoulli(1 / (1 + np.exp(-link))),
    }[name]()
    x = torch.from_numpy(frozen.rvs(random_state=0)[0].astype(float))
    got = model.log_likelihood(Rows(x, torch.zeros_like(x)), z)
    assert got.shape == (3, 6)
    np.testing.assert_allclose(got.detach(), frozen.logpmf(x.numpy()).sum(-1), rtol=1e-9)


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "gamma"])
def test_another_standardisation_with_a_decoder_to_match_is_the_same_model(name):
    plain = build(StandardNormalModel(LATENT_DIM), get_likelihood(name))
    other = build(
        StandardNormalModel(LATENT_DIM), get_likelihood(name), location=LOCATION, scale=SCALE
    )
    axes, further = normal(N_FEATURES, LATENT_DIM, seed=5), torch.zeros(0, N_FEATURES)
    plain.decoder.reset(axes, further, generator())
    other.decoder.reset(axes / SCALE[:, None], further, generator())
    for model in (plain, other):
        model.encoder.reset(torch.linalg.qr(axes).Q, 2.0, generator())
    with torch.no_grad():
        other.decoder.bias[0].copy_(-LOCATION / SCALE)
    x = plain.likelihood.sample(plain.decode(normal(6, LATENT_DIM)), {}, generator()).detach()
    rows, noise = Rows(x, normal(6, N_FEATURES)), normal(2, 6, LATENT_DIM)
    torch.testing.assert_close(bound_of(plain, rows, noise), bound_of(other, rows, noise))


@pytest.mark.parametrize("name", ["gaussian", "student_t", "gaussian_network"])
def test_standardising_likelihoods_see_the_decoder_as_it_is(name):
    likelihood = get_likelihood(name)
    model = nonlinear_model(
        StandardNormalModel(LATENT_DIM), likelihood, location=LOCATION, scale=SCALE
    )
    z = normal(3, LATENT_DIM)
    assert torch.equal(model.decode(z), model.decoder(z))


def test_a_row_is_encoded_from_the_encoded_and_judged_by_the_observed_form():
    model = nonlinear_model(mixture(2), get_likelihood("poisson"))
    counts, encoded = torch.ones(3, N_FEATURES).double(), normal(3, N_FEATURES)
    want = model.infer(Rows(counts, encoded)).mean
    torch.testing.assert_close(model.infer(Rows(7 * counts, encoded)).mean, want)
    assert not torch.allclose(model.infer(Rows(counts, 2 * encoded)).mean, want)
    z = normal(3, LATENT_DIM)
    torch.testing.assert_close(
        model.log_likelihood(Rows(counts, encoded), z),
        model.log_likelihood(Rows(counts, 2 * encoded), z),
    )


def test_rows_can_be_taken_and_counted():
    rows = Rows(normal(5, 2), normal(5, 2, seed=1))
    taken = rows.take(torch.tensor([3, 1]))
    assert len(rows) == 5
    assert len(taken) == 2
    assert torch.equal(taken.observed, rows.observed[[3, 1]])
    assert torch.equal(taken.encoded, rows.encoded[[3, 1]])
    assert torch.equal(rows.take(slice(1, 3)).encoded, rows.encoded[1:3])
    assert torch.equal(Rows(rows.encoded, rows.encoded).take(slice(1, 3))[1], rows.encoded[1:3])
