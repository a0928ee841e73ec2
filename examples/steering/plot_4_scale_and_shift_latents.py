# SPDX-License-Identifier: BSD-3-Clause
"""
Scale and shift latents of a bouncing dot, and generate from nothing
====================================================================

What does a latent mean? Change one, decode, and see. Then let the dynamics run on their own. After
figures 6.6 and 6.7 of van den Heuvel's thesis. What follows there, a column of the transition
matrix scaled (figure 6.9) and dynamics learned anew for another motion (figure 6.10), is shown in
:ref:`sphx_glr_auto_examples_plot_bouncing_dot.py`.
"""

# %%
# Data and model
# --------------
# A dot moves to and fro along twelve noisy pixels, once in 80/3 frames. Training ends where 20
# epochs raise the bound by less than 0.1 nats.
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics
from sksvae.datasets import make_bouncing_dot

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
if quick:
    warnings.simplefilter("ignore", ConvergenceWarning)
PERIOD, N_LATENTS, N_DRAWS = 80 / 3, 4 if quick else 8, 3 if quick else 200

X, _ = make_bouncing_dot(200 if quick else 2000, period=PERIOD, random_state=0)
X_new, place = make_bouncing_dot(400, period=PERIOD, phase=0.3, random_state=1)
svae = SVAELinearDynamics(N_LATENTS, tol=0.1, random_state=0)
if quick:
    svae.set_params(max_iter=2, transition_precision_prior=0.01)
start = time.perf_counter()
Z = svae.fit(X).transform(X_new)
reconstruction = svae.inverse_transform(Z)
print(f"Fitted in {time.perf_counter() - start:.0f} seconds.")

# %%
# A ruler for pictures
# --------------------
# The dot that is nearest to a frame, of all places and brightnesses, tells where the dot is and how
# bright; what is left is no dot. Places go from -1 to 1, and a pixel is 0.18 wide.
PLACES = np.linspace(-1.2, 1.2, 481)
DOTS = np.exp(-0.5 * ((PLACES[:, None] - np.linspace(-1, 1, 12)) / 0.2) ** 2)


def measure(frames):
    """Place and brightness of the nearest dot in each frame, and the mean square of the rest."""
    brightness = np.maximum(frames @ DOTS.T, 0) / np.square(DOTS).sum(axis=1)
    rest = np.square(frames).mean(-1)[..., None] - brightness**2 * np.square(DOTS).mean(axis=1)
    best = rest.argmin(axis=-1)[..., None]
    found = (np.take_along_axis(part, best, -1)[..., 0] for part in (brightness, rest))
    return PLACES[best[..., 0]], *found


def rms(x):
    """Root mean square."""
    return np.sqrt(np.mean(np.square(x)))


for name, frames in (("data", X_new), ("reconstruction", reconstruction)):
    found, brightness, rest = measure(frames)
    print(
        f"{name:15s} place off by {rms(found - place):.3f}, brightness {brightness.mean():.2f}, "
        f"rest {np.sqrt(rest.mean()):.3f}"
    )

# %%
# Scale and shift
# ---------------
# One latent at a time is scaled about its mean, by 0 and by 2, or shifted by its standard
# deviation, and all are decoded. Beside what that does to the frames, what it would do to the lap
# that follows: from each frame the dynamics go on with ``transition_matrix_`` and ``offset_``.
EDITS = {"scaled by 0": (0, 0), "scaled by 2": (2, 0), "shifted": (1, 1)}


def edited(latent, scale, shift):
    """Latents, one of them scaled about its mean and shifted by a number of its deviations."""
    moved, values = Z.copy(), Z[:, latent]
    moved[:, latent] = values.mean() + scale * (values - values.mean()) + shift * values.std()
    return moved


def next_lap(latents):
    """Frames that follow each latent, without noise."""
    ahead = []
    for _ in range(round(PERIOD)):
        latents = latents @ svae.transition_matrix_.T + svae.offset_
        ahead.append(latents)
    return svae.inverse_transform(np.stack(ahead))


spectra = np.abs(np.fft.rfft(Z - Z.mean(axis=0), axis=0))
periods = len(Z) / np.maximum(spectra.argmax(axis=0), 1)
pictures = {
    (latent, name): svae.inverse_transform(edited(latent, *edit))
    for latent in range(N_LATENTS)
    for name, edit in EDITS.items()
}
print("\n                  brightness    place moves by      frames change by        next lap")
print("latent  period    x 0    x 2    x 0   x 2  shift    x 0   x 2  shift     x 0   shift")
lap, (stays, _, _) = next_lap(Z), measure(reconstruction)
for latent in range(N_LATENTS):
    now = [pictures[latent, name] for name in EDITS]
    later = (next_lap(edited(latent, *EDITS[name])) for name in ("scaled by 0", "shifted"))
    cells = [f"{measure(frames)[1].mean():7.2f}" for frames in now[:2]]
    cells += ["  ", *(f"{rms(measure(frames)[0] - stays):5.2f} " for frames in now)]
    cells += ["  ", *(f"{rms(frames - reconstruction):5.2f} " for frames in now)]
    cells += ["  ", *(f"{rms(frames - lap):6.2f} " for frames in later)]
    print(f"{latent:6d} {periods[latent]:7.1f}" + "".join(cells))

