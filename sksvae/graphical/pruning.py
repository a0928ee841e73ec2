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
    natural_step,
)
from sksvae.graphical.api import Posterior
from sksvae.graphical.mixture import GaussianMixtureModel, mixture_stats
from sksvae.graphical.mixture_prior import MixturePrior

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
    return _Ledger.of(model, posterior, weight).without(component)


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
    ledger = _Ledger.of(model, posterior, weight)
    removals = [ledger.without(k) for k in range(n_components)]
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


class _Ledger(NamedTuple):
    """What all removals from one mixture are computed from, in double precision."""

    model: GaussianMixtureModel
    responsibilities: Tensor
    logits: Tensor  # expected log joints
    mean: Tensor
    second_moment: Tensor
    weight: float
    prior: MixturePrior
    total: tuple[Tensor, ...]
    significant: float  # responsibilities above this count

    @classmethod
    def of(cls, model: GaussianMixtureModel, posterior: Posterior, weight: float) -> "_Ledger":
        fields = (
            posterior.responsibilities,
            model.expected_log_joint(posterior),
            posterior.mean,
            posterior.second_moment,
        )
        responsibilities, logits, mean, second_moment = (f.detach().double() for f in fields)
        prior = model.prior.double()
        total = mixture_stats(weight * responsibilities, mean, second_moment)
        significant = torch.finfo(posterior.mean.dtype).eps
        return cls(
            model, responsibilities, logits, mean, second_moment, weight, prior, total, significant
        )

    def without(self, component: int) -> Removal:
        rows = self.responsibilities[:, component] > self.significant
        before, logits = self.responsibilities[rows], self.logits[rows]
        logits[:, component] = -torch.inf
        after = logits.softmax(-1)
        entropy = torch.special.entr(after).sum() - torch.special.entr(before).sum()
        change = mixture_stats(
            self.weight * (after - before), self.mean[rows], self.second_moment[rows]
        )
        left = self.model.others(component)
        moved = tuple((old + new)[left] for old, new in zip(self.total, change, strict=True))
        gain = _log_evidence(self.prior.select(left), moved) - _log_evidence(self.prior, self.total)
        return Removal(float(gain + self.weight * entropy), change)


def _log_evidence(prior: MixturePrior, stats: tuple[Tensor, ...]) -> Tensor:
    """``log Z(eta_0 + s) - log Z(eta_0)`` of weights and components."""
    start = prior.weights.concentration
    weights = [_DIRICHLET.log_normalizer(DirichletNatural(c)) for c in (start + stats[0], start)]
    learned = natural_step(_NIW, prior.components, NIWNatural(*stats[1:]), 1.0)
    components = [
        _NIW.log_normalizer(_NIW.to_natural(params)).sum() for params in (learned, prior.components)
    ]
    return weights[0] - weights[1] + components[0] - components[1]
