# SPDX-License-Identifier: BSD-3-Clause
"""Completions of sequences with gaps: latents and states drawn in turn."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from sksvae.estimators.sequences import CHUNK_STEPS
from sksvae.graphical import Potentials, SwitchingPosterior
from sksvae.graphical.switching_inference import SwitchingProblem
from sksvae.inference import draw_paths
from sksvae.sequence_objective import SequenceRows, SequenceVAE, pad_steps, padded

_SWEEPS = 20  # of all latents and all states, until a completion is drawn


@dataclass(frozen=True)
class Completions:
    """Draws of latents of sequences, each from a Markov chain of its own.

    It begins with a path of states: drawn from what the best posterior says where something is
    observed, and from the prior between, so that all ways through a gap occur ([P] appendix A.6).
    Draws of all latents given the states and of all states given the latents follow. After some of
    them the path agrees with both sides of the gap, and its draws have the proportions of the
    posterior, which q(z) q(k) around a path cannot have.

    Parameters
    ----------
    potentials : Potentials
        Evidence on the latents, of shape (n_sequences, n_steps, latent_dim).
    states : Tensor of shape (n_sequences, n_steps, n_states)
        Evidence on the states where something is observed, zero elsewhere.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.
    params : tuple of Tensor
        Expected parameters of the dynamics.
    """

    potentials: Potentials
    states: Tensor
    mask: Tensor
    params: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, model: SequenceVAE, rows: SequenceRows, posterior: SwitchingPosterior
    ) -> "Completions":
        """From rows and their best posterior."""
        seen = pad_steps(~rows.observed.isnan().all(-1, keepdim=True), rows.mask).squeeze(-1)
        # What moves into a step is known where the one before is observed, too.
        known = pad(seen[:, 1:] & seen[:, :-1], (1, 0)).unsqueeze(-1)
        return cls(
            padded(model.encode(rows), rows.mask),
            torch.where(known, posterior.energies, 0.0),
            rows.mask,
            model.graphical.expected_params(),
        )

    def alone(self, sequence: int) -> "Completions":
        """Of one of the sequences, without the padding."""
        steps = sequence, slice(int(self.mask[sequence].sum()))
        potentials, states, mask = (
            (part[steps].unsqueeze(0) for part in self.potentials),
            self.states[steps].unsqueeze(0),
            self.mask[steps].unsqueeze(0),
        )
        return replace(self, potentials=Potentials(*potentials), states=states, mask=mask)

    def draw(self, n_draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents, and their means given the path of states that they were drawn with.

        Both are of shape (n_draws, n_sequences, n_steps, latent_dim).
        """
        mask = self.mask
        paths = draw_paths(*self.params[8:], self.states, n_draws, generator, mask=mask)
        parts = []
        for some in paths.split(max(1, CHUNK_STEPS // mask.numel())):
            repeated = (field.repeat(len(some), 1, 1) for field in self.potentials)
            problem = SwitchingProblem.build(
                Potentials(*repeated), self.params, mask.repeat(len(some), 1)
            )
            drawn = _after_sweeps(problem, some.flatten(0, 1), generator)
            parts.append([part.unflatten(0, some.shape[:2]) for part in drawn])
        draws, means = (torch.cat(part) for part in zip(*parts, strict=True))
        return draws, means


def _after_sweeps(
    problem: SwitchingProblem, paths: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents given states and states given latents in turn, from given paths."""
    n_sweeps = _SWEEPS if problem.n_states > 1 else 1
    like = problem.potentials.precision
    for sweep in range(1, n_sweeps + 1):
        states = one_hot(paths.clamp_min(0), problem.n_states) * problem.mask.unsqueeze(-1)
        noise = torch.randn(
            (1, *like.shape), generator=generator, dtype=like.dtype, device=like.device
        )
        given_states = problem.gaussian(states.to(noise), noise)
        if sweep < n_sweeps:
            certain = replace(
                given_states,
                mean=given_states.draws[0],
                covariance=torch.zeros_like(given_states.covariance),
                lag_covariance=torch.zeros_like(given_states.lag_covariance),
            )
            (paths,) = draw_paths(
                problem.log_initial,
                problem.log_transition,
                problem.energies(certain),
                1,
                generator,
                mask=problem.mask,
            )
    return given_states.draws[0], given_states.mean


def near_gaps(
    missing: Tensor, lengths: Tensor, *, min_length: int, margin: int
) -> tuple[Tensor, Tensor]:
    """Steps in and around gaps.

    Parameters
    ----------
    missing : Tensor of bool of shape (n_rows,)
        Steps of which nothing is observed, one sequence after the other.
    lengths : Tensor of int of shape (n_sequences,)
        Steps of each sequence.
    min_length : int
        Steps of the shortest gap that counts.
    margin : int
        Steps on either side of a gap.

    Returns
    -------
    numbers : Tensor of int
        Steps, as numbers over all sequences.
    lengths : Tensor of int
        Of the stretches that these steps make up.

    Examples
    --------
    >>> import torch
    >>> from sksvae.estimators.completions import near_gaps
    >>> missing = torch.tensor([0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1]).bool()
    >>> near_gaps(missing, torch.tensor([8, 4]), min_length=2, margin=1)
    (tensor([ 1,  2,  3,  4,  9, 10, 11]), tensor([4, 3]))
    """
    end = lengths.cumsum(0)
    begins = torch.zeros_like(missing)
    begins[end - lengths] = True
    start, stop = _runs(missing, begins)
    long = stop - start >= min_length
    start, stop = start[long], stop[long]
    sequence = torch.searchsorted(end, start, right=True)
    change = lengths.new_zeros(len(missing) + 1)
    for places, step in (
        (torch.maximum(start - margin, (end - lengths)[sequence]), 1),
        (torch.minimum(stop + margin, end[sequence]), -1),
    ):
        change.index_add_(0, places, torch.full_like(places, step))
    near = change[:-1].cumsum(0) > 0
    start, stop = _runs(near, begins)
    return near.nonzero().squeeze(-1), stop - start


def _runs(flags: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Where runs of true flags start and stop; what begins a sequence begins a run."""
    first = flags & (begins | ~pad(flags[:-1], (1, 0)))
    last = flags & (pad(begins[1:], (0, 1), value=True) | ~pad(flags[1:], (0, 1)))
    return first.nonzero().squeeze(-1), last.nonzero().squeeze(-1) + 1
