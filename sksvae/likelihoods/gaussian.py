# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian observations with one noise variance per feature."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood
from .numerics import as_floating, check_number, feature_variances, saturate


@dataclass(frozen=True)
class GaussianLikelihood(Likelihood):
    """Gaussian noise around the decoder output, with a variance learned per feature.

    x_d ~ N(mean_d, min_variance + exp(log_variance_d)): the decoder gives the mean, and
    log_variance is learned, the same for all rows.

    Parameters
    ----------
    noise_variance : float or None, default=None
        A number fixes the variance of every feature, without the floor; None learns it. In the
        units in which X arrives here: for standardised X, the share of a feature's variance.
    min_variance : float, default=1e-4
        Floor of a learned variance, in the same units. At the default the noise can fall to 1 % of
        a feature's standard deviation. Without a floor a constant column, or a network that
        interpolates the data, drives the density to infinity.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import GaussianLikelihood
    >>> likelihood = GaussianLikelihood(noise_variance=0.25)
    >>> outputs = torch.zeros(4, 1, 2)
    >>> likelihood.log_prob(torch.full((4, 2), 0.5), outputs, {})[0]
    tensor([-0.7258, -0.7258])
    """

    name: ClassVar[str] = "gaussian"
    n_outputs: ClassVar[int] = 1
    domain: ClassVar[str] = "finite real numbers"
    standardizes: ClassVar[bool] = True

    noise_variance: float | None = None
    _: KW_ONLY
    min_variance: float = 1e-4

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.noise_variance is not None:
            check_number(self, "noise_variance")
        check_number(self, "min_variance")

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return np.isfinite(X)

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return X."""
        return as_floating(X)

    def init_params(
        self, working: Tensor | None, n_features: int, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return ``{"log_variance": ...}``, or nothing for a fixed variance."""
        if self.noise_variance is not None:
            return {}
        return {"log_variance": initial_log_variance(working, n_features, dtype, self.min_variance)}

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        (mean,) = self._unbind(outputs)
        return normal_log_density(x, mean, self._shared_variance(mean, params))

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        return draw_normal(self.mean(outputs, params), self.variance(outputs, params), generator)

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the output."""
        return self._unbind(outputs)[0]

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the noise variance, the same for all rows."""
        (mean,) = self._unbind(outputs)
        return self._shared_variance(mean, params).expand_as(mean)

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return 1 / variance."""
        (mean,) = self._unbind(outputs)
        return (1 / self._shared_variance(mean, params)).expand_as(mean)

    def _shared_variance(self, mean: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the variance before it is spread over rows: of shape (n_features,) or ()."""
        if self.noise_variance is not None:
            return mean.new_tensor(self.noise_variance)
        return floored_variance(params["log_variance"], self.min_variance)


def floored_variance(log_variance: Tensor, min_variance: float) -> Tensor:
    """Return min_variance + exp(log_variance): smooth, unlike a clamp, and safe from overflow."""
    return min_variance + saturate(log_variance).exp()


def initial_log_variance(
    working: Tensor | None, n_features: int, dtype: torch.dtype, min_variance: float
) -> Tensor:
    """Return log-variances that start the noise at the variance of the columns of `working`."""
    variances = feature_variances(working, n_features, dtype)
    return (variances - min_variance).clamp_min(min_variance).log()


def normal_log_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return log N(x | mean, variance)."""
    constant = -0.5 * (math.log(2 * math.pi) + variance.log())
    return torch.addcmul(constant, (x - mean).square(), -0.5 / variance)


def draw_normal(mean: Tensor, variance: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return one draw from N(mean, variance)."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + variance.sqrt() * noise
