# SPDX-License-Identifier: BSD-3-Clause
"""A test of whether the order of rows carries information."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammainc
from scipy.stats import rankdata
from sklearn.utils import check_array

# Sums of fewer products are far from normal: of one product, p-values were ten times too small.
_MIN_PAIRS = 5


class SerialDependence(NamedTuple):
    """Outcome of `serial_dependence`.

    Parameters
    ----------
    dependent : bool
        Whether independence of the rows is rejected.
    autocorrelations : ndarray of shape (n_features,)
        Lag-1 autocorrelation of the ranks of each feature: the mean product of standardised ranks
        over neighbours, which can pass one a little, and by more with missing values. NaN where
        nothing can be tested.
    p_values : ndarray of shape (n_features,)
        Two-sided, before the correction for their number; NaN where nothing can be tested.
    """

    dependent: bool
    autocorrelations: np.ndarray
    p_values: np.ndarray


def serial_dependence(X: ArrayLike, *, alpha: float = 1e-3) -> SerialDependence:
    r"""Test whether rows depend on the rows before them.

    Each feature is replaced by its ranks, standardised, and its lag-1 autocorrelation is compared
    with its distribution over all orders of the same values. Rows count as dependent if the
    smallest p-value, times the number of features tested, is below ``alpha``.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows in the order in which they came. NaN is a missing value: a pair of neighbours counts
        if both are observed.
    alpha : float, default=1e-3
        How often independent rows may be called dependent, between 0 and 1.

    Returns
    -------
    result : SerialDependence
        The decision, with the autocorrelation and the p-value of each feature. Features that are
        constant or have fewer than five pairs of observed neighbours are left out.

    Raises
    ------
    ValueError
        If ``alpha`` is not between 0 and 1, or ``X`` is not a table of numbers, or infinite.

    Notes
    -----
    With ranks :math:`x_t` of mean zero and variance one, the statistic is
    :math:`S = \sum x_t x_{t+1}`, over :math:`m` pairs of observed neighbours. Its mean and second
    moment over the :math:`n!` orders are exact, for any distribution, with ties and with gaps (as
    in [1]_, where the last value is also a neighbour of the first):

    .. math:: E[S] = -\frac{m}{n-1}, \quad E[S^2] = m \frac{n - k}{n - 1}
        + a \frac{2k - n}{(n-1)(n-2)} + (m^2 - m - a) \frac{3 (n - 2k)}{(n-1)(n-2)(n-3)}

    where :math:`k` is the mean of :math:`x^4` and :math:`a` the number of ordered pairs of pairs
    that share a value. The tail is that of a centred Poisson variable of this variance, in steps of
    the squared skewness of the ranks or their excess kurtosis, whichever is larger. For continuous
    features neither is positive, and the tail is normal. For features with rare values, such as an
    indicator that is one in few rows, it is much heavier, as it has to be: there two rare values
    that happen to be neighbours are many standard deviations away.

    This shape of the tail is an approximation. With fewer than some twenty pairs it is coarse: with
    ties, or many gaps, the rate of rejection at ``alpha=0.05`` can be twice that.

    Rows that are sorted, by class or in any other way, depend on one another too, and a trend is
    a dependence.

    References
    ----------
    .. [1] Wald, A. and Wolfowitz, J. (1943). An exact test for randomness in the non-parametric
       case based on serial correlation. Annals of Mathematical Statistics 14, 378-388.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.sequences import serial_dependence
    >>> noise = np.random.default_rng(0).normal(size=(200, 3))
    >>> serial_dependence(noise).dependent
    False
    >>> serial_dependence(np.cumsum(noise, axis=0)).dependent
    True
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha!r}.")
    X = check_array(
        X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", input_name="X"
    )
    tested = np.array([_rank_autocorrelation(column) for column in X.T])
    autocorrelations, p_values = tested.T
    n_tested = np.count_nonzero(~np.isnan(p_values))
    # A comparison with NaN is false.
    dependent = bool(np.any(p_values * n_tested < alpha))
    return SerialDependence(dependent, autocorrelations, p_values)


def _rank_autocorrelation(column: np.ndarray) -> tuple[float, float]:
    """Lag-1 autocorrelation of the ranks of one feature, and its p-value."""
    observed = ~np.isnan(column)
    n = np.count_nonzero(observed)
    pairs = observed[1:] & observed[:-1]
    if np.count_nonzero(pairs) < _MIN_PAIRS:
        return np.nan, np.nan
    ranks = rankdata(column[observed]) - (n + 1) / 2
    variance = np.mean(ranks**2)
    if variance == 0:
        return np.nan, np.nan
    # Zero where missing, so that pairs with a missing value add nothing.
    x = np.zeros(column.shape[0])
    x[observed] = ranks / np.sqrt(variance)
    statistic = x[1:] @ x[:-1]
    skewness, kurtosis = np.sum(x**3) / n, np.sum(x**4) / n
    mean, variance = _moments_over_orders(pairs, n, kurtosis)
    # It vanishes where all orders give one statistic, as 0 0 - 0 0 - 0 1 does, and rounding may
    # make it negative. With any positive number this small, the p-value there is one.
    variance = max(variance, np.finfo(np.float64).eps)
    # For independent products the ratio of the third to the second cumulant is skewness**2. In
    # steps of a thousandth of the standard deviation the tail is normal for all purposes.
    step = max(skewness**2, kurtosis - 3, 1e-3 * np.sqrt(variance))
    rate = variance / step**2
    # P(N >= k) of a Poisson variable N, which the incomplete gamma function extends to real k.
    tail = gammainc(rate + abs(statistic - mean) / step, rate)
    return float(statistic / np.count_nonzero(pairs)), min(2 * tail, 1.0)


def _moments_over_orders(
    pairs: np.ndarray, n: int | np.integer, kurtosis: float
) -> tuple[float, float]:
    """Mean and variance of the sum over pairs of products, when values are put in any order.

    Parameters
    ----------
    pairs : ndarray of shape (n_samples - 1,)
        Whether step ``t`` and the next are both observed.
    n : int
        Number of observed values, at least four.
    kurtosis : float
        Mean fourth power of the values, whose mean is zero and variance one.
    """
    m = np.count_nonzero(pairs)
    sharing = 2 * np.count_nonzero(pairs[1:] & pairs[:-1])
    mean = -m / (n - 1)
    same = (n - kurtosis) / (n - 1)
    chained = (2 * kurtosis - n) / ((n - 1) * (n - 2))
    apart = 3 * (n - 2 * kurtosis) / ((n - 1) * (n - 2) * (n - 3))
    second = m * same + sharing * chained + (m**2 - m - sharing) * apart
    return mean, second - mean**2
