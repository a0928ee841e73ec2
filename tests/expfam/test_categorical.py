# SPDX-License-Identifier: BSD-3-Clause
import math

import numpy as np
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import EXPONENTIAL_FAMILIES, CategoricalNatural, CategoricalParams

from .cases import generator, random_natural, standard_parameters

FAMILY = EXPONENTIAL_FAMILIES["categorical"]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_probabilities_agree_with_scipy(data):
    standard = data.draw(standard_parameters(FAMILY))
    probabilities = standard.probabilities
    natural = FAMILY.to_natural(standard)
    # Logits need not be normalised.
    shifted = CategoricalNatural(natural.logits + 3.7)
    outcomes = torch.eye(probabilities.shape[-1], dtype=torch.float64)
    for index in np.ndindex(probabilities.shape[:-1]):
        oracle = scipy.stats.multinomial(1, probabilities[index].numpy())
        entry = CategoricalNatural(shifted.logits[index])
        np.testing.assert_allclose(
            FAMILY.log_prob(entry, outcomes), oracle.logpmf(outcomes.numpy()), atol=1e-12
        )
        np.testing.assert_allclose(FAMILY.entropy(entry), oracle.entropy(), atol=1e-12)


def test_draws_are_one_hot_with_the_right_frequencies():
    standard = CategoricalParams(torch.tensor([[0.1, 0.0, 0.9], [0.3, 0.3, 0.4]]))
    draws = FAMILY.sample(standard, (5_000,), generator())
    assert draws.shape == (5_000, 2, 3)
    assert draws.dtype == torch.float32
    assert ((draws == 0) | (draws == 1)).all()
    assert (draws.sum(-1) == 1).all()
    counts = draws.sum(0).numpy()
    assert counts[0, 1] == 0
    assert scipy.stats.chisquare(counts[0, [0, 2]], [500, 4_500]).pvalue > 1e-3
    assert scipy.stats.chisquare(counts[1], [1_500, 1_500, 2_000]).pvalue > 1e-3


def test_impossible_outcomes_count_nothing():
    q = CategoricalNatural(torch.tensor([0.0, -math.inf, 0.0], requires_grad=True))
    p = CategoricalNatural(torch.tensor([0.0, 1.0, 0.0]))
    kl = FAMILY.kl(q, p)
    torch.testing.assert_close(kl, torch.tensor(math.log((2 + math.e) / 2)))
    torch.testing.assert_close(FAMILY.entropy(q), torch.tensor(math.log(2.0)))
    (gradient,) = torch.autograd.grad(kl, q.logits)
    assert gradient.isfinite().all()
    assert FAMILY.kl(p, CategoricalNatural(q.logits.detach())) == math.inf
    standard = FAMILY.from_natural(CategoricalNatural(q.logits.detach()))
    torch.testing.assert_close(standard.probabilities, torch.tensor([0.5, 0.0, 0.5]))


def test_extreme_logits_do_not_overflow():
    natural = CategoricalNatural(torch.tensor([1e4, 1e4, -1e4]))
    torch.testing.assert_close(FAMILY.log_normalizer(natural), torch.tensor(1e4 + math.log(2.0)))
    torch.testing.assert_close(FAMILY.entropy(natural), torch.tensor(math.log(2.0)))


def test_kl_agrees_with_scipy():
    q, p = random_natural("categorical", (3,)), random_natural("categorical", (3,), seed=1)
    expected = scipy.stats.entropy(q.logits.exp().numpy(), p.logits.exp().numpy(), axis=-1)
    np.testing.assert_allclose(FAMILY.kl(q, p), expected, rtol=1e-12)
