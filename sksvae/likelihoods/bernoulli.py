# SPDX-License-Identifier: BSD-3-Clause
"""Binary observations."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .base import Likelihood
from .numerics import as_floating


@dataclass(frozen=True)
class BernoulliLikelihood(Likelihood):
    """Binary features, with logits from the decoder.

    x_d ~ Bernoulli(sigmoid(logit_d)). It has no parameters.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import BernoulliLikelihood
    >>> likelihood = BernoulliLikelihood()
    >>> likelihood.log_prob(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1, 2), {})
    tensor([[-0.6931, -0.6931]])
    """

    name: ClassVar[str] = "bernoulli"
    n_outputs: ClassVar[int] = 1
    domain: ClassVar[str] = "the numbers 0 and 1"
    standardizes: ClassVar[bool] = False

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return (X == 0) | (X == 1)

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return the empirical logit log((x + 1/2) / (1 - x + 1/2)), which is +-log 3.

        Adding one half to successes and failures is the correction with the least bias for the
        logit of a count (Haldane, Anscombe); it keeps the features of order one.
        """
        X = as_floating(X)
        return np.log((X + 0.5) / (1.5 - X))

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        (logit,) = self._unbind(outputs)
        # One term per outcome, x * logit - softplus(logit), would cancel for large logits.
        return logsigmoid((2 * x - 1) * logit)

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        return torch.bernoulli(self.mean(outputs, params), generator=generator)

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return p = sigmoid(logit)."""
        return self._unbind(outputs)[0].sigmoid()

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return p (1 - p)."""
        (logit,) = self._unbind(outputs)
        return logit.sigmoid() * (-logit).sigmoid()  # 1 - p would round to zero

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return p (1 - p)."""
        return self.variance(outputs, params)
