# SPDX-License-Identifier: BSD-3-Clause
"""Pinwheel spirals: labels and the exact density are known.

The pinwheel is the test problem of Johnson et al. [1]_: each arm is a Gaussian in a "flat" frame,
bent into a spiral by a rotation whose angle grows with the radius. The clusters are simple once
straightened and far from Gaussian as observed, which is the case that a structured VAE is for.

References
----------
.. [1] Johnson, M. J., Duvenaud, D., Wiltschko, A. B., Datta, S. R. and Adams, R. P. (2016).
   Composing graphical models with neural networks for structured representations and fast
   inference. NeurIPS. https://arxiv.org/abs/1603.06277
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

__all__ = ["make_pinwheel", "pinwheel_log_density"]

# Shared by the generator and its density, which must be asked about the same distribution.
_PINWHEEL_SHAPE = {
    "n_arms": [Interval(Integral, 1, None, closed="left")],
    "radial_std": [Interval(Real, 0, None, closed="neither")],
    "tangential_std": [Interval(Real, 0, None, closed="neither")],
    "rate": [Interval(Real, None, None, closed="neither")],
    "scale": [Interval(Real, 0, None, closed="neither")],
}

# A row where the spiral has wound so often that it has more preimages than this is refused. At the
# default shape that is a radius of 10 * scale, 30 standard deviations out.
_MAX_PREIMAGES = 10_000


@validate_params(
    {
        "n_samples_per_arm": [Interval(Integral, 1, None, closed="left")],
        **_PINWHEEL_SHAPE,
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "dtype": [StrOptions({"float32", "float64"}), type, np.dtype],
    },
    prefer_skip_nested_validation=True,
)
def make_pinwheel(
    n_samples_per_arm: int = 200,
    *,
    n_arms: int = 5,
    radial_std: float = 0.3,
    tangential_std: float = 0.05,
    rate: float = 0.25,
    scale: float = 10.0,
    shuffle: bool = True,
    random_state: int | np.random.RandomState | None = None,
    dtype: DTypeLike = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Make spiral arms around the origin, one class per arm.

    A row of arm :math:`k` starts as :math:`f = (f_0, f_1)` with :math:`f_0 \sim N(1, r^2)` along
    the arm and :math:`f_1 \sim N(0, s^2)` across it, is turned by
    :math:`a = 2 \pi k / K + \rho \, e^{f_0}` and scaled:

    .. math:: x = c \, (f_0 \cos a + f_1 \sin a, \; -f_0 \sin a + f_1 \cos a)

    Parameters
    ----------
    n_samples_per_arm : int, default=200
        Number of rows of each arm.
    n_arms : int, default=5
        Number of arms, :math:`K`.
    radial_std : float, default=0.3
        Standard deviation along an arm, :math:`r`, before scaling.
    tangential_std : float, default=0.05
        Standard deviation across an arm, :math:`s`, before scaling.
    rate : float, default=0.25
        How fast an arm winds, :math:`\rho`; zero gives straight arms.
    scale : float, default=10.0
        Factor on the coordinates, :math:`c`. The default is that of the experiments in [1]_.
    shuffle : bool, default=True
        Whether to shuffle the rows; without it the arms follow one another.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers; an int gives the same data at each call.
    dtype : {"float32", "float64"} or dtype, default=np.float64
        Type of ``X``. The same numbers are drawn for both.

    Returns
    -------
    X : ndarray of shape (n_arms * n_samples_per_arm, 2)
        The points.
    y : ndarray of shape (n_arms * n_samples_per_arm,)
        The arm of each point, from 0 to ``n_arms - 1``.

    See Also
    --------
    pinwheel_log_density : The exact log density of these points.

    References
    ----------
    .. [1] Johnson, M. J., Duvenaud, D., Wiltschko, A. B., Datta, S. R. and Adams, R. P. (2016).
       Composing graphical models with neural networks for structured representations and fast
       inference. NeurIPS, figure 2. https://arxiv.org/abs/1603.06277

    Examples
    --------
    >>> from sksvae.datasets import make_pinwheel
    >>> X, y = make_pinwheel(n_samples_per_arm=100, n_arms=3, random_state=0)
    >>> X.shape, y.shape, sorted(set(y.tolist()))
    ((300, 2), (300,), [0, 1, 2])
    """
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        raise ValueError(f"dtype must be a floating point type, got {dtype}.")
    rng = check_random_state(random_state)
    y = np.repeat(np.arange(n_arms), n_samples_per_arm)
    flat = rng.standard_normal((y.shape[0], 2)) * [radial_std, tangential_std] + [1.0, 0.0]
    angle = 2 * np.pi * y / n_arms + rate * np.exp(flat[:, 0])
    cos, sin = np.cos(angle), np.sin(angle)
    X = scale * np.column_stack(
        [flat[:, 0] * cos + flat[:, 1] * sin, flat[:, 1] * cos - flat[:, 0] * sin]
    )
    if shuffle:
        order = rng.permutation(y.shape[0])
        X, y = X[order], y[order]
    return X.astype(dtype, copy=False), y


