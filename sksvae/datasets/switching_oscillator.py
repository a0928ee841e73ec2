# SPDX-License-Identifier: BSD-3-Clause
"""A rotation whose frequency and centre switch, seen through a smooth random network."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

_SHORTEST_PERIOD, _LONGEST_PERIOD = 8.0, 32.0
_N_HIDDEN = 32


@validate_params(
    {
        "n_sequences": [Interval(Integral, 1, None, closed="left")],
        "n_timesteps": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "n_states": [Interval(Integral, 1, None, closed="left")],
        "mean_segment_length": [Interval(Real, 1, None, closed="left")],
        "periods": ["array-like", None],
        "damping": ["array-like", Interval(Real, 0, 1, closed="right")],
        "centre_radius": [Interval(Real, 0, None, closed="left")],
        "dynamics_noise_std": [Interval(Real, 0, None, closed="left")],
        "noise_std": [Interval(Real, 0, None, closed="left")],
        "return_latents": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_switching_oscillator(
    n_sequences: int = 100,
    *,
    n_timesteps: int = 200,
    n_features: int = 10,
    n_states: int = 3,
    mean_segment_length: float = 40.0,
    periods: ArrayLike | None = None,
    damping: float | ArrayLike = 0.98,
    centre_radius: float = 1.0,
    dynamics_noise_std: float = 0.05,
    noise_std: float = 0.1,
    return_latents: bool = False,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Make sequences of a rotating point whose dynamics switch by a sticky Markov chain.

    In state :math:`k` a point in the plane turns about the centre :math:`c_k` by
    :math:`2 \pi / p_k` per step and approaches it by the factor :math:`\rho_k`,

    .. math::

        z_t = c_k + \rho_k \, R(2 \pi / p_k) \, (z_{t-1} - c_k) + \text{noise}, \qquad
        x_t = f(z_t) + \text{noise},

    where :math:`f` is a fixed random network with a hidden layer of 32 tanh units. The state stays
    with probability ``1 - 1 / mean_segment_length``, else each other state is equally probable.

    Parameters
    ----------
    n_sequences : int, default=100
        Number of sequences.
    n_timesteps : int, default=200
        Steps of each sequence.
    n_features : int, default=10
        Number of observed features.
    n_states : int, default=3
        Number of discrete states.
    mean_segment_length : float, default=40.0
        Mean number of steps that a state lasts, at least 1.
    periods : array-like of shape (n_states,), default=None
        Steps of a full turn in each state, :math:`p_k`, at least 2; a negative one turns
        clockwise. By default in equal ratios from 8 to 32.
    damping : float or array-like of shape (n_states,), default=0.98
        The factor :math:`\rho_k` in (0, 1], one for all states or one for each; 1 is undamped.
    centre_radius : float, default=1.0
        Distance of the centres from the origin; they are the corners of a regular polygon. At 0
        only the frequency and the damping tell the states apart.
    dynamics_noise_std : float, default=0.05
        Standard deviation of the noise on each latent coordinate.
    noise_std : float, default=0.1
        Standard deviation of the noise on each feature.
    return_latents : bool, default=False
        Whether to return the latents as well.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers, those of the network included: draw sequences to train and
        to test in one call and split them.

    Returns
    -------
    X : ndarray of shape (n_sequences, n_timesteps, n_features)
        The sequences.
    states : ndarray of shape (n_sequences, n_timesteps)
        The dynamics that moved into each step, the first included, from 0 to ``n_states - 1``.
    latents : ndarray of shape (n_sequences, n_timesteps, 2)
        The points :math:`z`. Only if `return_latents` is true.

    Raises
    ------
    ValueError
        If ``periods`` or ``damping`` has a wrong shape or an entry out of range.

    See Also
    --------
    make_moving_laplace : Four states of motion, the data of Bendekgey et al. (2023).
    make_nascar : Switches that depend on the latents.

    Notes
    -----
    The first state is uniform, and the point before the first step is standard normal. Without
    switches a coordinate has the variance ``dynamics_noise_std**2 / (1 - damping**2)`` about its
    centre, 0.25 squared with the defaults; a switch adds the way from the old centre to the new.

    References
    ----------
    .. [1] Ghahramani, Z. and Hinton, G. E. (2000). Variational learning for switching state-space
       models. Neural Computation 12(4), 831-864, for the model class. The settings are our own.

    Examples
    --------
    >>> from sksvae.datasets import make_switching_oscillator
    >>> X, states = make_switching_oscillator(5, n_timesteps=60, random_state=0)
    >>> X.shape, states.shape, int(states.max())
    ((5, 60, 10), (5, 60), 2)
    >>> X, _ = make_switching_oscillator(
    ...     1, n_states=1, periods=[20], damping=1, dynamics_noise_std=0, noise_std=0
    ... )
    >>> bool(abs(X[:, 20:] - X[:, :-20]).max() < 1e-9)
    True
    """
    rng = check_random_state(random_state)
    if periods is None:
        periods = np.geomspace(_SHORTEST_PERIOD, _LONGEST_PERIOD, n_states)
    periods = _check_per_state(periods, "periods", n_states)
    if not np.all(np.abs(periods) >= 2):
        raise ValueError(f"periods must be at least 2 in absolute value, got {periods}.")
    damping = _check_per_state(damping, "damping", n_states)
    if not np.all((damping > 0) & (damping <= 1)):
        raise ValueError(f"damping must be in (0, 1], got {damping}.")

    network = draw_smooth_network(n_features, rng)  # first, so that it is the same for any length
    centres = centre_radius * np.exp(2j * np.pi * np.arange(n_states) / n_states)
    factors = damping * np.exp(2j * np.pi / periods)
    states = _draw_sticky_chain((n_sequences, n_timesteps), n_states, mean_segment_length, rng)
    latents = _rotate(states, centres, factors, dynamics_noise_std, rng)
    X = network(latents)
    X += rng.normal(scale=noise_std, size=X.shape)
    return (X, states, latents) if return_latents else (X, states)


