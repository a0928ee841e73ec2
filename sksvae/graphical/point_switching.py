# SPDX-License-Identifier: BSD-3-Clause
"""Switching linear dynamics with point parameters: forecasts and draws, forward in time."""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.numerics import cholesky, standard_normal, symmetrize


class SwitchingParameters(NamedTuple):
    """Point parameters of switching linear dynamics.

    Parameters
    ----------
    transition_matrices : Tensor of shape (n_states, latent_dim, latent_dim)
        ``A_k`` in ``z_t ~ N(A_k z_{t-1} + b_k, Q_k)``, where ``k = k_t``.
    offsets : Tensor of shape (n_states, latent_dim)
        ``b_k``.
    noise_covariances : Tensor of shape (n_states, latent_dim, latent_dim)
        ``Q_k``.
    initial_mean : Tensor of shape (latent_dim,)
        ``mu_0`` in ``z_1 ~ N(mu_0, Sigma_0)``.
    initial_covariance : Tensor of shape (latent_dim, latent_dim)
        ``Sigma_0``.
    initial_state_probabilities : Tensor of shape (n_states,)
        Of ``k_1``.
    state_transition_probabilities : Tensor of shape (n_states, n_states)
        Of ``k_t`` given ``k_{t-1}``: rows belong to the earlier step.

    Examples
    --------
    A state that decays and one that grows:

    >>> import torch
    >>> from sksvae.graphical import SwitchingParameters
    >>> A = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    >>> Q, half = torch.ones(2, 1, 1), torch.full((2,), 0.5)
    >>> both = SwitchingParameters(A, torch.zeros(2, 1), Q, torch.zeros(1), Q[0], half,
    ...                            torch.eye(2))
    >>> both.spectral_radii
    tensor([0.5000, 2.0000])
    """

    transition_matrices: Tensor
    offsets: Tensor
    noise_covariances: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor
    initial_state_probabilities: Tensor
    state_transition_probabilities: Tensor

    @property
    def spectral_radii(self) -> Tensor:
        """Largest modulus of an eigenvalue of each ``A_k``, of shape (n_states,).

        Below 1, a state on its own is stationary.
        """
        return torch.linalg.eigvals(self.transition_matrices).abs().amax(-1)


class SwitchingForecast(NamedTuple):
    """Moments of steps ahead, for each state that they may be in.

    Parameters
    ----------
    state_probabilities : Tensor of shape (n_sequences, n_steps, n_states)
        Of ``k_t``.
    means : Tensor of shape (n_sequences, n_steps, n_states, latent_dim)
        ``E[z_t | k_t]``.
    covariances : Tensor of shape (n_sequences, n_steps, n_states, latent_dim, latent_dim)
        ``Cov[z_t | k_t]``.
    """

    state_probabilities: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """``E[z_t]``, of shape (n_sequences, n_steps, latent_dim)."""
        return self._overall()[0].squeeze(-2)

    @property
    def covariance(self) -> Tensor:
        """``Cov[z_t]``, of shape (n_sequences, n_steps, latent_dim, latent_dim)."""
        return self._overall()[1].squeeze(-3)

    def _overall(self) -> tuple[Tensor, Tensor]:
        return mixture_moments(self.state_probabilities.unsqueeze(-2), self.means, self.covariances)


