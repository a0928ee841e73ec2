# SPDX-License-Identifier: BSD-3-Clause
"""Laps on a track of two straights and two turns, whose dynamics switch with the place."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from sksvae.datasets.switching_oscillator import draw_smooth_network

# The states in driving order. On the published track the way back is the faster straight, and the
# turn after it the slower one.
_OUT, _RIGHT_TURN, _BACK, _LEFT_TURN = range(4)
_HALF_LENGTH = 2.0
_SPEED_OUT, _SPEED_BACK = 0.1, 0.25
_RIGHT_ANGLE, _LEFT_ANGLE = np.pi / 24, np.pi / 48
_LAP = 128  # steps: 40 out, 24 around, 16 back, 48 around
# Not at 0, from where steps of 0.1 end on the border at 2, on a side that rounding decides.
_FIRST_POINT = np.array([[0.05, 1.0]])


@validate_params(
    {
        "n_sequences": [Interval(Integral, 1, None, closed="left")],
        "n_timesteps": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "emission": [StrOptions({"linear", "nonlinear"})],
        "dynamics_noise_std": [Interval(Real, 0, None, closed="left")],
        "noise_std": [Interval(Real, 0, None, closed="left")],
        "return_latents": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_nascar(
    n_sequences: int = 10,
    *,
    n_timesteps: int = 1000,
    n_features: int = 10,
    emission: str = "linear",
    dynamics_noise_std: float = 0.01,
    noise_std: float = 0.1,
    return_latents: bool = False,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Make laps on the NASCAR track, four linear dynamics that switch with the place.

    A point :math:`(a, b)` in the plane goes clockwise around a track of radius 1 about the line
    from (-2, 0) to (2, 0). What moves it depends on where it is:

    =====  =============================  ===========================================
    State  Where                          How it moves
    =====  =============================  ===========================================
    0      :math:`|a| \le 2, \; b > 0`    by (0.1, 0); 40 steps
    1      :math:`a > 2`                  turns by :math:`\pi/24` about (2, 0); 24 steps
    2      :math:`|a| \le 2, \; b \le 0`  by (-0.25, 0); 16 steps
    3      :math:`a < -2`                 turns by :math:`\pi/48` about (-2, 0); 48 steps
    =====  =============================  ===========================================

    Gaussian noise is added to each move. The features are a random linear map of the point, or a
    random network of it, plus Gaussian noise.

    Parameters
    ----------
    n_sequences : int, default=10
        Number of sequences.
    n_timesteps : int, default=1000
        Steps of each sequence; a lap takes 128.
    n_features : int, default=10
        Number of observed features.
    emission : {"linear", "nonlinear"}, default="linear"
        How the features depend on the point: by a matrix of standard normal entries as in [1]_,
        or by a network with a hidden layer of 32 tanh units and random weights.
    dynamics_noise_std : float, default=0.01
        Standard deviation of the noise on each latent coordinate.
    noise_std : float, default=0.1
        Standard deviation of the noise on each feature.
    return_latents : bool, default=False
        Whether to return the latents as well.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers, those of the emission included: draw sequences to train and
        to test in one call and split them.

    Returns
    -------
    X : ndarray of shape (n_sequences, n_timesteps, n_features)
        The sequences.
    states : ndarray of shape (n_sequences, n_timesteps)
        The dynamics that moved into each step, the first included.
    latents : ndarray of shape (n_sequences, n_timesteps, 2)
        The points :math:`(a, b)`. Only if `return_latents` is true.

    See Also
    --------
    make_moving_laplace : Four states of motion that switch at random.
    make_switching_oscillator : Rotations of switching frequency.

    Notes
    -----
    In [1]_ the state is drawn given the place, by a softmax with steep weights; here it is the
    limit of infinitely steep ones. There one sequence of 10,000 steps starts at (0, 1); here each
    starts anywhere on the track, uniformly over the time of a lap.

    Without noise every lap is the same. With it the radius is a random walk, as neither a straight
    nor a turn pulls the point back: with the defaults it is 1.06 after 1,000 steps, with a standard
    deviation of 0.3, and 1.6 after 10,000, with one of 0.7.

    A model whose states switch by a Markov chain without regard to the place can tell the states
    apart, as their dynamics differ, but not foresee the switches.

    References
    ----------
    .. [1] Linderman, S. W., Johnson, M. J., Miller, A. C., Adams, R. P., Blei, D. M. and
       Paninski, L. (2017). Bayesian learning and inference in recurrent switching linear dynamical
       systems. AISTATS, section 5. https://proceedings.mlr.press/v54/linderman17a.html; the
       numbers are those of the authors' code, https://github.com/lindermanlab/ssm

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.datasets import make_nascar
    >>> X, states, latents = make_nascar(4, n_timesteps=300, return_latents=True, random_state=0)
    >>> X.shape, states.shape, latents.shape
    ((4, 300, 10), (4, 300), (4, 300, 2))
    >>> states[0, np.flatnonzero(np.diff(states[0]))]  # each state as it ends
    array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    """
    rng = check_random_state(random_state)
    emit = _draw_emission(n_features, emission, rng)  # first, so that it is the same at any length
    _, lap = _drive(_FIRST_POINT, np.zeros((1, _LAP, 2)))
    start = lap[0, rng.randint(_LAP, size=n_sequences)]
    noise = rng.normal(scale=dynamics_noise_std, size=(n_sequences, n_timesteps, 2))
    states, latents = _drive(start, noise)
    X = emit(latents)
    X += rng.normal(scale=noise_std, size=X.shape)
    return (X, states, latents) if return_latents else (X, states)


