# SPDX-License-Identifier: BSD-3-Clause
"""Handwritten digits: clustering of the whole table, and held-out scores.

One JSON line per model and seed, then one with the medians and the worst of each model::

    OMP_NUM_THREADS=2 python benchmarks/digits.py --seeds 5

Labels and times are those of a fit to all 1797 rows, scores those of a fit to three quarters, on
the rest, in nats per row. Pixels count the dark ones of 16 points, so that a Poisson likelihood
describes them, and its score is a log probability. That of a mixture is a log density, which has no
upper limit where a pixel is always white; `best mixture, dequantised` is fitted and scored with
uniform noise of width one added, which makes it a bound on the log probability of the counts
(Theis, van den Oord and Bethge, ICLR 2016). The settings of the structured VAE do not depend on
labels: the learning rate is the one with the better held-out score.
"""

import argparse
import json
import resource
import time
import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sksvae import SVAEGaussianMixture
from sksvae.metrics import matched_accuracy

N_COMPONENTS = 10
REG_COVAR = 1e-2


def models(seed, arguments):
    """Return the models to compare, by name."""
    mixture = GaussianMixture(
        N_COMPONENTS, reg_covar=REG_COVAR, n_init=arguments.n_init, random_state=seed
    )
    return {
        "SVAEGaussianMixture": SVAEGaussianMixture(
            N_COMPONENTS,
            likelihood="poisson",
            standardize=False,
            learning_rate_init=arguments.learning_rate,
            pretraining_iter=arguments.pretraining_iter,
            max_iter=arguments.max_iter,
            random_state=seed,
        ),
        "PCA(10) + GaussianMixture": make_pipeline(PCA(10, random_state=seed), mixture),
        "GaussianMixture": mixture,
        "BayesianGaussianMixture": BayesianGaussianMixture(
            n_components=N_COMPONENTS, reg_covar=REG_COVAR, max_iter=1000, random_state=seed
        ),
        "KMeans": KMeans(N_COMPONENTS, n_init=10, random_state=seed),
    }


def measure(model, X, y, X_train, X_test):
    """Fit and measure one model."""
    start = time.perf_counter()
    labels = model.fit(X).predict(X)
    seconds = time.perf_counter() - start
    figures = {
        "accuracy": round(matched_accuracy(y, labels), 4),
        "ari": round(adjusted_rand_score(y, labels), 4),
        "nmi": round(normalized_mutual_info_score(y, labels), 4),
        "fit_s": round(seconds, 1),
    }
    if isinstance(model, SVAEGaussianMixture):
        figures["lower_bound"] = round(model.lower_bound_, 2)
    if hasattr(model, "score_samples") and not hasattr(model, "steps"):
        figures["held_out"] = round(float(model.fit(X_train).score(X_test)), 2)
    return figures


def best_mixture_score(X_train, X_test, seed):
    """Held-out log-likelihood of the best mixture over principal subspaces and covariances.

    Every model is a density on all pixels: what is left of a subspace gets one variance, that of
    the training rows, as in probabilistic PCA.
    """
    scores = {}
    for dim in (10, 20, 30, 40, X_train.shape[1]):
        pca = PCA(dim, svd_solver="full").fit(X_train)
        inside, outside = pca.transform(X_train), X_train - X_train.mean(0)
        left = np.square(outside).sum() - np.square(inside).sum()
        n_left = X_train.shape[1] - dim
        for kind in ("full", "tied", "diag", "spherical"):
            mixture = GaussianMixture(
                N_COMPONENTS, covariance_type=kind, reg_covar=REG_COVAR, random_state=seed
            ).fit(inside)
            projected = pca.transform(X_test)
            log_density = mixture.score_samples(projected)
            if n_left:
                variance = left / (len(X_train) * n_left)
                distance = np.square(X_test - pca.mean_).sum(1) - np.square(projected).sum(1)
                log_density -= 0.5 * (distance / variance + n_left * np.log(2 * np.pi * variance))
            scores[f"PCA({dim}), {kind}"] = round(float(log_density.mean()), 2)
    name = max(scores, key=scores.get)
    return {"seed": seed, "which": name, "held_out": scores[name]}


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="names of the models, separated by '; '")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--pretraining-iter", type=int, default=100)
    parser.add_argument("--max-iter", type=int, default=60)
    parser.add_argument("--n-init", type=int, default=1, help="of the Gaussian mixtures")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, y = load_digits(return_X_y=True)
    found = {}
    for seed in range(arguments.seeds):
        X_train, X_test = train_test_split(X, stratify=y, random_state=seed)
        for name, model in models(seed, arguments).items():
            if arguments.only and name not in arguments.only.split("; "):
                continue
            row = {"model": name, "seed": seed} | measure(model, X, y, X_train, X_test)
            found.setdefault(name, []).append(row)
            print(json.dumps(row), flush=True)
        noise = np.random.RandomState(seed).uniform(-0.5, 0.5, X.shape)
        split = len(X_train)
        for name, added in (("best mixture", 0.0 * noise), ("best mixture, dequantised", noise)):
            if arguments.only and name not in arguments.only.split("; "):
                continue
            row = best_mixture_score(X_train + added[:split], X_test + added[split:], seed)
            row = {"model": name} | row
            found.setdefault(name, []).append(row)
            print(json.dumps(row), flush=True)
    for name, rows in found.items():
        line = {"model": name, "seeds": len(rows)}
        for key, worst in (("accuracy", min), ("ari", min), ("held_out", min), ("fit_s", max)):
            values = [row[key] for row in rows if key in row]
            if values:
                line[key] = {"median": round(float(np.median(values)), 4), "worst": worst(values)}
        print(json.dumps(line), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_memory_mb": round(peak)}))


if __name__ == "__main__":
    main()
