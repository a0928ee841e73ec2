# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of the fixed point of switching dynamics: how wrong they are, and what they cost.

A header, one JSON line per gradient, and that for two stages of training ([P, fig. 3])::

    OMP_NUM_THREADS=1 python benchmarks/implicit_gradient.py

The loss is the negative bound of a batch of windows, ``sum KL - sum log p(x | draws)``; its
gradient is taken in the potentials and in the expected parameters of q(theta). The reference
differentiates through all block updates, until no probability moves by more than 1e-13.
``'none'``, ``'richardson'`` and ``'cg'`` begin at that fixed point and take exactly the given
number of solver steps. ``'unrolled'`` begins at the filter, as inference does, and takes the given
number of updates: its error has a part from not having converged (unrolling from the fixed point
would be ``'richardson'``). Errors are ``|g - g*| / |g*|``, medians and worst over seeds (of
windows, draws and, at the start, of q(theta) and networks). ``ms`` is one forward pass, from where
it begins, with the backward pass, in processor time, which depends less than time on what else is
running; ``backward_ms`` the latter alone: medians over seeds and repeats.

At the start, networks are those of a random linear map, and q(theta) is the prior with noise on
the dynamics; after training, they are those of a short fit of `SVAESwitchingLDS`.
"""

import argparse
import json
import statistics
import time
from contextlib import contextmanager

import numpy as np
import torch

from sksvae import SVAESwitchingLDS
from sksvae.datasets import make_switching_oscillator
from sksvae.graphical import DynamicsPrior, Potentials, SwitchingDynamicsModel, SwitchingPrior
from sksvae.inference import FixedPointSettings, mean_field
from sksvae.likelihoods import get_likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded

STAGES = ("start", "trained")
METHODS = (
    ("none", 0),
    *(("richardson", n) for n in (1, 2, 5, 10, 20)),
    *(("cg", n) for n in (1, 2, 3, 5, 8)),
    *(("unrolled", n) for n in (5, 10, 20)),
)
TO_THE_END = {"max_updates": 5000, "tol": 1e-13}


def random_normal(*shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def untrained(X, arguments, generator):
    """Return a random linear encoder and decoder, and q(theta) near its prior."""
    F, D, K = X.shape[-1], arguments.latent_dim, arguments.states
    prior = SwitchingPrior.sticky(K, DynamicsPrior.isotropic(D, persistence=0.9))
    shift = 0.2 * random_normal(K, D, D + 1, generator=generator)
    dynamics = prior.dynamics._replace(mean=prior.dynamics.mean + shift)
    graphical = SwitchingDynamicsModel(prior, prior._replace(dynamics=dynamics))
    location, scale = (torch.as_tensor(f(X, axis=(0, 1))) for f in (np.mean, np.std))
    likelihood = get_likelihood("gaussian")
    model = SequenceVAE(
        F, D, (50,), "relu", likelihood, graphical, location, scale, FixedPointSettings()
    )
    axes = torch.linalg.qr(random_normal(F, D, generator=generator)).Q
    model.encoder.reset(axes, 1.0, generator)
    model.decoder.reset(axes, torch.zeros(0, F, dtype=torch.float64), generator)
    return model


def trained(X, arguments):
    """Return the model of a short fit."""
    fit = SVAESwitchingLDS(
        arguments.states,
        latent_dim=arguments.latent_dim,
        hidden_layer_sizes=(50,),
        n_starts=1,
        max_iter=arguments.epochs,
        n_iter_no_change=arguments.epochs,
        random_state=0,
    ).fit(X)
    return fit._rebuild()


class Case:
    """A batch of windows under a model, and the gradient of its loss."""

    def __init__(self, model, X, arguments, generator):
        windows = torch.as_tensor(X)
        windows = windows[torch.randperm(len(X), generator=generator)[: arguments.sequences]]
        windows = windows[:, : arguments.steps]
        stacked = windows.flatten(0, 1)
        lengths = torch.full((len(windows),), windows.shape[1])
        # The Gaussian likelihood sees what the encoder sees.
        seen = (stacked - model.link_location) / model.link_scale
        self.model, self.rows = model, SequenceRows(seen, seen, lengths)
        self.mask = self.rows.mask
        with torch.no_grad():
            self.potentials = padded(model.encode(self.rows), self.mask)
        shape = 1, *self.rows.latent_shape, model.graphical.latent_dim
        self.noise = random_normal(*shape, generator=generator)

    def gradient(self, settings, start):
        """Return the gradient in potentials and parameters, the posterior, and times."""
        graphical = self.model.graphical
        leaves = [field.clone().requires_grad_() for field in self.potentials]
        params = graphical.expected_params()
        begin = time.process_time()
        posterior = graphical.infer(
            Potentials(*leaves), params, self.mask, self.noise, settings=settings, start=start
        )
        draws = posterior.draws[:, self.mask]
        fit = self.model.log_likelihood(self.rows, draws).sum()
        loss = posterior.local_kl.sum() - fit
        middle = time.process_time()
        gradients = torch.autograd.grad(loss, [*leaves, *params])
        end = time.process_time()
        parts = gradients[:2], gradients[2:]
        parts = [torch.cat([g.flatten() for g in part]) for part in parts]
        return parts, posterior, (end - begin, end - middle)


@contextmanager
def solver_steps(n_steps):
    """Take exactly so many steps of any solver."""
    solve = mean_field.solve_adjoint

    def fixed(fisher, curvature, cotangent, *, method, max_steps, tol, converged):
        return solve(
            fisher,
            curvature,
            cotangent,
            method=method,
            max_steps=n_steps,
            tol=0.0,
            converged=torch.ones_like(converged),
        )

    mean_field.solve_adjoint = fixed
    try:
        yield
    finally:
        mean_field.solve_adjoint = solve


def measure(case, repeats):
    """Errors and times of each method, and what the reference took."""
    first = case.model.graphical.starting_states(
        case.potentials, case.model.graphical.expected_params(), case.mask
    )
    settings = FixedPointSettings(**TO_THE_END, gradient="unrolled")
    reference, posterior, times = case.gradient(settings, first)
    fixed_point = posterior.states.detach()
    results = {}
    for method, n in METHODS:
        unrolled = method == "unrolled"
        limits = {"max_updates": n, "tol": 0.0} if unrolled else {"max_updates": 1, "tol": 1e-9}
        settings = FixedPointSettings(**limits, gradient=method)
        start = first if unrolled else fixed_point
        with solver_steps(n):
            runs = [case.gradient(settings, start) for _ in range(repeats)]
        errors = [
            float((part - exact).norm() / exact.norm())
            for part, exact in zip(runs[0][0], reference, strict=True)
        ]
        results[method, n] = errors, [run[2] for run in runs]
    known = {
        "updates": posterior.n_updates.tolist(),
        "converged": bool(posterior.converged.all()),
        "ms": round(1e3 * times[0], 1),
    }
    return results, known


def report(stage, cases, repeats):
    """Print the table of one stage."""
    measured = [measure(case, repeats) for case in cases]
    graphical = cases[0].model.graphical
    n_sequences, n_steps = cases[0].mask.shape
    header = {"stage": stage, "sequences": n_sequences, "T": n_steps}
    header |= {"D": graphical.latent_dim, "K": graphical.n_states}
    print(json.dumps(header | {"reference": [known for _, known in measured]}), flush=True)
    for method, n in METHODS:
        errors = [results[method, n][0] for results, _ in measured]
        times = [pair for results, _ in measured for pair in results[method, n][1]]
        row = {"stage": stage, "gradient": method, "steps": n}
        for name, values in zip(("potentials", "params"), zip(*errors, strict=True), strict=True):
            row[f"error_{name}"] = float(f"{statistics.median(values):.2g}")
            row[f"worst_{name}"] = float(f"{max(values):.2g}")
        for name, values in zip(("ms", "backward_ms"), zip(*times, strict=True), strict=True):
            row[name] = round(1e3 * statistics.median(values), 1)
        print(json.dumps(row), flush=True)


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--latent-dim", type=int, default=2)
    parser.add_argument("--states", type=int, default=3)
    parser.add_argument("--windows", type=int, default=20, help="to train on, and to choose from")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    X, _ = make_switching_oscillator(
        arguments.windows,
        n_timesteps=arguments.steps,
        n_states=arguments.states,
        random_state=0,
    )
    X = X.astype(np.float64)
    generators = [torch.Generator().manual_seed(seed) for seed in range(arguments.seeds)]
    if "start" in arguments.stages:
        cases = [Case(untrained(X, arguments, g), X, arguments, g) for g in generators]
        report("start", cases, arguments.repeats)
    if "trained" in arguments.stages:
        model = trained(X, arguments)
        cases = [Case(model, X, arguments, g) for g in generators]
        report("trained", cases, arguments.repeats)


if __name__ == "__main__":
    main()
