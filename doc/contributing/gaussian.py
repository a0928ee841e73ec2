# SPDX-License-Identifier: BSD-3-Clause
"""One Gaussian over latents, with unknown mean and covariance."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam import NIW, NIWParams
from sksvae.expfam.numerics import cholesky, log_det, standard_normal, symmetrize
from sksvae.graphical.api import GraphicalModel, Posterior, Potentials
from sksvae.graphical.conjugate_parts import ConjugateParts
from sksvae.inference import FixedPointSettings, gaussian_moments

_LOG_2PI = math.log(2 * math.pi)


class GaussianPrior(NamedTuple):
    """Conjugate distribution over the parameters.

    Parameters
    ----------
    latent : NIWParams
        Of the mean and covariance of the latents.
    """

    latent: NIWParams


class GaussianModel(ConjugateParts[Posterior], GraphicalModel):
    """``z ~ N(mu, Sigma)`` with ``q(theta) = NIW(mu, Sigma)``; inference is exact.

    Parameters
    ----------
    prior : GaussianPrior
        Prior over the parameters.
    posterior : GaussianPrior or None, default=None
        ``q(theta)``; starts at the prior.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import NIWParams
    >>> from sksvae.graphical import GaussianModel, GaussianPrior, Potentials
    >>> from sksvae.inference import FixedPointSettings
    >>> one = torch.ones(1)
    >>> prior = GaussianPrior(NIWParams(torch.eye(1), 0 * one, one[0], one[0]))
    >>> model, evidence = GaussianModel(prior), Potentials(2 * one[None], one[None])
    >>> model.infer(evidence, model.expected_params(), FixedPointSettings()).mean.detach().round()
    tensor([[1.]])
    """

    parameters_type = GaussianPrior
    families = (NIW(),)

    def __init__(self, prior: GaussianPrior, posterior: GaussianPrior | None = None) -> None:
        super().__init__(prior, posterior)
        self.latent_dim = prior.latent.mean.shape[-1]

    # Inference -----------------------------------------------------------------------------------

    def infer(
        self, potentials: Potentials, params: tuple[Tensor, ...], settings: FixedPointSettings
    ) -> Posterior:
        """Exact posterior of each row: no updates, so ``settings`` is not read."""
        (r, R), (precision, precision_mean, quadratic, log_det_precision) = potentials, params
        precision, n_rows, dim = symmetrize(precision), len(r), self.latent_dim
        moments = gaussian_moments(r + precision_mean, torch.diag_embed(R) + precision)
        # E_q log p(z | theta), and E_q log q(z)
        square = (precision * moments.second_moment).sum((-2, -1))
        log_prior = moments.mean @ precision_mean - 0.5 * square
        log_prior = log_prior + 0.5 * (log_det_precision - quadratic - dim * _LOG_2PI)
        negative_entropy = 0.5 * (moments.log_det_precision - dim * (1 + _LOG_2PI))
        return Posterior(
            mean=moments.mean,
            covariance=moments.covariance,
            root=moments.root,
            responsibilities=r.new_ones(n_rows, 1),
            local_kl=negative_entropy - log_prior,
            n_updates=torch.zeros(n_rows, dtype=torch.long, device=r.device),
            converged=torch.ones(n_rows, dtype=torch.bool, device=r.device),
        )

    @torch.no_grad()
    def latent_precision(self, responsibilities: Tensor) -> Tensor:
        """Return the expected precision, for each row."""
        precision, *_ = self.expected_params()
        return precision.expand(len(responsibilities), -1, -1)

    # Learning ------------------------------------------------------------------------------------

    @torch.no_grad()
    def total_stats(self, posterior: Posterior) -> tuple[Tensor, ...]:
        """What the rows add to the natural parameters, in the order of `expected_params`."""
        mean, n_rows = posterior.mean, len(posterior.mean)
        half = mean.new_tensor(0.5 * n_rows)
        return -0.5 * posterior.second_moment.sum(0), mean.sum(0), -half, half

    # Generation ----------------------------------------------------------------------------------

    def log_predictive(self, z: Tensor) -> Tensor:
        """Multivariate Student-t, the exact predictive of the normal inverse Wishart."""
        scale, mean, mean_precision, dof = self.posterior.latent
        dim, t_dof = self.latent_dim, dof - self.latent_dim + 1
        shape = scale * (mean_precision + 1) / (mean_precision * t_dof)
        factor = cholesky(shape, "scale")
        centred = (z - mean).unsqueeze(-1)
        distance = torch.linalg.solve_triangular(factor, centred, upper=False).square()
        ratio = torch.lgamma((t_dof + dim) / 2) - torch.lgamma(t_dof / 2)
        constant = ratio - 0.5 * (dim * torch.log(t_dof * math.pi) + log_det(factor))
        return constant - 0.5 * (t_dof + dim) * torch.log1p(distance.sum((-2, -1)) / t_dof)

    def sample(self, n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws with the point estimates ``m`` and ``S / nu``; labels are zero."""
        scale, mean, _, dof = self.posterior.latent
        noise = standard_normal((n_samples, self.latent_dim), mean, generator)
        z = mean + noise @ cholesky(scale / dof, "scale").mT
        return z, torch.zeros(n_samples, dtype=torch.long, device=z.device)
