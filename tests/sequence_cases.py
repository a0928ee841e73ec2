# SPDX-License-Identifier: BSD-3-Clause
"""A model whose linear part is exact, and sequences with and without gaps."""

import torch

from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.gaussian import GaussianLikelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE

from .graphical.dynamics_cases import random_model
from .models import (
    LATENT_DIM,
    N_FEATURES,
    NOISE,
    generator,
    normal,
)

LENGTHS = (5, 1, 3, 5)


def build(hidden=(6,), certainty=1.0, location=0.0, scale=1.0):
    """Model whose linear part is exact, for orthogonal loadings and known noise."""
    ones = torch.ones(N_FEATURES, dtype=torch.float64)
    model = SequenceVAE(
        N_FEATURES,
        LATENT_DIM,
        hidden,
        "tanh",
        GaussianLikelihood(noise_variance=NOISE),
        random_model(LATENT_DIM, certainty=certainty),
        location * ones,
        scale * ones,
        FixedPointSettings(),
    )
    sizes = torch.tensor([0.8, 1.5], dtype=torch.float64)
    W = torch.linalg.qr(normal(N_FEATURES, LATENT_DIM, seed=5)).Q * sizes
    b = normal(N_FEATURES, seed=6)
    model.decoder.reset(W, torch.zeros(0, N_FEATURES), generator(1))
    model.encoder.reset(W / sizes**2, sizes**2 / NOISE, generator(2))
    with torch.no_grad():
        model.decoder.bias[0].copy_(b)
        model.encoder.bias.copy_(-b @ W / sizes**2)
        for network in (model.encoder, model.decoder):
            if hidden:
                network.mlp.output.weight.mul_(60.0)
    return model, W, b


def data(lengths=LENGTHS, gaps=False, seed=8):
    x = 2 * normal(sum(lengths), N_FEATURES, seed=seed)
    observed = x.clone()
    if gaps:
        observed[0] = torch.nan
        observed[3, 1] = torch.nan
        observed[6:9] = torch.nan  # a sequence of its own
    return SequenceRows(observed, observed.nan_to_num(nan=0.0), torch.tensor(lengths))


def noise_for(rows, n_draws=3, seed=9):
    return normal(n_draws, *rows.latent_shape, LATENT_DIM, seed=seed)


def terms_of(model, rows, noise):
    return model.elbo(rows, model.graphical.expected_params(), noise)
