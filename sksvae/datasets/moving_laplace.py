# SPDX-License-Identifier: BSD-3-Clause
"""A peak on a line that moves or changes its width, in one of two directions at a time."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

# The states, two for each quantity, up before down; the quantities are the columns of the latents.
_LOCATION_UP, _LOCATION_DOWN, _WIDTH_UP, _WIDTH_DOWN = range(4)

# Location and inverse softplus of the width before the first step.
_START = (0.0, -1.0)


@validate_params(
    {
        "n_sequences": [Interval(Integral, 1, None, closed="left")],
        "n_timesteps": [Interval(Integral, 1, None, closed="left")],
        "n_features": [Interval(Integral, 2, None, closed="left")],
        "mean_segment_length": [Interval(Real, 1, None, closed="left")],
        "reversal_probability": [Interval(Real, 0, 1, closed="both")],
        "location_step": [Interval(Real, 0, None, closed="left")],
        "location_step_std": [Interval(Real, 0, None, closed="left")],
        "width_step": [Interval(Real, 0, None, closed="left")],
        "width_step_std": [Interval(Real, 0, None, closed="left")],
        "noise_std": [Interval(Real, 0, None, closed="left")],
        "return_latents": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_moving_laplace(
    n_sequences: int = 512,
    *,
    n_timesteps: int = 250,
    n_features: int = 100,
    mean_segment_length: float = 10.0,
    reversal_probability: float = 0.9,
    location_step: float = 0.03,
    location_step_std: float = 0.004,
    width_step: float = 0.1,
    width_step_std: float = 0.01,
    noise_std: float = 0.02,
    return_latents: bool = False,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Make sequences of a Laplace peak whose motion has four discrete states.

    A step shows a peak at :math:`m` of width :math:`s > 0` on a grid :math:`g` from -2 to 2,

    .. math:: x = \sqrt{s + 1} \, \exp\left(-\frac{|g - m|}{2 s}\right) + \text{noise}.

    At each step either :math:`m` or :math:`\operatorname{softplus}^{-1}(s)` moves, up or down, by
    a normal random amount; the other quantity stays. Which of the four it is is the discrete
    state. It lasts for a number of steps that is geometrically distributed, then most often
    reverses (the same quantity in the other direction), else passes to the other quantity, up or
    down with equal probability. The latents thus follow switching linear dynamics exactly, and the
    observations depend on them nonlinearly.

    Parameters
    ----------
    n_sequences : int, default=512
        Number of sequences; [1]_ has 512 to train and 128 to test.
    n_timesteps : int, default=250
        Steps of each sequence.
    n_features : int, default=100
        Points of the grid, equally spaced from -2 to 2.
    mean_segment_length : float, default=10.0
        Mean number of steps that a state lasts, at least 1.
    reversal_probability : float, default=0.9
        Probability that a segment is followed by its reversal.
    location_step : float, default=0.03
        Mean step of :math:`m` in its direction.
    location_step_std : float, default=0.004
        Standard deviation of a step of :math:`m`.
    width_step : float, default=0.1
        Mean step of :math:`\operatorname{softplus}^{-1}(s)` in its direction.
    width_step_std : float, default=0.01
        Standard deviation of a step of :math:`\operatorname{softplus}^{-1}(s)`.
    noise_std : float, default=0.02
        Standard deviation of the noise on each point.
    return_latents : bool, default=False
        Whether to return the latents as well.
    random_state : int, RandomState instance or None, default=None
        Source of the random numbers; an int gives the same data at each call.

    Returns
    -------
    X : ndarray of shape (n_sequences, n_timesteps, n_features)
        The sequences.
    states : ndarray of shape (n_sequences, n_timesteps)
        What moved into each step, the first included: 0 for :math:`m` up, 1 for :math:`m` down,
        2 for :math:`s` up, 3 for :math:`s` down.
    latents : ndarray of shape (n_sequences, n_timesteps, 2)
        :math:`m` and :math:`\operatorname{softplus}^{-1}(s)`. Only if `return_latents` is true.

    See Also
    --------
    make_nascar : Switches that depend on the latents.
    make_switching_oscillator : Rotations of switching frequency.

    Notes
    -----
    Before the first step :math:`m = 0` and :math:`\operatorname{softplus}^{-1}(s) = -1`, that is
    :math:`s = 0.313`. The first state is uniform, which is its stationary distribution (in the
    authors' code it is the first of the four).

    As in [1]_, nothing holds the latents: both are random walks, slow ones because of the
    reversals. With the defaults :math:`m` leaves the grid in a tenth of the sequences, and is out
    there in 2 % of all steps: the grid then shows one flank of the peak or, where :math:`s` is
    small, noise only. The width may also fall below the spacing of the grid, 0.04, as it does in
    14 % of all steps, so that the peak hides between two points. In all, no point exceeds three
    standard deviations of the noise in 3 % of the steps, within an eighth of the sequences; the
    states of those cannot be told from the step itself.

    References
    ----------
    .. [1] Bendekgey, H., Hope, G. and Sudderth, E. B. (2023). Unbiased learning of deep generative
       models with structured discrete representations. NeurIPS, appendix A.7.
       https://arxiv.org/abs/2306.08230

    Examples
    --------
    >>> from sksvae.datasets import make_moving_laplace
    >>> X, states = make_moving_laplace(3, n_timesteps=50, random_state=0)
    >>> X.shape, states.shape
    ((3, 50, 100), (3, 50))
    >>> X, states, latents = make_moving_laplace(
    ...     1, n_timesteps=15, location_step_std=0, return_latents=True, random_state=5
    ... )
    >>> states[0, 7:13]
    array([1, 1, 1, 0, 0, 0])
    >>> latents[0, 7:13, 0].round(2)
    array([-0.24, -0.27, -0.3 , -0.27, -0.24, -0.21])
    """
    rng = check_random_state(random_state)
    shape = (n_sequences, n_timesteps)
    states = _draw_states(shape, 1 / mean_segment_length, reversal_probability, rng)
    up = np.isin(states, (_LOCATION_UP, _WIDTH_UP))
    moves_width = np.isin(states, (_WIDTH_UP, _WIDTH_DOWN))
    step = np.where(moves_width, width_step, location_step)
    step += np.where(moves_width, width_step_std, location_step_std) * rng.standard_normal(shape)
    step[~up] *= -1
    moves = np.stack([np.where(moves_width, 0, step), np.where(moves_width, step, 0)], axis=-1)
    latents = _START + np.cumsum(moves, axis=1)
    X = _render(latents[..., 0], np.logaddexp(0, latents[..., 1]), np.linspace(-2, 2, n_features))
    X += rng.normal(scale=noise_std, size=X.shape)
    return (X, states, latents) if return_latents else (X, states)