def draw_smooth_network(
    n_features: int, rng: np.random.RandomState
) -> Callable[[np.ndarray], np.ndarray]:
    """Draw a network with one hidden layer of tanh units from the plane to the features.

    Parameters
    ----------
    n_features : int
        Number of outputs, each of variance about 0.6 for standard normal inputs.
    rng : RandomState instance
        Source of the weights.

    Returns
    -------
    network : callable
        Maps an ndarray of shape (..., 2) to one of shape (..., n_features).
    """
    # Unit weights bend the outputs within the range of a latent of unit scale: neither close to
    # linear nor steps.
    weights_in = rng.standard_normal((2, _N_HIDDEN))
    offsets = rng.standard_normal(_N_HIDDEN)
    weights_out = rng.standard_normal((_N_HIDDEN, n_features)) / np.sqrt(_N_HIDDEN)

    def network(latents: np.ndarray) -> np.ndarray:
        return np.tanh(latents @ weights_in + offsets) @ weights_out

    return network


def _check_per_state(values: ArrayLike, name: str, n_states: int) -> np.ndarray:
    """Read one finite number for all states or one for each, as one for each."""
    values = np.asarray(values, dtype=float)
    if values.shape not in ((), (n_states,)):
        raise ValueError(
            f"{name} must have one entry for each of the {n_states} states, "
            f"got an array of shape {values.shape}."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {values}.")
    return np.broadcast_to(values, n_states)


def _draw_sticky_chain(
    shape: tuple[int, int],
    n_states: int,
    mean_segment_length: float,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Draw chains that leave a state for each other with equal probability."""
    switches = rng.random_sample(shape) < 1 / mean_segment_length
    # A switch advances by 1 to n_states - 1 places around the circle of states.
    advance = 1 + (rng.random_sample(shape) * (n_states - 1)).astype(int)
    first = rng.randint(n_states, size=(shape[0], 1))
    return (first + np.cumsum(switches * advance, axis=1)) % n_states


def _rotate(
    states: np.ndarray,
    centres: np.ndarray,
    factors: np.ndarray,
    noise_std: float,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Move the points, with the plane as the complex numbers: a rotation is a factor.

    Parameters
    ----------
    states : ndarray of shape (n_sequences, n_timesteps)
        Discrete states.
    centres, factors : ndarray of shape (n_states,), complex
        Where each state turns around, and what a step multiplies the distance by.
    noise_std : float
        Standard deviation on each coordinate.
    rng : RandomState instance
        Source of the first points and of the noise.

    Returns
    -------
    latents : ndarray of shape (n_sequences, n_timesteps, 2)
        The points after each step.
    """
    point = rng.standard_normal((states.shape[0], 2)) @ [1, 1j]
    path = noise_std * (rng.standard_normal((*states.shape, 2)) @ [1, 1j])
    for t, state in enumerate(states.T):
        centre = centres[state]
        point = path[:, t] = path[:, t] + centre + factors[state] * (point - centre)
    return np.stack([path.real, path.imag], axis=-1)
