# SPDX-License-Identifier: BSD-3-Clause
"""The evidence lower bound of a structured VAE over sequences.

``log p(X) >= sum_t E_q[log p(x_t | z_t)] - sum_n KL_n - KL(q(theta) || p(theta))``, where ``KL_n``
is the divergence of the latents of a whole sequence ([J] section 4, [P] section 3). Missing
entries drop out of the first sum. Networks see steps stacked, one sequence after the other; the
graphical model sees them padded to one length.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sksvae.graphical import ChainPosterior, Potentials, SwitchingPosterior
from sksvae.inference.block_tridiagonal import ChainMethod, automatic_method
from sksvae.objective import ELBOTerms, StructuredVAE, control_variate

# Rounds in which missing values settle: an error shrinks by about the missing share in each.
_FILLINGS = 8


@dataclass
class StateMemory:
    """Probabilities of the states of training steps, kept from one epoch to the next.

    Block updates that start from them need two or three rounds where others need ten (DESIGN 5.5).

    Parameters
    ----------
    states : Tensor of shape (n_rows, n_states) or None, default=None
        ``q(k)`` of each step when it was last visited; None before the first visit.

    Examples
    --------
    >>> from sksvae.sequence_objective import StateMemory
    >>> StateMemory().states is None
    True
    """

    states: Tensor | None = None


class SequenceRows(NamedTuple):
    """Steps of sequences, or of windows of them, in the two forms in which the model needs them.

    Parameters
    ----------
    observed : Tensor of shape (n_rows, n_features)
        What the likelihood sees, NaN where a value is missing.
    encoded : Tensor of shape (n_rows, n_features)
        What the encoder sees: standardised on the link scale, zero where a value is missing.
    lengths : Tensor of int of shape (n_sequences,)
        Steps of each sequence, in the order in which they are stacked.
    memory : StateMemory or None, default=None
        Where to begin block updates, and to keep where they end.
    places : Tensor of int of shape (n_rows,) or None, default=None
        Where in the memory each step has its row.
    uncut : Tensor of int or None, default=None
        Lengths of the sequences that windows in this order were cut from.
    whole : tuple of int or None, default=None
        Number of sequences and longest length of the minibatch of which these are a share. They
        are padded as in the whole of it.

    Examples
    --------
    >>> import torch
    >>> from sksvae.sequence_objective import SequenceRows
    >>> steps = torch.arange(5.0).unsqueeze(1)
    >>> rows = SequenceRows(steps, steps, torch.tensor([3, 2]))
    >>> rows.mask
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    >>> rows.take(torch.tensor([1])).observed.squeeze(1)
    tensor([3., 4.])
    """

    observed: Tensor
    encoded: Tensor
    lengths: Tensor
    memory: StateMemory | None = None
    places: Tensor | None = None
    uncut: Tensor | None = None
    whole: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.observed.shape[0]

    def with_memory(self, uncut: Tensor | None = None) -> "SequenceRows":
        """The same steps, with an empty memory, and of which sequences they are windows."""
        places = torch.arange(len(self), device=self.observed.device)
        return SequenceRows(self.observed, self.encoded, self.lengths, StateMemory(), places, uncut)

    def rejoined(self) -> "SequenceRows":
        """The sequences that windows were cut from, with the same memory."""
        if self.uncut is None:
            return self
        return SequenceRows(self.observed, self.encoded, self.uncut, self.memory, self.places)

    def recall(self) -> Tensor | None:
        """Remembered states of each sequence, padded; None if there are none."""
        if self.memory is None or self.memory.states is None:
            return None
        return pad_steps(self.memory.states[self.places], self.mask)

    def remember(self, posterior: ChainPosterior) -> None:
        """Keep the states of a posterior for the next visit, if there are any and a memory."""
        if self.memory is None or not isinstance(posterior, SwitchingPosterior):
            return
        stacked = posterior.states.detach()[self.mask]
        if self.memory.states is None:
            # Steps not visited yet: no state is preferred.
            n_rows, n_states = int(self.places.max()) + 1, stacked.shape[-1]
            self.memory.states = stacked.new_full((n_rows, n_states), 1.0 / n_states)
        self.memory.states[self.places] = stacked

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Leading shape of the latents: number of sequences and the longest length."""
        n_steps = int(self.lengths.max()) if self.whole is None else self.whole[1]
        return (self.lengths.shape[0], n_steps)

    @property
    def mask(self) -> Tensor:
        """Which steps of the padded sequences exist, of shape (n_sequences, n_steps)."""
        steps = torch.arange(self.latent_shape[1], device=self.lengths.device)
        return steps < self.lengths.unsqueeze(-1)

    def take(self, sequences: Tensor) -> "SequenceRows":
        """Select sequences by index."""
        lengths = self.lengths[sequences]
        rows = steps_of((self.lengths.cumsum(0) - self.lengths)[sequences], lengths)
        places = None if self.places is None else self.places[rows]
        return SequenceRows(self.observed[rows], self.encoded[rows], lengths, self.memory, places)

    def share(self, rank: int, size: int, noise: Tensor) -> tuple["SequenceRows | None", Tensor]:
        """Sequences of one process of several, None for none, and their part of the noise.

        They are dealt from the longest to the shortest, so that each gets about as many steps.
        """
        mine = self.lengths.argsort(descending=True, stable=True)[rank::size]
        if not len(mine):
            return None, noise[:, mine]
        observed, encoded, lengths, memory, places, *_ = self.take(mine)
        whole = self.latent_shape
        rows = SequenceRows(observed, encoded, lengths, memory, places, whole=whole)
        return rows, noise[:, mine]

    def remembered(self, share: "SequenceRows | None") -> list[Tensor]:
        """What a process that had this share of the rows has to tell the others.

        It is zero for what other processes have, so that sums are what all remember.
        """
        if share is self or self.memory is None or self.memory.states is None:
            return []
        states = self.memory.states[self.places]
        if share is None:
            return [torch.zeros_like(states)]
        mine = torch.isin(self.places, share.places)
        return [torch.where(mine.unsqueeze(-1), states, 0.0)]

    def remind(self, remembered: Sequence[Tensor]) -> None:
        """Take in what all processes remember of the rows."""
        if remembered and self.memory is not None and self.memory.states is not None:
            (self.memory.states[self.places],) = remembered

    def parts(self, n_rows: int) -> Iterator["SequenceRows"]:
        """All sequences in order, at most so many steps with padding at a time, or one sequence."""
        for sequences in sequences_in_order(self.lengths, n_rows):
            yield self.take(sequences)

    def steps(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Steps, numbered over all sequences; `observed` and `encoded`."""
        rows = torch.as_tensor(numbers, device=self.observed.device)
        return self.observed[rows], self.encoded[rows]

    def windows(self, sequence: Tensor, start: Tensor, length: Tensor) -> "SequenceRows":
        """Stretches of the sequences, stacked."""
        before = self.lengths.cumsum(0) - self.lengths
        rows = steps_of(before[sequence] + start, length)
        return SequenceRows(self.observed[rows], self.encoded[rows], length)


def steps_of(first: Tensor, lengths: Tensor) -> Tensor:
    """Numbers of the steps of some sequences, one sequence after the other.

    Parameters
    ----------
    first : Tensor of int of shape (n_sequences,)
        Number of the first step of each.
    lengths : Tensor of int of shape (n_sequences,)
        Steps of each.

    Returns
    -------
    Tensor of int of shape (n_steps,)
        With ``n_steps = lengths.sum()``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.sequence_objective import steps_of
    >>> steps_of(torch.tensor([7, 0]), torch.tensor([2, 3]))
    tensor([7, 8, 0, 1, 2])
    """
    before = lengths.cumsum(0) - lengths
    shift = torch.repeat_interleave(first - before, lengths)
    return shift + torch.arange(len(shift), device=shift.device)


def single_steps(rows: SequenceRows) -> SequenceRows:
    """Sequences taken apart, each step a sequence by itself.

    Parameters
    ----------
    rows : SequenceRows or StoredSequenceRows
        Sequences.

    Returns
    -------
    SequenceRows or StoredSequenceRows
        The same steps in the same order, without a memory.

    Examples
    --------
    >>> import torch
    >>> from sksvae.sequence_objective import SequenceRows, single_steps
    >>> x = torch.arange(3.0).unsqueeze(1)
    >>> single_steps(SequenceRows(x, x, torch.tensor([2, 1]))).lengths
    tensor([1, 1, 1])
    """
    lengths = rows.lengths
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    start = steps_of(torch.zeros_like(lengths), lengths)
    return rows.windows(sequence, start, torch.ones_like(start))


def sequences_in_order(lengths: Tensor, n_rows: int) -> Iterator[Tensor]:
    """Sequences in order, at most so many steps with padding at a time, or one sequence.

    Parameters
    ----------
    lengths : Tensor of int of shape (n_sequences,)
        Steps of each.
    n_rows : int
        Most steps of a padded batch of several sequences.

    Yields
    ------
    Tensor of int
        Numbers of sequences.

    Examples
    --------
    >>> import torch
    >>> from sksvae.sequence_objective import sequences_in_order
    >>> list(sequences_in_order(torch.tensor([2, 3, 9]), n_rows=6))
    [tensor([0, 1]), tensor([2])]
    """
    first = longest = 0
    for i, length in enumerate([*lengths.tolist(), math.inf]):
        longest = max(longest, length)
        if i > first and longest * (i + 1 - first) > n_rows:
            yield torch.arange(first, i, device=lengths.device)
            first, longest = i, length


class SequenceVAE(StructuredVAE):
    """Networks and likelihood for steps, a graphical model for sequences, under one bound.

    See `sksvae.objective.StructuredVAE` for the parameters; ``graphical`` is a `SequenceModel`.
    """

    def encode(self, rows: SequenceRows) -> Potentials:
        """Potentials of each step, stacked.

        What is missing of a step is filled in from what the rest of it says. Potentials shrink with
        the share of the features that is missing, to nothing for a step without an observation.
        """
        missing = rows.observed.isnan()
        share = 1.0 - missing.to(rows.encoded.dtype).mean(-1, keepdim=True)
        filled = self._filled(rows.encoded, missing)
        return Potentials(*(share * field for field in self.potentials(filled)))

    @torch.no_grad()
    def _filled(self, encoded: Tensor, missing: Tensor) -> Tensor:
        """Steps with what is missing as decoder and encoder, in turns, agree that it should be.

        In a linear model that is least squares on what was observed. Latents have about unit
        variance, which holds those back of which a step says next to nothing. Where rounds do not
        settle, nothing is filled in.
        """
        rows = (missing.any(-1) & ~missing.all(-1)).nonzero().squeeze(1)
        if not len(rows):
            return encoded
        own, gaps = encoded[rows], missing[rows]
        filled, settles = own, torch.ones_like(gaps[:, :1])
        rounding = math.sqrt(torch.finfo(own.dtype).eps) * (1.0 + own.norm(dim=-1, keepdim=True))
        last = torch.full_like(rounding, torch.inf)
        for _ in range(_FILLINGS):
            r, R = self.encoder(filled)
            said = torch.where(gaps, self.decoder(r / (R + 1.0))[..., 0, :], own)
            change = (said - filled).norm(dim=-1, keepdim=True)
            settles &= change <= last.maximum(rounding)
            filled, last = said, change
        # Far from what they were trained on, networks may lead ever further away.
        filled = torch.where(settles, filled, own)
        return encoded.index_copy(0, rows, filled)

    def infer(
        self,
        rows: SequenceRows,
        params: tuple[Tensor, ...] | None = None,
        noise: Tensor | None = None,
        method: ChainMethod = "auto",
    ) -> ChainPosterior:
        """Posterior of the latents of each sequence, padded."""
        if params is None:
            params = self.graphical.expected_params()
        mask = rows.mask
        potentials = padded(self.encode(rows), mask)
        return self.graphical.infer(potentials, params, mask, noise, method, self.settings)

    def elbo(self, rows: SequenceRows, params: tuple[Tensor, ...], noise: Tensor) -> ELBOTerms:
        """Bound on sequences, the prior KL left out.

        Parameters
        ----------
        rows : SequenceRows
            Data.
        params : tuple of Tensor
            Expected parameters of the graphical model.
        noise : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim)
            Standard normal numbers.

        Returns
        -------
        ELBOTerms
            Reconstruction per step, local KL per sequence; differentiable in the networks and in
            ``params``.
        """
        mask = rows.mask
        potentials = self.encode(rows)
        posterior = self.graphical.infer(
            padded(potentials, mask),
            params,
            mask,
            noise,
            _method(rows, potentials),
            self.settings,
            start=rows.recall(),
        )
        rows.remember(posterior)
        draws = posterior.draws[:, mask]
        reconstruction = self.log_likelihood(rows, draws)
        mean, variance = posterior.mean[mask], posterior.covariance.diagonal(dim1=-2, dim2=-1)[mask]
        reconstruction = reconstruction - control_variate(potentials, mean, variance, draws)
        return ELBOTerms(reconstruction.mean(0), posterior)


def _method(rows: SequenceRows, potentials: Potentials) -> ChainMethod:
    """How chains are inferred: those of a share as the whole minibatch would be.

    In another order of elimination the same noise gives other draws.
    """
    if rows.whole is None:
        return "auto"
    return automatic_method(
        *rows.whole, *potentials.precision.shape[1:], potentials.precision.device
    )


def padded(potentials: Potentials, mask: Tensor) -> Potentials:
    """Potentials of stacked steps as those of sequences, zero after their ends.

    Parameters
    ----------
    potentials : Potentials
        Of shape (n_rows, latent_dim).
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist, as many as there are rows.

    Returns
    -------
    Potentials
        Of shape (n_sequences, n_steps, latent_dim).

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import Potentials
    >>> from sksvae.sequence_objective import padded
    >>> steps = torch.tensor([[1.0], [2.0], [3.0]])
    >>> padded(Potentials(steps, steps), torch.tensor([[True, True], [True, False]])).precision
    tensor([[[1.],
             [2.]],
    <BLANKLINE>
            [[3.],
             [0.]]])
    """
    return Potentials(*(pad_steps(field, mask) for field in potentials))


def pad_steps(values: Tensor, mask: Tensor) -> Tensor:
    """Stacked steps as those of sequences, zero after their ends.

    Parameters
    ----------
    values : Tensor of shape (n_rows, n_values)
        Of stacked steps.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist, as many as there are rows.

    Returns
    -------
    Tensor of shape (n_sequences, n_steps, n_values)
        Differentiable in the values.

    Examples
    --------
    >>> import torch
    >>> from sksvae.sequence_objective import pad_steps
    >>> pad_steps(torch.ones(1, 2), torch.tensor([[True, False]]))
    tensor([[[1., 1.],
             [0., 0.]]])
    """
    return values.new_zeros(*mask.shape, values.shape[-1]).index_put((mask,), values)
