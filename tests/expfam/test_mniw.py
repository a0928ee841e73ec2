# SPDX-License-Identifier: BSD-3-Clause
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import EXPONENTIAL_FAMILIES, MNIWNatural, MNIWParams, MNIWSample

from .cases import (
    assert_fields_close,
    concentrated_standard,
    generator,
    random_standard,
    standard_parameters,
    z_scores,
)

FAMILY = EXPONENTIAL_FAMILIES["mniw"]


def observation(x, y):
    """What x ~ N(X y, Sigma) adds to the natural parameters."""
    return MNIWNatural(
        -0.5 * torch.outer(x, x),
        torch.outer(x, y),
        -0.5 * torch.outer(y, y),
        torch.tensor(0.5, dtype=x.dtype),
    )


def add(*naturals):
    return MNIWNatural(*(sum(fields) for fields in zip(*naturals, strict=True)))


def random_data(n_rows=3, n_columns=2, n_samples=6):
    noise = torch.randn((n_samples, n_rows + n_columns), generator=generator(5)).double()
    return noise[:, :n_rows], noise[:, n_rows:]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_density_agrees_with_scipy(data):
    """Evaluated at a point that has nothing to do with the parameters, constants included."""
    standard, other = data.draw(standard_parameters(FAMILY, n=2))
    point = MNIWSample(other.mean, other.scale)
    actual = FAMILY.log_prob(FAMILY.to_natural(standard), point)
    for index in np.ndindex(standard.dof.shape):
        scale, mean, mean_precision, dof = (field[index].numpy() for field in standard)
        x, sigma = point.mean[index].numpy(), point.covariance[index].numpy()
        expected = scipy.stats.invwishart(float(dof), scale).logpdf(sigma)
        expected += scipy.stats.matrix_normal(mean, sigma, np.linalg.inv(mean_precision)).logpdf(x)
        np.testing.assert_allclose(actual[index], expected, rtol=1e-8, atol=1e-8)


def test_expected_stats_agree_with_draws_of_scipy():
    standard = concentrated_standard("mniw")
    scale, mean, mean_precision, dof = (field.numpy() for field in standard)
    rng = np.random.default_rng(0)
    n_draws = 50_000
    sigma = scipy.stats.invwishart(float(dof), scale).rvs(n_draws, random_state=rng)
    columns = np.linalg.cholesky(np.linalg.inv(mean_precision))
    x = mean + np.linalg.cholesky(sigma) @ rng.standard_normal((n_draws, 3, 2)) @ columns.T
    precision = np.linalg.inv(sigma)
    drawn = (
        precision,
        precision @ x,
        x.swapaxes(1, 2) @ precision @ x,
        np.linalg.slogdet(precision)[1],
    )
    expected = FAMILY.expected_stats(FAMILY.to_natural(standard))
    for draws, field in zip(drawn, expected, strict=True):
        assert z_scores(torch.from_numpy(draws), field).abs().max() < 5.0


def test_draws_have_the_marginals_of_scipy():
    """Diagonal of Sigma^-1 and of Sigma, and the normal score of X given Sigma."""
    standard = concentrated_standard("mniw")
    scale, mean, mean_precision, dof = standard
    draws = FAMILY.sample(standard, (5_000,), generator(1))
    precision = draws.covariance.inverse()
    for i in range(3):
        ratio = precision[:, i, i] / scale.inverse()[i, i]
        assert scipy.stats.kstest(ratio.numpy(), scipy.stats.chi2(float(dof)).cdf).pvalue > 1e-3
        ratio = scale[i, i] / draws.covariance[:, i, i]
        oracle = scipy.stats.chi2(float(dof) - 2)
        assert scipy.stats.kstest(ratio.numpy(), oracle.cdf).pvalue > 1e-3
    residual = draws.mean - mean
    distance = torch.einsum("sij,sik,skl,jl->s", residual, precision, residual, mean_precision)
    assert scipy.stats.kstest(distance.numpy(), scipy.stats.chi2(6).cdf).pvalue > 1e-3


def test_an_observation_adds_its_log_density():
    """<observation, t(X, Sigma)> is the Gaussian log density up to its constant."""
    x, y = (data[0] for data in random_data())
    draw = FAMILY.sample(concentrated_standard("mniw"), (), generator())
    expected = scipy.stats.multivariate_normal(
        (draw.mean @ y).numpy(), draw.covariance.numpy()
    ).logpdf(x.numpy())
    actual = FAMILY.inner(observation(x, y), FAMILY.stats_of(draw)) - 1.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_posterior_agrees_with_the_textbook_regression():
    prior = random_standard("mniw")
    xs, ys = random_data()
    natural = add(
        FAMILY.to_natural(prior), *(observation(x, y) for x, y in zip(xs, ys, strict=True))
    )
    mean_precision = prior.mean_precision + ys.T @ ys
    mean = (prior.mean @ prior.mean_precision + xs.T @ ys) @ mean_precision.inverse()
    residual, shift = xs - ys @ mean.T, mean - prior.mean
    scale = prior.scale + residual.T @ residual + shift @ prior.mean_precision @ shift.T
    expected = MNIWParams(scale, mean, mean_precision, prior.dof + len(xs))
    assert_fields_close(FAMILY.from_natural(natural), expected, 1e-10)


