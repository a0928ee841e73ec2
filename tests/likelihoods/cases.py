# SPDX-License-Identifier: BSD-3-Clause
"""The instances that every contract test runs on, each with its scipy twin."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from sksvae.likelihoods import (
    BernoulliLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    GaussianNetworkLikelihood,
    Likelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

N_ROWS, N_FEATURES = 5, 3


@dataclass(frozen=True)
class Case:
    """An instance, `scipy(outputs, params)`, and values inside and outside the domain."""

    likelihood: Likelihood
    scipy: Callable[[np.ndarray, dict[str, np.ndarray]], Any]
    inside: tuple[float, ...]
    outside: tuple[float, ...]

    def __str__(self) -> str:
        return repr(self.likelihood)

    @property
    def is_real_valued(self) -> bool:
        return -1.5 in self.inside

    def params(self, dtype=torch.float64, seed=1) -> dict[str, torch.Tensor]:
        """Return learned parameters away from their starting values."""
        generator = torch.Generator().manual_seed(seed)
        params = self.likelihood.init_params(None, N_FEATURES, dtype)
        return {
            name: value + 0.5 * torch.randn(value.shape, generator=generator, dtype=dtype)
            for name, value in params.items()
        }

    def outputs(self, shape=(N_ROWS,), dtype=torch.float64, seed=2) -> torch.Tensor:
        """Return outputs of shape (*shape, n_outputs, N_FEATURES)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (*shape, self.likelihood.n_outputs, N_FEATURES)
        return torch.randn(shape, generator=generator, dtype=dtype)

    def x(self, shape=(N_ROWS,), dtype=torch.float64, seed=3) -> torch.Tensor:
        """Return data of shape (*shape, N_FEATURES) that the likelihood itself drew."""
        generator = torch.Generator().manual_seed(seed)
        return self.likelihood.sample(self.outputs(shape, dtype), self.params(dtype), generator)

    def frozen(self, outputs: torch.Tensor, params: dict[str, torch.Tensor]):
        """Return the frozen scipy distribution, in float64."""
        return self.scipy(
            outputs.double().numpy(), {name: v.double().numpy() for name, v in params.items()}
        )


REAL = {"inside": (-1.5, 0.0, 1e4), "outside": (np.inf, -np.inf)}
BINARY = {"inside": (0.0, 1.0), "outside": (-1.0, 0.5, 2.0, np.inf)}
COUNTS = {"inside": (0.0, 1.0, 7.0, 1e6), "outside": (-1.0, 0.5, np.inf)}
POSITIVE = {"inside": (1e-30, 0.3, 1e9), "outside": (0.0, -0.5, np.inf)}
NON_NEGATIVE = {"inside": (0.0, 1e-30, 0.3, 1e9), "outside": (-0.5, np.inf, -np.inf)}


def _gamma(concentration: float):
    def frozen(outputs, params):
        return stats.gamma(concentration, scale=np.exp(outputs[..., 0, :]) / concentration)

    return frozen


def _student_t(dof: float):
    def frozen(outputs, params):
        return stats.t(dof, outputs[..., 0, :], 1e-2 + np.exp(params["log_scale"]))

    return frozen


CASES = [
    Case(
        GaussianLikelihood(),
        lambda o, p: stats.norm(o[..., 0, :], np.sqrt(1e-4 + np.exp(p["log_variance"]))),
        **REAL,
    ),
    Case(
        GaussianLikelihood(noise_variance=0.3),
        lambda o, p: stats.norm(o[..., 0, :], np.sqrt(0.3)),
        **REAL,
    ),
    Case(
        GaussianNetworkLikelihood(min_variance=0.2),
        lambda o, p: stats.norm(o[..., 0, :], np.sqrt(0.2 + np.exp(o[..., 1, :]))),
        **REAL,
    ),
    Case(StudentTLikelihood(), _student_t(4), **REAL),
    # With 12 degrees of freedom the sample variance has a standard error.
    Case(StudentTLikelihood(dof=12), _student_t(12), **REAL),
    Case(
        BernoulliLikelihood(),
        lambda o, p: stats.bernoulli(1 / (1 + np.exp(-o[..., 0, :]))),
        **BINARY,
    ),
    Case(PoissonLikelihood(), lambda o, p: stats.poisson(np.exp(o[..., 0, :])), **COUNTS),
    Case(GammaLikelihood(), _gamma(1.0), **NON_NEGATIVE),
    Case(GammaLikelihood(concentration=3.5), _gamma(3.5), **POSITIVE),
    Case(GammaLikelihood(concentration=0.4), _gamma(0.4), **POSITIVE),
]
