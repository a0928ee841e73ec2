# SPDX-License-Identifier: BSD-3-Clause
"""Clusters of stretches of time by the dynamics in them, noise included."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.autoregressive_hmm.model import Problem
from sksvae.autoregressive_hmm.transition_moments import natural_of_moments
from sksvae.expfam import MNIW, MNIWNatural, MNIWParams, natural_step
from sksvae.sequences import Windows

_MNIW = MNIW()
_ROUNDS = 10
_CHUNK = 4096


class Segments(NamedTuple):
    """Stretches of consecutive steps, each within one sequence.

    Parameters
    ----------
    of_row : Tensor of int64 of shape (n_rows,)
        Number of the stretch that each step is in, in the order of the stacking.
    stats : MNIWNatural
        Sufficient statistics of the transitions into the steps of each stretch, with leading axis
        n_stretches. They are those of means, without covariances.
    """

    of_row: Tensor
    stats: MNIWNatural

    @classmethod
    def of(cls, problem: Problem, labels: Tensor | None, max_length: int) -> "Segments":
        """Cut sequences into stretches of one label and of bounded length.

        Parameters
        ----------
        problem : Problem
            Sequences.
        labels : Tensor of int64 of shape (n_rows,) or None
            Of each step, in the order of the stacking; None for one label everywhere.
        max_length : int
            Most steps of a stretch.

        Returns
        -------
        Segments
            In order of time.
        """
        means, (first, _) = problem.stacking.means, problem.stacking.bounds
        starts = torch.arange(len(means), device=means.device) == first
        edges = starts.clone()
        if labels is not None:
            edges[1:] |= labels[1:] != labels[:-1]
        cuts = np.append(np.flatnonzero(edges.cpu().numpy()), len(means))
        windows = Windows.whole(np.diff(cuts)).cut(max_length)
        of_row = torch.as_tensor(
            np.repeat(np.arange(len(windows)), windows.length), device=means.device
        )
        return cls(of_row, _statistics(means, starts, of_row))

    def values(self, labels: Tensor) -> Tensor:
        """Labels of stretches, given those of steps: (n_rows,) to (n_stretches,)."""
        values = labels.new_empty(len(self.stats.precision))
        values[self.of_row] = labels
        return values


def _statistics(means: Tensor, starts: Tensor, of_row: Tensor) -> MNIWNatural:
    width = 2 * means.shape[-1] + 1
    total = means.new_zeros(int(of_row[-1]) + 1, width * width)
    for rows in (~starts).nonzero().flatten().split(_CHUNK):
        v = torch.cat((means[rows], pad(means[rows - 1], (0, 1), value=1.0)), -1)
        outer = (v.unsqueeze(-1) * v.unsqueeze(-2)).flatten(1)
        total.index_add_(0, of_row[rows], outer)
    return natural_of_moments(total.view(-1, width, width))


def cluster_segments(
    prior: MNIWParams, stats: MNIWNatural, n_clusters: int, generator: torch.Generator
) -> Tensor:
    """Cluster stretches by their dynamics.

    k-means with the log density under the dynamics of a cluster, learned conjugately from its
    members, in the place of the squared distance; seeds are drawn as in k-means++, in proportion to
    what each stretch is worse explained by the best seed than by itself [1]_.

    Parameters
    ----------
    prior : MNIWParams
        Of the dynamics, with leading axis K; all alike.
    stats : MNIWNatural
        Statistics of the stretches, with leading axis n_stretches.
    n_clusters : int
        Number of clusters; fewer are found if no stretch is left to explain.
    generator : torch.Generator
        Draws the seeds.

    Returns
    -------
    Tensor of int64 of shape (n_stretches,)
        Clusters.

    References
    ----------
    .. [1] Banerjee, Merugu, Dhillon and Ghosh, "Clustering with Bregman divergences", Journal of
       Machine Learning Research 6, 2005.
    """
    own = learn(prior, stats)
    own_density = _densities(stats, own, matched=True)
    labels = torch.zeros(len(own_density), dtype=torch.long, device=own_density.device)
    best, weights = None, stats.log_det_precision
    for k in range(n_clusters):
        if not weights.sum() > 0:
            break
        seed = _draw(weights, generator)
        density = _densities(stats, _take(own, seed))[:, 0]
        labels = labels if best is None else torch.where(density > best, k, labels)
        best = density if best is None else torch.maximum(density, best)
        weights = (own_density - best).clamp_min(0.0)
    return _reassign(prior, stats, labels, torch.arange(n_clusters, device=labels.device)[None])


def split_groups(
    prior: MNIWParams, stats: MNIWNatural, groups: Tensor, n_groups: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Split each group of stretches in two, by k-means as `cluster_segments` does.

    Parameters
    ----------
    prior : MNIWParams
        Of the dynamics, with leading axis K; all alike.
    stats : MNIWNatural
        Statistics of the stretches, with leading axis n_stretches.
    groups : Tensor of int64 of shape (n_stretches,)
        Group of each.
    n_groups : int
        Number of groups.
    generator : torch.Generator
        Draws the seeds of one of the ways.

    Returns
    -------
    list of tuple of Tensor of bool of shape (n_stretches,) and Tensor of shape (n_groups,)
        Two ways, from the stretch that the group explains worst, and from drawn seeds. For each,
        which stretches leave their group and what that gains in log evidence.
    """
    own = _densities(stats, learn(prior, stats), matched=True)
    whole = group_sums(stats, groups, n_groups)
    member = torch.arange(len(groups), device=groups.device)

    def deficit(dynamics: MNIWParams) -> Tensor:
        return own - _densities(stats, dynamics)[member, groups]

    drawn = _race(stats.log_det_precision, groups, n_groups, generator)
    seeds = group_sums(stats, torch.where(drawn, groups, n_groups), n_groups + 1)
    lost = deficit(learn(prior, MNIWNatural(*(field[:-1] for field in seeds))))
    others = _race(lost.clamp_min(0.0), groups, n_groups, generator)
    rivals = group_sums(stats, torch.where(others, groups, n_groups), n_groups + 1)
    nearer = deficit(learn(prior, MNIWNatural(*(field[:-1] for field in rivals)))) < lost
    worst = _firsts(-deficit(learn(prior, whole)), groups, n_groups)

    ways, before = [], log_evidence(prior, whole)
    for halves in (worst, nearer):
        choices = 2 * groups[:, None] + torch.arange(2, device=groups.device)
        labels = _reassign(prior, stats, 2 * groups + halves, choices)
        parts = log_evidence(prior, group_sums(stats, labels, 2 * n_groups))
        ways.append((labels % 2 == 1, parts.view(n_groups, 2).sum(-1) - before))
    return ways