# %%
# See it
# ------
# Time goes to the right, pixels upwards.


def draw(axis, frames, title=None):
    """Frames as an image, pixels by time."""
    axis.imshow(frames.T, aspect="auto", origin="lower", cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=range(0, len(frames), 40), yticks=[0, 11])
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.label_outer()


N_SHOWN = 80
figure, axes = plt.subplots(
    N_LATENTS + 1, 3, figsize=(6.4, 0.4 + 0.8 * (N_LATENTS + 1)), layout="constrained"
)
draw(axes[0, 0], X_new[:N_SHOWN], "data")
draw(axes[0, 1], reconstruction[:N_SHOWN], "reconstruction")
axes[0, 2].axis("off")
for latent in range(N_LATENTS):
    for axis, name in zip(axes[latent + 1], EDITS, strict=True):
        draw(axis, pictures[latent, name][:N_SHOWN], None if latent else f"one latent {name}")
    axes[latent + 1, 0].set_ylabel(f"latent {latent}", fontsize=8)
for axis in axes[-1]:
    axis.set_xlabel("frame", fontsize=8)
figure.savefig("scale_and_shift_latents.png", dpi=120)
print("The figure is in scale_and_shift_latents.png")

# %%
# What to see
# -----------
# No latent is the place of the dot. Latents come in pairs with the same period, that of the motion
# or a half, a third or a fourth of it: the dynamics are four rotations, and what a pixel sees of a
# dot that passes again and again is a sum of such waves. One of each pair stands in the picture.
# Scaled, it makes the dot paler or brighter and leaves shadows; shifted, it adds bands to all
# frames alike, finer for the shorter periods. The dot stays where it was, to a third of a pixel.
# The other one of each pair hardly shows, as it says where the dot is going, and a frame does not
# tell that. But in the next lap it counts as much as its partner. To move the dot, all would have
# to turn together, as the dynamics turn them.
#
# Generate from nothing
# ---------------------
# :meth:`~sksvae.SVAELinearDynamics.sample` draws the first latent from its fitted distribution, and
# the others from the dynamics. Beside that, futures drawn after a few frames have been seen, by
# :meth:`~sksvae.SVAELinearDynamics.forecast`. The period is the time in which a sequence repeats
# itself best, as a third of the best lag around three laps.
N_STEPS = 200


def lap_of(frames):
    """Steps after which a sequence is most like itself."""
    centred = frames - frames.mean(axis=0)
    lags = np.arange(70, 91)
    likeness = [np.mean(centred[lag:] * centred[: len(frames) - lag]) for lag in lags]
    return lags[np.argmax(likeness)] / 3


drawn = {0: svae.sample(N_STEPS, N_DRAWS)[0]}
for n_seen in (1, 5, 20):
    seen = [
        make_bouncing_dot(n_seen, period=PERIOD, phase=i / N_DRAWS, random_state=i)[0]
        for i in range(N_DRAWS)
    ]
    drawn[n_seen] = svae.forecast(np.stack(seen), N_STEPS, n_draws=1)[0]
print(f"\n{N_DRAWS} sequences of {N_STEPS} frames    period        brightness   rest")
for n_seen, frames in {**drawn, "true": X_new[None, :N_STEPS]}.items():
    laps, (_, brightness, rest) = [lap_of(part) for part in frames], measure(frames)
    name = {0: "from nothing", "true": "true"}.get(n_seen, f"{n_seen} seen")
    print(
        f"{name:26s} {np.mean(laps):6.2f} ± {np.std(laps):.2f} {brightness.mean():12.2f} "
        f"{np.sqrt(rest.mean()):9.3f}"
    )
print(f"true period {PERIOD:.2f}; moduli of the eigenvalues of transition_matrix_:")
print("  " + " ".join(f"{x:.4f}" for x in np.abs(np.linalg.eigvals(svae.transition_matrix_))))

# %%
# What to see
# -----------
# From nothing the period is right in every sequence, and no rotation dies or grows: the eigenvalues
# have moduli of one. But the picture is rarely that of one dot. The first latent has a single
# Gaussian as its distribution, in which the four rotations begin each at a phase of its own, and a
# dot is what they make when all begin together. The dynamics then keep whatever there was. One
# frame adds where the dot is, five where it is going, and after twenty the drawn sequences are
# nearly as clean as data. So from nothing a fit generates motion, and a few frames make it that of
# a dot.
panels = {f"from nothing, draw {i + 1}": drawn[0][i] for i in range(3)}
panels |= {f"after {n} frame{'s' * (n > 1)}": drawn[n][0] for n in (1, 5, 20)}
panels["true motion"] = X_new
figure, axes = plt.subplots(len(panels), figsize=(6.4, 6), layout="constrained")
for axis, (title, frames) in zip(axes, panels.items(), strict=True):
    draw(axis, frames[:N_STEPS], title)
    axis.set_ylabel("pixel", fontsize=8)
axes[-1].set_xlabel("frame", fontsize=8)
figure.savefig("generate_from_nothing.png", dpi=120)
print("The figure is in generate_from_nothing.png")
