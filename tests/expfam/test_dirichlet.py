# SPDX-License-Identifier: BSD-3-Clause
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import EXPONENTIAL_FAMILIES, DirichletNatural, DirichletParams

from .cases import generator, standard_parameters, z_scores

FAMILY = EXPONENTIAL_FAMILIES["dirichlet"]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_density_agrees_with_scipy(data):
    standard = data.draw(standard_parameters(FAMILY))
    natural = FAMILY.to_natural(standard)
    points = FAMILY.sample(standard, (), generator())
    for index in np.ndindex(points.shape[:-1]):
        alpha = standard.concentration[index].numpy()
        if len(alpha) == 1:  # a point mass, of which scipy knows nothing
            assert FAMILY.log_prob(natural, points)[index].item() == pytest.approx(0.0)
            continue
        oracle = scipy.stats.dirichlet(alpha)
        np.testing.assert_allclose(
            FAMILY.log_prob(natural, points)[index], oracle.logpdf(points[index]), atol=1e-9
        )
        np.testing.assert_allclose(FAMILY.entropy(natural)[index], oracle.entropy(), atol=1e-9)


def test_expected_stats_agree_with_draws_of_scipy():
    alpha = np.array([0.4, 1.0, 3.0])
    rng = np.random.default_rng(0)
    draws = scipy.stats.dirichlet(alpha).rvs(50_000, random_state=rng)
    natural = DirichletNatural(torch.from_numpy(alpha))
    expected = FAMILY.expected_stats(natural).log_probabilities
    assert z_scores(torch.from_numpy(np.log(draws)), expected).abs().max() < 5.0


def test_counts_add_and_normalizers_give_the_evidence():
    """Polya's urn: the probability of a sequence is a product of predictive probabilities."""
    alpha = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)
    urn, log_evidence = alpha.clone(), 0.0
    for outcome in (0, 2, 2, 1, 0, 2):
        log_evidence += math.log(urn[outcome] / urn.sum())
        urn[outcome] += 1.0
    counts = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    after = FAMILY.log_normalizer(DirichletNatural(alpha + counts))
    before = FAMILY.log_normalizer(DirichletNatural(alpha))
    assert (after - before).item() == pytest.approx(log_evidence, rel=1e-12)


@pytest.mark.parametrize("concentration", [0.02, 1.0, 30.0])
def test_draws_have_the_marginals_of_scipy(concentration):
    alpha = torch.tensor([concentration, 2 * concentration], dtype=torch.float64)
    draws = FAMILY.sample(DirichletParams(alpha), (5_000,), generator())
    oracle = scipy.stats.beta(concentration, 2 * concentration)
    # Small concentrations put mass at 0 and 1 to within rounding: compare in between.
    first = draws[:, 0].numpy()
    grid = np.array([1e-12, 1e-3, 0.1, 0.3, 0.5, 0.9, 0.999])
    cdf = oracle.cdf(grid)
    error = np.sqrt(np.maximum(cdf * (1 - cdf), 1e-12) / len(first))
    empirical = (first[:, None] <= grid).mean(0)
    assert np.all(np.abs(empirical - cdf) < 5.0 * error + 1e-12)


def test_draws_stay_inside_the_simplex_for_tiny_concentrations():
    alpha = torch.full((5,), 1e-3)
    draws = FAMILY.sample(DirichletParams(alpha), (1_000,), generator())
    assert (draws > 0).all()
    assert FAMILY.stats_of(draws).log_probabilities.isfinite().all()
    torch.testing.assert_close(draws.sum(-1), torch.ones(1_000))
    winners = draws.argmax(-1).bincount(minlength=5).numpy()
    assert scipy.stats.chisquare(winners).pvalue > 1e-3


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
@pytest.mark.parametrize(
    "method", ["to_natural", "from_natural", "to_unconstrained", "log_normalizer", "expected_stats"]
)
def test_concentrations_must_be_positive(method, bad):
    # Standard and natural parameters have the same single field.
    with pytest.raises(ValueError, match="concentration must be positive"):
        getattr(FAMILY, method)(DirichletParams(torch.tensor([1.0, bad])))
