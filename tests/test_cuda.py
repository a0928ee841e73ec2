# SPDX-License-Identifier: BSD-3-Clause
"""Every estimator on a GPU, where there is one, against the same model on the CPU."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.inference import chain_moments, markov_moments

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

BRIEF = {"latent_dim": 2, "hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0}
ROWS = np.random.RandomState(0).normal(size=(60, 4))
SEQUENCES = np.random.RandomState(1).normal(size=(4, 30, 3)).cumsum(1)


def estimators():
    """Each with data that suit it."""
    return [
        pytest.param(VAE(**BRIEF), ROWS, id="VAE"),
        pytest.param(SVAEGaussianMixture(3, n_starts=2, **BRIEF), ROWS, id="mixture"),
        pytest.param(SVAELinearDynamics(**BRIEF), SEQUENCES, id="linear dynamics"),
        pytest.param(SVAESwitchingLDS(3, n_starts=1, **BRIEF), SEQUENCES, id="switching"),
    ]


@pytest.mark.parametrize(("estimator", "X"), estimators())
def test_a_model_of_the_gpu_says_the_same_on_the_cpu(estimator, X):
    fitted = estimator.set_params(device="cuda").fit(X)
    methods = ["transform", "predict", "score_samples", "predict_proba", "decode", "impute"]
    methods = [name for name in methods if hasattr(fitted, name)]
    on_gpu = {name: np.asarray(getattr(fitted, name)(X)) for name in methods}
    fitted.set_params(device="cpu")
    for name, found in on_gpu.items():
        assert_allclose(getattr(fitted, name)(X), found, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(("estimator", "X"), estimators())
def test_training_goes_on_where_it_began_and_draws_come_back(estimator, X):
    fitted = estimator.set_params(device="cuda").fit(X).partial_fit(X)
    drawn = fitted.sample(5)
    drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    assert np.isfinite(drawn).all()
    if hasattr(fitted, "forecast"):
        assert np.isfinite(fitted.forecast(X, n_steps=2)[0]).all()


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_chains_have_the_moments_and_gradients_of_the_cpu(method):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 140, 4, 4, generator=generator, dtype=torch.float64)
    diagonal = root @ root.mT + 8 * torch.eye(4, dtype=torch.float64)
    lower = torch.randn(3, 139, 4, 4, generator=generator, dtype=torch.float64)
    h = torch.randn(3, 140, 4, generator=generator, dtype=torch.float64)

    def results(device):
        leaves = [part.to(device).requires_grad_() for part in (h, diagonal, lower)]
        chain = chain_moments(*leaves, method=method)
        total = sum(part.square().sum() for part in chain)
        return [part.cpu() for part in (*chain, *torch.autograd.grad(total, leaves))]

    for there, here in zip(results("cuda"), results("cpu"), strict=True):
        torch.testing.assert_close(there, here)


def test_discrete_chains_have_the_marginals_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    energies = torch.randn(3, 50, 5, generator=generator, dtype=torch.float64)
    table = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    start = torch.zeros(5, dtype=torch.float64)
    here = markov_moments(start, table, energies)
    there = markov_moments(*(part.to("cuda") for part in (start, table, energies)))
    torch.testing.assert_close(there.marginals.cpu(), here.marginals)
    torch.testing.assert_close(there.log_normalizer.cpu(), here.log_normalizer)
