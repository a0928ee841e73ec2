# SPDX-License-Identifier: BSD-3-Clause
"""Smoothing of latents beside dynamax, in one process.

One JSON line per number of sequences. It needs dynamax and JAX, which are no dependencies::

    pip install dynamax
    OMP_NUM_THREADS=1 python benchmarks/dynamax_smoother.py

Both are given the same linear dynamics and one noisy observation of every latent, with a variance
of its own, as an encoder gives them; they compute means, covariances and lag-one covariances given
the whole sequence. That of dynamax is compiled, and mapped over sequences; its compilation is not
counted. Medians of repeats taken in turns, on one thread each; ``largest_difference`` is that
between the means of both.
"""

import argparse
import json
import os
import statistics
import time

os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")
).strip()

import jax
import numpy as np
import torch
from dynamax.linear_gaussian_ssm import LinearGaussianSSM, lgssm_smoother

from sksvae.expfam import MNIW, NIW, MNIWSample, NIWSample
from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials

DECAY, NOISE = 0.97, 0.1


def problem(n_sequences, n_steps, dim, dtype):
    """Transition matrix, observations and their variances."""
    rng = np.random.default_rng(0)
    A = DECAY * np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    z = rng.normal(size=(n_sequences, n_steps, dim))
    for t in range(1, n_steps):
        z[:, t] = z[:, t - 1] @ A.T + NOISE**0.5 * z[:, t]
    variance = rng.uniform(0.2, 2.0, size=z.shape)
    x = z + variance**0.5 * rng.normal(size=z.shape)
    return A.astype(dtype), x.astype(dtype), variance.astype(dtype)


def ours(A, x, variance):
    """Return a function that smooths."""
    dtype = torch.as_tensor(x).dtype
    dim = len(A)
    eye, none = torch.eye(dim, dtype=dtype), torch.zeros(dim, dtype=dtype)
    model = LinearDynamicsModel(DynamicsPrior.isotropic(dim, dtype=dtype))
    X = torch.cat([torch.as_tensor(A), none[:, None]], -1)
    params = (
        *NIW().stats_of(NIWSample(none, eye)),
        *MNIW().stats_of(MNIWSample(X, NOISE * eye)),
    )
    precision = 1.0 / torch.as_tensor(variance)
    potentials = Potentials(torch.as_tensor(x) * precision, precision)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)

    @torch.no_grad()
    def smooth():
        return model.infer(potentials, params, mask).mean.numpy()

    return smooth


def theirs(A, x, variance):
    """Return a function that smooths, compiled."""
    dim = len(A)
    model = LinearGaussianSSM(dim, dim, has_dynamics_bias=False, has_emissions_bias=False)
    params, _ = model.initialize(
        jax.random.PRNGKey(0),
        initial_mean=np.zeros(dim, x.dtype),
        initial_covariance=np.eye(dim, dtype=x.dtype),
        dynamics_weights=A,
        dynamics_covariance=NOISE * np.eye(dim, dtype=x.dtype),
        emission_weights=np.eye(dim, dtype=x.dtype),
        emission_covariance=np.eye(dim, dtype=x.dtype),
    )

    def one(observed, noise):
        emissions = params.emissions._replace(cov=jax.vmap(jax.numpy.diag)(noise))
        found = lgssm_smoother(params._replace(emissions=emissions), observed)
        return found.smoothed_means, found.smoothed_covariances, found.smoothed_cross_covariances

    compiled = jax.jit(jax.vmap(one))
    given = jax.numpy.asarray(x), jax.numpy.asarray(variance)

    def smooth():
        return np.asarray(jax.block_until_ready(compiled(*given))[0])

    return smooth


def measure(n_sequences, arguments):
    """Smooth with both, in turns."""
    dtype = np.dtype(arguments.dtype)
    given = problem(n_sequences, arguments.steps, arguments.latent_dim, dtype)
    functions = {"sksvae": ours(*given), "dynamax": theirs(*given)}
    results = {name: function() for name, function in functions.items()}
    seconds = {name: [] for name in functions}
    for _ in range(arguments.repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    difference = np.abs(results["sksvae"] - results["dynamax"]).max()
    row = {"B": n_sequences, "T": arguments.steps, "D": arguments.latent_dim}
    row |= {"dtype": arguments.dtype}
    row |= {f"{name}_ms": round(1e3 * value, 2) for name, value in medians.items()}
    row |= {"ratio": round(medians["sksvae"] / medians["dynamax"], 2)}
    print(json.dumps(row | {"largest_difference": float(f"{difference:.2g}")}), flush=True)


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", arguments.dtype == "float64")
    torch.set_num_threads(1)
    for n_sequences in arguments.sizes:
        measure(n_sequences, arguments)


if __name__ == "__main__":
    main()
