# SPDX-License-Identifier: BSD-3-Clause
"""Conjugate distribution over the parameters of switching linear dynamics."""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam import DirichletParams, MNIWParams, NIWParams
from sksvae.graphical.dynamics_prior import DynamicsPrior


class SwitchingPrior(NamedTuple):
    """Dirichlets over a Markov chain of states, one set of linear dynamics for each state.

    Parameters
    ----------
    initial : NIWParams
        Of the mean and covariance of the first latent.
    dynamics : MNIWParams
        Of ``X_k = [A_k b_k]`` and ``Q_k``, with leading axis n_states.
    initial_states : DirichletParams
        Of the probabilities of the first state, of shape (n_states,).
    transitions : DirichletParams
        Of the rows of the transition matrix, of shape (n_states, n_states).
    """

    initial: NIWParams
    dynamics: MNIWParams
    initial_states: DirichletParams
    transitions: DirichletParams

    @classmethod
    def sticky(
        cls,
        n_states: int,
        dynamics: DynamicsPrior,
        *,
        concentration: float = 0.5,
        stickiness: float = 100.0,
        initial_concentration: float = 0.1,
    ) -> "SwitchingPrior":
        """Treat all states alike, and expect each to last.

        Parameters
        ----------
        n_states : int
            Number of states.
        dynamics : DynamicsPrior
            Prior of the first latent and of the dynamics of every state.
        concentration : float, default=0.5
            Pseudo-count of transitions from each state to each other one.
        stickiness : float, default=100.0
            Pseudo-count of transitions from each state to itself.
        initial_concentration : float, default=0.1
            Pseudo-count of each state in the first step.

        Returns
        -------
        SwitchingPrior
            The prior.

        References
        ----------
        Fox, Sudderth, Jordan and Willsky, "A sticky HDP-HMM with application to speaker
        diarization", Annals of Applied Statistics 5(2A), 2011. The defaults are those of [P]'s
        released code.

        Examples
        --------
        >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
        >>> prior = SwitchingPrior.sticky(2, DynamicsPrior.isotropic(3))
        >>> prior.transitions.concentration
        tensor([[100.0000,   0.5000],
                [  0.5000, 100.0000]], dtype=torch.float64)
        >>> prior.dynamics.mean.shape
        torch.Size([2, 3, 4])
        """
        like = dynamics.initial.mean
        eye = torch.eye(n_states, dtype=like.dtype, device=like.device)
        return cls(
            dynamics.initial,
            MNIWParams(
                *(field.expand(n_states, *field.shape).clone() for field in dynamics.dynamics)
            ),
            DirichletParams(like.new_full((n_states,), initial_concentration)),
            DirichletParams(stickiness * eye + concentration * (1 - eye)),
        )

    @property
    def n_states(self) -> int:
        """Number of states, used or not."""
        return self.initial_states.concentration.shape[0]

    def select(self, states: Tensor) -> "SwitchingPrior":
        """Parameters of some of the states.

        Parameters
        ----------
        states : Tensor of shape (n_selected,)
            Indices.

        Returns
        -------
        SwitchingPrior
            In the given order.

        Examples
        --------
        >>> import torch
        >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
        >>> prior = SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2))
        >>> prior.select(torch.tensor([2, 0])).transitions.concentration.shape
        torch.Size([2, 2])
        """
        return SwitchingPrior(
            self.initial,
            MNIWParams(*(field[states] for field in self.dynamics)),
            DirichletParams(self.initial_states.concentration[states]),
            DirichletParams(self.transitions.concentration[states][:, states]),
        )