def _draw_states(
    shape: tuple[int, int],
    switch_probability: float,
    reversal_probability: float,
    rng: np.random.RandomState,
) -> np.ndarray:
    """Draw the states of all sequences.

    A geometric length is a switch with equal probability at each step. A new direction that is up
    or down at random is one that is turned or not at random, so that the quantity and the
    direction are both running sums modulo 2.

    Parameters
    ----------
    shape : tuple of int
        Number of sequences and of steps.
    switch_probability, reversal_probability : float
        That a segment ends, and that its reversal follows.
    rng : RandomState instance
        Source of the random numbers.

    Returns
    -------
    states : ndarray of shape (n_sequences, n_timesteps)
        Numbered as in `make_moving_laplace`.
    """
    switches = rng.random_sample(shape) < switch_probability
    changes_quantity = switches & (rng.random_sample(shape) >= reversal_probability)
    coin = rng.random_sample(shape) < 0.5
    turns = switches & (~changes_quantity | coin)
    first = rng.randint(2, size=(2, shape[0], 1))
    quantity = (first[0] + np.cumsum(changes_quantity, axis=1)) % 2
    direction = (first[1] + np.cumsum(turns, axis=1)) % 2
    return 2 * quantity + direction


def _render(location: np.ndarray, width: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Evaluate the peaks on the grid, along a new last axis."""
    # A width that underflows to zero shows a peak on a point of the grid, else nothing.
    width = np.maximum(width, np.finfo(width.dtype).tiny)[..., None]
    X = np.abs(grid - location[..., None])
    with np.errstate(over="ignore"):  # far out of a narrow peak: exp(-inf) = 0 is meant
        X /= -2 * width
    np.exp(X, out=X)
    X *= np.sqrt(width + 1)
    return X
