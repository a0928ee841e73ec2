# SPDX-License-Identifier: BSD-3-Clause
"""Latent sequences as padded parts: from stacked points, in one order, and samples of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sksvae.graphical import ChainPosterior
from sksvae.sequences import Windows


class PointSequences(NamedTuple):
    """Sequences of known latents, in padded parts.

    Parameters
    ----------
    parts : list of ChainPosterior
        Sequences of similar lengths, with covariances of zero that take no memory.
    rows : list of Tensor of int64 of shape (n_sequences, n_steps)
        For each part, the row of the stacked points that each step is; -1 where there is none.
    """

    parts: list[ChainPosterior]
    rows: list[Tensor]

    def stack(self, values: Sequence[Tensor]) -> Tensor:
        """Values of padded steps, such as probabilities of states, one row per point.

        Parameters
        ----------
        values : sequence of Tensor of shape (n_sequences, n_steps, ...)
            One for each part.

        Returns
        -------
        Tensor of shape (n_rows, ...)
            In the order of the points.

        Examples
        --------
        >>> import torch
        >>> from sksvae.autoregressive_hmm import point_sequences
        >>> points = torch.arange(6.0).unsqueeze(-1)
        >>> sequences = point_sequences(points, [3, 1, 2], max_rows=4)
        >>> [part.mean.shape[:2] for part in sequences.parts]
        [torch.Size([2, 2]), torch.Size([1, 3])]
        >>> bool((sequences.stack([part.mean for part in sequences.parts]) == points).all())
        True
        """
        return _stack(self.rows, values)


def point_sequences(points: Tensor, lengths: ArrayLike, max_rows: int = 20_000) -> PointSequences:
    """Arrange stacked points in parts of sequences of similar lengths.

    Parameters
    ----------
    points : Tensor of shape (n_rows, latent_dim)
        Sequences, one stacked after the other.
    lengths : array-like of int of shape (n_sequences,)
        Number of steps of each, at least one.
    max_rows : int, default=20_000
        Most steps of a part, padding included. A longer sequence is a part by itself.

    Returns
    -------
    PointSequences
        The parts, and where each point is.

    Raises
    ------
    ValueError
        If the lengths are not positive or do not sum to the number of points.

    Examples
    --------
    >>> import torch
    >>> from sksvae.autoregressive_hmm import point_sequences
    >>> sequences = point_sequences(torch.zeros(7, 2), [4, 3])
    >>> sequences.rows[0]
    tensor([[ 4,  5,  6, -1],
            [ 0,  1,  2,  3]])
    """
    windows = Windows.whole(lengths)
    if (windows.length < 1).any() or windows.length.sum() != len(points):
        raise ValueError(
            f"lengths must be positive and sum to the number of points, {len(points)}, got a sum "
            f"of {windows.length.sum()} and a smallest of {windows.length.min(initial=0)}."
        )
    first = np.cumsum(windows.length) - windows.length
    rows = []
    for batch in windows.batches(max_rows):
        n_steps = windows.length[batch]
        steps = np.arange(n_steps.max())
        exists = steps < n_steps[:, None]
        index = np.where(exists, first[batch][:, None] + steps, -1)
        rows.append(torch.as_tensor(index, device=points.device))
    return PointSequences([point_part(points[index], index >= 0) for index in rows], rows)


def point_part(mean: Tensor, mask: Tensor) -> ChainPosterior:
    """Sequences of points as moments.

    Parameters
    ----------
    mean : Tensor of shape (n_sequences, n_steps, latent_dim)
        The points.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which of them exist.

    Returns
    -------
    ChainPosterior
        With covariances of zero that take no memory, and no draws.
    """
    n_sequences, n_steps, dim = mean.shape
    zero = mean.new_zeros(1, 1, 1, 1)
    return ChainPosterior(
        mean=torch.where(mask.unsqueeze(-1), mean, 0.0),
        covariance=zero.expand(n_sequences, n_steps, dim, dim),
        lag_covariance=zero.expand(n_sequences, n_steps - 1, dim, dim),
        draws=mean.new_zeros(0, n_sequences, n_steps, dim),
        local_kl=mean.new_zeros(n_sequences),
        mask=mask,
    )


def is_points(part: ChainPosterior) -> bool:
    """Whether the latents of a part are known, by the mark that `point_part` leaves."""
    covariance = part.covariance  # axes of length one keep their stride
    steps = zip(covariance.stride(), covariance.shape, strict=True)
    return not any(step for step, n in steps if n > 1) and not covariance[:1, :1].any()


def as_double(part: ChainPosterior) -> ChainPosterior:
    """Moments in double precision, without a gradient and without draws.

    Parameters
    ----------
    part : ChainPosterior
        Any sequences.

    Returns
    -------
    ChainPosterior
        One that `is_points` recognises if all covariances are zero.

    Raises
    ------
    ValueError
        If a mean is not finite, or steps do not come first in their sequence.
    """
    mean, mask = part.mean.detach().double(), part.mask
    if not torch.where(mask.unsqueeze(-1), mean, 0.0).isfinite().all():
        raise ValueError("parts must have finite means; they hold NaN or infinity.")
    if (mask[:, 1:] & ~mask[:, :-1]).any() or not mask[:, :1].all():
        raise ValueError("mask must be true for the first steps of each sequence, without gaps.")
    points = point_part(mean, mask)
    covariance, lag_covariance = part.covariance.detach(), part.lag_covariance.detach()
    if not covariance.any() and not lag_covariance.any():
        return points
    return ChainPosterior(
        mean=points.mean,
        covariance=covariance.double(),
        lag_covariance=lag_covariance.double(),
        draws=points.draws,
        local_kl=points.local_kl,
        mask=mask,
    )


class Stacking(NamedTuple):
    """All steps in one order that does not depend on how sequences are grouped in parts.

    Parameters
    ----------
    means : Tensor of shape (n_rows, latent_dim)
        ``E[z_t]``, one sequence after the other, shorter ones first.
    lengths : ndarray of int of shape (n_sequences,)
        Their numbers of steps.
    place : ndarray of int of shape (n_sequences, 2)
        Part and place in the part of each.
    rows : list of Tensor of int64 of shape (n_sequences, n_steps)
        As in `PointSequences`.
    """

    means: Tensor
    lengths: np.ndarray
    place: np.ndarray
    rows: list[Tensor]

    @classmethod
    def of(cls, parts: Sequence[ChainPosterior]) -> "Stacking":
        """Sort sequences by length, those of one length by where they start and end."""
        place = np.concatenate(
            [
                np.stack((np.full(len(part.mask), p), np.arange(len(part.mask))), 1)
                for p, part in enumerate(parts)
            ]
        )
        lengths = torch.cat([part.mask.sum(-1) for part in parts]).cpu().numpy()
        ends = torch.cat([_ends(part) for part in parts]).cpu().numpy()
        order = np.lexsort((*ends.T, lengths))
        place, lengths = place[order], lengths[order]
        first = np.cumsum(lengths) - lengths
        rows = []
        for p, part in enumerate(parts):
            starts = np.empty(len(part.mask), dtype=np.int64)
            own = place[:, 0] == p
            starts[place[own, 1]] = first[own]
            steps = torch.arange(part.mask.shape[1], device=part.mask.device)
            index = torch.as_tensor(starts, device=part.mask.device)[:, None] + steps
            rows.append(torch.where(part.mask, index, -1))
        return cls(_stack(rows, [part.mean for part in parts]), lengths, place, rows)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Rows of the first and of the last step of the sequence of each row: (n_rows,) each."""
        lengths = torch.as_tensor(self.lengths, device=self.means.device)
        last = lengths.cumsum(0) - 1
        return (last - lengths + 1).repeat_interleave(lengths), last.repeat_interleave(lengths)

    def stack(self, values: Sequence[Tensor]) -> Tensor:
        """Values of padded steps in the order of the stacking, as `PointSequences.stack`."""
        return _stack(self.rows, values)

    def sample(
        self,
        parts: Sequence[ChainPosterior],
        max_rows: int,
        max_length: int,
        generator: torch.Generator,
    ) -> list[ChainPosterior]:
        """Draw windows of the sequences.

        Parameters
        ----------
        parts : sequence of ChainPosterior
            What this is the stacking of.
        max_rows : int
            Most steps in total.
        max_length : int
            Most steps of a window.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        list of ChainPosterior
            Windows, in parts.
        """
        windows = Windows.whole(self.lengths).cut(max_length)
        order = torch.randperm(len(windows), generator=generator, device=generator.device)
        order = order.cpu().numpy()
        n_taken = np.searchsorted(np.cumsum(windows.length[order]), max_rows, side="right")
        windows = windows.take(np.sort(order[: max(n_taken, 1)]))
        part_of, chain_of = self.place[windows.sequence].T
        return [
            _cut(part, chain_of[own], windows.start[own], windows.length[own])
            for p, part in enumerate(parts)
            if (own := part_of == p).any()
        ]


