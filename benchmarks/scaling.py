# SPDX-License-Identifier: BSD-3-Clause
"""Time and memory against the number of rows.

One JSON line per number of rows, each measured in a process of its own, then the slope of log time
against log rows, and the rate of `predict` or, of sequences, `transform`::

    OMP_NUM_THREADS=1 python benchmarks/scaling.py
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --memmap --rows 10000 100000 1000000
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --memmap --model SVAELinearDynamics

Few epochs, the same number for all: what is measured is the cost of a row, not of convergence.
With ``--memmap`` X is a file in a temporary folder. Memory is then that of the process without the
pages of files, which the system takes back when it needs them; elsewhere than on Linux, where they
are not told apart, it is all of it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics

_WRITTEN_AT_ONCE = 10_000  # rows
_EPOCHS = {"max_iter": 3, "random_state": 0}
MODELS = {
    "SVAEGaussianMixture": SVAEGaussianMixture(
        10, pretraining_iter=2, prune=False, n_starts=2, **_EPOCHS
    ),
    "VAE": VAE(**_EPOCHS),
    # One long recording. Minibatches of one size: by default they grow with the recording.
    "SVAELinearDynamics": SVAELinearDynamics(rows="consecutive", batch_size=500, **_EPOCHS),
}


class PeakMemory:
    """Most memory that the process has had at a time in the context, in MB."""

    def __enter__(self):
        self.peak = self.start = anonymous_memory()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.over.wait(0.02):
            self.peak = max(self.peak, anonymous_memory())

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()
        self.peak = max(self.peak, anonymous_memory())


def anonymous_memory():
    """Memory of the process that is not that of files, in MB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def parts(n_rows, n_features, sequential):
    """Rows around ten centres, or of a noisy rotation, some at a time."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(-10, 10, (10, n_features))
    loading = rng.standard_normal((4, n_features))
    for start in range(0, n_rows, _WRITTEN_AT_ONCE):
        n_part = min(_WRITTEN_AT_ONCE, n_rows - start)
        noise = rng.standard_normal((n_part, n_features))
        if sequential:
            time_ = np.arange(start, start + n_part)[:, None]
            angles = time_ * [0.1, 0.1, 0.03, 0.03] + [0, np.pi / 2, 0, np.pi / 2]
            yield np.sin(angles) @ loading + 0.5 * noise
        else:
            yield centers[rng.integers(0, 10, n_part)] + 3.0 * noise


def data(n_rows, arguments, folder):
    """X, in memory or in a file."""
    shape, sequential = (n_rows, arguments.features), arguments.model == "SVAELinearDynamics"
    path = Path(folder) / "rows.npy"
    if arguments.memmap:
        X = np.lib.format.open_memmap(path, mode="w+", dtype=arguments.dtype, shape=shape)
    else:
        X = np.empty(shape, arguments.dtype)
    start = 0
    for part in parts(n_rows, arguments.features, sequential):
        X[start : start + len(part)] = part
        start += len(part)
    if not arguments.memmap:
        return X
    X.flush()
    return np.load(path, mmap_mode="r")


def measure(n_rows, arguments, folder):
    """Fit and predict once, and print."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    X = data(n_rows, arguments, folder)
    model = MODELS[arguments.model]
    if arguments.batch_size is not None:
        model.set_params(batch_size=arguments.batch_size)
    start, cpu_start = time.perf_counter(), time.process_time()
    with PeakMemory() as fitting:
        model.fit(X)
    figures = {
        "model": arguments.model,
        "memmap": arguments.memmap,
        "n_rows": n_rows,
        "fit_s": round(time.perf_counter() - start, 2),
        "fit_cpu_s": round(time.process_time() - cpu_start, 2),
        "peak_memory_mb": round(fitting.peak),
        "of_which_before_fit_mb": round(fitting.start),
    }
    seconds, read = [], getattr(model, "predict", model.transform)
    if arguments.model == "SVAELinearDynamics":
        read = model.transform  # from both sides; predictions look back only
    with PeakMemory() as predicting:
        for _ in range(3):
            start = time.perf_counter()
            read(X)
            seconds.append(time.perf_counter() - start)
    figures |= {
        "predict_rows_per_s": round(n_rows / float(np.median(seconds))),
        "predict_memory_mb": round(predicting.peak),
    }
    print(json.dumps(figures))


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--model", choices=MODELS, default="SVAEGaussianMixture")
    parser.add_argument("--batch-size", type=int, help="of minibatches; by default the model's")
    parser.add_argument("--memmap", action="store_true", help="X in a file")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    if arguments.here:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments.rows[0], arguments, folder)
        return
    found = []
    for n_rows in arguments.rows:
        command = [sys.executable, __file__, "--here", "--rows", str(n_rows)]
        command += ["--features", str(arguments.features), "--dtype", arguments.dtype]
        command += ["--model", arguments.model, *["--memmap"] * arguments.memmap]
        if arguments.batch_size is not None:
            command += ["--batch-size", str(arguments.batch_size)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(line.strip(), flush=True)
        found.append(json.loads(line))
    if len(found) > 1:
        rows, *seconds = (
            np.log([line[key] for line in found]) for key in ("n_rows", "fit_s", "fit_cpu_s")
        )
        slopes = [round(float(np.polyfit(rows, each, 1)[0]), 3) for each in seconds]
        print(json.dumps(dict(zip(("slope", "slope_of_cpu"), slopes, strict=True))))


if __name__ == "__main__":
    main()
