# SPDX-License-Identifier: BSD-3-Clause
r"""Messages of discrete Markov chains, and the Fisher matrices that follow from them.

With likelihoods ``l_t``, transition matrix ``P``, ``alpha_t`` the probabilities of ``k_t`` given
the steps up to ``t``, ``c_t`` what normalises them, and ``gamma_t`` the posterior marginals ::

    alpha_t = l_t * (alpha_{t-1} P) / c_t,    log Z = sum_t log c_t,
    r_t = l_t * beta_t / c_t,    beta_t = P r_{t+1},    gamma_t = alpha_t * beta_t,
    p(k_t = i, k_{t+1} = j) = alpha_t(i) P_ij r_{t+1}(j).

Second derivatives of ``log Z`` are covariances under the posterior. For a function of the path
``f = sum_t v_t(k_t) + V(k_t, k_{t+1})``, with terms of zero posterior mean,

    a_t = alpha_t * E[f up to t | k_t] = alpha_t v_t + l_t / c_t * (a_{t-1} P + ...),
    b_t = beta_t * E[f after t | k_t] = P (r_{t+1} v_{t+1} + l_{t+1} / c_{t+1} * b_{t+1}) + ...,
    Cov(f, 1[k_t]) = beta_t a_t + alpha_t b_t,

so a product with the Fisher matrix is one more pair of sweeps, with sources. The forward and the
backward sweep do not need each other: they run side by side, in the same tensor operations.

`ProbabilityMessages` holds probabilities. A state whose ``alpha`` underflows is lost, which is
harmless as long as the states differ by bounded factors in what they lead to: not more than
the largest ratio between entries of ``P``. With structural zeros, or nearly, a lost state may be
the only one that leads to what follows. `LogMessages` then works with logarithms throughout, and
with the transition probabilities of the posterior chain in place of ``P``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.inference.markov_log_messages import LogMessages
from sksvae.inference.markov_sweeps import (
    Blocks,
    PairWeights,
    reverse_steps,
    run_steps,
    steps_exist,
    where_present,
)

_MOST_STEPS_UNNORMALIZED = 32


@dataclass(frozen=True)
class ProbabilityMessages:
    """Messages in probability space.

    Parameters
    ----------
    log_normalizer : Tensor of shape (B,)
        ``log Z``.
    marginals, filtered, later : Tensor of shape (T, B, K)
        ``gamma``, ``alpha`` and ``r``, zero at steps that do not exist, and ``r_1 = 0``.
    scale : Tensor of shape (T - 1, N, n, K)
        ``l_t / c_t`` from the second step on, forward and in the reversed order side by side.
    matrices : Tensor of shape (N, K, K)
        ``P`` and its transpose.
    lengths : Tensor of shape (B,), optional
        Steps of each chain, all if None.
    blocks : Blocks, optional
        For sweeps in blocks.
    """

    log_normalizer: Tensor
    marginals: Tensor
    filtered: Tensor
    later: Tensor
    scale: Tensor
    matrices: Tensor
    lengths: Tensor | None
    blocks: Blocks | None

    @classmethod
    def build(
        cls, energy: Tensor, transition: "Transition", lengths: Tensor | None, parallel: bool
    ) -> "ProbabilityMessages":
        """Run both sweeps for ``energy`` of shape (T, B, K), initial term included."""
        n_steps, n_chains, n_states = energy.shape
        peak = energy.amax(-1, keepdim=True)
        likelihood = (energy - peak).exp()
        both = torch.stack((likelihood, reverse_steps(likelihood, lengths)), 1)
        shared = len(transition.matrix) == 1
        shape = (n_steps, 2, n_chains, n_states) if shared else (n_steps, -1, 1, n_states)
        matrices = torch.cat((transition.matrix, transition.matrix.mT))
        start, scale = both.view(shape)[0], both.view(shape)[1:]
        blocks = Blocks.build(scale, matrices, transition.period) if parallel else None
        run = run_steps if blocks is None else blocks.run
        vectors, images = run(start, scale, matrices, period=transition.period)

        sides = n_steps - 1, 2, n_chains, n_states
        total = start.sum(-1, keepdim=True)
        vectors = torch.cat(((start / total).unsqueeze(0), vectors)).view(n_steps, *sides[1:])
        filtered = vectors[:, 0]
        evidence = (likelihood[1:] * images.view(sides)[:, 0]).sum(-1, keepdim=True)
        # beta of the last step is one; the others come in the reversed order.
        beta = torch.cat((torch.ones_like(energy[:1]), images.view(sides)[:, 1]))
        joint = filtered * reverse_steps(beta, lengths)
        total_joint = joint.sum(-1, keepdim=True)
        later = reverse_steps(vectors[:, 1], lengths)
        later = torch.cat((torch.zeros_like(energy[:1]), later[1:] / total_joint[:-1]))

        log_evidence = evidence.log()
        first = likelihood[:1].sum(-1, keepdim=True).log()
        terms = peak + torch.cat((first, log_evidence + transition.log_scale.view(-1, 1)))
        log_evidence = torch.cat((torch.zeros_like(first), log_evidence))
        log_both = torch.stack((log_evidence, reverse_steps(log_evidence, lengths)), 1)
        log_both = log_both.view(*shape[:-1], 1)[1:]
        if blocks is not None:
            blocks = blocks.rescaled(-log_both.squeeze(-1))
        present = steps_exist(lengths, n_steps)
        return cls(
            where_present(present, terms, 0.0).sum((0, -1)),
            where_present(present, joint / total_joint, 0.0),
            where_present(present, filtered, 0.0),
            where_present(present, later, 0.0),
            scale * (-log_both).exp(),
            matrices,
            lengths,
            blocks,
        )

    @property
    def log_later(self) -> Tensor:
        """``log r_t``, of shape (T, B, K)."""
        return self.later.log()

    def select(self, rows: Tensor) -> "ProbabilityMessages":
        """Messages of some of the chains."""
        n_chains = self.marginals.shape[1]
        pair = torch.cat((rows, rows + n_chains))
        if self.scale.shape[2] > 1 or len(self.matrices) == 2:
            groups, chains = slice(None), rows
            matrices = self.matrices
        else:
            groups, chains, matrices = pair, slice(None), self.matrices[pair]
        blocks = self.blocks
        if blocks is not None:
            blocks = Blocks(*(x[:, groups][:, :, chains] for x in blocks))
        return ProbabilityMessages(
            self.log_normalizer[rows],
            self.marginals[:, rows],
            self.filtered[:, rows],
            self.later[:, rows],
            self.scale[:, groups][:, :, chains].contiguous(),
            matrices,
            None if self.lengths is None else self.lengths[rows],
            blocks,
        )

    def _matrix(self) -> Tensor:
        """``P``, of shape (B or 1, K, K)."""
        return self.matrices[: len(self.matrices) // 2]

    def pair_counts(self) -> Tensor:
        """Pair marginals summed over steps, of shape (B, K, K)."""
        return self._matrix() * _outer(self.filtered[:-1], self.later[1:])

    def pair_marginals(self) -> Tensor:
        """``p(k_t, k_{t+1})``, of shape (B, T - 1, K, K)."""
        pairs = self.filtered[:-1, :, :, None] * self.later[1:, :, None, :]
        return (pairs.transpose(0, 1)) * self._matrix().unsqueeze(1)

    def fisher(
        self, weights: Tensor, pair_weights: PairWeights | None = None, want_pairs: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Covariances of ``f`` with the indicators of states, and with the counts of pairs.

        ``weights`` is ``v``, of shape (T, B, K).
        """
        gamma, alpha, later = self.marginals, self.filtered, self.later
        n_steps = len(gamma)
        v = weights - (gamma * weights).sum(-1, keepdim=True)
        source_a, source_b = alpha * v, later * v
        change = gamma * v
        pairs = self._pair_sources(pair_weights) if pair_weights is not None else None
        if pairs is not None:
            past, future, mean = pairs
            ahead = self.scale.view(n_steps - 1, 2, *gamma.shape[1:])[:, 0]
            source_a[1:] += ahead * past - mean * alpha[1:]
            source_b[1:-1] += ahead[:-1] * future[1:] - mean[1:] * later[1:-1]
            change[1:] += later[1:] * past - mean * gamma[1:]
            change[:-1] += alpha[:-1] * future - mean * gamma[:-1]
        sources = torch.stack((source_a, reverse_steps(source_b, self.lengths)), 1)
        sources = sources.view(n_steps, *self.scale.shape[1:])
        run = run_steps if self.blocks is None else self.blocks.run
        vectors, images = run(sources[0], self.scale, self.matrices, sources[1:])
        sides = n_steps - 1, 2, *gamma.shape[1:]
        change[1:] += later[1:] * images.view(sides)[:, 0]
        zero = torch.zeros_like(gamma[:1])
        change += alpha * reverse_steps(torch.cat((zero, images.view(sides)[:, 1])), self.lengths)
        # Rounding leaves a multiple of gamma that a long sum of changes would show.
        change -= gamma * change.sum(-1, keepdim=True)
        if not want_pairs:
            return change, None

        vectors = torch.cat((sources[:1], vectors)).view(n_steps, 2, *gamma.shape[1:])
        a, b = vectors[:, 0], reverse_steps(vectors[:, 1], self.lengths)
        b = where_present(steps_exist(self.lengths, n_steps), b, 0.0)
        counts = _outer(a[:-1], later[1:]) + _outer(alpha[:-1], b[1:])
        if pairs is not None and pair_weights is not None:
            counts -= _outer(alpha[:-1], mean * later[1:])
            if pair_weights.constant is not None:
                counts += pair_weights.constant * _outer(alpha[:-1], later[1:])
            if pair_weights.stepwise is not None:
                counts += torch.einsum(
                    "tbi,btij,tbj->bij", alpha[:-1], pair_weights.stepwise, later[1:]
                )
        return change, self._matrix() * counts

    def _pair_sources(self, weights: PairWeights) -> tuple[Tensor, Tensor, Tensor]:
        """``alpha_t (P * V)``, ``(P * V) r_{t+1}`` and the posterior mean of ``V`` at each step."""
        alpha, later = self.filtered[:-1].transpose(0, 1), self.later[1:].transpose(0, 1)
        past = future = torch.zeros_like(alpha)
        if weights.constant is not None:
            matrix = self._matrix() * weights.constant
            past, future = alpha @ matrix, later @ matrix.mT
        if weights.stepwise is not None:
            matrix = self._matrix().unsqueeze(1) * weights.stepwise
            past = past + (alpha.unsqueeze(-2) @ matrix).squeeze(-2)
            future = future + (matrix @ later.unsqueeze(-1)).squeeze(-1)
        mean = (alpha * future).sum(-1, keepdim=True)
        return past.transpose(0, 1), future.transpose(0, 1), mean.transpose(0, 1)


