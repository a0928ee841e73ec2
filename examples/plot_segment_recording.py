# SPDX-License-Identifier: BSD-3-Clause
"""
Segment recordings: business cycles, and a switching oscillator
===============================================================

What state is a system in, and when does it change? :class:`sksvae.SVAESwitchingLDS` gives each
state linear dynamics over the latents, and infers states and latents together. First the American
economy since 1959, beside recessions that were dated by people; then sequences whose states are
known. The known dates and states only measure: the bound (``lower_bound_``) chooses.
"""

# %%
# Real data
# ---------
# Output, consumption, investment and unemployment, of the quarterly data that come with
# statsmodels: activity, as in what the dating committee looks at. They are changes over a year;
# those over a quarter are mostly noise.
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from statsmodels.datasets import macrodata

from sksvae import SVAESwitchingLDS
from sksvae.datasets import make_switching_oscillator
from sksvae.metrics import match_labels, matched_accuracy

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
if quick:
    warnings.simplefilter("ignore", ConvergenceWarning)

data = macrodata.load_pandas().data
data.index = pd.PeriodIndex.from_fields(year=data["year"], quarter=data["quarter"], freq="Q")
levels = np.log(data[["realgdp", "realcons", "realinv", "cpi"]])
changes = 100 * levels.diff(4)
changes["unemp"] = data["unemp"].diff(4)
changes["tbilrate"] = data["tbilrate"].diff(4)
changes = changes.dropna()
INDICATORS = {
    "realgdp": "GDP (%)",
    "realcons": "Consumption (%)",
    "realinv": "Investment (%)",
    "unemp": "Unemployment (points)",
}
X = changes[list(INDICATORS)]

# %%
# The recessions are those of the NBER Business Cycle Dating Committee, from peak to trough
# (https://www.nber.org/research/data/us-business-cycle-expansions-and-contractions). The quarter
# after the peak is the first of recession, that of the trough the last.
RECESSIONS = [
    ("1960Q2", "1961Q1"),
    ("1969Q4", "1970Q4"),
    ("1973Q4", "1975Q1"),
    ("1980Q1", "1980Q3"),
    ("1981Q3", "1982Q4"),
    ("1990Q3", "1991Q1"),
    ("2001Q1", "2001Q4"),
    ("2007Q4", "2009Q2"),
]
RECESSIONS = [tuple(pd.Period(quarter) for quarter in dates) for dates in RECESSIONS]
in_recession = np.zeros(len(X), dtype=bool)
for peak, trough in RECESSIONS:
    in_recession |= (X.index > peak) & (X.index <= trough)

# %%
# How many states
# ---------------
# Two hundred quarters do not say much about a network, so there is none: without hidden layers
# this is a Bayesian switching linear dynamical system. The number of latents and the priors are
# left open, and the whole series is one window. ``n_states`` is an upper bound; states that do not
# pay are given up. The fit with the best ``lower_bound_`` is kept.


def new_model(n_states, seed, **settings):
    """Model for the economy."""
    model = SVAESwitchingLDS(
        n_states,
        hidden_layer_sizes=(),
        rows="consecutive",
        sequence_length=len(X),
        max_iter=100,
        n_iter_no_change=10,
        random_state=seed,
        **settings,
    )
    return model.set_params(n_starts=1, max_iter=2) if quick else model


fits = {}
start = time.perf_counter()
print("n_states  seed  states left    bound")
for n_states in (2,) if quick else (1, 2, 3, 4):
    for seed in range(1 if quick else 3):
        model = fits[n_states, seed] = new_model(n_states, seed).fit(X)
        print(f"{n_states:8d} {seed:5d} {model.n_states_:12d} {model.lower_bound_:8.3f}")
