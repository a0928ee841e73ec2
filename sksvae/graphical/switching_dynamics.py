# SPDX-License-Identifier: BSD-3-Clause
"""Switching linear dynamics over latents, with structured mean field inference in sequences."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sksvae.expfam import (
    MNIW,
    NIW,
    Dirichlet,
    DirichletParams,
    MNIWParams,
    MNIWSample,
    NIWParams,
    NIWSample,
    TiedMNIW,
    TiedMNIWParams,
)
from sksvae.graphical.api import DEFAULT_SETTINGS, ChainPosterior, Potentials, SequenceModel
from sksvae.graphical.conjugate_parts import ConjugateParts
from sksvae.graphical.gaussian_chain import chain_roles, chain_stats
from sksvae.graphical.point_switching import (
    SwitchingForecast,
    SwitchingParameters,
    continue_draws,
    draw_sequences,
    forecast_moments,
)
from sksvae.graphical.switching_inference import (
    SwitchingPosterior,
    SwitchingProblem,
    infer_switching,
)
from sksvae.graphical.switching_prior import SwitchingPrior
from sksvae.graphical.switching_starts import StartKind, keep_best, start_switching
from sksvae.graphical.switching_terms import split_local_kl
from sksvae.inference import FixedPointSettings, most_probable_path
from sksvae.inference.block_tridiagonal import ChainMethod


class SwitchingDynamicsModel(ConjugateParts[ChainPosterior], SequenceModel):
    """``z_t ~ N(A_k z_{t-1} + b_k, Q_k)`` with a Markov chain of states ``k = k_t``.

    ``k_1 ~ Cat(pi_0)``, ``k_t ~ Cat(pi_{k_{t-1}})`` and ``z_1 ~ N(mu_0, Sigma_0)`` whatever
    ``k_1``; ``q(theta) = NIW(mu_0, Sigma_0) Dir(pi_0) prod_k MNIW([A_k b_k], Q_k) Dir(pi_k)`` ([P]
    section 4 and appendix D). With dynamics of `TiedMNIWParams` there is one ``Q`` for all states.
    Inference is structured mean field, ``q(z_1:T) q(k_1:T)``; with one state it is exact and that
    of `LinearDynamicsModel`. Masks must be true for the first steps of each sequence.

    Parameters
    ----------
    prior : SwitchingPrior
        Prior over the parameters.
    posterior : SwitchingPrior or None, default=None
        ``q(theta)``; starts at the prior.

    Examples
    --------
    A walk that drifts up or down, and turns:

    >>> import torch
    >>> from sksvae.expfam import MNIWParams
    >>> from sksvae.graphical import (
    ...     DynamicsPrior, Potentials, SwitchingDynamicsModel, SwitchingPrior)
    >>> prior = SwitchingPrior.sticky(2, DynamicsPrior.isotropic(1), stickiness=9.0)
    >>> drift = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]], dtype=torch.float64)
    >>> ones = torch.ones(2, dtype=torch.float64)
    >>> counts = 1e4 * ones.diag().expand(2, 2, 2)
    >>> dynamics = MNIWParams(ones.view(2, 1, 1), drift, counts, 9 * ones)
    >>> model = SwitchingDynamicsModel(prior, prior._replace(dynamics=dynamics))
    >>> x = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.0, 1.0], dtype=torch.float64).view(1, 6, 1)
    >>> R = torch.full_like(x, 100.0)
    >>> mask = torch.ones(1, 6, dtype=torch.bool)
    >>> posterior = model.infer(Potentials(R * x, R), model.expected_params(), mask)
    >>> model.most_probable_path(posterior)
    tensor([[0, 0, 0, 0, 1, 1]])
    """

    parameters_type = SwitchingPrior

    def __init__(self, prior: SwitchingPrior, posterior: SwitchingPrior | None = None) -> None:
        super().__init__(prior, posterior)
        if self.posterior.families != prior.families:
            raise ValueError(
                f"posterior must have the families of the prior, {prior.families}, "
                f"got {self.posterior.families}."
            )
        self.latent_dim = prior.initial.mean.shape[-1]

    @property
    def families(self) -> tuple[Dirichlet | NIW | MNIW | TiedMNIW, ...]:  # type: ignore[override]
        """That of each part: of the dynamics, whether states share their noise."""
        return self.prior.families

    @property
    def n_states(self) -> int:
        """Number of states, used or not."""
        return self.prior.n_states

    def expected_params(self) -> tuple[Tensor, ...]:
        """Return expected statistics of q(theta), as leaves.

        Returns
        -------
        tuple of Tensor
            Four of the first latent, four of the dynamics with leading axis n_states,
            ``E log pi_0`` of shape (n_states,) and ``E log pi`` of shape (n_states, n_states).
        """
        return super().expected_params()

    # Inference -----------------------------------------------------------------------------------

    def infer(
        self,
        potentials: Potentials,
        params: tuple[Tensor, ...],
        mask: Tensor,
        noise: Tensor | None = None,
        method: ChainMethod = "auto",
        settings: FixedPointSettings = DEFAULT_SETTINGS,
        start: Tensor | None = None,
    ) -> SwitchingPosterior:
        """Structured mean field ``q(z) q(k)``, see `sksvae.graphical.switching_inference`.

        Without a ``start`` it is the ``'filter'`` of `starting_states`. Each sequence stops
        by itself, so that its posterior does not depend on the others.
        """
        problem = SwitchingProblem.build(potentials, params, mask)
        first = self._first("filter" if start is None else start, problem)
        return infer_switching(problem, first, noise, method, settings)

    def starting_states(
        self,
        potentials: Potentials,
        params: tuple[Tensor, ...],
        mask: Tensor,
        kind: StartKind = "filter",
    ) -> Tensor:
        """First ``q(k_t)`` for `infer`.

        Parameters
        ----------
        potentials : Potentials
            Evidence for each step, of shape (n_sequences, n_steps, latent_dim).
        params : tuple of Tensor
            As from `expected_params`.
        mask : Tensor of bool of shape (n_sequences, n_steps)
            Which steps exist.
        kind : {'filter', 'local', 'average'}, default='filter'
            ``'filter'`` integrates the latents out, with one Gaussian for each state.
            ``'local'`` lets the potentials alone decide on the latents, and transitions between
            them, if observed, on q(k). ``'average'`` takes q(z) under the dynamics of all states,
            averaged, and then q(k). The last two cost less in long sequences.

        Returns
        -------
        Tensor of shape (n_sequences, n_steps, n_states)
            Marginals, without a gradient.
        """
        return start_switching(SwitchingProblem.build(potentials, params, mask), kind)

    @torch.no_grad()
    def infer_best(
        self,
        potentials: Potentials,
        params: tuple[Tensor, ...],
        mask: Tensor,
        starts: Sequence[Tensor | StartKind] = ("filter", "local"),
        settings: FixedPointSettings = DEFAULT_SETTINGS,
        noise: Tensor | None = None,
        method: ChainMethod = "auto",
    ) -> SwitchingPosterior:
        """Infer from several starts and keep, for each sequence, the best bound.

        Parameters
        ----------
        potentials : Potentials
            Evidence for each step, of shape (n_sequences, n_steps, latent_dim).
        params : tuple of Tensor
            As from `expected_params`.
        mask : Tensor of bool of shape (n_sequences, n_steps)
            Which steps exist.
        starts : sequence of Tensor or str, default=('filter', 'local')
            First ``q(k_t)``, of shape (n_sequences, n_steps, n_states), or kinds of
            `starting_states`.
        settings : FixedPointSettings, default=FixedPointSettings()
            How block updates are iterated.
        noise : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim), optional
            Standard normal numbers for the draws.
        method : {'auto', 'sequential', 'parallel'}, default='auto'
            Order of elimination, see `sksvae.inference.chain_moments`.

        Returns
        -------
        SwitchingPosterior
            The one with the largest ``E_q[log l(z)] - local_kl``, without a gradient. Its states
            are a start for `infer` where a gradient is needed.

        Raises
        ------
        ValueError
            If there are no starts.
        """
        if not starts:
            raise ValueError("starts must name at least one start, got none.")
        problem = SwitchingProblem.build(potentials, params, mask)
        candidates = (
            infer_switching(problem, self._first(start, problem), noise, method, settings)
            for start in starts
        )
        return keep_best(problem, candidates)

    def _first(self, start: Tensor | StartKind, problem: SwitchingProblem) -> Tensor:
        """First q(k), named or given."""
        if isinstance(start, str):
            return start_switching(problem, start)
        shape = (*problem.mask.shape, self.n_states)
        if tuple(start.shape) != shape:
            raise ValueError(f"start must have shape {shape}, got {tuple(start.shape)}.")
        start = start.detach().to(problem.potentials.precision)
        return torch.where(problem.mask.unsqueeze(-1), start, 0.0)

    def most_probable_path(
        self, posterior: SwitchingPosterior, params: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """Most probable path of states under q(k).

        Parameters
        ----------
        posterior : SwitchingPosterior
            Of the sequences.
        params : tuple of Tensor, optional
            That it was inferred with; `expected_params` by default.

        Returns
        -------
        Tensor of int64 of shape (n_sequences, n_steps)
            States, -1 at steps that do not exist.
        """
        log_initial, log_transition = (self.expected_params() if params is None else params)[8:]
        mask = posterior.mask
        return most_probable_path(log_initial, log_transition, posterior.energies, mask)[0]

    def local_kl_terms(self, posterior: SwitchingPosterior, params: tuple[Tensor, ...]) -> Tensor:
        """Split ``local_kl`` over steps by the chain rule.

        Parameters
        ----------
        posterior : SwitchingPosterior
            Of the sequences.
        params : tuple of Tensor
            That it was inferred with.

        Returns
        -------
        Tensor of shape (n_sequences, n_steps)
            Divergence of each step given the one before, zero at steps that do not exist, without
            a gradient. The sum is ``local_kl``.

        See Also
        --------
        sksvae.graphical.switching_terms.split_local_kl : The formula.
        """
        nothing = torch.zeros_like(posterior.mean)
        problem = SwitchingProblem.build(Potentials(nothing, nothing), params, posterior.mask)
        return split_local_kl(problem, posterior)

    # Learning ------------------------------------------------------------------------------------

    @torch.no_grad()
    def total_stats(  # type: ignore[override]
        self, posterior: SwitchingPosterior
    ) -> tuple[Tensor, ...]:
        """What the sequences add to the natural parameters, in the order of `expected_params`."""
        states = posterior.states
        starts, _ = chain_roles(posterior.mask)
        initial, dynamics = chain_stats(posterior, starts.to(states.dtype), states[:, 1:])
        return *initial, *dynamics, states[:, 0].sum(0), posterior.pair_counts.sum(0)

    # Point parameters ----------------------------------------------------------------------------

    def point_parameters(self) -> SwitchingParameters:
        """Point estimates of the parameters.

        Returns
        -------
        SwitchingParameters
            Posterior means; of covariances ``S / nu``, the inverse of the posterior mean of the
            precision.
        """
        initial, _, *chain = self.posterior
        dynamics = self.posterior.state_dynamics
        shares = (part.concentration / part.concentration.sum(-1, keepdim=True) for part in chain)
        return SwitchingParameters(
            dynamics.mean[..., :-1],
            dynamics.mean[..., -1],
            dynamics.scale / dynamics.dof[:, None, None],
            initial.mean,
            initial.scale / initial.dof,
            *shares,
        )

    def point_stats(self) -> tuple[Tensor, ...]:
        """Statistics of the point parameters, in the place of `expected_params`.

        With them, `infer` approximates the posterior under known dynamics.

        Returns
        -------
        tuple of Tensor
            Without a gradient.
        """
        A, b, Q, mean, covariance, initial_states, transitions = self.point_parameters()
        X = torch.cat([A, b.unsqueeze(-1)], -1)
        return (
            *NIW().stats_of(NIWSample(mean, covariance)),
            *MNIW().stats_of(MNIWSample(X, Q)),
            initial_states.log(),
            transitions.log(),
        )

    def forecast_moments(
        self, mean: Tensor, covariance: Tensor, state_probabilities: Tensor, n_steps: int
    ) -> SwitchingForecast:
        """Moments of the steps that follow one of known moments, under point parameters.

        Parameters
        ----------
        mean : Tensor of shape (n_sequences, latent_dim)
            Posterior mean of the last latent.
        covariance : Tensor of shape (n_sequences, latent_dim, latent_dim)
            Its posterior covariance.
        state_probabilities : Tensor of shape (n_sequences, n_states)
            Posterior of the last state.
        n_steps : int
            Number of steps to look ahead.

        Returns
        -------
        SwitchingForecast
            Probabilities of states, and moments of latents for each of them; without a gradient.

        Raises
        ------
        OverflowError
            If unstable dynamics leave the floating point range.

        See Also
        --------
        sksvae.graphical.point_switching.forecast_moments : The recursion.
        """
        return forecast_moments(
            self.point_parameters(), mean, covariance, state_probabilities, n_steps
        )

    def continue_draws(
        self, start: Tensor, states: Tensor, n_steps: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw the steps that follow given ones, under point parameters.

        Parameters
        ----------
        start : Tensor of shape (..., latent_dim)
            Last latents, such as draws from their posterior.
        states : Tensor of int64 of shape (...)
            Last states.
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
            If unstable dynamics leave the floating point range.
        """
        return continue_draws(self.point_parameters(), start, states, n_steps, generator)

    def sample(
        self,
        n_steps: int,
        n_sequences: int,
        generator: torch.Generator,
        states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw sequences with point estimates, under given states if any: see `draw_sequences`."""
        return draw_sequences(self.point_parameters(), n_steps, n_sequences, generator, states)

    def select(self, states: Tensor) -> "SwitchingDynamicsModel":
        """Model with some of the states, in the given order.

        Parameters
        ----------
        states : Tensor of shape (n_selected,)
            Indices.

        Returns
        -------
        SwitchingDynamicsModel
            A new model; probabilities renormalise by themselves.
        """
        return SwitchingDynamicsModel(self.prior.select(states), self.posterior.select(states))

    @classmethod
    def _types_of(cls, state: dict[str, Tensor]) -> tuple[Any, ...]:
        tied = state["prior.dynamics.scale"].ndim == 2  # without an axis for states
        dynamics = TiedMNIWParams if tied else MNIWParams
        return NIWParams, dynamics, DirichletParams, DirichletParams
