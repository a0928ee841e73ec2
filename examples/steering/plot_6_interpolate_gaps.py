# SPDX-License-Identifier: BSD-3-Clause
"""
Fill gaps: one guess, or many with states of their own
======================================================

A stretch of a recording is missing. What was there, and in which state? After figures 5 and 7 of
Bendekgey, Hope and Sudderth (2023), which interpolate recordings of people in motion; here with a
set whose states are known.
"""

# %%
# Data and models
# ---------------
# A point turns about one of three centres with a period of 8, 16 or 32 steps, and ten features are
# a nonlinear function of where it is. Settings as in
# :ref:`sphx_glr_auto_examples_plot_segment_recording.py`. Linear dynamics, without states, are
# trained alike. They get eight latents: with two their bound is worse.
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics, SVAESwitchingLDS
from sksvae.datasets import make_switching_oscillator
from sksvae.plotting import ImputationDisplay, SegmentationDisplay

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
if quick:
    warnings.simplefilter("ignore", ConvergenceWarning)
N_TRAIN, N_TEST, GAPS = (2, 1, (30,)) if quick else (10, 20, (5, 15, 40))

X, _ = make_switching_oscillator(N_TRAIN + N_TEST, random_state=0)
X_train = X[:N_TRAIN]
X_test = X[N_TRAIN:].reshape(2 * N_TEST, 100, -1)  # halves, with a gap in each
training = {
    "batch_size": 1000,
    "learning_rate_init": 0.02,
    "max_iter": 80,
    "tol": 0.1,
    "n_iter_no_change": 5,
    "random_state": 0,
}
if quick:
    training |= {"max_iter": 1, "transition_precision_prior": 1.0}
start = time.perf_counter()
switching = SVAESwitchingLDS(3, latent_dim=2, n_starts=1 if quick else 5, **training).fit(X_train)
linear = SVAELinearDynamics(2 if quick else 8, **training).fit(X_train)
print(f"Fitted in {time.perf_counter() - start:.0f} seconds. Bounds, in nats per step:")
for model in (switching, linear):
    print(f"  {type(model).__name__:18s} {model.lower_bound_:6.2f}")

# %%
# One guess
# ---------
# All features of a stretch are removed, at a random place of each half recording, and imputed from
# both sides. The last column tells in how many of the missing steps the model finds the state that
# it finds if nothing is missing.
rng = np.random.default_rng(0)


def with_gaps(length):
    """Recordings with a stretch missing in each, away from their ends."""
    X_gaps = X_test.copy()
    for sequence, first in zip(X_gaps, rng.integers(5, 95 - length, len(X_gaps)), strict=True):
        sequence[first : first + length] = np.nan
    return X_gaps


def interpolated(X_gaps):
    """Straight lines between the steps beside the gap."""
    steps, filled = np.arange(X_gaps.shape[1]), X_gaps.copy()
    for sequence in filled:
        known = ~np.isnan(sequence[:, 0])
        for feature in sequence.T:
            feature[~known] = np.interp(steps[~known], steps[known], feature[known])
    return filled


def rmse(filled, missing):
    """Root mean squared error in the gaps."""
    return np.sqrt(np.mean((filled - X_test)[missing] ** 2))


complete_states = switching.predict(X_test)
gappy = {length: with_gaps(length) for length in GAPS}
mean_rows = np.broadcast_to(X_train.mean(axis=(0, 1)), X_test.shape)
print(f"\nRMSE in {len(X_test)} gaps   switching   linear   straight line   mean row   same states")
for length, X_gaps in gappy.items():
    missing = np.isnan(X_gaps)
    filled = switching.impute(X_gaps), linear.impute(X_gaps), interpolated(X_gaps), mean_rows
    errors = "{:9.3f} {:8.3f} {:15.3f} {:10.3f}".format(*(rmse(x, missing) for x in filled))
    same = (switching.predict(X_gaps) == complete_states)[missing[..., 0]].mean()
    print(f"  of {length:2d} steps     {errors} {same:13.0%}")

# %%
# Many guesses
# ------------
# With ``n_draws``, completions are drawn from the joint posterior, each with states of its own. A
# truth that is one more such draw lies between the least and the largest of nineteen with
# probability 0.9. The score (CRPS) is ``E|draw - truth| - E|draw - draw'| / 2``; less is better. Of
# a single guess it is the absolute error.
N_DRAWS = 2 if quick else 19
X_gaps = gappy[GAPS[-1]]
missing = np.isnan(X_gaps)


