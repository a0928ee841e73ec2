# SPDX-License-Identifier: BSD-3-Clause
"""Changes of the number of components between epochs of training."""

import math

import numpy as np
import torch

from sksvae.estimators.start import sample_rows
from sksvae.graphical import GaussianMixtureModel, prune_components
from sksvae.objective import Rows, StructuredVAE

_EVERY = 10  # epochs between attempts to remove components
# Nats per row that a removal may cost at first. What a component explains early on, the networks
# can often learn to explain; the slack falls to zero over the first half of training.
_SLACK = 0.03


class Moves:
    """Changes of the latent structure between epochs of joint training: here, none.

    Examples
    --------
    >>> from sksvae.estimators.moves import Moves
    >>> Moves()(epoch=0)
    False
    """

    def __call__(self, epoch: int) -> bool:
        """Change what is to change before an epoch, and say whether more changes must come."""
        return False

    def state(self) -> dict[str, int]:
        """What `restore` needs, so that training can go on in another process."""
        return {}

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a `state`."""


class RemovalMoves(Moves):
    """Removal of components; see `removal_moves`."""

    def __init__(
        self,
        model: StructuredVAE,
        sample: Rows,
        weight: float,
        n_components: int,
        prune: bool,
        max_iter: int,
    ) -> None:
        self.model, self.sample, self.weight = model, sample, weight
        self.n_components, self.prune, self.max_iter = n_components, prune, max_iter
        self.n_extra = model.graphical.n_components - n_components

    def __call__(self, epoch: int) -> bool:
        """Remove what has to go before an epoch, and say whether more has."""
        share = max(0.0, 1.0 - 2.0 * epoch / self.max_iter)
        rows, weight = self.sample, self.weight
        if self.prune and epoch % _EVERY == 0:
            _remove(self.model, rows, weight, share * _SLACK * weight * len(rows), 1)
        target = self.n_components + math.ceil(share * self.n_extra)
        _remove(self.model, rows, weight, math.inf, target)
        return self.model.graphical.n_components > self.n_components

    def state(self) -> dict[str, int]:
        """How many components were too many at the beginning."""
        return {"n_extra": self.n_extra}

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a `state`."""
        self.n_extra = state["n_extra"]


def removal_moves(
    model: StructuredVAE,
    rows: Rows,
    *,
    n_components: int,
    prune: bool,
    max_iter: int,
    random_state: np.random.RandomState,
) -> RemovalMoves:
    """Prepare the removal of components during training.

    Parameters
    ----------
    model : StructuredVAE
        Over a mixture, which the moves replace.
    rows : Rows
        Training rows.
    n_components : int
        Components beyond these have to go in the first half of training, at a steady pace, those
        first that the bound misses least.
    prune : bool
        Whether more may go, where the bound allows it.
    max_iter : int
        Most epochs.
    random_state : RandomState
        For the choice of rows.

    Returns
    -------
    RemovalMoves
        To be called with the number of each epoch before it begins. True as long as components
        have to go: training has not converged before.
    """
    sample, weight = sample_rows(rows, random_state)
    return RemovalMoves(model, sample, weight, n_components, prune, max_iter)


def remove_down_to(model: StructuredVAE, rows: Rows, n_components: int) -> None:
    """Remove components at any cost until so many are left.

    Parameters
    ----------
    model : StructuredVAE
        Over a mixture, which is replaced.
    rows : Rows
        Training rows.
    n_components : int
        How many to leave.
    """
    if model.graphical.n_components > n_components:
        rows, weight = sample_rows(rows, np.random.RandomState(0))
        _remove(model, rows, weight, math.inf, n_components)


def _remove(model: StructuredVAE, rows: Rows, weight: float, slack: float, least: int) -> None:
    """Remove components, one after the other, for as long as the bound allows."""
    while model.graphical.n_components > least:
        smaller = _without_one(model, rows, weight, slack)
        if smaller is model.graphical:
            return
        model.graphical = smaller


def _without_one(
    model: StructuredVAE, rows: Rows, weight: float, slack: float
) -> GaussianMixtureModel:
    mixture = model.graphical
    with torch.no_grad():
        posterior = mixture.infer(model.encode(rows), mixture.expected_params(), model.settings)
    return prune_components(mixture, posterior, weight, slack)
