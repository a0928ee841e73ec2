# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian mixture over latents, with mean field inference q(z) q(k) per row."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import add
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
    step_towards,
)
from sksvae.expfam.numerics import log_det, symmetrize
from sksvae.graphical.api import GraphicalModel, Posterior, Potentials
from sksvae.graphical.mixture_prior import MixturePrior
from sksvae.inference import (
    FixedPoint,
    FixedPointSettings,
    GaussianMoments,
    attach_implicit_gradient,
    gaussian_moments,
    solve_fixed_point,
)

_LOG_2PI = math.log(2 * math.pi)
_NIW = NIW()
_DIRICHLET = Dirichlet()


class _Coupling(NamedTuple):
    """``phi_k(z) = E[log pi_k N(z | mu_k, Sigma_k)] = c_k + h_k'z - z'J_k z/2``."""

    constant: Tensor  # c, (K,)
    precision_mean: Tensor  # h, (K, D)
    precision: Tensor  # J, (K, D * D)

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> "_Coupling":
        log_weights, precision, precision_mean, quadratic, log_det_precision = params
        dim = precision.shape[-1]
        constant = log_weights + 0.5 * (log_det_precision - quadratic - dim * _LOG_2PI)
        return cls(constant, precision_mean, symmetrize(precision).flatten(1))

    def to_gaussian(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``Theta' mu_k``: what q(k) adds to the natural parameters of q(z)."""
        h = weights @ self.precision_mean
        return h, (weights @ self.precision).view(*h.shape, h.shape[-1])

    def logits(self, mean: Tensor, second_moment: Tensor) -> Tensor:
        """``omega_k``, that is ``c_k + h_k'E[z] - tr(J_k E[zz'])/2``, of shape (n_rows, K)."""
        linear = torch.addmm(self.constant, mean, self.precision_mean.mT)
        return torch.addmm(linear, second_moment.flatten(1), self.precision.mT, alpha=-0.5)


def _moments(potentials: Potentials, added: tuple[Tensor, Tensor]) -> GaussianMoments:
    """``q(z)`` given what q(k) adds, see `_Coupling.to_gaussian`."""
    h, J = added
    return gaussian_moments(
        potentials.precision_mean + h, torch.diag_embed(potentials.precision) + J
    )


def _block_update(
    potentials: Potentials, coupling: _Coupling
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """One round for all rows or some: q(z) given q(k), then q(k) given q(z)."""

    def update(point: Tensor, rows: Tensor | None = None) -> Tensor:
        given = potentials if rows is None else Potentials(*(field[rows] for field in potentials))
        moments = _moments(given, coupling.to_gaussian(point))
        return coupling.logits(moments.mean, moments.second_moment).softmax(-1)

    return update


class GaussianMixtureModel(GraphicalModel):
    """``k ~ Cat(pi)``, ``z | k ~ N(mu_k, Sigma_k)`` with conjugate q(theta).

    ``q(theta) = Dir(pi) prod_k NIW(mu_k, Sigma_k)`` ([J], [P] example 2).

    Parameters
    ----------
    prior : MixturePrior
        Prior over the parameters.
    posterior : MixturePrior or None, default=None
        ``q(theta)``; starts at the prior.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import GaussianMixtureModel, MixturePrior
    >>> prior = MixturePrior.symmetric(2, 1.0, torch.zeros(3), 1.0, torch.eye(3), 3.0)
    >>> model = GaussianMixtureModel(prior)
    >>> model.prior_kl().abs() < 1e-6
    tensor(True)
    """

    def __init__(self, prior: MixturePrior, posterior: MixturePrior | None = None) -> None:
        self.prior = prior
        self.posterior = prior if posterior is None else posterior
        self.latent_dim = prior.components.mean.shape[-1]

    @cached_property
    def _natural_prior(self) -> tuple[DirichletNatural, NIWNatural]:
        return _DIRICHLET.to_natural(self.prior.weights), _NIW.to_natural(self.prior.components)

    @property
    def n_components(self) -> int:
        """Number of components, used or not."""
        return self.prior.weights.concentration.shape[0]

    def expected_params(self) -> tuple[Tensor, ...]:
        """``E log pi`` and the expected statistics of the components, as leaves."""
        weights = _DIRICHLET.standard_expected_stats(self.posterior.weights)
        components = _NIW.standard_expected_stats(self.posterior.components)
        return tuple(field.detach().requires_grad_() for field in (*weights, *components))

    def infer(
        self, potentials: Potentials, params: tuple[Tensor, ...], settings: FixedPointSettings
    ) -> Posterior:
        """Mean field ``q(z) q(k)`` of each row, see `sksvae.inference.mean_field`."""
        coupling = _Coupling.from_params(params)
        differentiate = self.n_components > 1 and torch.is_grad_enabled()
        if differentiate and settings.gradient == "unrolled":
            update = _block_update(potentials, coupling)
            point, end = _unrolled(update, self._start(potentials, coupling), settings)
        else:
            end = self._fixed_point(potentials, coupling, settings)
            point = end.point
            if differentiate:
                moments = _moments(potentials, coupling.to_gaussian(point))
                fisher, curvature = _adjoint_operators(coupling, moments, point)
                following = coupling.logits(moments.mean, moments.second_moment).softmax(-1)
                point = attach_implicit_gradient(following, end, fisher, curvature, settings)
        added = coupling.to_gaussian(point)
        moments = _moments(potentials, added)
        return Posterior(
            mean=moments.mean,
            covariance=moments.covariance,
            root=moments.root,
            responsibilities=point,
            local_kl=_local_kl(potentials, moments, added, point, coupling.constant),
            n_updates=end.n_updates,
            converged=end.converged,
        )

    @torch.no_grad()
    def responsibilities(self, potentials: Potentials, settings: FixedPointSettings) -> Tensor:
        """``q(k)`` of each row alone: that of `infer`, at half its cost.

        Parameters
        ----------
        potentials : Potentials
            Evidence for each row.
        settings : FixedPointSettings
            How block updates are iterated.

        Returns
        -------
        Tensor of shape (n_rows, n_components)
            Without a gradient.
        """
        coupling = _Coupling.from_params(self.expected_params())
        return self._fixed_point(potentials, coupling, settings).point

    @torch.no_grad()
    def _fixed_point(
        self, potentials: Potentials, coupling: _Coupling, settings: FixedPointSettings
    ) -> FixedPoint:
        if self.n_components == 1:
            return _sure(potentials.precision_mean)
        update = _block_update(potentials, coupling)
        start = self._start(potentials, coupling)
        return solve_fixed_point(update, start, settings.max_updates, settings.tol)

    def expected_log_joint(self, posterior: Posterior) -> Tensor:
        """``E_q[log pi_k N(z | mu_k, Sigma_k)]`` of each row and component.

        Parameters
        ----------
        posterior : Posterior
            Of the rows.

        Returns
        -------
        Tensor of shape (n_rows, n_components)
            Expectation over q(z) and q(theta), without a gradient.
        """
        with torch.no_grad():
            return log_joint(self.expected_params(), posterior.mean, posterior.second_moment)

    @torch.no_grad()
    def _start(self, potentials: Potentials, coupling: _Coupling) -> Tensor:
        """First q(k): the evidence of z under one Gaussian with the moments of the mixture.

        It needs one factorisation per row and, unlike a start from the potentials alone, stays
        sensible where they say little. Any fixed rule makes equal rows start equally.
        """
        weights, means, covariances = self.point_parameters()
        mean = weights @ means
        deviation = means - mean
        covariance = (weights @ covariances.flatten(1)).view_as(covariances[0])
        covariance = covariance + (weights[:, None] * deviation).mT @ deviation
        precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        moments = _moments(potentials, (precision @ mean, precision))
        return coupling.logits(moments.mean, moments.second_moment).softmax(-1)

    def point_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Point estimates of the parameters, as `BayesianGaussianMixture` reports them.

        Returns
        -------
        weights : Tensor of shape (n_components,)
            Posterior mean.
        means : Tensor of shape (n_components, latent_dim)
            Posterior mean.
        covariances : Tensor of shape (n_components, latent_dim, latent_dim)
            ``S / nu``: the inverse of the posterior mean of the precision.
        """
        concentration = self.posterior.weights.concentration
        scale, mean, _, dof = self.posterior.components
        return concentration / concentration.sum(), mean, scale / dof[:, None, None]

    def prior_kl(self) -> Tensor:
        """``KL(q(theta) || p(theta))``, in nats."""
        weights = _DIRICHLET.standard_kl(self.posterior.weights, self.prior.weights)
        components = _NIW.standard_kl(self.posterior.components, self.prior.components)
        return weights + components.sum()

    def natural_step(self, gradient: Sequence[Tensor], step_size: float) -> None:
        """Step along ``gradient + eta_0 - eta``; size 1 is a coordinate update of [J]."""
        weights, components = self._natural_prior
        to_weights = DirichletNatural(*map(add, weights, gradient[:1]))
        to_components = NIWNatural(*map(add, components, gradient[1:]))
        self.posterior = MixturePrior(
            step_towards(_DIRICHLET, self.posterior.weights, to_weights, step_size),
            step_towards(_NIW, self.posterior.components, to_components, step_size),
        )

    def total_stats(self, posterior: Posterior) -> tuple[Tensor, ...]:
        """What the rows add to the natural parameters, in the order of `expected_params`."""
        return mixture_stats(
            *(
                field.detach()
                for field in (posterior.responsibilities, posterior.mean, posterior.second_moment)
            )
        )

    def coordinate_update(self, total_stats: Sequence[Tensor]) -> None:
        """Posterior of theta given the statistics of all rows, exactly."""
        self.posterior = MixturePrior(
            natural_step(_DIRICHLET, self.prior.weights, DirichletNatural(*total_stats[:1]), 1.0),
            natural_step(_NIW, self.prior.components, NIWNatural(*total_stats[1:]), 1.0),
        )

    def log_predictive(self, z: Tensor) -> Tensor:
        """Mixture of multivariate Student-t, the exact predictive of each NIW."""
        scale, mean, mean_precision, dof = self.posterior.components
        dim = self.latent_dim
        t_dof = dof - dim + 1
        shape = scale * ((mean_precision + 1) / (mean_precision * t_dof))[:, None, None]
        factor = torch.linalg.cholesky(shape)
        whitener = torch.linalg.solve_triangular(
            factor, torch.eye(dim, dtype=z.dtype, device=z.device).expand_as(factor), upper=False
        )
        centred = z.unsqueeze(-2) - mean
        distance = torch.einsum("kij,...kj->...ki", whitener, centred).square().sum(-1)
        # At 1e6 rows the difference of the two would be off by 0.2 nats in float32.
        half_dof = t_dof.double() / 2
        log_ratio = torch.lgamma(half_dof + dim / 2) - torch.lgamma(half_dof)
        constant = (
            log_ratio.to(z.dtype) - 0.5 * dim * torch.log(t_dof * math.pi) - 0.5 * log_det(factor)
        )
        log_density = constant - 0.5 * (t_dof + dim) * torch.log1p(distance / t_dof)
        log_weights = self.point_parameters()[0].log()
        return torch.logsumexp(log_weights + log_density, -1)

    @torch.no_grad()
    def latent_precision(self, responsibilities: Tensor) -> Tensor:
        """``sum_k q(k) E[Sigma_k^-1]`` of each row."""
        return _Coupling.from_params(self.expected_params()).to_gaussian(responsibilities)[1]

    def sample(self, n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw from the mixture with its point estimates."""
        weights, means, covariances = self.point_parameters()
        labels = torch.multinomial(weights, n_samples, replacement=True, generator=generator)
        noise = torch.randn(
            n_samples,
            self.latent_dim,
            generator=generator,
            dtype=means.dtype,
            device=generator.device,
        )
        factor = torch.linalg.cholesky(covariances)
        return means[labels] + (factor[labels] @ noise.unsqueeze(-1)).squeeze(-1), labels

    def others(self, component: int) -> Tensor:
        """Indices of all components but one.

        Parameters
        ----------
        component : int
            The one to leave out.

        Returns
        -------
        Tensor of shape (n_components - 1,)
            In order, for `select`.
        """
        device = self.prior.weights.concentration.device
        return torch.tensor([k for k in range(self.n_components) if k != component], device=device)

    def select(self, components: Tensor) -> "GaussianMixtureModel":
        """Model with some of the components, in the given order.

        Parameters
        ----------
        components : Tensor of shape (n_selected,)
            Indices.

        Returns
        -------
        GaussianMixtureModel
            A new model; weights renormalise by themselves.
        """
        return GaussianMixtureModel(
            self.prior.select(components), self.posterior.select(components)
        )

    def state(self) -> dict[str, Tensor]:
        """Prior and posterior parameters by name."""
        state = {}
        for name, params in (("prior", self.prior), ("posterior", self.posterior)):
            state[f"{name}.concentration"] = params.weights.concentration
            for field, value in params.components._asdict().items():
                state[f"{name}.{field}"] = value
        return state

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "GaussianMixtureModel":
        """Rebuild from `state`."""

        def read(name: str) -> MixturePrior:
            fields = (state[f"{name}.{field}"] for field in NIWParams._fields)
            concentration = state[f"{name}.concentration"]
            return MixturePrior(DirichletParams(concentration), NIWParams(*fields))

        return cls(read("prior"), read("posterior"))


def mixture_stats(weights: Tensor, mean: Tensor, second_moment: Tensor) -> tuple[Tensor, ...]:
    """Statistics of weights and components, summed over rows.

    Parameters
    ----------
    weights : Tensor of shape (n_rows, n_components)
        How much each row counts for each component.
    mean : Tensor of shape (n_rows, latent_dim)
        ``E[z]``.
    second_moment : Tensor of shape (n_rows, latent_dim, latent_dim)
        ``E[zz']``.

    Returns
    -------
    tuple of Tensor
        In the order of `GaussianMixtureModel.expected_params`, for the natural parameters.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical.mixture import mixture_stats
    >>> mixture_stats(torch.ones(3, 1), torch.ones(3, 2), torch.ones(3, 2, 2))[2]
    tensor([[3., 3.]])
    """
    counts = weights.sum(0)
    products = (weights.mT @ second_moment.flatten(1)).unflatten(-1, second_moment.shape[1:])
    return counts, -0.5 * products, weights.mT @ mean, -0.5 * counts, 0.5 * counts


def log_joint(params: tuple[Tensor, ...], mean: Tensor, second_moment: Tensor) -> Tensor:
    """``E[log pi_k N(z | mu_k, Sigma_k)]`` over q(theta) and a distribution of z.

    Parameters
    ----------
    params : tuple of Tensor
        As from `GaussianMixtureModel.expected_params`.
    mean : Tensor of shape (n_rows, latent_dim)
        ``E[z]``.
    second_moment : Tensor of shape (n_rows, latent_dim, latent_dim)
        ``E[zz']``.

    Returns
    -------
    Tensor of shape (n_rows, n_components)
        For each row and component.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical.mixture import log_joint
    >>> one = torch.ones(1)
    >>> standard = torch.zeros(1), torch.eye(1)[None], torch.zeros(1, 1), 0 * one, 0 * one
    >>> log_joint(standard, torch.zeros(1, 1), torch.zeros(1, 1, 1))  # -log(2 pi) / 2
    tensor([[-0.9189]])
    """
    return _Coupling.from_params(params).logits(mean, second_moment)


def _unrolled(update, start: Tensor, settings: FixedPointSettings) -> tuple[Tensor, FixedPoint]:
    """Differentiate through all rounds, for as many as the slowest row needs."""
    end = solve_fixed_point(update, start, settings.max_updates, settings.tol)
    point = start
    for _ in range(int(end.n_updates.max())):
        point = update(point)
    return point, end


def _sure(like: Tensor) -> FixedPoint:
    """Posterior of the only component there is."""
    n_rows = like.shape[0]
    return FixedPoint(
        like.new_ones(n_rows, 1),
        torch.zeros(n_rows, dtype=torch.long, device=like.device),
        torch.ones(n_rows, dtype=torch.bool, device=like.device),
    )


def _adjoint_operators(coupling: _Coupling, moments: GaussianMoments, point: Tensor):
    """Products with ``F_k`` and ``S = Theta F_z Theta'`` at a fixed point, in closed form.

    A change ``(dh, dJ)`` of the natural parameters of q(z) moves its moments by
    ``dm = V (dh - dJ m)`` and ``dV = -V dJ V``.
    """
    # Without the constants its logits are linear.
    theta = _Coupling(torch.zeros_like(coupling.constant), *(f.detach() for f in coupling[1:]))
    all_means, all_covariances = moments.mean.detach(), moments.covariance.detach()

    def fisher(v: Tensor, rows: Tensor | None) -> Tensor:
        weights = point if rows is None else point[rows]
        weighted = weights * v
        return torch.addcmul(weighted, weights, weighted.sum(-1, keepdim=True), value=-1.0)

    def curvature(v: Tensor, rows: Tensor | None) -> Tensor:
        mean, covariance = all_means, all_covariances
        if rows is not None:
            mean, covariance = mean[rows], covariance[rows]
        d_h, d_J = theta.to_gaussian(v)
        column = mean.unsqueeze(-1)
        d_mean = covariance @ torch.baddbmm(d_h.unsqueeze(-1), d_J, column, alpha=-1.0)
        # Not made symmetric, since it meets symmetric matrices only.
        d_second = torch.baddbmm(
            d_mean * column.mT, covariance @ d_J, covariance, beta=2.0, alpha=-1.0
        )
        return theta.logits(d_mean.squeeze(-1), d_second)

    return fisher, curvature


def _local_kl(
    potentials: Potentials,
    moments: GaussianMoments,
    added: tuple[Tensor, Tensor],
    point: Tensor,
    constant: Tensor,
) -> Tensor:
    """``E log q(z) + E log q(k) - sum_k q(k) E phi_k(z)``, per row.

    ``sum_k q(k) phi_k(z)`` is ``h'z - z'Jz/2`` and a constant, where ``(h, J)`` is what q(k) adds
    to the potentials. The precision of q(z) is ``J + diag(R)``, so ``tr(J V) = D - tr(diag(R) V)``.
    """
    h, J = added
    mean, variance = moments.mean, moments.root.square().sum(-1)
    column = mean.unsqueeze(-1)
    slope = torch.baddbmm(h.unsqueeze(-1), J, column, beta=-1.0, alpha=0.5).squeeze(-1)
    gaussian = torch.addcmul(mean * slope, potentials.precision, variance, value=-0.5)
    # 0 log 0 = 0, with a finite gradient.
    log_point = point.clamp_min(torch.finfo(point.dtype).tiny).log()
    discrete = point * (log_point - constant)
    normalizer = 0.5 * (moments.log_det_precision - mean.shape[-1] * _LOG_2PI)
    return gaussian.sum(-1) + discrete.sum(-1) + normalizer
