# SPDX-License-Identifier: BSD-3-Clause
"""Posteriors of the states of linear-Gaussian models, sequence by sequence, in bounded memory."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sksvae.inference import chain_moments
from sksvae.sequences import Windows

if TYPE_CHECKING:
    from sksvae.state_space.model import StateSpace

_BATCH_ELEMENTS = 2**20  # numbers in the covariances of a batch; about ten such arrays exist


class ObservedRows(NamedTuple):
    """Stacked sequences with missing values.

    Features that are observed in the same rows form a group: sums over what is observed are taken
    once for each group, so once for all features where nothing but whole rows is missing.

    Parameters
    ----------
    values : Tensor of shape (n_rows, n_features)
        With zero for what is missing.
    observed : Tensor of shape (n_rows, n_groups)
        One where the features of a group are observed, else zero.
    group : Tensor of int of shape (n_features,)
        Group of each feature.
    lengths : ndarray of int of shape (n_sequences,)
        Rows of each sequence.
    """

    values: Tensor
    observed: Tensor
    group: Tensor
    lengths: np.ndarray

    @classmethod
    def from_arrays(cls, X: np.ndarray, lengths: Sequence[int] | np.ndarray) -> "ObservedRows":
        """Read rows in which NaN stands for what is missing."""
        X = np.asarray(X, dtype=np.float64)
        lengths = np.asarray(lengths, dtype=np.intp)
        if lengths.sum() != len(X) or (lengths < 1).any():
            raise ValueError(
                f"lengths must be positive and add up to the {len(X)} rows of X, got "
                f"{lengths.size} lengths with sum {lengths.sum()}."
            )
        is_observed = ~np.isnan(X)
        if is_observed.all():
            patterns, group = np.ones((len(X), 1)), np.zeros(X.shape[1], dtype=np.intp)
        else:
            patterns, group = np.unique(is_observed, axis=1, return_inverse=True)
        return cls(
            torch.from_numpy(np.where(is_observed, X, 0.0)),
            torch.from_numpy(patterns.astype(np.float64)),
            torch.from_numpy(group.reshape(-1)),
            lengths,
        )

    def group_sums(self, terms: Tensor) -> Tensor:
        """Sum terms of features, of shape (n_features, ...), within each group."""
        sums = terms.new_zeros(self.observed.shape[1], *terms.shape[1:])
        return sums.index_add_(0, self.group, terms)


class Chains(NamedTuple):
    """A padded batch of sequences and the posterior of their states.

    Parameters
    ----------
    sequence : ndarray of int of shape (n_chains,)
        Which sequences these are.
    row : Tensor of int of shape (n_chains, n_steps)
        Row of each step.
    mask : Tensor of bool of shape (n_chains, n_steps)
        Which steps exist; everything else is zero at the others.
    log_likelihood : Tensor of shape (n_chains,)
        Log density of what is observed.
    mean : Tensor of shape (n_chains, n_steps, latent_dim)
        Posterior means.
    covariance : Tensor of shape (n_chains, n_steps, latent_dim, latent_dim)
        Posterior covariances.
    lag_covariance : Tensor of shape (n_chains, n_steps - 1, latent_dim, latent_dim)
        Posterior covariances with the step before: rows belong to the later step.
    """

    sequence: np.ndarray
    row: Tensor
    mask: Tensor
    log_likelihood: Tensor
    mean: Tensor
    covariance: Tensor
    lag_covariance: Tensor


def each_chain(model: "StateSpace", rows: ObservedRows) -> Iterator[Chains]:
    """Posterior of the states of each sequence, in batches of similar lengths.

    Parameters
    ----------
    model : StateSpace
        The model.
    rows : ObservedRows
        The sequences.

    Yields
    ------
    Chains
        One batch. Each sequence is in one of them.
    """
    evidence, prior = _Evidence(model, rows), _Prior(model)
    dim = len(model.offset)
    first_row = torch.from_numpy(np.cumsum(rows.lengths) - rows.lengths)
    max_steps = max(_BATCH_ELEMENTS // dim**2, 1)
    for sequence in Windows.whole(rows.lengths).batches(max_steps):
        lengths = torch.from_numpy(rows.lengths[sequence])
        step = torch.arange(int(lengths.max()))
        mask = step < lengths[:, None]
        row = torch.where(mask, first_row[sequence, None] + step, 0)
        constant, h, J = evidence.of(row[mask], mask)
        prior_constant, prior_h, prior_J, lower = prior.of(mask)
        chain = chain_moments(
            h + prior_h,
            J + prior_J,
            lower.expand(len(lengths), len(step) - 1, dim, dim),
            mask=None if mask.all() else mask,
        )
        log_likelihood = chain.log_normalizer + constant.sum(-1) + prior_constant
        yield Chains(sequence, row, mask, log_likelihood, *chain[1:4])


class _Evidence:
    """Factors ``N(x_t | C z_t + d, diag(psi))`` of what is observed, as functions of ``z_t``."""

    def __init__(self, model: "StateSpace", rows: ObservedRows) -> None:
        C, d, psi = (torch.as_tensor(a) for a in model[:3])
        self.rows = rows
        self.mean, self.precision = d, 1.0 / psi
        self.weighted = C * self.precision[:, None]
        self.matrices = rows.group_sums(self.weighted[:, :, None] * C[:, None, :]).flatten(1)
        self.constants = rows.group_sums(-0.5 * (2.0 * math.pi * psi).log())

    def of(self, row: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Constant, linear and quadratic term at each step of a padded batch."""
        observed = self.rows.observed[row]
        residual = (self.rows.values[row] - self.mean) * observed[:, self.rows.group]
        constant = observed @ self.constants - 0.5 * residual.square() @ self.precision
        terms = constant, residual @ self.weighted, observed @ self.matrices
        dim = self.weighted.shape[1]
        shapes = (), (dim,), (dim, dim)
        return tuple(
            t.new_zeros(*mask.shape, *shape).masked_scatter_(
                mask.view(*mask.shape, *(1 for _ in shape)), t
            )
            for t, shape in zip(terms, shapes, strict=True)
        )


class _Prior:
    """``p(z_1) prod_t p(z_t | z_{t-1})`` in information form."""

    def __init__(self, model: "StateSpace") -> None:
        A, b, Q, mu, Sigma = (torch.as_tensor(a) for a in model[3:])
        initial, initial_constant = self._information(Sigma, mu)
        noise, noise_constant = self._information(Q, b)
        self.lower = -noise @ A
        self.constants = initial_constant, noise_constant
        # What a step gets from its being the first or not, and from having a following one.
        self.first = initial @ mu, initial
        self.later = noise @ b, noise
        self.before_next = self.lower.mT @ b, -A.mT @ self.lower

    @staticmethod
    def _information(covariance: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.linalg.cholesky(covariance)
        precision = torch.cholesky_inverse(factor)
        constant = -0.5 * (mean @ precision @ mean + len(mean) * math.log(2.0 * math.pi))
        return precision, constant - factor.diagonal().log().sum()

    def of(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Constant of each chain, linear and quadratic term at each step, block below."""
        has_next = torch.nn.functional.pad(mask[:, 1:], (0, 1)).double()
        n_transitions = has_next.sum(-1)
        constant = self.constants[0] + n_transitions * self.constants[1]
        terms = []
        for first, later, before_next in zip(self.first, self.later, self.before_next, strict=True):
            own = later.repeat(mask.shape[1], *(1 for _ in later.shape))
            own[0] = first
            weight = has_next.view(*has_next.shape, *(1 for _ in later.shape))
            terms.append(own + weight * before_next)
        return constant, *terms, self.lower