def test_normalizers_give_the_evidence():
    """The ratio of normalisers is a product of multivariate t predictive densities."""
    natural = FAMILY.to_natural(random_standard("mniw"))
    log_evidence, current = 0.0, natural
    xs, ys = random_data()
    for x, y in zip(xs, ys, strict=True):
        scale, mean, mean_precision, dof = FAMILY.from_natural(current)
        df = dof - 2
        shape = scale * (1 + y @ mean_precision.inverse() @ y) / df
        log_evidence += scipy.stats.multivariate_t(
            (mean @ y).numpy(), shape.numpy(), df=float(df)
        ).logpdf(x.numpy())
        current = add(current, observation(x, y))
    actual = FAMILY.log_normalizer(current) - FAMILY.log_normalizer(natural)
    actual -= 0.5 * xs.numel() * math.log(2 * math.pi)
    assert actual.item() == pytest.approx(log_evidence, rel=1e-10)


def test_conversions_return_exactly_symmetric_matrices():
    """Rounding of the products ``M V M'`` is not allowed to show."""
    standard = random_standard("mniw", (20,), sizes=(4, 3))
    natural = FAMILY.to_natural(standard)
    assert torch.equal(natural.precision, natural.precision.mT)
    scale = FAMILY.from_natural(natural).scale
    assert torch.equal(scale, scale.mT)


def test_kl_of_two_inverse_wisharts_and_matrix_normals_apart():
    """Equal Wishart parts leave the Gaussian part, and the other way round."""
    q = concentrated_standard("mniw")
    p = q._replace(mean=q.mean + 1.0, mean_precision=2.0 * q.mean_precision)
    shift = torch.ones(3, 2, dtype=torch.float64)
    # 1/2 [n (tr(V_p V_q^-1) - m - log|V_p V_q^-1|) + nu tr(V_p D' S^-1 D)], V_p = 2 V_q, m = 2
    quadratic = torch.trace(p.mean_precision @ shift.T @ q.scale.inverse() @ shift)
    expected = 0.5 * (3 * (4 - 2 - 2 * math.log(2.0)) + q.dof * quadratic)
    torch.testing.assert_close(FAMILY.kl(FAMILY.to_natural(q), FAMILY.to_natural(p)), expected)
    p = q._replace(scale=2.0 * q.scale)
    expected = 0.5 * q.dof * (6 - 3 - 3 * math.log(2.0))
    torch.testing.assert_close(FAMILY.kl(FAMILY.to_natural(q), FAMILY.to_natural(p)), expected)


def test_unconstrained_forms_keep_precision_where_natural_parameters_lose_it():
    """A tight component far from the origin, single precision: M V M' dwarfs S."""
    mean = torch.tensor([[123.4], [-76.7]], dtype=torch.float64)
    exact = MNIWParams(
        1e-2 * torch.eye(2, dtype=torch.float64),
        mean,
        torch.full((1, 1), 50.0, dtype=torch.float64),
        torch.tensor(60.0, dtype=torch.float64),
    )
    prior = MNIWParams(torch.eye(2), torch.zeros(2, 1), 1e-2 * torch.eye(1), torch.tensor(4.0))
    double_prior = MNIWParams(*(field.double() for field in prior))
    unconstrained = FAMILY.to_unconstrained(exact)
    single = tuple(field.float() for field in unconstrained)
    standard = FAMILY.from_unconstrained(single)
    recovered = FAMILY.from_natural(FAMILY.to_natural(standard))
    assert (recovered.scale - standard.scale).abs().max() > 0.5 * standard.scale.max()
    kl = FAMILY.unconstrained_kl(single, FAMILY.to_natural(prior))
    expected = FAMILY.unconstrained_kl(unconstrained, FAMILY.to_natural(double_prior))
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=0.0)
    stats = FAMILY.unconstrained_expected_stats(single)
    expected = FAMILY.unconstrained_expected_stats(unconstrained)
    for actual, field in zip(stats, expected, strict=True):
        torch.testing.assert_close(actual.double(), field, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dof", [2.0, 1.0, math.nan])
def test_too_few_degrees_of_freedom_are_an_error(dof):
    standard = random_standard("mniw")._replace(dof=torch.tensor(dof, dtype=torch.float64))
    with pytest.raises(ValueError, match="dof must exceed 2"):
        FAMILY.to_unconstrained(standard)
    with pytest.raises(ValueError, match="dof must exceed 2"):
        FAMILY.log_normalizer(FAMILY.to_natural(standard))
    with pytest.raises(ValueError, match="dof must exceed 2"):
        FAMILY.sample(standard, (), generator())


@pytest.mark.parametrize("field", ["scale", "mean_precision"])
def test_indefinite_matrices_are_an_error(field):
    standard = random_standard("mniw", (2,))
    broken = getattr(standard, field).clone()
    broken[1] *= -1.0
    with pytest.raises(torch.linalg.LinAlgError, match=rf"{field}.*\(1,\)"):
        FAMILY.to_unconstrained(standard._replace(**{field: broken}))
    with pytest.raises(torch.linalg.LinAlgError, match=rf"{field}.*\(1,\)"):
        FAMILY.expected_stats(FAMILY.to_natural(standard._replace(**{field: broken})))
