# SPDX-License-Identifier: BSD-3-Clause
"""Time and memory against the number of rows.

One JSON line per number of rows, each measured in a process of its own, then the slope of log time
against log rows and the rate of `predict`::

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Few epochs, the same number for all: what is measured is the cost of a row, not of convergence.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

import numpy as np
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAEGaussianMixture


def measure(n_rows, arguments):
    """Fit and predict once, and print."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    X, _ = make_blobs(n_rows, arguments.features, centers=10, cluster_std=3.0, random_state=0)
    X = X.astype(arguments.dtype)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = SVAEGaussianMixture(
        10, pretraining_iter=2, max_iter=3, prune=False, n_starts=2, random_state=0
    )
    start = time.perf_counter()
    model.fit(X)
    fit = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.predict(X)
        seconds.append(time.perf_counter() - start)
    figures = {
        "n_rows": n_rows,
        "fit_s": round(fit, 2),
        "predict_rows_per_s": round(n_rows / float(np.median(seconds))),
        "peak_memory_mb": round(peak / 1024),
        "of_which_before_fit_mb": round(base / 1024),
    }
    print(json.dumps(figures))


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    if arguments.here:
        measure(arguments.rows[0], arguments)
        return
    found = []
    for n_rows in arguments.rows:
        command = [sys.executable, __file__, "--here", "--rows", str(n_rows)]
        command += ["--features", str(arguments.features), "--dtype", arguments.dtype]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(line.strip(), flush=True)
        found.append(json.loads(line))
    if len(found) > 1:
        rows, seconds = (np.log([line[key] for line in found]) for key in ("n_rows", "fit_s"))
        print(json.dumps({"slope": round(float(np.polyfit(rows, seconds, 1)[0]), 3)}))


if __name__ == "__main__":
    main()
