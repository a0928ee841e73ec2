# SPDX-License-Identifier: BSD-3-Clause
"""Latent structures, one file each, behind one protocol.

To add one, write a module with a subclass of `GraphicalModel` (independent rows) or of
`SequenceModel` and register it here.
"""

from sksvae.graphical.api import (
    ChainPosterior,
    ConjugateModel,
    GraphicalModel,
    Posterior,
    Potentials,
    SequenceModel,
)
from sksvae.graphical.dynamics_prior import DynamicsPrior
from sksvae.graphical.linear_dynamics import LinearDynamicsModel
from sksvae.graphical.mixture import GaussianMixtureModel
from sksvae.graphical.mixture_prior import MixturePrior
from sksvae.graphical.point_dynamics import DynamicsParameters
from sksvae.graphical.point_switching import SwitchingForecast, SwitchingParameters
from sksvae.graphical.pruning import Removal, propose_removal, prune_components
from sksvae.graphical.standard_normal import StandardNormalModel
from sksvae.graphical.switching_dynamics import SwitchingDynamicsModel
from sksvae.graphical.switching_inference import SwitchingPosterior
from sksvae.graphical.switching_prior import SwitchingPrior

GRAPHICAL_MODELS: dict[str, type[GraphicalModel]] = {
    "mixture": GaussianMixtureModel,
    "standard_normal": StandardNormalModel,
}

SEQUENCE_MODELS: dict[str, type[SequenceModel]] = {
    "linear_dynamics": LinearDynamicsModel,
    "switching_dynamics": SwitchingDynamicsModel,
}

__all__ = [
    "GRAPHICAL_MODELS",
    "SEQUENCE_MODELS",
    "ChainPosterior",
    "ConjugateModel",
    "DynamicsParameters",
    "DynamicsPrior",
    "GaussianMixtureModel",
    "GraphicalModel",
    "LinearDynamicsModel",
    "MixturePrior",
    "Posterior",
    "Potentials",
    "Removal",
    "SequenceModel",
    "StandardNormalModel",
    "SwitchingDynamicsModel",
    "SwitchingForecast",
    "SwitchingParameters",
    "SwitchingPosterior",
    "SwitchingPrior",
    "propose_removal",
    "prune_components",
]
