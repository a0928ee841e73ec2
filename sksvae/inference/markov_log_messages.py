# SPDX-License-Identifier: BSD-3-Clause
r"""Messages of discrete Markov chains in logarithms, for any weights whatever.

The derivatives work with the transition probabilities of the posterior chain, computed anew from
the backward messages at each step: memory linear in ``T K``, as in probability space, where the
same is several times faster (see `sksvae.inference.markov_messages`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sksvae.inference.markov_sweeps import PairWeights, reverse_steps, steps_exist, where_present


@dataclass(frozen=True)
class LogMessages:
    """Messages in logarithms.

    Parameters
    ----------
    log_normalizer : Tensor of shape (B,)
        ``log Z``.
    marginals : Tensor of shape (T, B, K)
        ``gamma``, zero at steps that do not exist.
    log_later : Tensor of shape (T, B, K)
        ``log r``, up to a constant per step.
    log_transition : Tensor of shape (B or 1, K, K)
        ``log P``.
    lengths : Tensor of shape (B,), optional
        Steps of each chain, all if None.
    """

    log_normalizer: Tensor
    marginals: Tensor
    log_later: Tensor
    log_transition: Tensor
    lengths: Tensor | None

    @classmethod
    def build(cls, energy: Tensor, log_transition: Tensor, lengths: Tensor | None) -> "LogMessages":
        """Run both sweeps for ``energy`` of shape (T, B, K), initial term included."""
        both = torch.stack((energy, reverse_steps(energy, lengths)), 1)
        # A sum over the last axis is the fast one: P transposed for the forward messages.
        table = torch.stack((log_transition.mT, log_transition))
        vectors, images = torch.empty_like(both), torch.zeros_like(both)
        totals = torch.empty_like(both[..., :1])
        x = both[0]
        for t in range(len(energy)):
            if t:
                torch.logsumexp(table + x.unsqueeze(-2), -1, out=images[t])
                x = both[t] + images[t]
            torch.logsumexp(x, -1, keepdim=True, out=totals[t])
            x = torch.sub(x, totals[t], out=vectors[t])
        present = steps_exist(lengths, len(energy))
        joint = vectors[:, 0] + reverse_steps(images[:, 1], lengths)
        return cls(
            where_present(present, totals[:, 0], 0.0).sum((0, -1)),
            where_present(present, joint.softmax(-1), 0.0),
            where_present(present, reverse_steps(vectors[:, 1], lengths), 0.0),
            log_transition,
            lengths,
        )

    def select(self, rows: Tensor) -> "LogMessages":
        """Messages of some of the chains."""
        table = self.log_transition
        return LogMessages(
            self.log_normalizer[rows],
            self.marginals[:, rows],
            self.log_later[:, rows],
            table if len(table) == 1 else table[rows],
            None if self.lengths is None else self.lengths[rows],
        )

    def _kernel(self, t: int) -> Tensor:
        """``p(k_{t+1} | k_t)`` under the posterior, of shape (B, K, K); zero after the end."""
        kernel = (self.log_transition + self.log_later[t + 1].unsqueeze(-2)).softmax(-1)
        kernel = kernel.nan_to_num(0.0)  # rows of states that lead nowhere
        if self.lengths is not None:
            kernel *= (self.lengths > t + 1)[:, None, None]
        return kernel

    def _pair(self, t: int) -> Tensor:
        return self.marginals[t].unsqueeze(-1) * self._kernel(t)

    def pair_counts(self) -> Tensor:
        """Pair marginals summed over steps, of shape (B, K, K)."""
        n_steps, n_chains, n_states = self.marginals.shape
        counts = self.marginals.new_zeros(n_chains, n_states, n_states)
        for t in range(n_steps - 1):
            counts += self._pair(t)
        return counts

    def pair_marginals(self) -> Tensor:
        """``p(k_t, k_{t+1})``, of shape (B, T - 1, K, K)."""
        n_steps, n_chains, n_states = self.marginals.shape
        pairs = self.marginals.new_empty(n_chains, n_steps - 1, n_states, n_states)
        for t in range(n_steps - 1):
            pairs[:, t] = self._pair(t)
        return pairs

    def fisher(
        self, weights: Tensor, pair_weights: PairWeights | None = None, want_pairs: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Covariances of ``f`` with the indicators of states, and with the counts of pairs.

        ``weights`` is ``v``, of shape (T, B, K).
        """
        gamma = self.marginals
        n_steps, n_chains, n_states = gamma.shape
        v = weights - (gamma * weights).sum(-1, keepdim=True)
        future = torch.zeros_like(gamma)  # E[f after t | k_t]
        for t in reversed(range(n_steps - 1)):
            kernel = self._kernel(t)
            gain = (v[t + 1] + future[t + 1]).unsqueeze(-2).expand_as(kernel)
            if pair_weights is not None:
                gain = gain + self._centered(pair_weights, t, kernel)
            future[t] = (kernel * gain).sum(-1)
        past = gamma * v  # gamma * E[f up to t | k_t]
        counts = gamma.new_zeros(n_chains, n_states, n_states) if want_pairs else None
        for t in range(n_steps - 1):
            kernel = self._kernel(t)
            flow = past[t].unsqueeze(-1) * kernel
            pair = gamma[t].unsqueeze(-1) * kernel
            if pair_weights is not None:
                flow += pair * self._centered(pair_weights, t, kernel)
            past[t + 1] += flow.sum(-2)
            if counts is not None:
                counts += flow + pair * (v[t + 1] + future[t + 1]).unsqueeze(-2)
        return past + gamma * future, counts

    def _centered(self, weights: PairWeights, t: int, kernel: Tensor) -> Tensor:
        """``V`` minus its posterior mean at a step."""
        value: Any = 0.0
        if weights.constant is not None:
            value = value + weights.constant
        if weights.stepwise is not None:
            value = value + weights.stepwise[:, t]
        pair = self.marginals[t].unsqueeze(-1) * kernel
        return value - (pair * value).sum((-2, -1), keepdim=True)
