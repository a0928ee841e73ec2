# SPDX-License-Identifier: BSD-3-Clause
"""Figures of fitted models and their predictions, as scikit-learn's displays.

A display is made by ``from_estimator``, or, where predictions are enough, by ``from_predictions``.
It keeps arrays and what it drew as attributes, and draws again with ``plot``. Matplotlib is needed
to draw only: ``pip install "sksvae[examples]"``.
"""

from sksvae.plotting.bound import BoundDisplay
from sksvae.plotting.decoded_means import DecodedMeansDisplay
from sksvae.plotting.forecast import ForecastDisplay
from sksvae.plotting.imputation import ImputationDisplay
from sksvae.plotting.latent_dynamics import LatentDynamicsDisplay
from sksvae.plotting.latent_space import LatentSpaceDisplay
from sksvae.plotting.reconstruction import ReconstructionDisplay
from sksvae.plotting.segmentation import SegmentationDisplay
from sksvae.plotting.state_usage import StateUsageDisplay
from sksvae.plotting.transition_matrix import TransitionMatrixDisplay

__all__ = [
    "BoundDisplay",
    "DecodedMeansDisplay",
    "ForecastDisplay",
    "ImputationDisplay",
    "LatentDynamicsDisplay",
    "LatentSpaceDisplay",
    "ReconstructionDisplay",
    "SegmentationDisplay",
    "StateUsageDisplay",
    "TransitionMatrixDisplay",
]
