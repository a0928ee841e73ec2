# SPDX-License-Identifier: BSD-3-Clause
"""The importance-weighted bound against marginals in closed form and by quadrature."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from sksvae.expfam import DirichletParams, NIWParams
from sksvae.graphical import GaussianMixtureModel, MixturePrior, StandardNormalModel
from sksvae.importance import importance_bound
from sksvae.likelihoods import LIKELIHOODS, get_likelihood
from sksvae.likelihoods.gaussian import GaussianLikelihood
from sksvae.objective import Rows, StructuredVAE

from .models import (
    LATENT_DIM,
    N_FEATURES,
    NOISE,
    TIGHT,
    build,
    data,
    generator,
    linear_model,
    log_marginal,
    mixture,
    nonlinear_model,
    normal,
)


def importance(model, rows, noise):
    with torch.no_grad():
        return importance_bound(model, rows, noise)


def test_with_the_exact_posterior_one_draw_gives_the_marginal():
    for graphical in (mixture(1, certainty=1e9), StandardNormalModel(LATENT_DIM)):
        model, W, b = linear_model(graphical)
        rows = data()
        if isinstance(graphical, StandardNormalModel):
            covariance = W @ W.T + NOISE * torch.eye(N_FEATURES, dtype=torch.float64)
            want = MultivariateNormal(b, covariance).log_prob(rows.observed)
        else:
            want = log_marginal(model, W, b, rows.observed)
        got = importance(model, rows, normal(1, LATENT_DIM))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_many_draws_give_the_marginal_of_a_mixture(shift):
    """For any encoder: 8192 quasi-random draws integrate over z."""
    # Posteriors that are too wide keep the weights bounded.
    model, W, b = linear_model(mixture(3, certainty=1e9, spread=0.5), shift, log_factor=-0.5)
    rows = data(20)
    uniform = stats.qmc.Sobol(LATENT_DIM, seed=0).random_base2(13)
    got = importance(model, rows, torch.from_numpy(stats.norm.ppf(uniform)))
    want = log_marginal(model, W, b, rows.observed)
    torch.testing.assert_close(got, want, rtol=0.0, atol=5e-3)
    assert (got - want).abs().median() < 2e-4


def test_the_importance_bound_integrates_theta_out():
    """A mixture of Student-t in the latents: by quadrature over one of them."""
    dim, noise = 1, 0.01
    prior = MixturePrior.symmetric(2, 1.0, torch.zeros(1).double(), 1.0, torch.eye(1).double(), 2.0)
    components = NIWParams(
        torch.tensor([[[1.0]], [[3.0]]]).double(),
        torch.tensor([[-1.0], [2.0]]).double(),
        torch.tensor([0.5, 2.0]).double(),
        torch.tensor([2.5, 4.0]).double(),
    )
    weights = DirichletParams(torch.tensor([1.0, 2.0]).double())
    graphical = GaussianMixtureModel(prior, MixturePrior(weights, components))
    likelihood = GaussianLikelihood(noise_variance=noise)
    one = torch.ones(1, dtype=torch.float64)
    model = StructuredVAE(1, dim, (), "relu", likelihood, graphical, 0 * one, one, TIGHT)
    model.decoder.reset(torch.eye(1), torch.zeros(0, 1), generator())
    model.encoder.reset(torch.eye(1), 1 / noise, generator())
    x = torch.linspace(-3, 4, 8, dtype=torch.float64)[:, None]
    z = torch.linspace(-60, 60, 600_001, dtype=torch.float64)
    density = torch.zeros_like(z)
    for k in range(2):  # nu - D + 1 = nu degrees of freedom
        scale, mean, kappa, dof = (field[k].item() for field in components)
        t = stats.t(dof, mean, math.sqrt(scale * (kappa + 1) / (kappa * dof)))
        density += (k + 1) / 3 * torch.from_numpy(t.pdf(z.numpy()))
    emission = torch.exp(-0.5 * (x - z) ** 2 / noise) / math.sqrt(2 * math.pi * noise)
    want = torch.trapezoid(emission * density, z).log()
    uniform = stats.qmc.Sobol(1, seed=0).random_base2(12)
    got = importance(model, Rows(x, x), torch.from_numpy(stats.norm.ppf(uniform)))
    torch.testing.assert_close(got, want, rtol=0.0, atol=2e-3)
    # With q(theta) taken for a point the tails would be missing.
    weights, means, covariances = graphical.point_parameters()
    point = weights * torch.exp(-0.5 * (x - means.T) ** 2 / (covariances[:, 0, 0] + noise))
    point = point / (2 * math.pi * (covariances[:, 0, 0] + noise)).sqrt()
    assert (point.sum(1).log() - want).abs().max() > 0.1


def test_the_importance_bound_is_above_the_bound_and_tightens():
    model, rows = nonlinear_model(mixture(3)), data(20)
    params = model.graphical.expected_params()
    elbo = model.elbo(rows, params, normal(1000, len(rows), LATENT_DIM)).bound.detach()
    noise = normal(400, LATENT_DIM, seed=3)
    means = []
    for n_draws, n_batches in ((1, 40), (10, 40), (400, 1)):
        batches = noise.view(-1, n_draws, LATENT_DIM)[:n_batches]
        means.append(torch.stack([importance(model, rows, batch) for batch in batches]).mean(0))
    assert (means[0].mean() < means[1].mean()) & (means[1].mean() < means[2].mean())
    assert (means[2] > elbo - 0.02).all()
    assert means[2].mean() > elbo.mean() + 0.05


def test_the_importance_bound_of_a_row_does_not_depend_on_its_batch():
    model, rows = nonlinear_model(mixture(3)), data(30)
    noise = normal(16, LATENT_DIM)
    together = importance(model, rows, noise)
    for index in (slice(0, 1), slice(4, 17), torch.tensor([29, 3])):
        alone = importance(model, rows.take(index), noise)
        torch.testing.assert_close(alone, together[index], rtol=1e-11, atol=1e-11)
    twice = rows.take(torch.tensor([5, 5]))
    assert torch.equal(*importance(model, twice, noise))


# Proposals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [3.0, -30.0])
def test_an_encoder_that_misplaces_rows_costs_little(shift):
    """The posterior alone would be off by hundreds of nats."""
    model, W, b = linear_model(mixture(3, certainty=1e9, spread=0.5), shift)
    rows = data(20)
    uniform = stats.qmc.Sobol(LATENT_DIM, seed=0).random_base2(8)
    noise = torch.from_numpy(stats.norm.ppf(uniform))
    want = log_marginal(model, W, b, rows.observed)
    assert (importance(model, rows, noise[:1]) < want - 10).all()
    torch.testing.assert_close(importance(model, rows, noise), want, rtol=0.0, atol=0.2)


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_are_finite_for_every_likelihood(name, dtype):
    model = build(StandardNormalModel(LATENT_DIM, dtype), get_likelihood(name), hidden=(5,))
    model.encoder.reset(torch.eye(N_FEATURES, LATENT_DIM), 3.0, generator())
    further = model.likelihood.init_outputs(N_FEATURES)
    model.decoder.reset(torch.eye(N_FEATURES, LATENT_DIM), further, generator())
    z = normal(7, LATENT_DIM)
    x = model.double().likelihood.sample(model.decode(z), model.noise_params, generator())
    rows = Rows(x.to(dtype), normal(7, N_FEATURES).to(dtype))
    got = importance(model.to(dtype), rows, normal(16, LATENT_DIM).to(dtype))
    assert got.dtype == dtype
    assert torch.isfinite(got).all()
