# SPDX-License-Identifier: BSD-3-Clause
"""Segmentation and interpolation of the moving Laplace curves of Bendekgey et al. (2023).

One JSON line per seed, then one with the medians and the worst::

    OMP_NUM_THREADS=1 python benchmarks/moving_laplace.py --seeds 0 1 2 3 4

Of 512 sequences to train and 128 to test. States are compared with the true ones on the test
sequences (ARI over steps, accuracy after matching). Steps 20 to 70 of those are then taken out and
filled: root mean squared error of `impute`, of linear interpolation, and of `SVAELinearDynamics`
with the same networks. States show with networks that were trained on single steps, in single
precision, one noise covariance, and noise that the decoder gives, which takes nine minutes a
seed::

    OMP_NUM_THREADS=1 python benchmarks/moving_laplace.py --no-linear --dtype float32 --settings '{
        "latent_dim": 2, "hidden_layer_sizes": [200, 200, 200], "solver": "muon",
        "learning_rate_init": 0.003, "pretraining_iter": 40, "max_iter": 6, "batch_size": 500,
        "noise_covariance_type": "tied", "likelihood": "gaussian_network"}'
"""

import argparse
import json
import time
import warnings

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

from sksvae import SVAELinearDynamics, SVAESwitchingLDS
from sksvae.datasets import make_moving_laplace
from sksvae.metrics import matched_accuracy

GAP = slice(20, 70)


def rmse(filled, X):
    return float(np.sqrt(((filled - X)[:, GAP] ** 2).mean()))


def interpolated(X):
    """Linear interpolation over the gap."""
    filled, n_steps = X.copy(), GAP.stop - GAP.start + 1
    weight = (np.arange(1, n_steps) / n_steps)[:, None]
    before, after = X[:, GAP.start - 1, None], X[:, GAP.stop, None]
    filled[:, GAP] = (1 - weight) * before + weight * after
    return filled


def measure(seed, arguments):
    """Fit both models once and measure."""
    X, states = make_moving_laplace(arguments.train + arguments.test, random_state=seed)
    X = X.astype(arguments.dtype)
    X, X_test, y_test = X[: arguments.train], X[arguments.train :], states[arguments.train :]
    gaps = X_test.copy()
    gaps[:, GAP] = np.nan
    settings = {"random_state": seed, **json.loads(arguments.settings)}
    start = time.perf_counter()
    switching = SVAESwitchingLDS(8, **settings).fit(X)
    seconds = time.perf_counter() - start
    labels = switching.predict(X_test)
    result = {
        "seed": seed,
        "ari": adjusted_rand_score(y_test.ravel(), labels.ravel()),
        "accuracy": matched_accuracy(y_test.ravel(), labels.ravel()),
        "n_states": switching.n_states_,
        "n_states_used": len(np.unique(labels)),
        "score": switching.score(X_test),
        "lower_bound": switching.lower_bound_,
        "n_iter": switching.n_iter_,
        "seconds": seconds,
        "rmse": rmse(switching.impute(gaps), X_test),
        "rmse_linear_interpolation": rmse(interpolated(X_test), X_test),
    }
    if not arguments.no_linear:
        known = SVAELinearDynamics().get_params()
        shared = {name: value for name, value in settings.items() if name in known}
        linear = SVAELinearDynamics(**{**shared, "max_iter": switching.n_iter_}).fit(X)
        result["score_linear_dynamics"] = linear.score(X_test)
        result["rmse_linear_dynamics"] = rmse(linear.impute(gaps), X_test)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--train", type=int, default=512)
    parser.add_argument("--test", type=int, default=128)
    parser.add_argument("--settings", default="{}", help="of both estimators, as JSON")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--no-linear", action="store_true", help="leave out linear dynamics")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps({"threads": torch.get_num_threads()}))
    results = []
    for seed in arguments.seeds:
        results.append(measure(seed, arguments))
        print(json.dumps(results[-1]), flush=True)
    summary = {
        name: {"median": float(np.median(values)), "min": min(values), "max": max(values)}
        for name in results[0]
        if (values := [result[name] for result in results])
    }
    print(json.dumps({"summary": summary}))


if __name__ == "__main__":
    main()
