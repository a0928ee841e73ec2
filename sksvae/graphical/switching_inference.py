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

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sksvae.graphical.api import DEFAULT_SETTINGS, ChainPosterior
from sksvae.graphical.switching_gradients import differentiable_energies, energy_change

# Read from here by others, too.
from sksvae.graphical.switching_problem import SwitchingProblem as SwitchingProblem
from sksvae.graphical.switching_updates import SwitchingUpdates, block_updates
from sksvae.inference import (
    FixedPoint,
    FixedPointSettings,
    attach_implicit_gradient,
    markov_fisher,
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
    updates = SwitchingUpdates.build(fixed, method)
    end = solve_fixed_point(
        block_updates(fixed, updates, method),
        start,
        settings.max_updates,
        settings.tol,
        settings.accelerate and settings.gradient != "unrolled",
    )
    point, differentiate = end.point, torch.is_grad_enabled() and problem.requires_grad
    if differentiate and settings.gradient == "unrolled":
        point, differentiate = start, False
        for _ in range(int(end.n_updates.max())):
            point = problem.next_states(point, method)
    if updates is not None and not point.requires_grad and updates.infer_latents(point):
        energies = differentiable_energies(problem, updates)
        product = functools.partial(energy_change, updates)
    else:
        updates = None
        if differentiate:
            # Its gradient is not wanted, but products with that of the energies in it are.
            point.requires_grad_()
        energies = problem.energies(problem.gaussian(point, method=method))
        product = functools.partial(_product, energies, point)
    discrete = problem.discrete(energies, want_messages=differentiate)
    states = discrete.marginals
    if differentiate:

        def fisher(v: Tensor, rows: Tensor | None) -> Tensor:
            # They were asked for.
            return markov_fisher(discrete.messages, v, rows=rows)  # type: ignore[arg-type]

        curvature = _Curvature(fixed, point.detach(), updates, method, product)
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
    """Products with ``S = Theta F_z Theta'`` at given states, of all sequences or of some.

    Where few are left, what products need of them alone is computed once they are no more than a
    quarter, for about the time of a product.
    """

    def __init__(
        self,
        problem: SwitchingProblem,
        point: Tensor,
        updates: SwitchingUpdates | None,
        method: ChainMethod,
        product: Callable[[Tensor], Tensor],
    ) -> None:
        self.problem, self.point, self.updates, self.method = problem, point, updates, method
        self.whole = torch.arange(len(point), device=point.device), product
        self.rows, self.product = self.whole

    def __call__(self, v: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:  # a solve begins, which another one may have done before
            self.rows, self.product = self.whole
            return self.product(v)
        if 4 * len(rows) <= len(self.rows):
            self.rows, self.product = rows, self._product_of(rows)
        # Rows are in order.
        places = torch.searchsorted(self.rows, rows)
        whole = v.new_zeros(len(self.rows), *v.shape[1:])
        return self.product(whole.index_copy_(0, places, v))[places]

    @torch.enable_grad()
    def _product_of(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        problem, point = self.problem.take(rows), self.point[rows]
        if self.updates is not None:
            updates = self.updates.take(problem)
            updates.infer_latents(point)
            return functools.partial(energy_change, updates)
        point.requires_grad_()
        energies = problem.energies(problem.gaussian(point, method=self.method))
        return functools.partial(_product, energies, point)


def _product(energies: Tensor, states: Tensor, v: Tensor) -> Tensor:
    """Product with the Jacobian of energies, symmetric, through its graph."""
    (product,) = torch.autograd.grad(energies, states, v, retain_graph=True)
    return product
