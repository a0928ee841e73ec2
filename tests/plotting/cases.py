# SPDX-License-Identifier: BSD-3-Clause
"""Estimators of which everything is known, for displays read attributes and methods only."""

import numpy as np
from sklearn.base import BaseEstimator

TURN = 0.9 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])


class Known(BaseEstimator):
    """Fitted estimator, with the attributes that it was given."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def fit(self, X, y=None):
        return self


class KnownDynamics(Known):
    """States are the signs of the first feature, latents the features, and the decoder doubles."""

    rows_ = "consecutive"
    n_states_ = 2

    def _each(self, X, function):
        if isinstance(X, list | tuple):
            return [function(np.asarray(part)) for part in X]
        return function(np.asarray(X))

    def transform(self, X, groups=None):
        return self._each(X, lambda x: x[..., :2])

    def inverse_transform(self, Z):
        return self._each(Z, lambda z: 2.0 * z)

    def predict(self, X, groups=None):
        return self._each(X, lambda x: (x[..., 0] > 0).astype(int))

    def predict_proba(self, X, groups=None):
        return self._each(X, lambda x: np.stack([x[..., 0] <= 0, x[..., 0] > 0], -1) * 1.0)

    def forecast(self, X, n_steps, n_draws=None, groups=None):
        last = np.stack([part[-1] for part in X])[:, None]
        mean = np.repeat(last, n_steps, axis=1)
        if n_draws is None:
            return mean, np.full_like(mean, 0.5)
        return mean + np.arange(n_draws)[:, None, None, None]

    def impute(self, X, n_draws=None, groups=None):
        def fill(x):
            if n_draws is None:
                return np.where(np.isnan(x), 7.0, x)
            drawn = np.broadcast_to(np.arange(n_draws)[:, None, None], (n_draws, *x.shape))
            return np.where(np.isnan(x), drawn, x)

        return self._each(X, fill)


class KnownMixture(Known):
    """Two components on the first feature; the decoder adds one."""

    def transform(self, X):
        return np.asarray(X)[:, :2]

    def inverse_transform(self, Z):
        return np.asarray(Z) + 1.0

    def predict(self, X):
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X):
        first = np.asarray(X)[:, 0]
        return np.stack([first > 0, first <= 0], 1) * 1.0


def dynamics(**attributes):
    return KnownDynamics(
        transition_matrix_=np.stack([TURN, TURN.T]),
        offset_=np.array([[0.1, 0.0], [0.0, 0.2]]),
        state_transition_probabilities_=np.array([[0.75, 0.25], [0.1, 0.9]]),
        lower_bounds_=np.array([-3.0, -2.0, -1.5]),
        **attributes,
    )


def mixture(**attributes):
    return KnownMixture(
        means_=np.array([[1.0, 0.0], [-1.0, 0.5]]),
        covariances_=np.array([[[1.0, 0.0], [0.0, 0.25]], [[0.5, 0.2], [0.2, 0.4]]]),
        weights_=np.array([0.6, 0.4]),
        n_components_=2,
        **attributes,
    )