def _stack(rows: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    exists = [index >= 0 for index in rows]
    order = torch.cat([index[kept] for index, kept in zip(rows, exists, strict=True)])
    steps = torch.cat([value[kept] for value, kept in zip(values, exists, strict=True)])
    stacked = torch.empty_like(steps)
    stacked[order] = steps
    return stacked


def _ends(part: ChainPosterior) -> Tensor:
    """First and last mean of each sequence, of shape (n_sequences, 2 latent_dim)."""
    chain, last = torch.arange(len(part.mask), device=part.mask.device), part.mask.sum(-1) - 1
    return torch.cat((part.mean[:, 0], part.mean[chain, last]), -1)


def _cut(
    part: ChainPosterior, chain: np.ndarray, start: np.ndarray, length: np.ndarray
) -> ChainPosterior:
    """Windows of the sequences of a part."""
    device = part.mean.device
    chain, start, length = (
        torch.as_tensor(array, device=device)[:, None] for array in (chain, start, length)
    )
    steps = torch.arange(int(length.max()), device=device)
    mask = steps < length
    index = torch.where(mask, start + steps, 0)
    cut = point_part(part.mean[chain, index], mask)
    if is_points(part):
        return cut
    moves = mask[:, 1:]
    return ChainPosterior(
        mean=cut.mean,
        covariance=part.covariance[chain, index] * mask[..., None, None],
        lag_covariance=part.lag_covariance[chain, torch.where(moves, index[:, :-1], 0)]
        * moves[..., None, None],
        draws=cut.draws,
        local_kl=cut.local_kl,
        mask=mask,
    )
