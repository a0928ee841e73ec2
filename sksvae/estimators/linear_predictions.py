# SPDX-License-Identifier: BSD-3-Clause
"""What fitted linear dynamics say about sequences."""

import warnings
from collections.abc import Iterator
from itertools import pairwise, tee

import numpy as np
import torch
from torch import Tensor

from sksvae.estimators.pieces import Batch
from sksvae.estimators.sequence_predictions import Ends, SequencePredictions
from sksvae.graphical import ChainPosterior, Potentials
from sksvae.graphical.point_dynamics import predictive_stretches
from sksvae.inference import draw_gaussian
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded

# A sequence of more steps is worked on in stretches: in bounded memory, in three times the time.
_LONG, _STRETCH = 20_000, 8_000
_MAX_GROWTH = 10.0  # of deviations over a forecast, before it is warned of


class LinearPredictions(SequencePredictions):
    """Predictions of `SVAELinearDynamics`."""

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

        def read(
            model: SequenceVAE, rows: SequenceRows, predicted: tuple[Tensor, Tensor]
        ) -> Tensor:
            return self._decoded(model, *predicted)[0]

        predictions = self._collect(sequences, read, self._predictions)
        return sequences.restore(self._in_units(predictions))

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
        X, z, _ = self._drawn(n_samples, n_sequences)
        Z = z.cpu().numpy()
        return (X[0], Z[0]) if n_sequences == 1 else (X, Z)

    # ---- hooks ----

    def _posteriors(
        self, model: SequenceVAE, batch: Batch, params: tuple[Tensor, ...] | None = None
    ) -> Iterator[tuple[SequenceRows, ChainPosterior]]:
        """Exact posterior, of a long sequence stretch by stretch."""
        if not _is_long(batch):
            yield from super()._posteriors(model, batch, params)
            return
        params = model.graphical.expected_params() if params is None else params
        cuts = _cuts(batch)
        posteriors = model.graphical.infer_stretches(
            lambda a, b: _potentials(model, batch.stretch(a, b)), params, cuts
        )
        for (a, b), posterior in zip(pairwise(cuts), posteriors, strict=True):
            yield batch.stretch(a, b), posterior

    def _predictions(
        self, model: SequenceVAE, batch: Batch
    ) -> Iterator[tuple[SequenceRows, tuple[Tensor, Tensor]]]:
        """Moments of each step given the steps before it, of stacked steps, likewise."""
        if not _is_long(batch):
            rows = batch.rows()
            moments = model.graphical.predictive_moments(_potentials(model, rows), rows.mask)
            yield rows, tuple(moment[rows.mask] for moment in moments)
            return
        cuts = _cuts(batch)
        read, read_again = tee(batch.stretch(a, b) for a, b in pairwise(cuts))
        moments = predictive_stretches(
            model.graphical.point_parameters(), (_potentials(model, rows) for rows in read)
        )
        for rows, (mean, covariance) in zip(read_again, moments, strict=True):
            yield rows, (mean[0], covariance[0])

    def _forecast_moments(
        self, model: SequenceVAE, ends: Ends, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        self._warn_of_growth(n_steps)
        mean, covariance = model.graphical.forecast_moments(ends.mean, ends.covariance, n_steps)
        decoded = self._decoded(model, mean.flatten(0, 1), covariance.flatten(0, 1))
        return tuple(part.unflatten(0, mean.shape[:2]) for part in decoded)

    def _forecast_draws(
        self,
        model: SequenceVAE,
        ends: Ends,
        n_steps: int,
        n_draws: int,
        generator: torch.Generator,
    ) -> Tensor:
        self._warn_of_growth(n_steps)
        mean = ends.mean
        noise = torch.randn(
            (n_draws, *mean.shape), generator=generator, dtype=mean.dtype, device=mean.device
        )
        last = draw_gaussian(mean, ends.covariance, noise)
        return model.graphical.continue_draws(last, n_steps, generator)

    def _posterior_draws(
        self, model: SequenceVAE, rows: SequenceRows, n_draws: int, generator: torch.Generator
    ) -> ChainPosterior:
        like = rows.encoded
        shape = (n_draws, *rows.latent_shape, self.latent_dim_)
        noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        return model.infer(rows, noise=noise, method="sequential")

    def _point_posteriors(
        self, model: SequenceVAE, batch: Batch
    ) -> Iterator[tuple[SequenceRows, tuple[ChainPosterior, tuple[Tensor, Tensor]]]]:
        posteriors = self._posteriors(model, batch, model.graphical.point_stats())
        predictions = self._predictions(model, batch)
        for (rows, posterior), (_, predicted) in zip(posteriors, predictions, strict=True):
            yield rows, (posterior, predicted)

    def _step_bounds(
        self,
        model: SequenceVAE,
        rows: SequenceRows,
        potentials: Potentials,
        inferred: tuple[ChainPosterior, tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        posterior, predicted = inferred
        moments = posterior.mean[posterior.mask], posterior.covariance[posterior.mask]
        return _evidence_beyond(potentials, *moments, *predicted), *moments

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
                stacklevel=4,  # the line that called forecast
            )


def _is_long(batch: Batch) -> bool:
    return len(batch.windows) == 1 and batch.n_steps > _LONG


def _cuts(batch: Batch) -> list[int]:
    """Where the stretches of a long sequence begin, and its length."""
    return [*range(0, batch.n_steps, _STRETCH), batch.n_steps]


def _potentials(model: SequenceVAE, rows: SequenceRows) -> Potentials:
    return padded(model.encode(rows), rows.mask)


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
