# SPDX-License-Identifier: BSD-3-Clause
r"""
Kalman filter and smoother, and the same in information form
============================================================

A Gaussian chain is one big Gaussian. Its covariance is full, but its precision couples neighbours
only: it is block tridiagonal. Eliminating blocks from the first to the last is the Kalman filter,
and substituting back is the smoother. What a filter needs two recursions for is one factorisation.
"""

# %%
# A thing that moves
# ------------------
# The state is position and velocity; the position is seen with noise, and for a while not at all.
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

from sksvae.inference import chain_moments
from sksvae.state_space import StateSpace

quick = os.environ.get("SKSVAE_EXAMPLE_QUICK") == "1"
T = 40 if quick else 80
A, PRIOR = np.array([[1, 1], [-0.02, 0.98]]), 4 * np.eye(2)
Q = 0.005 * np.array([[1 / 3, 1 / 2], [1 / 2, 1]])
rng = np.random.default_rng(1)
z = np.array(rng.multivariate_normal(np.zeros(2), PRIOR, 1))
for noise in rng.multivariate_normal(np.zeros(2), Q, T - 1):
    z = np.vstack((z, A @ z[-1] + noise))
x = z[:, 0] + rng.normal(size=T)  # noise of variance one
x[T // 2 : T * 3 // 4] = np.nan

# %%
# The textbook
# ------------
# Predict and update; then back, as Rauch, Tung and Striebel do, all in covariances. The results are
# filtered and smoothed moments, and the log likelihood from the predictions.


def kalman(prior, Q, dtype=np.float64):
    F, Q, P, m = A.astype(dtype), Q.astype(dtype), prior.astype(dtype), np.zeros(2, dtype)
    predicted, filtered, log_likelihood = [], [], 0.0
    for t, value in enumerate(x.astype(dtype)):
        m, P = (F @ m, F @ P @ F.T + Q) if t > 0 else (m, P)
        predicted.append((m, P))
        if not np.isnan(value):
            variance, residual = P[0, 0] + 1, value - m[0]
            log_likelihood -= 0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)
            m, P = m + P[:, 0] * residual / variance, P - np.outer(P[:, 0], P[0]) / variance
        filtered.append((m, P))
    smoothed = [(m, P)]
    for (m_t, P_t), (m_next, P_next) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        gain = P_t @ F.T @ np.linalg.inv(P_next)
        m, P = m_t + gain @ (m - m_next), P_t + gain @ (P - P_next) @ gain.T
        smoothed.append((m, P))
    return zip(*filtered, strict=True), zip(*smoothed[::-1], strict=True), log_likelihood


# %%
# In information form
# -------------------
# Log densities add. A transition adds :math:`A'Q^{-1}A` to the block of its first step,
# :math:`Q^{-1}` to that of its second and :math:`-Q^{-1}A` between them. What was seen adds one to
# the precision of its position; what was not seen adds nothing, and needs no special case.


def information(prior, Q, dtype=torch.float64):
    seen, step = ~np.isnan(x), np.linalg.inv(Q)
    diagonal = seen[:, None, None] * np.diag([1.0, 0.0])
    diagonal[0] += np.linalg.inv(prior)
    diagonal[1:] += step
    diagonal[:-1] += A.T @ step @ A
    h = np.stack((np.where(seen, x, 0), np.zeros(T)), 1)
    arrays = h, diagonal, np.tile(-step @ A, (T - 1, 1, 1))
    return chain_moments(*(torch.as_tensor(a, dtype=dtype) for a in arrays), method="sequential")


filtered, smoothed, log_likelihood = kalman(PRIOR, Q)
(filter_mean, filter_cov), (mean, cov) = map(np.array, filtered), map(np.array, smoothed)
chain = information(PRIOR, Q)
gaps = (np.abs(chain.mean.numpy() - mean).max(), np.abs(chain.covariance.numpy() - cov).max())
print(f"Largest difference: {gaps[0]:.0e} of smoothed means, {gaps[1]:.0e} of covariances")
sds = [f"{c[np.isnan(x), 0, 0].max() ** 0.5:.2f}" for c in (filter_cov, cov)]
print(f"Largest standard deviation in the gap: filter {sds[0]}, smoother {sds[1]}")
model = StateSpace(np.eye(1, 2), np.zeros(1), np.ones(1), A, np.zeros(2), Q, np.zeros(2), PRIOR)
by_chain = model.log_likelihood(x[:, None], [T])[0]  # from the log normaliser of the chain
print(f"Log likelihood: from predictions {log_likelihood:.8f}, from the chain {by_chain:.8f}")

# %%
# In single precision
# -------------------
# Largest relative error of the smoothed covariances, against the information form in double
# precision: with a prior that knows less and less, and with a transition ever less noisy.


def errors(prior, Q):
    exact = information(prior, Q).covariance
    textbook = torch.as_tensor(np.array(list(kalman(prior, Q, np.float32)[1])[1]))
    difference = torch.stack((textbook, information(prior, Q, torch.float32).covariance)) - exact
    return (difference.norm(dim=(2, 3)) / exact.norm(dim=(1, 2))).amax(1).tolist()


scales = 10.0 ** np.arange(4)
by_prior = np.array([errors(s * PRIOR, Q) for s in scales])
by_noise = np.array([errors(PRIOR, Q / s) for s in scales])
print("      prior variance times s      transition noise divided by s")
print("     s    textbook   information       textbook   information")
for s, row in zip(scales, np.hstack((by_prior, by_noise)), strict=True):
    print(f"{s:6.0f}" + "".join(f"{error:14.0e}" for error in row))

# %%
# What to see
# -----------
# Both forms say the same, up to rounding. The filter knows the past only; the smoother is surer in
# the gap, as it knows how that ends. In double precision one may take either. In single precision
# each is weak where the other is strong. The textbook subtracts from the prior covariance: the
# wider the prior, the fewer digits are left. The information form does not mind a prior that knows
# nothing, but it adds the precision of a value to that of a transition, and the sum forgets the
# value if the transition is nearly exact.
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", width_ratios=(2, 1, 1))
axes[0].plot(x, "k.", label="seen")
axes[0].plot(z[:, 0], color="0.5", linewidth=1, label="truth")
axes[0].plot(filter_mean[:, 0], "C1--", label="filter")
axes[0].plot(mean[:, 0], "C0", label="smoother")
sd = 1.64 * np.sqrt(cov[:, 0, 0])
axes[0].fill_between(range(T), mean[:, 0] - sd, mean[:, 0] + sd, alpha=0.25, label="90 % band")
axes[0].set(xlabel="step", ylabel="position", ylim=(-24, 16), title="Filter and smoother")
axes[0].legend(fontsize=8, ncol=3, loc="lower center")
labels = "prior variance, times", "transition noise, divided by"
for axis, table, label in zip(axes[1:], (by_prior, by_noise), labels, strict=True):
    axis.loglog(scales, table[:, 0], "C1s--", label="textbook")
    axis.loglog(scales, table[:, 1], "C0o-", label="information form")
    axis.set(xlabel=label, title="Error in float32")
axes[1].legend(fontsize=8)
figure.savefig("kalman_in_information_form.png", dpi=120)
print("The figure is in kalman_in_information_form.png")
torch.set_default_dtype(torch.float32)  # as before, for what runs next
