# SPDX-License-Identifier: BSD-3-Clause
"""The scikit-learn surface: NumPy arrays in, NumPy arrays out."""

from sksvae.estimators.linear_dynamics import SVAELinearDynamics
from sksvae.estimators.mixture import SVAEGaussianMixture
from sksvae.estimators.switching import SVAESwitchingLDS
from sksvae.estimators.vae import VAE

__all__ = ["VAE", "SVAEGaussianMixture", "SVAELinearDynamics", "SVAESwitchingLDS"]
