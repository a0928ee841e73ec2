# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import EXPONENTIAL_FAMILIES, Gaussian, GaussianNatural, GaussianParams

from .cases import generator, random_standard, standard_parameters

FAMILY = EXPONENTIAL_FAMILIES["gaussian"]


def gaussian(mean, covariance):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    return FAMILY.to_natural(GaussianParams(mean, torch.as_tensor(covariance, dtype=mean.dtype)))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_density_agrees_with_scipy(data):
    standard = data.draw(standard_parameters(FAMILY))
    natural = FAMILY.to_natural(standard)
    points = FAMILY.sample(standard, (3,), generator())
    actual = FAMILY.log_prob(natural, points)
    for index in np.ndindex(standard.mean.shape[:-1]):
        oracle = scipy.stats.multivariate_normal(
            standard.mean[index].numpy(), standard.covariance[index].numpy()
        )
        np.testing.assert_allclose(
            actual[(slice(None), *index)],
            oracle.logpdf(points[(slice(None), *index)].numpy()),
            rtol=1e-8,
            atol=1e-8,
        )
        np.testing.assert_allclose(FAMILY.entropy(natural)[index], oracle.entropy(), atol=1e-8)


def test_log_density_is_the_information_form():
    standard = random_standard("gaussian")
    natural = FAMILY.to_natural(standard)
    z = FAMILY.sample(standard, (), generator())
    exponent = natural.precision_mean @ z - 0.5 * z @ natural.precision @ z
    torch.testing.assert_close(
        FAMILY.log_prob(natural, z), exponent - FAMILY.log_normalizer(natural)
    )


def test_adding_natural_parameters_is_conditioning():
    """The prior plus a potential is the posterior, and the normalisers give the evidence."""
    prior = random_standard("gaussian")
    mean, covariance = prior
    noise = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    x = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    potential = GaussianNatural(x / noise, torch.diag(1 / noise))
    natural = FAMILY.to_natural(prior)
    total = GaussianNatural(*(a + b for a, b in zip(natural, potential, strict=True)))
    posterior = FAMILY.from_natural(total)
    gain = covariance @ (covariance + torch.diag(noise)).inverse()
    torch.testing.assert_close(posterior.mean, mean + gain @ (x - mean))
    torch.testing.assert_close(posterior.covariance, covariance - gain @ covariance)
    evidence = scipy.stats.multivariate_normal(
        mean.numpy(), (covariance + torch.diag(noise)).numpy()
    ).logpdf(x.numpy())
    difference = (
        FAMILY.log_normalizer(total)
        - FAMILY.log_normalizer(natural)
        - FAMILY.log_normalizer(potential)
    )
    np.testing.assert_allclose(difference, evidence, rtol=1e-10)


def test_kl_does_not_cancel_far_from_the_origin():
    """Means of 1e6, unit variances, one unit apart: the Bregman form loses four digits."""
    q = gaussian([1e6, -1e6], np.eye(2))
    p = gaussian([1e6 + 1.0, -1e6], np.eye(2))
    assert FAMILY.kl(q, p).item() == pytest.approx(0.5, rel=1e-9)


def test_kl_in_one_dimension_agrees_with_the_textbook():
    q, p = gaussian([1.0], [[4.0]]), gaussian([3.0], [[9.0]])
    expected = np.log(3.0 / 2.0) + (4.0 + 4.0) / 18.0 - 0.5
    assert FAMILY.kl(q, p).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", ["to_natural", "to_unconstrained"])
def test_an_indefinite_covariance_is_an_error(method):
    covariance = torch.eye(2).expand(3, 2, 2).clone()
    covariance[1, 0, 0] = -1.0
    with pytest.raises(torch.linalg.LinAlgError, match=r"covariance.*\(1,\)"):
        getattr(FAMILY, method)(GaussianParams(torch.zeros(3, 2), covariance))


@pytest.mark.parametrize("method", ["from_natural", "log_normalizer", "expected_stats"])
def test_an_indefinite_precision_is_an_error(method):
    with pytest.raises(torch.linalg.LinAlgError, match=r"precision.*\(\)"):
        getattr(Gaussian(), method)(GaussianNatural(torch.zeros(2), -torch.eye(2)))


def test_draws_follow_their_distribution():
    """Whitened draws are standard normal in every coordinate."""
    standard = random_standard("gaussian")
    draws = FAMILY.sample(standard, (5_000,), generator())
    factor = torch.linalg.cholesky(standard.covariance)
    white = torch.linalg.solve_triangular(factor, (draws - standard.mean).T, upper=False)
    for row in white:
        assert scipy.stats.kstest(row.numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(white.numpy())[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 5.0 / np.sqrt(5_000)
