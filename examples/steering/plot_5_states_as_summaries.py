# SPDX-License-Identifier: BSD-3-Clause
"""
States as summaries: new recordings from a segmentation
=======================================================

What does a segmentation keep of a recording, and what does it leave out? Draw new recordings with
the same states and look. After figure 1 of Bendekgey, Hope and Sudderth (2023), which does it with
recordings of people in motion; here with a set whose states are known.
"""

# %%
# Data and model
# --------------
# A point in the plane turns about one of three centres, each with a period of its own: 8, 16 or 32
# steps. Ten features are a nonlinear function of where it is. The settings are those of
# :ref:`sphx_glr_auto_examples_plot_segment_recording.py`.
import itertools
import os
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAESwitchingLDS
from sksvae.datasets import make_switching_oscillator
from sksvae.metrics import matched_accuracy
from sksvae.plotting import SegmentationDisplay

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
if quick:
    warnings.simplefilter("ignore", ConvergenceWarning)
N_TRAIN, N_TEST, N_DRAWS, n_steps = (3, 2, 3, 100) if quick else (10, 20, 20, 200)

X, truth = make_switching_oscillator(N_TRAIN + N_TEST, n_timesteps=n_steps, random_state=0)
X_train, X_test, y_test = X[:N_TRAIN], X[N_TRAIN:], truth[N_TRAIN:]
svae = SVAESwitchingLDS(
    3,
    latent_dim=2,
    batch_size=1000,
    learning_rate_init=0.02,
    max_iter=80,
    tol=0.1,
    n_iter_no_change=5,
    random_state=0,
)
if quick:
    svae.set_params(n_starts=1, max_iter=1, transition_precision_prior=1.0)
start = time.perf_counter()
svae.fit(X_train)
states = svae.predict(X_test)
print(f"Fitted in {time.perf_counter() - start:.0f} seconds. {N_TEST} recordings to test:")
print(f"  steps in their true state: {matched_accuracy(y_test.ravel(), states.ravel()):.1%}")


# %%
# How short the summary is
# ------------------------
# Under the fitted chain of states, ``-log2 p(states)`` bits say which states there were.


def code_length(path):
    """Bits that a path of states takes."""
    first = svae.initial_state_probabilities_[path[0]]
    moves = svae.state_transition_probabilities_[path[:-1], path[1:]]
    return -np.log2(first) - np.log2(moves).sum()


def spells(path):
    """First step, and the one after the last, of each stretch of a state."""
    edges = np.r_[0, np.flatnonzero(np.diff(path)) + 1, len(path)]
    return list(itertools.pairwise(edges))


print(f"  numbers in a recording:    {X_test[0].size}")
print(f"  spells in its summary:     {np.mean([len(spells(path)) for path in states]):.1f}")
print(f"  bits of its summary:       {np.mean([code_length(path) for path in states]):.0f}")

# %%
# Draw from it
# ------------
# With ``states``, :meth:`~sksvae.SVAESwitchingLDS.sample` draws latents from the dynamics of these
# states, then rows. Nothing else of the recording is used. Without it, states are drawn as well. As
# an integer, ``random_state`` would make every call draw the same, hence a generator that goes on.
svae.set_params(random_state=np.random.RandomState(0))
given = np.stack([svae.sample(n_steps, N_TEST, states=states)[0] for _ in range(N_DRAWS)])
free, free_states = (
    np.stack(part)
    for part in zip(*(svae.sample(n_steps, N_TEST) for _ in range(N_DRAWS)), strict=True)
)


def rmse(estimate):
    """Root mean squared error, with the recordings as the truth."""
    return np.sqrt(np.mean((estimate - X_test) ** 2))


def agreement(drawn):
    """Share of steps in which draws are found in the states of the recording."""
    return np.mean([svae.predict(x) == states for x in drawn[:3]])


def speed(x, state):
    """Mean distance between neighbours, at the steps where recordings are in a state."""
    return np.linalg.norm(np.diff(x, axis=-2), axis=-1)[..., states[:, 1:] == state].mean()


def period(x, state):
    """Steps per turn in spells of a state of the recordings, where the spectrum has its peak."""
    spectrum = np.zeros(2049)
    for path, *drawn in zip(states, *x, strict=True):
        for first, stop in spells(path):
            if path[first] == state and stop - first >= 32:
                part = np.stack(drawn)[:, first:stop]
                part = (part - part.mean(axis=1, keepdims=True)) * np.hanning(stop - first)[:, None]
                spectrum += (np.abs(np.fft.rfft(part, 4096, axis=1)) ** 2).sum(axis=(0, 2))
    return 4096 / spectrum.argmax() if spectrum.any() else np.nan


drawn = {"states given": given, "drawn freely": free}
print(f"\n{N_DRAWS} draws for each recording " + "".join(f"{name:>14s}" for name in drawn))
for name, read, style in (
    ("RMSE of the mean of draws", lambda x: rmse(x.mean(axis=0)), ".3f"),
    ("RMSE of a single draw", lambda x: np.mean([rmse(one) for one in x]), ".3f"),
    ("steps in the same state", agreement, ".1%"),
):
    print(f"{name:28s}" + "".join(f"{read(x):14{style}}" for x in drawn.values()))
print(f"RMSE of the mean of the training rows: {rmse(X_train.mean(axis=(0, 1))):.3f}")

sources = {"recordings": X_test[None], **drawn}
print("\nAt the steps of each state      fit" + "".join(f"{name:>14s}" for name in sources))
for k in np.unique(states):
    turn = 2 * np.pi / np.angle(np.linalg.eigvals(svae.transition_matrix_[k])).max()
    row = "".join(f"{period(x, k):14.1f}" for x in sources.values())
    print(f"state {k}, steps per turn {turn:10.1f}{row}")
for k in np.unique(states):
    row = "".join(f"{speed(x, k):14.2f}" for x in sources.values())
    print(f"state {k}, way per step             {row}")

# %%
# What to see
# -----------
# Of a recording of 2,000 numbers the summary keeps some 40 bits: which of three states, in five or
# six spells. It tells the pace. Draws from it turn once in 16, 32 and 8 steps where the recordings
# do, and are found in the same states nearly always. It tells much of the place, too: the mean of
# the draws is nearer to the recording than the mean of all training rows, since each state has a
# centre of its own. It leaves out the phase, so that a single draw is farther away than the mean of
# many. Draws whose states are free do not know where they are, and their mean is no better than
# that of the training rows.
#
# One thing differs where it should not: in the two slow states draws move farther per step than the
# recordings. What the networks do not explain, the fit calls noise.
#
# Below, one recording with its states, three draws from these states, and one with states of its
# own; of the ten features the first three. After a switch draws often go the same way at first,
# from one centre to the next; then each turns in its own phase.
example = int(np.argsort([len(spells(path)) for path in states])[N_TEST // 2])
display = SegmentationDisplay.from_predictions(
    np.stack([states[example]] * 4 + [free_states[1, example]]),
    X=np.stack([X_test[example], *given[:3, example], free[1, example]])[..., :3],
    n_states=svae.n_states_,
    sequences=range(5),
    signals="overlay",
)
titles = ["recording", *(f"draw {i}, states given" for i in (1, 2, 3)), "drawn freely"]
for axis, title in zip(display.axes_[::2], titles, strict=True):
    axis.set_title(title, loc="right", fontsize="small", pad=2)
display.figure_.savefig("states_as_summaries.png", dpi=120)
print("The figure is in states_as_summaries.png")