def crps(draws):
    """Continuous ranked probability score of draws, as a mean over what is missing."""
    draws, truth = draws[:, missing], X_test[missing]
    spread = np.abs(draws[:, None] - draws).sum((0, 1)) / (len(draws) * (len(draws) - 1))
    return np.mean(np.abs(draws - truth).mean(axis=0) - spread / 2)


draws = {
    "switching": switching.impute(X_gaps, n_draws=N_DRAWS),
    "linear": linear.impute(X_gaps, n_draws=N_DRAWS),
}
print(f"\n{N_DRAWS} draws, {GAPS[-1]} steps    RMSE of mean   of one   within    CRPS")
for name, drawn in draws.items():
    within = (drawn.min(axis=0) <= X_test) & (X_test <= drawn.max(axis=0))
    errors = rmse(drawn.mean(axis=0), missing), np.mean([rmse(x, missing) for x in drawn])
    print(
        f"  {name:17s} {errors[0]:15.3f} {errors[1]:8.3f} {within[missing].mean():8.0%} "
        f"{crps(drawn):7.3f}"
    )
straight = np.abs(interpolated(X_gaps) - X_test)[missing].mean()
print(f"  straight line {straight:45.3f}")

# %%
# What to see
# -----------
# As a single guess, the switching model is nearer to the truth in the longer gaps than linear
# dynamics of eight latents, and in the shortest a little farther away. Both are far better than a
# straight line, which in the longest gaps is worse than the mean row. The guess is a mean over all
# paths of states that agree with both sides of the gap, in proportion. Which states are found in
# the gap is read off one posterior, in which states and latents are independent, and which settles
# on one path where several would do. In long gaps that is often not the one of the whole recording.
#
# Draws take all paths in proportion, too. Their score is better than that of the linear model,
# whose draws come from one cloud. Both hold the truth about as often as they should.
#
# Below, the first recording whose states change well within the gap, and the feature that varies
# most: the mean of the draws and their range, for both models; four draws of the switching model,
# each in the states that are found in it; and, uppermost of the bars, the states that are found if
# nothing is missing. What is on both sides of the gap leaves no doubt about the states there; when
# the change was, and whether another state came between, each draw says differently.
N_SHOWN, feature = min(4, N_DRAWS), int(X_train.std(axis=(0, 1)).argmax())
switches = np.diff(complete_states, axis=1)[:, 5:-4] != 0
well_within = missing[:, :-10, 0] & missing[:, 10:, 0]
example = int((switches & well_within).any(axis=1).argmax())
figure, axes = plt.subplots(
    4 + N_SHOWN,
    figsize=(6.4, 7),
    height_ratios=[3, 3, 3] + [0.5] * (1 + N_SHOWN),
    sharex=True,
    layout="constrained",
)
for axis, (name, drawn) in zip(axes, draws.items(), strict=False):
    values = drawn[:, example, :, feature]
    display = ImputationDisplay(
        X_gaps[example, :, feature],
        values.mean(axis=0),
        values.min(axis=0),
        values.max(axis=0),
        truth=X_test[example, :, feature],
        coverage=0.9,
    ).plot(axis)
    axis.set(xlabel="", ylabel=name)
axes[1].get_legend().remove()

completions = draws["switching"][:N_SHOWN, example]
for line, rows in zip(("-", "--", "-.", ":"), completions, strict=False):
    axes[2].plot(rows[:, feature], line, color="#0072B2", linewidth=1)
axes[2].set_ylabel(f"{N_SHOWN} draws")
SegmentationDisplay.from_predictions(
    np.stack([complete_states[example], *switching.predict(completions)]),
    n_states=switching.n_states_,
    sequences=range(1 + N_SHOWN),
    ax=axes[3:],
)
for i, axis in enumerate(axes[3:]):
    axis.set_title("", loc="right")
    axis.set_ylabel(f"draw {i}" if i else "complete", ha="right", fontsize="small")
figure.savefig("interpolate_gaps.png", dpi=120)
print("The figure is in interpolate_gaps.png")
