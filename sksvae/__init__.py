# SPDX-License-Identifier: BSD-3-Clause
"""Structured variational autoencoders as scikit-learn estimators."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sksvae.estimators import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
    from sksvae.versions import show_versions

__version__ = "0.1.0.dev0"

_LOCATIONS = {
    "SVAEGaussianMixture": "sksvae.estimators",
    "SVAELinearDynamics": "sksvae.estimators",
    "SVAESwitchingLDS": "sksvae.estimators",
    "VAE": "sksvae.estimators",
    "show_versions": "sksvae.versions",
}

__all__ = [
    "VAE",
    "SVAEGaussianMixture",
    "SVAELinearDynamics",
    "SVAESwitchingLDS",
    "show_versions",
]


def __getattr__(name: str) -> Any:
    # Estimators load torch, which metrics and data sets do without.
    if name in _LOCATIONS:
        return getattr(import_module(_LOCATIONS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
