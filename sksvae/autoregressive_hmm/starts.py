# SPDX-License-Identifier: BSD-3-Clause
"""Where to start: states of steps from windows, from stretches of time, or at random."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from sksvae.autoregressive_hmm.activity_start import (
    activity_features,
    cluster_steps,
    from_activity,
    with_states,
)
from sksvae.autoregressive_hmm.merging import UNUSED, disjoint_pairs, merge_gains, merged
from sksvae.autoregressive_hmm.model import Problem, converted
from sksvae.autoregressive_hmm.pooling import pooled_priors, pooling_price
from sksvae.autoregressive_hmm.segments import Segments, cluster_segments
from sksvae.graphical import ChainPosterior, SwitchingPrior

Start = Callable[[Problem, Any, torch.Generator], SwitchingPrior]

_WIDTHS = (10, 20, 40)  # of windows: latents of one second and of several, at common rates

_PRIOR_ROUNDS = 10  # after which priors are compared
_MERGE_ROUNDS = 5  # of coordinate ascent before states are merged


def propose_starts(
    problem: Problem, n_starts: int, generator: torch.Generator
) -> Iterator[SwitchingPrior]:
    """First ``q(theta)``, found in different ways in turn.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    n_starts : int
        How many.
    generator : torch.Generator
        Source of randomness.

    Yields
    ------
    SwitchingPrior
        For coordinate ascent.
    """
    kinds: list[tuple[Start, Any]] = [
        (from_activity, _WIDTHS),
        (from_merges, 20),
        (from_activity, _WIDTHS),
        (from_windows, 10),
        (from_activity, _WIDTHS),
        (from_stretches, 20),
        (from_windows, 1),
        (from_chance, 20),
        (from_merges, 10),
        (from_windows, 30),
    ]
    for kind, width in islice(cycle(kinds), n_starts):
        yield kind(problem, width, generator)


def choose_prior(
    parts: Sequence[ChainPosterior],
    priors: Sequence[SwitchingPrior],
    *,
    pooled_weights: Sequence[float] = (),
    max_rows: int = 10_000,
    generator: torch.Generator,
) -> SwitchingPrior:
    """Prior with the best bound, a few rounds after a simple start that they share.

    Parameters
    ----------
    parts : sequence of ChainPosterior
        Moments of latents.
    priors : sequence of SwitchingPrior
        Of equally many states.
    pooled_weights : sequence of float, default=()
        Positive weights, in steps, of further priors, around the linear dynamics of all steps: each
        state is expected to move as the whole does. Such a prior must be better by what its numbers
        gain by chance.
    max_rows : int, default=10_000
        Most steps to use; windows are drawn if there are more.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    SwitchingPrior
        One of them, or around the dynamics of all steps.

    Examples
    --------
    >>> import torch
    >>> from sksvae.autoregressive_hmm import choose_prior, point_sequences
    >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    >>> priors = [
    ...     SwitchingPrior.sticky(2, DynamicsPrior.isotropic(2, noise_scale=scale))
    ...     for scale in (1.0, 1e-4)
    ... ]
    >>> prior = choose_prior(point_sequences(noise, [200]).parts, priors, generator=generator)
    >>> prior is priors[0]
    True
    """
    if len(priors) == 1 and not len(pooled_weights):
        return priors[0]
    problem = Problem.build(parts, priors[0])
    if problem.n_rows > max_rows:
        windows = problem.stacking.sample(problem.parts, max_rows, max_rows, generator)
        problem = Problem.build(windows, priors[0])
    features = torch.cat([activity_features(problem, width) for width in _WIDTHS], 1)
    labels = cluster_steps(features.cpu().numpy(), problem.prior.n_states, generator)
    labels = labels.to(problem.stacking.means.device)

    def bound(prior: SwitchingPrior) -> float:
        each = problem.under(prior)
        return each.ascend(each.with_labels(labels), _PRIOR_ROUNDS, 1e-3)[0].bound

    # Of weak priors the last: what is pooled is to be what the steps say.
    last = problem.under(priors[-1])
    pooled = pooled_priors(last, pooled_weights) if len(pooled_weights) else []
    bounds = [bound(prior) for prior in priors]
    price = pooling_price(priors[0].initial.mean.shape[-1], problem.n_rows)
    bounds += [bound(prior) - price for prior in pooled]
    chosen = bounds.index(max(bounds))
    if chosen < len(priors):
        return priors[chosen]
    return converted(pooled[chosen - len(priors)], priors[0].initial.mean.dtype)


def from_windows(problem: Problem, width: int, generator: torch.Generator) -> SwitchingPrior:
    """Cluster steps by the means of latents and of their increments around them.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    width : int
        Steps of the windows, which end where the sequence does.
    generator : torch.Generator
        For k-means++.

    Returns
    -------
    SwitchingPrior
        ``q(theta)`` for these states.
    """
    features = window_features(problem, width).cpu().numpy()
    return problem.with_labels(cluster_steps(features, problem.prior.n_states, generator))


def window_features(problem: Problem, width: int) -> Tensor:
    """Means of latents, and of increments into them, over a window around each step.

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
    start = torch.arange(len(means), device=means.device) - width // 2
    stop = torch.minimum(start + width - 1, last)  # included
    start = torch.maximum(start, first)
    sums = torch.cat((means.new_zeros(1, means.shape[1]), means.cumsum(0)))
    mean = (sums[stop + 1] - sums[start]) / (stop + 1 - start).unsqueeze(-1)
    # Increments add up to what lies between the ends.
    before = torch.maximum(start - 1, first)
    drift = (means[stop] - means[before]) / (stop - before).clamp_min(1).unsqueeze(-1)
    return torch.cat((mean, drift), 1)