def learn(prior: MNIWParams, stats: MNIWNatural) -> MNIWParams:
    """Posteriors of dynamics.

    Parameters
    ----------
    prior : MNIWParams
        With leading axis K; all alike.
    stats : MNIWNatural
        Statistics, with leading axis n.

    Returns
    -------
    MNIWParams
        With leading axis n.
    """
    n = len(stats.log_det_precision)
    repeated = (field[:1].expand(n, *field.shape[1:]) for field in prior)
    return natural_step(_MNIW, MNIWParams(*repeated), stats, 1.0)


def log_evidence(prior: MNIWParams, stats: MNIWNatural) -> Tensor:
    """``log Z(eta_0 + s) - log Z(eta_0)``.

    Parameters
    ----------
    prior : MNIWParams
        Of the dynamics, with leading axis K; all alike.
    stats : MNIWNatural
        Statistics, with leading axis n.

    Returns
    -------
    Tensor of shape (n,)
        The log evidence of transitions, up to their base measure.
    """
    constant = _MNIW.log_normalizer(_MNIW.to_natural(_take(prior, 0)))
    return _MNIW.log_normalizer(_MNIW.to_natural(learn(prior, stats))) - constant


def _reassign(prior: MNIWParams, stats: MNIWNatural, labels: Tensor, choices: Tensor) -> Tensor:
    """k-means: learn clusters, let each stretch choose among those of its choices in use."""
    n_clusters = int(choices.max()) + 1
    for _ in range(_ROUNDS):
        dynamics = learn(prior, group_sums(stats, labels, n_clusters))
        used = torch.bincount(labels, minlength=n_clusters) > 0
        density = torch.where(used, _densities(stats, dynamics), -torch.inf)
        allowed = choices.expand(len(labels), -1)
        moved = allowed.gather(1, density.gather(1, allowed).argmax(-1, keepdim=True))[:, 0]
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels


def _take(params: MNIWParams, index: int) -> MNIWParams:
    return MNIWParams(*(field[index : index + 1] for field in params))


def group_sums(stats: MNIWNatural, groups: Tensor, n_groups: int) -> MNIWNatural:
    """Add up the statistics of groups.

    Parameters
    ----------
    stats : MNIWNatural
        With leading axis n_stretches.
    groups : Tensor of int64 of shape (n_stretches,)
        Group of each.
    n_groups : int
        Number of groups.

    Returns
    -------
    MNIWNatural
        With leading axis n_groups.
    """
    return MNIWNatural(
        *(
            field.new_zeros(n_groups, *field.shape[1:]).index_add_(0, groups, field)
            for field in stats
        )
    )


def _densities(stats: MNIWNatural, dynamics: MNIWParams, matched: bool = False) -> Tensor:
    """``<s, E t>`` of stretches and dynamics: each with each, or matched one to one."""
    expected = _MNIW.standard_expected_stats(dynamics)
    pairs = [
        (a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in zip(stats, expected, strict=True)
    ]
    if matched:
        return sum((a * b).sum(-1) for a, b in pairs)
    return sum(a @ b.mT for a, b in pairs)


def _draw(weights: Tensor, generator: torch.Generator) -> int:
    """Index drawn in proportion to weights."""
    one = torch.zeros(len(weights), dtype=torch.long, device=weights.device)
    return int(_race(weights, one, 1, generator).nonzero()[0, 0])


def _race(weights: Tensor, groups: Tensor, n_groups: int, generator: torch.Generator) -> Tensor:
    """One member of each group, drawn in proportion to weights: the first of exponential times."""
    uniform = torch.rand(
        weights.shape, generator=generator, device=generator.device, dtype=torch.float64
    )
    return _firsts(-(1.0 - uniform.to(weights.device)).log() / weights, groups, n_groups)


def _firsts(values: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Mark the least member of each group, the first of them in case of ties."""
    least = values.new_full((n_groups,), torch.inf).scatter_reduce(0, groups, values, "amin")
    index = torch.arange(len(values), device=values.device)
    is_least = values == least[groups]
    candidates = torch.where(is_least, index, len(values))
    first = candidates.new_full((n_groups,), len(values))
    first = first.scatter_reduce(0, groups, candidates, "amin")
    return first[groups] == index