best = max(fits, key=lambda key: fits[key].lower_bound_)
economy = fits[best]
states = economy.predict(X)
print(f"Fitted in {time.perf_counter() - start:.0f} seconds. The best bound: {best[0]} states.")
for key, model in fits.items():
    if model.n_states_ == economy.n_states_ and key != best:
        agreement = matched_accuracy(states, model.predict(X))
        print(
            f"  {key[0]} states, seed {key[1]}: the same state in {agreement:.1%} of the quarters"
        )

# %%
# What the states mean
# --------------------
# Mean and standard deviation of the indicators in each state, and of two that the model has not
# seen: inflation, and the change of the Treasury bill rate.
shown = X.rename(columns=INDICATORS)
shown["(Inflation, %)"], shown["(T-bill rate, points)"] = changes["cpi"], changes["tbilrate"]
print(f"\n{'':24s}" + "".join(f"{'state ' + str(k):>16s}" for k in range(economy.n_states_)))
rows = {
    name: [f"{x[states == k].mean():.1f} ± {x[states == k].std():.1f}" for k in np.unique(states)]
    for name, x in shown.items()
}
rows["quarters"] = [f"{count}" for count in np.bincount(states)]
rows["of recession"] = [f"{in_recession[states == k].mean():.0%}" for k in np.unique(states)]
staying = np.diag(economy.state_transition_probabilities_)
rows["expected duration"] = [f"{1 / (1 - p):.0f} quarters" if p < 1 else "-" for p in staying]
for name, cells in rows.items():
    print(f"{name:24s}" + "".join(f"{cell:>16s}" for cell in cells))


def spells(labels):
    """First step, last step and label of each stretch of equal labels."""
    first = np.r_[0, np.flatnonzero(np.diff(labels)) + 1]
    last = np.r_[first[1:] - 1, len(labels) - 1]
    return [(int(a), int(b), int(labels[a])) for a, b in zip(first, last, strict=True)]


for first, last, label in spells(states):
    print(f"{X.index[first]} to {X.index[last]}: state {label}")

# %%
# An economist would call these states eras. State 1 is the long boom after the war, up to the first
# oil shock. State 2 are the crises, from that shock to the end of the recession of 1982, and again
# from 2008: growth is weak, investment falls, and everything varies about twice as much. Inflation,
# which the model has not seen, is more than twice as high. State 0 is the Great Moderation, usually
# dated from 1984 to 2007, when growth varied least. All seeds with three or four states find the
# same quarters.
#
# Whether there are states at all is less sure. Their prior is around the linear dynamics of all
# quarters, which are fitted, and the bound is not charged for that: 30 numbers, of half the
# logarithm of 199 each, are 0.40 nats for each quarter. So three states end at -5.72 and a single
# one at -5.74. Of 25 quarters left out in turn, eight times, three states predict five better, by
# 0.06 nats per quarter on average.
#
# The business cycle
# ------------------
# Recessions are in all three eras. By default the bound chooses among priors, here one under which
# states move as the whole does as long as the data do not object: so states differ in how erratic
# quarters are. To look for phases in which the economy moves in different directions, say that
# states have nothing in common: ``transition_precision_prior=1`` is a prior around zero. They last
# for some quarters, hence a tenth of the default ``stickiness_prior``; and under this prior four
# latents, which are the default here, leave one state:

cycle = new_model(2, 0, latent_dim=3, stickiness_prior=10.0, transition_precision_prior=1.0).fit(X)
phases = cycle.predict(X)
weak = X["realgdp"].groupby(phases).mean().idxmin()
in_weak = phases == weak
print(f"\nBound {cycle.lower_bound_:.3f}. State {weak}: {in_weak.sum()} quarters, with ", end="")
print(f"{in_recession[in_weak].sum()} of {in_recession.sum()} of recession. Mean changes:")
print(X.groupby(phases).mean().round(1).to_string())
print(f"Spells of state {weak}        recession, from peak to trough")
for first, last, label in spells(phases):
    if label == weak:
        first, last = X.index[first], X.index[last]
        dated = [f"{a}-{b}" for a, b in RECESSIONS if first <= b and last > a]
        print(f"  {first}-{last}          {', '.join(dated) or 'none'}")

