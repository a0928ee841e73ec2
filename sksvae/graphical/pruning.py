# SPDX-License-Identifier: BSD-3-Clause
"""Removal moves for mixtures: fewer components where the bound is as high with fewer."""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam import (
    NIW,
    Dirichlet,
    DirichletNatural,
    DirichletParams,
    NIWNatural,
    NIWParams,
    natural_step,
)
from sksvae.graphical.api import Posterior
from sksvae.graphical.mixture import GaussianMixtureModel, MixturePrior

_NIW = NIW()
_DIRICHLET = Dirichlet()


class Removal(NamedTuple):
    """What removing a component would do.

    Parameters
    ----------
    gain : float
        What it adds to the bound on all rows, in nats.
    stats : tuple of Tensor
        What it adds to the statistics of each component, in the order of `expected_params`.
    """

    gain: float
    stats: tuple[Tensor, ...]


def propose_removal(
    model: GaussianMixtureModel, posterior: Posterior, component: int, weight: float = 1.0
) -> Removal:
    """Hand the rows of a component to the others, and say what that does to the bound.

    Each row goes to the components that explain it best without this one. For given ``q(z)`` the
    best ``q(theta)`` is conjugate, and the bound with it is, up to what no removal changes,
    ``log Z(eta_0 + s_k) - log Z(eta_0)`` summed over components and weights, plus the entropy of
    ``q(k)``: so the gain is exact. That ``q(z)`` can then follow only adds to it.

    Parameters
    ----------
    model : GaussianMixtureModel
        Not changed.
    posterior : Posterior
        Of all rows, or of a sample of them, under ``model``.
    component : int
        Which one.
    weight : float, default=1.0
        Rows that each row of ``posterior`` stands for.

    Returns
    -------
    Removal
        Its gain and the change of the statistics.

    References
    ----------
    Hughes and Sudderth, "Memoized online variational inference for Dirichlet process mixture
    models", NeurIPS 2013, section 3: merge moves, of which this is the form with many targets.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import (
    ...     GaussianMixtureModel, MixturePrior, Potentials, propose_removal)
    >>> from sksvae.inference import FixedPointSettings
    >>> prior = MixturePrior.symmetric(2, 0.5, torch.zeros(1), 1.0, torch.eye(1), 1.0)
    >>> model = GaussianMixtureModel(prior)
    >>> z = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    >>> evidence = Potentials(1e4 * z, torch.full_like(z, 1e4))
    >>> one_cluster = model.infer(evidence, model.expected_params(), FixedPointSettings())
    >>> propose_removal(model, one_cluster, 0).gain > 0
    True
    """
    rows = posterior.responsibilities[:, component] > torch.finfo(posterior.mean.dtype).eps
    before = posterior.responsibilities[rows].double()
    logits = model.expected_log_joint(posterior)[rows].double()
    logits[:, component] = -torch.inf
    after = logits.softmax(-1)
    entropy = torch.special.entr(after).sum() - torch.special.entr(before).sum()
    change = _weighted_stats(posterior, rows, weight * (after - before))
    prior = _double(model.prior)
    total = _weighted_stats(posterior, slice(None), weight * posterior.responsibilities.double())
    moved = tuple(old + new for old, new in zip(total, change, strict=True))
    left = model.others(component)
    gain = (
        _log_evidence(_select(prior, left), tuple(field[left] for field in moved))
        - _log_evidence(prior, total)
        + weight * entropy
    )
    return Removal(float(gain), change)


def prune_components(
    model: GaussianMixtureModel, posterior: Posterior, weight: float = 1.0, slack: float = 0.0
) -> GaussianMixtureModel:
    """Remove the component whose removal gains most, if that is enough.

    Parameters
    ----------
    model : GaussianMixtureModel
        Not changed.
    posterior : Posterior
        Of all rows, or of a sample of them, under ``model``.
    weight : float, default=1.0
        Rows that each row of ``posterior`` stands for.
    slack : float, default=0.0
        Loss of the bound, in nats, that a removal may cost.

    Returns
    -------
    GaussianMixtureModel
        A model with one component less, or the same model. After a removal others may follow, with
        a new posterior.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import (
    ...     GaussianMixtureModel, MixturePrior, Potentials, prune_components)
    >>> from sksvae.inference import FixedPointSettings
    >>> prior = MixturePrior.symmetric(2, 0.5, torch.zeros(1), 1.0, torch.eye(1), 1.0)
    >>> model = GaussianMixtureModel(prior)
    >>> z = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    >>> evidence = Potentials(1e4 * z, torch.full_like(z, 1e4))
    >>> one_cluster = model.infer(evidence, model.expected_params(), FixedPointSettings())
    >>> prune_components(model, one_cluster).n_components
    1
    """
    n_components = model.n_components
    if n_components == 1:
        return model
    removals = [propose_removal(model, posterior, k, weight) for k in range(n_components)]
    best = max(range(n_components), key=lambda k: removals[k].gain)
    if not removals[best].gain > -slack:
        return model
    dtype = posterior.mean.dtype
    left = model.others(best)
    counts, *stats = (field[left].to(dtype) for field in removals[best].stats)
    smaller = model.select(left)
    weights, components = smaller.posterior
    smaller.posterior = MixturePrior(
        DirichletParams(weights.concentration + counts),
        natural_step(_NIW, components, NIWNatural(*stats), 1.0),
    )
    return smaller


def _weighted_stats(
    posterior: Posterior, rows: Tensor | slice, weights: Tensor
) -> tuple[Tensor, ...]:
    """Statistics of rows with weights of their own, in double precision."""
    mean = posterior.mean[rows].double()
    second = posterior.covariance[rows].double() + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    counts = weights.sum(0)
    products = (weights.mT @ second.flatten(1)).unflatten(-1, second.shape[1:])
    return counts, -0.5 * products, weights.mT @ mean, -0.5 * counts, 0.5 * counts


def _double(params: MixturePrior) -> MixturePrior:
    return MixturePrior(
        DirichletParams(params.weights.concentration.double()),
        NIWParams(*(field.double() for field in params.components)),
    )


def _select(params: MixturePrior, components: Tensor) -> MixturePrior:
    return MixturePrior(
        DirichletParams(params.weights.concentration[components]),
        NIWParams(*(field[components] for field in params.components)),
    )


def _log_evidence(prior: MixturePrior, stats: tuple[Tensor, ...]) -> Tensor:
    """``log Z(eta_0 + s) - log Z(eta_0)`` of weights and components."""
    start = prior.weights.concentration
    weights = [_DIRICHLET.log_normalizer(DirichletNatural(c)) for c in (start + stats[0], start)]
    learned = natural_step(_NIW, prior.components, NIWNatural(*stats[1:]), 1.0)
    components = [
        _NIW.log_normalizer(_NIW.to_natural(params)).sum() for params in (learned, prior.components)
    ]
    return weights[0] - weights[1] + components[0] - components[1]
