# SPDX-License-Identifier: BSD-3-Clause
"""Time and memory of one training step of SVAESwitchingLDS, by gradient of the fixed point.

One JSON line per measurement, each in a process of its own::

    OMP_NUM_THREADS=1 python benchmarks/switching_step.py --sizes 1 8 32

A size is a number of sequences. Data are drawn from switching dynamics, and q(theta) knows them
well. Block updates and solver are limited as in training; a step begins them at the filter
(``cold``), with equal probabilities of all states (``uniform``), or where they ended in the last
step (``warm``). ``chain`` is the order of elimination of
Gaussian chains. ``step_ms`` is the median of the repeats, after one step that is always cold, and
``cpu_ms`` that of their processor time, which depends less on what else is running; ``peak_mb`` is
what all steps added to the process at its peak, so that of ``warm`` is that of its first, cold
step. The last lines of each size give the memory of ``'cg'``, and of ``'unrolled'``, after exactly
1 and exactly 20 block updates, and the ratio (``--parts memory``: only these). With ``--device
cuda``, ``peak_mb`` is the peak of what torch allocates there.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

from sksvae import sequence_objective
from sksvae.expfam import DirichletParams, MNIWParams
from sksvae.graphical import DynamicsPrior, SwitchingDynamicsModel, SwitchingPrior
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods import get_likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.training import Trainer, TrainingSettings

NOISE_STD = 1.0  # so much that a cold start is some updates away from the fixed point
PARTS = ("time", "memory")
KINDS = (
    ("cg", "warm", "auto"),
    ("cg", "warm", "sequential"),
    ("cg", "warm", "parallel"),
    ("cg", "cold", "auto"),
    ("unrolled", "warm", "auto"),
    ("unrolled", "cold", "auto"),
)


def known_dynamics(n_states, dim, dtype, generator):
    """Slowly decaying rotations about points of their own, and q(theta) sure of them."""
    normal = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    prior = SwitchingPrior.sticky(n_states, DynamicsPrior.isotropic(dim, persistence=0.9))
    skew = 0.1 * normal(n_states, dim, dim)
    turn = 0.95 * torch.linalg.matrix_exp(skew - skew.mT)
    one = torch.ones(n_states, dtype=torch.float64)
    eye = torch.eye(dim + 1, dtype=torch.float64)
    stay = torch.eye(n_states, dtype=torch.float64)
    dof = 100.0 + dim
    dynamics = MNIWParams(
        dof * 0.02 * eye[:dim, :dim].expand(n_states, dim, dim),
        torch.cat([turn, 0.2 * normal(n_states, dim, 1)], -1),
        1e3 * eye.expand(n_states, dim + 1, dim + 1),
        dof * one,
    )
    posterior = prior._replace(
        dynamics=dynamics,
        initial_states=DirichletParams(one),
        transitions=DirichletParams(1e3 * (0.95 * stay + 0.05 / n_states)),
    )
    model = SwitchingDynamicsModel(prior, posterior)
    return SwitchingDynamicsModel.from_state({k: v.to(dtype) for k, v in model.state().items()})


def made_trainer(arguments, settings):
    """Return a trainer and a batch of sequences."""
    B, T, D, F = arguments.sequences, arguments.steps, arguments.latent_dim, arguments.features
    dtype = getattr(torch, arguments.dtype)
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    graphical = known_dynamics(arguments.states, D, dtype, generator)
    z, _ = graphical.sample(T, B, generator)
    axes = torch.linalg.qr(torch.randn(F, D, generator=generator, dtype=dtype)).Q
    X = z.reshape(B * T, D) @ axes.mT
    X = X + NOISE_STD * torch.randn(B * T, F, generator=generator, dtype=dtype)
    X = X.to(device)
    rows = SequenceRows(X, X, torch.full((B,), T, device=device)).with_memory()
    location, scale = torch.zeros(F, dtype=dtype), torch.ones(F, dtype=dtype)
    likelihood = get_likelihood("gaussian")
    model = SequenceVAE(F, D, (256, 128), "relu", likelihood, graphical, location, scale, settings)
    model.encoder.reset(axes, NOISE_STD**-2, generator)
    model.decoder.reset(axes, torch.zeros(0, F, dtype=dtype), generator)
    state = {name: value.to(device) for name, value in graphical.state().items()}
    model = model.to(device)
    model.graphical = SwitchingDynamicsModel.from_state(state)
    generator = torch.Generator(device).manual_seed(0)
    sequence_objective._method = lambda *_: arguments.chain
    training = TrainingSettings(max_iter=1, batch_size=B * T, learning_rate=1e-3, anneal=False)
    return Trainer(model, B * T, training, generator), rows


def peak_mb(device):
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def finished(device):
    """Wait for an accelerator."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def measure(arguments):
    """Take some steps in this process and print what they took."""
    exact = arguments.exact_updates
    settings = FixedPointSettings(
        max_updates=exact or 20,
        tol=-1.0 if exact else 1e-2,  # with 0 it would stop where rounding does not move it
        gradient=arguments.gradient,
        solver_tol=1e-2,
        max_solver_steps=5,
    )
    trainer, rows = made_trainer(arguments, settings)
    device = arguments.device
    before, times, cpu_times, updates = peak_mb(device), [], [], []
    for _ in range(arguments.repeats + 1):
        if arguments.start == "cold":
            rows.memory.states = None
        elif arguments.start == "uniform":
            shape = len(rows), arguments.states
            rows.memory.states = rows.observed.new_full(shape, 1.0 / arguments.states)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        terms = trainer.step(rows, 0.01)
        finished(device)
        times.append(time.perf_counter() - begin)
        cpu_times.append(time.process_time() - cpu_begin)
        updates.append(terms.posterior.n_updates)
        del terms
    last = torch.stack(updates[1:]).double()
    row = {"B": arguments.sequences, "gradient": arguments.gradient, "start": arguments.start}
    row |= {"chain": arguments.chain, "exact_updates": exact}
    row |= {"updates_mean": round(float(last.mean()), 1), "updates_max": int(last.max())}
    row |= {"step_ms": round(1e3 * statistics.median(times[1:]), 1)}
    row |= {"cpu_ms": round(1e3 * statistics.median(cpu_times[1:]), 1)}
    row |= {"peak_mb": round(peak_mb(device) - before, 1)}
    print(json.dumps(row | {"threads": torch.get_num_threads()}))