# %%
# State 0 is expansion, with falling unemployment. State 1 is the low of the cycle, both the decline
# and the rebound. Each of its spells has a recession of its own: it begins within three quarters of
# the peak, and ends up to six quarters after the trough, when changes over a year no longer reach
# back. All recession quarters are in state 1, but only half of its quarters are of recession: the
# model dates weakness, the committee decline. It is a way to look at the data, and no better
# forecast: the bound, -5.70, is about that of three eras at their price, but quarters left out have
# -5.73 nats each, as with a single state and three latents, where the eras have -5.18.
#
# See it
# ------
# Signals, with recessions in grey, and the states of both models below them; the latents of the
# first along their two leading directions; and its probabilities of a state given the one before.
COLOURS = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00"]  # of Okabe and Ito


def draw_spells(axis, labels, edges):
    """Bar with a colour and a number for each spell; ``edges`` has one entry more than labels."""
    for first, last, label in spells(labels):
        left, right = edges[first], edges[last + 1]
        axis.axvspan(left, right, color=COLOURS[label % len(COLOURS)], linewidth=0)
        if right - left > 0.02 * (edges[-1] - edges[0]):
            axis.text((left + right) / 2, 0.5, str(label), ha="center", va="center", fontsize=9)
    axis.set(xlim=(edges[0], edges[-1]), ylim=(0, 1), yticks=[])


def year(quarter):
    """Time at which a quarter, or each of several, begins."""
    return quarter.year + (quarter.quarter - 1) / 4


edges = np.r_[year(X.index), year(X.index[-1] + 1)]
figure = plt.figure(figsize=(8, 9), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=[1.75, 1])
heights = [1] * len(INDICATORS) + [0.4, 0.4, 0.15]
axes = above.subplots(len(heights), sharex=True, gridspec_kw={"height_ratios": heights})
for axis, (name, label) in zip(axes, INDICATORS.items(), strict=False):
    axis.plot(edges[:-1] + 0.125, X[name], color="black", linewidth=1)
    axis.axhline(0, color="black", linewidth=0.4)
    axis.set_title(label, loc="left", fontsize=10, pad=2)
for axis in [*axes[: len(INDICATORS)], axes[-1]]:
    for peak, trough in RECESSIONS:
        axis.axvspan(year(peak + 1), year(trough + 1), color="0.75", linewidth=0, zorder=0)
draw_spells(axes[-3], states, edges)
axes[-3].set_title("States", loc="left", fontsize=10, pad=2)
draw_spells(axes[-2], phases, edges)
axes[-2].set_title(
    "States that have nothing in common, and recessions below", loc="left", fontsize=10, pad=2
)
axes[-1].set(yticks=[], xlabel="year")
above.suptitle("Changes over a year, recessions of the NBER in grey", fontsize=11)

left, right = below.subplots(1, 2, width_ratios=[1.4, 1])
latents = economy.transform(X)
centred = latents - latents.mean(axis=0)
plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
for step in range(1, len(X)):
    left.plot(*plane[step - 1 : step + 1].T, color=COLOURS[states[step]], linewidth=1.2)
for k in np.unique(states):
    left.scatter(*plane[states == k].T, color=COLOURS[k], s=9, label=f"state {k}", zorder=2)
left.legend(fontsize=9, loc="best")
left.set(xlabel="first latent direction", ylabel="second latent direction")
left.set_title("Latents", fontsize=11)
probabilities = economy.state_transition_probabilities_
right.imshow(probabilities, cmap="Greys", vmin=0, vmax=1.3)
for (before, after), probability in np.ndenumerate(probabilities):
    right.text(
        after,
        before,
        f"{probability:.2f}",
        ha="center",
        va="center",
        color="white" if probability > 0.6 else "black",
    )
