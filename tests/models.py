# SPDX-License-Identifier: BSD-3-Clause
"""Small models whose bounds are known, for the tests of objective, training and persistence."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import torch
from scipy import stats

from sksvae.coordinates import Coordinates
from sksvae.expfam import DirichletParams, NIWParams
from sksvae.graphical import GaussianMixtureModel, MixturePrior
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.gaussian import GaussianLikelihood
from sksvae.objective import ELBOTerms, Rows, StructuredVAE
from sksvae.training import Trainer, TrainingSettings

N_FEATURES, LATENT_DIM = 4, 2
NOISE = 0.3  # observation variance
TIGHT = FixedPointSettings(max_updates=1000, tol=1e-12, solver_tol=1e-12)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def cubature(n_rows, dim=LATENT_DIM):
    """Noise whose mean and covariance are exactly 0 and I, so that quadratics average exactly."""
    points = math.sqrt(dim) * torch.eye(dim, dtype=torch.float64)
    return torch.cat([points, -points])[:, None].expand(-1, n_rows, -1)


def mixture(n_components, certainty=6.0, spread=2.0, seed=0):
    """q(theta) with spread-out components; a large ``certainty`` makes them known exactly."""
    dim = LATENT_DIM
    root = normal(n_components, dim, dim, seed=seed)
    covariance = 0.3 * torch.eye(dim, dtype=torch.float64) + 0.3 * root @ root.mT
    dof = torch.full((n_components,), certainty, dtype=torch.float64)
    components = NIWParams(
        certainty * covariance, spread * normal(n_components, dim, seed=seed + 1), dof, dof
    )
    weights = DirichletParams(
        certainty * normal(n_components, seed=seed + 2).softmax(0) * n_components
    )
    prior = MixturePrior.symmetric(
        n_components, 1.0, components.mean[0] * 0, 1.0, torch.eye(dim, dtype=torch.float64), 3.0
    )
    return GaussianMixtureModel(prior, MixturePrior(weights, components))


def bent_coordinates(dim, norm=0.9, n_blocks=3, width=6):
    """Blocks that add as much to the identity as the norm allows."""
    inner, outer = normal(n_blocks, width, dim, seed=1), normal(n_blocks, dim, width, seed=2)
    norms = torch.linalg.matrix_norm(inner, 2) * torch.linalg.matrix_norm(outer, 2)
    return Coordinates(
        normal(dim, seed=3),
        1.0 + normal(dim, seed=4).square(),
        inner,
        normal(n_blocks, width, seed=5),
        outer * (norm / norms)[:, None, None],
        torch.eye(dim) + 0.3 * normal(dim, dim, seed=6),
        normal(dim, seed=7),
    )


def build(graphical, likelihood=None, hidden=(), location=None, scale=None):
    likelihood = GaussianLikelihood(noise_variance=NOISE) if likelihood is None else likelihood
    ones = torch.ones(N_FEATURES, dtype=torch.float64)
    return StructuredVAE(
        N_FEATURES,
        LATENT_DIM,
        hidden,
        "tanh",
        likelihood,
        graphical,
        0 * ones if location is None else location,
        ones if scale is None else scale,
        TIGHT,
    )


def linear_model(graphical, shift=0.0, log_factor=0.0):
    """``x = W z + b + noise`` with orthogonal columns of W, and its exact encoder.

    Unless its potentials are moved by ``shift`` and their precision off by ``exp(log_factor)``.
    """
    model = build(graphical)
    sizes = torch.tensor([0.8, 1.5], dtype=torch.float64)
    W = torch.linalg.qr(normal(N_FEATURES, LATENT_DIM, seed=5)).Q * sizes
    b = normal(N_FEATURES, seed=6)
    model.decoder.reset(W, torch.zeros(0, N_FEATURES), generator())
    model.encoder.reset(W / sizes**2, 1.0, generator())
    log_precision = (sizes**2 / NOISE).log() + log_factor
    with torch.no_grad():
        model.decoder.bias[0].copy_(b)
        model.encoder.bias.copy_(-b @ W / sizes**2 + shift)
        model.encoder.log_precision.copy_(30 * torch.atanh(log_precision / 30))
    return model, W, b


def log_marginal(model, W, b, x):
    """``log sum_k pi_k N(x | W m_k + b, W Sigma_k W' + noise)`` by scipy."""
    weights, means, covariances = (f.numpy() for f in model.graphical.point_parameters())
    W, b = W.numpy(), b.numpy()
    terms = [
        np.log(weight)
        + stats.multivariate_normal(W @ mean + b, W @ cov @ W.T + NOISE * np.eye(len(b))).logpdf(x)
        for weight, mean, cov in zip(weights, means, covariances, strict=True)
    ]
    return torch.from_numpy(np.logaddexp.reduce(terms))


def data(n_rows=6, seed=8):
    x = 2 * normal(n_rows, N_FEATURES, seed=seed)
    return Rows(x, x)


def nonlinear_model(graphical, likelihood=None, **kwargs):
    """One hidden layer, its outputs of the size of the linear part."""
    model = build(graphical, likelihood, (6,), **kwargs)
    axes = torch.linalg.qr(normal(N_FEATURES, LATENT_DIM, seed=5)).Q
    further = torch.zeros(model.likelihood.n_outputs - 1, N_FEATURES)
    model.encoder.reset(axes, 3.0, generator(1))
    model.decoder.reset(axes, further, generator(2))
    with torch.no_grad():
        model.encoder.mlp.output.weight.mul_(60.0)
        model.decoder.mlp.output.weight.mul_(60.0)
    return model


# Training ----------------------------------------------------------------------------------------

SETTINGS = TrainingSettings(max_iter=10, batch_size=20, learning_rate=0.01, tol=0.0)


def make_trainer(model, n_rows=60, seed=0, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return Trainer(model, n_rows, settings, generator(seed))


def clusters(n_rows=60):
    """Three bent clusters."""
    labels = torch.arange(n_rows) % 3
    centers = 2.5 * normal(3, N_FEATURES, seed=20)
    z = normal(n_rows, 1, seed=21)
    x = centers[labels] + torch.cat([z, z.square() - 1, 0.5 * z, -z], 1)
    x = x + 0.3 * normal(n_rows, N_FEATURES, seed=22)
    return Rows(x, x)


class Bookkeeper:
    """Stands in for `Trainer.step`: notes what it gets and returns columns of the rows as terms."""

    def __init__(self, trainer):
        self.trainer, self.rows, self.sizes, self.rates = trainer, [], [], []

    def __call__(self, rows, step_size):
        self.rows.append(rows.observed[:, 0].long())
        self.sizes.append(step_size)
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])
        return ELBOTerms(rows.observed[:, 1], SimpleNamespace(local_kl=rows.observed[:, 2]))


def numbered_rows(n_rows):
    """Column 0 numbers the rows, column 1 and 2 are taken for the terms of the bound."""
    x = normal(n_rows, N_FEATURES)
    x[:, 0] = torch.arange(n_rows)
    return Rows(x, x)