class Transition(NamedTuple):
    """Transition matrices in probability space.

    Parameters
    ----------
    matrix : Tensor of shape (B or 1, K, K)
        Scaled so that no row and no column sums to more than one.
    log_scale : Tensor of shape (B or 1,)
        Logarithm of what they were divided by.
    period : int
        Most steps after which vectors are to be normalised, so that no state is lost that counts.
    """

    matrix: Tensor
    log_scale: Tensor
    period: int

    @classmethod
    def build(cls, log_transition: Tensor) -> "Transition | None":
        """Exponentiate, or return None if entries are too far apart for probability space.

        With likelihoods scaled to a maximum of one, a step multiplies the sum of a vector by no
        less than the smallest entry ``p`` and no more than one. After ``s`` steps entries below
        ``tiny / p^s`` of the sum are lost; what follows favours them by no more than ``1 / p``.
        """
        peak = log_transition.amax((-2, -1), keepdim=True)
        matrix = (log_transition - peak).exp()
        total = torch.maximum(matrix.sum(-1), matrix.sum(-2)).amax(-1)[:, None, None]
        matrix = matrix / total
        finfo = torch.finfo(matrix.dtype)
        budget = math.log(finfo.eps / finfo.tiny)
        span = -math.log(max(float(matrix.min()) if matrix.numel() else 1.0, finfo.tiny))
        # A negated comparison, so that NaN ends here too.
        if not 2.0 * span <= budget:
            return None
        period = min(int(budget / max(span, 1.0)) - 1, _MOST_STEPS_UNNORMALIZED)
        return cls(matrix, (peak + total.log()).flatten(), period)


def build_messages(
    energy: Tensor, log_transition: Tensor, lengths: Tensor | None, parallel: bool
) -> ProbabilityMessages | LogMessages:
    """Messages for ``energy`` (T, B, K) and ``log_transition`` (B or 1, K, K), without gradients.

    Computed in probability space if the transition matrices allow it, in double precision if only
    that does, else in logarithms.
    """
    with torch.no_grad():
        transition = Transition.build(log_transition)
        if transition is None and energy.dtype == torch.float32:
            transition = Transition.build(log_transition.double())
            energy = energy if transition is None else energy.double()
        if transition is None:
            return LogMessages.build(energy, log_transition, lengths)
        parallel = parallel and len(energy) > 1
        return ProbabilityMessages.build(energy, transition, lengths, parallel)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """Sum over steps of the outer products of (T, B, K) and (T, B, K): (B, K, K)."""
    return first.permute(1, 2, 0) @ second.transpose(0, 1)
