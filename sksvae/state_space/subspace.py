# SPDX-License-Identifier: BSD-3-Clause
"""Subspace identification: state space models from correlations of the past with the future."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg
from sklearn.utils import check_random_state

from sksvae.initialization import principal_axes
from sksvae.sequences import Windows
from sksvae.state_space.model import StateSpace

_MIN_AXES = 20  # of the features, principal axes that lagged correlations are taken of
_MAX_LAGS = 30
_BLOCK_SIZE = 160  # entries of a past or future, about
_NO_CORRELATION = 1e-6  # of a direction that is rounding only
_MAX_MODULUS = 0.999  # of the eigenvalues of the transition


def subspace_identification(
    X: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    latent_dim: int,
    *,
    n_lags: int | None = None,
    significant: bool = True,
    min_noise: float = 1e-5,
    max_length: int = 200,
    max_rows: int = 20_000,
    random_state: int | np.random.RandomState | None = None,
) -> StateSpace:
    """State space model from canonical correlations of past and future, in closed form.

    The state is what the last `n_lags` rows tell of the next ones. What it cannot explain of
    single rows is left to further directions without memory, on principal axes; directions that
    are left over have unit variance and load on nothing. So any data give a model: from rows
    without serial dependence, or sequences of one step, it is probabilistic principal components.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Sequences, one stacked after the other, each feature of about zero mean and unit variance.
        NaN is a missing value; here it is interpolated within the sequence.
    lengths : sequence of int of shape (n_sequences,)
        Number of rows of each sequence, at least one.
    latent_dim : int
        Dimension of the state.
    n_lags : int, optional
        Rows of past and of future. The default is as many as the lengths and the number of rows
        allow, up to 30.
    significant : bool, default=True
        Whether the state is limited to canonical correlations that stand out from chance. Without
        it weak harmonics are kept, and chance fills the state up.
    min_noise : float, default=1e-5
        Least noise variance of a feature.
    max_length : int, default=200
        Longest window, if windows have to be drawn.
    max_rows : int, default=20_000
        Most rows to use. If there are more, whole windows are drawn.
    random_state : int, RandomState instance or None, default=None
        Draws the windows.

    Returns
    -------
    StateSpace
        Its states have about zero mean and unit covariance. No eigenvalue of the transition
        exceeds 0.999 in modulus; the offset is zero.

    References
    ----------
    Larimore, "Canonical variate analysis in identification, filtering, and adaptive control",
    1990; van Overschee and De Moor, "Subspace identification for linear systems", 1996, chapter 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.state_space import subspace_identification
    >>> x = np.sqrt(2) * np.sin(2 * np.pi * np.arange(500) / 25)
    >>> model = subspace_identification(x[:, None], [500], 2)
    >>> period = 2 * np.pi / np.angle(np.linalg.eigvals(model.transition)[0])
    >>> round(float(abs(period)), 1)
    25.0
    """
    if len(X) > max_rows:
        random_state = check_random_state(random_state)
        X, lengths = choose_windows(X, lengths, max_length, max_rows, random_state)
    mean, centred = _fill(np.asarray(X, dtype=np.float64), np.asarray(lengths, dtype=np.intp))
    axes = _reduction(centred, latent_dim)
    memory = _identify(centred @ axes, np.asarray(lengths), latent_dim, n_lags, significant)
    loading = axes @ memory.loading
    static = _static_loading(centred, loading, latent_dim - loading.shape[1])
    innovations = centred.var(0) - (loading**2).sum(1) - (static**2).sum(1)
    noise = np.maximum(innovations, np.maximum(0.05 * centred.var(0), min_noise))
    eye, zero = np.eye(latent_dim), np.zeros(latent_dim)
    transition, transition_noise = np.zeros_like(eye), np.eye(latent_dim)
    n = len(memory.transition)
    transition[:n, :n], transition_noise[:n, :n] = memory.transition, memory.noise
    return StateSpace(
        np.column_stack((loading, static)),
        mean,
        noise,
        transition,
        zero,
        transition_noise,
        zero,
        eye,
    )


def choose_windows(
    X: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    max_length: int,
    max_rows: int,
    random_state: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut sequences into windows and draw as many as there may be rows.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Sequences, one stacked after the other.
    lengths : sequence of int of shape (n_sequences,)
        Rows of each.
    max_length : int
        Most rows of a window.
    max_rows : int
        Most rows of all, unless the first window that is drawn has more.
    random_state : RandomState
        Draws the windows.

    Returns
    -------
    X : ndarray of shape (n_chosen, n_features)
        Windows in their order, one stacked after the other.
    lengths : ndarray of int of shape (n_windows,)
        Rows of each.
    """
    windows = Windows.whole(lengths).cut(max_length)
    if windows.length.sum() <= max_rows:
        return X, windows.length
    order = random_state.permutation(len(windows))
    n_windows = np.searchsorted(np.cumsum(windows.length[order]), max_rows, side="right")
    chosen = np.sort(order[: max(n_windows, 1)])
    start = (np.cumsum(windows.length) - windows.length)[chosen]
    length = windows.length[chosen]
    row = np.repeat(start - (np.cumsum(length) - length), length) + np.arange(length.sum())
    return X[row], length


