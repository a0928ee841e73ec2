# SPDX-License-Identifier: BSD-3-Clause
"""Export ``transform``, ``predict_proba`` and ``inverse_transform`` to ONNX files."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Encode(nn.Module):
    """Rows to posterior means of latents, and for a mixture to probabilities of components.

    Parameters
    ----------
    estimator : VAE or SVAEGaussianMixture
        A fitted estimator.
    n_rounds : int
        Rounds of block updates, the same for every row. The package stops by itself.
    """

    def __init__(self, estimator, n_rounds=20):
        super().__init__()
        model = estimator._rebuild()
        self.link, self.encoder, self.n_rounds = link(model.likelihood), model.encoder, n_rounds
        self.register_buffer("location", torch.tensor(estimator.location_))
        self.register_buffer("scale", torch.tensor(estimator.scale_))
        self.is_mixture = hasattr(estimator, "weights_")
        if self.is_mixture:
            names = ("log_weights", "precision", "precision_mean", "quadratic", "log_det")
            for name, value in zip(names, model.graphical.expected_params(), strict=True):
                self.register_buffer(name, value.detach())
            # The first round takes the mixture for a single Gaussian.
            weights, means, covariances = model.graphical.point_parameters()
            mean = weights @ means
            spread = covariances + (means - mean)[:, :, None] * (means - mean)[:, None, :]
            single = torch.linalg.inv(torch.einsum("k,kij->ij", weights, spread))
            self.register_buffer("single_precision", single)
            self.register_buffer("single_precision_mean", single @ mean)

    def forward(self, x):
        r, R = self.encoder((self.link(x) - self.location) / self.scale)
        if not self.is_mixture:
            return r / (R + 1.0)
        evidence = torch.diag_embed(R)
        mean, covariance = moments(r + self.single_precision_mean, evidence + self.single_precision)
        q = self.probabilities(mean, covariance)
        for _ in range(self.n_rounds):
            added = torch.einsum("nk,kij->nij", q, self.precision)
            mean, covariance = moments(r + q @ self.precision_mean, evidence + added)
            q = self.probabilities(mean, covariance)
        return mean, q

    def probabilities(self, mean, covariance):
        """``q(k)``, proportional to ``exp E[log pi_k N(z | mu_k, Sigma_k)]``."""
        second = covariance + mean[:, :, None] * mean[:, None, :]
        logits = self.log_weights + 0.5 * (self.log_det - self.quadratic)
        logits = logits + mean @ self.precision_mean.T
        logits = logits - 0.5 * torch.einsum("nij,kij->nk", second, self.precision)
        return logits.softmax(-1)


class Decode(nn.Module):
    """Latents to the means of rows, in the units of X."""

    def __init__(self, estimator):
        super().__init__()
        self.model = estimator._rebuild()
        self.register_buffer("location", torch.tensor(estimator.location_))
        self.register_buffer("scale", torch.tensor(estimator.scale_))

    def forward(self, z):
        likelihood = self.model.likelihood
        mean = likelihood.mean(self.model.decode(z), self.model.noise_params)
        return mean * self.scale + self.location if likelihood.standardizes else mean


def moments(precision_mean, precision):
    """Mean and covariance of Gaussians, by Gauss-Jordan elimination: ONNX has no inverse."""
    dim = precision.shape[-1]
    eye = torch.eye(dim, dtype=precision.dtype)
    both = torch.cat([precision, eye.expand_as(precision)], -1)
    for i in range(dim):
        row = both[:, i : i + 1] / both[:, i : i + 1, i : i + 1]
        both = both - (both[:, :, i : i + 1] - eye[:, i : i + 1]) * row
    covariance = both[:, :, dim:]
    return (covariance @ precision_mean[:, :, None])[:, :, 0], covariance


def link(likelihood):
    """``likelihood.working_features`` on tensors."""
    if likelihood.standardizes:
        return lambda x: x
    if likelihood.name == "bernoulli":
        return lambda x: torch.log((x + 0.5) / (1.5 - x))
    offset = 0.5 if likelihood.name == "poisson" else likelihood.offset
    shift = likelihood.working_features(np.ones((1, 1))).item() - math.log(1.0 + offset)
    return lambda x: torch.log(x + offset) + shift


def export(estimator, folder, n_rounds=20):
    """Write ``encode.onnx`` and ``decode.onnx`` to a folder, for any number of rows."""
    rows = {0: torch.export.Dim("n_samples")}
    n_features, latent_dim = estimator.n_features_in_, estimator.latent_dim_
    for name, module, n_inputs in (
        ("encode", Encode(estimator, n_rounds), n_features),
        ("decode", Decode(estimator), latent_dim),
    ):
        example = torch.ones(3, n_inputs, dtype=torch.tensor(estimator.location_).dtype)
        torch.onnx.export(
            module.eval(),
            (example,),
            Path(folder) / f"{name}.onnx",
            dynamic_shapes=(rows,),
            external_data=False,
            verbose=False,
        )
