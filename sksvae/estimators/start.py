# SPDX-License-Identifier: BSD-3-Clause
"""Starting points: a linear model on the principal axes, and a sample of rows to go on with."""

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from sksvae.estimators.scaling import Scaling, rows_of_a_piece
from sksvae.graphical import GraphicalModel
from sksvae.inference import FixedPointSettings
from sksvae.initialization import principal_axes
from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows, StructuredVAE

_MIN_PRECISION = 1e-2  # of the potentials at the start, for latents that no feature depends on

_SAMPLE_ROWS = 10_000  # enough to compare mixtures by


def sample_rows(rows: Rows, random_state: np.random.RandomState) -> tuple[Rows, float]:
    """Choose rows to find or to judge a latent structure by, where all are not needed.

    Parameters
    ----------
    rows : Rows
        Training rows.
    random_state : RandomState
        For the choice.

    Returns
    -------
    sample : Rows
        At most 10,000 of them.
    weight : float
        How many rows each of them stands for.
    """
    if len(rows) <= _SAMPLE_ROWS:
        return rows.take(slice(None)), 1.0
    chosen = random_state.permutation(len(rows))[:_SAMPLE_ROWS]
    sample = rows.take(torch.as_tensor(chosen, device=rows.observed.device))
    return sample, len(rows) / _SAMPLE_ROWS


def linear_model(
    rows: Rows,
    scaling: Scaling,
    likelihood: Likelihood,
    graphical: GraphicalModel,
    hidden_layer_sizes: tuple[int, ...],
    activation: str,
    settings: FixedPointSettings,
    generator: torch.Generator,
) -> StructuredVAE:
    """Model whose networks project on the principal axes, their nonlinear parts near zero.

    Parameters
    ----------
    rows : Rows
        Training rows.
    scaling : Scaling
        That made ``rows``.
    likelihood : Likelihood
        Observation model.
    graphical : GraphicalModel
        Latent structure; says how many axes.
    hidden_layer_sizes : tuple of int
        Hidden layers of the encoder.
    activation : str
        Their activation.
    settings : FixedPointSettings
        Of local inference in training.
    generator : torch.Generator
        For the weights of the nonlinear parts.

    Returns
    -------
    StructuredVAE
        In the type and on the device of ``rows``. Noise starts at what the axes leave, and the
        potentials at the precision that the likelihood then has.
    """
    n_features = rows.observed.shape[1]
    latent_dim = graphical.latent_dim
    axes, left = principal_axes(_with_the_same_moments(rows), latent_dim)
    like = rows.encoded

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=like.dtype, device=like.device)

    model = StructuredVAE(
        n_features,
        latent_dim,
        hidden_layer_sizes,
        activation,
        likelihood,
        graphical,
        tensor(scaling.location),
        tensor(scaling.scale),
        settings,
    ).to(like.device)
    # Two rows with the variances that the linear model leaves, in the units of the likelihood.
    deviations = np.sqrt(left) * (1.0 if likelihood.standardizes else scaling.scale)
    working = tensor(np.stack([deviations, -deviations]))
    for name, value in likelihood.init_params(working, n_features, like.dtype).items():
        model.likelihood_params[name].data.copy_(value)
    further = likelihood.init_outputs(n_features, working, like.dtype)
    model.decoder.reset(tensor(axes), further.to(like.device), generator)
    model.encoder.reset(tensor(axes), _evidence_precision(model, tensor(axes)), generator)
    return model


def _with_the_same_moments(rows: Rows) -> np.ndarray:
    """What the encoder sees of all rows, or a few rows with the second moments of many.

    Nothing else of them matters to principal axes.
    """
    n_features = rows.encoded.shape[1]
    n_at_once = rows_of_a_piece(n_features)
    parts = (part.encoded.double().cpu().numpy() for part in rows.parts(n_at_once))
    if len(rows) <= n_at_once:
        return next(parts)
    moments = sum(part.T @ part for part in parts) / len(rows)
    variances, vectors = linalg.eigh(moments)
    return np.sqrt(n_features * variances.clip(0.0))[:, None] * vectors.T


def _evidence_precision(model: StructuredVAE, axes: Tensor) -> Tensor:
    """What one row says about each latent, at the mean of the data and along the given axes."""
    with torch.no_grad():
        outputs = model.decode(axes.new_zeros(1, axes.shape[1]))
        precision = model.likelihood.noise_precision(model.noise_params, outputs)[0]
        if not model.likelihood.standardizes:
            precision = precision * model.link_scale.square()
        return (precision @ axes.square()).clamp_min(_MIN_PRECISION)
