# SPDX-License-Identifier: BSD-3-Clause
r"""
Beta-VAE and capacity: what a nat buys
======================================

The bound of a VAE is minus a *distortion*, how badly rows are rebuilt, minus a *rate*, the nats by
which the latents of a row differ from the prior. A beta-VAE minimises distortion + beta x rate, so
beta is the price of a nat. With a capacity, :math:`\beta\,|\mathrm{rate} - C|` asks for a rate.
"""

# %%
# Two ways to walk along one curve
# --------------------------------
# Digits of 8 by 8 pixels, eight latents, one small network; only price or capacity changes.
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sksvae import VAE

warnings.simplefilter("ignore", ConvergenceWarning)  # all are trained equally long
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
X = load_digits().data
X_train, X_test = X[::3], X[1::3]


def fit(**settings):
    model = VAE(
        latent_dim=8,
        hidden_layer_sizes=(64,),
        learning_rate_init=0.01,
        max_iter=3 if quick else 60,
        n_iter_no_change=100,
        random_state=0,
        **settings,
    )
    return model.fit(X_train)


start = time.perf_counter()
by_beta = {b: fit(beta=b) for b in ((1, 4) if quick else (0.5, 1, 2, 4, 8, 16))}
by_capacity = {c: fit(beta=10, capacity=c) for c in ((8,) if quick else (2, 8))}
print(f"Fitted in {time.perf_counter() - start:.0f} seconds. Nats per row, over the last epochs:")


def rate_and_distortion(model):
    last = {name: values[-5:].mean() for name, values in model.history_.items()}
    return last["local_kl"], -last["reconstruction"]


def n_used(model):
    """Latents whose posterior means vary: an unused one stays at its prior."""
    return int((model.transform(X_test).var(axis=0) > 0.05).sum())


print("                     rate  distortion     sum   new rows   latents used")
points = {}
for name, models in (("beta", by_beta), ("capacity", by_capacity)):
    points[name] = np.array([rate_and_distortion(model) for model in models.values()])
    for (value, model), (rate, distortion) in zip(models.items(), points[name], strict=True):
        print(
            f"{name:9s} {value:5g} {rate:9.2f} {distortion:11.2f} {rate + distortion:7.2f} "
            f"{-model.score(X_test):10.2f} {n_used(model):10d}"
        )

# %%
# What to see
# -----------
# The dots are one curve: what each rate can buy. Its slope at each of them is minus beta: the first
# nats, for what is most different between digits, buy much, and the last ones little. The sum is
# the negative bound. It is least at beta = 1, where the dashed line touches the curve, and that is
# what is special about 1. For new rows a price of 2 is a little better, as 599 training rows are
# few. High prices switch latents off: at 8 four are left, at 16 one, which says next to nothing. A
# capacity names the rate instead, and gets it within 0.1 nats, without a search for the price. It
# reaches points of the same curve, not better ones.
figure = plt.figure(figsize=(9, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1))
axis = left.subplots()
for (name, found), look in zip(points.items(), ("C0o-", "C1s"), strict=True):
    label = {"beta": "price beta", "capacity": "capacity C, beta = 10"}[name]
    axis.plot(*found.T, look, label=label, markersize=5)
    models = by_beta if name == "beta" else by_capacity
    for value, point in zip(models, found, strict=True):
        shift = (6, 4) if name == "beta" else (-6, -12)
        axis.annotate(f"{value:g}", point, shift, textcoords="offset points", fontsize=8)
rates = points["beta"][:, 0]
best = points["beta"].sum(axis=1).min()
axis.plot(rates, best - rates, "--", color="0.5", linewidth=1, label="equal bounds")
axis.set(xlabel="rate (nats per row)", ylabel="distortion (nats per row)")
axis.margins(x=0.08)
axis.legend(fontsize=8)

shown = X_test[:6]
rows = {"data": shown}
for b, model in list(by_beta.items())[::2]:
    rows[f"beta {b:g}"] = model.inverse_transform(model.transform(shown))
panels = right.subplots(len(rows), len(shown), squeeze=False)
for line, (name, images) in zip(panels, rows.items(), strict=True):
    for panel, image in zip(line, images, strict=True):
        panel.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        panel.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
figure.savefig("beta_vae_and_capacity.png", dpi=120)
print("The figure is in beta_vae_and_capacity.png")
