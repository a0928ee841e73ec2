# SPDX-License-Identifier: BSD-3-Clause
"""Structured VAEs over sequences: how they read data, train, and infer."""

from abc import ABCMeta
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.callback import with_callbacks
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sksvae.estimators.base import BaseSVAE
from sksvae.estimators.containers import frames_of_tables_only
from sksvae.estimators.pieces import Batch, Pieces
from sksvae.estimators.scaling import Scaling, pieces
from sksvae.estimators.validation import unchanged_on_error
from sksvae.graphical import ChainPosterior
from sksvae.likelihoods.base import Likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.sequences import Sequences, Windows, read_sequences, split_sequences
from sksvae.stored_rows import StoredSequenceRows, is_memory_map

# Steps, with padding, that are in memory at a time in predictions, and in each of several threads.
CHUNK_STEPS = 16_384
# Steps of a minibatch: many small ones take long, few large ones learn little in an epoch.
_MIN_BATCH, _MAX_BATCH, _BATCHES = 500, 8000, 50
# What a step has, from the model, steps and what was inferred of them.
Reader = Callable[[SequenceVAE, SequenceRows, Any], Tensor]
_UNCUT = 5000  # most steps of a sequence where the initialisation needs more than windows


@frames_of_tables_only
class SequenceSVAE(BaseSVAE, metaclass=ABCMeta):
    """Base class of the structured VAEs over sequences."""

    _parameter_constraints: dict = {
        **{
            name: values
            for name, values in BaseSVAE._parameter_constraints.items()
            if name != "n_importance"
        },
        "rows": [StrOptions({"auto", "consecutive", "independent"})],
        "sequence_length": [Interval(Integral, 1, None, closed="left")],
    }

    # ---- fit ----

    @_fit_context(prefer_skip_nested_validation=True)
    @with_callbacks
    @unchanged_on_error
    def fit(self, X, y=None, groups=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like
            Sequences in any form of `sksvae.sequences.read_sequences`: an array of shape
            (n_sequences, n_timesteps, n_features), a list of arrays of shape
            (n_timesteps, n_features), a table of shape (n_rows, n_features) with ``groups``, a
            DataFrame whose MultiIndex has the sequence in level 0, or a table alone, for which
            ``rows`` decides. NaN marks a missing value.
        y : Ignored
            Not used, present for API consistency by convention.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X, groups or a parameter is not valid, or training diverges. The message says what
            to change; what an earlier fit left stays as it was.
        """
        data, likelihood = self._check_training_data(X, groups, reset=not self._continues())
        # Callbacks get estimators that can read X, and with its groups.
        self.rows_ = data.rows
        metadata = None if groups is None else {"groups": groups}
        self._fit(data, likelihood, {"estimator": self, "X": X, "y": y, "metadata": metadata})
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    @unchanged_on_error
    def partial_fit(self, X, y=None, groups=None):
        """Take one pass of training steps over a batch of sequences.

        The first call initialises the model on its sequences, which should therefore be typical.
        Later calls continue, with the standardisation of the first.

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
            The estimator.

        Notes
        -----
        Stochastic variational inference: the global terms are weighted for a data set of
        ``total_samples`` steps, or of the steps seen so far. Steps of training shrink as
        :math:`1 / (1 + t / 10)`, where :math:`t` counts the passes over ``total_samples`` steps
        that are over; without it all sequences are taken for new ones, and only steps of
        the global posterior shrink, as one over their number. Sequences are cut to
        ``sequence_length``, as in `fit`. See also :ref:`streams <streams>`.

        References
        ----------
        Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", JMLR 14, 2013,
        eq. (26).
        """
        first = not hasattr(self, "model_state_")
        data, likelihood = self._check_training_data(X, groups, reset=first)
        with self._threads(data):
            self._partial_fit(data, likelihood)
        self.rows_ = data.rows
        return self

    def fit_transform(self, X, y=None, groups=None):
        """Fit the model and return the smoothed latents of its training sequences.

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
        Z : ndarray or list of ndarray
            As from ``fit(X, groups=groups).transform(X, groups=groups)``.
        """
        return self.fit(X, y, groups=groups).transform(X, groups=groups)

    # ---- pieces of a fit ----

    def _auto_batch(self, n_rows: int) -> int:
        return min(max(_MIN_BATCH, n_rows // _BATCHES), _MAX_BATCH)

    def _check_training_data(self, X, groups, reset: bool) -> tuple[Sequences, Likelihood]:
        likelihood = self._checked_likelihood(reset)
        rows = self.rows if reset else self.rows_
        sequences = self._read(X, groups, rows, reset, ensure_min_samples=2 if reset else 1)
        likelihood.validate(sequences.values)
        self._check_observed(sequences)
        return sequences, likelihood

    @staticmethod
    def _check_observed(sequences: Sequences) -> None:
        if all(np.isnan(part).all() for part in pieces(sequences.values)):
            raise ValueError("X has no observed value: every entry is NaN.")

    def _read(self, X, groups, rows: str, reset: bool, **options) -> Sequences:
        """Sequences of any form, checked."""

        def check(table):
            return self._validated(table, reset, ensure_all_finite="allow-nan", **options)

        return read_sequences(X, groups, rows=rows, check=check)

    def _values(self, data: Sequences) -> np.ndarray:
        return data.values

    def _arrays(self, data: Sequences) -> tuple[np.ndarray, ...]:
        return data.values, data.lengths

    def _tensors(
        self, data: Sequences, scaling: Scaling, likelihood: Likelihood
    ) -> SequenceRows | StoredSequenceRows:
        return self._held(data.values, data.lengths, scaling, likelihood)

    def _held(
        self, values: np.ndarray, lengths: np.ndarray, scaling: Scaling, likelihood: Likelihood
    ) -> SequenceRows | StoredSequenceRows:
        """Steps of all sequences: where they are, if that is a memory map."""
        if not is_memory_map(values):
            return self._stacked(values, lengths, scaling, likelihood)
        n_steps = torch.as_tensor(lengths, device=self.device)

        def read(some: np.ndarray) -> tuple[Tensor, Tensor]:
            return self._stacked(some, lengths, scaling, likelihood)[:2]

        return StoredSequenceRows(values, read, n_steps.cumsum(0) - n_steps, n_steps)

    def _stacked(
        self, values: np.ndarray, lengths: np.ndarray, scaling: Scaling, likelihood: Likelihood
    ) -> SequenceRows:
        observed, encoded = scaling.rows(values, likelihood, self.device)
        return SequenceRows(
            observed, encoded.nan_to_num(nan=0.0), torch.as_tensor(lengths, device=self.device)
        )

    def _split(
        self, rows: SequenceRows, random_state: np.random.RandomState
    ) -> tuple[SequenceRows, SequenceRows | None]:
        """Windows for training and, for early stopping, sequences or a stretch held out."""
        lengths = rows.lengths.cpu().numpy()
        kept, held_out = Windows.whole(lengths), None
        if self.early_stopping:
            kept, held_out = split_sequences(lengths, self.validation_fraction, random_state)
        uncut = torch.as_tensor(kept.cut(_UNCUT).length, device=self.device)
        training = _chosen(rows, kept.cut(_UNCUT).cut(self.sequence_length)).with_memory(uncut)
        if held_out is None:
            return training, None
        # Their bound is computed all at once, from tensors.
        return training, _chosen(rows, held_out).take(
            torch.arange(len(held_out), device=uncut.device)
        )

    def _cut(self, rows: SequenceRows) -> SequenceRows:
        whole = Windows.whole(rows.lengths.cpu().numpy())
        return _chosen(rows, whole.cut(self.sequence_length))

    # ---- after a fit ----

    def _checked_sequences(self, X, groups) -> Sequences:
        check_is_fitted(self)
        sequences = self._read(X, groups, self.rows_, reset=False)
        self._fitted_likelihood().validate(sequences.values)
        return sequences

    def _pieces(self, sequences: Sequences) -> Pieces:
        """Stretches to infer at a time: whole sequences."""
        return Pieces(sequences.windows(), sequences.lengths)

    def _posterior(
        self, model: SequenceVAE, rows: SequenceRows, params: tuple[Tensor, ...] | None = None
    ) -> ChainPosterior:
        """Posterior of the latents after a fit."""
        return model.infer(rows, params)

    def _posteriors(
        self, model: SequenceVAE, batch: Batch, params: tuple[Tensor, ...] | None = None
    ) -> Iterator[tuple[SequenceRows, ChainPosterior]]:
        """Posterior of the latents of some steps after the other, in order."""
        rows = batch.rows()
        yield rows, self._posterior(model, rows, params)

    def _inferred(
        self,
        sequences: Sequences,
        pieces: Pieces,
        read: Reader,
        infer: Callable[[SequenceVAE, Batch], Iterator[tuple[SequenceRows, Any]]],
        draws: bool = False,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read something off steps, in bounded memory.

        What comes are numbers of rows of the values, and what was read there. Steps may come
        again, from longer pieces; what comes last holds. With ``draws`` batches go one after the
        other, as equal seeds are to give equal numbers.
        """
        scaling = Scaling(self.location_, self.scale_)
        model, likelihood = self._rebuild(), self._fitted_likelihood()

        def rows_of(windows: Windows) -> SequenceRows:
            positions = sequences.row_indices(windows)
            values = sequences.values[positions]
            rows = self._stacked(values, windows.length, scaling, likelihood)
            self._check_reach(values, rows, positions)
            return rows

        @torch.no_grad()
        def compute(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
            positions, inside = sequences.row_indices(batch.windows), pieces.inside(batch)
            parts, first = [], 0
            for rows, inferred in infer(model, batch):
                some = slice(first, first + len(rows))
                values = read(model, rows, inferred).cpu().numpy()
                parts.append((positions[some][inside[some]], values[inside[some]]))
                pieces.record(batch, inferred)
                first = some.stop
            return parts

        while pieces.waiting.any():
            batches = pieces.batches(CHUNK_STEPS, rows_of)
            found = map(compute, batches) if draws else self._in_threads(compute, batches)
            yield from chain.from_iterable(found)
            pieces.join(model.settings.tol)

    def _collect(
        self,
        sequences: Sequences,
        read: Reader,
        infer: Callable | None = None,
        draws: bool = False,
    ) -> np.ndarray:
        """Read something off every step; in the order of the values, steps first.

        ``infer`` is `_posteriors`, or gives something else for readers; ``draws`` is that of
        `_inferred`.
        """
        collected = None
        pieces, infer = self._pieces(sequences), infer or self._posteriors
        for places, part in self._inferred(sequences, pieces, read, infer, draws):
            if collected is None:
                collected = np.empty((sequences.n_rows, *part.shape[1:]), part.dtype)
            collected[places] = part
        return collected

    def _in_threads(self, function: Callable, batches: Iterator) -> Iterator:
        """Results for some batches at a time, in order.

        Operations on many small matrices keep one core busy each, however many threads torch has;
        so there are as many threads for batches as torch has, and torch has one in each of them. A
        single batch is left to the threads of torch.
        """
        n_threads = torch.get_num_threads() if self.device == "cpu" else 1
        first = list(islice(batches, 2))
        batches = chain(first, batches)
        if n_threads == 1 or len(first) < 2:
            yield from map(function, batches)
            return
        waiting: deque = deque()
        try:
            start = {"initializer": torch.set_num_threads, "initargs": (1,)}
            with ThreadPoolExecutor(n_threads, **start) as pool:
                for batch in batches:
                    if len(waiting) == n_threads:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(function, batch))
                while waiting:
                    yield waiting.popleft().result()
        finally:
            torch.set_num_threads(n_threads)  # for threads that others start

    def transform(self, X, groups=None):
        """Posterior means of the latents given whole sequences.

        Parameters
        ----------
        X : array-like
            Sequences in any form, see `fit`.
        groups : array-like of shape (n_rows,) or None, default=None
            Sequence that each row of a table belongs to.

        Returns
        -------
        Z : ndarray or list of ndarray
            Smoothed means, ``latent_dim_`` in place of the features, in the form of X.
        """
        sequences = self._checked_sequences(X, groups)

        def read(model: SequenceVAE, rows: SequenceRows, posterior: ChainPosterior) -> Tensor:
            return posterior.mean[posterior.mask]

        return sequences.restore(self._collect(sequences, read))

    def __sklearn_tags__(self):
        """Tags for scikit-learn's machinery."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags


def _chosen(rows: SequenceRows, windows: Windows) -> SequenceRows:
    """Steps of windows, stacked, or where they are stored."""
    parts = (windows.sequence, windows.start, windows.length)
    return rows.windows(*(torch.as_tensor(part, device=rows.observed.device) for part in parts))
