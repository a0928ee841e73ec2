# SPDX-License-Identifier: BSD-3-Clause
"""The standard normal prior of a plain VAE ([P], example 1): nothing to learn, exact inference."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sksvae.graphical.api import GraphicalModel, Posterior, Potentials
from sksvae.inference import FixedPointSettings


class StandardNormalModel(GraphicalModel):
    """``z ~ N(0, I)``.

    The posterior is diagonal: ``J = R + I``, ``h = r``.

    Parameters
    ----------
    latent_dim : int
        Dimension of z.
    dtype : torch.dtype, default=torch.float64
        Type of draws.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import Potentials, StandardNormalModel
    >>> from sksvae.inference import FixedPointSettings
    >>> model = StandardNormalModel(1)
    >>> evidence = Potentials(torch.tensor([[3.0]]), torch.tensor([[2.0]]))
    >>> model.infer(evidence, (), FixedPointSettings()).mean
    tensor([[1.]])
    """

    def __init__(self, latent_dim: int, dtype: torch.dtype = torch.float64) -> None:
        self.latent_dim = latent_dim
        self.dtype = dtype

    def expected_params(self) -> tuple[Tensor, ...]:
        """Return nothing: the prior is fixed."""
        return ()

    def infer(
        self, potentials: Potentials, params: tuple[Tensor, ...], settings: FixedPointSettings
    ) -> Posterior:
        """Exact posterior of each row; ``params`` and ``settings`` are not used."""
        r, R = potentials
        variance = 1.0 / (R + 1.0)
        mean = r * variance
        kl = 0.5 * (torch.addcmul(variance - 1.0, mean, mean) - variance.log()).sum(-1)
        n_rows = r.shape[0]
        return Posterior(
            mean=mean,
            covariance=torch.diag_embed(variance),
            root=torch.diag_embed(variance.sqrt()),
            responsibilities=r.new_ones(n_rows, 1),
            local_kl=kl,
            n_updates=torch.ones(n_rows, dtype=torch.long, device=r.device),
            converged=torch.ones(n_rows, dtype=torch.bool, device=r.device),
        )

    def prior_kl(self) -> Tensor:
        """Zero."""
        return torch.zeros((), dtype=self.dtype)

    def natural_step(self, gradient: Sequence[Tensor], step_size: float) -> None:
        """Do nothing."""

    def total_stats(self, posterior: Posterior) -> tuple[Tensor, ...]:
        """Return nothing: there is nothing to learn."""
        return ()

    def coordinate_update(self, total_stats: Sequence[Tensor]) -> None:
        """Do nothing."""

    def log_predictive(self, z: Tensor) -> Tensor:
        """Standard normal log density."""
        return -0.5 * z.square().sum(-1) - 0.5 * self.latent_dim * math.log(2 * math.pi)

    def latent_precision(self, responsibilities: Tensor) -> Tensor:
        """Return the identity for each row."""
        eye = torch.eye(
            self.latent_dim, dtype=responsibilities.dtype, device=responsibilities.device
        )
        return eye.expand(len(responsibilities), -1, -1)

    def sample(self, n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Standard normal draws, labels zero."""
        shape = (n_samples, self.latent_dim)
        z = torch.randn(shape, generator=generator, dtype=self.dtype, device=generator.device)
        return z, torch.zeros(n_samples, dtype=torch.long, device=generator.device)

    def state(self) -> dict[str, Tensor]:
        """Return the dimension, as an empty tensor of the working type."""
        return {"latent": torch.empty(0, self.latent_dim, dtype=self.dtype)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "StandardNormalModel":
        """Rebuild from `state`."""
        return cls(state["latent"].shape[1], state["latent"].dtype)
