# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics that are known, sequences from them, and fits to these in about a second."""

import functools
import itertools
import warnings

import numpy as np
import torch
from scipy import linalg, stats
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAESwitchingLDS
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequence_start import state_space_model
from sksvae.expfam import DirichletParams, MNIWParams, NIWParams
from sksvae.graphical import DynamicsPrior, SwitchingDynamicsModel, SwitchingPrior
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods import get_likelihood
from sksvae.state_space import StateSpace

# One entry per row, whose form is that of X.
READERS = ["transform", "predict_proba", "predict", "decode", "score_samples", "impute"]
SCALE, LOCATION = np.array([2.0, 0.5, 1.0]), np.array([1.0, -5.0, 0.0])


def quick(n_states=2, **params):
    """Return an estimator that hardly trains, with given priors: others would compete first."""
    quickly = {
        "latent_dim": 2,
        "hidden_layer_sizes": (),
        "max_iter": 2,
        "n_starts": 1,
        "random_state": 0,
        "transition_precision_prior": 1.0,
        "noise_covariance_prior": 0.1,
    }
    return SVAESwitchingLDS(n_states, **(quickly | params))


def turn(angle, radius=0.98):
    """Return a rotation of the plane that shrinks it a little."""
    return radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# A slow turn to the left and a fast one to the right.
TURNS = {
    "A": np.stack([turn(0.3), turn(-1.0)]),
    "b": np.array([[0.05, 0.0], [0.0, 0.1]]),
    "Q": np.stack([0.01 * np.eye(2), np.array([[0.03, 0.01], [0.01, 0.02]])]),
    "initial_states": np.array([0.6, 0.4]),
    "transitions": np.array([[0.96, 0.04], [0.06, 0.94]]),
}


