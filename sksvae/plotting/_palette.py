# SPDX-License-Identifier: BSD-3-Clause
"""Colours of states and components."""

import numpy as np

# The eight colours of Okabe and Ito (https://jfly.uni-koeln.de/color), told apart by nearly all
# readers, in an order that begins with those far apart in lightness and on white; black comes last
# and as a grey, since text and signals are black.
OKABE_ITO = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#666666",
)
OBSERVED, ESTIMATED, TRUE = "0.2", "#0072B2", "#D55E00"


def state_colors(n_states: int) -> np.ndarray:
    """Colours that tell states apart, for all kinds of colour vision.

    Parameters
    ----------
    n_states : int
        Number of states.

    Returns
    -------
    ndarray of shape (n_states, 3)
        Up to eight: those of Okabe and Ito. More: evenly spaced on viridis, lighter with the
        number of the state, so that no two are equally light. Displays then show the number by
        text or place, too.
    """
    from matplotlib import colormaps, colors

    if n_states <= len(OKABE_ITO):
        return np.array([colors.to_rgb(color) for color in OKABE_ITO[:n_states]])
    # Not up to the lightest yellow, which is lost on white.
    return colormaps["viridis"](np.linspace(0.0, 0.93, n_states))[:, :3]


def text_color(background: np.ndarray) -> str:
    """Black or white, whichever stands out more.

    Parameters
    ----------
    background : array-like of shape (3,) or (4,)
        Red, green and blue, between 0 and 1.

    Returns
    -------
    str
        Name of the colour.
    """
    linear = np.asarray(background, dtype=float)[:3] ** 2.2
    # Relative luminance; equal contrast with black and white is at 0.18.
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.18 else "white"
