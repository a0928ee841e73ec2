# SPDX-License-Identifier: BSD-3-Clause
"""A dot that moves to and fro along a row of pixels."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from scipy.signal import sawtooth
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params


@validate_params(
    {
        "n_frames": [Interval(Integral, 1, None, closed="left")],
        "n_pixels": [Interval(Integral, 2, None, closed="left")],
        "period": [Interval(Real, 0, None, closed="neither")],
        "phase": [Interval(Real, None, None, closed="neither")],
        "width": [Interval(Real, 0, None, closed="neither")],
        "noise_variance": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_bouncing_dot(
    n_frames: int = 5000,
    *,
    n_pixels: int = 12,
    period: float = 80 / 3,
    phase: float = 0.0,
    width: float = 0.2,
    noise_variance: float = 0.0099,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a dot that moves to and fro at constant speed.

    The position is a triangle wave between -1 and 1, and a pixel at ``g`` shows
    ``exp(-(position - g)^2 / (2 width^2))`` plus Gaussian noise. The dynamics are linear on a
    circle (a rotation) and the images depend on it nonlinearly; a single frame tells the position
    but not the direction.

    Parameters
    ----------
    n_frames : int, default=5000
        Number of images.
    n_pixels : int, default=12
        Pixels of an image, equally spaced from -1 to 1.
    period : float, default=80/3
        Frames that the way to and fro takes.
    phase : float, default=0.0
        Where the first frame is in the period, as a fraction of it; at 0 the dot leaves -1.
    width : float, default=0.2
        Standard deviation of the dot's profile.
    noise_variance : float, default=0.0099
        Of each pixel.
    random_state : int, RandomState instance or None, default=None
        For the noise.

    Returns
    -------
    X : ndarray of shape (n_frames, n_pixels)
        Images, in time order.
    position : ndarray of shape (n_frames,)
        Of the dot, between -1 and 1.

    References
    ----------
    Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural networks
    for structured representations and fast inference", NeurIPS 2016, section 5 (there with
    ``width=0.15`` and ``noise_variance=0.01``).

    Examples
    --------
    >>> from sksvae.datasets import make_bouncing_dot
    >>> X, position = make_bouncing_dot(5, n_pixels=3, period=4, noise_variance=0)
    >>> position
    array([-1.,  0.,  1.,  0., -1.])
    >>> X.round(1)
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.],
           [0., 1., 0.],
           [1., 0., 0.]])
    """
    random_state = check_random_state(random_state)
    cycles = phase + np.arange(n_frames) / period
    position = sawtooth(2 * np.pi * cycles, width=0.5)
    pixels = np.linspace(-1, 1, n_pixels)
    X = np.exp(-0.5 * ((position[:, None] - pixels) / width) ** 2)
    X += np.sqrt(noise_variance) * random_state.standard_normal(X.shape)
    return X, position
