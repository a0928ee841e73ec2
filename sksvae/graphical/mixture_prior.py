# SPDX-License-Identifier: BSD-3-Clause
"""Conjugate distribution over the parameters of a Gaussian mixture."""

from typing import NamedTuple

from torch import Tensor

from sksvae.expfam import DirichletParams, NIWParams


class MixturePrior(NamedTuple):
    """Dirichlet over weights and normal inverse Wisharts over components.

    Parameters
    ----------
    weights : DirichletParams
        Concentration of shape (n_components,).
    components : NIWParams
        With leading axis n_components.
    """

    weights: DirichletParams
    components: NIWParams

    @classmethod
    def symmetric(
        cls,
        n_components: int,
        concentration: float,
        mean: Tensor,
        mean_precision: float,
        covariance: Tensor,
        dof: float,
    ) -> "MixturePrior":
        """Give every component the same prior, as `BayesianGaussianMixture` does.

        Parameters
        ----------
        n_components : int
            Number of components.
        concentration : float
            Dirichlet concentration of each.
        mean : Tensor of shape (latent_dim,)
            Prior mean.
        mean_precision : float
            Pseudo-count behind the mean.
        covariance : Tensor of shape (latent_dim, latent_dim)
            Scale matrix of the inverse Wishart.
        dof : float
            Degrees of freedom.

        Returns
        -------
        MixturePrior
            The prior.
        """
        full = (n_components,)
        return cls(
            DirichletParams(mean.new_full(full, concentration)),
            NIWParams(
                covariance.expand(*full, *covariance.shape).clone(),
                mean.expand(*full, *mean.shape).clone(),
                mean.new_full(full, mean_precision),
                mean.new_full(full, dof),
            ),
        )

    def select(self, components: Tensor) -> "MixturePrior":
        """Parameters of some of the components.

        Parameters
        ----------
        components : Tensor of shape (n_selected,)
            Indices.

        Returns
        -------
        MixturePrior
            In the given order.
        """
        return MixturePrior(
            DirichletParams(self.weights.concentration[components]),
            NIWParams(*(field[components] for field in self.components)),
        )

    def double(self) -> "MixturePrior":
        """Return the same in double precision.

        Returns
        -------
        MixturePrior
            A copy, unless it is in double precision already.

        Examples
        --------
        >>> import torch
        >>> from sksvae.graphical import MixturePrior
        >>> prior = MixturePrior.symmetric(2, 0.5, torch.zeros(1), 1.0, torch.eye(1), 1.0)
        >>> prior.double().weights.concentration.dtype
        torch.float64
        """
        return MixturePrior(
            DirichletParams(self.weights.concentration.double()),
            NIWParams(*(field.double() for field in self.components)),
        )
