# SPDX-License-Identifier: BSD-3-Clause
r"""
Coordinate ascent: a Gaussian mixture and its bound
===================================================

Variational inference replaces a posterior that cannot be computed by the best one of a family that
can. Here the data are numbers, the model is a Gaussian mixture with unknown weights, means and
variances, and the family is :math:`q(\theta) \prod_n q(k_n)`: parameters independent of labels.
All that follows is two closed-form updates in turn, and one number that may never fall.
"""

# %%
# Data and prior
# --------------
# Three clusters; the model is offered six components. The prior is a Dirichlet over weights, and
# for each component a normal inverse Wishart over mean and variance (in one dimension, a normal
# inverse gamma). A concentration of 0.1, below one, says: few components, please.
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

from sksvae.graphical import GaussianMixtureModel, MixturePrior
from sksvae.graphical.mixture import mixture_stats
from sksvae.plotting import BoundDisplay

quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
torch.set_default_dtype(torch.float64)
N, K, CONCENTRATION = 300, 6, 0.1
rng = np.random.default_rng(4)
labels = rng.choice(3, N, p=[0.5, 0.3, 0.2])
x = torch.as_tensor(rng.normal(np.array([-3, 0, 3])[labels], np.array([0.9, 0.5, 0.8])[labels]))
prior = MixturePrior.symmetric(K, CONCENTRATION, torch.zeros(1), 0.01, torch.eye(1), 3.0)

# %%
# Two updates and a bound
# -----------------------
# A row adds :math:`(-x^2/2, \; x, \; -1/2, \; 1/2)` to the natural parameters of its component, and
# one to its count. With labels known as probabilities, *responsibilities*, the update of the
# parameters is the prior plus expected statistics. The update of the labels is a softmax of the
# expected log densities. The bound has three terms: how well the components explain the rows, what
# the labels cost, and what the parameters cost. No constant is dropped, so it is a lower bound on
# the log evidence, and different models may be compared by it.


@torch.no_grad()
def coordinate_ascent(seed, n_iter):
    """Terms of the bound, per row, and q(theta) in each iteration."""
    model = GaussianMixtureModel(prior)
    start = x[torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:K]]
    r = torch.softmax(-((x[:, None] - start) ** 2), 1)
    terms, path = [], []
    for _ in range(n_iter):
        model.coordinate_update(mixture_stats(r, x[:, None], x[:, None, None] ** 2))
        log_weights, precision, shift, quadratic, log_det = model.expected_params()
        squares = x[:, None] ** 2 * precision[:, 0, 0] - 2 * x[:, None] * shift[:, 0]
        log_density = (log_det - squares - quadratic - np.log(2 * np.pi)) / 2
        r = torch.softmax(log_weights + log_density, 1)
        local_kl = (torch.special.xlogy(r, r) - r * log_weights).sum()
        terms.append(torch.stack(((r * log_density).sum(), local_kl, model.prior_kl())) / N)
        path.append(model.posterior)
    return torch.stack(terms).numpy(), path


runs = {seed: coordinate_ascent(seed, 20 if quick else 120) for seed in range(5)}
bounds = {seed: terms @ [1, -1, -1] for seed, (terms, _) in runs.items()}
print("        bound, nats per row, at iteration      smallest   components with")
print("seed         1        10      last             step       more than a row")
for seed, bound in bounds.items():
    n_used = int((runs[seed][1][-1].weights.concentration > CONCENTRATION + 1).sum())
    values = " ".join(f"{value:9.4f}" for value in bound[[0, 9, -1]])
    print(f"{seed:4d} {values} {np.diff(bound).min():16.0e} {n_used:17d}")
best, stuck = max(bounds, key=lambda s: bounds[s][-1]), min(bounds, key=lambda s: bounds[s][-1])
weights, components = runs[best][1][-1]
print(f"The components of seed {best}:\n  rows    mean   standard deviation")
for k in weights.concentration.argsort(descending=True)[:4]:
    sd = (components.scale[k, 0, 0] / components.dof[k]).sqrt()
    rows = abs(weights.concentration[k] - CONCENTRATION)
    print(f"{rows:6.1f} {components.mean[k, 0]:7.2f} {sd:13.2f}")

# %%
# What to see
# -----------
# No step goes down, but for rounding. That is a theorem, and so the best test of one's own
# derivations: a wrong sign or constant shows at once. The bound rises in stairs. It is nearly flat
# while two components share a cluster, and rises when one of them gives up; a rule that stops at
# the first small step would have stopped there. Four starts end at the same bound, with the three
# components of the truth, and the other three are back at their prior, where they cost nothing.
# Seed 1 is stuck with five components, at a bound that is lower by 0.04 nats per row: each update
# is the best given the other, and still the pair is not. Several starts are the cure.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
display = BoundDisplay(bounds[best], terms={"cost of the parameters": runs[best][0][:, 2]})
display.plot(left, name=f"seed {best}", burn_in=0, line_kw={"linewidth": 2.5})
iterations = np.arange(1, len(bounds[best]) + 1)
for seed, style in zip(bounds.keys() - {best, stuck}, ("--", "-.", ":"), strict=True):
    display.ax_.plot(iterations, bounds[seed], style, color="0.5", linewidth=1)
display.ax_.plot(iterations, bounds[stuck], color="#D55E00", label=f"seed {stuck}, stuck")
display.ax_.plot([], [], color="0.5", linewidth=1, label="other seeds")
display.ax_.legend(fontsize=8, loc="lower right", title="Bound", title_fontsize=8)
display.axes_[-1].set_xlabel("iteration")
right.hist(x, bins=40, density=True, color="0.85", label="data")
grid = torch.linspace(-7, 6, 400)
for step, style in ((1, ":"), (10, "--"), (len(iterations), "-")):
    q = GaussianMixtureModel(prior, runs[best][1][step - 1])
    density = q.log_predictive(grid[:, None]).exp()
    right.plot(grid, density, style, color="#0072B2", label=f"iteration {step}")
right.set(xlabel="x", ylabel="density", title=f"Predictive density, seed {best}")
right.legend(fontsize=8)
figure.savefig("coordinate_ascent.png", dpi=120)
print("The figure is in coordinate_ascent.png")
torch.set_default_dtype(torch.float32)  # as before, for what runs next