def _draw_emission(
    n_features: int, emission: str, rng: np.random.RandomState
) -> Callable[[np.ndarray], np.ndarray]:
    """Draw what maps points, of shape (..., 2), to features, of shape (..., n_features)."""
    if emission == "nonlinear":
        return draw_smooth_network(n_features, rng)
    weights = rng.standard_normal((2, n_features))
    return lambda latents: latents @ weights


def _dynamics() -> tuple[np.ndarray, np.ndarray]:
    """Write the moves as ``matrices[state] @ point + offsets[state]``.

    Returns
    -------
    matrices : ndarray of shape (4, 2, 2)
        The identity on the straights, clockwise rotations in the turns.
    offsets : ndarray of shape (4, 2)
        The speed on the straights; what keeps the centre in place in the turns.
    """
    matrices = np.tile(np.eye(2), (4, 1, 1))
    offsets = np.zeros((4, 2))
    offsets[_OUT, 0], offsets[_BACK, 0] = _SPEED_OUT, -_SPEED_BACK
    turns = [
        (_RIGHT_TURN, _RIGHT_ANGLE, _HALF_LENGTH),
        (_LEFT_TURN, _LEFT_ANGLE, -_HALF_LENGTH),
    ]
    for state, angle, centre in turns:
        cos, sin = np.cos(angle), np.sin(angle)
        matrices[state] = [[cos, sin], [-sin, cos]]
        offsets[state] = (np.eye(2) - matrices[state]) @ [centre, 0]
    return matrices, offsets


def _drive(start: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move points around the track.

    Parameters
    ----------
    start : ndarray of shape (n_sequences, 2)
        Where they are before the first step.
    noise : ndarray of shape (n_sequences, n_timesteps, 2)
        What is added to each move.

    Returns
    -------
    states : ndarray of shape (n_sequences, n_timesteps)
        The state that each step was made in.
    latents : ndarray of shape (n_sequences, n_timesteps, 2)
        The points after each step.
    """
    matrices, offsets = _dynamics()
    states = np.empty(noise.shape[:2], dtype=int)
    latents = np.empty(noise.shape)
    point = start
    for t in range(noise.shape[1]):
        states[:, t] = state = _locate(point)
        point = np.einsum("nij,nj->ni", matrices[state], point) + offsets[state] + noise[:, t]
        latents[:, t] = point
    return states, latents


def _locate(point: np.ndarray) -> np.ndarray:
    """Tell the state from the place, for points of shape (n_sequences, 2)."""
    along, across = point.T
    straight = np.where(across > 0, _OUT, _BACK)
    turn = np.where(along > 0, _RIGHT_TURN, _LEFT_TURN)
    return np.where(np.abs(along) > _HALF_LENGTH, turn, straight)
