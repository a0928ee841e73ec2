# SPDX-License-Identifier: BSD-3-Clause
"""Segmentation of recordings with true labels: accuracy, ARI, NMI, segments, time.

    OMP_NUM_THREADS=2 python benchmarks/segmentation.py recordings.npz --n-states 12 --seeds 5
    OMP_NUM_THREADS=2 python benchmarks/segmentation.py oscillator --n-states 5 --seeds 3

The archive holds ``X`` (n_rows, n_features), ``groups`` (n_rows,) and ``y`` (n_rows,). In its place
stand the names of synthetic sets: four sequences of ``oscillator`` or ``nascar``, or one recording
of 600 steps whose states differ in their means (``means``), in the linear dynamics of a hidden
point (``dynamics``) or in the noise of a walk (``noise``), new ones for each seed. Settings are the
defaults of the estimator; labels only measure. Beside it stand mixtures and k-means of scikit-learn
on single rows and on windows of 21 rows.
"""

import argparse
import json
import time
import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.preprocessing import StandardScaler

from sksvae import SVAESwitchingLDS
from sksvae.datasets import make_nascar, make_switching_oscillator
from sksvae.metrics import matched_accuracy


def switching_recording(kind, seed, n_steps=600):
    """Recording whose states last fifty steps on average."""
    random = np.random.RandomState(seed)
    n_states = 2 if kind == "noise" else 3
    states = np.zeros(n_steps, dtype=int)
    for t in range(1, n_steps):
        stays = random.rand() < 0.98
        states[t] = (states[t - 1] + (0 if stays else random.randint(1, n_states))) % n_states
    if kind == "means":
        means = 2 * random.randn(n_states, 4)
        return means[states] + 0.7 * random.randn(n_steps, 4), states
    z, noise = np.zeros((n_steps, 3)), random.randn(n_steps, 3)
    turns = [0.95 * np.linalg.qr(random.randn(3, 3))[0] for _ in range(n_states)]
    offsets = 0.3 * random.randn(n_states, 3)
    for t, state in enumerate(states[1:], 1):
        if kind == "noise":
            z[t] = 0.9 * z[t - 1] + (0.1, 0.5)[state] * noise[t]
        else:
            z[t] = turns[state] @ z[t - 1] + offsets[state] + 0.1 * noise[t]
    if kind == "noise":
        return z, states
    return z @ random.randn(3, 6) + 0.1 * random.randn(n_steps, 6), states


def load(name, seed):
    """X, groups and y of an archive or a synthetic set."""
    sequences = {"nascar": make_nascar, "oscillator": make_switching_oscillator}
    if name in sequences:
        X, y = sequences[name](4, random_state=seed)
        return X.reshape(-1, X.shape[-1]), np.repeat(range(4), X.shape[1]), y.ravel()
    if name in ("means", "dynamics", "noise"):
        X, y = switching_recording(name, seed)
        return X, np.zeros(len(X), dtype=int), y
    archive = np.load(name)
    return tuple(archive[part] for part in ("X", "groups", "y"))


def window_features(X, groups, half_width):
    """Means and standard deviations over windows of rows."""
    features = np.empty((len(X), 2 * X.shape[1]))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        for i, row in enumerate(rows):
            window = X[rows[max(i - half_width, 0) : i + half_width + 1]]
            features[row] = np.concatenate([window.mean(0), window.std(0)])
    return StandardScaler().fit_transform(features)


def measures(y, labels, groups, seconds, **more):
    changes = sum((np.diff(labels[groups == group]) != 0).sum() for group in np.unique(groups))
    return {
        "accuracy": matched_accuracy(y, labels),
        "ari": adjusted_rand_score(y, labels),
        "nmi": normalized_mutual_info_score(y, labels),
        "n_segments": int(changes + len(np.unique(groups))),
        "n_states_used": len(np.unique(labels)),
        "seconds": seconds,
        **more,
    }


def classical(X, y, groups, n_states, seed):
    """Rows of the classical tools."""
    models = {
        "KMeans": KMeans(n_states, n_init=10, random_state=seed),
        "GaussianMixture": GaussianMixture(n_states, covariance_type="diag", random_state=seed),
        "BayesianGaussianMixture": BayesianGaussianMixture(
            n_components=n_states, random_state=seed
        ),
    }
    inputs = {"rows": StandardScaler().fit_transform(X), "windows": window_features(X, groups, 10)}
    for name, model in models.items():
        for kind, features in inputs.items():
            start = time.perf_counter()
            labels = model.fit_predict(features)
            seconds = time.perf_counter() - start
            yield f"{name}, {kind}", measures(y, labels, groups, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="an archive, or the name of a synthetic set")
    parser.add_argument("--n-states", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", default="{}", help="of the estimator, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = {}
    for seed in range(arguments.seeds):
        X, groups, y = load(arguments.data, seed)
        start = time.perf_counter()
        model = SVAESwitchingLDS(
            arguments.n_states, random_state=seed, **json.loads(arguments.settings)
        ).fit(X, groups=groups)
        seconds = time.perf_counter() - start
        labels = model.predict(X, groups=groups)
        result = measures(y, labels, groups, seconds, lower_bound=model.lower_bound_)
        print(json.dumps({"seed": seed, **result}), flush=True)
        found.setdefault("SVAESwitchingLDS", []).append(result)
        for name, result in classical(X, y, groups, arguments.n_states, seed):
            found.setdefault(name, []).append(result)
    for name, results in found.items():
        for result in results:
            print(json.dumps({"model": name, **result}))
        summary = {
            key: {
                "median": float(np.median([result[key] for result in results])),
                "worst": float(min(result[key] for result in results)),
            }
            for key in ("accuracy", "ari", "nmi")
        }
        seconds = float(np.median([result["seconds"] for result in results]))
        print(json.dumps({"model": name, "summary": summary, "seconds": seconds}))


if __name__ == "__main__":
    print(json.dumps({"threads": torch.get_num_threads()}))
    main()
