# SPDX-License-Identifier: BSD-3-Clause
"""Time of whole fits to a given bound.

One JSON line per data set and variant::

    OMP_NUM_THREADS=1 python benchmarks/fit_time.py --cases digits dot laplace

Variants of a case differ in how a step is computed, not in the model: gradients of the fixed point,
and for switching dynamics whether its rounds begin where they ended in the epoch before (``warm``)
or anew (``cold``). The target is the lowest of the bounds at which they end, less 0.5 nats; times
are processor seconds since the beginning of the fit, initialisation included.
"""

import argparse
import contextlib
import json
import time
import warnings
from unittest import mock

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.datasets import make_bouncing_dot, make_moving_laplace
from sksvae.sequence_objective import SequenceRows
from sksvae.training import Trainer

SLACK = 0.5  # nats per row


def digits(quick):
    """Rows and estimators of the example of clustering."""
    settings = {"likelihood": "poisson", "standardize": False, "learning_rate_init": 0.01}
    settings |= {"max_iter": 5 if quick else 60, "pretraining_iter": 5 if quick else 100}
    return load_digits(return_X_y=True)[0], {
        gradient: SVAEGaussianMixture(10, implicit_gradient=gradient, random_state=0, **settings)
        for gradient in ("cg", "unrolled", "none")
    }


def dot(quick):
    """Frames and an estimator of the example of forecasts."""
    settings = {"max_iter": 3} if quick else {}
    X, _ = make_bouncing_dot(500 if quick else 5000, random_state=0)
    model = SVAELinearDynamics(rows="consecutive", random_state=0, **settings)
    return X, {"exact": model}


def laplace(quick):
    """Sequences of the moving peak, and estimators that begin rounds of inference differently."""
    X, _ = make_moving_laplace(8 if quick else 64, random_state=0)
    settings = {"latent_dim": 4, "max_iter": 3 if quick else 20, "random_state": 0}
    return X, {
        "warm": SVAESwitchingLDS(8, **settings),
        "warm, unrolled": SVAESwitchingLDS(8, implicit_gradient="unrolled", **settings),
        "cold": SVAESwitchingLDS(8, **settings),
    }


CASES = {"digits": digits, "dot": dot, "laplace": laplace}


@contextlib.contextmanager
def timed_epochs(epochs):
    """Record processor time and bound at the end of every epoch."""
    pass_over, start = Trainer.pass_over, time.process_time()

    def recorded(*arguments, **keywords):
        record = pass_over(*arguments, **keywords)
        epochs.append((time.process_time() - start, record.lower_bound))
        return record

    with mock.patch.object(Trainer, "pass_over", recorded):
        yield


def run(name, X, model):
    """Fit once; return times and bounds of the epochs, in the units of X."""
    epochs = []
    cold = mock.patch.object(SequenceRows, "recall", lambda rows: None)
    with timed_epochs(epochs), cold if name == "cold" else contextlib.nullcontext():
        start = time.process_time()
        model.fit(X)
        total = time.process_time() - start
    seconds, bounds = np.array(epochs).T
    # Epochs know nothing of the units of X, which shift all bounds alike.
    shift = model.lower_bounds_[-1] - bounds[-1]
    return {"seconds": seconds, "bounds": bounds + shift, "total": total, "model": model}


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--quick", action="store_true", help="few rows and epochs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for case in arguments.cases:
        X, models = CASES[case](arguments.quick)
        runs = {name: run(name, X, model) for name, model in models.items()}
        target = min(found["bounds"][-1] for found in runs.values()) - SLACK
        for name, found in runs.items():
            reached = np.flatnonzero(found["bounds"] >= target)
            row = {"case": case, "variant": name, "target": round(float(target), 3)}
            row |= {"cpu_s_to_target": round(float(found["seconds"][reached[0]]), 1)}
            row |= {"cpu_s": round(found["total"], 1), "n_iter": found["model"].n_iter_}
            row |= {"lower_bound": round(found["model"].lower_bound_, 3)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
