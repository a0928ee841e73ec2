# SPDX-License-Identifier: BSD-3-Clause
"""
Expectation maximisation as a special case
==========================================

Variational inference alternates between q(labels) and q(parameters). Let the second be a single
point, and the same two updates are expectation maximisation (EM); after each E-step the bound is
the log likelihood. What is lost is what a distribution over parameters does: it pays for them, and
stays away from places where the likelihood is infinite.
"""

# %%
# One code for both
# -----------------
# Labels need expected statistics of the parameters: of :math:`\log \pi`, :math:`\sigma^{-2}`,
# :math:`\sigma^{-2} \mu`, :math:`\sigma^{-2} \mu^2` and :math:`\log \sigma^{-2}`. A point is a
# distribution, too. So the E-step is shared, and only the update of the parameters is not.
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from sksvae.expfam import NIW, NIWSample
from sksvae.graphical import GaussianMixtureModel, MixturePrior
from sksvae.graphical.mixture import mixture_stats

quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
torch.set_default_dtype(torch.float64)


rng = np.random.default_rng(5)
k = rng.choice(3, 3300, p=[0.5, 0.3, 0.2])
rows = rng.normal(np.array([-3, 0, 3])[k], np.array([0.9, 0.5, 0.8])[k])
x, x_test = torch.as_tensor(rows).split((300, 3000))
SETTINGS = (1.0, torch.zeros(1), 0.01, torch.eye(1), 3.0)  # of the prior


def e_step(x, log_weights, precision, shift, quadratic, log_det):
    """Responsibilities, and the part of the bound that is about rows and labels, per row."""
    squares = x[:, None] ** 2 * precision[:, 0, 0] - 2 * x[:, None] * shift[:, 0]
    log_joint = log_weights + (log_det - squares - quadratic - np.log(2 * np.pi)) / 2
    return log_joint.softmax(1), log_joint.logsumexp(1).mean()


def em_update(x, r):
    """Statistics of the best point: for a mixture, the weighted moments of the rows."""
    mean = (r.T @ x) / r.sum(0)
    variance = (r * (x[:, None] - mean) ** 2).sum(0) / r.sum(0)
    point = NIWSample(mean[:, None], variance[:, None, None])
    return (r.mean(0).log(), *NIW().stats_of(point)), 0.0


@torch.no_grad()
def vb_update(x, r):
    """Expected statistics under the best distribution, and what it costs per row."""
    model = GaussianMixtureModel(MixturePrior.symmetric(r.shape[1], *SETTINGS))
    model.coordinate_update(mixture_stats(r, x[:, None], x[:, None, None] ** 2))
    return model.expected_params(), model.prior_kl() / len(x)


def fit(update, x, k):
    centres = torch.quantile(x, (torch.arange(k) + 0.5) / k)
    r = torch.softmax(-((x[:, None] - centres) ** 2), 1)
    for _ in range(10 if quick else 80):
        params, cost = update(x, r)
        r, local = e_step(x, *params)
    return float(local - cost), params


sizes = range(1, 4 if quick else 8)
em, vb = ({k: fit(update, x, k) for k in sizes} for update in (em_update, vb_update))
scores = {
    "EM, log likelihood": [em[k][0] for k in sizes],
    "EM, on new rows": [float(e_step(x_test, *em[k][1])[1]) for k in sizes],
    "variational bound": [vb[k][0] for k in sizes],
}
print("components         " + "".join(f"{k:9d}" for k in sizes))
for name, values in scores.items():
    print(f"{name:19s}" + "".join(f"{value:9.4f}" for value in values))
reference = GaussianMixture(3, tol=0, reg_covar=0, max_iter=1000).fit(x[:, None])
print(f"GaussianMixture(3) of scikit-learn: {reference.score(x[:, None]):.4f}")

# %%
# Where the likelihood is infinite
# --------------------------------
# To the three components that EM found, add a fourth on a single row, ever narrower.
log_weights, *stats = em[3][1]
log_weights = torch.cat((log_weights + np.log(299 / 300), torch.tensor([-np.log(300)])))
component_prior = NIW().to_natural(MixturePrior.symmetric(1, *SETTINGS).components)
widths, likelihood, joint = torch.logspace(-5, 1, 61), np.empty(61), np.empty(61)
for i, sd in enumerate(widths):
    narrow = NIWSample(x[:1, None], sd.square().view(1, 1, 1))
    params = (torch.cat(pair) for pair in zip(stats, NIW().stats_of(narrow), strict=True))
    likelihood[i] = e_step(x, log_weights, *params)[1] * len(x)
    joint[i] = likelihood[i] + NIW().log_prob(component_prior, narrow)
print("standard deviation   log likelihood   with log prior")
for i in range(0, 61, 10):
    print(f"{widths[i]:18.5f} {likelihood[i]:16.1f} {joint[i]:16.1f}")

# %%
# What to see
# -----------
# Run as variational inference with a point, EM finds what scikit-learn's mixture finds. More
# components always fit better, so the likelihood cannot say how many there are. New rows can, and
# the bound does without them: it is best at three. (It is a little hard on many: it counts one of
# the k! equivalent labellings, which for seven is log 5040 / 300 = 0.03 nats per row.) And the best
# likelihood of all is useless: in the end it gains 2.3 nats each time that a standard deviation
# falls to a tenth, for ever. The prior density of a variance falls faster: no posterior goes there.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for (name, values), look in zip(scores.items(), ("C0o-", "C0s--", "C1^-."), strict=True):
    left.plot(sizes, values, look, label=name)
left.set(xlabel="components", ylabel="nats per row", title="Choosing the number", xticks=sizes)
left.legend(fontsize=9)
right.semilogx(widths, likelihood, label="log likelihood")
right.semilogx(widths, joint, "-.", label="with log prior")
right.set(
    xlabel="standard deviation", ylabel="nats", ylim=(-653, -618), title="A fourth on one row"
)
right.legend(fontsize=9)
figure.savefig("em_is_a_special_case.png", dpi=120)
print("The figure is in em_is_a_special_case.png")
torch.set_default_dtype(torch.float32)  # as before, for what runs next
