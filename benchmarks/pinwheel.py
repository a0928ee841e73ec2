# SPDX-License-Identifier: BSD-3-Clause
"""Pinwheel spirals: clustering and held-out density beside Gaussian mixtures.

One JSON line per data set and model, then one with the medians and the worst of each model::

    OMP_NUM_THREADS=1 python benchmarks/pinwheel.py --seeds 10

The number of epochs and of draws and the learning rate of the SVAE are the ones with the better
bound among a few that were tried; labels only measure. Held-out rows are 2,000 new ones of the same
distribution.
`best mixture` is the Gaussian mixture whose number of components, 5 to 40, has the best
log-likelihood in three-fold cross-validation on the training rows.
"""

import argparse
import json
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold

from sksvae import SVAEGaussianMixture
from sksvae.datasets import make_pinwheel, pinwheel_log_density

SETTINGS = {  # name: rate, n_components, n_starting_components
    "standard": (0.25, 5, None),
    "too many components": (0.25, 15, None),
    "strongly curved": (0.35, 5, 10),
}


def models(n_components, n_starting, seed, arguments):
    """Return the models to compare, by name."""
    found = {
        "SVAEGaussianMixture": SVAEGaussianMixture(
            n_components,
            n_starting_components=n_starting,
            n_draws=arguments.n_draws,
            pretraining_iter=arguments.pretraining_iter,
            max_iter=arguments.max_iter,
            learning_rate_init=arguments.learning_rate,
            n_iter_no_change=arguments.max_iter,  # the whole of the annealing
            random_state=seed,
        ),
        "GaussianMixture": GaussianMixture(n_components, n_init=5, random_state=seed),
        "BayesianGaussianMixture": BayesianGaussianMixture(
            n_components=n_components, n_init=5, max_iter=1000, random_state=seed
        ),
    }
    if n_components == 5:
        found["best mixture"] = GridSearchCV(
            GaussianMixture(random_state=seed),
            {"n_components": range(5, 41)},
            cv=KFold(3, shuffle=True, random_state=seed),
        )
    return found


def measure(model, X, y, X_new):
    """Fit and measure one model."""
    start = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - start
    labels = getattr(model, "best_estimator_", model).predict(X)
    figures = {
        "ari": round(adjusted_rand_score(y, labels), 4),
        "components_used": len(np.unique(labels)),
        "held_out": round(float(model.score(X_new)), 4),
        "fit_s": round(seconds, 1),
    }
    if isinstance(model, GridSearchCV):
        figures["n_components"] = model.best_params_["n_components"]
    if isinstance(model, SVAEGaussianMixture):
        figures["weights"] = model.weights_.round(3).tolist()
        figures["lower_bound"] = round(model.lower_bound_, 4)
        figures["n_iter"] = model.n_iter_
    return figures


def summary(rows):
    """Median and worst of each figure."""
    out = {"seeds": len(rows)}
    for name, worst in (("ari", min), ("held_out", min), ("fit_s", max), ("components_used", max)):
        values = [row[name] for row in rows]
        out[name] = {"median": float(np.median(values)), "worst": worst(values)}
    return out


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--only", help="names of the models, separated by commas")
    parser.add_argument("--max-iter", type=int, default=800)
    parser.add_argument("--n-draws", type=int, default=10)
    parser.add_argument("--pretraining-iter", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for setting in arguments.settings:
        rate, n_components, n_starting = SETTINGS[setting]
        found = {}
        for seed in range(arguments.seeds):
            X, y = make_pinwheel(200, rate=rate, random_state=seed)
            X_new, _ = make_pinwheel(400, rate=rate, random_state=1000 + seed)
            truth = float(pinwheel_log_density(X_new, rate=rate).mean())
            for name, model in models(n_components, n_starting, seed, arguments).items():
                if arguments.only and name not in arguments.only.split(","):
                    continue
                row = {"setting": setting, "seed": seed, "model": name, "true": round(truth, 4)}
                row |= measure(model, X, y, X_new)
                found.setdefault(name, []).append(row)
                print(json.dumps(row), flush=True)
        for name, rows in found.items():
            print(json.dumps({"setting": setting, "model": name, **summary(rows)}), flush=True)


if __name__ == "__main__":
    main()
