# SPDX-License-Identifier: BSD-3-Clause
"""Positive observations, such as power spectrograms."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Likelihood
from .numerics import as_floating, check_number, saturate


@dataclass(frozen=True)
class GammaLikelihood(Likelihood):
    """Positive features, with a fixed concentration and log-means from the decoder.

    x_d ~ Gamma(concentration, rate_d) with rate_d = concentration / exp(log_mean_d). [1]_ lets the
    network give log-rates; log_rate = log(concentration) - log_mean, so only the sign and the bias
    of the network's last layer differ. Log-means are limited smoothly beyond +-35 (`saturate`).

    Parameters
    ----------
    concentration : float, default=1.0
        Shape of the distribution; the coefficient of variation is concentration ** -0.5. The
        default is the exponential distribution, which is how the power of a Gaussian signal in one
        bin of a spectrogram is distributed; up to terms without parameters its log density is
        minus the Itakura-Saito divergence.
    offset : float, default=1e-10
        Added to X before taking logarithms for the encoder, in the units of X; the density does
        not use it. Choose it below the smallest values that matter.

    Notes
    -----
    Zero, as in the silent parts of a spectrogram, has a finite density only when concentration
    is 1: the density at zero is 0 for a greater and infinite for a smaller concentration.

    References
    ----------
    .. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with
       structured discrete representations", NeurIPS 2023, appendix A.3.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods import GammaLikelihood
    >>> likelihood = GammaLikelihood()
    >>> likelihood.log_prob(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 1, 2), {})
    tensor([[ 0., -2.]])
    """

    name: ClassVar[str] = "gamma"
    n_outputs: ClassVar[int] = 1
    domain: ClassVar[str] = "positive numbers (zero only when concentration == 1)"
    standardizes: ClassVar[bool] = False

    concentration: float = 1.0
    _: KW_ONLY
    offset: float = 1e-10

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_number(self, "concentration")
        check_number(self, "offset")

    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        return np.isfinite(X) & ((X >= 0) if self.concentration == 1 else (X > 0))

    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Return log(x + offset) + log(concentration) - digamma(concentration).

        E[log x] = log_mean + digamma(concentration) - log(concentration), so these features have
        the log-mean as their expectation and can stand in for the decoder's output.
        """
        shape = torch.tensor(self.concentration, dtype=torch.float64)
        bias = (shape.log() - shape.digamma()).item()
        return np.log(as_floating(X) + self.offset) + bias

    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        (log_mean,) = self._unbind(outputs)
        log_mean = saturate(log_mean)
        shape = self.concentration
        constant = shape * math.log(shape) - math.lgamma(shape)
        # xlogy, because (shape - 1) log x is 0 * -inf for shape 1 and x = 0.
        power = torch.xlogy(torch.full_like(x, shape - 1), x)
        return constant + power - shape * (log_mean + x * (-log_mean).exp())

    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        mean = self.mean(outputs, params)
        # `torch.distributions` draws with the same function, but takes no generator.
        draw = torch._standard_gamma(torch.full_like(mean, self.concentration), generator=generator)
        # Small concentrations and means can underflow to zero, which is not in the domain.
        return (draw * mean / self.concentration).clamp_min(torch.finfo(mean.dtype).tiny)

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the exponential of the output."""
        return saturate(self._unbind(outputs)[0]).exp()

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return mean ** 2 / concentration."""
        return self.mean(outputs, params).square() / self.concentration

    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return the concentration: on the log scale the noise does not depend on the mean."""
        return torch.full_like(self._unbind(outputs)[0], self.concentration)
