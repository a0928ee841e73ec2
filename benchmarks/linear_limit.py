# SPDX-License-Identifier: BSD-3-Clause
"""Linear limit: what SVAELinearDynamics without hidden layers finds of a known linear model.

One JSON line per seed, then one with the worst of each figure::

    OMP_NUM_THREADS=1 python benchmarks/linear_limit.py --seeds 5

A damped rotation in two dimensions seen through ten features, 2,000 steps to fit and 2,000 new ones
to compare with the Kalman filter and smoother of the true model. Latents are aligned by the linear
map that fits best.
"""

import argparse
import json
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics
from sksvae.state_space import StateSpace


def true_model(rng):
    """Return a random observation of a damped rotation."""
    angle, damping = 0.3, 0.97
    rotation = damping * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return StateSpace(
        loading=rng.standard_normal((10, 2)),
        mean=rng.standard_normal(10),
        noise_variances=rng.uniform(0.2, 1.0, 10),
        transition=rotation,
        offset=np.zeros(2),
        transition_noise=0.1 * np.eye(2),
        initial_mean=np.zeros(2),
        initial_covariance=0.1 / (1 - damping**2) * np.eye(2),
    )


def draw(model, n_steps, rng):
    """Draw one sequence."""
    z = rng.multivariate_normal(model.initial_mean, model.initial_covariance)
    rows = []
    for _ in range(n_steps):
        rows.append(model.mean + model.loading @ z)
        z = rng.multivariate_normal(model.transition @ z, model.transition_noise)
    return np.array(rows) + np.sqrt(model.noise_variances) * rng.standard_normal((n_steps, 10))


def measure(seed, max_iter):
    """Fit one model and compare it with the truth."""
    rng = np.random.default_rng(seed)
    truth = true_model(rng)
    X, X_new = draw(truth, 2000, rng), draw(truth, 2000, rng)
    start = time.perf_counter()
    model = SVAELinearDynamics(
        2, hidden_layer_sizes=(), rows="consecutive", max_iter=max_iter, random_state=seed
    ).fit(X)
    seconds = time.perf_counter() - start
    exact = truth.log_likelihood(X_new, [2000])[0] / 2000
    score = model.score(X_new)
    found = np.sort_complex(np.linalg.eigvals(model.transition_matrix_))
    wanted = np.sort_complex(np.linalg.eigvals(truth.transition))
    smoothed = truth.smoothed_means(X_new, [2000])
    design = np.column_stack([model.transform(X_new), np.ones(2000)])
    aligned = design @ np.linalg.lstsq(design, smoothed, rcond=None)[0]
    error = np.linalg.norm(aligned - smoothed) / np.linalg.norm(smoothed - smoothed.mean(0))
    return {
        "held_out": round(score, 4),
        "held_out_true": round(exact, 4),
        "loss_percent": round(100 * (exact - score) / abs(exact), 3),
        "eigenvalue_error": round(float(np.abs(found - wanted).max()), 4),
        "latent_error_percent": round(100 * float(error), 3),
        "n_iter": model.n_iter_,
        "fit_s": round(seconds, 1),
    }


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-iter", type=int, default=100)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for seed in range(arguments.seeds):
        rows.append(measure(seed, arguments.max_iter))
        print(json.dumps({"seed": seed, **rows[-1]}), flush=True)
    names = ("loss_percent", "eigenvalue_error", "latent_error_percent", "fit_s")
    print(json.dumps({"worst": {name: max(row[name] for row in rows) for name in names}}))


if __name__ == "__main__":
    main()
