# SPDX-License-Identifier: BSD-3-Clause
"""
Remove a cluster, and move one
==============================

In a structured VAE a cluster of the data is one Gaussian of the latents. So it can be taken away or
put elsewhere by editing that Gaussian, and the networks, which know what the data look like, stay
as they are. Figure 6.4 of van den Heuvel's thesis on the structured VAE does so with spirals.
"""

# %%
# Data and model
# --------------
# Five arms and as many components. The bound still rises a little when the epochs run out, of which
# a warning would tell; the agreement with the arms on new rows (adjusted Rand index, ARI) says that
# it is good enough for what follows.
import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from sksvae import SVAEGaussianMixture
from sksvae.datasets import make_pinwheel
from sksvae.metrics import match_labels
from sksvae.plotting import LatentSpaceDisplay

warnings.simplefilter("ignore", ConvergenceWarning)
# A short setting for tests; the default is the full one.
quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"

X, y = make_pinwheel(100, random_state=0)
X_new, y_new = make_pinwheel(50 if quick else 400, random_state=1)
svae = SVAEGaussianMixture(5, latent_dim=2, learning_rate_init=0.01, random_state=0)
if quick:
    svae.set_params(max_iter=5, pretraining_iter=3, n_starts=2, prune=False)
labels = svae.fit(X).predict(X)
print(f"ARI of new rows {adjusted_rand_score(y_new, svae.predict(X_new)):.3f}")

# %%
# Three edits
# -----------
# :meth:`~sksvae.SVAEGaussianMixture.remove_component` and
# :meth:`~sksvae.SVAEGaussianMixture.move_component` return edited copies; ``svae`` stays as it is.
# First, component 0 is removed. Those after it move up by one, so that 1 becomes 0. Second, this
# one is moved onto the mean of the component that was removed; it keeps its covariance. Third, in
# a copy with all components, component 1 is moved to where there are no data: halfway to the
# nearest other mean.
removed = svae.remove_component(0)
replaced = removed.move_component(0, svae.means_[0])
distances = np.linalg.norm(svae.means_ - svae.means_[1], axis=1)
nearest = np.argsort(distances)[1]
halfway = svae.move_component(1, (svae.means_[1] + svae.means_[nearest]) / 2)

models = {  # with the numbers that the components had before
    "before": (svae, [0, 1, 2, 3, 4]),
    "0 removed": (removed, [1, 2, 3, 4]),
    "1 put in its place": (replaced, [1, 2, 3, 4]),
    f"1 halfway to {nearest}": (halfway, [0, 1, 2, 3, 4]),
}

# %%
# Where samples fall
# ------------------
# A sample is in the arm of the nearest training row, or in none, if it is further away than 99 % of
# new rows are. Arms have the numbers of the components that model them.
arms = match_labels(labels, y)
neighbours = NearestNeighbors(n_neighbors=1).fit(X)
reach = np.quantile(neighbours.kneighbors(X_new)[0], 0.99)


def places(rows):
    """Shares of rows in each arm, and in none, as text."""
    distance, row = neighbours.kneighbors(rows)
    found = np.where(distance <= reach, arms[row], -1)
    return " ".join(f"{np.mean(found == k):6.1%}" for k in (0, 1, 2, 3, 4, -1))


samples = {}
print(f"{'Share of samples in arm':25s}" + "".join(f"{k:7d}" for k in range(5)) + "   none")
for name, (model, numbers) in models.items():
    rows, components = model.sample(500 if quick else 5000)
    samples[name] = rows, np.array(numbers)[components]
    print(f"{name:26s} {places(rows)}")
print("Of the samples of component 1 alone:")
for name, (rows, components) in samples.items():
    print(f"{name:26s} {places(rows[components == 1])}")

# %%
# What the edited models make of the data
# ---------------------------------------
# New rows of each arm, scored by the mean log-likelihood in nats.
arms_new = match_labels(svae.predict(X_new), y_new)
print(f"{'Score of new rows in arm':25s}" + "".join(f"{k:7d}" for k in range(5)))
for name, (model, _) in models.items():
    scores = model.score_samples(X_new)
    print(f"{name:25s}" + "".join(f"{scores[arms_new == k].mean():7.2f}" for k in range(5)))

# %%
# What to see
# -----------
# Above are samples, below the latents of the data with the edited components, as ellipses of one
# and two standard deviations. Components have the colours and numbers that they had before.
#
# With component 0 removed its arm is gone: less than one sample in a hundred falls there, and the
# other arms share what it had. The edited model finds rows of that arm strange, by nine nats. All
# others score 0.2 higher, which is about log 5/4: each component is now one of four, not of five.
#
# Component 1 in the place of 0 gives samples of that arm again. The decoder knows how it bends,
# though not how the latents there were spread: the component has brought its own covariance, so
# that more of its samples are in no arm, and rows of the arm score 0.4 nats lower than before.
#
# Halfway to another mean there were no data, and nothing told the decoder what belongs there. It
# gives what lies between: samples of component 1 fill the space between two arms, reach both, and
# more than a fifth of them are in neither. An edit within the data can be trusted further than one
# that leaves them.
plt.rcParams.update({"font.size": 8, "axes.titlesize": 9})
figure, axes = plt.subplots(
    2, 4, figsize=(6.4, 3.6), sharex="row", sharey="row", layout="constrained"
)
latents = svae.transform(X)
for (name, (model, numbers)), (above, below) in zip(models.items(), axes.T, strict=True):
    rows, components = samples[name]
    drawn = LatentSpaceDisplay(rows[:1500], labels=components[:1500]).plot(above)
    drawn.ax_.get_legend().remove()
    drawn.scatter_.set_sizes([2])
    means, covariances, weights = np.zeros((5, 2)), np.zeros((5, 2, 2)), np.zeros(5)
    means[numbers], covariances[numbers] = model.means_, model.covariances_
    weights[numbers] = model.weights_  # one of weight zero is not drawn
    display = LatentSpaceDisplay(
        latents, labels=labels, means=means, covariances=covariances, weights=weights
    )
    display.plot(below, ellipse_kw={"linewidth": 0.8}).scatter_.set_sizes([2])
    above.set(title=name, aspect="equal", xlabel="", ylabel="")
    below.set(aspect="equal", xlabel="", ylabel="")
axes[0, 0].set_ylabel("samples")
axes[1, 0].set_ylabel("latents")
figure.savefig("remove_and_move_a_cluster.png", dpi=120)
print("The figure is in remove_and_move_a_cluster.png")
