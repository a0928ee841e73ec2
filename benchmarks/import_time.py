# SPDX-License-Identifier: BSD-3-Clause
"""What importing the package adds to importing torch and scikit-learn.

One JSON line::

    python benchmarks/import_time.py

Each import runs in a process of its own, in turns, after one of each that fills the disk's cache;
medians of the repeats, in processor seconds. ``added_s`` is the median of the differences of
neighbouring runs.
"""

import argparse
import json
import statistics
import subprocess
import sys

BASE = "import torch, sklearn.base, sklearn.utils, sklearn.callback, sklearn.mixture"
TIMED = "import time; start = time.process_time(); {}; print(time.process_time() - start)"


def seconds(statement):
    """Run an import in a new process."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    runs = []
    for repeat in range(arguments.repeats + 1):
        pair = seconds(BASE), seconds(f"{BASE}, sksvae")
        if repeat:
            runs.append(pair)
    base, both = zip(*runs, strict=True)
    print(
        json.dumps(
            {
                "repeats": arguments.repeats,
                "torch_and_sklearn_s": round(statistics.median(base), 3),
                "with_sksvae_s": round(statistics.median(both), 3),
                "added_s": round(statistics.median(b - a for a, b in runs), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
