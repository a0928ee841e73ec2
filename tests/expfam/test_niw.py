# SPDX-License-Identifier: BSD-3-Clause
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import EXPONENTIAL_FAMILIES, NIWNatural, NIWParams, NIWSample

from .cases import (
    assert_fields_close,
    concentrated_standard,
    generator,
    random_standard,
    standard_parameters,
    z_scores,
)

FAMILY = EXPONENTIAL_FAMILIES["niw"]


def observation(z):
    """What z ~ N(mu, Sigma) adds to the natural parameters."""
    half = torch.tensor(0.5, dtype=z.dtype)
    return NIWNatural(-0.5 * torch.outer(z, z), z, -half, half)


def add(*naturals):
    return NIWNatural(*(sum(fields) for fields in zip(*naturals, strict=True)))


def random_data(n_samples=6, dim=3):
    return torch.randn((n_samples, dim), generator=generator(5)).double()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_density_agrees_with_scipy(data):
    """Evaluated at a point that has nothing to do with the parameters, constants included."""
    standard, other = data.draw(standard_parameters(FAMILY, n=2))
    point = NIWSample(other.mean, other.scale)
    actual = FAMILY.log_prob(FAMILY.to_natural(standard), point)
    for index in np.ndindex(standard.dof.shape):
        scale, mean, kappa, dof = (field[index].numpy() for field in standard)
        mu, sigma = point.mean[index].numpy(), point.covariance[index].numpy()
        expected = scipy.stats.invwishart(float(dof), scale).logpdf(sigma)
        expected += scipy.stats.multivariate_normal(mean, sigma / kappa).logpdf(mu)
        np.testing.assert_allclose(actual[index], expected, rtol=1e-8, atol=1e-8)


def test_expected_stats_agree_with_draws_of_scipy():
    standard = concentrated_standard("niw")
    scale, mean, kappa, dof = (field.numpy() for field in standard)
    rng = np.random.default_rng(0)
    n_draws = 50_000
    sigma = scipy.stats.invwishart(float(dof), scale).rvs(n_draws, random_state=rng)
    noise = rng.standard_normal((n_draws, 3, 1))
    mu = mean + (np.linalg.cholesky(sigma / kappa) @ noise)[..., 0]
    precision = np.linalg.inv(sigma)
    drawn = (
        precision,
        np.einsum("sij,sj->si", precision, mu),
        np.einsum("si,sij,sj->s", mu, precision, mu),
        np.linalg.slogdet(precision)[1],
    )
    expected = FAMILY.expected_stats(FAMILY.to_natural(standard))
    for draws, field in zip(drawn, expected, strict=True):
        assert z_scores(torch.from_numpy(draws), field).abs().max() < 5.0


def test_expected_stats_agree_with_the_textbook():
    scale, mean, kappa, dof = random_standard("niw", (3,))
    stats = FAMILY.expected_stats(FAMILY.to_natural(NIWParams(scale, mean, kappa, dof)))
    precision = dof[:, None, None] * scale.inverse()
    torch.testing.assert_close(stats.precision, precision)
    torch.testing.assert_close(stats.precision_mean, torch.einsum("kij,kj->ki", precision, mean))
    quadratic = 3 / kappa + torch.einsum("ki,kij,kj->k", mean, precision, mean)
    torch.testing.assert_close(stats.quadratic, quadratic)
    digamma = sum(torch.digamma((dof - i) / 2) for i in range(3))
    torch.testing.assert_close(
        stats.log_det_precision, 3 * math.log(2.0) - scale.logdet() + digamma
    )


def test_an_observation_adds_its_log_density():
    z = random_data()[0]
    draw = FAMILY.sample(concentrated_standard("niw"), (), generator())
    oracle = scipy.stats.multivariate_normal(draw.mean.numpy(), draw.covariance.numpy())
    actual = FAMILY.inner(observation(z), FAMILY.stats_of(draw)) - 1.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(actual, oracle.logpdf(z.numpy()), rtol=1e-10)


def test_posterior_agrees_with_the_textbook():
    prior, data = random_standard("niw"), random_data()
    natural = add(FAMILY.to_natural(prior), *map(observation, data))
    n, average = len(data), data.mean(0)
    centred, shift = data - average, average - prior.mean
    kappa = prior.mean_precision + n
    expected = NIWParams(
        prior.scale
        + centred.T @ centred
        + prior.mean_precision * n / kappa * torch.outer(shift, shift),
        (prior.mean_precision * prior.mean + n * average) / kappa,
        kappa,
        prior.dof + n,
    )
    assert_fields_close(FAMILY.from_natural(natural), expected, 1e-10)


def test_normalizers_give_the_evidence():
    """The ratio of normalisers is a product of multivariate t predictive densities."""
    natural = FAMILY.to_natural(random_standard("niw"))
    log_evidence, current = 0.0, natural
    for z in random_data():
        scale, mean, kappa, dof = FAMILY.from_natural(current)
        df = dof - 2
        shape = scale * (1 + 1 / kappa) / df
        log_evidence += scipy.stats.multivariate_t(
            mean.numpy(), shape.numpy(), df=float(df)
        ).logpdf(z.numpy())
        current = add(current, observation(z))
    actual = FAMILY.log_normalizer(current) - FAMILY.log_normalizer(natural)
    actual -= 0.5 * random_data().numel() * math.log(2 * math.pi)
    assert actual.item() == pytest.approx(log_evidence, rel=1e-10)


def test_third_unconstrained_coordinate_is_half_the_log_of_kappa():
    standard = random_standard("niw", (3,))
    scale, mean, half_log_kappa, log_excess = FAMILY.to_unconstrained(standard)
    torch.testing.assert_close(half_log_kappa, 0.5 * standard.mean_precision.log())
    torch.testing.assert_close(log_excess, torch.log(standard.dof - 2))
    assert torch.equal(mean, standard.mean)
    factor = torch.linalg.cholesky(standard.scale)
    torch.testing.assert_close(scale.tril(-1), factor.tril(-1))


@pytest.mark.parametrize("dof", [2.0, 1.0])
def test_too_few_degrees_of_freedom_are_an_error(dof):
    standard = random_standard("niw")._replace(dof=torch.tensor(dof, dtype=torch.float64))
    with pytest.raises(ValueError, match="dof must exceed 2"):
        FAMILY.to_unconstrained(standard)


def test_a_negative_mean_precision_is_an_error():
    standard = random_standard("niw", (2,))
    kappa = standard.mean_precision * torch.tensor([1.0, -1.0])
    with pytest.raises(torch.linalg.LinAlgError, match=r"mean_precision.*\(1,\)"):
        FAMILY.to_unconstrained(standard._replace(mean_precision=kappa))
