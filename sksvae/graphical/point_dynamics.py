# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics with point parameters: prediction, forecasts and draws, forward in time."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam.numerics import cholesky, standard_normal, symmetrize
from sksvae.graphical.api import Potentials
from sksvae.graphical.gaussian_chain import chain_roles, clean_potentials


class DynamicsParameters(NamedTuple):
    """Point parameters of linear dynamics.

    Parameters
    ----------
    transition_matrix : Tensor of shape (latent_dim, latent_dim)
        ``A`` in ``z_t ~ N(A z_{t-1} + b, Q)``.
    offset : Tensor of shape (latent_dim,)
        ``b``.
    noise_covariance : Tensor of shape (latent_dim, latent_dim)
        ``Q``.
    initial_mean : Tensor of shape (latent_dim,)
        ``mu_0`` in ``z_1 ~ N(mu_0, Sigma_0)``.
    initial_covariance : Tensor of shape (latent_dim, latent_dim)
        ``Sigma_0``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsParameters
    >>> eye, zeros = torch.eye(2), torch.zeros(2)
    >>> DynamicsParameters(0.9 * eye, zeros, eye, zeros, eye).spectral_radius
    0.89999...
    """

    transition_matrix: Tensor
    offset: Tensor
    noise_covariance: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of an eigenvalue of ``A``: below 1, the dynamics are stationary."""
        return float(torch.linalg.eigvals(self.transition_matrix).abs().max())


@torch.no_grad()
def predictive_moments(
    parameters: DynamicsParameters, potentials: Potentials, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Moments of each step given the potentials of the steps before it: a Kalman filter.

    With ``s`` the square root of the diagonal ``R``, a potential is an observation ``o = r / s`` of
    ``s z`` with unit noise. With ``P = F'F`` and ``Q = N'N`` one orthogonal triangularisation takes
    a step [1]_: it leaves the products between columns as they are, so that ::

        [ F s  F A'    0    ]   [ U  V  x ]    U'U = I + s P s,   U'V = s P A',   U'x = o - s m,
        [ I    0    o - s m ] ~ [ 0  W  * ]    W'W = A (P^-1 + R)^-1 A' + Q,
        [ 0    N       0    ]   [ 0  0  * ]    A m + b + V'x is the next mean.

    No covariance is ever a difference, and rows that may be large come first, as reflections need
    it. So nothing is lost however precise potentials are, and an unobserved step, ``R = 0``, needs
    no care.

    Parameters
    ----------
    parameters : DynamicsParameters
        Of the chain.
    potentials : Potentials
        Evidence for each step, of shape (n_sequences, n_steps, latent_dim).
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist; one whose predecessor does not starts a sequence of its own.

    Returns
    -------
    mean : Tensor of shape (n_sequences, n_steps, latent_dim)
        ``E[z_t | l_1, ..., l_{t-1}]``, zero where the step does not exist.
    covariance : Tensor of shape (n_sequences, n_steps, latent_dim, latent_dim)
        Its covariance.

    Raises
    ------
    torch.linalg.LinAlgError
        If potentials or moments are not finite.

    References
    ----------
    .. [1] Kailath, Sayed and Hassibi, "Linear Estimation", Prentice Hall 2000, chapter 12.

    Examples
    --------
    A random walk, observed at its first step:

    >>> import torch
    >>> from sksvae.graphical import DynamicsParameters, Potentials
    >>> from sksvae.graphical.point_dynamics import predictive_moments
    >>> one, none = torch.ones(1, 1), torch.zeros(1)
    >>> walk = DynamicsParameters(one, none, one, none, one)
    >>> evidence = Potentials(torch.tensor([[[2.0], [0], [0]]]), torch.tensor([[[1.0], [0], [0]]]))
    >>> mean, covariance = predictive_moments(walk, evidence, torch.ones(1, 3, dtype=torch.bool))
    >>> covariance.flatten()
    tensor([1.0000, 1.5000, 2.5000])
    """
    return _filtered(parameters, potentials, mask, None)[:2]


