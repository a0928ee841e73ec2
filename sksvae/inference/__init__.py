# SPDX-License-Identifier: BSD-3-Clause
"""Inference in conjugate graphical models: pure functions on tensors."""

from sksvae.inference.block_tridiagonal import ChainMoments, chain_moments
from sksvae.inference.forward_backward import MarkovMoments, markov_fisher, markov_moments
from sksvae.inference.gaussian import GaussianMoments, draw_gaussian, gaussian_moments
from sksvae.inference.long_chains import long_chain_moments
from sksvae.inference.markov_paths import draw_paths, most_probable_path
from sksvae.inference.mean_field import (
    FixedPoint,
    FixedPointSettings,
    attach_implicit_gradient,
    solve_adjoint,
    solve_fixed_point,
)

__all__ = [
    "ChainMoments",
    "FixedPoint",
    "FixedPointSettings",
    "GaussianMoments",
    "MarkovMoments",
    "attach_implicit_gradient",
    "chain_moments",
    "draw_gaussian",
    "draw_paths",
    "gaussian_moments",
    "long_chain_moments",
    "markov_fisher",
    "markov_moments",
    "most_probable_path",
    "solve_adjoint",
    "solve_fixed_point",
]
