# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian observations whose variance depends on the latents."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood
from .gaussian import draw_normal, floored_variance, initial_log_variance, normal_log_density
from .numerics import as_floating, check_number


@dataclass(frozen=True)
class GaussianNetworkLikelihood(Likelihood):
    """Gaussian noise whose mean and log-variance both come from the decoder.

    x_d ~ N(mean_d, min_variance + exp(log_variance_d)): the decoder gives both, for every row.
    More flexible than ``"gaussian"`` and harder to train: the network can explain data as noise.

    Parameters
    ----------
    min_variance : float, default=1e-4
        Floor of the variance, in the units in which X arrives here; see `GaussianLikelihood`.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import GaussianNetworkLikelihood
    >>> likelihood = GaussianNetworkLikelihood()
    >>> outputs = torch.tensor([[[1.0], [0.0]], [[1.0], [2.0]]])
    >>> likelihood.mean(outputs, {}).ravel(), likelihood.variance(outputs, {}).ravel()
    (tensor([1., 1.]), tensor([1.0001, 7.3892]))
    """

    name: ClassVar[str] = "gaussian_network"
    n_outputs: ClassVar[int] = 2
    domain: ClassVar[str] = "finite real numbers"
    standardizes: ClassVar[bool] = True

    min_variance: float = 1e-4

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_number(self, "min_variance")

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return np.isfinite(X)

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return X."""
        return as_floating(X)

    def init_outputs(
        self,
        n_features: int,
        working: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Return log-variances that start the noise as `GaussianLikelihood` starts it."""
        return initial_log_variance(working, n_features, dtype, self.min_variance)[None]

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        mean, log_variance = self._unbind(outputs)
        return normal_log_density(x, mean, floored_variance(log_variance, self.min_variance))

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        return draw_normal(self.mean(outputs, params), self.variance(outputs, params), generator)

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the first output."""
        return self._unbind(outputs)[0]

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the floor plus the exponential of the second output."""
        return floored_variance(self._unbind(outputs)[1], self.min_variance)

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return 1 / variance."""
        return 1 / self.variance(outputs, params)