def in_process(arguments, sequences, gradient, start, chain, exact=0, repeats=None):
    """Measure in a process of its own; a line without numbers if it fails or takes too long."""
    repeats = arguments.repeats if repeats is None else repeats
    options = {"sequences": sequences, "gradient": gradient, "start": start, "chain": chain}
    options |= {"exact-updates": exact, "repeats": repeats, "steps": arguments.steps}
    options |= {"latent-dim": arguments.latent_dim, "states": arguments.states}
    options |= {"features": arguments.features, "dtype": arguments.dtype}
    options |= {"device": arguments.device}
    command = [sys.executable, os.path.abspath(__file__), "--measure"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    failed = {"B": sequences, "gradient": gradient, "start": start, "chain": chain}
    failed["exact_updates"] = exact
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        row = failed | {"failed": f"took more than {arguments.limit:g} s"}
    else:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        row = json.loads(done.stdout) if done.returncode == 0 else failed | {"failed": reason[0]}
    print(json.dumps(row), flush=True)
    return row


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--states", type=int, default=50)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per measurement")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="two repeats at a fifth of the steps")
    for name in ("measure", "sequences", "gradient", "start", "chain", "exact-updates"):
        options = {"action": "store_true"} if name == "measure" else {}
        if name in ("sequences", "exact-updates"):
            options = {"type": int, "default": 0}
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **options)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    if arguments.quick:
        arguments.repeats, arguments.steps = 2, arguments.steps // 5
    names = ("steps", "latent_dim", "states", "features", "repeats", "dtype")
    print(json.dumps({name: getattr(arguments, name) for name in names}), flush=True)
    for size in arguments.sizes:
        for kind in KINDS if "time" in arguments.parts else ():
            in_process(arguments, size, *kind)
        for gradient in ("cg", "unrolled") if "memory" in arguments.parts else ():
            rows = [
                in_process(arguments, size, gradient, "cold", "auto", exact=n, repeats=1)
                for n in (1, 20)
            ]
            if all("peak_mb" in row for row in rows):
                ratio = round(rows[1]["peak_mb"] / rows[0]["peak_mb"], 2)
                print(json.dumps({"B": size, "gradient": gradient, "memory_20_to_1": ratio}))


if __name__ == "__main__":
    main()
