# SPDX-License-Identifier: BSD-3-Clause
"""Moments of Gaussian chains: time and memory of the two orders of elimination.

One JSON line per size and method::

    OMP_NUM_THREADS=1 python benchmarks/block_tridiagonal.py --sizes 1x1000x8 32x250x16

A size is BxTxD: sequences, steps, latent dimension. `forward_ms` computes everything (log
normaliser, means, covariances, lag-one covariances, one draw) without a graph; `step_ms` also the
gradient of a sum over all of it; both are the best of `--repeats` runs. `plain` is the sequential
elimination left to autograd, one graph node per operation. With `--memory`, one method and size
per process, `peak_mb` is what the whole run, gradient included, added to the process at its peak;
`--memory --no-gradient` the same for the forward pass alone. `blocks_mb` is the size of one
(B, T, D, D) tensor.
"""

import argparse
import json
import math
import resource
import time

import torch

from sksvae.inference import chain_moments


def random_chain(n_sequences, n_steps, dim, dtype, seed=0):
    """Posterior of rotating, slowly forgetting dynamics under Gaussian potentials."""
    generator = torch.Generator().manual_seed(seed)
    A = 0.97 * torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=dtype)).Q
    noise_precision = 10.0
    shape = n_sequences, n_steps, dim
    diagonal = torch.diag_embed(torch.rand(shape, generator=generator, dtype=dtype))
    diagonal += noise_precision * torch.eye(dim, dtype=dtype)
    diagonal[:, :-1] += noise_precision * A.T @ A
    lower = (-noise_precision * A).expand(n_sequences, n_steps - 1, dim, dim).clone()
    h = torch.randn(shape, generator=generator, dtype=dtype)
    draw = torch.randn(1, *shape, generator=generator, dtype=dtype)
    return h, diagonal, lower, draw


def plain(h, diagonal, lower, *, noise, method):
    """Sequential elimination, differentiated by autograd."""
    n_steps, dim = h.shape[-2:]
    factors, gains, centers, log_normalizer = [], [], [], 0.0
    # unbind, because the gradient of indexing would allocate a whole tensor per step
    diagonal, lower, h = diagonal.unbind(1), lower.unbind(1), h.unsqueeze(-1).unbind(1)
    noise = noise[0].unsqueeze(-1).unbind(1)
    pivot, vector = diagonal[0], h[0]
    for t in range(n_steps):
        factor = torch.linalg.cholesky(pivot)
        factors.append(factor)
        centers.append(torch.cholesky_solve(vector, factor))
        log_normalizer = log_normalizer + 0.5 * (vector * centers[-1]).sum((-2, -1))
        log_normalizer = log_normalizer - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if t + 1 < n_steps:
            gains.append(torch.cholesky_solve(lower[t].mT, factor))
            pivot = diagonal[t + 1] - lower[t] @ gains[-1]
            vector = h[t + 1] - lower[t] @ centers[-1]
    means, covariances, lags, draws = [], [], [], []
    for t in reversed(range(n_steps)):
        draw = centers[t] + torch.linalg.solve_triangular(factors[t].mT, noise[t], upper=True)
        mean, covariance = centers[t], torch.cholesky_inverse(factors[t])
        if means:
            lags.append(-covariances[-1] @ gains[t].mT)
            covariance = covariance - gains[t] @ lags[-1]
            mean = mean - gains[t] @ means[-1]
            draw = draw - gains[t] @ draws[-1]
        means.append(mean)
        covariances.append(covariance)
        draws.append(draw)
    stacked = (torch.stack(x[::-1], 1) for x in (means, covariances, lags, draws))
    return log_normalizer + 0.5 * n_steps * dim * math.log(2 * math.pi), *stacked


def best_ms(function, repeats, budget_s=10.0):
    """Return the best time, after one run to warm up."""
    function()
    times, start = [], time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - start < budget_s):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return round(1e3 * min(times), 3)


def measure(size, method, arguments):
    """Time, or memory, of one method at one size."""
    h, diagonal, lower, noise = random_chain(*size, getattr(torch, arguments.dtype))
    moments = plain if method == "plain" else chain_moments
    inputs = h, diagonal, lower

    def forward():
        with torch.no_grad():
            return moments(*inputs, noise=noise, method=method)

    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        total = sum(out.sum() for out in moments(*leaves, noise=noise, method=method))
        return torch.autograd.grad(total, leaves)

    row = {"B": size[0], "T": size[1], "D": size[2], "dtype": arguments.dtype, "method": method}
    row["threads"] = torch.get_num_threads()
    if not arguments.memory:
        row["forward_ms"] = best_ms(forward, arguments.repeats)
        row["step_ms"] = best_ms(step, arguments.repeats)
        return row
    row["blocks_mb"] = round(diagonal.nbytes / 2**20, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    result = forward() if arguments.no_gradient else step()
    row["seconds"] = round(time.perf_counter() - begin, 2)
    del result
    row["peak_mb"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1x1000x8"])
    parser.add_argument("--methods", nargs="+", default=["plain", "sequential", "parallel"])
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--no-gradient", action="store_true")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        for method in arguments.methods:
            row = measure(tuple(map(int, size.split("x"))), method, arguments)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
