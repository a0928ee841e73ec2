# SPDX-License-Identifier: BSD-3-Clause
r"""Exact inference in discrete Markov chains: log normaliser, marginals and Fisher matrix.

A chain of states ``k = (k_1, ..., k_T)`` has the unnormalised log probability ::

    log p(k) = initial[k_1] + sum_t transition[k_t, k_{t+1}] + sum_t likelihood[t, k_t] - log Z.

The rows of the transition matrix need not sum to one: expectations of log probabilities, as in
variational inference [1]_, stand for less. Entries of minus infinity forbid what they belong to.

Gradients are exact and written out. That of ``log Z`` is the marginals, at no cost; that of the
marginals is a product with the Fisher matrix, one more forward and backward sweep through the
stored messages (see `sksvae.inference.markov_messages`): memory linear in ``T K``, no graph per
step.

References
----------
.. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with structured
   discrete representations", NeurIPS 2023, appendix D.1. Its "alpha_t(k) + log beta_t(k)" is to
   be read with the logarithm of both.
.. [2] Rabiner, "A tutorial on hidden Markov models and selected applications in speech
   recognition", Proceedings of the IEEE 77(2), 1989: forward-backward with scaling, equations
   (91)-(97).
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sksvae.inference.derivatives import differentiated_once
from sksvae.inference.markov_log_messages import LogMessages
from sksvae.inference.markov_messages import ProbabilityMessages, build_messages
from sksvae.inference.markov_sweeps import PairWeights, steps_exist, where_present

MarkovMessages = ProbabilityMessages | LogMessages
MarkovMethod = Literal["auto", "sequential", "parallel"]


class MarkovMoments(NamedTuple):
    """Log normaliser and marginals of discrete Markov chains.

    Parameters
    ----------
    log_normalizer : Tensor of shape (...)
        ``log Z``, the logarithm of the sum over all paths.
    marginals : Tensor of shape (..., T, K)
        Probability of each state at each step.
    pair_counts : Tensor of shape (..., K, K)
        Expected numbers of transitions: the pair marginals summed over steps.
    pair_marginals : Tensor of shape (..., T - 1, K, K) or None
        Joint probabilities of ``(k_t, k_{t+1})``: rows belong to the earlier step. None unless
        asked for.
    messages : MarkovMessages or None
        For `markov_fisher`. None unless asked for.
    """

    log_normalizer: Tensor
    marginals: Tensor
    pair_counts: Tensor
    pair_marginals: Tensor | None
    messages: MarkovMessages | None


def markov_moments(
    log_initial: Tensor,
    log_transition: Tensor,
    log_likelihood: Tensor,
    *,
    mask: Tensor | None = None,
    want_pairs: bool = False,
    want_messages: bool = False,
    method: MarkovMethod = "auto",
) -> MarkovMoments:
    """Log normaliser and marginals of discrete Markov chains.

    Parameters
    ----------
    log_initial : Tensor of shape (..., K) or (K,)
        Log weights of the first state, of each chain or shared.
    log_transition : Tensor of shape (..., K, K) or (K, K)
        Log weights of transitions, of each chain or shared: rows belong to the earlier step.
    log_likelihood : Tensor of shape (..., T, K)
        Log weights of the states at each step.
    mask : Tensor of bool of shape (..., T), optional
        Which steps exist, in batches of sequences of unequal length: the first so many of each.
        What stands at the others, NaN included, is not read and gets a zero gradient; they have
        zero marginals. An unobserved step of a sequence is not one of them: it exists, with a
        zero log likelihood.
    want_pairs : bool, default=False
        Whether to return the pair marginals of every step.
    want_messages : bool, default=False
        Whether to return the messages, for `markov_fisher`.
    method : {'auto', 'sequential', 'parallel'}, default='auto'
        One step after the other; in about ``sqrt(T)`` blocks side by side; or the one expected to
        be faster: blocks for a few long chains with few states. Transition matrices with entries
        that are zero, or so small that it takes logarithms, always go one step after the other.

    Returns
    -------
    MarkovMoments
        Differentiable once; a second derivative raises ``RuntimeError``.

    Raises
    ------
    ValueError
        If shapes do not fit together, the mask has gaps or the method is unknown; or if no path is
        possible or the weights are not finite. The index in the message counts the chains in
        row-major order.

    Examples
    --------
    A state that lasts, seen through noise:

    >>> import torch
    >>> from sksvae.inference import markov_moments
    >>> log_transition = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    >>> log_likelihood = torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    >>> chain = markov_moments(torch.zeros(2), log_transition, log_likelihood)
    >>> chain.marginals[:, 0]
    tensor([0.9114, 0.8619, 0.9114])
    >>> chain.pair_counts.sum()
    tensor(2.)
    """
    problem = MarkovProblem.build(log_initial, log_transition, log_likelihood, mask, method)
    messages = problem.messages()
    dtype, shape = log_likelihood.dtype, log_likelihood.shape
    log_normalizer, marginals, pair_counts, pair_marginals = _Markov.apply(
        messages, want_pairs, problem.energy, problem.log_transition
    )
    n_steps, n_states = shape[-2:]
    if want_pairs:
        pair_marginals = pair_marginals.reshape(*shape[:-2], n_steps - 1, n_states, n_states)
    return MarkovMoments(
        log_normalizer.to(dtype).reshape(shape[:-2]),
        marginals.to(dtype).reshape(shape),
        pair_counts.to(dtype).reshape(*shape[:-2], n_states, n_states),
        pair_marginals.to(dtype) if want_pairs else None,
        messages if want_messages else None,
    )


@torch.no_grad()
def markov_fisher(
    messages: MarkovMessages,
    unary: Tensor,
    pair: Tensor | None = None,
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """Change of the marginals with the log weights: a product with the Fisher matrix.

    Parameters
    ----------
    messages : MarkovMessages
        From `markov_moments`.
    unary : Tensor of shape (..., T, K)
        Change of the log likelihood. Steps that do not exist are not read.
    pair : Tensor of shape (..., K, K) or (K, K), optional
        Change of the log transition weights.
    rows : Tensor of shape (n_rows,), optional
        Indices of the chains, in row-major order, that the other arguments are given for.

    Returns
    -------
    Tensor of shape (..., T, K)
        Change of the marginals, to first order; no gradient. In ``unary`` it is symmetric and
        positive semi-definite: ``Cov(sum_t unary_t(k_t), 1[k_t = k])``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.inference import markov_fisher, markov_moments
    >>> chain = markov_moments(
    ...     torch.zeros(2), torch.zeros(2, 2), torch.zeros(3, 2), want_messages=True)
    >>> markov_fisher(chain.messages, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    tensor([[ 0.2500, -0.2500],
            [ 0.0000,  0.0000],
            [ 0.0000,  0.0000]])
    """
    if rows is not None:
        messages = messages.select(rows)
    dtype = messages.marginals.dtype
    n_steps, n_chains, n_states = messages.marginals.shape
    weights = unary.to(dtype).reshape(n_chains, n_steps, n_states).transpose(0, 1)
    weights = where_present(steps_exist(messages.lengths, n_steps), weights, 0.0)
    pair_weights = None
    if pair is not None:
        pair = pair.to(dtype).expand(*unary.shape[:-2], n_states, n_states)
        pair_weights = PairWeights(pair.reshape(n_chains, n_states, n_states))
    change, _ = messages.fisher(weights, pair_weights)
    return change.transpose(0, 1).reshape(unary.shape).to(unary.dtype)


class MarkovProblem(NamedTuple):
    """Chains in the layout of the sweeps: steps first, one batch axis.

    Parameters
    ----------
    energy : Tensor of shape (T, B, K)
        Log weights of states, the initial ones included.
    log_transition : Tensor of shape (B or 1, K, K)
        Log weights of transitions.
    lengths : Tensor of shape (B,), optional
        Steps of each chain, all if None.
    parallel : bool
        Whether to run the sweeps in blocks.
    """

    energy: Tensor
    log_transition: Tensor
    lengths: Tensor | None
    parallel: bool

    @classmethod
    def build(
        cls,
        log_initial: Tensor,
        log_transition: Tensor,
        log_likelihood: Tensor,
        mask: Tensor | None,
        method: MarkovMethod,
    ) -> "MarkovProblem":
        """Check and arrange the arguments of `markov_moments`."""
        _check_shapes(log_initial, log_transition, log_likelihood, mask)
        *batch, n_steps, n_states = log_likelihood.shape
        n_chains = torch.Size(batch).numel()
        lengths = None
        if mask is not None and not mask.all():
            log_likelihood = torch.where(mask.unsqueeze(-1), log_likelihood, 0.0)
            log_initial = torch.where(mask[..., :1], log_initial, 0.0)
            lengths = mask.sum(-1).reshape(n_chains)
        first = log_likelihood[..., :1, :] + log_initial.unsqueeze(-2)
        energy = torch.cat((first, log_likelihood[..., 1:, :]), -2)
        energy = energy.reshape(n_chains, n_steps, n_states).transpose(0, 1)
        shared = log_transition.ndim == 2
        table = log_transition.reshape(1 if shared else n_chains, n_states, n_states)
        return cls(energy, table, lengths, choose_parallel(method, n_chains, n_steps, n_states))

    def messages(self) -> MarkovMessages:
        """Messages, checked."""
        energy, log_transition = self.energy.detach(), self.log_transition.detach()
        messages = build_messages(energy, log_transition, self.lengths, self.parallel)
        check_finite(messages.log_normalizer)
        return messages

    def paths(self, path: Tensor) -> Tensor:
        """Paths of shape (..., T, B) as (..., B, T), with -1 where steps do not exist."""
        present = steps_exist(self.lengths, path.shape[-2])
        if present is not None:
            path = torch.where(present.squeeze(-1), path, -1)
        return path.mT


def _check_shapes(
    log_initial: Tensor, log_transition: Tensor, log_likelihood: Tensor, mask: Tensor | None
) -> None:
    if log_likelihood.ndim < 2 or 0 in log_likelihood.shape[-2:]:
        got = tuple(log_likelihood.shape)
        raise ValueError(f"log_likelihood must have shape (..., T, K), got {got}.")
    *batch, n_steps, n_states = log_likelihood.shape
    expected = {
        "log_initial": (log_initial, (*batch, n_states), (n_states,)),
        "log_transition": (
            log_transition,
            (*batch, n_states, n_states),
            (n_states, n_states),
        ),
        "mask": (mask, (*batch, n_steps), (*batch, n_steps)),
    }
    for name, (tensor, own, shared) in expected.items():
        if tensor is not None and tensor.shape not in (own, shared):
            either = "" if own == shared else f" or {shared}"
            raise ValueError(
                f"{name} must have shape {own}{either} to fit log_likelihood of shape "
                f"{tuple(log_likelihood.shape)}, got {tuple(tensor.shape)}."
            )
    if mask is not None and (mask[..., 1:] & ~mask[..., :-1]).any():
        raise ValueError("mask must be true for the first steps of each sequence, without gaps.")


def check_finite(log_normalizer: Tensor) -> None:
    """Raise if a chain has no path of finite weight."""
    bad = ~log_normalizer.isfinite()
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} chains have no possible path or weights that are "
            f"not finite, the first at batch index {int(bad.nonzero()[0])}."
        )


def choose_parallel(method: MarkovMethod, n_chains: int, n_steps: int, n_states: int) -> bool:
    """Say whether the sweeps of chains of a size run in blocks.

    Parameters
    ----------
    method : {'auto', 'sequential', 'parallel'}
        As in `markov_moments`.
    n_chains, n_steps, n_states : int
        ``B``, ``T`` and ``K``.

    Returns
    -------
    bool
        Whether they do.

    Examples
    --------
    >>> from sksvae.inference.forward_backward import choose_parallel
    >>> choose_parallel("auto", n_chains=1, n_steps=5000, n_states=5)
    True
    """
    if method == "auto":
        # Time of sequential / parallel on one CPU thread in float64, gradients included. One chain
        # with 5 states: 0.8 at T = 120, 1.1 at 250, 1.9 at 1000, 2.4 at 2000; with 20 states 1.4
        # at 2000. Four chains with 10 states: 1.0 at 2000. 16 chains with 5 states: 0.7 at 1000.
        return n_steps >= 500 and n_chains * n_states**2 <= 250
    if method in ("sequential", "parallel"):
        return method == "parallel"
    raise ValueError(f"method must be 'auto', 'sequential' or 'parallel', got {method!r}.")


class _Markov(torch.autograd.Function):
    """Energies (T, B, K) and log transitions to the log normaliser and the marginals."""

    @staticmethod
    def forward(
        ctx: Any, messages: MarkovMessages, want_pairs: bool, energy: Tensor, log_transition: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.messages, ctx.dtype, ctx.n_tables = messages, energy.dtype, len(log_transition)
        counts = messages.pair_counts()
        ctx.save_for_backward(counts)
        return (
            messages.log_normalizer,
            messages.marginals.transpose(0, 1).contiguous(),
            counts,
            messages.pair_marginals() if want_pairs else None,
        )

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (counts,) = ctx.saved_tensors
        want_pairs = ctx.needs_input_grad[3]
        with torch.no_grad():
            g_energy, g_table = _adjoint(ctx.messages, counts, want_pairs, *cotangents)
            if g_table is not None and ctx.n_tables == 1:
                g_table = g_table.sum(0, keepdim=True)
            gradients = [g if g is None else g.to(ctx.dtype) for g in (g_energy, g_table)]
        gradients = differentiated_once(gradients, counts, "markov_moments")
        return None, None, *gradients


def _adjoint(
    messages: MarkovMessages,
    counts: Tensor,
    want_pairs: bool,
    g_log_normalizer: Tensor | None,
    g_marginals: Tensor | None,
    g_counts: Tensor | None,
    g_pairs: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Cotangents of the energies (T, B, K) and, for each chain, of the log transitions."""
    g_energy = g_table = None
    has_pairs = g_counts is not None or g_pairs is not None
    if g_marginals is not None or has_pairs:
        gamma = messages.marginals
        weights = torch.zeros_like(gamma) if g_marginals is None else g_marginals.transpose(0, 1)
        pair_weights = PairWeights(g_counts, g_pairs) if has_pairs else None
        g_energy, g_table = messages.fisher(weights, pair_weights, want_pairs)
    if g_log_normalizer is not None:
        first = g_log_normalizer.unsqueeze(-1) * messages.marginals
        g_energy = first if g_energy is None else g_energy + first
        if want_pairs:
            second = g_log_normalizer[:, None, None] * counts
            g_table = second if g_table is None else g_table + second
    return g_energy, g_table
