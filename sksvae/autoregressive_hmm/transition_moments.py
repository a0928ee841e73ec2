# SPDX-License-Identifier: BSD-3-Clause
"""Pairs of consecutive steps: expected log densities under dynamics, and sufficient statistics."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.autoregressive_hmm.sequences import is_points
from sksvae.expfam import MNIW, MNIWNatural, MNIWParams
from sksvae.expfam.numerics import cholesky
from sksvae.graphical import ChainPosterior
from sksvae.graphical.transition_tables import EnergyTable

_MNIW = MNIW()
_CHUNK = 1024  # transitions worked on at a time, to stay in the cache
_MOST_KEPT = 20_000_000  # numbers, 160 MB; beyond these, moments are found anew each time


class TransitionMoments:
    """First and second moments of ``v = (z_{t+1}, z_t, 1)`` for all pairs of steps.

    Sufficient statistics are weighted sums of ``E[v v']``, so that these are found once, and one
    matrix product does the rest for all states. What is symmetric is held once.

    Parameters
    ----------
    parts : sequence of ChainPosterior
        Sequences, in double precision.
    """

    def __init__(self, parts: Sequence[ChainPosterior]) -> None:
        self.parts = parts
        dim = parts[0].mean.shape[-1]
        self.width = 2 * dim + 1
        self.triangle = torch.triu_indices(self.width, self.width, device=parts[0].mean.device)
        n_pairs = sum(part.mean[:, 1:, 0].numel() for part in parts)
        self._kept: list[list[Tensor]] | None = None
        if n_pairs * self.triangle.shape[1] <= _MOST_KEPT:
            self._kept = [list(self._found(part)) for part in parts]

    def energies(self, dynamics: MNIWParams) -> list[Tensor]:
        """Expected log density of each transition under each of K dynamics.

        Parameters
        ----------
        dynamics : MNIWParams
            Of ``q(theta)``, with leading axis K; the marginals of states that share their noise.

        Returns
        -------
        list of Tensor of shape (n_sequences, n_steps - 1, K)
            In nats, for each part. What stands at transitions that do not exist means nothing.
        """
        table = EnergyTable.build(_MNIW.standard_expected_stats(dynamics))
        root, n_states, found = _root(dynamics), len(dynamics.dof), []
        for part in self.parts:
            squares = [
                (v @ root).square_().unflatten(-1, (n_states, self.width)).sum(-1)
                for v in _pairs(part).split(_CHUNK)
            ]
            square = torch.cat(squares).view(*part.mean[:, 1:, 0].shape, n_states)
            if not is_points(part):
                square = square + table.spread(part)
            found.append(0.5 * (table.constant - square))
        return found

    def statistics(self, moves: Sequence[Tensor]) -> MNIWNatural:
        """Sufficient statistics of K dynamics, summed over all parts.

        Parameters
        ----------
        moves : sequence of Tensor of shape (n_sequences, n_steps - 1, K)
            For each part how much each transition counts for each of the dynamics; zero for those
            that do not exist.

        Returns
        -------
        MNIWNatural
            With leading axis K.
        """
        total = moves[0].new_zeros(moves[0].shape[-1], self.triangle.shape[1])
        for weights, chunks in zip(moves, self._chunks(), strict=True):
            for some, chunk in zip(weights.flatten(0, 1).split(_CHUNK), chunks, strict=True):
                total.addmm_(some.mT, chunk)
        row, column = self.triangle
        moments = total.new_empty(len(total), self.width, self.width)
        moments[:, row, column] = total
        moments[:, column, row] = total
        return natural_of_moments(moments)

    def _chunks(self) -> Iterator[Iterator[Tensor] | list[Tensor]]:
        return map(self._found, self.parts) if self._kept is None else iter(self._kept)

    def _found(self, part: ChainPosterior) -> Iterator[Tensor]:
        row, column = self.triangle
        dim, points = part.mean.shape[-1], is_points(part)
        pairs = _pairs(part).split(_CHUNK)
        fields = part.covariance[:, 1:], part.covariance[:, :-1], part.lag_covariance
        # Of points these take no memory, and flattening would make them.
        covariances = [] if points else [field.flatten(0, 1).split(_CHUNK) for field in fields]
        for i, v in enumerate(pairs):
            square = v.unsqueeze(-1) * v.unsqueeze(-2)
            if not points:
                later, earlier, lag = (field[i] for field in covariances)
                square[:, :dim, :dim] += later
                square[:, dim:-1, dim:-1] += earlier
                square[:, :dim, dim:-1] += lag
            yield square[:, row, column]


def _root(dynamics: MNIWParams) -> Tensor:
    """Triangular matrices side by side: ``v' root`` squared is what points have as energies.

    That is ``|z' - X y|^2_P + D y'V^-1 y``. Its large parts cancel before they are squared.
    """
    _, dim, n_columns = dynamics.mean.shape
    whiten = torch.linalg.solve_triangular(
        cholesky(dynamics.scale, "scale"),
        torch.eye(dim, dtype=dynamics.mean.dtype, device=dynamics.mean.device)
        * dynamics.dof.sqrt()[:, None, None],
        upper=False,
    )
    doubt = torch.linalg.solve_triangular(
        cholesky(dynamics.mean_precision, "mean_precision"),
        math.sqrt(dim) * torch.eye(n_columns, dtype=whiten.dtype, device=whiten.device),
        upper=False,
    )
    root = torch.cat((torch.cat((whiten, -whiten @ dynamics.mean), -1), pad(doubt, (dim, 0))), -2)
    return root.flatten(0, 1).mT


def _pairs(part: ChainPosterior) -> Tensor:
    """``(z_{t+1}, z_t, 1)`` of all pairs of steps, those that do not exist included."""
    mean = part.mean
    return torch.cat((mean[:, 1:], pad(mean[:, :-1], (0, 1), value=1.0)), -1).flatten(0, 1)


def natural_of_moments(moments: Tensor) -> MNIWNatural:
    """Natural parameters that transitions add.

    Parameters
    ----------
    moments : Tensor of shape (..., 2 latent_dim + 1, 2 latent_dim + 1)
        Sums of ``v v'``, where ``v = (z', z, 1)``.

    Returns
    -------
    MNIWNatural
        Of ``X = [A b]`` and ``Q``.
    """
    dim = moments.shape[-1] // 2
    return MNIWNatural(
        -0.5 * moments[..., :dim, :dim],
        moments[..., :dim, dim:],
        -0.5 * moments[..., dim:, dim:],
        0.5 * moments[..., -1, -1],
    )
