# SPDX-License-Identifier: BSD-3-Clause
"""Real observations with outliers."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood
from .numerics import as_floating, check_number, feature_variances, saturate


@dataclass(frozen=True)
class StudentTLikelihood(Likelihood):
    """Student-t noise around the decoder output, with a scale learned per feature.

    x_d ~ t(dof, location_d, min_scale + exp(log_scale_d)): the decoder gives the location, and
    log_scale is learned, the same for all rows. Outliers weigh less than under ``"gaussian"``.

    Parameters
    ----------
    dof : float, default=4.0
        Degrees of freedom, greater than 2 so that the variance exists. It is not learned: few data
        sets say much about it, and 4 is a common choice for robust regression.
    min_scale : float, default=1e-2
        Floor of the scale, in the units in which X arrives here: for standardised X, in standard
        deviations of the feature. Without it a constant column drives the density to infinity.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import StudentTLikelihood
    >>> likelihood = StudentTLikelihood(dof=5)
    >>> params = likelihood.init_params(None, n_features=2, dtype=torch.float32)
    >>> likelihood.log_prob(torch.tensor([[0.0, 10.0]]), torch.zeros(1, 1, 2), params)
    tensor([[ -0.6220, -11.7628]])
    """

    name: ClassVar[str] = "student_t"
    n_outputs: ClassVar[int] = 1
    domain: ClassVar[str] = "finite real numbers"
    standardizes: ClassVar[bool] = True

    dof: float = 4.0
    _: KW_ONLY
    min_scale: float = 1e-2

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_number(self, "dof", above=2)
        check_number(self, "min_scale")

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return np.isfinite(X)

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return X."""
        return as_floating(X)

    def init_params(
        self, working: Tensor | None, n_features: int, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return ``{"log_scale": ...}``."""
        # scale ** 2 is half the variance at dof = 4. The exact factor (dof - 2) / dof would start
        # at nearly zero for dof near 2, where the sample variance says little anyway.
        scale = (feature_variances(working, n_features, dtype) / 2).sqrt()
        return {"log_scale": (scale - self.min_scale).clamp_min(self.min_scale).log()}

    def _scale(self, params: dict[str, Tensor]) -> Tensor:
        """Return the scales, of shape (n_features,)."""
        return self.min_scale + saturate(params["log_scale"]).exp()

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        (location,) = self._unbind(outputs)
        scale, dof = self._scale(params), self.dof
        constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
        tail = torch.log1p(((x - location) / scale).square() / dof)
        return constant - scale.log() - (dof + 1) / 2 * tail

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        (location,) = self._unbind(outputs)
        normal = torch.randn(
            location.shape, generator=generator, dtype=location.dtype, device=location.device
        )
        # A normal over the root of a Gamma(dof/2, dof/2); see `GammaLikelihood` for the function.
        half = torch.full_like(location, self.dof / 2)
        mixing = torch._standard_gamma(half, generator=generator) / half
        return location + self._scale(params) * normal / mixing.sqrt()

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the output."""
        return self._unbind(outputs)[0]

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return scale ** 2 * dof / (dof - 2), the same for all rows."""
        variance = self._scale(params).square() * (self.dof / (self.dof - 2))
        return variance.expand_as(self._unbind(outputs)[0])

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return (dof + 1) / (dof + 3) / scale ** 2."""
        precision = (self.dof + 1) / (self.dof + 3) / self._scale(params).square()
        return precision.expand_as(self._unbind(outputs)[0])
