# SPDX-License-Identifier: BSD-3-Clause
"""What a fitted model says about sequences: predictions, scores, forecasts, missing values."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sksvae.estimators.fitted import normal_points
from sksvae.estimators.pieces import Batch
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequences import SequenceSVAE
from sksvae.estimators.validation import checked_numbers
from sksvae.graphical import ChainPosterior, Potentials, SwitchingPosterior
from sksvae.inference import draw_gaussian
from sksvae.objective import control_variate
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.sequences import Sequences, read_sequences

_N_POINTS = 32  # least quasi-random points that expectations under a latent Gaussian are taken by
AT_ONCE = 2048  # rows that are decoded at all points at a time


class Ends(NamedTuple):
    """Posterior of the last steps of sequences.

    Parameters
    ----------
    mean : Tensor of shape (n_sequences, latent_dim)
        Of the latents.
    covariance : Tensor of shape (n_sequences, latent_dim, latent_dim)
        Of the latents.
    states : Tensor of shape (n_sequences, n_states)
        Probabilities of the discrete states; a single column of ones where there are none.
    """

    mean: Tensor
    covariance: Tensor
    states: Tensor


class SequencePredictions(SequenceSVAE):
    """Predictions of the structured VAEs over sequences."""

    @abstractmethod
    def score_samples(self, X, groups=None):
        """Log-likelihood of each row, bounded from below; see the estimators."""

    def score(self, X, y=None, groups=None, sample_weight=None):
        """Mean of `score_samples` over the rows that have an observation.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        y : Ignored
            Not used, present for API consistency by convention.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.
        sample_weight : array-like of shape (n_rows,) or None, default=None
            Weight of each row of a table in the mean.

        Returns
        -------
        score : float
            Log-likelihood per row, in nats.
        """
        sequences = self._checked_sequences(X, groups)
        scores = self._scores(sequences).astype(np.float64)
        weights = (~np.isnan(sequences.values).all(1)).astype(np.float64)
        if sample_weight is not None:
            given = checked_numbers(sample_weight, (sequences.n_rows,), "sample_weight")
            if given.min() < 0:
                raise ValueError(f"sample_weight must not be negative, got {given.min():.6g}.")
            weights *= given if sequences.order is None else given[sequences.order]
        if not weights.any():
            raise ValueError("X has no observed row of positive weight to be scored.")
        return float(np.average(scores, weights=weights))

    def inverse_transform(self, Z):
        """Mean of the rows that latents decode to.

        Parameters
        ----------
        Z : array-like
            Latents: a table of shape (n_rows, latent_dim), an array of shape
            (n_sequences, n_timesteps, latent_dim), or a list of tables.

        Returns
        -------
        X : ndarray or list of ndarray
            Means, in the units of X and in the form of Z.
        """
        check_is_fitted(self)
        sequences = read_sequences(Z, rows="consecutive", check=super().inverse_transform)
        return sequences.restore(sequences.values)

    def forecast(self, X, n_steps, n_draws=None, groups=None):
        """Continue sequences beyond their ends.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        n_steps : int
            Number of steps to look ahead.
        n_draws : int or None, default=None
            Number of draws of the future; ``None``: means and standard deviations.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        mean : ndarray of shape (n_sequences, n_steps, n_features)
            Expected rows, in the units of X. A table that is one sequence gives an array without
            the first axis. Returned if ``n_draws`` is None.
        std : ndarray of the same shape
            Standard deviations, the noise of the observations included. Returned if ``n_draws``
            is None.
        draws : ndarray of shape (n_draws, n_sequences, n_steps, n_features)
            Draws of the futures, likewise. Returned if ``n_draws`` is given.

        Warns
        -----
        RuntimeWarning
            If the dynamics are so unstable that deviations grow tenfold over the forecast.
        """
        self._check_count(n_steps, "n_steps")
        if n_draws is not None:
            self._check_count(n_draws, "n_draws")
        sequences = self._checked_sequences(X, groups)
        squeeze = sequences.form == "table" and sequences.n_sequences == 1
        model, ends = self._rebuild(), self._ends(sequences)
        if n_draws is None:
            with torch.no_grad():
                parts = self._forecast_moments(model, ends, n_steps)
            expected, variance = (part.cpu().numpy() for part in parts)
            expected, std = self._in_units(expected), np.sqrt(variance)
            if model.likelihood.standardizes:
                std = std * self.scale_
            return (expected[0], std[0]) if squeeze else (expected, std)
        generator = self._generator()
        with torch.no_grad():
            z = self._forecast_draws(model, ends, n_steps, n_draws, generator)
            x = model.likelihood.sample(model.decode(z), model.noise_params, generator)
        draws = self._in_units(x.cpu().numpy())
        return draws[:, 0] if squeeze else draws

    def impute(self, X, n_draws=None, groups=None):
        """Fill missing values with what the whole sequence says about them.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`, with NaN where a value is missing.
        n_draws : int or None, default=None
            Number of draws; ``None`` for expected values.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        X_filled : ndarray or list of ndarray
            X with expected values in place of NaN, in its form. With ``n_draws``, each array has a
            first axis more, over completions drawn from the joint posterior of each sequence.

        Notes
        -----
        With states, expected values in gaps of four rows and more are means over 32 completions,
        always from the same random numbers, since one posterior keeps to one path of states there.
        """
        sequences = self._checked_sequences(X, groups)
        if n_draws is None:
            expected = self._collect(sequences, self._expected_rows)
            return sequences.restore(self._filled(sequences, expected))
        self._check_count(n_draws, "n_draws")
        generator = self._generator()

        def infer(model: SequenceVAE, batch: Batch) -> Iterator:
            rows = batch.rows()
            yield rows, self._posterior_draws(model, rows, n_draws, generator)

        def draw(model: SequenceVAE, rows: SequenceRows, posterior: ChainPosterior) -> Tensor:
            z = posterior.draws[:, posterior.mask]
            x = model.likelihood.sample(model.decode(z), model.noise_params, generator)
            return x.transpose(0, 1)

        filled = self._filled(sequences, self._collect(sequences, draw, infer, draws=True))
        restored = sequences.restore(filled)
        if sequences.form == "list":
            return [np.moveaxis(array, 1, 0) for array in restored]
        return np.moveaxis(restored, -2, 0)

    # ---- hooks ----

    @abstractmethod
    def _forecast_moments(
        self, model: SequenceVAE, ends: Ends, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        """Means and variances of rows, of shape (n_sequences, n_steps, n_features)."""

    @abstractmethod
    def _forecast_draws(
        self,
        model: SequenceVAE,
        ends: Ends,
        n_steps: int,
        n_draws: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Draws of latents, of shape (n_draws, n_sequences, n_steps, latent_dim)."""

    @abstractmethod
    def _posterior_draws(
        self,
        model: SequenceVAE,
        rows: SequenceRows,
        n_draws: int,
        generator: torch.Generator,
    ) -> ChainPosterior:
        """Posterior of the latents of sequences, with draws."""

    @abstractmethod
    def _point_posteriors(
        self, model: SequenceVAE, batch: Batch
    ) -> Iterator[tuple[SequenceRows, Any]]:
        """What `_step_bounds` needs, under point estimates of the dynamics, in order."""

    @abstractmethod
    def _step_bounds(
        self, model: SequenceVAE, rows: SequenceRows, potentials: Potentials, inferred: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each step adds to the bound beside ``E_q[log p(x | z)]``, and moments of q(z).

        ``inferred`` is what `_point_posteriors` gives.
        """

    def _expected_rows(
        self, model: SequenceVAE, rows: SequenceRows, posterior: ChainPosterior
    ) -> Tensor:
        """Expected values of all rows, given their sequences."""
        mask = posterior.mask
        return self._decoded(model, posterior.mean[mask], posterior.covariance[mask])[0]

    # ---- pieces ----

    def _drawn(
        self, n_samples: int, n_sequences: int, **given: Tensor
    ) -> tuple[np.ndarray, Tensor, Tensor]:
        """Rows drawn from the model, with their latents and states, some of which may be given."""
        check_is_fitted(self)
        self._check_count(n_samples, "n_samples")
        self._check_count(n_sequences, "n_sequences")
        model, generator = self._rebuild(), self._generator()
        with torch.no_grad():
            z, states = model.graphical.sample(int(n_samples), int(n_sequences), generator, **given)
            x = model.likelihood.sample(model.decode(z), model.noise_params, generator)
        return self._in_units(x.cpu().numpy()), z, states

    def _in_units(self, x: np.ndarray) -> np.ndarray:
        """From the scale of the likelihood to the units of X."""
        return Scaling(self.location_, self.scale_).restore(x, self._fitted_likelihood())

    def _filled(self, sequences: Sequences, values: np.ndarray) -> np.ndarray:
        """Values in the units of X where those of the sequences are missing."""
        known = sequences.values if values.ndim == 2 else sequences.values[:, None]
        return np.where(np.isnan(known), self._in_units(values), known)

    def _points(self) -> Tensor:
        """Quasi-random points whose mean and covariance are exactly zero and the identity.

        What they say of a linear decoder is then exact.
        """
        dim = self.latent_dim_
        points = normal_points(max(_N_POINTS, 2 * dim), np.empty(dim))
        points = points - points.mean(0)
        factor = torch.linalg.cholesky(points.mT @ points / len(points))
        points = torch.linalg.solve_triangular(factor, points.mT, upper=False).mT
        points = torch.from_numpy(points.numpy().astype(self.location_.dtype))
        return points.unsqueeze(1).to(self.device)

    def _decoded(
        self, model: SequenceVAE, mean: Tensor, covariance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of rows whose latents are Gaussian."""
        points, means, variances = self._points(), [], []
        for m, V in zip(mean.split(AT_ONCE), covariance.split(AT_ONCE), strict=True):
            outputs = model.decode(draw_gaussian(m, V, points.expand(-1, *m.shape)))
            centers = model.likelihood.mean(outputs, model.noise_params)
            spread = model.likelihood.variance(outputs, model.noise_params)
            means.append(centers.mean(0))
            variances.append(spread.mean(0) + centers.var(0, correction=0))
        return torch.cat(means), torch.cat(variances)

    def _ends(self, sequences: Sequences) -> Ends:
        """Posterior of the last step of each sequence."""
        last, dim = np.cumsum(sequences.lengths) - 1, self.latent_dim_

        def read(model: SequenceVAE, rows: SequenceRows, posterior: ChainPosterior) -> Tensor:
            mask = posterior.mask
            states = posterior.mean.new_ones(len(rows), 1)
            if isinstance(posterior, SwitchingPosterior):
                states = posterior.states[mask]
            return torch.cat(
                [posterior.mean[mask], posterior.covariance[mask].flatten(1), states], -1
            )

        ends = None
        pieces = self._pieces(sequences).ends()
        for places, part in self._inferred(sequences, pieces, read, self._posteriors):
            if ends is None:
                ends = np.empty((len(last), part.shape[1]), part.dtype)
            chosen = np.isin(places, last)
            ends[np.searchsorted(last, places[chosen])] = part[chosen]
        mean, covariance, states = torch.as_tensor(ends, device=self.device).tensor_split(
            (dim, dim + dim**2), -1
        )
        return Ends(mean, covariance.unflatten(-1, (dim, dim)), states)

    def _scores(self, sequences: Sequences) -> np.ndarray:
        """`score_samples` in the order of the values."""
        points = self._points()

        def read(model: SequenceVAE, rows: SequenceRows, inferred: Any) -> Tensor:
            potentials = model.encode(rows)
            bounds, *moments = self._step_bounds(model, rows, potentials, inferred)
            parts = []
            for start in range(0, len(rows), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                evidence = Potentials(*(field[part] for field in potentials))
                each = (moment[part] for moment in moments)
                parts.append(_reconstruction(model, rows.observed[part], evidence, *each, points))
            return bounds + torch.cat(parts)

        scores = self._collect(sequences, read, self._point_posteriors)
        scaling = Scaling(self.location_, self.scale_)
        jacobian = scaling.log_jacobian(sequences.values, self._fitted_likelihood())
        return scores + jacobian.astype(scores.dtype)


def _reconstruction(
    model: SequenceVAE,
    observed: Tensor,
    potentials: Potentials,
    mean: Tensor,
    covariance: Tensor,
    points: Tensor,
) -> Tensor:
    """``E_q[log p(x | z)]`` of each row."""
    draws = draw_gaussian(mean, covariance, points.expand(-1, *mean.shape))
    log_prob = model.likelihood.log_prob(observed, model.decode(draws), model.noise_params).sum(-1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return (log_prob - control_variate(potentials, mean, variance, draws)).mean(0)
