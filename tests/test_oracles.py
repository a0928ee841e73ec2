# SPDX-License-Identifier: BSD-3-Clause
"""Estimators in the limit where they are classical models, against those."""

import numpy as np
import pytest
from scipy import special
from sklearn.mixture import BayesianGaussianMixture

from sksvae import SVAEGaussianMixture
from sksvae.likelihoods import GaussianLikelihood

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NOISE = 1e-5


def three_clusters(n_rows=600, seed=0):
    rng = np.random.RandomState(seed)
    centres = np.array([[0.0, 0.0, 0.0], [4.0, 1.0, 0.0], [-1.0, 4.0, 2.0]])
    roots = 0.4 * rng.standard_normal((3, 3, 3)) + 0.5 * np.eye(3)
    labels = rng.choice(3, n_rows, p=[0.5, 0.3, 0.2])
    noise = rng.standard_normal((n_rows, 3, 1))
    return centres[labels] + (roots[labels] @ noise)[..., 0]


def linear_limit(n_components, X):
    """Networks that are linear and stay where they start, almost without noise."""
    prior = {
        "weight_concentration_prior": 1.0 / n_components,
        "mean_precision_prior": 1.0,
        "mean_prior": np.zeros(3),
        "degrees_of_freedom_prior": 3.0,
        "covariance_prior": np.eye(3),
    }
    ours = SVAEGaussianMixture(
        n_components,
        latent_dim=3,
        hidden_layer_sizes=(),
        likelihood=GaussianLikelihood(NOISE),
        learning_rate_init=1e-12,
        standardize=False,
        prune=False,
        max_iter=150,
        tol=0.0,
        random_state=0,
        **prior,
    ).fit(X)
    theirs = BayesianGaussianMixture(
        n_components=n_components,
        weight_concentration_prior_type="dirichlet_distribution",
        n_init=5,
        max_iter=2000,
        tol=1e-8,
        reg_covar=0.0,
        random_state=0,
        **prior,
    ).fit(ours.transform(X))
    return ours, theirs


def test_linear_limit_is_the_bayesian_gaussian_mixture():
    X = three_clusters()
    ours, theirs = linear_limit(3, X)
    order = np.argsort(-theirs.weights_)
    scale = ours.transform(X).std(0)
    np.testing.assert_allclose(ours.weights_, theirs.weights_[order], rtol=0.01)
    assert (np.abs(ours.means_ - theirs.means_[order]) < 0.02 * scale).all()
    for mine, other in zip(ours.covariances_, theirs.covariances_[order], strict=True):
        assert np.linalg.norm(mine - other) < 0.02 * np.linalg.norm(other)
    agreement = ours.predict(X) == np.argsort(order)[theirs.predict(ours.transform(X))]
    assert agreement.mean() > 0.99


def evidence_bound(mixture, dim=3):
    """The bound of `BayesianGaussianMixture`, with the terms of the prior that it leaves out."""
    dof, concentration = mixture.degrees_of_freedom_prior_, mixture.weight_concentration_prior_
    n_components = mixture.n_components
    # Powers of pi, the same in prior and posterior, are left out on both sides.
    log_gamma = special.gammaln(0.5 * (dof - np.arange(dim))).sum()
    log_wishart = 0.5 * dof * dim * np.log(2.0) + log_gamma
    log_dirichlet = n_components * special.gammaln(concentration) - special.gammaln(
        n_components * concentration
    )
    return mixture.lower_bound_ - n_components * log_wishart - log_dirichlet


def test_linear_limit_ranks_numbers_of_components_alike():
    """Bounds differ by the encoder's view of the noise, which all numbers of components share."""
    X = three_clusters()
    fits = [linear_limit(n_components, X) for n_components in (1, 2, 3, 4)]
    ours = len(X) * np.array([mine.lower_bound_ for mine, _ in fits])
    theirs = np.array([evidence_bound(other) for _, other in fits])
    assert np.argsort(ours).tolist() == np.argsort(theirs).tolist()
    assert np.argmax(ours) == 2
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), atol=0.5)
