# SPDX-License-Identifier: BSD-3-Clause
r"""
Two gradients of an expectation, and their variance
===================================================

To fit q one needs the gradient of :math:`E_q[f(z)]` in the parameters of q, from draws. The *score
function* (REINFORCE) weighs :math:`\nabla \log q(z)` with the value of f. *Reparameterisation*
writes :math:`z = m + L\varepsilon` and follows the slope of f. Both are right on average. How many
draws it takes to see that is another matter.
"""

# %%
# The estimators
# --------------
# One gradient per draw, all at once: each draw has a copy of the mean of its own. A *baseline*, the
# mean value of f over the other draws, leaves the score function unbiased, since
# :math:`E_q[\nabla \log q] = 0`.
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

from sksvae.expfam import Gaussian, GaussianParams

quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
torch.set_default_dtype(torch.float64)
N_DRAWS = 500 if quick else 4000
family = Gaussian()
generator = torch.Generator().manual_seed(1)


def gradients(f, mean, covariance):
    """Gradient in the mean of each draw, of shape (n_draws, dim), by estimator."""
    copies = mean.repeat(N_DRAWS, 1).requires_grad_()
    q = GaussianParams(copies, covariance)
    z = family.sample(q, (), generator)
    (path,) = torch.autograd.grad(f(z, q).sum(), copies, retain_graph=True)
    z = z.detach()
    (score,) = torch.autograd.grad(family.log_prob(family.to_natural(q), z).sum(), copies)
    value = f(z, q).detach()[:, None]
    others = (value.sum() - value) / (N_DRAWS - 1)
    return {
        "score function": value * score,
        "score function, baseline": (value - others) * score,
        "reparameterisation": path,
    }


def variances(f, mean, covariance):
    """Variance of the gradient from one draw, summed over dimensions."""
    found = gradients(f, mean, covariance)
    return {name: float(gradient.var(0).sum()) for name, gradient in found.items()}


# %%
# In more dimensions
# ------------------
# A bound: :math:`f = \log p(x, z) - \log q(z)` for a standard normal prior and :math:`x = z + e`
# with noise of variance one, whose exact gradient in the mean m is :math:`x - 2m`.


def bound(z, q):
    x = torch.ones(z.shape[1])
    log_joint = -0.5 * (z.square() + (x - z).square()).sum(1) - z.shape[1] * np.log(2 * np.pi)
    return log_joint - family.log_prob(family.to_natural(q), z)


dims = (1, 4) if quick else (1, 2, 4, 8, 16, 32, 64)
by_dim = [variances(bound, torch.zeros(d), torch.eye(d)) for d in dims]
found = gradients(bound, torch.zeros(dims[1]), torch.eye(dims[1]))
print(
    f"Gradient in {dims[1]} dimensions, exactly 1 in each: mean of {N_DRAWS} draws, standard error"
)
for name, gradient in found.items():
    error = float(gradient[:, 0].std() / np.sqrt(N_DRAWS))
    print(f"  {name:26s} {float(gradient[:, 0].mean()):7.3f} {error:7.3f}")
print("\nVariance for one draw, per dimension" + "".join(f"{d:9d}" for d in dims))
for name in found:
    row = "".join(f"{row[name] / d:9.2f}" for d, row in zip(dims, by_dim, strict=True))
    print(f"  {name:34s}{row}")

# %%
# Where the slope misleads
# ------------------------
# One dimension, and :math:`f = \cos(\omega z)`: its values stay within one, its slope grows with
# the frequency.
frequencies = np.geomspace(0.5, 30, 4 if quick else 13)
by_frequency = [
    variances(lambda z, q, w=w: torch.cos(w * z[:, 0]), torch.tensor([0.5]), torch.eye(1))
    for w in frequencies
]
print("\nFrequency     " + "".join(f"{name:>28s}" for name in found))
for w, row in list(zip(frequencies, by_frequency, strict=True))[::3]:
    print(f"{w:9.1f}     " + "".join(f"{row[name]:28.2f}" for name in found))

# %%
# What to see
# -----------
# Without a baseline the noise of the score function grows fast with the dimension: every coordinate
# of the gradient is multiplied by the whole of f, constants included, although they mean nothing.
# The baseline takes out the constants, and in 64 dimensions the variance is 150 times less;
# it still grows, as each coordinate hears the noise of all others. Reparameterisation has a
# variance of 4 in any dimension, since it knows which coordinate changed f. That is why VAEs train.
# But it lives on the slope of f. Where f wiggles faster than q is wide, slopes are large, point
# everywhere and average out, and from a frequency of about one the score function is better. And
# for labels, which have no slope, it remains; the models here sum them out instead.
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name, look in zip(found, ("C1o-", "C1s--", "C0^-"), strict=True):
    per_dim = [row[name] / d for d, row in zip(dims, by_dim, strict=True)]
    left.loglog(dims, per_dim, look, label=name)
    right.loglog(frequencies, [row[name] for row in by_frequency], look, label=name)
left.set(xlabel="dimension of z", ylabel="variance per dimension", title="A bound")
right.set(xlabel="frequency", ylabel="variance", title="A wave")
left.legend(fontsize=8)
figure.savefig("gradient_variance.png", dpi=120)
print("The figure is in gradient_variance.png")
torch.set_default_dtype(torch.float32)  # as before, for what runs next