def mixture_moments(weights: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of several mixtures of the same K distributions.

    Parameters
    ----------
    weights : Tensor of shape (..., n_mixtures, K)
        Of the distributions in each mixture.
    means : Tensor of shape (..., K, D)
        Of the distributions.
    covariances : Tensor of shape (..., K, D, D)
        Of the distributions.

    Returns
    -------
    mean : Tensor of shape (..., n_mixtures, D)
        Of the mixtures.
    covariance : Tensor of shape (..., n_mixtures, D, D)
        Within distributions and between them.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical.point_switching import mixture_moments
    >>> means = torch.tensor([[0.0], [2.0]])
    >>> mixture_moments(torch.tensor([[0.5, 0.5]]), means, torch.ones(2, 1, 1))
    (tensor([[1.]]), tensor([[[2.]]]))
    """
    mean = weights @ means
    deviation = means.unsqueeze(-3) - mean.unsqueeze(-2)  # (..., n_mixtures, K, D)
    spread = deviation.mT @ (weights.unsqueeze(-1) * deviation)
    within = (weights @ covariances.flatten(-2)).unflatten(-1, covariances.shape[-2:])
    return mean, within + spread


@torch.no_grad()
def forecast_moments(
    parameters: SwitchingParameters,
    mean: Tensor,
    covariance: Tensor,
    state_probabilities: Tensor,
    n_steps: int,
) -> SwitchingForecast:
    """Moments of the steps that follow one of known moments, exactly.

    States do not depend on latents, so the first two moments of ``z_t`` given ``k_t`` obey a closed
    recursion: those of ``z_t`` given ``k_{t+1}`` are a mixture over ``k_t``, which the dynamics of
    ``k_{t+1}`` then move, ::

        p_{t+1}(j) = sum_i p_t(i) pi_ij,    w_i = p_t(i) pi_ij / p_{t+1}(j),
        m = sum_i w_i m_t(i),    P = sum_i w_i (P_t(i) + (m_t(i) - m) (m_t(i) - m)'),
        m_{t+1}(j) = A_j m + b_j,    P_{t+1}(j) = A_j P A_j' + Q_j.

    Parameters
    ----------
    parameters : SwitchingParameters
        Of the chain.
    mean : Tensor of shape (n_sequences, latent_dim)
        Of the last latent.
    covariance : Tensor of shape (n_sequences, latent_dim, latent_dim)
        Of the last latent.
    state_probabilities : Tensor of shape (n_sequences, n_states)
        Of the last state, independent of the latent as in q(z) q(k).
    n_steps : int
        Number of steps to look ahead.

    Returns
    -------
    SwitchingForecast
        Moments given a state of probability zero are finite and mean nothing.

    Raises
    ------
    OverflowError
        If the moments grow beyond the floating point range, under an unstable transition matrix.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import SwitchingParameters
    >>> from sksvae.graphical.point_switching import forecast_moments
    >>> A = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    >>> Q, half = torch.ones(2, 1, 1), torch.full((2,), 0.5)
    >>> both = SwitchingParameters(A, torch.zeros(2, 1), Q, torch.zeros(1), Q[0], half,
    ...                            torch.eye(2))
    >>> forecast = forecast_moments(both, torch.ones(1, 1), Q[:1], half[None], 2)
    >>> forecast.means.flatten(), forecast.mean.flatten()
    (tensor([0.5000, 2.0000, 0.2500, 4.0000]), tensor([1.2500, 2.1250]))
    """
    A, b, Q, *_, table = parameters
    (n_sequences, dim), n_states = mean.shape, len(table)
    probabilities = mean.new_empty(n_sequences, n_steps, n_states)
    means = mean.new_empty(n_sequences, n_steps, n_states, dim)
    covariances = mean.new_empty(n_sequences, n_steps, n_states, dim, dim)
    p = state_probabilities
    m = mean.unsqueeze(1).expand(-1, n_states, -1)
    P = covariance.unsqueeze(1).expand(-1, n_states, -1, -1)
    for t in range(n_steps):
        joint = p.unsqueeze(-2) * table.mT  # the later state comes first
        total = joint.sum(-1, keepdim=True)
        weights = torch.where(total > 0, joint / total, p.unsqueeze(-2))
        p = total.squeeze(-1)
        m, P = mixture_moments(weights, m, P)
        m = (A @ m.unsqueeze(-1)).squeeze(-1) + b
        P = symmetrize(A @ P @ A.mT + Q)
        probabilities[:, t], means[:, t], covariances[:, t] = p, m, P
    _check_range(parameters, means, covariances)
    return SwitchingForecast(probabilities, means, covariances)


@torch.no_grad()
def continue_draws(
    parameters: SwitchingParameters,
    start: Tensor,
    states: Tensor,
    n_steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw the steps that follow given ones.

    Parameters
    ----------
    parameters : SwitchingParameters
        Of the chain.
    start : Tensor of shape (..., latent_dim)
        Latents before the first draw.
    states : Tensor of int64 of shape (...)
        States before the first draw.
    n_steps : int
        Number of steps to draw.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    z : Tensor of shape (..., n_steps, latent_dim)
        Latents.
    states : Tensor of int64 of shape (..., n_steps)
        States.

    Raises
    ------
    OverflowError
        If draws leave the floating point range, under an unstable transition matrix.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import SwitchingParameters
    >>> from sksvae.graphical.point_switching import continue_draws
    >>> A, Q = torch.tensor([0.5, 2.0]).view(2, 1, 1), 1e-12 * torch.ones(2, 1, 1)
    >>> take_turns = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> both = SwitchingParameters(A, torch.zeros(2, 1), Q, torch.zeros(1), Q[0],
    ...                            torch.full((2,), 0.5), take_turns)
    >>> generator = torch.Generator().manual_seed(0)
    >>> z, states = continue_draws(both, torch.ones(1), torch.tensor(0), 3, generator)
    >>> z.flatten(), states
    (tensor([2.0000, 1.0000, 2.0000]), tensor([1, 0, 1]))
    """
    path = _continue_states(parameters.state_transition_probabilities, states, n_steps, generator)
    return _draw_latents(parameters, start, path, generator), path


@torch.no_grad()
def draw_sequences(
    parameters: SwitchingParameters,
    n_steps: int,
    n_sequences: int,
    generator: torch.Generator,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw sequences from their beginning.

    Parameters
    ----------
    parameters : SwitchingParameters
        Of the chain.
    n_steps : int
        Length of each sequence.
    n_sequences : int
        Number of sequences.
    generator : torch.Generator
        Source of randomness.
    states : Tensor of int64 of shape (n_sequences, n_steps) or None, default=None
        States, if they are given: then only latents are drawn.

    Returns
    -------
    z : Tensor of shape (n_sequences, n_steps, latent_dim)
        Latents.
    states : Tensor of int64 of shape (n_sequences, n_steps)
        States.

    Raises
    ------
    OverflowError
        If draws leave the floating point range, under an unstable transition matrix.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import SwitchingParameters
    >>> from sksvae.graphical.point_switching import draw_sequences
    >>> eye, one = torch.eye(2).expand(3, 2, 2), torch.ones(3) / 3
    >>> walk = SwitchingParameters(eye, torch.zeros(3, 2), eye, torch.zeros(2), eye[0], one,
    ...                            one.expand(3, 3))
    >>> z, states = draw_sequences(walk, 5, 4, torch.Generator().manual_seed(0))
    >>> z.shape, states.shape
    (torch.Size([4, 5, 2]), torch.Size([4, 5]))
    """
    mean = parameters.initial_mean
    noise = standard_normal((n_sequences, len(mean)), mean, generator)
    first = mean + noise @ cholesky(parameters.initial_covariance, "initial_covariance").mT
    if states is None:
        *_, initial, table = parameters
        state = _draw_states(initial.expand(n_sequences, -1), generator)
        later = _continue_states(table, state, n_steps - 1, generator)
        states = torch.cat([state.unsqueeze(1), later], 1)
    # The first state has no dynamics of its own.
    z = _draw_latents(parameters, first, states[:, 1:], generator)
    return torch.cat([first.unsqueeze(1), z], 1), states


def _draw_latents(
    parameters: SwitchingParameters, start: Tensor, path: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw the latents that follow given ones, under a path of states."""
    A, b, Q, *_ = parameters
    shape = (*path.shape, start.shape[-1])
    noise = standard_normal(shape, start, generator).unsqueeze(-1)
    z, factors = start.unsqueeze(-1), cholesky(Q, "noise_covariances")
    steps = noise.new_empty(shape)
    for t in range(path.shape[-1]):
        k = path[..., t]
        z = A[k] @ z + b[k].unsqueeze(-1) + factors[k] @ noise[..., t, :, :]
        steps[..., t, :] = z.squeeze(-1)
    _check_range(parameters, steps)
    return steps


def _continue_states(
    table: Tensor, states: Tensor, n_steps: int, generator: torch.Generator
) -> Tensor:
    path = torch.empty(*states.shape, n_steps, dtype=torch.long, device=states.device)
    for t in range(n_steps):
        states = _draw_states(table[states], generator)
        path[..., t] = states
    return path


def _draw_states(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the last axis; a probability of zero is never drawn."""
    edges = probabilities.cumsum(-1)
    shape = (*edges.shape[:-1], 1)
    uniform = torch.rand(shape, generator=generator, dtype=edges.dtype, device=edges.device)
    # In [0, 1) times the total, whatever rounding has made of that.
    return (uniform * edges[..., -1:] >= edges).sum(-1).clamp_max(edges.shape[-1] - 1)


def _check_range(parameters: SwitchingParameters, *values: Tensor) -> None:
    if not all(value.isfinite().all() for value in values):
        radii = parameters.spectral_radii
        raise OverflowError(
            f"the dynamics leave the floating point range: the transition matrix of state "
            f"{int(radii.argmax())} has spectral radius {float(radii.max()):.4g}, where below 1 is "
            "stationary; look fewer steps ahead or replace the transition matrix."
        )
