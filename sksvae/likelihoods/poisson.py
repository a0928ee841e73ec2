# SPDX-License-Identifier: BSD-3-Clause
"""Counts."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood
from .numerics import as_floating, log_factorial, saturate


@dataclass(frozen=True)
class PoissonLikelihood(Likelihood):
    """Counts, with log-rates from the decoder.

    x_d ~ Poisson(exp(log_rate_d)). It has no parameters. Log-rates are limited smoothly beyond
    +-35 (`saturate`).

    Notes
    -----
    The log mass of a count x is a difference of terms of size x log x, so float32 keeps about
    three decimals of it at counts of a thousand; its gradient, x - rate, does not suffer.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import PoissonLikelihood
    >>> likelihood = PoissonLikelihood()
    >>> likelihood.log_prob(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 1, 2), {})
    tensor([[-1.0000, -1.6931]])
    """

    name: ClassVar[str] = "poisson"
    n_outputs: ClassVar[int] = 1
    domain: ClassVar[str] = "non-negative integers"
    standardizes: ClassVar[bool] = False

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return np.isfinite(X) & (X >= 0) & (X == np.floor(X))

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return log(x + 1/2): close to log x for large counts, -0.69 for zero."""
        return np.log(as_floating(X) + 0.5)

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        (log_rate,) = self._unbind(outputs)
        log_rate = saturate(log_rate)
        return torch.addcmul(-log_factorial(x), x, log_rate) - log_rate.exp()

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        return torch.poisson(self.mean(outputs, params), generator=generator)

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the rate."""
        return saturate(self._unbind(outputs)[0]).exp()

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the rate."""
        return self.mean(outputs, params)

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return the rate."""
        return self.mean(outputs, params)
