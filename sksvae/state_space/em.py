# SPDX-License-Identifier: BSD-3-Clause
"""Expectation maximisation for linear-Gaussian state space models."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import linalg
from sklearn.utils import check_random_state

from sksvae.state_space.expectation import ObservedRows, each_chain
from sksvae.state_space.model import StateSpace
from sksvae.state_space.subspace import choose_windows, subspace_identification

_TRIAL_ROUNDS = 5  # after which starts are compared
# How many rows all rounds together visit, where the number of rounds is left open.
_VISITS, _LEAST_ROUNDS, _MOST_ROUNDS = 500_000, 50, 500
# What the prior of the first state counts for, in sequences: there may be only one of these.
_PRIOR_SEQUENCES = 1.0


class StateSpaceFit(NamedTuple):
    """A fitted model.

    Parameters
    ----------
    model : StateSpace
        In canonical coordinates, see `StateSpace.canonical`: over the rows that were used, its
        states have zero mean and unit covariance.
    objectives : list of float
        Log likelihood plus log density of the priors (up to a constant) per row, of the start and
        after each round.
    """

    model: StateSpace
    objectives: list[float]


def fit_state_space(
    X: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    latent_dim: int,
    *,
    max_iter: int | None = None,
    tol: float = 0.1,
    min_noise: float = 1e-5,
    prior_rows: float = 1e-3,
    max_length: int = 200,
    max_rows: int = 20_000,
    start: StateSpace | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> StateSpaceFit:
    """Fit a linear-Gaussian state space model to standardised sequences.

    Expectation maximisation from what `subspace_identification` finds, with and without directions
    that may be chance; the start with the better objective after some rounds goes on. Sequences
    are cut into windows, each taken for a sequence by itself: the distribution of the first state
    is that of the first state of a window. Missing values are left out exactly.

    The estimate is a mode of the posterior under weak conjugate priors, which keep ``Q``, ``psi``
    and ``Sigma_0`` positive definite and everything defined for features that were never seen and
    sequences of one step. They are worth `prior_rows` rows with ``x = e``, as many transitions
    with ``z_t = w`` and one first state, all of zero mean and unit variance: up to constants the
    log density is, with ``s = prior_rows`` ::

        - s/2 [log|Q| + tr Q^-1 (I + A A' + b b')] - 1/2 [log|Sigma_0| + tr Sigma_0^-1 (I + mu mu')]
        - s/2 sum_f [log psi_f + (1 + |C_f|^2 + d_f^2) / psi_f],

    in coordinates in which the states of the start have about unit variance.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Sequences, one stacked after the other, each feature of about zero mean and unit variance.
        NaN is a missing value.
    lengths : sequence of int of shape (n_sequences,)
        Number of rows of each sequence, at least one.
    latent_dim : int
        Dimension of the state.
    max_iter : int or None, default=None
        Most rounds. None: as many as visit half a million rows, at least 50 and at most 500.
        Expectation maximisation is slow where noise is small: what is left after 25 rounds of a
        series of 2,000 steps was seen to be 150 nats.
    tol : float, default=0.1
        Gain of a round, in nats over all rows together, at which to stop.
    min_noise : float, default=1e-5
        Least noise variance of a feature.
    prior_rows : float, default=1e-3
        Strength of the priors.
    max_length : int, default=200
        Longest window.
    max_rows : int, default=20_000
        Most rows to use. If there are more, whole windows are drawn.
    start : StateSpace or None, default=None
        Where to go on; None: from subspace identification.
    random_state : int, RandomState instance or None, default=None
        Draws the windows.

    Returns
    -------
    StateSpaceFit
        The model in canonical coordinates, and the objective after each round. The transition is
        what the data say: eigenvalues may exceed one in modulus.

    References
    ----------
    Ghahramani and Hinton, "Parameter estimation for linear dynamical systems", 1996.

    Examples
    --------
    The position of a noisy oscillation tells its direction only together with the past:

    >>> import numpy as np
    >>> from sksvae.state_space import fit_state_space
    >>> rng = np.random.default_rng(0)
    >>> x = np.sqrt(2) * np.sin(2 * np.pi * np.arange(500) / 25) + 0.3 * rng.standard_normal(500)
    >>> model, objectives = fit_state_space(x[:, None], [500], 2, random_state=0)
    >>> period = 2 * np.pi / np.angle(np.linalg.eigvals(model.transition)[0])
    >>> round(float(abs(period)), 1)
    25.0
    """
    X, lengths = choose_windows(X, lengths, max_length, max_rows, check_random_state(random_state))
    rows = ObservedRows.from_arrays(X, lengths)
    if max_iter is None:
        max_iter = min(max(_VISITS // len(X), _LEAST_ROUNDS), _MOST_ROUNDS)
    if start is not None:
        starts = [start]
    else:
        starts = _subspace_starts(
            X, lengths, latent_dim, min_noise=min_noise, max_rows=max_rows, max_length=max_length
        )
    best: Any = None  # until the first start, of which there is at least one
    best_rounds: Any = None
    objectives = [-math.inf]
    for first in starts:
        rounds = em_rounds(rows, first, min_noise, prior_rows)
        trial = list(itertools.islice(rounds, min(_TRIAL_ROUNDS, max_iter) + 1))
        if best is None or trial[-1][1] > objectives[-1]:
            best, best_rounds, objectives = trial[-1][0], rounds, [value for _, value in trial]
    model = best
    while len(objectives) <= max_iter and len(X) * (objectives[-1] - objectives[-2]) >= tol:
        try:
            model, objective = next(best_rounds)
        except torch.linalg.LinAlgError:
            break  # series without noise: the next model is too near to singular for its numbers
        objectives.append(objective)
    return StateSpaceFit(model.canonical(*model.state_moments(X, lengths)), objectives)


def _subspace_starts(
    X: np.ndarray, lengths: np.ndarray, latent_dim: int, **options: Any
) -> list[StateSpace]:
    """Models without and with directions that may be chance, or one if these are the same."""
    starts = [
        subspace_identification(X, lengths, latent_dim, significant=significant, **options)
        for significant in (True, False)
    ]
    alike = np.array_equal(starts[0].transition, starts[1].transition)
    return starts[:1] if alike else starts


def em_rounds(
    rows: ObservedRows, model: StateSpace, min_noise: float, prior_rows: float
) -> Iterator[tuple[StateSpace, float]]:
    """Rounds of expectation maximisation, without end.

    Parameters
    ----------
    rows : ObservedRows
        Sequences.
    model : StateSpace
        Where to start.
    min_noise : float
        Least noise variance.
    prior_rows : float
        Strength of the priors.

    Yields
    ------
    model : StateSpace
        The start, then the model after each round.
    objective : float
        Its objective, per row.
    """
    while True:
        statistics = Statistics.of(model, rows)
        objective = statistics.log_likelihood + log_prior(model, prior_rows)
        yield model, float(objective) / len(rows.values)
        model = maximize(statistics, min_noise, prior_rows)


class Statistics(NamedTuple):
    """Expected sufficient statistics, with ``y = [z, 1]``.

    Parameters
    ----------
    log_likelihood : float
        Of all sequences.
    first : ndarray of shape (latent_dim + 1, latent_dim + 1)
        Sum of ``y_1 y_1'`` over sequences.
    before : ndarray of shape (latent_dim + 1, latent_dim + 1)
        Sum of ``y_t y_t'`` over the steps that have a next one.
    after : ndarray of shape (latent_dim + 1, latent_dim + 1)
        Sum of ``y_t y_t'`` over the steps that have one before.
    cross : ndarray of shape (latent_dim + 1, latent_dim + 1)
        Sum of ``y_t y_{t-1}'``.
    observed : ndarray of shape (n_groups, latent_dim + 1, latent_dim + 1)
        Sum of ``y_t y_t'`` over the rows where the features of a group are observed.
    features : ndarray of shape (n_features, latent_dim + 1)
        Sum of ``x y'`` over what is observed.
    squares : ndarray of shape (n_features,)
        Sum of ``x^2`` over what is observed.
    group : ndarray of int of shape (n_features,)
        Group of each feature.
    """

    log_likelihood: float
    first: np.ndarray
    before: np.ndarray
    after: np.ndarray
    cross: np.ndarray
    observed: np.ndarray
    features: np.ndarray
    squares: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, model: StateSpace, rows: ObservedRows) -> "Statistics":
        """Expectation step."""
        sums: tuple[Any, ...] = (0.0,) * 7
        for part in each_chain(model, rows):
            y = torch.cat((part.mean, part.mask.unsqueeze(-1).to(part.mean)), -1)
            second = torch.nn.functional.pad(part.covariance, (0, 1, 0, 1))
            second += y.unsqueeze(-1) * y.unsqueeze(-2)
            lag = torch.nn.functional.pad(part.lag_covariance.sum((0, 1)), (0, 1, 0, 1))
            chain, last = torch.arange(len(y)), part.mask.sum(-1) - 1
            total, first = second.sum((0, 1)), second[:, 0].sum(0)
            row, y_rows = part.row[part.mask], y[part.mask]
            terms = (
                part.log_likelihood.sum(),
                first,
                total - second[chain, last].sum(0),
                total - first,
                lag + y[:, 1:].flatten(0, 1).mT @ y[:, :-1].flatten(0, 1),
                rows.observed[row].mT @ second[part.mask].flatten(1),
                rows.values[row].mT @ y_rows,
            )
            sums = tuple(a + b for a, b in zip(sums, terms, strict=True))
        log_likelihood, *moments, observed, features = sums
        return cls(  # type: ignore[call-arg]  # four moments
            float(log_likelihood),
            *(m.numpy() for m in moments),
            observed.reshape(-1, *moments[0].shape).numpy(),
            features.numpy(),
            rows.values.square().sum(0).numpy(),
            rows.group.numpy(),
        )


def maximize(statistics: Statistics, min_noise: float, prior_rows: float) -> StateSpace:
    """Maximisation step: all parameters given expected statistics, in closed form.

    Parameters
    ----------
    statistics : Statistics
        Of all sequences.
    min_noise : float
        Least noise variance.
    prior_rows : float
        Strength of the priors.

    Returns
    -------
    StateSpace
        The mode.
    """
    dim = len(statistics.first) - 1
    transition, Q = _regress(
        statistics.before, statistics.cross[:dim], statistics.after[:dim, :dim], prior_rows
    )
    first = statistics.first
    initial_mean, Sigma = _regress(
        first[dim:, dim:], first[:dim, dim:], first[:dim, :dim], _PRIOR_SEQUENCES
    )
    loading = np.empty_like(statistics.features)
    noise = np.empty(len(loading))
    for g, observed in enumerate(statistics.observed):
        members = statistics.group == g
        loading[members], noise[members] = _regress(
            observed, statistics.features[members], statistics.squares[members], prior_rows
        )
    return StateSpace(
        loading[:, :dim],
        loading[:, dim],
        np.maximum(noise, min_noise),
        transition[:, :dim],
        transition[:, dim],
        Q,
        initial_mean[:, 0],
        Sigma,
    )


def _regress(
    inputs: np.ndarray, products: np.ndarray, outputs: np.ndarray, prior_rows: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and noise (co)variance from second moments, and so many rows of the prior.

    ``inputs`` is the sum of ``y y'`` with a constant as last entry, ``products`` that of ``v y'``,
    ``outputs`` that of ``v v'``, or of ``v^2`` for outputs that are independent of each other.
    """
    n_rows = inputs[-1, -1] + prior_rows
    ridge = inputs + prior_rows * np.eye(len(inputs))
    coefficients = linalg.solve(ridge, products.T, assume_a="pos").T
    if outputs.ndim == 1:
        explained = (coefficients * products).sum(1)
        return coefficients, (outputs - explained + prior_rows) / n_rows
    noise = outputs - coefficients @ products.T + prior_rows * np.eye(len(outputs))
    return coefficients, 0.5 * (noise + noise.T) / n_rows


def log_prior(model: StateSpace, prior_rows: float) -> float:
    """Log density of the priors, up to constants.

    Parameters
    ----------
    model : StateSpace
        The model.
    prior_rows : float
        Strength of the priors.

    Returns
    -------
    float
        As written in `fit_state_space`.
    """
    C, d, psi, A, b, Q, mu, Sigma = model

    def gaussian(covariance: np.ndarray, coefficients: np.ndarray) -> float:
        second = np.eye(len(covariance)) + coefficients @ coefficients.T
        log_det = np.linalg.slogdet(covariance)[1]
        return -0.5 * (log_det + np.trace(np.linalg.solve(covariance, second)))

    features = np.log(psi) + (1.0 + (C**2).sum(1) + d**2) / psi
    return prior_rows * (
        gaussian(Q, np.column_stack((A, b))) - 0.5 * features.sum()
    ) + _PRIOR_SEQUENCES * gaussian(Sigma, mu[:, None])
