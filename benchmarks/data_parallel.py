# SPDX-License-Identifier: BSD-3-Clause
"""Training steps and fits of one process beside those of two, with one thread each.

One JSON line per case::

    OMP_NUM_THREADS=1 python benchmarks/data_parallel.py

Both processes are started at once. In turns, one takes a few steps on whole minibatches while the
other sleeps, and both take as many on their shares. Medians of the repeats and, as other work on
the machine disturbs two processes more than one, the best, and the ratio of the times that the
processors of one and of the slower of two were busy: what is reached where nothing disturbs them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings

import torch
import torch.distributed as dist
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAEGaussianMixture, SVAELinearDynamics
from sksvae.datasets import make_switching_oscillator
from sksvae.distributed import Process, data_parallel
from sksvae.graphical import (
    DynamicsPrior,
    GaussianMixtureModel,
    LinearDynamicsModel,
    MixturePrior,
)
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods import get_likelihood
from sksvae.objective import Rows, StructuredVAE
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.training import Trainer, TrainingSettings

DTYPE = torch.float32


def made_trainer(kind, rows, graphical, hidden, clustered):
    """Return a trainer whose minibatch is all the rows."""
    n_features, dim = rows.observed.shape[1], graphical.latent_dim
    link = torch.zeros(n_features, dtype=DTYPE), torch.ones(n_features, dtype=DTYPE)
    local = FixedPointSettings(max_updates=50, tol=1e-3, solver_tol=1e-2, max_solver_steps=5)
    likelihood = get_likelihood("gaussian")
    model = kind(n_features, dim, hidden, "relu", likelihood, graphical, *link, local)
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(n_features, dim, generator=generator, dtype=DTYPE)).Q
    model.encoder.reset(axes, 1.0, generator)
    model.decoder.reset(axes, torch.zeros(0, n_features, dtype=DTYPE), generator)
    if clustered:
        potentials = model.encode(rows)
        labels = torch.randint(10, (len(rows),), generator=generator)
        posterior = graphical.infer(potentials, graphical.expected_params(), local)
        posterior.responsibilities[:] = torch.nn.functional.one_hot(labels, 10).to(DTYPE)
        graphical.coordinate_update(graphical.total_stats(posterior))
    settings = TrainingSettings(1, len(rows), 1e-4, anneal=False)
    return Trainer(model, len(rows), settings, generator), rows


def mixture_of_rows():
    """Make 4,000 rows of 64 features and ten components."""
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    eye = torch.eye(10, dtype=DTYPE)
    prior = MixturePrior.symmetric(10, 1.0, eye.new_zeros(10), 1.0, eye, 10.0)
    with torch.no_grad():
        graphical = GaussianMixtureModel(prior)
    return made_trainer(StructuredVAE, Rows(x, x), graphical, (256, 128), True)


def dynamics_of_sequences():
    """Make 32 sequences of 250 steps of 100 features, with 16 latents."""
    x = torch.randn(32 * 250, 100, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    graphical = LinearDynamicsModel(DynamicsPrior.isotropic(16, persistence=0.9, dtype=DTYPE))
    rows = SequenceRows(x, x, torch.full((32,), 250))
    return made_trainer(SequenceVAE, rows, graphical, (100,), False)


def time_steps(make, process, arguments):
    """Seconds of a step in each repeat, of one process and of all, and of their processors."""
    times = {"one": [], "two": []}
    busy = {"one": [], "two": []}
    trainer, rows = make()
    for repeat in range(arguments.repeats + 1):
        for name, together in (("one", Process()), ("two", process)):
            dist.barrier()
            trainer.process = together
            start, start_busy = time.perf_counter(), time.process_time()
            if process.rank == 0 or name == "two":
                for _ in range(arguments.steps):
                    trainer.step(rows, 0.01)
            if repeat:
                times[name].append((time.perf_counter() - start) / arguments.steps)
                slower = max(process.gather(time.process_time() - start_busy))
                busy[name].append(slower / arguments.steps)
        # The other has not taken the steps of one alone.
        state = [*trainer.model.state_dict().values()]
        for value in state:
            dist.broadcast(value, 0)
        graphical = trainer.model.graphical
        values = graphical.state()
        for value in values.values():
            dist.broadcast(value, 0)
        trainer.model.graphical = type(graphical).from_state(values)
    return times, busy, len(rows)


def report_steps(name, times, busy, n_rows):
    """Print throughput of one and of two processes."""
    line = {"case": name, "rows_per_step": n_rows}
    for statistic in (statistics.median, min):
        one, two = (statistic(times[key]) for key in ("one", "two"))
        kind = "median" if statistic is statistics.median else "best"
        line |= {
            f"rows_per_s_one_{kind}": round(n_rows / one),
            f"rows_per_s_two_{kind}": round(n_rows / two),
            f"ratio_{kind}": round(one / two, 2),
        }
    one, two = (statistics.median(busy[key]) for key in ("one", "two"))
    line["ratio_busy"] = round(one / two, 2)
    print(json.dumps(line), flush=True)


def fits():
    """Return two fits by name: one with large minibatches, one with minibatches too small."""
    rows, _ = make_blobs(12_000, 64, centers=5, random_state=0)
    rows[:, ::2] **= 2  # something to bend
    sequences = make_switching_oscillator(10, random_state=0)[0]
    quick = {"batch_size": 4000, "max_iter": 5, "pretraining_iter": 3, "n_starts": 1}
    mixture = SVAEGaussianMixture(5, hidden_layer_sizes=(256, 128), random_state=0, **quick)
    dynamics = SVAELinearDynamics(4, max_iter=10, batch_size=1000, random_state=0)
    return {"fit of a mixture": (mixture, rows), "fit of dynamics": (dynamics, sequences)}


def launch():
    """Start this file in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run([*command, *sys.argv], env=environment, check=False).returncode)


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3, help="steps of a repeat")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        launch()
    warnings.simplefilter("ignore", ConvergenceWarning)
    dist.init_process_group("gloo")
    with data_parallel() as process:
        cases = {"mixture": mixture_of_rows, "linear dynamics": dynamics_of_sequences}
        for name, make in cases.items():
            found = time_steps(make, process, arguments)
            if process.rank == 0:
                report_steps(name, *found)
        for name, (model, X) in fits().items():
            start = time.perf_counter()
            together = model.fit(X).lower_bound_
            seconds = {"two": time.perf_counter() - start}
            line = {"case": name, "bound_two": together}
            dist.barrier()
            if process.rank == 0:
                line |= alone(model, X, seconds)
                print(json.dumps(line), flush=True)
            dist.barrier()
    dist.destroy_process_group()


def alone(model, X, seconds):
    """Fit again in this process only."""
    from concurrent.futures import ThreadPoolExecutor

    # Another thread is outside of the context.
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        bound = pool.submit(lambda: model.fit(X).lower_bound_).result()
    seconds["one"] = time.perf_counter() - start
    return {"bound_one": bound} | {f"s_{name}": round(s, 2) for name, s in seconds.items()}


if __name__ == "__main__":
    main()
