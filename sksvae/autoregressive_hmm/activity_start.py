# SPDX-License-Identifier: BSD-3-Clause
"""A start that looks further than one step: what latents do over seconds, many states, merges."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sksvae.autoregressive_hmm.merging import UNUSED, disjoint_pairs, merge_gains, merged
from sksvae.autoregressive_hmm.model import Problem, Statistics
from sksvae.expfam import DirichletParams
from sksvae.graphical import SwitchingPrior

_KMEANS_ROUNDS = 50
_SURPLUS = 3  # times as many states as wanted to begin with
_FIRST_ROUNDS = 10  # of coordinate ascent with all of them
_ROUNDS = 2  # after each few merges
_SHARE = 12  # of the states that are too many, one in so many is merged at a time


def from_activity(
    problem: Problem, widths: Sequence[int], generator: torch.Generator
) -> SwitchingPrior:
    """Cluster steps by what latents do around them, then merge states that have like dynamics.

    Single transitions tell little of an action that lasts, such as the phases of a walk. Means and
    standard deviations over windows of several widths do, and with three times as many states as
    wanted, what the clusters have in common is for the bound to say.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    widths : sequence of int
        Steps of the windows.
    generator : torch.Generator
        For k-means++.

    Returns
    -------
    SwitchingPrior
        ``q(theta)`` of the states that are left.
    """
    n_states = problem.prior.n_states
    if n_states == 1:
        return problem.with_labels(torch.zeros(problem.n_rows, dtype=torch.long))
    features = np.concatenate(
        [activity_features(problem, width).cpu().numpy() for width in widths], 1
    )
    larger = _resized(problem, _SURPLUS * n_states)
    start = larger.with_labels(cluster_steps(features, larger.prior.n_states, generator))
    current = larger.ascend(start, _FIRST_ROUNDS, 1e-3)[0]
    while (surplus := int((current.statistics.weights > UNUSED).sum()) - n_states) > 0:
        statistics = current.statistics
        pairs = disjoint_pairs(merge_gains(larger, statistics), -math.inf)
        for kept, emptied in pairs[: -(-surplus // _SHARE)]:  # gains change as pairs merge
            statistics = merged(statistics, kept, emptied)
        larger, posterior = _without_unused(problem, larger, statistics)
        current = larger.ascend(posterior, _ROUNDS, 0.0)[0]
    return _without_unused(problem, larger, current.statistics)[1]


def _resized(problem: Problem, n_states: int) -> Problem:
    return dataclasses.replace(problem, prior=with_states(problem.prior, n_states))


def _without_unused(
    problem: Problem, larger: Problem, statistics: Statistics
) -> tuple[Problem, SwitchingPrior]:
    """Problem and ``q(theta)`` of the states in use, or of as many as are wanted."""
    weights = statistics.weights
    n_kept = max(int((weights > UNUSED).sum()), problem.prior.n_states)
    kept = weights.sort(descending=True, stable=True).indices[:n_kept]
    return _resized(problem, n_kept), larger.maximize(statistics).select(kept)


def activity_features(problem: Problem, width: int) -> Tensor:
    """Means and standard deviations of latents over a window around each step.

    Parameters
    ----------
    problem : Problem
        Sequences.
    width : int
        Steps of a window, cut off where the sequence ends.

    Returns
    -------
    Tensor of shape (n_rows, 2 latent_dim)
        In the order of the stacking.
    """
    means, (first, last) = problem.stacking.means, problem.stacking.bounds
    row = torch.arange(len(means), device=means.device)
    start = torch.maximum(row - width // 2, first)
    stop = torch.minimum(row + width // 2, last) + 1
    n_steps = (stop - start).unsqueeze(-1)
    centred = means - means.mean(0)  # for the digits of the squares

    def average(values: Tensor) -> Tensor:
        sums = torch.cat((values.new_zeros(1, values.shape[1]), values.cumsum(0)))
        return (sums[stop] - sums[start]) / n_steps

    mean = average(centred)
    variance = (average(centred.square()) - mean.square()).clamp_min(0.0)
    return torch.cat((mean, variance.sqrt()), 1)


def cluster_steps(features: np.ndarray, n_clusters: int, generator: torch.Generator) -> Tensor:
    """Labels of k-means on standardised features.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features)
        In any units.
    n_clusters : int
        Most clusters.
    generator : torch.Generator
        For k-means++.

    Returns
    -------
    Tensor of int64 of shape (n_rows,)
        On the device of the generator.
    """
    scale = features.std(0)
    features = (features - features.mean(0)) / np.where(scale > 0, scale, 1.0)
    seed = torch.randint(2**31 - 1, (), generator=generator, device=generator.device)
    kmeans = KMeans(
        min(n_clusters, len(features)), n_init=1, max_iter=_KMEANS_ROUNDS, random_state=int(seed)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        labels = kmeans.fit_predict(features)
    return torch.as_tensor(labels, dtype=torch.long, device=generator.device)


def with_states(prior: SwitchingPrior, n_states: int) -> SwitchingPrior:
    """Prior with another number of states.

    Parameters
    ----------
    prior : SwitchingPrior
        Of at least two states, all alike.
    n_states : int
        Number of states.

    Returns
    -------
    SwitchingPrior
        Of states that are all alike, as before.
    """
    concentration = prior.transitions.concentration
    eye = torch.eye(n_states, dtype=torch.bool, device=concentration.device)
    repeated = prior.select(torch.zeros(n_states, dtype=torch.long, device=concentration.device))
    transitions = torch.where(eye, concentration[0, 0], concentration[0, 1])
    return repeated._replace(transitions=DirichletParams(transitions))
