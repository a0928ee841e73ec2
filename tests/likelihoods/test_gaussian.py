# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian likelihoods: what the contract does not cover."""

import math

import pytest
import torch

from sksvae.likelihoods import GaussianLikelihood, GaussianNetworkLikelihood


@pytest.fixture
def residuals():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64)
    residuals = scale * torch.randn(400, 3, generator=generator, dtype=torch.float64)
    residuals[:100, 0] = torch.nan
    return residuals


def test_noise_starts_at_the_variance_of_the_residuals(residuals):
    likelihood = GaussianLikelihood(min_variance=1e-3)
    params = likelihood.init_params(residuals, 3, torch.float64)
    variance = likelihood.variance(torch.zeros(1, 1, 3, dtype=torch.float64), params)[0]
    expected = [residuals[100:, 0].var(correction=0), residuals[:, 1].var(correction=0)]
    torch.testing.assert_close(variance[:2], torch.stack(expected))
    # A constant column starts at twice the floor: at the floor itself the gradient would vanish.
    assert variance[2].item() == pytest.approx(2e-3)


def test_both_kinds_start_with_the_same_noise(residuals):
    params = GaussianLikelihood().init_params(residuals, 3, torch.float64)
    bias = GaussianNetworkLikelihood().init_outputs(3, residuals, torch.float64)
    torch.testing.assert_close(bias[0], params["log_variance"])


def test_the_two_kinds_agree_for_equal_variances():
    x = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    mean, log_variance = torch.tensor([[0.1, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    shared = GaussianLikelihood().log_prob(x, mean[None, None], {"log_variance": log_variance})
    both = torch.stack([mean, log_variance])[None]
    torch.testing.assert_close(GaussianNetworkLikelihood().log_prob(x, both, {}), shared)


def test_the_floor_bounds_the_density():
    log_variance = torch.full((1,), -1e6)
    log_prob = GaussianLikelihood(min_variance=0.01).log_prob(
        torch.zeros(1, 1), torch.zeros(1, 1, 1), {"log_variance": log_variance}
    )
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi * 0.01))


def test_a_fixed_variance_leaves_nothing_to_learn_and_has_no_floor():
    likelihood = GaussianLikelihood(noise_variance=1e-8)
    assert likelihood.init_params(None, 3, torch.float64) == {}
    outputs = torch.zeros(2, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(
        likelihood.variance(outputs, {}), torch.full((2, 3), 1e-8, dtype=torch.float64)
    )