def from_stretches(problem: Problem, length: int, generator: torch.Generator) -> SwitchingPrior:
    """Cluster stretches of time by the dynamics in them.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    length : int
        Most steps of a stretch.
    generator : torch.Generator
        Draws the seeds.

    Returns
    -------
    SwitchingPrior
        ``q(theta)`` for these states.
    """
    segments, prior = Segments.of(problem, None, length), problem.prior
    # Each cluster has noise of its own, also where states share it: this is only a start.
    labels = cluster_segments(prior.state_dynamics, segments.stats, prior.n_states, generator)
    return problem.with_labels(labels[segments.of_row])


def from_merges(problem: Problem, length: int, generator: torch.Generator) -> SwitchingPrior:
    """Begin with twice as many states and merge those whose merge costs least.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    length : int
        Most steps of a stretch, as in `from_stretches`.
    generator : torch.Generator
        Draws the seeds.

    Returns
    -------
    SwitchingPrior
        ``q(theta)`` of the states that are left.
    """
    n_states = problem.prior.n_states
    larger = dataclasses.replace(problem, prior=with_states(problem.prior, 2 * n_states))
    start = from_stretches(larger, length, generator)
    statistics = larger.ascend(start, _MERGE_ROUNDS, 0.0)[0].statistics
    while (surplus := int((statistics.weights > UNUSED).sum()) - n_states) > 0:
        pairs = disjoint_pairs(merge_gains(larger, statistics), -math.inf)
        for kept, emptied in pairs[: -(-surplus // 3)]:  # gains change as pairs merge
            statistics = merged(statistics, kept, emptied)
    left = statistics.weights.sort(descending=True, stable=True).indices[:n_states]
    return larger.maximize(statistics).select(left)


def from_chance(problem: Problem, length: int, generator: torch.Generator) -> SwitchingPrior:
    """Draw a state for each stretch of time.

    Parameters
    ----------
    problem : Problem
        Sequences and prior.
    length : int
        Most steps of a stretch.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    SwitchingPrior
        ``q(theta)`` for these states.
    """
    of_row = Segments.of(problem, None, length).of_row
    shape = (int(of_row[-1]) + 1,)
    states = torch.randint(
        problem.prior.n_states, shape, generator=generator, device=generator.device
    )
    return problem.with_labels(states.to(of_row.device)[of_row])
