# SPDX-License-Identifier: BSD-3-Clause
"""Exponential families: conversions, expectations, divergences, draws, natural gradients.

To add a family, write one module with a subclass of `ExponentialFamily` and register it in
`EXPONENTIAL_FAMILIES`; the contract tests and the natural gradient then cover it.
"""

from sksvae.expfam.base import ExponentialFamily
from sksvae.expfam.categorical import (
    Categorical,
    CategoricalNatural,
    CategoricalParams,
    CategoricalStats,
)
from sksvae.expfam.dirichlet import Dirichlet, DirichletNatural, DirichletParams, DirichletStats
from sksvae.expfam.gaussian import Gaussian, GaussianNatural, GaussianParams, GaussianStats
from sksvae.expfam.mniw import MNIW, MNIWNatural, MNIWParams, MNIWSample, MNIWStats
from sksvae.expfam.natural_gradient import (
    conjugate_step,
    kl_with_natural_gradient,
    natural_expected_stats,
)
from sksvae.expfam.natural_step import natural_step, step_towards
from sksvae.expfam.niw import NIW, NIWNatural, NIWParams, NIWSample, NIWStats
from sksvae.expfam.tied_mniw import TiedMNIW, TiedMNIWParams

EXPONENTIAL_FAMILIES: dict[str, ExponentialFamily] = {
    "gaussian": Gaussian(),
    "categorical": Categorical(),
    "dirichlet": Dirichlet(),
    "mniw": MNIW(),
    "niw": NIW(),
}

__all__ = [
    "EXPONENTIAL_FAMILIES",
    "MNIW",
    "NIW",
    "Categorical",
    "CategoricalNatural",
    "CategoricalParams",
    "CategoricalStats",
    "Dirichlet",
    "DirichletNatural",
    "DirichletParams",
    "DirichletStats",
    "ExponentialFamily",
    "Gaussian",
    "GaussianNatural",
    "GaussianParams",
    "GaussianStats",
    "MNIWNatural",
    "MNIWParams",
    "MNIWSample",
    "MNIWStats",
    "NIWNatural",
    "NIWParams",
    "NIWSample",
    "NIWStats",
    "TiedMNIW",
    "TiedMNIWParams",
    "conjugate_step",
    "kl_with_natural_gradient",
    "natural_expected_stats",
    "natural_step",
    "step_towards",
]
