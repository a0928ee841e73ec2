# SPDX-License-Identifier: BSD-3-Clause
"""Starting points for sequences: networks and dynamics of a linear state space model."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sksvae.estimators.scaling import Scaling
from sksvae.expfam import MNIWParams, NIWParams
from sksvae.graphical import (
    ChainPosterior,
    DynamicsPrior,
    LinearDynamicsModel,
    Potentials,
)
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.base import Likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded
from sksvae.state_space import StateSpace
from sksvae.stored_rows import StoredSequenceRows

# Least precision of a potential at the start: directions of which one step says nothing keep a
# gradient, and what they lose is far below what the unit variance of the latents says.
_MIN_PRECISION = 1e-2
# Pseudo-counts behind [A b] and scales of Q, in units of the latents, that compete where the user
# names none: from little memory to oscillations that hardly fade, whose damping a count of one
# would multiply.
_PRIORS = ((1.0, 0.1), (0.1, 0.1), (0.01, 0.01), (1e-3, 1e-4))


def competing_priors(
    latent_dim: int,
    like: Tensor,
    precision: float | None,
    scale: np.ndarray | None,
    dof: float | None,
) -> list[DynamicsPrior]:
    """Priors of linear dynamics, one for each choice of what is left open.

    Parameters
    ----------
    latent_dim : int
        Dimension of the latents.
    like : Tensor
        Says of what type and on what device.
    precision : float or None
        Pseudo-count behind the mean of ``[A b]``, which is zero.
    scale : ndarray of shape (latent_dim, latent_dim) or None
        Scale matrix of the inverse Wishart over ``Q``.
    dof : float or None
        Degrees of freedom of both inverse Wisharts; None is no choice but ``latent_dim + 2``.

    Returns
    -------
    list of DynamicsPrior
        A single one if ``precision`` and ``scale`` are given.
    """
    priors = {}
    for default_precision, default_scale in _PRIORS:
        key = (
            default_precision if precision is None else float(precision),
            default_scale if scale is None else 1.0,
        )
        prior = DynamicsPrior.isotropic(
            latent_dim,
            persistence=0.0,
            transition_precision=key[0],
            noise_scale=key[1],
            noise_dof=dof,
            initial_dof=dof,
            dtype=like.dtype,
            device=like.device,
        )
        if scale is not None:
            given = torch.as_tensor(scale, dtype=like.dtype, device=like.device)
            prior = prior._replace(dynamics=prior.dynamics._replace(scale=given))
        priors[key] = prior
    return list(priors.values())


def state_space_model(
    start: StateSpace,
    scaling: Scaling,
    likelihood: Likelihood,
    prior: DynamicsPrior,
    n_rows: int,
    hidden_layer_sizes: tuple[int, ...],
    activation: str,
    settings: FixedPointSettings,
    generator: torch.Generator,
) -> SequenceVAE:
    """Model that infers and predicts as a linear state space model does.

    In canonical coordinates the evidence of a row is a diagonal potential, so that a linear
    encoder gives it exactly, up to a floor on its precision. Nonlinear parts start near zero.

    Parameters
    ----------
    start : StateSpace
        In canonical coordinates, for standardised features.
    scaling : Scaling
        That standardised them.
    likelihood : Likelihood
        Observation model.
    prior : DynamicsPrior
        Over the dynamics, in the type and on the device that the model is to have.
    n_rows : int
        Steps that stand behind ``start``.
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
    SequenceVAE
        The model.
    """
    like = prior.initial.mean
    n_features, latent_dim = start.loading.shape

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=like.dtype, device=like.device)

    model = SequenceVAE(
        n_features,
        latent_dim,
        hidden_layer_sizes,
        activation,
        likelihood,
        LinearDynamicsModel(prior, _started(prior, start, n_rows)),
        tensor(scaling.location),
        tensor(scaling.scale),
        settings,
    ).to(like.device)
    # Two rows with the variances that the linear model leaves, in the units of the likelihood.
    deviations = np.sqrt(start.noise_variances)
    deviations = deviations * (1.0 if likelihood.standardizes else scaling.scale)
    working = tensor(np.stack([deviations, -deviations]))
    for name, value in likelihood.init_params(working, n_features, like.dtype).items():
        model.likelihood_params[name].data.copy_(value)
    further = likelihood.init_outputs(n_features, working, like.dtype)
    model.decoder.reset(tensor(start.loading), further.to(like.device), generator)
    weighted = start.loading / start.noise_variances[:, None]
    precision = np.maximum((weighted * start.loading).sum(0), _MIN_PRECISION)
    axes = weighted / precision
    model.encoder.reset(tensor(axes), tensor(precision), generator)
    with torch.no_grad():
        model.decoder.bias[0].copy_(tensor(start.mean))
        model.encoder.bias.copy_(tensor(-start.mean @ axes))
    return model


def _started(prior: DynamicsPrior, start: StateSpace, n_rows: int) -> DynamicsPrior:
    """Distribution over the dynamics around those of the start, as sure as its rows make it."""
    initial, dynamics = prior
    like = initial.mean

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=like.dtype, device=like.device)

    dof = dynamics.dof + n_rows
    regression = np.column_stack([start.transition, start.offset])
    eye = torch.eye(like.shape[0] + 1, dtype=like.dtype, device=like.device)
    return DynamicsPrior(
        NIWParams(
            tensor(start.initial_covariance) * (initial.dof + 1),
            tensor(start.initial_mean),
            initial.mean_precision + 1,
            initial.dof + 1,
        ),
        MNIWParams(
            tensor(start.transition_noise) * dof,
            tensor(regression),
            dynamics.mean_precision + n_rows * eye,
            dof,
        ),
    )


def fit_dynamics(
    model: SequenceVAE, rows: SequenceRows, *, max_iter: int, tol: float, chunk: int
) -> float:
    """Variational Bayes for the dynamics, from where they stand, with the networks as they are.

    Block updates of discrete states go on from the memory of the rows, if they have one.

    Parameters
    ----------
    model : SequenceVAE
        Its graphical model changes.
    rows : SequenceRows
        Sequences.
    max_iter : int
        Most rounds.
    tol : float
        Gain per row, in nats, at which to stop.
    chunk : int
        Steps, with padding, that are in memory at a time.

    Returns
    -------
    float
        Bound on the evidence of the potentials, per row, up to a constant.
    """
    bound = -np.inf
    with torch.no_grad():
        parts = _Encoded(model, rows, chunk)
        for _ in range(max_iter):
            previous = bound
            bound, total = _round(model, parts, len(rows))
            model.graphical.coordinate_update(total)
            if bound - previous < tol:
                break
    return bound


def dynamics_bound(model: SequenceVAE, rows: SequenceRows, *, chunk: int) -> float:
    """Bound on the evidence of the potentials, per row, up to a constant.

    Parameters
    ----------
    model : SequenceVAE
        The model.
    rows : SequenceRows
        Sequences.
    chunk : int
        Steps, with padding, that are in memory at a time.

    Returns
    -------
    float
        As `fit_dynamics` reports it, with q(theta) as it stands.
    """
    with torch.no_grad():
        return _round(model, _Encoded(model, rows, chunk), len(rows))[0]


class _Encoded:
    """Potentials of sequences, some of them at a time: kept, or found anew from stored rows."""

    def __init__(
        self, model: SequenceVAE, rows: SequenceRows | StoredSequenceRows, chunk: int
    ) -> None:
        self.model, self.rows, self.chunk = model, rows, chunk
        self.kept = None if isinstance(rows, StoredSequenceRows) else list(self._found())

    def __iter__(self) -> Iterator[tuple[Potentials, SequenceRows]]:
        return self._found() if self.kept is None else iter(self.kept)

    def _found(self) -> Iterator[tuple[Potentials, SequenceRows]]:
        for part in self.rows.parts(self.chunk):
            yield padded(self.model.encode(part), part.mask), part


def _round(
    model: SequenceVAE, parts: Iterable[tuple[Potentials, SequenceRows]], n_rows: int
) -> tuple[float, Sequence[Tensor]]:
    """Bound per row and total statistics under the dynamics as they stand."""
    graphical = model.graphical
    params = graphical.expected_params()
    evidence, total = 0.0, None
    for potentials, part in parts:
        posterior = graphical.infer(
            potentials, params, part.mask, settings=model.settings, start=part.recall()
        )
        part.remember(posterior)
        evidence += float(_evidence(potentials, posterior))
        stats = graphical.total_stats(posterior)
        if total is not None:
            stats = [old + new for old, new in zip(total, stats, strict=True)]
        total = stats
    return (evidence - float(graphical.prior_kl())) / n_rows, total


def _evidence(potentials: Potentials, posterior: ChainPosterior) -> Tensor:
    """``E_q[log l(z)] - KL``, about the mean of the potentials, where their size cancels."""
    r, R = potentials
    center = torch.where(R > 0, r / R, 0.0)
    variance = posterior.covariance.diagonal(dim1=-2, dim2=-1)
    square = (posterior.mean - center).square() + variance
    return -0.5 * (R * square).sum() - posterior.local_kl.sum()
