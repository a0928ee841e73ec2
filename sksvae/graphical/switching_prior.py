# SPDX-License-Identifier: BSD-3-Clause
"""Conjugate distribution over the parameters of switching linear dynamics."""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam import (
    MNIW,
    NIW,
    Dirichlet,
    DirichletParams,
    MNIWParams,
    NIWParams,
    TiedMNIW,
    TiedMNIWParams,
)
from sksvae.graphical.dynamics_prior import DynamicsPrior


class SwitchingPrior(NamedTuple):
    """Dirichlets over a Markov chain of states, one set of linear dynamics for each state.

    Parameters
    ----------
    initial : NIWParams
        Of the mean and covariance of the first latent.
    dynamics : MNIWParams or TiedMNIWParams
        Of ``X_k = [A_k b_k]`` and ``Q_k``, with leading axis n_states; or with one ``Q`` for all
        states.
    initial_states : DirichletParams
        Of the probabilities of the first state, of shape (n_states,).
    transitions : DirichletParams
        Of the rows of the transition matrix, of shape (n_states, n_states).
    """

    initial: NIWParams
    dynamics: MNIWParams | TiedMNIWParams
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
        tied: bool = False,
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
        tied : bool, default=False
            Whether all states share one noise covariance.

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
        >>> SwitchingPrior.sticky(2, DynamicsPrior.isotropic(3), tied=True).dynamics.scale.shape
        torch.Size([3, 3])
        """
        like = dynamics.initial.mean
        eye = torch.eye(n_states, dtype=like.dtype, device=like.device)
        return cls(
            dynamics.initial,
            _of_each_state(dynamics.dynamics, n_states, tied),
            DirichletParams(like.new_full((n_states,), initial_concentration)),
            DirichletParams(stickiness * eye + concentration * (1 - eye)),
        )

    @property
    def n_states(self) -> int:
        """Number of states, used or not."""
        return self.initial_states.concentration.shape[0]

    @property
    def families(self) -> tuple[NIW, MNIW | TiedMNIW, Dirichlet, Dirichlet]:
        """Family of each part."""
        tied = isinstance(self.dynamics, TiedMNIWParams)
        return NIW(), TiedMNIW() if tied else MNIW(), Dirichlet(), Dirichlet()

    def with_dynamics(self, dynamics: MNIWParams) -> "SwitchingPrior":
        """Another prior of the dynamics, the same for all states.

        Parameters
        ----------
        dynamics : MNIWParams
            Of the ``X_k`` and ``Q_k`` of each state.

        Returns
        -------
        SwitchingPrior
            With noise covariances that are shared if they are here.

        Examples
        --------
        >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
        >>> walk, noise = (DynamicsPrior.isotropic(1, persistence=mean) for mean in (1.0, 0.0))
        >>> SwitchingPrior.sticky(2, walk).with_dynamics(noise.dynamics).dynamics.mean
        tensor([[[0., 0.]],
        <BLANKLINE>
                [[0., 0.]]], dtype=torch.float64)
        """
        tied = isinstance(self.dynamics, TiedMNIWParams)
        return self._replace(dynamics=_of_each_state(dynamics, self.n_states, tied))

    @property
    def state_dynamics(self) -> MNIWParams:
        """Marginal distribution of each state's ``X_k`` and ``Q_k``, with leading axis n_states."""
        dynamics = self.dynamics
        return dynamics.per_state() if isinstance(dynamics, TiedMNIWParams) else dynamics

    def select(self, states: Tensor) -> "SwitchingPrior":
        """Parameters of some of the states.

        Parameters
        ----------
        states : Tensor of shape (n_selected,)
            Indices.

        Returns
        -------
        SwitchingPrior
            In the given order. A noise covariance that is shared stays as it is.

        Examples
        --------
        >>> import torch
        >>> from sksvae.graphical import DynamicsPrior, SwitchingPrior
        >>> prior = SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2))
        >>> prior.select(torch.tensor([2, 0])).transitions.concentration.shape
        torch.Size([2, 2])
        """
        chosen: MNIWParams | TiedMNIWParams
        if isinstance(self.dynamics, TiedMNIWParams):
            scale, mean, mean_precision, dof = self.dynamics
            chosen = TiedMNIWParams(scale, mean[states], mean_precision[states], dof)
        else:
            chosen = MNIWParams(*(field[states] for field in self.dynamics))
        return SwitchingPrior(
            self.initial,
            chosen,
            DirichletParams(self.initial_states.concentration[states]),
            DirichletParams(self.transitions.concentration[states][:, states]),
        )


def _of_each_state(one: MNIWParams, n_states: int, tied: bool) -> MNIWParams | TiedMNIWParams:
    each = MNIWParams(*(field.expand(n_states, *field.shape).clone() for field in one))
    return TiedMNIWParams(one.scale, each.mean, each.mean_precision, one.dof) if tied else each
