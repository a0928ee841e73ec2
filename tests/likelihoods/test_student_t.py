# SPDX-License-Identifier: BSD-3-Clause
"""Student-t likelihood: what the contract does not cover."""

import pytest
import torch

from sksvae.likelihoods import GaussianLikelihood, StudentTLikelihood


@pytest.mark.parametrize("dof", [2, 1.0])
def test_dof_without_a_variance_are_refused(dof):
    with pytest.raises(ValueError, match=r"dof of StudentTLikelihood .* greater than 2"):
        StudentTLikelihood(dof)


def test_many_degrees_of_freedom_approach_the_gaussian():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    outputs = torch.zeros(7, 1, 1, dtype=torch.float64)
    params = {"log_scale": torch.full((1,), 0.3, dtype=torch.float64)}
    likelihood = StudentTLikelihood(dof=1e7)
    variance = likelihood.variance(outputs, params)[0, 0].item()
    torch.testing.assert_close(
        likelihood.log_prob(x, outputs, params),
        GaussianLikelihood(variance).log_prob(x, outputs, {}),
        rtol=0,
        atol=1e-6,
    )


def test_an_outlier_pulls_less_the_farther_it_is():
    outputs = torch.zeros(2, 1, 1, dtype=torch.float64, requires_grad=True)
    likelihood = StudentTLikelihood()
    params = likelihood.init_params(None, 1, torch.float64)
    x = torch.tensor([[3.0], [300.0]], dtype=torch.float64)
    likelihood.log_prob(x, outputs, params).sum().backward()
    near, far = outputs.grad.ravel().tolist()
    assert 0 < far < near / 10


def test_at_four_dof_the_scale_starts_at_the_variance_of_the_residuals():
    generator = torch.Generator().manual_seed(0)
    residuals = 0.3 * torch.randn(500, 2, generator=generator, dtype=torch.float64)
    likelihood = StudentTLikelihood()
    params = likelihood.init_params(residuals, 2, torch.float64)
    outputs = torch.zeros(1, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(
        likelihood.variance(outputs, params)[0], residuals.var(0, correction=0)
    )
