# SPDX-License-Identifier: BSD-3-Clause
"""What fitted switching dynamics say about sequences."""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sksvae.estimators.completions import Completions, near_gaps
from sksvae.estimators.pieces import Batch, Pieces
from sksvae.estimators.sequence_predictions import AT_ONCE, Ends, SequencePredictions
from sksvae.estimators.validation import checked_states
from sksvae.graphical import ChainPosterior, Potentials, SwitchingPosterior
from sksvae.inference import draw_gaussian, most_probable_path
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded
from sksvae.sequences import Sequences, Windows

_WHOLE = 6000  # steps of the longest sequence that is inferred in one piece
_PIECE = 800  # steps of the pieces of longer ones
_MARGIN = 50  # steps beyond each end of a piece that its posterior takes into account at first
# Steps of the longest sequence that gets a second start of inference. One of two ends is kept for
# the whole sequence: the longer it is, the less they differ, per step.
_BRIEF = 500
_GAP = 4  # steps of the shortest gap in which several stories are weighed
_N_COMPLETIONS = 32  # whose mean is expected there
_MAX_GROWTH = 10.0  # of deviations over a forecast, before it is warned of


class StatePredictions(SequencePredictions):
    """Predictions of `SVAESwitchingLDS`."""

    def predict(self, X, groups=None):
        """Most probable state of each row, given its whole sequence.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        states : ndarray or list of ndarray of int
            One per row, in the form of X. States are numbered from 0 in the order of their weight
            in training.
        """
        sequences = self._checked_sequences(X, groups)
        return sequences.restore(self._collect(sequences, _states).argmax(1))

    def predict_proba(self, X, groups=None):
        """Probability of each state at each row, given its whole sequence.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        probabilities : ndarray or list of ndarray
            ``n_states_`` per row, in the form of X.
        """
        sequences = self._checked_sequences(X, groups)
        return sequences.restore(self._collect(sequences, _states))

    def decode(self, X, groups=None):
        """Most probable path of states through each sequence: the Viterbi path under q(k).

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        states : ndarray or list of ndarray of int
            One per row, in the form of X. Other than those of `predict` they are probable
            together: none follows another that it cannot follow.
        """
        sequences = self._checked_sequences(X, groups)
        energies = self._collect(
            sequences, lambda model, rows, posterior: posterior.energies[posterior.mask]
        )
        log_initial, log_transition = self._rebuild().graphical.expected_params()[8:]
        path = np.empty(sequences.n_rows, np.int64)
        for start, length in zip(sequences.starts, sequences.lengths, strict=True):
            steps = slice(start, start + length)
            some = torch.as_tensor(energies[steps], device=self.device)
            path[steps] = most_probable_path(log_initial, log_transition, some)[0].cpu().numpy()
        return sequences.restore(path)

    def fit_predict(self, X, y=None, groups=None):
        """Fit the model and return the most probable state of each row.

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
        states : ndarray or list of ndarray of int
            As from ``fit(X, groups=groups).predict(X, groups=groups)``.
        """
        return self.fit(X, y, groups=groups).predict(X, groups=groups)

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
            estimates of the dynamics, at the best of several starts of the block updates.

        Notes
        -----
        An entry is ``E_q[log p(x_t | z_t)]`` less the divergence of ``q(z_t, k_t | z_{t-1},
        k_{t-1})`` from the dynamics, that of steps without an observation since the last one
        included. As q has seen the whole sequence, single entries are not predictive densities;
        only their sum is a bound.
        """
        sequences = self._checked_sequences(X, groups)
        return sequences.restore(self._scores(sequences))

    def sample(self, n_samples=1, n_sequences=1, states=None):
        """Draw sequences from the model, or sequences with given states.

        Parameters
        ----------
        n_samples : int, default=1
            Steps of each sequence.
        n_sequences : int, default=1
            Number of sequences.
        states : array-like of int of shape (n_samples,) or (n_sequences, n_samples), default=None
            States of all sequences or of each, from 0 to ``n_states_ - 1``, such as those that
            `predict` finds in a recording: latents are then drawn from the dynamics of these
            states ([1]_, figure 1). That of the first step does not matter, since its latent has
            the initial distribution. ``None``: states are drawn, too.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features) or (n_sequences, n_samples, n_features)
            Rows, in the units of X; without the first axis for a single sequence.
        states : ndarray of int of shape (n_samples,) or (n_sequences, n_samples)
            Their states.

        References
        ----------
        .. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with
           structured discrete representations", NeurIPS 2023.
        """
        check_is_fitted(self)
        given = {}
        if states is not None:
            found = checked_states(states, self.n_states_, n_samples, n_sequences)
            given["states"] = torch.as_tensor(found, device=self.device)
        X, _, states = self._drawn(n_samples, n_sequences, **given)
        states = states.cpu().numpy()
        return (X[0], states[0]) if n_sequences == 1 else (X, states)

    # ---- hooks ----

    def _pieces(self, sequences: Sequences) -> Pieces:
        """Sequences, or overlapping pieces of long ones.

        What is beyond the margin hardly matters to most posteriors, and many pieces side by side
        are faster than one long recursion.
        """
        whole = sequences.windows()
        long = whole.length > _WHOLE
        parts = [whole.take(~long), whole.take(long).cut(_PIECE)]
        inner = Windows(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sequence", "start", "length")
            )
        )
        return Pieces(inner, sequences.lengths, _MARGIN)

    def _posterior(
        self, model: SequenceVAE, rows: SequenceRows, params: tuple[Tensor, ...] | None = None
    ) -> SwitchingPosterior:
        mask, graphical = rows.mask, model.graphical
        params = graphical.expected_params() if params is None else params
        potentials = padded(model.encode(rows), mask)
        starts = [graphical.starting_states(potentials, params, mask)]
        brief = (rows.lengths <= _BRIEF)[:, None, None]
        if brief.any():
            local = graphical.starting_states(potentials, params, mask, "local")
            starts.append(torch.where(brief, local, starts[0]))
        return graphical.infer_best(potentials, params, mask, starts, model.settings)

    def _point_posteriors(
        self, model: SequenceVAE, batch: Batch
    ) -> Iterator[tuple[SequenceRows, SwitchingPosterior]]:
        return self._posteriors(model, batch, model.graphical.point_stats())

    def _step_bounds(
        self,
        model: SequenceVAE,
        rows: SequenceRows,
        potentials: Potentials,
        inferred: SwitchingPosterior,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask, graphical = inferred.mask, model.graphical
        divergence = graphical.local_kl_terms(inferred, graphical.point_stats())
        return -divergence[mask], inferred.mean[mask], inferred.covariance[mask]

    def _scores(self, sequences: Sequences) -> np.ndarray:
        observed = ~np.isnan(sequences.values).all(1)
        return _moved_to_observed(super()._scores(sequences), observed, sequences.lengths)

    def _forecast_moments(
        self, model: SequenceVAE, ends: Ends, n_steps: int
    ) -> tuple[Tensor, Tensor]:
        ahead = model.graphical.forecast_moments(*ends, n_steps)
        self._warn_of_growth(ends.covariance, ahead.covariance[:, -1])
        shape = ahead.means.shape[:-1]
        decoded = self._decoded(model, ahead.means.flatten(0, 2), ahead.covariances.flatten(0, 2))
        means, variances = (part.unflatten(0, shape) for part in decoded)
        weights = ahead.state_probabilities.unsqueeze(-1)
        mean = (weights * means).sum(-2)
        spread = (means - mean.unsqueeze(-2)).square()
        return mean, (weights * (variances + spread)).sum(-2)

    def _forecast_draws(
        self,
        model: SequenceVAE,
        ends: Ends,
        n_steps: int,
        n_draws: int,
        generator: torch.Generator,
    ) -> Tensor:
        mean, covariance, probabilities = ends
        last = draw_gaussian(mean, covariance, _noise((n_draws, *mean.shape), mean, generator))
        states = torch.multinomial(probabilities, n_draws, replacement=True, generator=generator)
        z, _ = model.graphical.continue_draws(last, states.mT, n_steps, generator)
        self._warn_of_growth(covariance, torch.diag_embed(z[..., -1, :].var(0, correction=0)))
        return z

    def _posterior_draws(
        self, model: SequenceVAE, rows: SequenceRows, n_draws: int, generator: torch.Generator
    ) -> SwitchingPosterior:
        posterior = self._posterior(model, rows)
        draws, _ = Completions.of(model, rows, posterior).draw(n_draws, generator)
        return replace(posterior, draws=draws)

    def _expected_rows(
        self, model: SequenceVAE, rows: SequenceRows, posterior: ChainPosterior
    ) -> Tensor:
        """In gaps the mean of completions, as one posterior keeps to one story there."""
        expected = super()._expected_rows(model, rows, posterior)
        missing = rows.observed.isnan().all(-1)
        numbers, lengths = near_gaps(missing, rows.lengths, min_length=_GAP, margin=_MARGIN)
        if not len(numbers) or model.graphical.n_states == 1:
            return expected
        near = SequenceRows(*rows.steps(numbers), lengths)
        completions = Completions.of(model, near, self._posterior(model, near))
        for i, steps in enumerate(numbers.split(lengths.tolist())):
            gaps = missing[steps]
            expected[steps[gaps]] = self._mean_completion(model, completions.alone(i), gaps)
        return expected

    def _mean_completion(
        self, model: SequenceVAE, completions: Completions, gaps: Tensor
    ) -> Tensor:
        """Expected rows of the gaps of one sequence.

        The same random numbers for every sequence, so that what else there is does not matter.
        """
        generator = torch.Generator(device=gaps.device).manual_seed(0)
        draws, means = (part[:, 0, gaps] for part in completions.draw(_N_COMPLETIONS, generator))
        # With mirror images only paths are random, as far as the decoder is linear.
        z = torch.cat([draws, 2 * means - draws])
        likelihood, noise = model.likelihood, model.noise_params
        parts = z.split(AT_ONCE, 1)
        return torch.cat([likelihood.mean(model.decode(part), noise).mean(0) for part in parts])

    def _warn_of_growth(self, now: Tensor, then: Tensor) -> None:
        """Latents have about unit variance in training."""
        before, after = (
            float(covariance.diagonal(dim1=-2, dim2=-1).max().sqrt()) for covariance in (now, then)
        )
        growth = after / max(before, 1.0)
        if growth > _MAX_GROWTH:
            radii = np.atleast_1d(self.spectral_radius_)
            warnings.warn(
                f"The dynamics are unstable: deviations of the latents grow up to {growth:.3g} "
                f"times over the forecast. The transition matrices have spectral radii up to "
                f"{radii.max():.4g}. Forecast fewer steps.",
                RuntimeWarning,
                stacklevel=4,  # the line that called forecast
            )


def _states(model: SequenceVAE, rows: SequenceRows, posterior: SwitchingPosterior) -> Tensor:
    return posterior.states[posterior.mask]


def _moved_to_observed(terms: np.ndarray, observed: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Terms of rows without an observation, added to the next row with one.

    After the last observation of a sequence, to that; those of a sequence without any are dropped,
    as its log-likelihood is zero.
    """
    row, n_rows = np.arange(len(terms)), len(terms)
    stop = np.repeat(np.cumsum(lengths), lengths)
    first = stop - np.repeat(lengths, lengths)
    later = np.minimum.accumulate(np.where(observed, row, n_rows)[::-1])[::-1]
    earlier = np.maximum.accumulate(np.where(observed, row, -1))
    place = np.where(later < stop, later, earlier)
    kept = place >= first
    return np.bincount(place[kept], terms[kept], n_rows).astype(terms.dtype)


def _noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
