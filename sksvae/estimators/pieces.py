# SPDX-License-Identifier: BSD-3-Clause
"""Stretches of sequences to infer at a time: long recordings in pieces that have to agree.

Each piece is inferred with some steps more on both sides, its margins. Of what is found only the
steps of the piece itself are read; ``mu`` be the probabilities of states put together that way.
They are a fixed point of the block updates of the whole sequence if, at every seam, both pieces say
the same of the two steps that meet there:

* Given ``mu``, the rest of a sequence acts on the steps of a piece through two messages, one from
  each side, for q(z) and likewise for q(k). What leaves a piece on its right depends on what enters
  it on its left and on its own steps. The first piece has nothing on its left; so if neighbours
  agree on the messages that cross the seams to the right, these are, one after the other, those of
  the whole sequence given ``mu``. The same holds from the right. Then all moments that are read are
  those of the whole sequence, and ``mu`` is what its next update gives.
* Neighbours that agree on the marginals of both steps at a seam agree on its messages: densities
  ``F(x) psi(x, y) B(y)`` with the same transition ``psi`` and the same two marginals are the same
  [1]_. The transition of z is averaged with the probabilities of the second state, which are among
  the marginals, and the energy of the second state is part of its ``B``.

Small differences at seams do not add up, since each is forgotten within a few margins.

References
----------
.. [1] Ruschendorf and Thomsen, "Note on the Schrodinger equation and I-projections", Statistics &
   Probability Letters 17, 1993. For tables, Sinkhorn's theorem of 1967.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sksvae.sequence_objective import SequenceRows
from sksvae.sequences import Windows

_AT_MOST = 4  # pieces that become one at a time
# Block updates stop once a round changes less than their tolerance. Where a round takes away one
# per cent of what is left, they are a hundred tolerances from their end.
_SLACK = 100.0


class Seam(NamedTuple):
    """What one of two pieces says of the last step before a seam and the first after it.

    Parameters
    ----------
    mean : Tensor of shape (2, latent_dim)
        Of the latents.
    covariance : Tensor of shape (2, latent_dim, latent_dim)
        Of the latents.
    states : Tensor of shape (2, n_states)
        Probabilities of the states.
    """

    mean: Tensor
    covariance: Tensor
    states: Tensor

    def agrees(self, other: "Seam", tol: float) -> bool:
        """Whether another piece says the same.

        Parameters
        ----------
        other : Seam
            What it says.
        tol : float
            Tolerance of the block updates.

        Returns
        -------
        bool
            Probabilities, and moments in units of standard deviations, may differ by a hundred
            tolerances, and by what rounding leaves.
        """
        rounding = torch.finfo(self.mean.dtype).eps ** 0.5
        scale = self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        mean = (self.mean - other.mean) / (scale + rounding * self.mean.abs())
        covariance = (self.covariance - other.covariance) / (scale[..., None] * scale[:, None])
        limit = max(_SLACK * tol, rounding)
        return all(  # NaN agrees with nothing
            bool((part.abs() <= limit).all())
            for part in (mean, covariance, self.states - other.states)
        )


class Batch(NamedTuple):
    """Pieces that are inferred side by side, read when they are needed.

    Parameters
    ----------
    pieces : ndarray of int of shape (n_windows,)
        Numbers of the pieces.
    windows : Windows
        The pieces with their margins.
    read : callable
        Makes `SequenceRows` of windows.
    """

    pieces: np.ndarray
    windows: Windows
    read: Callable[[Windows], SequenceRows]

    @property
    def n_steps(self) -> int:
        """Steps of all windows."""
        return int(self.windows.length.sum())

    def rows(self) -> SequenceRows:
        """All steps."""
        return self.read(self.windows)

    def stretch(self, start: int, stop: int) -> SequenceRows:
        """Some steps of the only window."""
        sequence, first = self.windows.sequence, self.windows.start
        return self.read(Windows(sequence, first + start, np.array([stop - start])))


class Pieces:
    """Pieces of sequences, and which of them are to be inferred.

    Parameters
    ----------
    inner : Windows
        What is read of each piece. Those of a sequence stand in order, next to each other.
    lengths : ndarray of int of shape (n_sequences,)
        Steps of the sequences.
    margin : int, default=0
        Steps before and after a piece that are inferred with it. A seam is two steps, which both
        pieces have to know, so there is one at least.

    Attributes
    ----------
    waiting : ndarray of bool of shape (n_pieces,)
        Pieces to be inferred.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.estimators.pieces import Pieces
    >>> from sksvae.sequences import Windows
    >>> pieces = Pieces(Windows.whole([10]).cut(4), np.array([10]), margin=2)
    >>> pieces.outer.start, pieces.outer.stop
    (array([0, 2, 5]), array([ 6,  9, 10]))
    """

    def __init__(self, inner: Windows, lengths: np.ndarray, margin: int = 0) -> None:
        self.inner, self.lengths = inner, lengths
        self.margin = np.full(len(inner), max(margin, 1))
        self.waiting = np.ones(len(inner), bool)
        self._known = np.zeros(len(inner), bool)
        self._seams: dict[tuple[int, int, str], Seam] = {}

    @property
    def outer(self) -> Windows:
        """Pieces with their margins."""
        inner = self.inner
        first = np.maximum(inner.start - self.margin, 0)
        stop = np.minimum(inner.stop + self.margin, self.lengths[inner.sequence])
        return Windows(inner.sequence, first, stop - first)

    @property
    def _joints(self) -> np.ndarray:
        """Whether a piece and the next meet in a seam, of shape (n_pieces - 1,)."""
        return self.inner.sequence[1:] == self.inner.sequence[:-1]

    def ends(self) -> "Pieces":
        """Let only the last piece of each sequence wait, and the one before, to agree with it."""
        last = np.append(~self._joints, True)
        self.waiting = last | self._before(last)
        return self

    def _before(self, chosen: np.ndarray) -> np.ndarray:
        """Pieces that a chosen one follows."""
        return np.append(self._joints & chosen[1:], False)

    def _after(self, chosen: np.ndarray) -> np.ndarray:
        """Pieces that follow a chosen one."""
        return np.append(False, self._joints & chosen[:-1])

    def batches(self, max_steps: int, read: Callable[[Windows], SequenceRows]) -> Iterator[Batch]:
        """Pieces that wait, with about as many steps at a time."""
        (waiting,) = np.nonzero(self.waiting)
        windows = self.outer.take(waiting)
        for some in windows.batches(max_steps):
            yield Batch(waiting[some], windows.take(some), read)

    def inside(self, batch: Batch) -> np.ndarray:
        """Which steps of a batch are to be read: those without margins."""
        inner, outer = self.inner.take(batch.pieces), batch.windows
        before = np.cumsum(outer.length) - outer.length
        step = np.arange(batch.n_steps) - np.repeat(before - outer.start, outer.length)
        first, stop = (np.repeat(edge, outer.length) for edge in (inner.start, inner.stop))
        return (first <= step) & (step < stop)

    def record(self, batch: Batch, posterior: Any) -> None:
        """Keep what pieces say at their seams."""
        self._known[batch.pieces] = True
        everything, inner = np.ones(len(self.inner), bool), self.inner.take(batch.pieces)
        for side, steps, exists in (
            ("before", inner.stop, self._before(everything)),
            ("after", inner.start, self._after(everything)),
        ):
            for row in np.flatnonzero(exists[batch.pieces]):
                at = int(steps[row] - batch.windows.start[row])
                # Copies: a view would keep the moments of all steps.
                said = Seam(
                    *(
                        getattr(posterior, name)[row, at - 1 : at + 1].clone()
                        for name in Seam._fields
                    )
                )
                self._seams[int(inner.sequence[row]), int(steps[row]), side] = said

    def join(self, tol: float) -> None:
        """Make one piece of up to four where neighbours disagree; such pieces wait.

        Their margins are as long as those of their parts together. As there are fewer pieces every
        time, in the end all agree, or a sequence is one piece.

        Parameters
        ----------
        tol : float
            Tolerance of the block updates.
        """
        apart = self._apart(tol)
        number, run = np.arange(len(self.inner)), np.append(0, np.cumsum(~apart))
        size = np.bincount(run)[run]
        place = number - np.searchsorted(run, run)
        part = place * -(-size // _AT_MOST) // size
        first = np.flatnonzero(np.append(True, ~apart | (part[1:] != part[:-1])))
        joined = np.diff(np.append(first, len(number))) > 1
        sequence, start, length = self.inner.sequence, self.inner.start, self.inner.length
        self.inner = Windows(sequence[first], start[first], np.add.reduceat(length, first))
        self.margin = np.add.reduceat(self.margin, first)
        self._known = self._known[first] & ~joined
        self.waiting = (joined | self._before(joined) | self._after(joined)) & ~self._known

    def _apart(self, tol: float) -> np.ndarray:
        """Whether a piece and the next, both inferred, disagree at their seam."""
        apart = np.zeros(len(self.inner) - 1, bool)
        for i in np.flatnonzero(self._joints & self._known[1:] & self._known[:-1]):
            seam = int(self.inner.sequence[i]), int(self.inner.stop[i])
            one, other = (self._seams[*seam, side] for side in ("before", "after"))
            apart[i] = not one.agrees(other, tol)
        return apart
