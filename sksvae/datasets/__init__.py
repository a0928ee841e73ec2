# SPDX-License-Identifier: BSD-3-Clause
"""Synthetic data sets whose truth is known."""

from sksvae.datasets.bouncing_dot import make_bouncing_dot
from sksvae.datasets.pinwheel import make_pinwheel, pinwheel_log_density

__all__ = ["make_bouncing_dot", "make_pinwheel", "pinwheel_log_density"]