@torch.no_grad()
def predictive_stretches(
    parameters: DynamicsParameters, stretches: Iterable[Potentials]
) -> Iterator[tuple[Tensor, Tensor]]:
    """`predictive_moments` of one sequence, stretch by stretch.

    Parameters
    ----------
    parameters : DynamicsParameters
        Of the chain.
    stretches : iterable of Potentials
        Evidence for the steps of each stretch, in order, of shape (1, n_steps, latent_dim).

    Yields
    ------
    mean : Tensor of shape (1, n_steps, latent_dim)
        Of the predictions for each stretch.
    covariance : Tensor of shape (1, n_steps, latent_dim, latent_dim)
        Theirs.

    Raises
    ------
    torch.linalg.LinAlgError
        If potentials or moments are not finite.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsParameters, Potentials
    >>> from sksvae.graphical.point_dynamics import predictive_stretches
    >>> one, none = torch.ones(1, 1), torch.zeros(1)
    >>> walk = DynamicsParameters(one, none, one, none, one)
    >>> seen, unseen = (Potentials(0 * one[None], R * one[None]) for R in (1, 0))
    >>> parts = predictive_stretches(walk, [seen, unseen, unseen])
    >>> torch.cat([covariance.flatten() for _, covariance in parts])
    tensor([1.0000, 1.5000, 2.5000])
    """
    state = None
    for potentials in stretches:
        mask = torch.ones_like(potentials.precision[..., 0], dtype=torch.bool)
        mean, covariance, state = _filtered(parameters, potentials, mask, state)
        yield mean, covariance


