# SPDX-License-Identifier: BSD-3-Clause
"""Latent structures, one file each, behind one protocol.

To add one, write a module with a subclass of `GraphicalModel` and register it here.
"""

from sksvae.graphical.api import GraphicalModel, Posterior, Potentials
from sksvae.graphical.mixture import GaussianMixtureModel, MixturePrior
from sksvae.graphical.pruning import Removal, propose_removal, prune_components
from sksvae.graphical.standard_normal import StandardNormalModel

GRAPHICAL_MODELS: dict[str, type[GraphicalModel]] = {
    "mixture": GaussianMixtureModel,
    "standard_normal": StandardNormalModel,
}

__all__ = [
    "GRAPHICAL_MODELS",
    "GaussianMixtureModel",
    "GraphicalModel",
    "MixturePrior",
    "Posterior",
    "Potentials",
    "Removal",
    "StandardNormalModel",
    "propose_removal",
    "prune_components",
]