def known(noise=0.01, certainty=1e8, **dynamics):
    """Return an estimator of which everything is known, with an exact encoder.

    Parameters
    ----------
    noise : float
        Variance of the observations, in units of the scale of the features.
    certainty : float
        Pseudo-counts behind the dynamics.
    **dynamics : ndarray
        As in `TURNS`.
    """
    A, b, Q, initial, table = (
        np.asarray(value, dtype=float) for value in (TURNS | dynamics).values()
    )
    n_states, dim = b.shape
    # The columns of the loading are orthogonal, so that the evidence of a row is diagonal.
    loading = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.0]])[:, :dim]
    start = StateSpace(
        loading,
        np.array([0.1, 0.0, -0.2]),
        np.full(3, noise),
        A[0],
        b[0],
        Q[0],
        np.full(dim, 0.5),
        0.5 * np.eye(dim),
    )
    linear = DynamicsPrior.isotropic(dim)
    model = state_space_model(
        start,
        Scaling(LOCATION, SCALE),
        get_likelihood("gaussian"),
        linear,
        100,
        (),
        "relu",
        FixedPointSettings(),
        torch.Generator(),
    )
    # Weights decrease with the number of the state.
    dof = torch.as_tensor(certainty * np.linspace(2.0, 1.0, n_states))
    one = torch.tensor(certainty, dtype=torch.float64)
    posterior = SwitchingPrior(
        NIWParams(
            one * torch.as_tensor(start.initial_covariance),
            torch.as_tensor(start.initial_mean),
            one,
            one,
        ),
        MNIWParams(
            dof[:, None, None] * torch.as_tensor(Q),
            torch.cat([torch.as_tensor(A), torch.as_tensor(b)[..., None]], -1),
            certainty * torch.eye(dim + 1, dtype=torch.float64).expand(n_states, -1, -1),
            dof,
        ),
        DirichletParams(one * torch.as_tensor(initial)),
        DirichletParams(one * torch.as_tensor(table)),
    )
    prior = SwitchingPrior.sticky(n_states, linear)
    model.graphical = SwitchingDynamicsModel(prior, posterior)
    estimator = quick(n_states, latent_dim=dim)
    scaffold = np.random.default_rng(0).normal(size=(3, 3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.set_params(max_iter=1).fit(scaffold)
    estimator.location_, estimator.scale_ = LOCATION, SCALE
    return estimator._with_graphical(model)


@functools.cache
def turning():
    """Return an estimator that knows `TURNS`, sequences drawn from it, and their states."""
    estimator = known()
    return estimator, *estimator.sample(30, 4)


@functools.cache
def fitted(n_states=3, **params):
    """Return an estimator that was fitted to `turning`, for tests that only read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return quick(n_states, **params).fit(turning()[1])


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
    assert 1 <= estimator.n_states_ <= estimator.n_states


class Enumerated:
    """What is known of one short sequence: a mixture of Gaussians, one for each path of states.

    For estimators without hidden layers and with point parameters of the dynamics, in the units of
    X; everything written out.

    Parameters
    ----------
    estimator : SVAESwitchingLDS
        The estimator.
    x : ndarray of shape (n_steps, n_features)
        The sequence, NaN where a value is missing.
    """

    def __init__(self, estimator, x):
        state, scale = estimator.model_state_, estimator.scale_
        self.estimator, (n_steps, self.n_features) = estimator, x.shape
        loading = state["networks.decoder.skip"].T * scale[:, None]
        center = state["networks.decoder.bias"][0] * scale + estimator.location_
        minimum = estimator._fitted_likelihood().min_variance
        noise = (minimum + np.exp(state["networks.likelihood_params.log_variance"])) * scale**2
        self.spread = np.kron(np.eye(n_steps), loading)
        self.center, self.noise = np.tile(center, n_steps), np.diag(np.tile(noise, n_steps))
        paths = itertools.product(range(estimator.n_states_), repeat=n_steps)
        self.paths = np.array(list(paths))
        parts = [self._path(path, x.ravel()) for path in self.paths]
        log_weights, self.means, self.variances = (
            np.array(part) for part in zip(*parts, strict=True)
        )
        self.log_evidence = logsumexp(log_weights)
        self.weights = np.exp(log_weights - self.log_evidence)

    def _path(self, path, x):
        """Log probability of a path and what is observed, and moments of all rows given both."""
        fitted, dim = self.estimator, self.estimator.latent_dim_
        table = fitted.state_transition_probabilities_
        log_p = np.log(fitted.initial_state_probabilities_[path[0]])
        log_p += np.log(table[path[:-1], path[1:]]).sum()
        moves = path[1:]
        # z_t - A z_{t-1} of all steps are independent.
        differences = np.eye(dim * len(path))
        for t, k in enumerate(moves, start=1):
            step = slice(t * dim, (t + 1) * dim)
            differences[step, (t - 1) * dim : t * dim] = -fitted.transition_matrix_[k]
        drift = np.concatenate([fitted.initial_mean_, fitted.offset_[moves].ravel()])
        noise = linalg.block_diag(
            fitted.initial_covariance_, *(fitted.noise_covariance_[k] for k in moves)
        )
        to_rows = self.spread @ np.linalg.inv(differences)
        mean = to_rows @ drift + self.center
        covariance = to_rows @ noise @ to_rows.T + self.noise
        seen = np.flatnonzero(~np.isnan(x))
        if not seen.size:
            return log_p, mean, np.diagonal(covariance)
        block = covariance[np.ix_(seen, seen)]
        gain = np.linalg.solve(block, covariance[seen]).T
        log_p += stats.multivariate_normal(mean[seen], block).logpdf(x[seen])
        variance = np.diagonal(covariance - gain @ covariance[seen])
        return log_p, mean + gain @ (x[seen] - mean[seen]), variance

    @property
    def states(self):
        """Probabilities of the states of each step."""
        chosen = np.eye(self.estimator.n_states_)[self.paths]
        return np.einsum("p,ptk->tk", self.weights, chosen)

    @property
    def moments(self):
        """Mean and variance of each entry of X, the missing ones among them."""
        mean = self.weights @ self.means
        variance = self.weights @ (self.variances + np.square(self.means - mean))
        return mean.reshape(-1, self.n_features), variance.reshape(-1, self.n_features)
