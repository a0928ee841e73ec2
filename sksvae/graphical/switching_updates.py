# SPDX-License-Identifier: BSD-3-Clause
"""Rounds of block updates in switching dynamics, without gradients and in the same memory.

A round is that of `SwitchingProblem.next_states`: q(z) from the states, energies from q(z), states
from the energies. What only the last round needs (log normalisers, draws, divergences, pairs of
states) is left out, and so is what is the same in all rounds. On a CPU most of a round of small
chains is calls, allocation and changes of layout; here steps come first throughout, and the blocks
of both ends of a chain are worked on at a time.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sksvae.graphical.switching_problem import SwitchingProblem, negligible
from sksvae.inference.block_tridiagonal import ChainMethod, automatic_method
from sksvae.inference.forward_backward import choose_parallel
from sksvae.inference.marginal_sweeps import MarginalSweeps
from sksvae.inference.markov_messages import Transition
from sksvae.inference.twisted_elimination import TwistedChains

_IN_CACHE = 2**16  # numbers of an array that are worked on at a time


class UpdateTables(NamedTuple):
    """What rounds multiply with, for steps with the roles first, later and earlier.

    Parameters
    ----------
    natural : ndarray of shape (1 + 2 K, (D + 1) D)
        Diagonal blocks of the roles and below them ``h``.
    couplings : tuple of ndarray of shape (K, D ** 2)
        Blocks below the diagonal, and their transposes.
    residuals : ndarray of shape (2 D + 1, K D)
        Residuals of transitions in units of their noise, of later means, earlier means and one.
    squares : ndarray of shape (K D, K)
        Sums over the dimensions of each state.
    doubt : ndarray of shape ((D + 1) ** 2, K)
        Of the regressors.
    steps : ndarray of shape ((D + 1) D, 2 K)
        Weights of the covariances of the later and of the earlier step, and zeros for means.
    lags : tuple of ndarray of shape ((D + 1) D, K)
        Of the covariances of the later step (rows) and the earlier one, with the sign turned, and
        of their transposes; likewise.
    constant : ndarray of shape (K,)
        Of transitions.
    """

    natural: np.ndarray
    couplings: tuple[np.ndarray, np.ndarray]
    residuals: np.ndarray
    squares: np.ndarray
    doubt: np.ndarray
    steps: np.ndarray
    lags: tuple[np.ndarray, np.ndarray]
    constant: np.ndarray

    @classmethod
    def build(cls, problem: SwitchingProblem) -> "UpdateTables":
        """Arrange the tables of a problem without gradients."""
        natural, energy = problem.natural_table, problem.energy_table
        lower, factor = natural.lower, energy.factor
        n_states, dim, _ = lower.shape
        rows = torch.cat([factor, energy.regression @ factor], 1)
        lags = -energy.lags.unflatten(0, (dim, dim))
        none = lower.new_zeros(dim, 2 * n_states)
        eye = torch.eye(n_states, dtype=lower.dtype)

        def rows_of(table: Tensor) -> np.ndarray:
            return torch.cat([table.flatten(0, 1), none[:, :n_states]]).numpy()

        return cls(
            torch.cat([natural.blocks, natural.shifts.unsqueeze(1)], 1).flatten(1).numpy(),
            (lower.flatten(1).numpy(), lower.mT.flatten(1).numpy()),
            rows.transpose(0, 1).flatten(1).numpy(),
            eye.repeat_interleave(dim, 0).numpy(),
            energy.doubt.contiguous().numpy(),
            torch.cat([energy.steps, none]).numpy(),
            (rows_of(lags), rows_of(lags.transpose(0, 1))),
            energy.constant.numpy(),
        )


class SwitchingUpdates:
    """Rounds of block updates of a batch of sequences.

    Parameters
    ----------
    problem : SwitchingProblem
        Evidence and expected parameters, without gradients.
    tables : UpdateTables
        Of the problem.
    transition : Transition
        Of the states.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import (
    ...     DynamicsPrior, Potentials, SwitchingDynamicsModel, SwitchingPrior)
    >>> from sksvae.graphical.switching_problem import SwitchingProblem
    >>> from sksvae.graphical.switching_updates import SwitchingUpdates
    >>> model = SwitchingDynamicsModel(SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2)))
    >>> nothing = Potentials(*torch.zeros(2, 1, 5, 2, dtype=torch.float64))
    >>> mask = torch.ones(1, 5, dtype=torch.bool)
    >>> problem = SwitchingProblem.build(nothing, model.expected_params(), mask).fixed()
    >>> states = torch.full((1, 5, 3), 1 / 3, dtype=torch.float64)
    >>> following = SwitchingUpdates.build(problem, "auto")(states)
    >>> torch.allclose(following, problem.next_states(states))
    True
    """

    def __init__(
        self, problem: SwitchingProblem, tables: UpdateTables, transition: Transition
    ) -> None:
        self.tables, self.transition, self.mask = tables, transition, problem.mask
        (r, R), mask = problem.potentials, problem.mask
        n_chains, n_steps, dim = R.shape
        self.chains = TwistedChains(n_steps, n_chains, dim, R.dtype)
        self.sweeps = MarginalSweeps(problem.log_initial, transition, mask.sum(-1), n_steps)
        stages = self.chains.pivots.shape[:3]
        exists = mask.mT
        self._absent = None if mask.all() else ~exists.numpy()
        # Steps that do not exist have unit precision, and no weights.
        own = torch.where(exists.unsqueeze(-1), R.transpose(0, 1), 1.0)
        self._own = self.chains.to_stages(own.numpy(), R.new_ones(*stages, dim).numpy())
        vectors = r.transpose(0, 1).numpy()
        self._vectors = self.chains.to_stages(vectors, R.new_zeros(*stages, dim).numpy())
        self.weights = R.new_zeros(*stages, 1 + 2 * problem.n_states).numpy()
        self.weights[0, 0, :, 0] = mask[:, 0].numpy()
        # Means of transitions, later and earlier, and one.
        self.regressors = R.new_ones(max(n_steps - 1, 0), n_chains, 2 * dim + 1).numpy()

    @classmethod
    def build(cls, problem: SwitchingProblem, method: ChainMethod) -> "SwitchingUpdates | None":
        """Prepare rounds, or return None where other ways are faster or needed.

        Those are for accelerators, for few long chains, which are faster in another order, and for
        transitions so unlikely that it takes logarithms or another type.
        """
        R, table = problem.potentials.precision, problem.log_transition
        n_chains, n_steps, dim = R.shape
        if method == "auto":
            method = automatic_method(n_chains, n_steps, dim, R.device)
        parallel = method != "sequential" or choose_parallel("auto", n_chains, n_steps, len(table))
        if R.device.type != "cpu" or parallel:
            return None
        transition = Transition.build(table.unsqueeze(0))
        if transition is None:
            return None
        return cls(problem, UpdateTables.build(problem), transition)

    def take(self, problem: SwitchingProblem) -> "SwitchingUpdates":
        """Return those of a problem with some of the sequences."""
        return SwitchingUpdates(problem, self.tables, self.transition)

    def __call__(self, states: Tensor) -> Tensor | None:
        """One round.

        Parameters
        ----------
        states : Tensor of shape (n_sequences, n_steps, n_states)
            Weights of the states.

        Returns
        -------
        Tensor of shape (n_sequences, n_steps, n_states) or None
            Marginals; None if a precision is not positive definite or anything is not finite.
        """
        if not self.infer_latents(states):
            return None
        self._write_energies()
        marginals = self.sweeps.run()
        if not np.isfinite(marginals).all():
            return None
        return torch.from_numpy(marginals).transpose(0, 1).contiguous()

    def infer_latents(self, states: Tensor) -> bool:
        """Compute moments of q(z), or return False if a precision is not positive definite."""
        chains, dim = self.chains, self._own.shape[-1]
        self.fill_weights(states, self.weights)
        self.combine(self.weights, chains.pivots, chains.sides)
        pivots = chains.pivots.reshape(*chains.pivots.shape[:3], -1)
        pivots[..., : dim**2 : dim + 1] += self._own
        pivots[..., dim**2 :] += self._vectors
        if not chains.run():
            return False
        mean = chains.in_time(chains.moments[..., dim, :])
        self.regressors[..., :dim], self.regressors[..., dim:-1] = mean[1:], mean[:-1]
        return True

    def fill_weights(self, states: Tensor, out: np.ndarray) -> None:
        """Write weights of transitions into stages, for the later step and the earlier one."""
        n_sequences, n_steps, n_states = states.shape
        moves = np.zeros((n_steps + 1, n_sequences, n_states), out.dtype)
        moves[1:-1] = states.transpose(0, 1)[1:].numpy()
        self.clear(moves[:-1])
        self.chains.to_stages(moves[:-1], out[..., 1 : n_states + 1])
        self.chains.to_stages(moves[1:], out[..., n_states + 1 :])

    def combine(self, weights: np.ndarray, pivots: np.ndarray, sides: np.ndarray) -> None:
        """Add up natural parameters, see `TwistedChains`."""
        tables, n_states = self.tables, len(self.tables.constant)
        flat = weights.reshape(-1, weights.shape[-1])
        np.matmul(flat, tables.natural, out=pivots.reshape(len(flat), -1))
        below = sides.reshape(*sides.shape[:3], -1)[:-1, ..., : self._own.shape[-1] ** 2]
        earlier, later = weights[:-1, 0, :, n_states + 1 :], weights[:-1, 1, :, 1 : n_states + 1]
        np.matmul(earlier, tables.couplings[0], out=below[:, 0])
        np.matmul(later, tables.couplings[1], out=below[:, 1])

    def energies(self) -> Tensor:
        """As `SwitchingProblem.energies` of the q(z) that `infer_latents` computed."""
        self._write_energies()
        return torch.from_numpy(self.sweeps.energies).transpose(0, 1).clone()

    def _write_energies(self) -> None:
        """See `EnergyTable.energies`."""
        chains, tables, y = self.chains, self.tables, self.regressors
        energies = self.sweeps.energies
        energies[0], out = 0.0, energies[1:]
        dim, n_states = self._own.shape[-1], len(tables.constant)
        rows, squares = y.reshape(-1, y.shape[-1]), out.reshape(-1, n_states)
        for part in self.in_cache():
            residuals = rows[part] @ tables.residuals
            square = np.matmul(np.square(residuals, out=residuals), tables.squares)
            square += pair_products(rows[part, dim:], rows[part, dim:]) @ tables.doubt
            squares[part] = square
        self.add_covariances(chains.moments, chains.products, out)
        np.subtract(tables.constant, out, out=out)
        out *= 0.5
        if self._absent is not None:
            energies[self._absent] = 0.0

    def in_cache(self) -> Iterator[slice]:
        """Transitions of all sequences, so many at a time that their squares stay in the cache."""
        size = max(self.tables.residuals.shape[1], (self._own.shape[-1] + 1) ** 2)
        n_rows, at_once = self.regressors[..., 0].size, max(1, _IN_CACHE // size)
        return (slice(first, first + at_once) for first in range(0, n_rows, at_once))

    def add_covariances(self, moments: np.ndarray, products: np.ndarray, out: np.ndarray) -> None:
        """Add what covariances weigh, to (T - 1, B, K)."""
        chains, n_states = self.chains, out.shape[-1]
        moments, products = (x.reshape(*x.shape[:3], -1) for x in (moments, products))
        by_step = chains.in_time(moments @ self.tables.steps)
        out += by_step[1:, :, :n_states]
        out += by_step[:-1, :, n_states:]
        left, right = self.tables.lags
        middle = chains.n_stages - 1
        out[:middle] += products[:-1, 0] @ left
        later = products[middle - len(out[middle:]) : -1, 1] @ right
        out[middle:] += later[::-1]

    def clear(self, weights: np.ndarray) -> None:
        """Set weights (T, B, K) to zero that add nothing, and those of steps that do not exist."""
        weights *= np.abs(weights) >= negligible(self.weights.dtype)
        if self._absent is not None:
            weights[self._absent] = 0.0


def pair_products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products of all pairs of entries, of shape (N, M M), of rows (N, M) and rows (N, M)."""
    # With rows as the last axis, for long loops.
    x, y = np.ascontiguousarray(first.T), np.ascontiguousarray(second.T)
    return (x[:, None] * y).reshape(-1, x.shape[-1]).T


def block_updates(
    problem: SwitchingProblem, updates: SwitchingUpdates | None, method: ChainMethod
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return the update for `sksvae.inference.solve_fixed_point`.

    Parameters
    ----------
    problem : SwitchingProblem
        Evidence and expected parameters, without gradients.
    updates : SwitchingUpdates or None
        Of the problem, if there are.
    method : {'auto', 'sequential', 'parallel'}
        Order of elimination, see `sksvae.inference.chain_moments`.

    Returns
    -------
    callable
        ``update(states, rows)``: a round of the sequences with the given indices (None: all).
    """
    latest, latest_rows = updates, None

    def update(states: Tensor, rows: Tensor | None) -> Tensor:
        nonlocal latest, latest_rows
        part = problem if rows is None else problem.take(rows)
        if updates is None:
            return part.next_states(states, method)
        if rows is not latest_rows:
            latest, latest_rows = updates.take(part), rows
        following = latest(states)
        # The other way says what is wrong, if anything is.
        return part.next_states(states, method) if following is None else following

    return update
