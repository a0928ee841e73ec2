# SPDX-License-Identifier: BSD-3-Clause
"""What the two blocks of structured mean field in switching dynamics are computed from."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.expfam import MNIWStats, NIWStats
from sksvae.graphical.api import ChainPosterior, Potentials
from sksvae.graphical.gaussian_chain import (
    chain_posterior,
    chain_roles,
    clean_potentials,
)
from sksvae.graphical.transition_tables import EnergyTable, NaturalTable
from sksvae.inference import MarkovMoments, markov_moments
from sksvae.inference.block_tridiagonal import ChainMethod


def negligible(dtype: torch.dtype | np.dtype[Any]) -> float:
    """Weights of states that are as good as zero, and whose products with others underflow.

    Arithmetic with subnormal numbers takes many times as long as with others.

    Parameters
    ----------
    dtype : torch.dtype or numpy.dtype
        Type of the weights.

    Returns
    -------
    float
        What is smaller is negligible. It is far below the square of the rounding error.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical.switching_problem import negligible
    >>> negligible(torch.float32) < torch.finfo(torch.float32).eps ** 4
    True
    """
    finfo = torch.finfo(dtype) if isinstance(dtype, torch.dtype) else np.finfo(dtype)
    return float(finfo.tiny / finfo.eps)


class SwitchingProblem(NamedTuple):
    """Everything that the two blocks of a batch of sequences depend on.

    Parameters
    ----------
    potentials : Potentials
        Evidence of each step, zero at steps that do not exist.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.
    initial : NIWStats
        Expected statistics of the first latent.
    dynamics : MNIWStats
        Expected statistics of the dynamics, with leading axis n_states.
    log_initial : Tensor of shape (n_states,)
        ``E log pi_0``.
    log_transition : Tensor of shape (n_states, n_states)
        ``E log pi``: rows belong to the earlier step.
    natural_table : NaturalTable
        The statistics, arranged for q(z).
    energy_table : EnergyTable
        The statistics, arranged for q(k).
    """

    potentials: Potentials
    mask: Tensor
    initial: NIWStats
    dynamics: MNIWStats
    log_initial: Tensor
    log_transition: Tensor
    natural_table: NaturalTable
    energy_table: EnergyTable

    @classmethod
    def build(
        cls, potentials: Potentials, params: tuple[Tensor, ...], mask: Tensor
    ) -> "SwitchingProblem":
        """Check and arrange the arguments of `SwitchingDynamicsModel.infer`."""
        potentials = clean_potentials(potentials, mask)
        if (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "mask must be true for the first steps of each sequence, without gaps: give each "
                "sequence a row of its own."
            )
        initial, dynamics = NIWStats(*params[:4]), MNIWStats(*params[4:8])
        log_initial, log_transition = params[8:]
        return cls(
            potentials,
            mask,
            initial,
            dynamics,
            log_initial,
            log_transition,
            NaturalTable.build(initial, dynamics),
            EnergyTable.build(dynamics),
        )

    @property
    def n_states(self) -> int:
        """Number of states."""
        return self.log_initial.shape[0]

    @property
    def requires_grad(self) -> bool:
        """Whether anything does."""
        parts = (part if isinstance(part, tuple) else (part,) for part in self)
        return any(field.requires_grad for part in parts for field in part)

    def fixed(self) -> "SwitchingProblem":
        """Return the same problem without gradients."""
        parts: dict[str, Any] = {}
        for name, part in self._asdict().items():
            if isinstance(part, Tensor):
                parts[name] = part.detach()
            else:
                parts[name] = type(part)(*(field.detach() for field in part))
        return SwitchingProblem(**parts)

    def take(self, rows: Tensor) -> "SwitchingProblem":
        """Return the problem of some of the sequences."""
        potentials = Potentials(*(field[rows] for field in self.potentials))
        return self._replace(potentials=potentials, mask=self.mask[rows])

    def gaussian(
        self, states: Tensor, noise: Tensor | None = None, method: ChainMethod = "auto"
    ) -> ChainPosterior:
        """Compute q(z) from weights of the states, of shape (n_sequences, n_steps, n_states)."""
        starts, moves = chain_roles(self.mask)
        weights = states[:, 1:]
        known = weights.detach().abs()
        counts = moves.unsqueeze(-1) & ((known >= negligible(known.dtype)) | (known == 0.0))
        weights = torch.where(counts, weights, 0.0)
        natural = self.natural_table.chain(starts.to(states.dtype), weights)
        return chain_posterior(self.potentials, natural, self.mask, noise, method)

    def energies(self, posterior: ChainPosterior) -> Tensor:
        """``E_t(k)``, of shape (n_sequences, n_steps, n_states)."""
        energies = self.energy_table.energies(posterior)
        energies = torch.where(self.mask[:, 1:].unsqueeze(-1), energies, 0.0)
        return pad(energies, (0, 0, 1, 0))

    def discrete(self, energies: Tensor, **wanted: Any) -> MarkovMoments:
        """Compute q(k)."""
        return markov_moments(
            self.log_initial, self.log_transition, energies, mask=self.mask, **wanted
        )

    def next_states(self, states: Tensor, method: ChainMethod = "auto") -> Tensor:
        """One round of block updates: q(z), then q(k)."""
        return self.discrete(self.energies(self.gaussian(states, method=method))).marginals
