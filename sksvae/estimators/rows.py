# SPDX-License-Identifier: BSD-3-Clause
"""Structured VAEs over independent rows."""

import math
from abc import ABCMeta
from collections.abc import Callable

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.callback import with_callbacks
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sksvae.estimators.base import BaseSVAE
from sksvae.estimators.fitted import CHUNK, normal_points
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.validation import check_one_table, unchanged_on_error
from sksvae.importance import importance_bound
from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows, StructuredVAE
from sksvae.stored_rows import StoredRows, is_memory_map


class RowSVAE(BaseSVAE, metaclass=ABCMeta):
    """Base class of the structured VAEs over independent rows."""

    @_fit_context(prefer_skip_nested_validation=True)
    @with_callbacks
    @unchanged_on_error
    def fit(self, X, y=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the domain of the likelihood.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X or a parameter is not valid, or training diverges. The message says what to
            change; what an earlier fit left stays as it was.
        """
        data, likelihood = self._check_training_data(X, reset=not self._continues())
        # Callbacks get X as it came: with its feature names, a scorer warns of nothing.
        self._fit(data, likelihood, {"estimator": self, "X": X, "y": y})
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    @unchanged_on_error
    def partial_fit(self, X, y=None):
        """Take one pass of training steps over a batch of rows.

        The first call initialises the model on its rows, which should therefore be typical and
        at least as many as for `fit`. Later calls continue, with the standardisation of the first,
        and components keep the labels that the first call gave them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator.

        Notes
        -----
        Stochastic variational inference: the global terms are weighted for a data set of
        ``total_samples`` rows, or of the rows seen so far. Steps of the networks and of the global
        posterior shrink as :math:`1 / (1 + t / 10)`, where :math:`t` counts the passes over
        ``total_samples`` rows that are over; without ``total_samples`` all rows are taken for new
        ones, and only steps of the global posterior shrink, as one over their number.

        See :ref:`streams <streams>` for memory maps and Parquet files.

        References
        ----------
        Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", JMLR 14, 2013,
        eq. (26).
        """
        first = not hasattr(self, "model_state_")
        data, likelihood = self._check_training_data(X, reset=first)
        with self._threads(data):
            self._partial_fit(data, likelihood)
        return self

    # ---- pieces of a fit ----

    def _validated(self, X, reset: bool, **options) -> np.ndarray:
        check_one_table(X)
        return super()._validated(X, reset, **options)

    def _check_training_data(self, X, reset: bool) -> tuple[np.ndarray, Likelihood]:
        likelihood = self._checked_likelihood(reset)
        X = self._validated(X, reset, ensure_min_samples=2 if reset else 1)
        likelihood.validate(X)
        return X, likelihood

    def _values(self, data: np.ndarray) -> np.ndarray:
        return data

    def _tensors(
        self, data: np.ndarray, scaling: Scaling, likelihood: Likelihood
    ) -> Rows | StoredRows:
        if is_memory_map(data):
            return StoredRows(data, lambda values: scaling.rows(values, likelihood, self.device))
        return scaling.rows(data, likelihood, self.device)

    def _min_rows(self) -> int:
        """Fewest training rows that `_initialize` can do with."""
        return 1

    def _split(self, rows: Rows, random_state: np.random.RandomState) -> tuple[Rows, Rows | None]:
        """Training rows and, for early stopping, validation rows."""
        if not self.early_stopping:
            return rows, None
        order = torch.as_tensor(random_state.permutation(len(rows)), device=rows.observed.device)
        n_validation = math.ceil(self.validation_fraction * len(rows))
        n_training = len(rows) - n_validation
        if n_training < self._min_rows():
            raise ValueError(
                f"early_stopping=True with validation_fraction={self.validation_fraction} leaves "
                f"{n_training} of {len(rows)} samples for training, and at least "
                f"{self._min_rows()} are needed. Pass more rows or lower validation_fraction."
            )
        return rows.subset(order[n_validation:]), rows.take(order[:n_validation])

    # ---- after a fit ----

    def _checked_rows(self, X) -> tuple[np.ndarray, Likelihood]:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        likelihood = self._fitted_likelihood()
        likelihood.validate(X)
        return X, likelihood

    def _collect(self, X, read: Callable[[StructuredVAE, Rows], Tensor]) -> np.ndarray:
        """Read something off every row, a bounded number of rows at a time."""
        X, likelihood = self._checked_rows(X)
        scaling = Scaling(self.location_, self.scale_)
        model = self._rebuild()
        collected = None
        for start in range(0, X.shape[0], CHUNK):
            chunk = X[start : start + CHUNK]
            rows = scaling.rows(chunk, likelihood, self.device)
            self._check_reach(chunk, rows, range(start, X.shape[0]))
            with torch.no_grad():
                part = read(model, rows).cpu().numpy()
            if collected is None:
                collected = np.empty((X.shape[0], *part.shape[1:]), part.dtype)
            collected[start : start + CHUNK] = part
        return collected

    def transform(self, X):
        """Posterior mean of the latents of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, latent_dim)
            Posterior means.
        """
        return self._collect(X, lambda model, rows: model.infer(rows).mean)

    def score_samples(self, X):
        """Log-likelihood of each row, bounded from below by importance weighting.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats and in the units of X, from ``n_importance`` draws per row. It tightens as
            their number grows, and equal rows give equal values.

        References
        ----------
        Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
        """
        check_is_fitted(self)
        # The same points for every row: equal rows get equal values.
        noise = normal_points(self.n_importance, np.empty(self.latent_dim_, self.location_.dtype))
        n_at_once = max(1, 65_536 // self.n_importance)

        def read(model: StructuredVAE, rows: Rows) -> Tensor:
            points = noise.to(rows.encoded.device)
            return torch.cat(
                [importance_bound(model, part, points) for part in rows.parts(n_at_once)]
            )

        bounds = self._collect(X, read)
        scaling = Scaling(self.location_, self.scale_)
        # It is the same for all complete rows.
        jacobian = scaling.log_jacobian(self.location_[None], self._fitted_likelihood())[0]
        return bounds + self.location_.dtype.type(jacobian)

    def score(self, X, y=None):
        """Mean of `score_samples` over rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        score : float
            Log-likelihood per row, in nats.
        """
        return float(np.mean(self.score_samples(X)))

    def _sample(self, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and the components they came from."""
        check_is_fitted(self)
        self._check_count(n_samples, "n_samples")
        model, generator = self._rebuild(), self._generator()
        with torch.no_grad():
            z, labels = model.graphical.sample(int(n_samples), generator)
            x = model.likelihood.sample(model.decode(z), model.noise_params, generator)
        restored = Scaling(self.location_, self.scale_).restore(x.cpu().numpy(), model.likelihood)
        return restored, labels.cpu().numpy()
