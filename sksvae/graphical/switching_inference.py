# SPDX-License-Identifier: BSD-3-Clause
r"""Structured mean field ``q(z_1:T) q(k_1:T)`` of switching linear dynamics.

Both blocks keep their dependence over time ([P] section 4, [1]_). Given ``mu_t = q(k_t)``, q(z) is
a Gaussian chain whose natural parameters are those of the states' expected dynamics, averaged with
weights ``mu``; given q(z), q(k) is a discrete chain whose energies are the expected log densities
of transitions, ::

    q(z) ~ l(z) exp(E log p(z_1) + sum_t <mu_t, theta' t(z_{t-1}, z_t)>),
    E_t(k) = E_q(z) E log N(z_t; A_k z_{t-1} + b_k, Q_k),    E_1 = 0,
    q(k) ~ exp(E log p(k) + sum_t E_t(k_t)).

The bound rises with every update, and its fixed points are found and differentiated as in
`sksvae.inference.mean_field`. The product with ``S = Theta F_z Theta'`` needed for that is the
Jacobian of ``mu -> E``: symmetric, and so one vector-Jacobian product.

References
----------
.. [1] Ghahramani and Hinton, "Variational learning for switching state-space models", Neural
   Computation 12(4), 2000.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.expfam import MNIWStats, NIWStats
from sksvae.graphical.api import DEFAULT_SETTINGS, ChainPosterior, Potentials
from sksvae.graphical.gaussian_chain import (
    chain_posterior,
    chain_roles,
    clean_potentials,
)
from sksvae.graphical.transition_tables import EnergyTable, NaturalTable
from sksvae.inference import (
    FixedPoint,
    FixedPointSettings,
    MarkovMoments,
    attach_implicit_gradient,
    markov_fisher,
    markov_moments,
    solve_fixed_point,
)
from sksvae.inference.block_tridiagonal import ChainMethod


@dataclass(frozen=True)
class SwitchingPosterior(ChainPosterior):
    """Posterior ``q(z) q(k)`` of sequences under switching dynamics, padded to one length.

    Everything is zero at steps that do not exist.

    Parameters
    ----------
    mean : Tensor of shape (n_sequences, n_steps, latent_dim)
        ``E[z_t]``.
    covariance : Tensor of shape (n_sequences, n_steps, latent_dim, latent_dim)
        ``Cov[z_t]``.
    lag_covariance : Tensor of shape (n_sequences, n_steps - 1, latent_dim, latent_dim)
        ``Cov(z_{t+1}, z_t)``: rows belong to the later step.
    draws : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim)
        Draws of whole sequences, reparameterised.
    local_kl : Tensor of shape (n_sequences,)
        ``E_q[log q(z) q(k) - E_q(theta) log p(z, k | theta)]``, in nats: exact, whether or not
        inference has converged.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.
    states : Tensor of shape (n_sequences, n_steps, n_states)
        ``q(k_t)``.
    energies : Tensor of shape (n_sequences, n_steps, n_states)
        What q(k) was computed from, besides the expected log probabilities of states: expected log
        densities of transitions into each step. Zero at the first step; without a gradient.
    pair_counts : Tensor of shape (n_sequences, n_states, n_states)
        ``sum_t q(k_t, k_{t+1})``, without a gradient.
    n_updates : Tensor of shape (n_sequences,)
        Rounds of block updates that inference took.
    converged : Tensor of shape (n_sequences,)
        Whether they met the tolerance.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import (
    ...     DynamicsPrior, Potentials, SwitchingDynamicsModel, SwitchingPrior)
    >>> model = SwitchingDynamicsModel(SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2)))
    >>> nothing = Potentials(*torch.zeros(2, 1, 5, 2, dtype=torch.float64))
    >>> mask = torch.ones(1, 5, dtype=torch.bool)
    >>> posterior = model.infer(nothing, model.expected_params(), mask)
    >>> posterior.states.shape, posterior.pair_counts.sum().round()
    (torch.Size([1, 5, 3]), tensor(4., dtype=torch.float64))
    """

    states: Tensor
    energies: Tensor
    pair_counts: Tensor
    n_updates: Tensor
    converged: Tensor


class SwitchingProblem(NamedTuple):
    """Everything that the two blocks of a batch of sequences depend on.

    Parameters
    ----------
    potentials : Potentials
        Evidence of each step, zero at steps that do not exist.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.
    initial : NIWStats
        Expected statistics of the first latent.
    dynamics : MNIWStats
        Expected statistics of the dynamics, with leading axis n_states.
    log_initial : Tensor of shape (n_states,)
        ``E log pi_0``.
    log_transition : Tensor of shape (n_states, n_states)
        ``E log pi``: rows belong to the earlier step.
    natural_table : NaturalTable
        The statistics, arranged for q(z).
    energy_table : EnergyTable
        The statistics, arranged for q(k).
    """

    potentials: Potentials
    mask: Tensor
    initial: NIWStats
    dynamics: MNIWStats
    log_initial: Tensor
    log_transition: Tensor
    natural_table: NaturalTable
    energy_table: EnergyTable

    @classmethod
    def build(
        cls, potentials: Potentials, params: tuple[Tensor, ...], mask: Tensor
    ) -> "SwitchingProblem":
        """Check and arrange the arguments of `SwitchingDynamicsModel.infer`."""
        potentials = clean_potentials(potentials, mask)
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "mask must be true for the first steps of each sequence, without gaps: give each "
                "sequence a row of its own."
            )
        initial, dynamics = NIWStats(*params[:4]), MNIWStats(*params[4:8])
        log_initial, log_transition = params[8:]
        return cls(
            potentials,
            mask,
            initial,
            dynamics,
            log_initial,
            log_transition,
            NaturalTable.build(initial, dynamics),
            EnergyTable.build(dynamics),
        )

    @property
    def n_states(self) -> int:
        """Number of states."""
        return self.log_initial.shape[0]

    @property
    def requires_grad(self) -> bool:
        """Whether anything does."""
        parts = (part if isinstance(part, tuple) else (part,) for part in self)
        return any(field.requires_grad for part in parts for field in part)

    def fixed(self) -> "SwitchingProblem":
        """Return the same problem without gradients."""
        parts: dict[str, Any] = {}
        for name, part in self._asdict().items():
            if isinstance(part, Tensor):
                parts[name] = part.detach()
            else:
                parts[name] = type(part)(*(field.detach() for field in part))
        return SwitchingProblem(**parts)

    def take(self, rows: Tensor) -> "SwitchingProblem":
        """Return the problem of some of the sequences."""
        potentials = Potentials(*(field[rows] for field in self.potentials))
        return self._replace(potentials=potentials, mask=self.mask[rows])

    def gaussian(
        self, states: Tensor, noise: Tensor | None = None, method: ChainMethod = "auto"
    ) -> ChainPosterior:
        """Compute q(z) from weights of the states, of shape (n_sequences, n_steps, n_states)."""
        starts, moves = chain_roles(self.mask)
        weights = torch.where(moves.unsqueeze(-1), states[:, 1:], 0.0)
        natural = self.natural_table.chain(starts.to(states.dtype), weights)
        return chain_posterior(self.potentials, natural, self.mask, noise, method)

    def energies(self, posterior: ChainPosterior) -> Tensor:
        """``E_t(k)``, of shape (n_sequences, n_steps, n_states)."""
        energies = self.energy_table.energies(posterior)
        energies = torch.where(self.mask[:, 1:].unsqueeze(-1), energies, 0.0)
        return pad(energies, (0, 0, 1, 0))

    def discrete(self, energies: Tensor, **wanted: Any) -> MarkovMoments:
        """Compute q(k)."""
        return markov_moments(
            self.log_initial, self.log_transition, energies, mask=self.mask, **wanted
        )

    def next_states(self, states: Tensor, method: ChainMethod = "auto") -> Tensor:
        """One round of block updates: q(z), then q(k)."""
        return self.discrete(self.energies(self.gaussian(states, method=method))).marginals


def infer_switching(
    problem: SwitchingProblem,
    start: Tensor,
    noise: Tensor | None = None,
    method: ChainMethod = "auto",
    settings: FixedPointSettings = DEFAULT_SETTINGS,
) -> SwitchingPosterior:
    """Iterate block updates to a fixed point, with its gradient.

    After the fixed point of `solve_fixed_point` comes one more, differentiable round. As q(k) is
    exactly that of the energies ``E`` of this round, its divergence is ``<mu, E> - log Z(E)``,
    where the gradient through ``E`` cancels.

    Parameters
    ----------
    problem : SwitchingProblem
        Evidence and expected parameters.
    start : Tensor of shape (n_sequences, n_steps, n_states)
        First q(k).
    noise : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim), optional
        Standard normal numbers for the draws.
    method : {'auto', 'sequential', 'parallel'}, default='auto'
        Order of elimination, see `sksvae.inference.chain_moments`.
    settings : FixedPointSettings, default=FixedPointSettings()
        How block updates are iterated and differentiated.

    Returns
    -------
    SwitchingPosterior
        Differentiable in the potentials and parameters of the problem.
    """
    if problem.n_states == 1:
        return _one_state(problem, noise, method)
    fixed = problem.fixed()

    def update(states: Tensor, rows: Tensor | None) -> Tensor:
        return (fixed if rows is None else fixed.take(rows)).next_states(states, method)

    end = solve_fixed_point(update, start, settings.max_updates, settings.tol)
    point, differentiate = end.point, torch.is_grad_enabled() and problem.requires_grad
    if differentiate and settings.gradient == "unrolled":
        point, differentiate = start, False
        for _ in range(int(end.n_updates.max())):
            point = problem.next_states(point, method)
    if differentiate:
        # Its gradient is not wanted, but products with that of the energies in it are.
        point.requires_grad_()
    energies = problem.energies(problem.gaussian(point, method=method))
    discrete = problem.discrete(energies, want_messages=differentiate)
    states = discrete.marginals
    if differentiate:

        def fisher(v: Tensor, rows: Tensor | None) -> Tensor:
            # They were asked for.
            return markov_fisher(discrete.messages, v, rows=rows)  # type: ignore[arg-type]

        curvature = _Curvature(fixed, point, energies, method)
        states = attach_implicit_gradient(states, end, fisher, curvature, settings)
    gaussian = problem.gaussian(states, noise, method)
    local_kl = gaussian.local_kl + (states * energies).sum((-2, -1)) - discrete.log_normalizer
    return _posterior(gaussian, local_kl, states, energies, discrete.pair_counts, end)


def _one_state(
    problem: SwitchingProblem, noise: Tensor | None, method: ChainMethod
) -> SwitchingPosterior:
    """Exact inference: there is nothing discrete."""
    mask = problem.mask
    states = mask.to(problem.log_initial.dtype).unsqueeze(-1)
    gaussian = problem.gaussian(states, noise, method)
    n_moves = states[:, 1:].sum((-2, -1))
    log_p = states[:, 0, 0] * problem.log_initial + n_moves * problem.log_transition[0]
    end = FixedPoint(
        states,
        torch.zeros(len(mask), dtype=torch.long, device=mask.device),
        torch.ones(len(mask), dtype=torch.bool, device=mask.device),
    )
    with torch.no_grad():
        energies = problem.energies(gaussian)
    counts = n_moves[:, None, None]
    return _posterior(gaussian, gaussian.local_kl - log_p, states, energies, counts, end)


def _posterior(
    gaussian: ChainPosterior,
    local_kl: Tensor,
    states: Tensor,
    energies: Tensor,
    pair_counts: Tensor,
    end: FixedPoint,
) -> SwitchingPosterior:
    return SwitchingPosterior(
        mean=gaussian.mean,
        covariance=gaussian.covariance,
        lag_covariance=gaussian.lag_covariance,
        draws=gaussian.draws,
        local_kl=local_kl,
        mask=gaussian.mask,
        states=states,
        energies=energies.detach(),
        pair_counts=pair_counts.detach(),
        n_updates=end.n_updates,
        converged=end.converged,
    )


class _Curvature:
    """Products with ``S = Theta F_z Theta'`` at given states.

    They go through the graph of ``mu -> E`` of all sequences; one of those that are left is built
    once they are no more than a quarter, for about the time of a product.
    """

    def __init__(
        self, problem: SwitchingProblem, point: Tensor, energies: Tensor, method: ChainMethod
    ) -> None:
        self.problem, self.point, self.method = problem, point.detach(), method
        self.rows = torch.arange(len(point), device=point.device)
        self.leaf, self.energies = point, energies

    def __call__(self, v: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return self._product(v)
        if 4 * len(rows) <= len(self.rows):
            self._build(rows)
        # Rows are in order.
        places = torch.searchsorted(self.rows, rows)
        return self._product(v.new_zeros(self.leaf.shape).index_copy_(0, places, v))[places]

    def _product(self, v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self.energies, self.leaf, v, retain_graph=True)
        return product

    @torch.enable_grad()
    def _build(self, rows: Tensor) -> None:
        problem = self.problem.take(rows)
        self.rows, self.leaf = rows, self.point[rows].requires_grad_()
        self.energies = problem.energies(problem.gaussian(self.leaf, method=self.method))
