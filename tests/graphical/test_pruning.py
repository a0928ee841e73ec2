# SPDX-License-Identifier: BSD-3-Clause
"""Removal of components: its gain against the bound written out, and what it leaves."""

import dataclasses
import math

import pytest
import torch

from sksvae.graphical import (
    GaussianMixtureModel,
    MixturePrior,
    Potentials,
    propose_removal,
    prune_components,
)
from sksvae.inference import FixedPointSettings

SETTINGS = FixedPointSettings(max_updates=500, tol=1e-10)


def prior_of(n_components, dim=2, dtype=torch.float64):
    zeros, eye = torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype)
    return MixturePrior.symmetric(n_components, 1 / n_components, zeros, 1.0, eye, float(dim))


def clusters(centres, n_rows=40, std=0.3, seed=0, dtype=torch.float64):
    """Precise evidence for rows around centres, and the centre of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor(centres, dtype=dtype).repeat_interleave(n_rows, 0)
    noise = torch.randn(centres.shape, generator=generator, dtype=dtype)
    R = torch.full_like(centres, 1e3)
    labels = torch.arange(len(centres)) // n_rows
    return Potentials(R * (centres + std * noise), R), labels


def fitted(potentials, labels, n_components, n_rounds=3):
    """Model from given labels after some rounds of coordinate ascent, with its posterior."""
    model = GaussianMixtureModel(prior_of(n_components, dtype=potentials.precision.dtype))
    hard = torch.nn.functional.one_hot(labels, n_components).to(potentials.precision)
    posterior = model.infer(potentials, model.expected_params(), SETTINGS)
    model.coordinate_update(
        model.total_stats(dataclasses.replace(posterior, responsibilities=hard))
    )
    for _ in range(n_rounds):
        posterior = model.infer(potentials, model.expected_params(), SETTINGS)
        model.coordinate_update(model.total_stats(posterior))
    return model, model.infer(potentials, model.expected_params(), SETTINGS)


def best_bound(prior, posterior, responsibilities):
    """Bound for given q(z) and q(k), with the q(theta) that is best for them."""
    model = GaussianMixtureModel(prior)
    posterior = dataclasses.replace(posterior, responsibilities=responsibilities)
    model.coordinate_update(model.total_stats(posterior))
    expected = (responsibilities * model.expected_log_joint(posterior)).sum()
    entropy = -torch.special.xlogy(responsibilities, responsibilities).sum()
    return float(expected + entropy - model.prior_kl())


def halved(labels, n_labels):
    """Every second row of the first cluster gets a label of its own."""
    labels = labels.clone()
    labels[: (labels == 0).sum() : 2] = n_labels
    return labels


THREE = [[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]


def test_expected_log_joint_gives_the_responsibilities():
    potentials, labels = clusters(THREE, std=2.0)
    model, posterior = fitted(potentials, labels, 3)
    torch.testing.assert_close(
        model.expected_log_joint(posterior).softmax(-1), posterior.responsibilities
    )


@pytest.mark.parametrize("std", [0.3, 3.0], ids=["apart", "overlapping"])
@pytest.mark.parametrize("component", range(5))
def test_the_gain_is_the_difference_of_two_bounds(std, component):
    """With an unused fifth component, too."""
    potentials, labels = clusters(THREE, std=std)
    model, posterior = fitted(potentials, halved(labels, 3), 5)
    left = [k for k in range(5) if k != component]
    without = model.expected_log_joint(posterior)[:, left].softmax(-1)
    want = best_bound(prior_of(5), posterior, posterior.responsibilities)
    smaller = GaussianMixtureModel(prior_of(5)).select(torch.tensor(left)).prior
    want = best_bound(smaller, posterior, without) - want
    assert propose_removal(model, posterior, component).gain == pytest.approx(want, abs=1e-6)


def test_rows_can_stand_for_several():
    potentials, labels = clusters(THREE, std=2.0)
    model, posterior = fitted(potentials, labels, 3)
    twice = Potentials(*(torch.cat([field, field]) for field in potentials))
    both = model.infer(twice, model.expected_params(), SETTINGS)
    want, got = propose_removal(model, both, 1), propose_removal(model, posterior, 1, weight=2.0)
    assert got.gain == pytest.approx(want.gain)
    for ours, theirs in zip(got.stats, want.stats, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_only_components_without_rows_of_their_own_are_removed(dtype):
    potentials, labels = clusters(THREE, dtype=dtype)
    model, posterior = fitted(potentials, halved(labels, 3), 8, n_rounds=0)
    while True:
        smaller = prune_components(model, posterior)
        if smaller is model:
            break
        assert smaller.n_components == model.n_components - 1
        model = smaller
        posterior = model.infer(potentials, model.expected_params(), SETTINGS)
    assert model.n_components == 3
    found = posterior.responsibilities.argmax(1)
    for k in range(3):
        assert len(found[labels == k].unique()) == 1
    assert len(found.unique()) == 3


def test_a_removal_raises_the_bound_by_at_least_its_gain():
    """The rows are handed over at once; inference then follows."""
    potentials, labels = clusters(THREE, std=1.5)
    model, posterior = fitted(potentials, halved(labels, 3), 4, n_rounds=0)
    gain = max(propose_removal(model, posterior, k).gain for k in range(4))

    def bound(mixture, posterior):
        r, R = potentials
        variance = posterior.covariance.diagonal(dim1=-2, dim2=-1)
        evidence = (r * posterior.mean - 0.5 * R * (posterior.mean**2 + variance)).sum()
        entropy = 0.5 * posterior.covariance.logdet().sum()
        rest = best_bound(mixture.prior, posterior, posterior.responsibilities)
        return float(evidence + entropy) + rest

    smaller = prune_components(model, posterior, slack=math.inf)
    # q(theta) is already the best for what the rows say now: one more round can only gain.
    after = smaller.infer(potentials, smaller.expected_params(), SETTINGS)
    assert bound(smaller, after) >= bound(model, posterior) + gain - 1e-6


def test_slack_is_what_a_removal_may_cost():
    potentials, labels = clusters(THREE)
    model, posterior = fitted(potentials, labels, 3)
    loss = -max(propose_removal(model, posterior, k).gain for k in range(3))
    assert loss > 10.0
    assert prune_components(model, posterior, slack=0.99 * loss) is model
    assert prune_components(model, posterior, slack=1.01 * loss).n_components == 2


def test_the_last_component_stays():
    potentials, labels = clusters([[0.0, 0.0]])
    model, posterior = fitted(potentials, labels, 1)
    assert prune_components(model, posterior, slack=math.inf) is model