@validate_params({"X": ["array-like"], **_PINWHEEL_SHAPE}, prefer_skip_nested_validation=True)
def pinwheel_log_density(
    X: ArrayLike,
    *,
    n_arms: int = 5,
    radial_std: float = 0.3,
    tangential_std: float = 0.05,
    rate: float = 0.25,
    scale: float = 10.0,
) -> np.ndarray:
    r"""Compute the exact log density of `make_pinwheel`, summed over the arms.

    The turn keeps the radius :math:`R = |x| / c = |f|`, so a preimage of :math:`x` is an angle
    :math:`\phi`, :math:`f = R (\cos\phi, \sin\phi)`, that solves

    .. math:: \phi - \rho \, e^{R \cos\phi} = \mathrm{arg}(x) + 2 \pi j / K

    for some integer :math:`j`: this covers all arms, and, far out, where the map folds over, all
    preimages within one arm. The Jacobian determinant of the turn is
    :math:`1 + \rho f_1 e^{f_0}` (the turn is not volume preserving), so that

    .. math:: p(x) = \frac{1}{K c^2} \sum_{f \,:\, x}
        \frac{N(f_0; 1, r^2) \, N(f_1; 0, s^2)}{|1 + \rho f_1 e^{f_0}|}

    Every root is bracketed by the turning points of the left-hand side and bisected to the last
    bit.

    Parameters
    ----------
    X : array-like of shape (n_samples, 2)
        Where to evaluate the density, in the units of `make_pinwheel`.
    n_arms, radial_std, tangential_std, rate, scale : int or float
        The shape of the pinwheel, with the defaults of `make_pinwheel`.

    Returns
    -------
    log_density : ndarray of shape (n_samples,)
        Natural logarithm of the density at each row, in float64.

    Raises
    ------
    ValueError
        If ``X`` does not have two columns, or a row is so far from the origin that the spiral has
        wound more often than can be enumerated.

    See Also
    --------
    make_pinwheel : The generator.

    Examples
    --------
    The mean over generated points is minus the entropy, which no model can exceed by more than
    chance on held-out data.

    >>> from sksvae.datasets import make_pinwheel, pinwheel_log_density
    >>> X, _ = make_pinwheel(n_samples_per_arm=2000, random_state=0)
    >>> print(f"{pinwheel_log_density(X).mean():.2f}")
    -4.83
    """
    X = check_array(X, dtype=np.float64, input_name="X")
    if X.shape[1] != 2:
        raise ValueError(f"X must have 2 columns, got {X.shape[1]}.")
    # Mirroring the second axis changes the sign of the rate, and leaves one sign to treat.
    direction = -1.0 if rate < 0 else 1.0
    rate = abs(rate)
    radius = np.hypot(X[:, 0], X[:, 1]) / scale
    angle = np.arctan2(direction * X[:, 1], X[:, 0])
    _check_preimage_count(radius, rate, n_arms)
    row, phi = _pinwheel_preimages(radius, angle, rate, n_arms)

    f0, f1 = radius[row] * np.cos(phi), radius[row] * np.sin(phi)
    log_normal = -0.5 * (((f0 - 1) / radial_std) ** 2 + (f1 / tangential_std) ** 2)
    with np.errstate(divide="ignore"):  # exactly on a fold the density is infinite
        log_jacobian = np.log(np.abs(1 + rate * f1 * np.exp(f0)))
    log_constant = np.log(2 * np.pi * radial_std * tangential_std * n_arms) + 2 * np.log(scale)
    return _logsumexp_by_row(log_normal - log_jacobian, row) - log_constant


def _check_preimage_count(radius: np.ndarray, rate: float, n_arms: int) -> None:
    """Refuse rows whose preimages are too many to enumerate, before anything overflows."""
    # Preimages are spaced 2 pi / n_arms in a left-hand side that rises and falls by less than
    # rate * exp(radius) over the circle, besides the n_arms that are always there.
    if rate == 0:
        return
    limit = np.log(_MAX_PREIMAGES * np.pi / n_arms) - np.log(rate)
    too_far = np.flatnonzero(radius > limit)
    if too_far.size:
        raise ValueError(
            f"X has {too_far.size} rows too far from the origin, the first is row {too_far[0]} at "
            f"{radius[too_far[0]]:.3g} * scale: the spiral winds too often there to sum over its "
            f"preimages. With rate={rate:g} rows up to {max(limit, 0):.3g} * scale are possible."
        )


