# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from sksvae.autoregressive_hmm import choose_prior, fit_autoregressive_hmm, point_sequences
from sksvae.autoregressive_hmm.activity_start import activity_features, from_activity, with_states
from sksvae.autoregressive_hmm.model import Problem
from sksvae.graphical import DynamicsPrior, SwitchingPrior

from . import cases


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def activities(n_steps=1200):
    """Noise around zero whose strength and direction change every 100 steps."""
    states = np.arange(n_steps) // 100 % 3
    scales = np.array([[1.0, 0.1], [0.1, 1.0], [0.1, 0.1]])
    noise = np.random.RandomState(0).standard_normal((n_steps, 2))
    return torch.as_tensor(scales[states] * noise), states


def test_windows_hold_what_pandas_says():
    pd = pytest.importorskip("pandas")
    points, _ = activities(50)
    problem = Problem.build(
        point_sequences(points, [50]).parts, SwitchingPrior.sticky(2, DynamicsPrior.isotropic(2))
    )
    rolling = pd.DataFrame(points.numpy() - points.numpy().mean(0)).rolling(
        11, center=True, min_periods=1
    )
    expected = np.hstack([rolling.mean(), rolling.std(ddof=0)])
    np.testing.assert_allclose(activity_features(problem, 10), expected, atol=1e-7)


def test_windows_end_with_their_sequence():
    points, _ = activities(60)
    prior = SwitchingPrior.sticky(2, DynamicsPrior.isotropic(2))
    both = Problem.build(point_sequences(points, [40, 20]).parts, prior)
    shorter = activity_features(both, 10)[both.stacking.bounds[0] < 20][:20]
    centred = points[40:] - points.mean(0)
    torch.testing.assert_close(shorter[0, :2], centred[:6].mean(0))


@pytest.mark.parametrize("seed", range(3))
def test_activities_are_found_and_clusters_merged(seed):
    points, states = activities()
    prior = SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2, persistence=0.0, noise_scale=0.1))
    problem = Problem.build(point_sequences(points, [len(points)]).parts, prior)
    start = from_activity(problem, (10, 20), generator(seed))
    labels = problem.expect(start).marginals[0][0].argmax(-1)
    assert start.n_states == 3
    assert adjusted_rand_score(states, labels) > 0.9


@pytest.mark.parametrize(("n_states", "lengths"), [(1, [30]), (2, [1]), (6, [4, 1]), (3, [2, 2])])
def test_few_steps_and_few_states(n_states, lengths):
    points, _ = activities(sum(lengths))
    prior = SwitchingPrior.sticky(n_states, DynamicsPrior.isotropic(2))
    problem = Problem.build(point_sequences(points, lengths).parts, prior)
    start = from_activity(problem, (10, 20), generator())
    assert start.n_states == n_states
    assert np.isfinite(problem.expect(start).bound)


@pytest.mark.parametrize("tied", [False, True])
def test_priors_of_other_sizes_stay_alike(tied):
    prior = SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2), tied=tied)
    for field, other in zip(
        torch.utils._pytree.tree_leaves(with_states(prior, 5).select(torch.arange(3))),
        torch.utils._pytree.tree_leaves(prior),
        strict=True,
    ):
        torch.testing.assert_close(field, other)


def test_the_prior_with_the_best_bound_is_chosen():
    lengths = [300, 200]
    points, _ = cases.switching(3, lengths=lengths)
    parts = point_sequences(points, lengths).parts
    dim = points.shape[1]
    priors = [
        SwitchingPrior.sticky(3, DynamicsPrior.isotropic(dim, noise_scale=scale))
        for scale in (10.0, 0.1, 1e-4)
    ]
    chosen = choose_prior(parts, priors, generator=generator())
    bounds = [
        fit_autoregressive_hmm(parts, prior, n_starts=2, generator=generator()).bound
        for prior in priors
    ]
    assert chosen is priors[int(np.argmax(bounds))]
    assert choose_prior(parts, priors[:1], generator=generator()) is priors[0]
