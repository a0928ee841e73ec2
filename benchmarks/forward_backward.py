# SPDX-License-Identifier: BSD-3-Clause
"""Discrete Markov chains: time and memory of forward-backward, one step at a time or in blocks.

One JSON line per size and method::

    OMP_NUM_THREADS=1 python benchmarks/forward_backward.py --sizes 1x2000x20 32x250x50

A size is BxTxK: sequences, steps, states; the transition matrix is shared. `forward_ms` computes
the log normaliser, the marginals and the expected counts; `step_ms` also the gradient of a sum
over all of it; `fisher_ms` one product with the Fisher matrix; `path_ms` the most probable path
and `draw_ms` one draw, which have one method only. Each is the best of `--repeats` runs.
`logarithms` is what runs when the transition matrix has structural zeros; `plain` the recursion in
logarithms left to autograd. With `--memory`, one method and size per process, `peak_mb` is what a
step added to the process at its peak, and `states_mb` the size of one (B, T, K) tensor.
"""

import argparse
import json
import math
import resource
import time

import torch

from sksvae.inference import draw_paths, markov_fisher, markov_moments, most_probable_path


def random_chain(n_sequences, n_steps, n_states, dtype, seed=0):
    """Sticky dynamics and noisy evidence."""
    generator = torch.Generator().manual_seed(seed)
    transition = torch.randn(n_states, n_states, generator=generator, dtype=dtype)
    transition += 6.0 * torch.eye(n_states, dtype=dtype)
    shape = n_sequences, n_steps, n_states
    likelihood = 3.0 * torch.randn(shape, generator=generator, dtype=dtype)
    return torch.zeros(n_states, dtype=dtype), transition.log_softmax(-1), likelihood


def plain(initial, transition, likelihood):
    """Forward messages in logarithms; autograd gives the marginals."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (transition, likelihood)]
        steps = leaves[1].unbind(1)
        message = initial + steps[0]
        for step in steps[1:]:
            message = step + torch.logsumexp(message.unsqueeze(-1) + leaves[0], -2)
        total = message.logsumexp(-1)
        return total, *torch.autograd.grad(total.sum(), leaves)


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
    inputs = random_chain(*size, getattr(torch, arguments.dtype))
    if method == "logarithms":
        inputs[1][0, 1] = -math.inf
    name = "sequential" if method == "logarithms" else method

    def forward():
        if method == "plain":
            return plain(*inputs)
        with torch.no_grad():
            return markov_moments(*inputs, method=name, want_messages=True)

    def step():
        leaves = [x.detach().requires_grad_() for x in inputs]
        chain = markov_moments(*leaves, method=name)
        weights = torch.linspace(0.0, 1.0, size[2], dtype=inputs[0].dtype)
        total = chain.log_normalizer.sum() + (chain.marginals * weights).sum()
        return torch.autograd.grad(total + (chain.pair_counts * weights).sum(), leaves)

    row = {"B": size[0], "T": size[1], "K": size[2], "dtype": arguments.dtype, "method": method}
    row["threads"] = torch.get_num_threads()
    if arguments.memory:
        row["states_mb"] = round(inputs[2].nbytes / 2**20, 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        result = forward() if method == "plain" or arguments.no_gradient else step()
        row["seconds"] = round(time.perf_counter() - begin, 2)
        del result
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row["peak_mb"] = round((after - before) / 1024, 1)
        return row
    row["forward_ms"] = best_ms(forward, arguments.repeats)
    if method != "plain":
        messages, unary = forward().messages, torch.ones_like(inputs[2])
        row["step_ms"] = best_ms(step, arguments.repeats)
        row["fisher_ms"] = best_ms(lambda: markov_fisher(messages, unary), arguments.repeats)
    if method == "sequential":
        generator = torch.Generator().manual_seed(0)
        row["path_ms"] = best_ms(lambda: most_probable_path(*inputs), arguments.repeats)
        row["draw_ms"] = best_ms(lambda: draw_paths(*inputs, 1, generator), arguments.repeats)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1x250x5", "1x2000x20"])
    methods = ["plain", "sequential", "parallel", "logarithms"]
    parser.add_argument("--methods", nargs="+", default=methods)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--no-gradient", action="store_true")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        for method in arguments.methods:
            row = measure(tuple(map(int, size.split("x"))), method, arguments)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
