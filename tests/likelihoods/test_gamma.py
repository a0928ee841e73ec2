# SPDX-License-Identifier: BSD-3-Clause
"""Gamma likelihood: what the contract does not cover."""

import numpy as np
import pytest
import torch

from sksvae.likelihoods import GammaLikelihood


@pytest.mark.parametrize("concentration", [0.4, 1.0, 3.5])
def test_working_features_have_the_log_mean_as_expectation(concentration):
    likelihood = GammaLikelihood(concentration, offset=1e-30)
    n_draws, log_mean = 20_000, -1.3
    outputs = torch.full((n_draws, 1, 1), log_mean, dtype=torch.float64)
    X = likelihood.sample(outputs, {}, torch.Generator().manual_seed(0)).numpy()
    working = likelihood.working_features(X)
    assert abs(working.mean() - log_mean) < 4.5 * working.std() / n_draws**0.5


def test_the_offset_is_the_floor_of_silence():
    silence = np.zeros((1, 1))
    quiet = GammaLikelihood(offset=1e-12).working_features(silence)
    assert quiet - GammaLikelihood(offset=1e-6).working_features(silence) == pytest.approx(
        np.log(1e-6)
    )


def test_concentration_one_is_the_itakura_saito_divergence_up_to_terms_in_x():
    x = torch.tensor([[0.2, 3.0, 5.0]], dtype=torch.float64)
    mean = torch.tensor([[1.5, 2.0, 0.1]], dtype=torch.float64)
    divergence = x / mean - torch.log(x / mean) - 1
    log_prob = GammaLikelihood().log_prob(x, mean.log()[:, None], {})
    torch.testing.assert_close(log_prob, -divergence - x.log() - 1)


def test_zero_has_a_density_only_for_the_exponential_distribution():
    zero = np.zeros((1, 1))
    GammaLikelihood().validate(zero)
    outputs = torch.tensor([[[0.7]]], dtype=torch.float64, requires_grad=True)
    log_prob = GammaLikelihood().log_prob(torch.tensor(zero), outputs, {})
    assert log_prob.item() == pytest.approx(-0.7)
    log_prob.sum().backward()
    assert outputs.grad.item() == pytest.approx(-1.0)
    for concentration in (0.5, 2.0):
        with pytest.raises(ValueError, match=r"accepted by .*'gamma'"):
            GammaLikelihood(concentration).validate(zero)


def test_draws_that_underflow_stay_positive():
    likelihood = GammaLikelihood(concentration=1e-3)
    X = likelihood.sample(torch.full((100, 1, 1), -30.0), {}, torch.Generator().manual_seed(0))
    likelihood.validate(X.numpy())
