# SPDX-License-Identifier: BSD-3-Clause
"""What is special about `VAE`."""

import numpy as np
import pytest
from sklearn.decomposition import FactorAnalysis

from sksvae import VAE, SVAEGaussianMixture

from .cases import blobs, quick

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, _ = blobs()


def vae(**params):
    return quick(VAE, **params)


def test_there_are_no_components():
    estimator = vae().fit(X)
    for name in ("predict", "predict_proba", "fit_predict", "weights_", "means_"):
        assert not hasattr(estimator, name)
    draws, labels = estimator.sample(7)
    assert draws.shape == (7, 3)
    np.testing.assert_array_equal(labels, 0)


def test_the_prior_has_nothing_to_learn():
    estimator = vae().fit(X)
    np.testing.assert_array_equal(estimator.history_["global_kl"], 0)


@pytest.mark.parametrize("standardize", [True, False])
def test_latents_start_at_unit_variance(standardize):
    estimator = vae(learning_rate_init=1e-12, max_iter=1, standardize=standardize, latent_dim=2)
    latents = estimator.fit(X).transform(X)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-2)
    assert (latents.std(0) < 1.001).all()
    assert (latents.std(0) > 0.4).all()  # what shrinkage leaves of the weaker one


def test_latents_that_are_not_needed_start_at_the_prior():
    """At first, a wider model is as good as one of the width of the data."""
    bounds = {
        latent_dim: vae(latent_dim=latent_dim, learning_rate_init=1e-12, max_iter=1, n_draws=20)
        .fit(X)
        .lower_bound_
        for latent_dim in (3, 9)
    }
    assert bounds[9] > bounds[3] - 0.5


def test_linear_model_is_factor_analysis():
    """It has a noise variance per feature, too."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(200, 6))
    estimator = vae(
        hidden_layer_sizes=(),
        latent_dim=2,
        learning_rate_init=0.01,
        max_iter=150,
        n_iter_no_change=150,
        n_importance=256,
    ).fit(rows)
    assert estimator.score(rows) == pytest.approx(FactorAnalysis(2).fit(rows).score(rows), abs=0.1)


def test_one_component_of_a_mixture_is_about_as_good():
    single = quick(SVAEGaussianMixture, hidden_layer_sizes=(), max_iter=60).fit(X)
    plain = vae(hidden_layer_sizes=(), max_iter=60).fit(X)
    assert plain.score(X) == pytest.approx(single.score(X), abs=0.5)


def test_plain_vae_scores_below_the_mixture_on_separated_groups():
    rows, _ = blobs(n_blobs=3, distance=20.0)
    params = {"latent_dim": 3, "max_iter": 60, "n_components": 3, "hidden_layer_sizes": ()}
    assert quick(SVAEGaussianMixture, **params).fit(rows).score(rows) > (
        quick(VAE, **params).fit(rows).score(rows) + 0.5
    )