def _pinwheel_preimages(
    radius: np.ndarray, angle: np.ndarray, rate: float, n_arms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find every root of the equation in `pinwheel_log_density`, for a rate that is not negative.

    Parameters
    ----------
    radius, angle : ndarray of shape (n_samples,)
        The points in polar coordinates, unscaled.
    rate : float
        Winding rate, >= 0.
    n_arms : int
        Number of arms.

    Returns
    -------
    row : ndarray of shape (n_roots,)
        The row that each root belongs to, sorted; every row has at least ``n_arms`` roots.
    phi : ndarray of shape (n_roots,)
        The roots.
    """
    spacing = 2 * np.pi / n_arms

    # On [-pi, pi] the left-hand side rises, falls between its turning points if it has any, and
    # rises again. In each piece there is a root for every level between the values at its ends.
    first, second = _turning_points(radius, rate)
    edges = np.stack([np.full_like(radius, -np.pi), first, second, np.full_like(radius, np.pi)])
    levels = np.floor((_turned(edges, radius, rate) - angle) / spacing).astype(np.int64)
    # Around the circle it rises by 2 pi: exactly n_arms levels whatever the rounding.
    levels[3] = levels[0] + n_arms

    n_roots = np.abs(np.diff(levels, axis=0)).T.ravel()  # row by row, three pieces each
    piece = np.repeat(np.arange(n_roots.size), n_roots)
    rank = np.arange(piece.size) - np.repeat(np.cumsum(n_roots) - n_roots, n_roots)
    row, part = piece // 3, piece % 3
    level = np.minimum(levels[part, row], levels[part + 1, row]) + 1 + rank
    target = angle[row] + spacing * level

    low, high = edges[part, row], edges[part + 1, row]
    falling = part == 1
    R = radius[row]
    phi = _bisect(lambda phi: (_turned(phi, R, rate) > target) ^ falling, low, high)
    return row, phi


def _turned(phi: np.ndarray, radius: np.ndarray, rate: float) -> np.ndarray:
    """Evaluate the left-hand side of the equation in `pinwheel_log_density`."""
    return phi - rate * np.exp(radius * np.cos(phi))


def _turning_points(radius: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Find where ``1 + rate * R sin(phi) exp(R cos(phi))`` is negative, as an interval.

    Returns
    -------
    first, second : ndarray of shape (n_samples,)
        The ends of the interval, in (-pi, 0); equal where the expression is nowhere negative.
    """
    # The slope falls from 1 at -pi to its minimum, where cos(phi) = R sin(phi)^2, and rises back
    # to 1 at 0. The root of that quadratic is written so that R = 0 does not divide by zero.
    lowest = -np.arccos(2 * radius / (1 + np.sqrt(1 + 4 * radius**2)))
    folded = np.flatnonzero(_slope(lowest, radius, rate) < 0)
    first, second = lowest.copy(), lowest.copy()
    R, middle = radius[folded], lowest[folded]
    first[folded] = _bisect(
        lambda phi: _slope(phi, R, rate) < 0, np.full_like(middle, -np.pi), middle
    )
    second[folded] = _bisect(lambda phi: _slope(phi, R, rate) > 0, middle, np.zeros_like(middle))
    return first, second


def _slope(phi: np.ndarray, radius: np.ndarray, rate: float) -> np.ndarray:
    """Differentiate `_turned` by the angle; this is also the Jacobian determinant of the turn."""
    return 1 + rate * radius * np.sin(phi) * np.exp(radius * np.cos(phi))


def _bisect(
    is_past: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Bisect for the point where ``is_past`` turns true, elementwise, to float64 precision."""
    for _ in range(56):  # 2 pi / 2**56 is below the spacing of the numbers around 1
        middle = 0.5 * (low + high)
        past = is_past(middle)
        low, high = np.where(past, low, middle), np.where(past, middle, high)
    return 0.5 * (low + high)


def _logsumexp_by_row(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Sum exponentials over the runs of equal ``row``, in logarithms."""
    start = np.flatnonzero(np.diff(row, prepend=-1))
    largest = np.maximum.reduceat(values, start)
    with np.errstate(invalid="ignore"):  # inf - inf, where the density is infinite
        total = np.add.reduceat(np.exp(values - largest[row]), start)
    return np.where(np.isinf(largest), largest, largest + np.log(total))
