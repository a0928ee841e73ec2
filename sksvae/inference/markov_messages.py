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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sksvae.inference.markov_sweeps import Blocks, run_steps

_MOST_STEPS_UNNORMALIZED = 32


class PairWeights(NamedTuple):
    """Function of pairs of states, ``constant`` plus ``stepwise``, either may be None.

    Parameters
    ----------
    constant : Tensor of shape (B, K, K), optional
        The same at all steps.
    stepwise : Tensor of shape (B, T - 1, K, K), optional
        One for each step.
    """

    constant: Tensor | None = None
    stepwise: Tensor | None = None


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
        both = torch.stack((likelihood, _reverse(likelihood, lengths)), 1)
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
        joint = filtered * _reverse(beta, lengths)
        total_joint = joint.sum(-1, keepdim=True)
        later = _reverse(vectors[:, 1], lengths)
        later = torch.cat((torch.zeros_like(energy[:1]), later[1:] / total_joint[:-1]))

        log_evidence = evidence.log()
        first = likelihood[:1].sum(-1, keepdim=True).log()
        terms = peak + torch.cat((first, log_evidence + transition.log_scale.view(-1, 1)))
        log_evidence = torch.cat((torch.zeros_like(first), log_evidence))
        log_both = torch.stack((log_evidence, _reverse(log_evidence, lengths)), 1)
        log_both = log_both.view(*shape[:-1], 1)[1:]
        if blocks is not None:
            blocks = blocks.rescaled(-log_both.squeeze(-1))
        present = _present(lengths, n_steps)
        return cls(
            _where(present, terms, 0.0).sum((0, -1)),
            _where(present, joint / total_joint, 0.0),
            _where(present, filtered, 0.0),
            _where(present, later, 0.0),
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
        sources = torch.stack((source_a, _reverse(source_b, self.lengths)), 1)
        sources = sources.view(n_steps, *self.scale.shape[1:])
        run = run_steps if self.blocks is None else self.blocks.run
        vectors, images = run(sources[0], self.scale, self.matrices, sources[1:])
        sides = n_steps - 1, 2, *gamma.shape[1:]
        change[1:] += later[1:] * images.view(sides)[:, 0]
        zero = torch.zeros_like(gamma[:1])
        change += alpha * _reverse(torch.cat((zero, images.view(sides)[:, 1])), self.lengths)
        # Rounding leaves a multiple of gamma that a long sum of changes would show.
        change -= gamma * change.sum(-1, keepdim=True)
        if not want_pairs:
            return change, None

        vectors = torch.cat((sources[:1], vectors)).view(n_steps, 2, *gamma.shape[1:])
        a, b = vectors[:, 0], _reverse(vectors[:, 1], self.lengths)
        b = _where(_present(self.lengths, n_steps), b, 0.0)
        counts = _outer(a[:-1], later[1:]) + _outer(alpha[:-1], b[1:])
        if pairs is not None:
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
        both = torch.stack((energy, _reverse(energy, lengths)), 1)
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
        present = _present(lengths, len(energy))
        joint = vectors[:, 0] + _reverse(images[:, 1], lengths)
        return cls(
            _where(present, totals[:, 0], 0.0).sum((0, -1)),
            _where(present, joint.softmax(-1), 0.0),
            _where(present, _reverse(vectors[:, 1], lengths), 0.0),
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


def _present(lengths: Tensor | None, n_steps: int) -> Tensor | None:
    """Whether each step exists, of shape (T, B, 1)."""
    if lengths is None:
        return None
    return (torch.arange(n_steps, device=lengths.device)[:, None] < lengths).unsqueeze(-1)


def _where(present: Tensor | None, values: Tensor, other: float) -> Tensor:
    return values if present is None else torch.where(present, values, other)


def _reverse(steps: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the steps (T, B, K) of each chain, leaving those that do not exist in place."""
    if lengths is None:
        return steps.flip(0)
    time = torch.arange(len(steps), device=steps.device)[:, None]
    index = torch.where(time < lengths, lengths - 1 - time, time)
    return steps.gather(0, index.unsqueeze(-1).expand_as(steps))


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """Sum over steps of the outer products of (T, B, K) and (T, B, K): (B, K, K)."""
    return first.permute(1, 2, 0) @ second.transpose(0, 1)