def _filtered(
    parameters: DynamicsParameters,
    potentials: Potentials,
    mask: Tensor,
    state: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Moments of `predictive_moments`, and what the filter knows of the step after the last.

    With such a ``state`` the first step continues what was before.
    """
    A, b, Q, initial_mean, initial_covariance = parameters
    r, R = clean_potentials(potentials, mask)
    n_sequences, n_steps, dim = r.shape
    starts, _ = chain_roles(mask)
    if state is not None:
        starts[:, 0] = False
    some_start = starts.any(0).tolist()
    roots = R.sqrt()
    observed = torch.where(r == 0, 0.0, r / roots)
    initial_factor = cholesky(initial_covariance, "initial_covariance").mT
    array = r.new_zeros(n_sequences, 3 * dim, 2 * dim + 1)
    array[:, dim : 2 * dim, :dim] = torch.eye(dim, dtype=r.dtype, device=r.device)
    array[:, 2 * dim :, dim:-1] = cholesky(Q, "noise_covariance").mT
    transition = A.mT.expand(n_sequences, dim, dim)
    surprise = array[:, dim : 2 * dim, -1]
    seen, moved = array[:, :dim, :dim], array[:, :dim, dim:-1]
    means, factors = torch.zeros_like(r), r.new_zeros(n_sequences, n_steps, dim, dim)
    m, F = (means[:, 0], factors[:, 0]) if state is None else state
    for t, (o, s) in enumerate(zip(observed.unbind(1), roots.unbind(1), strict=True)):
        if some_start[t]:
            m = torch.where(starts[:, t, None], initial_mean, m)
            F = torch.where(starts[:, t, None, None], initial_factor, F)
        means[:, t], factors[:, t] = m, F
        torch.addcmul(o, s, m, value=-1.0, out=surprise)
        torch.mul(F, s.unsqueeze(1), out=seen)
        torch.bmm(F, transition, out=moved)
        triangle = torch.linalg.qr(array, mode="r").R
        V, x = triangle[:, :dim, dim:-1], triangle[:, :dim, -1:]
        F = triangle[:, dim : 2 * dim, dim:-1]
        m = torch.addmm(b, m, A.mT) + (V.mT @ x).squeeze(-1)
    means.masked_fill_(~mask.unsqueeze(-1), 0.0)
    factors.masked_fill_(~mask[..., None, None], 0.0)
    covariances = factors.mT @ factors
    if not (means.isfinite().all() and covariances.isfinite().all()):
        raise torch.linalg.LinAlgError(
            "predictive moments are not finite: the potentials or the dynamics hold non-finite or "
            "extreme values, or the dynamics are unstable; the transition matrix has spectral "
            f"radius {parameters.spectral_radius:.4g}."
        )
    return means, covariances, (m, F)


@torch.no_grad()
def forecast_moments(
    parameters: DynamicsParameters, mean: Tensor, covariance: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """Moments of the steps that follow one of known moments.

    Parameters
    ----------
    parameters : DynamicsParameters
        Of the chain.
    mean : Tensor of shape (n_sequences, latent_dim)
        Of the last step.
    covariance : Tensor of shape (n_sequences, latent_dim, latent_dim)
        Of the last step.
    n_steps : int
        Number of steps to look ahead.

    Returns
    -------
    mean : Tensor of shape (n_sequences, n_steps, latent_dim)
        ``m_{t+1} = A m_t + b``.
    covariance : Tensor of shape (n_sequences, n_steps, latent_dim, latent_dim)
        ``P_{t+1} = A P_t A' + Q``.

    Raises
    ------
    OverflowError
        If the moments grow beyond the floating point range, under an unstable transition matrix.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsParameters
    >>> from sksvae.graphical.point_dynamics import forecast_moments
    >>> one, none = torch.ones(1, 1), torch.zeros(1)
    >>> decay = DynamicsParameters(0.5 * one, none, one, none, one)
    >>> mean, covariance = forecast_moments(decay, one, one[None], 3)
    >>> mean.flatten(), covariance.flatten()
    (tensor([0.5000, 0.2500, 0.1250]), tensor([1.2500, 1.3125, 1.3281]))
    """
    A, b, Q, *_ = parameters
    n_sequences, dim = mean.shape
    means = mean.new_empty(n_sequences, n_steps, dim)
    covariances = mean.new_empty(n_sequences, n_steps, dim, dim)
    for t in range(n_steps):
        mean = mean @ A.mT + b
        covariance = symmetrize(A @ covariance @ A.mT + Q)
        means[:, t], covariances[:, t] = mean, covariance
    _check_range(parameters, means, covariances)
    return means, covariances


@torch.no_grad()
def continue_draws(
    parameters: DynamicsParameters, start: Tensor, n_steps: int, generator: torch.Generator
) -> Tensor:
    """Draw the steps that follow given ones.

    Parameters
    ----------
    parameters : DynamicsParameters
        Of the chain.
    start : Tensor of shape (..., latent_dim)
        The steps before the first draw.
    n_steps : int
        Number of steps to draw.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Tensor of shape (..., n_steps, latent_dim)
        Draws.

    Raises
    ------
    OverflowError
        If draws leave the floating point range, under an unstable transition matrix.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsParameters
    >>> from sksvae.graphical.point_dynamics import continue_draws
    >>> one, none = torch.ones(1, 1), torch.zeros(1)
    >>> decay = DynamicsParameters(0.5 * one, none, 1e-12 * one, none, one)
    >>> continue_draws(decay, one, 3, torch.Generator().manual_seed(0)).flatten()
    tensor([0.5000, 0.2500, 0.1250])
    """
    A, b, Q, *_ = parameters
    shape = (*start.shape[:-1], n_steps, start.shape[-1])
    noise = standard_normal(shape, start, generator) @ cholesky(Q, "noise_covariance").mT
    z, steps = start, noise
    for t in range(n_steps):
        z = z @ A.mT + b + noise[..., t, :]
        steps[..., t, :] = z
    _check_range(parameters, steps)
    return steps


def _check_range(parameters: DynamicsParameters, *values: Tensor) -> None:
    if not all(value.isfinite().all() for value in values):
        raise OverflowError(
            "the dynamics leave the floating point range: the transition matrix has spectral "
            f"radius {parameters.spectral_radius:.4g}, where below 1 is stationary; look fewer "
            "steps ahead or replace the transition matrix."
        )
