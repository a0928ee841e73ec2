# SPDX-License-Identifier: BSD-3-Clause
"""
Mixture, VAE and structured VAE on spirals
==========================================

Five curved arms, and three models of them: a Gaussian mixture, which has clusters but no bends; a
VAE, which has bends but no clusters; and :class:`sksvae.SVAEGaussianMixture`, which has both. The
comparison is that of figure 6.2 in van den Heuvel's thesis on the structured VAE, the data are the
pinwheel of Johnson et al. (2016), figure 2.
"""

# %%
# Data and models
# ---------------
# An arm is a Gaussian whose points are turned by an angle that grows with their radius. VAE and
# structured VAE have the same networks, with the hidden layer that is the default, and train for
# equally many epochs; those of the structured one begin with 100 of pre-training, with a single
# component. Twice the default learning rate and more epochs than the default raised the bounds of
# both. The learning rate falls to zero at the last epoch, so that a fit uses all of them: that the
# bound still rose before is no news, and the warning that says so is left out.
import os
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from sksvae import VAE, SVAEGaussianMixture
from sksvae.datasets import make_pinwheel, pinwheel_log_density
from sksvae.metrics import match_labels
from sksvae.plotting import LatentSpaceDisplay

warnings.simplefilter("ignore", ConvergenceWarning)
# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
n_epochs, n_pretraining = (6, 2) if quick else (400, 100)

X, y = make_pinwheel(100, random_state=0)
X_new, y_new = make_pinwheel(50 if quick else 400, random_state=1)

training = {"latent_dim": 2, "learning_rate_init": 0.01, "random_state": 0}
gmm = GaussianMixture(5, n_init=5, random_state=0)
vae = VAE(max_iter=n_epochs, **training)
svae = SVAEGaussianMixture(
    5, max_iter=n_epochs - n_pretraining, pretraining_iter=n_pretraining, **training
)
for name, model in {"GaussianMixture": gmm, "VAE": vae, "SVAEGaussianMixture": svae}.items():
    start = time.perf_counter()
    model.fit(X)
    print(f"{name:20s} fitted in {time.perf_counter() - start:5.1f} seconds")

# %%
# Density
# -------
# The held-out score is the mean log density of 2000 new rows. For the mixture it is exact. For the
# VAE and the structured VAE it is a lower bound, by importance sampling with 64 draws per row
# (``n_importance``). The density of the truth is known, and no model can beat it by more than
# chance. It also says which samples are off the arms: those where it is lower than at 99 % of the
# new rows. The labels of the arms are in none of these numbers.
n_samples = 500 if quick else 2000
edge = np.quantile(pinwheel_log_density(X_new), 0.01)
samples = {"GaussianMixture": gmm.sample(n_samples)[0], "VAE": vae.sample(n_samples)[0]}
samples["SVAEGaussianMixture"], components = svae.sample(n_samples)
print("                     held-out score   samples off the arms")
print(f"{'truth':20s} {pinwheel_log_density(X_new).mean():14.2f} {0.01:20.0%}")
for (name, rows), model in zip(samples.items(), (gmm, vae, svae), strict=True):
    off = np.mean(pinwheel_log_density(rows) < edge)
    print(f"{name:20s} {model.score(X_new):14.2f} {off:20.0%}")

# %%
# Clusters
# --------
# A VAE has no clusters. The usual way out is to cluster its latents afterwards, by K-means or by a
# Gaussian mixture. Agreement with the arms is the adjusted Rand index (ARI) of the new rows.
kmeans = KMeans(5, n_init=10, random_state=0).fit(vae.transform(X))
gmm_of_latents = GaussianMixture(5, n_init=5, random_state=0).fit(vae.transform(X))
latents_new = vae.transform(X_new)
print("                                        ARI")
for name, found in {
    "GaussianMixture": gmm.predict(X_new),
    "VAE, then KMeans": kmeans.predict(latents_new),
    "VAE, then GaussianMixture": gmm_of_latents.predict(latents_new),
    "SVAEGaussianMixture": svae.predict(X_new),
}.items():
    print(f"{name:36s} {adjusted_rand_score(y_new, found):6.3f}")

# %%
# What to see
# -----------
# Above are the new rows, in the colours of the clusters they are assigned to. The mixture gives
# ends of arms to their neighbours; the two others agree with the arms nearly everywhere.
#
# In the middle is the space that the Gaussians live in, in the colours of the true arms, with
# ellipses of one and two standard deviations. For the mixture it is the space of the data, and one
# ellipse cannot bend along an arm. The VAE has one Gaussian, its prior: the arms are still bent in
# its latents, though further apart. The structured VAE has straightened them, one to a component.
#
# Below are samples. Those of the mixture leave the arms because ellipses do, and those of the VAE
# because its prior covers the gaps between the arms, too. In the structured VAE a sample first
# draws a component. Most samples are on an arm, and those that are off are close to one, as its
# arms are a little too wide. So the VAE has clusters that can be found afterwards, but its density
# is no better than that of the mixture.
columns = {
    "Gaussian mixture": (gmm.predict(X_new), X_new, (gmm.means_, gmm.covariances_, gmm.weights_)),
    "VAE (clusters: K-means)": (
        kmeans.predict(latents_new),
        latents_new,
        (np.zeros((1, 2)), np.eye(2)[None], np.ones(1)),
    ),
    "structured VAE": (
        svae.predict(X_new),
        svae.transform(X_new),
        (svae.means_, svae.covariances_, svae.weights_),
    ),
}
plt.rcParams.update({"font.size": 8, "axes.titlesize": 9})
figure, axes = plt.subplots(3, 3, figsize=(6.4, 6.3), layout="constrained")
for i, (title, (found, points, (means, covariances, weights))) in enumerate(columns.items()):
    above = LatentSpaceDisplay(X_new, labels=match_labels(y_new, found)).plot(axes[0, i])
    middle = LatentSpaceDisplay(
        points,
        labels=y_new,
        means=means,
        covariances=covariances,
        weights=weights,
        labels_are_components=False,
    ).plot(axes[1, i], include_numbers=False, ellipse_kw={"linewidth": 0.8})
    for display in (above, middle):
        display.ax_.get_legend().remove()
        display.scatter_.set_sizes([3])
    drawn = LatentSpaceDisplay(list(samples.values())[i])
    drawn.plot(axes[2, i], scatter_kw={"s": 2})
    above.ax_.set_title(title)
for row, (name, line) in enumerate(zip(("clusters", "latents", "samples"), axes, strict=True)):
    for i, axis in enumerate(line):
        limits = (-5, 5) if (row, i) in ((1, 1), (1, 2)) else (-22, 22)
        axis.set(xlim=limits, ylim=limits, aspect="equal", xlabel="", ylabel=name * (i == 0))
figure.savefig("gmm_vae_svae_on_spirals.png", dpi=120)
print("The figure is in gmm_vae_svae_on_spirals.png")
