# SPDX-License-Identifier: BSD-3-Clause
"""How switching dynamics are fitted: the linear start, states on its latents, and their end."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from sksvae.autoregressive_hmm import choose_prior, fit_autoregressive_hmm
from sksvae.autoregressive_hmm.pooling import pooling_price
from sksvae.estimators.dynamics_fit import FIT_CHUNK, DynamicsFit
from sksvae.estimators.moves import Moves
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequence_start import fit_dynamics
from sksvae.estimators.state_moves import drop_states, order_states, recall_states
from sksvae.estimators.validation import checked_layer_sizes
from sksvae.graphical import SwitchingDynamicsModel, SwitchingPrior
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.base import Likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE, single_steps
from sksvae.state_space import StateSpace, StateSpaceFit
from sksvae.straightening import straighten
from sksvae.training import EpochRecord, TrainingSettings

# Of the learning rate after pretraining. Networks that know fine details forget them in the first
# steps of Adam at the whole rate: bounds of the moving curves fell from 214 to 15 nats.
_REFINING = 0.1
_STEPS_PER_LATENT = 10  # at least: of fewer steps the priors of many latents outweigh all they tell
_VB_ITER = 10  # rounds of variational Bayes with the potentials of the encoder
_VB_TOL = 1e-3  # nats per step
# Nats per step that a round of expectation maximisation gains at its end, at first and in the end.
_EARLY_TOL, _FURTHER_TOL = 1e-3, 2e-4
# Epochs of training after which two starts are compared. Right away the longer fit of the linear
# model was behind on twelve joint angles, and ahead by 0.1 to 0.3 nats per step after these.
_TRIAL_ITER = 15
_N_TRIALS = 3  # of all starts of states, after pretraining
# Steps that a prior of each state around the dynamics of all is worth, if nothing else is said.
_POOLED_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0)
_LEAST_GAIN = 0.05  # nats per step by which that fit must be better to be worth a comparison


class _Begun(NamedTuple):
    """A fit up to its first states."""

    start: StateSpace
    model: SequenceVAE
    rows: SequenceRows
    generator: torch.Generator
    bound: float  # in nats per step
    price: float  # of a prior that was fitted, in the same units, and taken off the bound


class SwitchingFit(DynamicsFit):
    """Start, moves and end of the fit of switching dynamics."""

    _OPEN_LATENT_DIMS = (16, 8, 4, 2)  # 16 is best, of 12 to 20, for twelve joint angles

    def _fixed_point_settings(self, to_train: bool) -> FixedPointSettings:
        # In training, updates go on in the next epoch.
        precise = {"tol": 1e-4, "accelerate": True}
        quick = {"tol": 1e-2, "solver_tol": 1e-2, "max_solver_steps": 5}
        return FixedPointSettings(
            max_updates=self.max_updates if to_train else max(self.max_updates, 50),
            gradient=self.implicit_gradient,
            **(quick if to_train else precise),
        )

    def _training_settings(self, n_rows: int, anneal: bool = True) -> TrainingSettings:
        settings = super()._training_settings(n_rows, anneal)
        if anneal and self._n_initial_epochs():
            return replace(settings, learning_rate=_REFINING * settings.learning_rate)
        return settings

    def _n_initial_epochs(self) -> int:
        needed = self.n_states > 1 and checked_layer_sizes(self.hidden_layer_sizes)
        return self.pretraining_iter if needed else 0

    def _chosen_start(
        self, windows: SequenceRows, scaling: Scaling, likelihood: Likelihood, seed: int
    ) -> StateSpace:
        """That with the best bound: of the dimensions, then of two lengths of its own fit.

        A linear model fitted to its end explains what is due to states, too, and whether that is
        for the better only some training tells.
        """

        def begin(start: StateSpace) -> _Begun:
            return self._begun(start, windows, scaling, likelihood, seed)

        best, begun = self._best_dimension(windows, seed, begin)
        if self.n_states == 1 or self._n_initial_epochs():
            return best.model
        tol = max(0.1, _FURTHER_TOL * len(windows))
        dim = len(best.model.offset)
        further = self._state_space(dim, windows, seed, start=best.model, tol=tol)
        if further.objectives[-1] - further.objectives[0] < _LEAST_GAIN:
            return best.model
        trials = begun or begin(best.model), begin(further.model)
        return max(trials, key=self._bound_after_training).start

    def _best_dimension(
        self, windows: SequenceRows, seed: int, begin: Callable[[StateSpace], _Begun]
    ) -> tuple[StateSpaceFit, _Begun | None]:
        """Linear model with the best bound of the states found on it, and those if they were.

        From the largest dimension down for as long as the bound rises: on real and synthetic
        recordings bounds of starts were in the order of those of whole fits.
        """
        dims = self._latent_dims()
        dims = tuple(dim for dim in dims if dim * _STEPS_PER_LATENT <= len(windows)) or dims[-1:]
        early = {"max_iter": 50, "tol": _EARLY_TOL * len(windows)}
        rounds = {} if self.n_states == 1 else early
        fits = (self._state_space(dim, windows, seed, **rounds) for dim in dims)
        best = next(fits)
        if len(dims) == 1:
            return best, None
        begun = begin(best.model)
        for fit in fits:
            other = begin(fit.model)
            if not other.bound > begun.bound:
                break
            best, begun = fit, other
        return best, begun

    def _begun(
        self,
        start: StateSpace,
        windows: SequenceRows,
        scaling: Scaling,
        likelihood: Likelihood,
        seed: int,
    ) -> _Begun:
        """A fit up to its first states, from the random numbers that the fit itself will have."""
        generator = torch.Generator(device=self.device).manual_seed(seed)
        model = self._linear_model(start, windows, len(windows), scaling, likelihood, generator)
        rows = self._cut(windows).with_memory(windows.lengths)
        price = self._start_states(model, rows, generator, n_starts=1)
        price /= len(rows)
        bound = self._mean_bound(model, rows, generator) - price
        return _Begun(start, model, rows, generator, bound, price)

    def _bound_after_training(self, begun: _Begun) -> float:
        """Bound after some epochs; minus infinity if they, or what ends a fit, fail."""
        _, model, rows, generator, _, price = begun
        n_epochs = min(_TRIAL_ITER, self.max_iter)
        try:
            self._pretrain(model, rows, n_epochs, generator, lambda *_: False, anneal=True)
            self._finish(model, rows)
            bound = self._mean_bound(model, rows, generator) - price
        except (ValueError, torch.linalg.LinAlgError):
            return -math.inf
        return bound if math.isfinite(bound) else -math.inf

    def _initialize(
        self,
        model: SequenceVAE,
        rows: SequenceRows,
        generator: torch.Generator,
        random_state: np.random.RandomState,
        on_epoch_end: Callable[[int, EpochRecord], bool],
    ) -> None:
        """Networks for single steps, if asked for, on straight coordinates; then states."""
        if rows.memory is None:  # in `partial_fit`, which has no next visit
            rows = rows.with_memory(rows.uncut)
        if self._n_initial_epochs():
            # Each step by itself: twice as fast, and dynamics cannot make up for what the networks
            # do not explain. States are looked for in what comes out, so that it is trained to
            # its end.
            n_epochs, steps = self.pretraining_iter, single_steps(rows)
            self._pretrain(model, steps, n_epochs, generator, on_epoch_end, anneal=True)
            self._fit_linear_dynamics(model, rows)
            # With noise of their own, whatever it will be: bounds of states that share theirs
            # depend on where their fits begin as much as on the coordinates.
            priors = self._state_priors(model, rows, tied=False)
            straighten(model, rows.rejoined(), priors, generator=generator, chunk=FIT_CHUNK)
            self._start_best_states(model, rows, generator)
        else:
            self._start_states(model, rows, generator, self.n_starts)

    def _start_best_states(
        self, model: SequenceVAE, rows: SequenceRows, generator: torch.Generator
    ) -> None:
        """The best of a few starts by the bound on the rows, which latents alone do not tell.

        Some starts explain where sequences are instead of how they move.
        """
        linear, starts = model.graphical, []
        for _ in range(_N_TRIALS):
            model.graphical, rows.memory.states = linear, None
            self._start_states(model, rows, generator, self.n_starts)
            same_draws = torch.Generator(device=self.device).manual_seed(generator.initial_seed())
            bound = self._mean_bound(model, rows, same_draws)
            bound = bound if math.isfinite(bound) else -math.inf
            starts.append((bound, model.graphical, rows.memory.states))
        _, model.graphical, rows.memory.states = max(starts, key=lambda start: start[0])

    def _start_states(
        self, model: SequenceVAE, rows: SequenceRows, generator: torch.Generator, n_starts: int
    ) -> float:
        """Linear dynamics, then states on their latents, then both with the encoder's evidence.

        Returns the price of a prior that was fitted, in nats.
        """
        self._fit_linear_dynamics(model, rows)
        if self.n_states == 1:
            # Nothing is left to find, and the fit goes on as that of `SVAELinearDynamics`.
            linear = model.graphical.prior, model.graphical.posterior
            model.graphical = SwitchingDynamicsModel(*(SwitchingPrior.sticky(1, q) for q in linear))
            return 0.0
        rows = rows.rejoined()
        with torch.no_grad():
            latents = [model.infer(part) for part in rows.parts(FIT_CHUNK)]
        priors = self._state_priors(model, rows, tied=self.noise_covariance_type == "tied")
        weights = self._pooled_weights()
        prior = choose_prior(latents, priors, pooled_weights=weights, generator=generator)
        found = fit_autoregressive_hmm(latents, prior, n_starts=n_starts, generator=generator)
        model.graphical = SwitchingDynamicsModel(found.prior, found.posterior)
        stacked = [states[part.mask] for states, part in zip(found.states, latents, strict=True)]
        rows.memory.states = torch.cat(stacked).to(rows.encoded)
        fit_dynamics(model, rows, max_iter=_VB_ITER, tol=_VB_TOL, chunk=FIT_CHUNK)
        fixed = any(prior is other for other in priors)
        return 0.0 if fixed else pooling_price(model.graphical.latent_dim, len(rows))

    def _state_priors(
        self, model: SequenceVAE, rows: SequenceRows, tied: bool
    ) -> list[SwitchingPrior]:
        """Priors that compete, one for each choice of what the user left open."""
        return [
            SwitchingPrior.sticky(
                self.n_states,
                prior,
                concentration=self.transition_concentration_prior,
                stickiness=self.stickiness_prior,
                tied=tied,
            )
            for prior in self._priors(model.graphical.latent_dim, rows.encoded)
        ]

    def _pooled_weights(self) -> tuple[float, ...]:
        """Of priors that compete with these, if the user left all open.

        Not after pretraining, for which they have not been measured.
        """
        given = (
            self.transition_precision_prior,
            self.noise_covariance_prior,
            self.degrees_of_freedom_prior,
        )
        if self._n_initial_epochs() or any(value is not None for value in given):
            return ()
        return _POOLED_WEIGHTS

    def _recall(self, model: SequenceVAE, rows: SequenceRows) -> None:
        recall_states(model, rows, chunk=FIT_CHUNK)

    def _moves(
        self, model: SequenceVAE, rows: SequenceRows, random_state: np.random.RandomState
    ) -> Moves:
        if rows.memory.states is None:  # what another fit learned goes on
            self._recall(model, rows)
        return super()._moves(model, rows, random_state)

    def _finish(self, model: SequenceVAE, rows: SequenceRows) -> None:
        """Give up states without use, and order the others by their weight."""
        drop_states(model, rows, chunk=FIT_CHUNK)
        order_states(model, rows)
