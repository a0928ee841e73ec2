# SPDX-License-Identifier: BSD-3-Clause
"""Real observations with logistic noise."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from sksvae.likelihoods.base import Likelihood
from sksvae.likelihoods.numerics import as_floating, check_number, feature_variances, saturate


@dataclass(frozen=True)
class LogisticLikelihood(Likelihood):
    """Logistic noise around the decoder output, with a scale learned per feature.

    x_d ~ Logistic(location_d, min_scale + exp(log_scale_d)): the decoder gives the location, and
    log_scale is learned, the same for all rows. Its tails are exponential: outliers weigh less than
    under ``"gaussian"`` and more than under ``"student_t"``.

    Parameters
    ----------
    min_scale : float, default=1e-2
        Floor of the scale, in the units in which X arrives here: for standardised X, in standard
        deviations of the feature.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import LogisticLikelihood
    >>> params = {"log_scale": torch.tensor([0.0])}
    >>> LogisticLikelihood().log_prob(torch.tensor([[0.0]]), torch.zeros(1, 1, 1), params)
    tensor([[-1.3962]])
    """

    name: ClassVar[str] = "logistic"
    n_outputs: ClassVar[int] = 1
    domain: ClassVar[str] = "finite real numbers"
    standardizes: ClassVar[bool] = True

    _: KW_ONLY
    min_scale: float = 1e-2

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_number(self, "min_scale")

    # ---- the data ----

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return np.isfinite(X)

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return X."""
        return as_floating(X)

    # ---- what is learned ----

    def init_params(
        self, working: Tensor | None, n_features: int, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return ``{"log_scale": ...}``: the variance is pi ** 2 / 3 times scale ** 2."""
        scale = feature_variances(working, n_features, dtype).sqrt() * (math.sqrt(3) / math.pi)
        return {"log_scale": (scale - self.min_scale).clamp_min(self.min_scale).log()}

    def _scale(self, params: dict[str, Tensor]) -> Tensor:
        return self.min_scale + saturate(params["log_scale"]).exp()

    # ---- the distribution ----

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        (location,) = self._unbind(outputs)
        scale = self._scale(params)
        z = (x - location) / scale
        return -z - 2 * softplus(-z) - scale.log()

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        (location,) = self._unbind(outputs)
        like = {"dtype": location.dtype, "device": location.device}
        # In (0, 1]: a draw of exactly one would be at infinity.
        uniform = 1 - torch.rand(location.shape, generator=generator, **like)
        uniform = uniform.clamp_max(1 - torch.finfo(location.dtype).eps / 2)
        return location + self._scale(params) * torch.logit(uniform)

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the output."""
        return self._unbind(outputs)[0]

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return pi ** 2 / 3 times scale ** 2, the same for all rows."""
        variance = math.pi**2 / 3 * self._scale(params).square()
        return variance.expand_as(self._unbind(outputs)[0])

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return 1 / (3 scale ** 2), the Fisher information of the location."""
        precision = 1 / (3 * self._scale(params).square())
        return precision.expand_as(self._unbind(outputs)[0])
