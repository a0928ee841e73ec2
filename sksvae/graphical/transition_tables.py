# SPDX-License-Identifier: BSD-3-Clause
"""Expected statistics of dynamics, arranged so that each step takes a product with a table.

They are arranged once for the many rounds of inference in switching dynamics. The formulas are
those of `sksvae.graphical.gaussian_chain`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.expfam import MNIWStats, NIWStats
from sksvae.expfam.numerics import cholesky, symmetrize
from sksvae.graphical.api import ChainPosterior
from sksvae.inference.chain_blocks import Blocks

_LOG_2PI = math.log(2 * math.pi)


class ChainNatural(NamedTuple):
    """``E log p(z | theta) = h'z - z'Jz/2 + c`` of each sequence.

    Parameters
    ----------
    precision_mean : Tensor of shape (n_sequences, n_steps, latent_dim)
        ``h``.
    diagonal : Blocks of shape (n_sequences, n_steps, latent_dim, latent_dim)
        ``J_{t,t}``.
    lower : Blocks of shape (n_sequences, n_steps - 1, latent_dim, latent_dim)
        ``J_{t+1,t}``.
    constant : Tensor of shape (n_sequences,)
        ``c``.
    """

    precision_mean: Tensor
    diagonal: Blocks
    lower: Blocks
    constant: Tensor

    def times(self, points: Tensor) -> Tensor:
        """``J x`` for ``x`` of shape (n_sequences, n_steps, latent_dim)."""
        below = self.lower.times(points[:, :-1])
        above = self.lower.transposed().times(points[:, 1:])
        return self.diagonal.times(points) + pad(below, (0, 0, 1, 0)) + pad(above, (0, 0, 0, 1))


class NaturalTable(NamedTuple):
    """Natural parameters of each role of a step, under the initial state and K dynamics.

    Parameters
    ----------
    blocks : Tensor of shape (1 + 2 K, D, D)
        Diagonal blocks of a step that is the first, the later one of a transition under each of
        the dynamics, and the earlier one.
    shifts : Tensor of shape (1 + 2 K, D)
        The same of ``h``.
    lower : Tensor of shape (K, D, D)
        Blocks below the diagonal.
    start : Tensor of shape ()
        Constant of a first step.
    move : Tensor of shape (K,)
        Constants of a transition.

    Examples
    --------
    A random walk with unit noise that starts at zero:

    >>> import torch
    >>> from sksvae.expfam import MNIWStats, NIWStats
    >>> from sksvae.graphical.transition_tables import NaturalTable
    >>> one, none = torch.ones(1, 1), torch.zeros(1)
    >>> initial = NIWStats(one, none, torch.tensor(0.0), torch.tensor(0.0))
    >>> X = torch.tensor([[[1.0, 0.0]]])
    >>> table = NaturalTable.build(initial, MNIWStats(one[None], X, X.mT @ X, none))
    >>> chain = table.chain(torch.tensor([[1.0, 0.0]]), torch.ones(1, 1, 1))
    >>> chain.diagonal.whole().flatten(), chain.lower.whole().flatten()
    (tensor([2., 1.]), tensor([-1.]))
    """

    blocks: Tensor
    shifts: Tensor
    lower: Tensor
    start: Tensor
    move: Tensor

    @classmethod
    def build(cls, initial: NIWStats, dynamics: MNIWStats) -> "NaturalTable":
        """Arrange expected statistics; those of the dynamics have leading axis K."""
        dim = initial.precision.shape[-1]
        # Only symmetric parts mean anything, and gradients have to be symmetric.
        later, earlier = symmetrize(dynamics.precision), symmetrize(dynamics.quadratic)
        first = symmetrize(initial.precision).unsqueeze(0)
        shifts = [
            initial.precision_mean.unsqueeze(0),
            dynamics.precision_mean[:, :, dim],
            -earlier[:, :dim, dim],
        ]
        start = initial.log_det_precision - initial.quadratic - dim * _LOG_2PI
        move = dynamics.log_det_precision - earlier[:, dim, dim] - dim * _LOG_2PI
        return cls(
            torch.cat([first, later, earlier[:, :dim, :dim]]),
            torch.cat(shifts),
            dynamics.precision_mean[:, :, :dim].neg(),
            0.5 * start,
            0.5 * move,
        )

    def chain(self, starts: Tensor, moves: Tensor) -> ChainNatural:
        """Natural parameters of chains.

        Parameters
        ----------
        starts : Tensor of shape (n_sequences, n_steps)
            How much each step counts as the first of its sequence.
        moves : Tensor of shape (n_sequences, n_steps - 1, K)
            How much each transition counts for each of the dynamics.

        Returns
        -------
        ChainNatural
            Differentiable in everything.
        """
        roles = [starts.unsqueeze(-1), pad(moves, (0, 0, 1, 0)), pad(moves, (0, 0, 0, 1))]
        weights = torch.cat(roles, -1)
        diagonal, lower = Blocks(self.blocks, weights), Blocks(self.lower, moves)
        if len(self.blocks) > self.shifts.shape[-1]:
            # So many that products with all of them take longer than the sums.
            diagonal, lower = Blocks(diagonal.whole()), Blocks(lower.whole())
        constant = starts.sum(-1) * self.start + moves.sum(-2) @ self.move
        return ChainNatural(weights @ self.shifts, diagonal, lower, constant)


class EnergyTable(NamedTuple):
    """What expected log densities of transitions under K dynamics are computed with.

    With ``Xbar = P^-1 C``, which is the posterior mean of ``X``, and residuals ``e = m' - Xbar y``,
    that of a transition between means ``m`` and ``m'`` is ::

        -e'P e/2 - y'(G - Xbar'P Xbar) y/2 + (E log|P| - D log 2 pi) / 2,   y = (m, 1),

    and covariances enter linearly. No two large terms cancel, whatever the precision.

    Parameters
    ----------
    regression : Tensor of shape (K, D + 1, D)
        Transposed posterior means of ``X``, with the sign turned.
    factor : Tensor of shape (K, D, D)
        Lower Cholesky factors of ``P``.
    doubt : Tensor of shape ((D + 1) ** 2, K)
        ``G - Xbar' P Xbar``.
    steps : Tensor of shape (D ** 2, 2 K)
        Weights of the covariances of the later and of the earlier step.
    lags : Tensor of shape (D ** 2, K)
        Weights of the covariances between both.
    constant : Tensor of shape (K,)
        ``E log|P| - D log 2 pi``.

    Examples
    --------
    A move by one unit is likelier under dynamics that drift:

    >>> import torch
    >>> from sksvae.expfam import MNIWStats
    >>> from sksvae.graphical import ChainPosterior
    >>> from sksvae.graphical.transition_tables import EnergyTable
    >>> mean, none = torch.tensor([[[0.0], [1.0]]]), torch.zeros(1, 2, 1, 1)
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> move = ChainPosterior(mean, none, none[:, 1:], mean[None], torch.zeros(1), mask)
    >>> X = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    >>> table = EnergyTable.build(MNIWStats(torch.ones(2, 1, 1), X, X.mT @ X, torch.zeros(2)))
    >>> table.energies(move)
    tensor([[[-1.4189, -0.9189]]])
    """

    regression: Tensor
    factor: Tensor
    doubt: Tensor
    steps: Tensor
    lags: Tensor
    constant: Tensor

    @classmethod
    def build(cls, dynamics: MNIWStats) -> "EnergyTable":
        """Arrange expected statistics, with leading axis K."""
        dim = dynamics.precision.shape[-1]
        precision, quadratic = symmetrize(dynamics.precision), symmetrize(dynamics.quadratic)
        factor = cholesky(precision, "expected precision of the dynamics")
        regression = torch.cholesky_solve(dynamics.precision_mean, factor)
        doubt = quadratic - symmetrize(regression.mT @ dynamics.precision_mean)
        return cls(
            -regression.mT,
            factor,
            doubt.flatten(1).mT,
            torch.cat([precision, quadratic[:, :dim, :dim]]).flatten(1).mT,
            -2.0 * dynamics.precision_mean[:, :, :dim].flatten(1).mT,
            dynamics.log_det_precision - dim * _LOG_2PI,
        )

    def energies(self, posterior: ChainPosterior) -> Tensor:
        """Expected log densities of transitions, in nats.

        Parameters
        ----------
        posterior : ChainPosterior
            Of the sequences.

        Returns
        -------
        Tensor of shape (n_sequences, n_steps - 1, K)
            Differentiable in everything. What stands at transitions that do not exist means
            nothing.
        """
        mean, n_states = posterior.mean, len(self.constant)
        y = pad(mean[:, :-1], (0, 1), value=1.0)
        rows = [part.flatten(0, 1).expand(n_states, -1, -1) for part in (mean[:, 1:], y)]
        # The residual first: its large parts cancel exactly, those of its square would not.
        residual = torch.baddbmm(rows[0], rows[1], self.regression)
        square = (residual @ self.factor).square().sum(-1).mT.unflatten(0, y.shape[:2])
        regressors = y.unsqueeze(-1) * y.unsqueeze(-2)
        square = square + regressors.flatten(-2) @ self.doubt + self.spread(posterior)
        return 0.5 * (self.constant - square)

    def spread(self, posterior: ChainPosterior) -> Tensor:
        """What covariances add to the expected squares of residuals, of the shape of `energies`."""
        by_step = posterior.covariance.flatten(-2) @ self.steps
        later, earlier = by_step.split(len(self.constant), -1)
        by_pair = posterior.lag_covariance.flatten(-2) @ self.lags
        return later[:, 1:] + earlier[:, :-1] + by_pair
