# SPDX-License-Identifier: BSD-3-Clause
"""One training step of SVAELinearDynamics beside the same work in a plain implementation.

One JSON line::

    OMP_NUM_THREADS=1 python benchmarks/training_step.py

Networks, likelihood, bound and both optimisers are the same. The plain implementation takes the
moments and draws of the latents step after step and leaves their gradient to autograd, as the
published code does. Medians of the repeats, taken in turns.
"""

import argparse
import json
import statistics
import time

import torch
from block_tridiagonal import plain

from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, gaussian_chain
from sksvae.graphical.transition_tables import ChainNatural
from sksvae.inference import FixedPointSettings
from sksvae.inference.block_tridiagonal import CenteredMoments, centered_moments
from sksvae.inference.chain_blocks import Blocks
from sksvae.likelihoods import get_likelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.training import Trainer, TrainingSettings


def plain_moments(center, slope, precision, diagonal, lower, *, mask, noise, method):
    """Stand in for `centered_moments`, with all gradients left to autograd."""
    diagonal, lower = Blocks(diagonal.whole()), Blocks(lower.whole())
    product = ChainNatural(slope, diagonal, lower, slope).times(center)
    # The caller computes it without a gradient.
    product = product - product.detach()
    log_normalizer, mean, covariance, lag, draws = plain(
        slope - product,
        diagonal.table + torch.diag_embed(precision),
        lower.table,
        noise=noise,
        method=method,
    )
    return CenteredMoments(
        log_normalizer - 0.5 * (product * center).sum((-2, -1)),
        mean.squeeze(-1),
        covariance.diagonal(dim1=-2, dim2=-1),
        covariance,
        lag,
        draws.squeeze(-1).unsqueeze(0),
    )


def made_trainer(arguments, dtype):
    """Return a trainer and a batch of random sequences."""
    B, T, D, F = arguments.sequences, arguments.steps, arguments.latent_dim, arguments.features
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(B * T, F, generator=generator, dtype=dtype)
    rows = SequenceRows(X, X, torch.full((B,), T))
    graphical = LinearDynamicsModel(DynamicsPrior.isotropic(D, persistence=0.9, dtype=dtype))
    likelihood = get_likelihood("gaussian")
    location, scale = torch.zeros(F, dtype=dtype), torch.ones(F, dtype=dtype)
    model = SequenceVAE(
        F, D, (100,), "relu", likelihood, graphical, location, scale, FixedPointSettings()
    )
    axes = torch.linalg.qr(torch.randn(F, D, generator=generator, dtype=dtype)).Q
    model.encoder.reset(axes, 1.0, generator)
    model.decoder.reset(axes, torch.zeros(0, F, dtype=dtype), generator)
    settings = TrainingSettings(max_iter=1, batch_size=B * T, learning_rate=1e-3, anneal=False)
    return Trainer(model, B * T, settings, generator), rows


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    arguments = parser.parse_args()
    trainer, rows = made_trainer(arguments, getattr(torch, arguments.dtype))
    times = {"ours": [], "plain": []}
    for _ in range(arguments.repeats + 1):
        for name, kernel in (("ours", centered_moments), ("plain", plain_moments)):
            gaussian_chain.centered_moments = kernel
            start = time.perf_counter()
            trainer.step(rows, 0.01)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(
        json.dumps(
            vars(arguments)
            | {f"{name}_ms": round(1e3 * value, 1) for name, value in medians.items()}
            | {"ratio": round(medians["plain"] / medians["ours"], 2)}
            | {"threads": torch.get_num_threads()}
        )
    )


if __name__ == "__main__":
    main()
