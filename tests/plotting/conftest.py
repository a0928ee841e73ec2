# SPDX-License-Identifier: BSD-3-Clause
"""Figures are closed after each test; estimators are fitted once."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.datasets import make_switching_oscillator

TINY = {"latent_dim": 2, "hidden_layer_sizes": (), "max_iter": 1, "random_state": 0}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def recordings():
    """Two recordings of 20 steps and four features, and their states."""
    X, states = make_switching_oscillator(
        2, n_timesteps=20, n_features=4, n_states=2, mean_segment_length=5, random_state=0
    )
    return X, states


@pytest.fixture(scope="session")
def fitted(recordings):
    """Every estimator, hardly trained."""
    X, _ = recordings
    rows = X.reshape(-1, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            "vae": VAE(**TINY).fit(rows),
            "mixture": SVAEGaussianMixture(3, **TINY).fit(rows),
            "linear": SVAELinearDynamics(**TINY).fit(X),
            "switching": SVAESwitchingLDS(2, n_starts=1, **TINY).fit(X),
        }


@pytest.fixture
def rng():
    return np.random.default_rng(0)