ticks = range(economy.n_states_)
right.set(xlabel="state", ylabel="state one quarter before", xticks=ticks, yticks=ticks)
right.set_title("Transition probabilities", fontsize=11)
figure.savefig("segment_recording.png", dpi=120)
print("The figure is in segment_recording.png")

# %%
# Known truth
# -----------
# A point in the plane turns about one of three centres, each with a period of its own, and ten
# features are a nonlinear function of where it is. Twenty further sequences test. A single row says
# the place, and the states share most of their places; mixtures and k-means also get windows of
# rows around each row. All are told the number of states.
N_TRAIN, N_TEST = (3, 2) if quick else (10, 20)
X, truth = make_switching_oscillator(N_TRAIN + N_TEST, random_state=0)
X_train, X_test, y_test = X[:N_TRAIN], X[N_TRAIN:], truth[N_TRAIN:]


def windows(X, width):
    """Rows around each row, side by side; the ends of a sequence are repeated."""
    padded = np.pad(X, ((0, 0), (width // 2, width // 2), (0, 0)), mode="edge")
    stacked = [padded[:, shift : shift + X.shape[1]] for shift in range(width)]
    return np.concatenate(stacked, axis=-1).reshape(-1, width * X.shape[-1])


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
    svae.set_params(n_starts=1, max_iter=3)
start = time.perf_counter()
found = {"SVAESwitchingLDS": svae.fit(X_train).predict(X_test)}
svae_seconds = time.perf_counter() - start
for width in (1, 5, 21):
    for model in (
        GaussianMixture(3, n_init=5, reg_covar=1e-4, random_state=0),
        KMeans(3, n_init=10, random_state=0),
    ):
        name = f"{type(model).__name__}, windows of {width}"
        labels = model.fit(windows(X_train, width)).predict(windows(X_test, width))
        found[name] = labels.reshape(y_test.shape)

n_segments = {name: sum(len(spells(row)) for row in labels) for name, labels in found.items()}
print(f"\nFitted in {svae_seconds:.0f} seconds. {N_TEST} test sequences of {X.shape[1]} steps:")
print(f"{'':32s}    ARI   accuracy   segments")
for name, labels in found.items():
    ari = adjusted_rand_score(y_test.ravel(), labels.ravel())
    accuracy = matched_accuracy(y_test.ravel(), labels.ravel())
    print(f"{name:32s} {ari:6.2f} {accuracy:10.2f} {n_segments[name]:10d}")
print(f"{'truth':32s} {1:6.2f} {1:10.2f} {sum(len(spells(row)) for row in y_test):10d}")

# %%
# See it
# ------
# The first test sequence: what is observed, and what each method makes of it.
matched = {
    name: match_labels(y_test.ravel(), labels.ravel()).reshape(y_test.shape)[0]
    for name, labels in found.items()
}
shown = ["SVAESwitchingLDS", "KMeans, windows of 21", "GaussianMixture, windows of 21"]
bars = {"Truth": y_test[0], **{name: matched[name] for name in shown}}
figure, axes = plt.subplots(
    1 + len(bars),
    figsize=(8, 4.6),
    sharex=True,
    layout="constrained",
    gridspec_kw={"height_ratios": [2.6] + [0.5] * len(bars)},
)
edges = np.arange(X.shape[1] + 1)
axes[0].plot(edges[:-1] + 0.5, X_test[0], linewidth=0.8, color="0.3", alpha=0.6)
axes[0].set_title("Ten observed features", loc="left", fontsize=10, pad=2)
for axis, (name, labels) in zip(axes[1:], bars.items(), strict=True):
    draw_spells(axis, labels, edges)
    axis.set_title(name, loc="left", fontsize=10, pad=2)
axes[-1].set_xlabel("step")
figure.savefig("segment_oscillator.png", dpi=120)
print("The figure is in segment_oscillator.png")