def _fill(X: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of what is observed, and centred rows, interpolated linearly within sequences.

    Before the first and after the last observed value it is repeated; where there is none in the
    sequence, the mean takes its place.
    """
    is_observed = ~np.isnan(X)
    mean = np.where(is_observed, X, 0.0).sum(0) / np.maximum(is_observed.sum(0), 1)
    centred = np.where(is_observed, X - mean, 0.0)
    if is_observed.all():
        return mean, centred
    n_rows = len(X)
    row = np.arange(n_rows)[:, None]
    stop = np.repeat(np.cumsum(lengths), lengths)[:, None]
    start = stop - np.repeat(lengths, lengths)[:, None]
    before = np.maximum.accumulate(np.where(is_observed, row, -1), 0)
    after = np.minimum.accumulate(np.where(is_observed, row, n_rows)[::-1], 0)[::-1]
    has_before, has_after = before >= start, after < stop
    before, after = np.where(has_before, before, after), np.where(has_after, after, before)
    left, right = (
        np.take_along_axis(centred, np.clip(edge, 0, n_rows - 1), 0) for edge in (before, after)
    )
    share = (row - before) / np.maximum(after - before, 1)
    return mean, np.where(has_before | has_after, left + share * (right - left), 0.0)


def _reduction(centred: np.ndarray, latent_dim: int) -> np.ndarray:
    """Principal axes to take lagged correlations of: not all of many features, or few rows."""
    n_rows, n_features = centred.shape
    n_axes = min(max(latent_dim, _MIN_AXES), max(n_rows // 20, 1))
    if n_features <= n_axes:
        return np.eye(n_features)
    return principal_axes(centred, n_axes).axes


class _Memory(NamedTuple):
    """The part of the state that the past tells of, with unit covariance."""

    loading: np.ndarray
    transition: np.ndarray
    noise: np.ndarray

    @classmethod
    def none(cls, n_axes: int) -> "_Memory":
        """Return a state of no dimensions."""
        return cls(np.zeros((n_axes, 0)), np.zeros((0, 0)), np.zeros((0, 0)))


def _identify(
    Y: np.ndarray, lengths: np.ndarray, latent_dim: int, n_lags: int | None, significant: bool
) -> _Memory:
    """State from canonical correlations of past and future."""
    n_axes = Y.shape[1]
    n_lags = _choose_lags(lengths, n_axes, latent_dim) if n_lags is None else n_lags
    position = _positions(lengths, n_lags)
    if len(position) < 3:
        return _Memory.none(n_axes)
    future_row = position[:, None] + np.arange(n_lags)
    past, future = (Y[row].reshape(len(row), -1) for row in (future_row - n_lags, future_row))
    past_factor, future_factor = _factor(past), _factor(future)
    product = linalg.solve_triangular(past_factor, past.T @ future, lower=True) / len(past)
    product = linalg.solve_triangular(future_factor, product.T, lower=True)
    left, correlations, right = linalg.svd(product, full_matrices=False)
    least = _chance(past) if significant else _NO_CORRELATION
    n = min(latent_dim, int((correlations > least).sum()))
    if n == 0:
        return _Memory.none(n_axes)
    states = past @ linalg.solve_triangular(past_factor, right[:n].T, trans="T", lower=True)
    observability = future_factor @ (left[:, :n] * correlations[:n])
    # Unit covariance: the loadings of whitened states.
    factor = linalg.cholesky(states.T @ states / len(states) + 1e-9 * np.eye(n), lower=True)
    states = linalg.solve_triangular(factor, states.T, lower=True).T
    observability = observability @ factor
    return _with_transition(observability, states, position, n_axes)


def _chance(past: np.ndarray) -> float:
    """Canonical correlation that independent rows hardly reach."""
    n_rows, dim = past.shape
    share = min(dim / n_rows, 0.5)
    largest = 2.0 * np.sqrt(share * (1.0 - share))  # for two blocks of this size (Wachter 1980)
    # More, since rows are in several of the blocks; but a perfect correlation always counts.
    return min(1.5 * largest, 0.5 * (1.0 + largest))


def _with_transition(
    observability: np.ndarray, states: np.ndarray, position: np.ndarray, n_axes: int
) -> _Memory:
    pair = np.flatnonzero(np.diff(position) == 1)
    if len(observability) - n_axes >= states.shape[1]:
        # Shift invariance, which noise in the states does not bias as it does a regression.
        transition = linalg.lstsq(observability[:-n_axes], observability[n_axes:])[0]
    else:
        transition = linalg.lstsq(states[pair], states[pair + 1])[0].T
    transition = _shrink(transition)
    noise = states[pair + 1] - states[pair] @ transition.T
    covariance = noise.T @ noise / max(len(pair), 1) + 1e-3 * np.eye(states.shape[1])
    return _Memory(observability[:n_axes], transition, covariance)


def _choose_lags(lengths: np.ndarray, n_axes: int, latent_dim: int) -> int:
    """As many lags as leave several positions for each entry of a past, up to a limit."""
    n_lags = min(_MAX_LAGS, max(_BLOCK_SIZE // n_axes, -(-latent_dim // n_axes) + 1))
    while n_lags > 1 and len(_positions(lengths, n_lags)) < 5 * n_lags * n_axes:
        n_lags -= 1
    return n_lags


def _positions(lengths: np.ndarray, n_lags: int) -> np.ndarray:
    """First rows of futures that fit into their sequence, as do their pasts."""
    row = np.arange(lengths.sum())
    stop = np.repeat(np.cumsum(lengths), lengths)
    start = stop - np.repeat(lengths, lengths)
    return row[(row - start >= n_lags) & (stop - row >= n_lags)]


def _factor(block: np.ndarray) -> np.ndarray:
    """Cholesky factor of the covariance, shrunk towards a multiple of the identity."""
    n, dim = block.shape
    covariance = block.T @ block / n
    size = max(np.trace(covariance) / dim, np.finfo(float).tiny ** 0.5)
    return linalg.cholesky(covariance + (1e-3 + 0.1 * dim / n) * size * np.eye(dim), lower=True)


def _shrink(transition: np.ndarray) -> np.ndarray:
    """Move eigenvalues of too large a modulus onto the largest allowed, and no others.

    In the complex Schur form, where they are on the diagonal: no inverse of eigenvectors.
    """
    triangular, basis = linalg.schur(transition, output="complex")
    eigenvalues = np.diag(triangular)
    excess = np.maximum(np.abs(eigenvalues) / _MAX_MODULUS, 1.0)
    triangular = triangular + np.diag(eigenvalues / excess - eigenvalues)
    return (basis @ triangular @ basis.conj().T).real


def _static_loading(centred: np.ndarray, loading: np.ndarray, n_directions: int) -> np.ndarray:
    """Loadings of directions without memory: probabilistic PCA beside what has one."""
    n_features = centred.shape[1]
    span = linalg.orth(loading) if loading.shape[1] else loading
    n_left = n_features - span.shape[1]
    result = np.zeros((n_features, n_directions))
    n_axes = min(n_directions, n_left)
    if n_axes <= 0:
        return result
    left = centred - centred @ span @ span.T
    axes = principal_axes(left, n_axes).axes
    variances = np.mean((left @ axes) ** 2, axis=0)
    if n_left > n_axes:
        noise = max(np.mean(left**2) * n_features - variances.sum(), 0.0) / (n_left - n_axes)
    else:
        noise = 0.5 * variances.min()
    # Loadings of exactly zero would never become anything else.
    result[:, :n_axes] = axes * np.sqrt(np.maximum(variances - noise, 0.0))
    return result
