# SPDX-License-Identifier: BSD-3-Clause
"""What a fitted model says about sequences: predictions, scores, forecasts, missing values."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sksvae.estimators.fitted import normal_points
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequences import SequenceSVAE
from sksvae.estimators.validation import checked_numbers
from sksvae.graphical import Potentials
from sksvae.inference import draw_gaussian
from sksvae.objective import control_variate
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded
from sksvae.sequences import Sequences, read_sequences

_N_POINTS = 32  # least quasi-random points that expectations under a latent Gaussian are taken by
_MAX_GROWTH = 10.0  # of deviations over a forecast, before it is warned of
_AT_ONCE = 2048  # rows that are decoded at all points at a time


class SequencePredictions(SequenceSVAE):
    """Predictions of the structured VAEs over sequences."""

    def predict(self, X, groups=None):
        """One-step-ahead predictions: the mean of each row given the rows before it.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        X_predicted : ndarray or list of ndarray
            In the form of X and aligned with it: what stands at a row uses earlier rows only. At
            the first row of a sequence it is the mean of the initial state, decoded.
        """
        sequences = self._checked_sequences(X, groups)

        def read(model: SequenceVAE, rows: SequenceRows) -> Tensor:
            mask = rows.mask
            potentials = padded(model.encode(rows), mask)
            mean, covariance = model.graphical.predictive_moments(potentials, mask)
            return self._decoded(model, mean[mask], covariance[mask])[0]

        return sequences.restore(self._in_units(self._collect(sequences, read)))

    def score_samples(self, X, groups=None):
        """Log-likelihood of each row given the rows before it, bounded from below.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        log_likelihood : ndarray or list of ndarray
            In nats and in the units of X, one entry per row, zero where nothing is observed. The
            sum over a sequence is the evidence lower bound on its log-likelihood under the point
            estimates of the dynamics, which is exact where networks and likelihood are linear and
            Gaussian.

        Notes
        -----
        With ``q`` exact for the potentials ``l``, the bound is ``log Z + sum_t E_q[log p(x_t |
        z_t) - log l(z_t)]``, and ``log Z`` is a sum of the evidence of each potential given those
        before it.
        """
        sequences = self._checked_sequences(X, groups)
        return sequences.restore(self._scores(sequences))

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
        sequences = self._checked_sequences(X, groups)
        self._warn_of_growth(n_steps)
        squeeze = sequences.form == "table" and sequences.n_sequences == 1
        model, mean, covariance = self._last_moments(sequences)
        if n_draws is None:
            with torch.no_grad():
                mean, covariance = model.graphical.forecast_moments(mean, covariance, n_steps)
                decoded = self._decoded(model, mean.flatten(0, 1), covariance.flatten(0, 1))
            shape = (sequences.n_sequences, n_steps, -1)
            expected, variance = (part.cpu().numpy().reshape(shape) for part in decoded)
            expected, std = self._in_units(expected), np.sqrt(variance)
            if model.likelihood.standardizes:
                std = std * self.scale_
            return (expected[0], std[0]) if squeeze else (expected, std)
        self._check_count(n_draws, "n_draws")
        generator = self._generator()
        with torch.no_grad():
            noise = torch.randn(
                (n_draws, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device
            )
            last = draw_gaussian(mean, covariance, noise)
            z = model.graphical.continue_draws(last, n_steps, generator)
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
        """
        sequences = self._checked_sequences(X, groups)
        if n_draws is None:

            def read(model: SequenceVAE, rows: SequenceRows) -> Tensor:
                posterior = model.infer(rows)
                mean, covariance = (
                    posterior.mean[posterior.mask],
                    posterior.covariance[posterior.mask],
                )
                return self._decoded(model, mean, covariance)[0]

            return sequences.restore(self._filled(sequences, self._collect(sequences, read)))
        self._check_count(n_draws, "n_draws")
        generator = self._generator()

        def draw(model: SequenceVAE, rows: SequenceRows) -> Tensor:
            shape = (n_draws, *rows.latent_shape, self.latent_dim_)
            like = rows.encoded
            noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
            posterior = model.infer(rows, noise=noise, method="sequential")
            outputs = model.decode(posterior.draws[:, posterior.mask])
            return model.likelihood.sample(outputs, model.noise_params, generator).transpose(0, 1)

        filled = self._filled(sequences, self._collect(sequences, draw))
        restored = sequences.restore(filled)
        if sequences.form == "list":
            return [np.moveaxis(array, 1, 0) for array in restored]
        return np.moveaxis(restored, -2, 0)

    def sample(self, n_samples=1, n_sequences=1):
        """Draw sequences from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Steps of each sequence.
        n_sequences : int, default=1
            Number of sequences.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features) or (n_sequences, n_samples, n_features)
            Rows, in the units of X; without the first axis for a single sequence.
        Z : ndarray of shape (n_samples, latent_dim) or (n_sequences, n_samples, latent_dim)
            Their latents.
        """
        check_is_fitted(self)
        self._check_count(n_samples, "n_samples")
        self._check_count(n_sequences, "n_sequences")
        model, generator = self._rebuild(), self._generator()
        with torch.no_grad():
            z, _ = model.graphical.sample(int(n_samples), int(n_sequences), generator)
            x = model.likelihood.sample(model.decode(z), model.noise_params, generator)
        X, Z = self._in_units(x.cpu().numpy()), z.cpu().numpy()
        return (X[0], Z[0]) if n_sequences == 1 else (X, Z)

    # ---- pieces ----

    def _warn_of_growth(self, n_steps: int) -> None:
        with np.errstate(over="ignore"):
            growth = np.power(self.spectral_radius_, float(n_steps))
        if growth > _MAX_GROWTH:
            warnings.warn(
                f"The dynamics are unstable: transition_matrix_ has spectral radius "
                f"{self.spectral_radius_:.4g}, so that deviations grow up to {growth:.3g} times in "
                f"n_steps={n_steps}. Forecast fewer steps, or set a stable transition_matrix with "
                "replace_dynamics.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _in_units(self, x: np.ndarray) -> np.ndarray:
        """From the scale of the likelihood to the units of X."""
        return Scaling(self.location_, self.scale_).restore(x, self._fitted_likelihood())

    def _filled(self, sequences: Sequences, values: np.ndarray) -> np.ndarray:
        """Values in the units of X where those of the sequences are missing."""
        known = sequences.values if values.ndim == 2 else sequences.values[:, None]
        return np.where(np.isnan(known), self._in_units(values), known)

    def _last_moments(self, sequences: Sequences) -> tuple[SequenceVAE, Tensor, Tensor]:
        """Posterior moments of the last step of each sequence."""
        last, dim = np.cumsum(sequences.lengths) - 1, self.latent_dim_
        moments = np.empty((sequences.n_sequences, dim, 1 + dim), self.location_.dtype)
        for model, rows, positions in self._batches(sequences):
            posterior, end = model.infer(rows), rows.lengths - 1
            each = torch.arange(len(end), device=end.device)
            mean, covariance = posterior.mean[each, end], posterior.covariance[each, end]
            # Batches are not in the order of the sequences.
            place = np.searchsorted(last, positions[rows.lengths.cumsum(0).cpu().numpy() - 1])
            moments[place] = torch.cat([mean.unsqueeze(-1), covariance], -1).cpu().numpy()
        collected = torch.as_tensor(moments, device=self.device)
        return self._rebuild(), collected[..., 0], collected[..., 1:]

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
        for m, V in zip(mean.split(_AT_ONCE), covariance.split(_AT_ONCE), strict=True):
            outputs = model.decode(draw_gaussian(m, V, points.expand(-1, *m.shape)))
            centers = model.likelihood.mean(outputs, model.noise_params)
            spread = model.likelihood.variance(outputs, model.noise_params)
            means.append(centers.mean(0))
            variances.append(spread.mean(0) + centers.var(0, correction=0))
        return torch.cat(means), torch.cat(variances)

    def _scores(self, sequences: Sequences) -> np.ndarray:
        """`score_samples` in the order of the values."""
        points = self._points()

        def read(model: SequenceVAE, rows: SequenceRows) -> Tensor:
            mask = rows.mask
            potentials = model.encode(rows)
            chain, graphical = padded(potentials, mask), model.graphical
            posterior = graphical.infer(chain, graphical.point_stats(), mask)
            predicted = (moment[mask] for moment in graphical.predictive_moments(chain, mask))
            moments = posterior.mean[mask], posterior.covariance[mask]
            evidence = _evidence_beyond(potentials, *moments, *predicted)
            parts = [
                _reconstruction(model, part, Potentials(*evidence_part), *moments_part, points)
                for part, evidence_part, moments_part in _slices(rows, potentials, moments)
            ]
            return evidence + torch.cat(parts)

        scores = self._collect(sequences, read)
        scaling = Scaling(self.location_, self.scale_)
        jacobian = scaling.log_jacobian(sequences.values, self._fitted_likelihood())
        return scores + jacobian.astype(scores.dtype)


def _slices(
    rows: SequenceRows, potentials: Potentials, moments: tuple[Tensor, Tensor]
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """A bounded number of steps at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        yield (
            rows.observed[part],
            tuple(field[part] for field in potentials),
            tuple(field[part] for field in moments),
        )


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


def _evidence_beyond(
    potentials: Potentials, mean: Tensor, covariance: Tensor, prior_mean: Tensor, prior: Tensor
) -> Tensor:
    """``log E_p[l(z)] - E_q[log l(z)]`` for Gaussians ``p`` and ``q``, per row.

    ``log E_p[l] = r'm - m'Rm/2 + w'(P^-1 + R)^-1 w/2 - log|I + sPs|/2`` with ``w = r - R m`` and
    ``s`` the square root of ``R``. Squares of ``m`` are taken about the mean of q.
    """
    r, R = potentials
    shift = prior_mean - mean
    linear = (r - R * mean) * shift - 0.5 * R * shift.square()
    expected = -0.5 * R * covariance.diagonal(dim1=-2, dim2=-1)
    root = R.sqrt()
    inner = root.unsqueeze(-1) * prior * root.unsqueeze(-2)
    inner = inner + torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    factor = torch.linalg.cholesky(inner)
    innovation = (r - R * prior_mean).unsqueeze(-1)
    spread = prior @ innovation
    whitened = torch.linalg.solve_triangular(factor, root.unsqueeze(-1) * spread, upper=False)
    square = (innovation * spread).sum((-2, -1)) - whitened.square().sum((-2, -1))
    log_det = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (linear - expected).sum(-1) + 0.5 * (square - log_det)
