# SPDX-License-Identifier: BSD-3-Clause
"""Synthetic data sets whose truth is known."""

from sksvae.datasets.bouncing_dot import make_bouncing_dot
from sksvae.datasets.moving_laplace import make_moving_laplace
from sksvae.datasets.nascar import make_nascar
from sksvae.datasets.pinwheel import make_pinwheel, pinwheel_log_density
from sksvae.datasets.switching_oscillator import make_switching_oscillator

__all__ = [
    "make_bouncing_dot",
    "make_moving_laplace",
    "make_nascar",
    "make_pinwheel",
    "make_switching_oscillator",
    "pinwheel_log_density",
]
