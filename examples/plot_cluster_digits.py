# SPDX-License-Identifier: BSD-3-Clause
"""
Cluster handwritten digits
==========================

Scikit-learn's digits, 1797 images of 8 x 8 pixels, clustered without their labels: a Gaussian
mixture over the latents of a variational autoencoder beside the mixtures and K-means that work on
the pixels. The labels only measure the result.

Each pixel counts the dark ones of 16 points, hence the Poisson likelihood. All pixels share that
unit, so they are not scaled one by one (``standardize=False``): that would blow up the corners,
where a digit rarely leaves a trace.
"""

# %%
# Data and models
# ---------------
# A quarter of the rows is held out, for the score.
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.model_selection import train_test_split

from sksvae import SVAEGaussianMixture
from sksvae.metrics import matched_accuracy

# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

svae = SVAEGaussianMixture(
    n_components=10,
    likelihood="poisson",
    standardize=False,
    learning_rate_init=0.01,
    max_iter=60,
    random_state=0,
)
if quick:
    svae.set_params(max_iter=3, pretraining_iter=3, n_starts=2)
models = {
    "SVAEGaussianMixture": svae,
    "GaussianMixture": GaussianMixture(n_components=10, reg_covar=0.01, random_state=0),
    "BayesianGaussianMixture": BayesianGaussianMixture(
        n_components=10, reg_covar=0.01, max_iter=500, random_state=0
    ),
    "KMeans": KMeans(n_clusters=10, n_init=10, random_state=0),
}

# %%
# Fit and compare
# ---------------
# The score is the mean log-likelihood of held-out rows, in nats; for the structured VAE it is a
# lower bound, of a probability of counts, for the mixtures a density per unit of each pixel.
# K-means has none.
print(f"{'':24s} accuracy   ARI   NMI  held-out score  seconds")
for name, model in models.items():
    start = time.perf_counter()
    model.fit(X_train)
    seconds = time.perf_counter() - start
    labels = model.predict(X_test)
    score = f"{model.score(X_test):.1f}" if hasattr(model, "score_samples") else "-"
    print(
        f"{name:24s} {matched_accuracy(y_test, labels):8.2f} "
        f"{adjusted_rand_score(y_test, labels):5.2f} "
        f"{normalized_mutual_info_score(y_test, labels):5.2f} {score:>15s} {seconds:8.1f}"
    )

# %%
# See it
# ------
# The latent space along its two leading directions, with each component's ellipse of two standard
# deviations; the image that the mean of each component decodes to; and draws from each.
latents, labels = svae.transform(X_train), svae.predict(X_train)
used = np.flatnonzero(np.bincount(labels, minlength=10))
centre = latents.mean(axis=0)
directions = np.linalg.svd(latents - centre, full_matrices=False)[2][:2]
plane = (latents - centre) @ directions.T
colours = plt.get_cmap("tab10").colors

figure = plt.figure(figsize=(10, 5.4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1, 1.05])
axis = left.subplots()
axis.scatter(*plane.T, c=[colours[k] for k in labels], s=6, alpha=0.5, linewidths=0)
for k in used:
    mean = (svae.means_[k] - centre) @ directions.T
    values, vectors = np.linalg.eigh(directions @ svae.covariances_[k] @ directions.T)
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1]))
    width, height = 4 * np.sqrt(values[::-1])
    axis.add_patch(
        Ellipse(mean, width, height, angle=angle, fill=False, color=colours[k], linewidth=1.5)
    )
    axis.annotate(str(k), mean, ha="center", va="center", weight="bold")
axis.set(xlabel="first latent direction", ylabel="second latent direction")
axis.set_title("Latent space and components")

n_draws = 6
drawn, drawn_from = svae.sample(2000)
means = svae.inverse_transform(svae.means_)
grid = right.subplots(len(used), n_draws + 1, squeeze=False)
for row, k in zip(grid, used, strict=True):
    draws = drawn[drawn_from == k][:n_draws]
    images = [means[k], *draws]
    for cell in row:
        cell.set_axis_off()
    for cell, image in zip(row, images, strict=False):
        cell.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
    row[0].text(-3, 4, str(k), color=colours[k], weight="bold", ha="center", va="center")
grid[0, 0].set_title("mean", fontsize=9)
grid[0, (n_draws + 1) // 2].set_title("samples", fontsize=9)
right.suptitle("Decoded means, and samples")
figure.savefig("cluster_digits.png", dpi=120)
print("The figure is in cluster_digits.png")
