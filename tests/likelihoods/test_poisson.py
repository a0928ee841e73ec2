# SPDX-License-Identifier: BSD-3-Clause
"""Poisson likelihood: what the contract does not cover."""

import numpy as np
import torch

from sksvae.likelihoods import PoissonLikelihood


def test_working_features_are_near_the_log_rate():
    rate = np.array([[20.0, 400.0]])
    X = np.random.default_rng(0).poisson(rate, size=(20_000, 2))
    working = PoissonLikelihood().working_features(X)
    # E[log(x + 1/2)] = log(rate) + O(1 / rate**2)
    np.testing.assert_allclose(working.mean(0), np.log(rate[0]), atol=5e-3)


def test_the_gradient_is_count_minus_rate_even_for_large_counts_in_float32():
    x = torch.tensor([[0.0, 3.0, 1e5]])
    outputs = torch.log(torch.tensor([[[0.5, 2.0, 9e4]]])).requires_grad_()
    PoissonLikelihood().log_prob(x, outputs, {}).sum().backward()
    torch.testing.assert_close(outputs.grad[0], torch.tensor([[-0.5, 1.0, 1e4]]), rtol=1e-4, atol=0)


def test_log_rates_are_not_altered_up_to_35():
    outputs = torch.tensor([[[-35.0, 35.0]]], dtype=torch.float64)
    assert torch.equal(PoissonLikelihood().mean(outputs, {}), outputs[:, 0].exp())
