# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics over latents, with exact inference in whole sequences."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sksvae.expfam import (
    MNIW,
    NIW,
    MNIWNatural,
    MNIWParams,
    MNIWStats,
    NIWNatural,
    NIWParams,
    NIWStats,
    natural_step,
)
from sksvae.expfam.numerics import cholesky, log_det, standard_normal
from sksvae.graphical.api import DEFAULT_SETTINGS, ChainPosterior, Potentials, SequenceModel
from sksvae.graphical.dynamics_prior import DynamicsPrior
from sksvae.graphical.gaussian_chain import (
    chain_posterior,
    chain_roles,
    chain_stats,
    chain_stretches,
    clean_potentials,
)
from sksvae.graphical.point_dynamics import (
    DynamicsParameters,
    continue_draws,
    forecast_moments,
    predictive_moments,
)
from sksvae.graphical.transition_tables import ChainNatural, NaturalTable
from sksvae.inference import FixedPointSettings
from sksvae.inference.block_tridiagonal import ChainMethod

_NIW = NIW()
_MNIW = MNIW()
_FAMILIES: tuple[Any, ...] = (_NIW, _MNIW)


class LinearDynamicsModel(SequenceModel):
    """``z_1 ~ N(mu_0, Sigma_0)``, ``z_t ~ N(A z_{t-1} + b, Q)`` with conjugate q(theta).

    ``q(theta) = NIW(mu_0, Sigma_0) MNIW([A b], Q)`` ([J] section 4, [P] appendix D). Inference in
    the latents is exact given expected parameters, in one block tridiagonal system per sequence.

    Parameters
    ----------
    prior : DynamicsPrior
        Prior over the parameters.
    posterior : DynamicsPrior or None, default=None
        ``q(theta)``; starts at the prior.

    Examples
    --------
    A gap between two observations is filled by what the dynamics expect:

    >>> import torch
    >>> from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials
    >>> walk = LinearDynamicsModel(DynamicsPrior.isotropic(1, transition_precision=1e6))
    >>> R = 100.0 * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(1, 3, 1)
    >>> evidence = Potentials(R * torch.tensor([0.0, 0.0, 4.0]).view(1, 3, 1), R)
    >>> mask = torch.ones(1, 3, dtype=torch.bool)
    >>> posterior = walk.infer(evidence, walk.expected_params(), mask)
    >>> posterior.mean.flatten().round(decimals=1)
    tensor([0.1000, 2.0000, 3.9000], dtype=torch.float64, grad_fn=<RoundBackward1>)
    """

    def __init__(self, prior: DynamicsPrior, posterior: DynamicsPrior | None = None) -> None:
        self.prior = prior
        self.posterior = prior if posterior is None else posterior
        self.latent_dim = prior.initial.mean.shape[-1]

    @cached_property
    def _natural_prior(self) -> tuple[NIWNatural, MNIWNatural]:
        return _NIW.to_natural(self.prior.initial), _MNIW.to_natural(self.prior.dynamics)

    def expected_params(self) -> tuple[Tensor, ...]:
        """Expected statistics of the initial state and of the dynamics, as leaves."""
        initial = _NIW.standard_expected_stats(self.posterior.initial)
        dynamics = _MNIW.standard_expected_stats(self.posterior.dynamics)
        return tuple(field.detach().requires_grad_() for field in (*initial, *dynamics))

    def infer(
        self,
        potentials: Potentials,
        params: tuple[Tensor, ...],
        mask: Tensor,
        noise: Tensor | None = None,
        method: ChainMethod = "auto",
        settings: FixedPointSettings = DEFAULT_SETTINGS,
        start: Tensor | None = None,
    ) -> ChainPosterior:
        """Exact posterior of each sequence under expected parameters.

        It takes no iteration: ``settings`` and ``start`` are not read.
        """
        potentials = clean_potentials(potentials, mask)
        starts, moves = _weights(mask, potentials.precision.dtype)
        dynamics = MNIWStats(*(field.unsqueeze(0) for field in params[4:]))
        natural = NaturalTable.build(NIWStats(*params[:4]), dynamics).chain(starts, moves)
        return chain_posterior(potentials, natural, mask, noise, method)

    def infer_stretches(
        self,
        potentials: Callable[[int, int], Potentials],
        params: tuple[Tensor, ...],
        cuts: Sequence[int],
    ) -> Iterator[ChainPosterior]:
        """`infer` for one sequence of any length, in bounded memory and without gradients.

        Parameters
        ----------
        potentials : callable
            ``potentials(a, b)`` gives the evidence of the steps from a to b, without b, of shape
            (1, b - a, latent_dim). Each step is asked for more than once.
        params : tuple of Tensor
            As from `expected_params`.
        cuts : sequence of int
            Where stretches begin, in order and from 0, and the number of steps.

        Returns
        -------
        iterator of ChainPosterior
            Of each stretch, see `sksvae.graphical.gaussian_chain.chain_stretches`.
        """
        dynamics = MNIWStats(*(field.unsqueeze(0) for field in params[4:]))
        table = NaturalTable.build(NIWStats(*params[:4]), dynamics)

        def natural(start: int, stop: int) -> ChainNatural:
            starts = table.shifts.new_zeros(1, stop - start)
            starts[:, 0] = float(start == 0)
            return table.chain(starts, table.shifts.new_ones(1, stop - start - 1, 1))

        return chain_stretches(potentials, natural, cuts)

    def prior_kl(self) -> Tensor:
        """``KL(q(theta) || p(theta))``, in nats."""
        initial = _NIW.standard_kl(self.posterior.initial, self.prior.initial)
        return initial + _MNIW.standard_kl(self.posterior.dynamics, self.prior.dynamics)

    def natural_step(self, gradient: Sequence[Tensor], step_size: float) -> None:
        """Step along ``gradient + eta_0 - eta``; size 1 is a coordinate update of [J]."""
        initial, dynamics = (
            tuple(g + p - q for g, p, q in zip(grad, prior, family.to_natural(post), strict=True))
            for family, grad, prior, post in zip(
                _FAMILIES,
                (gradient[:4], gradient[4:]),
                self._natural_prior,
                self.posterior,
                strict=True,
            )
        )
        self.posterior = DynamicsPrior(
            natural_step(_NIW, self.posterior.initial, NIWNatural(*initial), step_size),
            natural_step(_MNIW, self.posterior.dynamics, MNIWNatural(*dynamics), step_size),
        )

    @torch.no_grad()
    def total_stats(self, posterior: ChainPosterior) -> tuple[Tensor, ...]:
        """What the sequences add to the natural parameters, in the order of `expected_params`."""
        initial, dynamics = chain_stats(posterior, *_weights(posterior.mask, posterior.mean.dtype))
        return (*initial, *(field.squeeze(0) for field in dynamics))

    def coordinate_update(self, total_stats: Sequence[Tensor]) -> None:
        """Posterior of theta given the statistics of all sequences, exactly."""
        self.posterior = DynamicsPrior(
            natural_step(_NIW, self.prior.initial, NIWNatural(*total_stats[:4]), 1.0),
            natural_step(_MNIW, self.prior.dynamics, MNIWNatural(*total_stats[4:]), 1.0),
        )

    def point_parameters(self) -> DynamicsParameters:
        """Point estimates of the parameters.

        Returns
        -------
        DynamicsParameters
            Posterior means of ``A``, ``b`` and ``mu_0``; of covariances ``S / nu``, the inverse of
            the posterior mean of the precision.
        """
        initial, dynamics = self.posterior
        return DynamicsParameters(
            dynamics.mean[:, :-1],
            dynamics.mean[:, -1],
            dynamics.scale / dynamics.dof,
            initial.mean,
            initial.scale / initial.dof,
        )

    def point_stats(self) -> tuple[Tensor, ...]:
        """Statistics of the point parameters, in the place of `expected_params`.

        With them, `infer` gives the posterior under known dynamics, that of a Kalman smoother.

        Returns
        -------
        tuple of Tensor
            Without a gradient.
        """
        A, b, Q, mean, covariance = self.point_parameters()
        parts: list[Tensor] = []
        for X, Sigma in ((mean.unsqueeze(-1), covariance), (torch.cat([A, b[:, None]], -1), Q)):
            factor = cholesky(Sigma, "covariance")
            precision = torch.cholesky_inverse(factor)
            parts += [precision, precision @ X, X.mT @ precision @ X, -log_det(factor)]
        parts[1], parts[2] = parts[1].squeeze(-1), parts[2].squeeze()
        return tuple(parts)

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of an eigenvalue of the expected ``A``.

        From 1 on the dynamics are not stationary: forecasts grow without bound.
        """
        return self.point_parameters().spectral_radius

    def predictive_moments(self, potentials: Potentials, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of each step given the steps before it, under point parameters.

        Parameters
        ----------
        potentials : Potentials
            Evidence for each step, of shape (n_sequences, n_steps, latent_dim).
        mask : Tensor of bool of shape (n_sequences, n_steps)
            Which steps exist.

        Returns
        -------
        mean : Tensor of shape (n_sequences, n_steps, latent_dim)
            Of the predictions, without a gradient.
        covariance : Tensor of shape (n_sequences, n_steps, latent_dim, latent_dim)
            Of the predictions.

        See Also
        --------
        sksvae.graphical.point_dynamics.predictive_moments : The filter.
        """
        return predictive_moments(self.point_parameters(), potentials, mask)

    def forecast_moments(
        self, mean: Tensor, covariance: Tensor, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        """Moments of the steps that follow one of known moments, under point parameters.

        Parameters
        ----------
        mean : Tensor of shape (n_sequences, latent_dim)
            Posterior mean of the last step.
        covariance : Tensor of shape (n_sequences, latent_dim, latent_dim)
            Its posterior covariance.
        n_steps : int
            Number of steps to look ahead.

        Returns
        -------
        mean : Tensor of shape (n_sequences, n_steps, latent_dim)
            Of the forecasts, without a gradient.
        covariance : Tensor of shape (n_sequences, n_steps, latent_dim, latent_dim)
            Of the forecasts.

        Raises
        ------
        OverflowError
            If unstable dynamics leave the floating point range.
        """
        return forecast_moments(self.point_parameters(), mean, covariance, n_steps)

    def continue_draws(self, start: Tensor, n_steps: int, generator: torch.Generator) -> Tensor:
        """Draw the steps that follow given ones, under point parameters.

        Parameters
        ----------
        start : Tensor of shape (..., latent_dim)
            Last steps, such as draws from their posterior.
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
            If unstable dynamics leave the floating point range.
        """
        return continue_draws(self.point_parameters(), start, n_steps, generator)

    def sample(
        self, n_steps: int, n_sequences: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw sequences from the dynamics with their point estimates; all states are zero."""
        parameters = self.point_parameters()
        mean = parameters.initial_mean
        noise = standard_normal((n_sequences, self.latent_dim), mean, generator)
        factor = cholesky(parameters.initial_covariance, "initial_covariance")
        first = mean + noise @ factor.mT
        rest = continue_draws(parameters, first, n_steps - 1, generator)
        states = torch.zeros(n_sequences, n_steps, dtype=torch.long, device=mean.device)
        return torch.cat([first.unsqueeze(1), rest], 1), states

    def replace_dynamics(
        self,
        *,
        transition_matrix: Tensor | None = None,
        offset: Tensor | None = None,
        noise_covariance: Tensor | None = None,
    ) -> "LinearDynamicsModel":
        """Copy of the model with edited point parameters, as certain of them as before.

        Parameters
        ----------
        transition_matrix : Tensor of shape (latent_dim, latent_dim), optional
            New ``A``.
        offset : Tensor of shape (latent_dim,), optional
            New ``b``.
        noise_covariance : Tensor of shape (latent_dim, latent_dim), optional
            New ``Q``.

        Returns
        -------
        LinearDynamicsModel
            Its point parameters are the given ones and otherwise those of this model; it keeps
            the pseudo-counts ``V`` and ``nu`` and the prior.

        Raises
        ------
        ValueError
            If a shape does not fit, a value is not finite or the covariance is not symmetric.
        torch.linalg.LinAlgError
            If the noise covariance is not positive definite.

        Examples
        --------
        >>> import torch
        >>> from sksvae.graphical import DynamicsPrior, LinearDynamicsModel
        >>> model = LinearDynamicsModel(DynamicsPrior.isotropic(2))
        >>> model.replace_dynamics(transition_matrix=0.5 * torch.eye(2)).spectral_radius
        0.5
        """
        current, dynamics = self.point_parameters(), self.posterior.dynamics
        given = {
            "transition_matrix": transition_matrix,
            "offset": offset,
            "noise_covariance": noise_covariance,
        }
        edited = {
            name: _fitting(value, getattr(current, name), name)
            for name, value in given.items()
            if value is not None
        }
        merged = current._replace(**edited)
        scale = dynamics.scale
        if noise_covariance is not None:
            Q = merged.noise_covariance
            if not torch.allclose(Q, Q.mT):
                raise ValueError(f"noise_covariance must be symmetric, got {Q.tolist()}.")
            cholesky(Q, "noise_covariance")
            scale = dynamics.dof * Q
        mean = torch.cat([merged.transition_matrix, merged.offset.unsqueeze(-1)], -1)
        posterior = self.posterior._replace(dynamics=dynamics._replace(scale=scale, mean=mean))
        return LinearDynamicsModel(self.prior, posterior)

    def state(self) -> dict[str, Tensor]:
        """Prior and posterior parameters by name."""
        return {
            f"{name}.{part}.{field}": value
            for name, params in (("prior", self.prior), ("posterior", self.posterior))
            for part, fields in params._asdict().items()
            for field, value in fields._asdict().items()
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "LinearDynamicsModel":
        """Rebuild from `state`."""

        def read(name: str) -> DynamicsPrior:
            return DynamicsPrior(
                NIWParams(*(state[f"{name}.initial.{field}"] for field in NIWParams._fields)),
                MNIWParams(*(state[f"{name}.dynamics.{field}"] for field in MNIWParams._fields)),
            )

        return cls(read("prior"), read("posterior"))


def _weights(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Roles of steps as numbers, for the only dynamics there are."""
    starts, moves = chain_roles(mask)
    return starts.to(dtype), moves.to(dtype).unsqueeze(-1)


def _fitting(value: Tensor, current: Tensor, name: str) -> Tensor:
    value = torch.as_tensor(value, dtype=current.dtype, device=current.device)
    if value.shape != current.shape or not value.isfinite().all():
        raise ValueError(
            f"{name} must be finite and of shape {tuple(current.shape)}, got "
            f"{value.tolist() if value.shape == current.shape else tuple(value.shape)}."
        )
    return value
