# SPDX-License-Identifier: BSD-3-Clause
r"""Linear-Gaussian state space models, the start of linear dynamics.

A single row may not tell the whole state (a position, but not a direction), so the principal axes
of rows do not span what a dynamical model needs. A linear state space model, found from lagged
correlations (`subspace_identification`) and expectation maximisation (`fit_state_space`), does.
Everything is float64, without gradients.
"""

from sksvae.state_space.em import StateSpaceFit, fit_state_space
from sksvae.state_space.model import StateSpace
from sksvae.state_space.subspace import subspace_identification

__all__ = ["StateSpace", "StateSpaceFit", "fit_state_space", "subspace_identification"]
