# SPDX-License-Identifier: BSD-3-Clause
"""Natural gradients through expected statistics.

Let ``q`` have natural parameters ``eta = f(u)``, expected statistics ``mu`` and let an objective
``L`` depend on ``q`` through ``mu`` only. The natural gradient in ``eta`` is ``dL/dmu``, and in
the unconstrained ``u`` it is the Jacobian-vector product of the inverse of ``f`` at ``eta`` with
``dL/dmu`` [1]_. No Fisher matrix appears. `natural_expected_stats` makes it what ``backward``
leaves in ``u.grad``, so that any optimiser may follow it.

How ``mu`` enters decides which gradient comes out. If local inference (say, of ``q(z)`` given
``mu`` and the encoder's potentials) is differentiated, the result is the unbiased natural
gradient of [1]_. If the caller runs local inference on ``mu.detach()``, the dependence of the
local posterior on ``mu`` is forgotten and the biased direction of [2]_ remains; without an
optimiser that step is `conjugate_step`, as in stochastic variational inference [3]_.

References
----------
.. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with structured
   discrete representations", NeurIPS 2023, section 5 and appendix F.
.. [2] Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural
   networks for structured representations and fast inference", NeurIPS 2016.
.. [3] Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", JMLR 2013.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sksvae.expfam.base import ExponentialFamily, NaturalT, StandardT, StatsT, Unconstrained


class _NaturalExpectedStats(torch.autograd.Function):
    """Expected statistics whose backward pass is the natural gradient."""

    @staticmethod
    def forward(ctx: Any, family: ExponentialFamily, *unconstrained: Tensor) -> tuple[Tensor, ...]:
        ctx.family = family
        ctx.save_for_backward(*unconstrained)
        return tuple(family.unconstrained_expected_stats(unconstrained))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        tangent = ctx.family.symmetrize(gradient)
        return None, *ctx.family.tangent_to_unconstrained(ctx.saved_tensors, tangent)


class _ValueWithGradient(torch.autograd.Function):
    """A number with a prescribed gradient with respect to expected statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        event_dims: tuple[int, ...],
        gradient: tuple[Tensor, ...],
        *mu: Tensor,
    ) -> Tensor:
        ctx.event_dims = event_dims
        ctx.save_for_backward(*gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        fields = zip(ctx.saved_tensors, ctx.event_dims, strict=True)
        scaled = (weight[(..., *(None,) * n_dims)] * field for field, n_dims in fields)
        return None, None, None, *scaled


def natural_expected_stats(
    family: ExponentialFamily[StandardT, NaturalT, StatsT], unconstrained: Unconstrained
) -> StatsT:
    """Compute expected statistics whose backward pass gives natural gradients.

    Parameters
    ----------
    family : ExponentialFamily
        The family of ``q``.
    unconstrained : tuple of Tensor
        Unconstrained parameters ``u``, as given by ``family.to_unconstrained``.

    Returns
    -------
    StatsT
        ``mu = E_q[t]``. After ``L(mu).backward()``, ``u.grad`` is the natural gradient of ``L``
        in the coordinates ``u``, not the ordinary one: the inverse Fisher matrix is applied.

    Notes
    -----
    The backward pass is ``family.tangent_to_unconstrained`` and cannot itself be differentiated.
    Every path from ``u`` to the objective has to pass through ``mu``.

    References
    ----------
    Bendekgey, Hope and Sudderth (2023), section 5 and appendix F.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Dirichlet, natural_expected_stats
    >>> u = torch.zeros(2, requires_grad=True)  # concentration (1, 1)
    >>> mu = natural_expected_stats(Dirichlet(), (u,))
    >>> counts = torch.tensor([3.0, 5.0])
    >>> (counts * mu.log_probabilities).sum().backward()
    >>> u.grad  # d log(a) = d a / a with a = 1: the counts themselves
    tensor([3., 5.])
    """
    fields = _NaturalExpectedStats.apply(family, *unconstrained)
    return cast(StatsT, family.stats_type(*fields))


def kl_with_natural_gradient(
    family: ExponentialFamily[StandardT, NaturalT, StatsT],
    unconstrained: Unconstrained,
    mu: StatsT,
    natural_prior: NaturalT,
) -> Tensor:
    """Divergence of ``q`` from a fixed prior, with its gradient entering through ``mu``.

    Parameters
    ----------
    family : ExponentialFamily
        The family of ``q`` and of the prior.
    unconstrained : tuple of Tensor
        Unconstrained parameters of ``q``; no gradient flows to them from here directly.
    mu : StatsT
        `natural_expected_stats` at ``unconstrained``.
    natural_prior : NaturalT
        Natural parameters ``eta_0`` of the prior, which get no gradient. Their batch shape
        broadcasts to that of ``q``.

    Returns
    -------
    Tensor of shape (...)
        ``KL(q || prior)``, exactly. Its gradient with respect to ``mu`` is ``eta - eta_0``.

    References
    ----------
    Bendekgey, Hope and Sudderth (2023), appendix F.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import Dirichlet, DirichletNatural
    >>> from sksvae.expfam import kl_with_natural_gradient, natural_expected_stats
    >>> u = torch.tensor([2.0, 4.0]).log().requires_grad_()
    >>> mu = natural_expected_stats(Dirichlet(), (u,))
    >>> prior = DirichletNatural(torch.ones(2))
    >>> kl_with_natural_gradient(Dirichlet(), (u,), mu, prior).backward()
    >>> u.grad * u.detach().exp()  # eta - eta_0
    tensor([1., 3.])
    """
    with torch.no_grad():
        natural = family.to_natural(family.from_unconstrained(unconstrained))
        difference = tuple(q - p for q, p in zip(natural, natural_prior, strict=True))
        value = family.unconstrained_kl(unconstrained, natural_prior)
    return cast(Tensor, _ValueWithGradient.apply(value, family.event_dims, difference, *mu))


def conjugate_step(
    natural: NaturalT, natural_prior: NaturalT, total_stats: NaturalT, step_size: float
) -> NaturalT:
    """Move natural parameters towards the conjugate posterior given local statistics.

    Parameters
    ----------
    natural : NaturalT
        Current natural parameters ``eta``.
    natural_prior : NaturalT
        Natural parameters ``eta_0`` of the prior.
    total_stats : NaturalT
        What all observations add to the prior in a conjugate update, such as expected counts
        for a Dirichlet; scaled up to the full data set when it comes from a minibatch.
    step_size : float
        ``rho`` in [0, 1]; 1 is the exact update of coordinate ascent.

    Returns
    -------
    NaturalT
        ``(1 - rho) eta + rho (eta_0 + total_stats)``, which is valid for every allowed ``rho``.

    Raises
    ------
    ValueError
        If ``step_size`` is outside [0, 1].

    Notes
    -----
    With expectations under the local posterior as ``total_stats`` this is the step of
    stochastic variational inference, and in a structured VAE the biased natural gradient step of
    [J]: it ignores that the local posterior, hence the likelihood of the decoder, moves too.

    References
    ----------
    [J] Johnson et al. (2016), section 4; Hoffman et al. (2013), section 2.4.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import DirichletNatural, conjugate_step
    >>> prior = DirichletNatural(torch.ones(2))
    >>> conjugate_step(prior, prior, DirichletNatural(torch.tensor([4.0, 0.0])), 0.5)
    DirichletNatural(concentration=tensor([3., 1.]))
    """
    if not 0.0 <= step_size <= 1.0:
        raise ValueError(f"step_size must be in [0, 1], got {step_size!r}.")
    fields = zip(natural, natural_prior, total_stats, strict=True)
    moved = ((1.0 - step_size) * eta + step_size * (eta_0 + t) for eta, eta_0, t in fields)
    return type(natural)(*moved)
