# SPDX-License-Identifier: BSD-3-Clause
"""How models with dynamics are fitted: priors, the linear start, and fitting again."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequence_start import competing_priors, fit_dynamics, state_space_model
from sksvae.estimators.sequences import SequenceSVAE
from sksvae.estimators.validation import (
    checked_covariance,
    checked_layer_sizes,
    unchanged_on_error,
)
from sksvae.graphical import DynamicsPrior, LinearDynamicsModel
from sksvae.likelihoods.base import Likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.state_space import StateSpace, StateSpaceFit, fit_state_space
from sksvae.state_space.subspace import choose_windows

FIT_CHUNK = 32_768  # steps, with padding, that are in memory at a time outside training
_START_LENGTH = 200  # least limit of the windows for the start: long periods need them
_START_ROWS = 20_000  # most rows in all of them
_TRIAL_ITER = 5  # rounds of variational Bayes under each of the priors that compete
_VB_ITER = 15  # further rounds under the best
_VB_TOL = 1e-3  # nats per step
_REFIT_ITER = 50
_REFIT_TOL = 2e-3


class DynamicsFit(SequenceSVAE):
    """Start, priors and refits of the structured VAEs with dynamics."""

    _parameter_constraints: dict = {
        **SequenceSVAE._parameter_constraints,
        "transition_precision_prior": [Interval(Real, 0, None, closed="neither"), None],
        "noise_covariance_prior": [
            Interval(Real, 0, None, closed="neither"),
            "array-like",
            None,
        ],
        "degrees_of_freedom_prior": [Interval(Real, 0, None, closed="neither"), None],
        "natural_gradient": [StrOptions({"unbiased", "biased"})],
    }

    _OPEN_LATENT_DIMS: tuple[int, ...] = (10,)  # of ``latent_dim=None``, the largest first

    # ---- checks ----

    def _latent_dims(self) -> tuple[int, ...]:
        """Dimensions of the latents that may be chosen from, the largest first."""
        scale, dof = self.noise_covariance_prior, self.degrees_of_freedom_prior
        if self.latent_dim is not None:
            dims: tuple[int, ...] = (int(self.latent_dim),)
        elif scale is None or isinstance(scale, Real) or not len(scale):
            dims = self._OPEN_LATENT_DIMS
        else:
            dims = (len(scale),)
        possible = tuple(dim for dim in dims if dof is None or dof > dim - 1)
        if not possible:
            raise ValueError(
                f"degrees_of_freedom_prior must exceed latent_dim - 1 = {dims[-1] - 1}, got {dof}."
            )
        return possible

    def _checked_latent_dim(self, n_features: int) -> int:
        return self._latent_dims()[0]

    def _check_training_data(self, X, groups, reset: bool):
        sequences, likelihood = super()._check_training_data(X, groups, reset)
        for dim in self._latent_dims():
            self._checked_scale(dim)
        return sequences, likelihood

    def _checked_scale(self, latent_dim: int) -> np.ndarray | None:
        scale = self.noise_covariance_prior
        if scale is None:
            return None
        if isinstance(scale, Real):
            scale = float(scale) * np.eye(latent_dim)
        return checked_covariance(scale, latent_dim, "noise_covariance_prior")

    # ---- start ----

    def _initial_model(
        self,
        rows: SequenceRows,
        scaling: Scaling,
        likelihood: Likelihood,
        generator: torch.Generator,
    ) -> SequenceVAE:
        """Networks and dynamics of a linear-Gaussian state space model."""
        seed = generator.initial_seed() % (2**32)
        # Of all rows, which may be many, the numbers are enough to choose from.
        numbers, lengths = choose_windows(
            np.arange(len(rows)),
            rows.lengths.cpu().numpy(),
            max_length=max(self.sequence_length, _START_LENGTH),
            max_rows=_START_ROWS,
            random_state=np.random.RandomState(seed),
        )
        windows = SequenceRows(*rows.steps(numbers), torch.as_tensor(lengths).to(rows.lengths))
        start = self._chosen_start(windows, scaling, likelihood, seed)
        return self._linear_model(start, windows, len(rows), scaling, likelihood, generator)

    def _chosen_start(
        self, windows: SequenceRows, scaling: Scaling, likelihood: Likelihood, seed: int
    ) -> StateSpace:
        """A linear model of windows, of the dimension that is chosen if it is open."""
        return self._state_space(self._latent_dims()[0], windows, seed).model

    def _state_space(
        self, latent_dim: int, windows: SequenceRows, seed: int, **options: Any
    ) -> StateSpaceFit:
        """Expectation maximisation, until it has converged if ``options`` do not say else."""
        observed, encoded, lengths = (part.cpu().numpy() for part in windows[:3])
        return fit_state_space(
            np.where(np.isnan(observed), np.nan, encoded.astype(float)),
            lengths,
            latent_dim,
            max_length=max(self.sequence_length, _START_LENGTH),
            max_rows=_START_ROWS,
            random_state=seed,
            **options,
        )

    def _linear_model(
        self,
        start: StateSpace,
        windows: SequenceRows,
        n_rows: int,
        scaling: Scaling,
        likelihood: Likelihood,
        generator: torch.Generator,
    ) -> SequenceVAE:
        """A linear-Gaussian state space model in the form of the networks."""
        prior = self._initial_graphical(start.loading.shape[1], windows.encoded).prior
        return state_space_model(
            start,
            scaling,
            likelihood,
            prior,
            n_rows,
            checked_layer_sizes(self.hidden_layer_sizes),
            self.activation,
            self._fixed_point_settings(to_train=True),
            generator,
        )

    def _initial_graphical(self, latent_dim: int, like: Tensor) -> LinearDynamicsModel:
        return LinearDynamicsModel(self._priors(latent_dim, like)[0])

    def _priors(self, latent_dim: int, like: Tensor) -> list[DynamicsPrior]:
        """Priors that compete, one for each choice of what the user left open."""
        return competing_priors(
            latent_dim,
            like,
            self.transition_precision_prior,
            self._checked_scale(latent_dim),
            self.degrees_of_freedom_prior,
        )

    def _fit_linear_dynamics(self, model: SequenceVAE, rows: SequenceRows) -> None:
        """Variational Bayes for linear dynamics, under the prior with the best bound early on."""
        start, best, best_bound = model.graphical.posterior, None, -math.inf
        for prior in self._priors(model.graphical.latent_dim, rows.encoded):
            model.graphical = LinearDynamicsModel(prior, start)
            bound = fit_dynamics(model, rows, max_iter=_TRIAL_ITER, tol=_VB_TOL, chunk=FIT_CHUNK)
            if best is None or bound > best_bound:
                best, best_bound = model.graphical, bound
        model.graphical = best
        fit_dynamics(model, rows, max_iter=_VB_ITER, tol=_VB_TOL, chunk=FIT_CHUNK)

    def _recall(self, model: SequenceVAE, rows: SequenceRows) -> None:
        """Fill the memory of the rows with discrete states, if there are any."""

    # ---- steering ----

    @_fit_context(prefer_skip_nested_validation=True)
    @unchanged_on_error
    def refit_dynamics(self, X, y=None, groups=None):
        """Fit the dynamics to new sequences with the networks as they are.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        y : Ignored
            Not used, present for API consistency by convention.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        self : object
            The estimator with new dynamics, fitted from where they stood to the posterior of ``X``
            alone, in windows of ``sequence_length`` as in `fit`, in at most 50 rounds of
            variational Bayes; another call goes on. What `fit` said about its own training
            (``lower_bound_``, ``history_``) stays.

        References
        ----------
        van den Heuvel, master thesis on the SVAE, section 6.2.4.
        """
        sequences = self._checked_sequences(X, groups)
        self._check_observed(sequences)
        model = self._rebuild()
        scaling, likelihood = Scaling(self.location_, self.scale_), self._fitted_likelihood()
        lengths = sequences.windows(self.sequence_length).length
        rows = self._held(sequences.values, lengths, scaling, likelihood).with_memory()
        self._recall(model, rows)
        fit_dynamics(model, rows, max_iter=_REFIT_ITER, tol=_REFIT_TOL, chunk=FIT_CHUNK)
        return self._with_graphical(model)
