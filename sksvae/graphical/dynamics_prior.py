# SPDX-License-Identifier: BSD-3-Clause
"""Conjugate prior of linear dynamics."""

from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.expfam import MNIWParams, NIWParams


class DynamicsPrior(NamedTuple):
    """Normal inverse Wishart over the initial state, matrix normal one over the dynamics.

    Parameters
    ----------
    initial : NIWParams
        Of ``mu_0`` and ``Sigma_0``, of dimension latent_dim.
    dynamics : MNIWParams
        Of ``X = [A b]`` and ``Q``: latent_dim rows, latent_dim + 1 columns, the last for ``b``.
    """

    initial: NIWParams
    dynamics: MNIWParams

    @classmethod
    def isotropic(
        cls,
        latent_dim: int,
        *,
        persistence: float = 1.0,
        transition_precision: float = 1.0,
        noise_scale: float = 1.0,
        noise_dof: float | None = None,
        initial_precision: float = 1.0,
        initial_scale: float = 1.0,
        initial_dof: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> "DynamicsPrior":
        """Treat all directions of the latent space alike.

        Parameters
        ----------
        latent_dim : int
            Dimension of z.
        persistence : float, default=1.0
            The mean of ``[A b]`` is ``[persistence I, 0]``: 1 expects a random walk, 0 noise
            without memory.
        transition_precision : float, default=1.0
            Pseudo-count ``v`` behind that mean, ``V = v I``.
        noise_scale : float, default=1.0
            The scale matrix of ``Q`` is ``noise_scale I``.
        noise_dof : float, default=None
            Degrees of freedom of ``Q``; None means ``latent_dim + 2``, for which the prior mean of
            ``Q`` is its scale matrix.
        initial_precision : float, default=1.0
            Pseudo-count behind the mean of ``mu_0``, which is zero.
        initial_scale : float, default=1.0
            The scale matrix of ``Sigma_0`` is ``initial_scale I``.
        initial_dof : float, default=None
            Degrees of freedom of ``Sigma_0``; None means ``latent_dim + 2``.
        dtype : torch.dtype, default=torch.float64
            Type of the parameters.
        device : torch.device or str, default=None
            Where they live.

        Returns
        -------
        DynamicsPrior
            The prior.

        Examples
        --------
        >>> from sksvae.graphical import DynamicsPrior
        >>> DynamicsPrior.isotropic(2, persistence=0.5).dynamics.mean
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.0000]], dtype=torch.float64)
        """

        def number(value: float | None) -> Tensor:
            return torch.tensor(
                latent_dim + 2.0 if value is None else value, dtype=dtype, device=device
            )

        eye = torch.eye(latent_dim + 1, dtype=dtype, device=device)
        small = eye[:latent_dim, :latent_dim]
        initial = NIWParams(
            initial_scale * small,
            eye.new_zeros(latent_dim),
            number(initial_precision),
            number(initial_dof),
        )
        dynamics = MNIWParams(
            noise_scale * small,
            persistence * eye[:latent_dim],
            transition_precision * eye,
            number(noise_dof),
        )
        return cls(initial, dynamics)
