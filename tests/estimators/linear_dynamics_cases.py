# SPDX-License-Identifier: BSD-3-Clause
"""Sequences in all their forms, and linear dynamics that fit in a blink."""

import functools
import warnings

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics

READERS = ["transform", "predict", "score_samples", "impute"]
NAMES = ["north", "east", "up"]


def quick(latent_dim=2, **params):
    """Return an estimator that hardly trains, with given priors: others would compete first."""
    quickly = {
        "hidden_layer_sizes": (5,),
        "max_iter": 2,
        "random_state": 0,
        "transition_precision_prior": 1.0,
        "noise_covariance_prior": None if latent_dim is None else 0.1 * np.eye(latent_dim),
    }
    return SVAELinearDynamics(latent_dim, **(quickly | params))


def rotation(n_sequences=4, n_steps=20, n_features=3, noise=0.2, seed=0):
    """Return noisy features of points that go round a circle, in a 3-D array."""
    rng = np.random.default_rng(seed)
    phase = 0.5 * np.arange(n_steps) + rng.uniform(0, 6, size=(n_sequences, 1))
    plane = np.stack([np.cos(phase), np.sin(phase)], -1)
    loading = np.array([[1.0, 0.3, -0.5], [0.2, -1.0, 0.6]])[:, :n_features]
    return 2.0 + plane @ loading + noise * rng.normal(size=(n_sequences, n_steps, n_features))


def ragged(lengths=(12, 1, 7, 20), seed=0, **params):
    """Return a list of sequences of different lengths."""
    whole = rotation(len(lengths), max(lengths), seed=seed, **params)
    return [sequence[:length] for sequence, length in zip(whole, lengths, strict=True)]


def with_gaps(sequences, share=0.2, seed=0):
    """Return copies with values missing here and there, and a step in the middle of each."""
    rng = np.random.default_rng(seed)
    gappy = []
    for sequence in sequences:
        sequence = np.where(rng.random(sequence.shape) < share, np.nan, sequence)
        sequence[len(sequence) // 2] = np.nan
        gappy.append(sequence)
    return gappy if isinstance(sequences, list) else np.stack(gappy)


def in_turn(sequences):
    """Return the rows of sequences in turn: a table, its groups, and how to sort its rows back."""
    ids = np.concatenate([np.full(len(s), 10 - i) for i, s in enumerate(sequences)])
    steps = np.concatenate([np.arange(len(s)) for s in sequences])
    order = np.argsort(steps, kind="stable")
    return np.concatenate(sequences)[order], ids[order], np.argsort(order)


def framed(sequences):
    """Return sequences in a DataFrame whose MultiIndex tells them apart."""
    keys = [(f"run {i}", t) for i, s in enumerate(sequences) for t in range(len(s))]
    index = pd.MultiIndex.from_tuples(keys, names=["run", "step"])
    return pd.DataFrame(np.concatenate(sequences), columns=NAMES, index=index)


@functools.cache
def fitted(**params):
    """Return an estimator that was fitted to `rotation`, for tests that only read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return quick(**params).fit(rotation())


def read_all(estimator, X, **groups):
    """Return everything that a fitted estimator says about sequences, row by row."""
    return {name: getattr(estimator, name)(X, **groups) for name in READERS}


def assert_usable(estimator, X, **groups):
    """Check that everything that a fitted estimator says is finite."""
    for name, value in read_all(estimator, X, **groups).items():
        rows = value if isinstance(value, list) else [value]
        assert all(np.isfinite(part).all() for part in rows), name
    for part in estimator.forecast(X, 5, **groups):
        assert np.isfinite(part).all()
    assert np.isfinite(estimator.forecast(X, 5, 2, **groups)).all()
    assert all(np.isfinite(part).all() for part in estimator.sample(5, 2))
    assert np.isfinite(estimator.lower_bound_)


class DenseGaussian:
    """Joint distribution of the rows of one sequence, for estimators without hidden layers.

    In the units of X and with point parameters of the dynamics, everything written out.
    """

    def __init__(self, estimator, n_steps):
        A, b, Q = (
            getattr(estimator, f"{n}_") for n in ("transition_matrix", "offset", "noise_covariance")
        )
        means, covariances = [estimator.initial_mean_], [estimator.initial_covariance_]
        for _ in range(n_steps - 1):
            means.append(A @ means[-1] + b)
            covariances.append(A @ covariances[-1] @ A.T + Q)
        lags = [np.linalg.matrix_power(A, k) for k in range(n_steps)]
        latent = np.block(
            [
                [
                    lags[t - s] @ covariances[s] if t >= s else covariances[t] @ lags[s - t].T
                    for s in range(n_steps)
                ]
                for t in range(n_steps)
            ]
        )
        state = estimator.model_state_
        scale = estimator.scale_
        loading = state["networks.decoder.skip"].T * scale[:, None]
        center = state["networks.decoder.bias"][0] * scale + estimator.location_
        minimum = estimator._fitted_likelihood().min_variance
        noise = (minimum + np.exp(state["networks.likelihood_params.log_variance"])) * scale**2
        spread = np.kron(np.eye(n_steps), loading)
        self.n_features = len(scale)
        self.latent_mean = np.concatenate(means)
        self.latent_covariance, self.spread = latent, spread
        self.mean = spread @ self.latent_mean + np.tile(center, n_steps)
        self.covariance = spread @ latent @ spread.T + np.diag(np.tile(noise, n_steps))

    def log_likelihood(self, x):
        """Log density of what is observed of a sequence of shape (n_steps, n_features)."""
        x = np.asarray(x).ravel()
        seen = np.flatnonzero(~np.isnan(x))
        if not seen.size:
            return 0.0
        block = self.covariance[np.ix_(seen, seen)]
        return stats.multivariate_normal(self.mean[seen], block).logpdf(x[seen])

    def given(self, x):
        """Moments of all rows, and of the latents, given what is observed of some of them."""
        x = np.asarray(x).ravel()
        seen = np.flatnonzero(~np.isnan(x))
        across = self.covariance[:, seen], self.latent_covariance @ self.spread.T[:, seen]
        inverse = np.linalg.inv(self.covariance[np.ix_(seen, seen)])
        mean, latent = (
            m + c @ inverse @ (x[seen] - self.mean[seen])
            for m, c in zip((self.mean, self.latent_mean), across, strict=True)
        )
        variance = np.diagonal(self.covariance - across[0] @ inverse @ across[0].T)
        n = self.n_features
        return mean.reshape(-1, n), variance.reshape(-1, n), latent
