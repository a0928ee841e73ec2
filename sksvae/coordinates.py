# SPDX-License-Identifier: BSD-3-Clause
"""Invertible maps of the latents, between the networks and the latent structure.

``y = W f_B(... f_1((z - center) / scale)) + shift`` with ``f_b(x) = x + C_b tanh(A_b x + b_b)``.
Where ``|C_b| |A_b| < 1`` in the spectral norm, each ``f_b`` has exactly one inverse, which the
iteration ``x <- y - C_b tanh(A_b x + b_b)`` finds (Behrmann et al., "Invertible residual networks",
ICML 2019, section 2).
"""

import math

import torch
from torch import Tensor, nn

_MOST_ROUNDS = 300  # an error shrinks by at least a tenth in each


class Coordinates(nn.Module):
    """Coordinates ``y`` of latents ``z``.

    Parameters
    ----------
    center, scale : Tensor of shape (latent_dim,)
        Standardisation of ``z``.
    inner : Tensor of shape (n_blocks, width, latent_dim)
        ``A_b``.
    bias : Tensor of shape (n_blocks, width)
        ``b_b``.
    outer : Tensor of shape (n_blocks, latent_dim, width)
        ``C_b``.
    turn : Tensor of shape (latent_dim, latent_dim)
        ``W``.
    shift : Tensor of shape (latent_dim,)
        Added at the end.

    Examples
    --------
    >>> import torch
    >>> from sksvae.coordinates import Coordinates
    >>> one = torch.ones(1, 1, 1)
    >>> bend = Coordinates(
    ...     torch.zeros(1), torch.ones(1), one, torch.zeros(1, 1), 0.5 * one, one[0], one[0, 0]
    ... )
    >>> y, slope = bend(torch.tensor([[0.0], [9.0]]))
    >>> y.tolist(), slope.tolist()
    ([[1.0], [10.5]], [[[1.5]], [[1.0]]])
    >>> bend.inverse(y).tolist()
    [[0.0], [9.0]]
    """

    center: Tensor
    scale: Tensor
    inner: Tensor
    bias: Tensor
    outer: Tensor
    turn: Tensor
    shift: Tensor

    def __init__(
        self,
        center: Tensor,
        scale: Tensor,
        inner: Tensor,
        bias: Tensor,
        outer: Tensor,
        turn: Tensor,
        shift: Tensor,
    ) -> None:
        super().__init__()
        # Not parameters: they are found by themselves, and stay when the networks are trained.
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.register_buffer("inner", inner)
        self.register_buffer("bias", bias)
        self.register_buffer("outer", outer)
        self.register_buffer("turn", turn)
        self.register_buffer("shift", shift)

    @property
    def n_numbers(self) -> int:
        """How many numbers the blocks are made of."""
        return sum(part.numel() for part in (self.inner, self.bias, self.outer))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of latents (n, D), and their derivatives (n, D, D)."""
        x = (z - self.center) / self.scale
        # By each latent in turn (D, n, D), so that all products are with few large matrices.
        slope = torch.diag(1.0 / self.scale).unsqueeze(1).expand(-1, len(z), -1)
        for A, b, C in zip(self.inner, self.bias, self.outer, strict=True):
            h = torch.tanh(nn.functional.linear(x, A, b))
            x = x + h @ C.mT
            slope = slope + ((slope @ A.mT) * (1.0 - h.square())) @ C.mT
        slope = (slope @ self.turn.mT).permute(1, 2, 0)
        return nn.functional.linear(x, self.turn, self.shift), slope

    def inverse(self, y: Tensor) -> Tensor:
        """Latents (..., D) with these coordinates, differentiable in them."""
        flat = y.reshape(-1, y.shape[-1])
        with torch.no_grad():
            z = self._near_inverse(flat)
            again, slope = self(z)
        # A step of Newton's method: what is left of the error is squared, and derivatives are
        # those of the inverse.
        z = z + torch.linalg.solve(slope, (flat - again).unsqueeze(-1)).squeeze(-1)
        return z.view_as(y)

    def _near_inverse(self, y: Tensor) -> Tensor:
        """Inverse, up to about the root of the rounding error."""
        x = torch.linalg.solve(self.turn, (y - self.shift).mT).mT
        tol = math.sqrt(torch.finfo(x.dtype).eps)
        blocks = zip(self.inner.flip(0), self.bias.flip(0), self.outer.flip(0), strict=True)
        for A, b, C in blocks:
            image = x
            for _ in range(_MOST_ROUNDS):
                last = x
                x = image - torch.tanh(nn.functional.linear(x, A, b)) @ C.mT
                change = (x - last).abs().nan_to_num(0.0)
                if not (change > tol).any():
                    break
        return x * self.scale + self.center

    def carry(self, r: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian potentials ``r'z - z' diag(R) z / 2`` of rows, in these coordinates.

        Parameters
        ----------
        r, R : Tensor of shape (n, latent_dim)
            Evidence of each row.

        Returns
        -------
        r, R : Tensor of shape (n, latent_dim)
            Diagonal again. Its slope is right at ``r / (R + 1)``, where the row alone, under a
            standard normal distribution, puts the latents, and so is the diagonal of its curvature
            but for that of the map.
        """
        mean = r / (R + 1.0)
        y, slope = self(mean)
        inverse = torch.linalg.inv(slope)
        precision = (R.unsqueeze(-2) @ inverse.square()).squeeze(-2)
        gradient = ((r - R * mean).unsqueeze(-2) @ inverse).squeeze(-2)
        return precision * y + gradient, precision
