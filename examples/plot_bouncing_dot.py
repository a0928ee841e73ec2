# SPDX-License-Identifier: BSD-3-Clause
"""
Forecast a bouncing dot, and edit its motion
============================================

A dot moves to and fro along twelve noisy pixels. A frame tells where the dot is, not where it is
going, and the pixels depend on the position nonlinearly. The latents of
:class:`sksvae.SVAELinearDynamics` move linearly, on a circle, and networks connect them with the
pixels: so the motion can be forecast, edited, and learned anew, apart from the pictures.
"""

# %%
# Data and model
# --------------
# The dot takes 80/3 frames to and fro. Held-out frames have new noise, and begin at another place.
import os
import time

import matplotlib.pyplot as plt
import numpy as np

from sksvae import SVAELinearDynamics
from sksvae.datasets import make_bouncing_dot

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"

PERIOD, N_OBSERVED, N_AHEAD = 80 / 3, 100, 100

X, _ = make_bouncing_dot(200 if quick else 5000, period=PERIOD, random_state=0)
X_new, _ = make_bouncing_dot(N_OBSERVED + N_AHEAD, period=PERIOD, phase=0.3, random_state=1)
observed, future = X_new[:N_OBSERVED], X_new[N_OBSERVED:]

svae = SVAELinearDynamics(4 if quick else 8, max_iter=2 if quick else 100, random_state=0)
start = time.perf_counter()
svae.fit(X)
fit_seconds = time.perf_counter() - start

# %%
# Forecast
# --------
# Hundred frames ahead of hundred observed ones. The noise of the pixels alone has a mean squared
# error of 0.0099. To repeat the last 80 frames, which are three periods, counts it twice.
forecast, _ = svae.forecast(observed, N_AHEAD)
repeated = np.concatenate([observed[-80:], observed[-80:-60]])
print(f"Fitted in {fit_seconds:.1f} seconds. Mean squared error of {N_AHEAD} frames ahead:")
for name, frames in {
    "forecast": forecast,
    "last period repeated": repeated,
    "mean frame": np.broadcast_to(X.mean(axis=0), future.shape),
}.items():
    print(f"  {name:21s} {np.mean((frames - future) ** 2):.4f}")

# %%
# Edit the motion
# ---------------
# One column of the transition matrix is scaled: what that latent hands on to the next step grows
# weaker. :meth:`~sksvae.SVAELinearDynamics.replace_dynamics` gives an edited copy with the same
# networks. The motion to and fro is the eigenvalue next to ``exp(2 pi i / period)``; the column is
# the one whose scaling moves that eigenvalue most.


def scaled(column, factor=0.9):
    """Transition matrix with one column scaled."""
    matrix = svae.transition_matrix_.copy()
    matrix[:, column] *= factor
    return matrix


def motion(matrix):
    """Eigenvalue next to the one of the motion."""
    eigenvalues = np.linalg.eigvals(matrix)
    return eigenvalues[np.abs(eigenvalues - np.exp(2j * np.pi / PERIOD)).argmin()]


found = motion(svae.transition_matrix_)
moved = [abs(motion(scaled(column)) - found) for column in range(svae.latent_dim_)]
column = int(np.argmax(moved))
edited = svae.replace_dynamics(transition_matrix=scaled(column))
edited_forecast, _ = edited.forecast(observed, N_AHEAD)
print(f"Motion: eigenvalue, its modulus and frames per period; then column {column} scaled by 0.9:")
for eigenvalue in (found, motion(edited.transition_matrix_)):
    frames = 2 * np.pi / abs(np.angle(eigenvalue))
    print(f"  {eigenvalue:.3f} {abs(eigenvalue):.4f} {frames:.2f}")

# %%
# Learn a new motion
# ------------------
# The same dot at 1.5 times the frequency: only the dynamics are learned anew, the networks already
# know what a dot looks like.
faster, _ = make_bouncing_dot(200 if quick else 5000, period=PERIOD / 1.5, random_state=2)
faster_new, _ = make_bouncing_dot(
    N_OBSERVED + N_AHEAD, period=PERIOD / 1.5, phase=0.3, random_state=3
)
start = time.perf_counter()
svae.refit_dynamics(faster)
seconds = time.perf_counter() - start
faster_forecast, _ = svae.forecast(faster_new[:N_OBSERVED], N_AHEAD)


def dominant_frequency(frames):
    """Cycles per frame, where the spectrum summed over pixels is largest."""
    n = 64 * len(frames)  # padded, for a fine grid
    window = np.hanning(len(frames))[:, None]
    spectrum = np.abs(np.fft.rfft((frames - frames.mean(axis=0)) * window, n, axis=0)) ** 2
    return np.fft.rfftfreq(n)[spectrum.sum(axis=1).argmax()]


print(f"Dynamics learned anew in {seconds:.1f} seconds. Cycles per frame:")
print(f"  first motion {1 / PERIOD:.4f}, forecast {dominant_frequency(forecast):.4f}")
print(f"  new motion   {1.5 / PERIOD:.4f}, forecast {dominant_frequency(faster_forecast):.4f}")

# %%
# See it
# ------
# Time goes to the right, pixels upwards; the line is where the forecasts begin.
panels = {
    "Truth": X_new,
    "Observed, then forecast": np.concatenate([observed, forecast]),
    f"Forecast with column {column} of the transition matrix scaled by 0.9": np.concatenate(
        [observed, edited_forecast]
    ),
    "Truth at 1.5 times the frequency": faster_new,
    "Forecast after refit_dynamics": np.concatenate([faster_new[:N_OBSERVED], faster_forecast]),
}
figure, axes = plt.subplots(
    len(panels), figsize=(9, 8), sharex=True, sharey=True, layout="constrained"
)
for axis, (title, frames) in zip(axes, panels.items(), strict=True):
    axis.imshow(frames.T, aspect="auto", origin="lower", cmap="gray_r", vmin=0, vmax=1)
    axis.axvline(N_OBSERVED - 0.5, color="tab:red")
    axis.set_title(title, fontsize=10)
    axis.set_ylabel("pixel")
axes[-1].set_xlabel("frame")
figure.savefig("bouncing_dot.png", dpi=120)
print("The figure is in bouncing_dot.png")
