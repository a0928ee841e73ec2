# SPDX-License-Identifier: BSD-3-Clause
"""Bernoulli likelihood: what the contract does not cover."""

import math

import numpy as np
import pytest
import torch

from sksvae.likelihoods import BernoulliLikelihood


def test_working_features_are_plus_or_minus_log_3():
    working = BernoulliLikelihood().working_features(np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(working, [[-math.log(3), math.log(3)]])


def test_log_prob_keeps_precision_for_large_logits():
    outputs = torch.full((1, 1, 2), 50.0, dtype=torch.float64)
    log_prob = BernoulliLikelihood().log_prob(
        torch.tensor([[1.0, 0.0]], dtype=torch.float64), outputs, {}
    )
    assert log_prob[0].tolist() == pytest.approx([-math.exp(-50), -50], rel=1e-12, abs=0)


def test_variance_keeps_precision_for_large_logits():
    outputs = torch.full((1, 1, 1), 50.0, dtype=torch.float64)
    variance = BernoulliLikelihood().variance(outputs, {})
    assert variance.item() == pytest.approx(math.exp(-50), rel=1e-12, abs=0)
