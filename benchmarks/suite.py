# SPDX-License-Identifier: BSD-3-Clause
"""All benchmarks that the documentation reports, and the page that reports them.

Run all, or some by name, then write the page::

    python benchmarks/suite.py run
    python benchmarks/suite.py run kernels import
    python benchmarks/suite.py page

Each runs as a process of its own with one thread. Its JSON lines go to ``benchmarks/results``,
below one with the command, the machine and the versions; the page, ``doc/benchmarks.rst``, is made
from these files alone. Take care that nothing else runs on the machine.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "doc" / "benchmarks.rst"
PACKAGES = ("sksvae", "torch", "scikit-learn", "numpy", "scipy")
REFERENCE = "--steps 100 --latent-dim 8 --states 10 --chain auto --gradient cg --sequences 16"


class Benchmark(NamedTuple):
    """What is run, and what the page says of it."""

    title: str
    commands: tuple[str, ...]
    text: str
    columns: tuple[str, ...]


BENCHMARKS = {
    "kernels": Benchmark(
        "Gaussian chains",
        ("block_tridiagonal.py --sizes 1x1000x8 16x100x8 1x250x16 32x250x16",),
        "Moments and a draw of B chains of T steps in D dimensions (``forward_ms``), and their "
        "gradients (``step_ms``): one step after the other left to autograd (``plain``), the same "
        "order with gradients written out, and cyclic reduction.",
        ("B", "T", "D", "method", "forward_ms", "step_ms"),
    ),
    "discrete": Benchmark(
        "Discrete chains",
        ("forward_backward.py --sizes 1x250x5 1x2000x20 --methods plain sequential parallel",),
        "Marginals of B chains of T steps with K states (``forward_ms``), their gradients, and one "
        "product with the Fisher matrix.",
        ("B", "T", "K", "method", "forward_ms", "step_ms", "fisher_ms"),
    ),
    "linear_step": Benchmark(
        "A training step of linear dynamics",
        ("training_step.py", "training_step.py --dtype float32"),
        "All of a step, networks included, with the moments of the chains as above and as a plain "
        "loop left to autograd.",
        ("sequences", "steps", "latent_dim", "dtype", "ours_ms", "plain_ms", "ratio"),
    ),
    "switching_step": Benchmark(
        "A training step of switching dynamics",
        (
            "switching_step.py --sizes 1 8 --parts time",
            "switching_step.py --sizes 1 --parts memory",
            f"switching_step.py --measure {REFERENCE} --start uniform --exact-updates 10 "
            "--repeats 5",
        ),
        "All of a step, networks included: rounds of inference that begin at a filter (``cold``), "
        "without a preference (``uniform``) or where they ended in the step before (``warm``), and "
        "the gradient of their fixed point, implicit (``cg``) or through all rounds.",
        ("B", "gradient", "start", "chain", "updates_mean", "step_ms", "cpu_ms", "peak_mb"),
    ),
    "gradients": Benchmark(
        "Gradients of the fixed point",
        ("implicit_gradient.py",),
        "Error of each way to differentiate the fixed point against its cost, at the start of "
        "training and after it.",
        (),
    ),
    "fits": Benchmark(
        "Whole fits",
        ("fit_time.py",),
        "Processor seconds until a fit reaches the bound that the slowest of its variants ends at, "
        "less 0.5 nats per row.",
        ("case", "variant", "target", "cpu_s_to_target", "cpu_s", "n_iter", "lower_bound"),
    ),
    "rows": Benchmark(
        "Number of rows",
        ("scaling.py --rows 2000 20000 200000",),
        "A mixture with ten components on 64 features, five epochs in all: time, memory, and rows "
        "per second of `predict`.",
        ("n_rows", "fit_s", "predict_rows_per_s", "peak_memory_mb", "of_which_before_fit_mb"),
    ),
    "import": Benchmark(
        "Import",
        ("import_time.py",),
        "Processor seconds that ``import sksvae`` adds to importing torch and scikit-learn.",
        ("torch_and_sklearn_s", "with_sksvae_s", "added_s"),
    ),
}


def machine():
    """Say what the numbers were taken with."""
    found = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        found["processor"] = names[0].split(":")[1].strip() if names else found["processor"]
    found["python"] = platform.python_version()
    return found | {name: version(name) for name in PACKAGES}


def run(name):
    """Run one benchmark and store its lines."""
    lines = []
    for command in BENCHMARKS[name].commands:
        script, *options = command.split()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, HERE / script, *options],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        lines += [json.dumps({"command": command} | machine()), *done.stdout.split("\n")]
    RESULTS.mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in lines if line.strip())
    (RESULTS / f"{name}.jsonl").write_text(text)
    print(text)


def table(rows, columns):
    """Rows as a list table, with the columns that any of them has."""
    columns = columns or tuple(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in columns if any(name in row for row in rows)]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for cells in (columns, *([row.get(name, "") for name in columns] for row in rows)):
        lines += [
            f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(cells)
        ]
    return [*lines, ""]


def section(name):
    """One benchmark on the page."""
    benchmark = BENCHMARKS[name]
    lines = [benchmark.title, "-" * len(benchmark.title), "", benchmark.text, ""]
    rows: list[dict] = []
    stored = (RESULTS / f"{name}.jsonl").read_text().splitlines()
    for row in [*map(json.loads, stored), {"command": None}]:
        if "command" not in row:
            rows.append(row)
            continue
        shown = [row for row in rows if not benchmark.columns or row.keys() & benchmark.columns]
        if shown:
            lines += table(shown, benchmark.columns)
        if row["command"]:
            with_what = ", ".join(
                f"{key} {value}" for key, value in row.items() if key != "command"
            )
            lines += [f"``python benchmarks/{row['command']}`` with {with_what}.", ""]
        rows = []
    return lines


def page():
    """Everything that was measured, as a page of the documentation."""
    title = "Benchmarks"
    lines = [
        ".. This page is made by benchmarks/suite.py: edit that, or run it again.",
        "",
        title,
        "=" * len(title),
        "",
        "Each table comes from the command above it, on one thread. Machines differ, and so do "
        "runs on one machine: ratios within a table say more than times.",
        "",
    ]
    for name in BENCHMARKS:
        if (RESULTS / f"{name}.jsonl").exists():
            lines += section(name)
    return "\n".join(lines).rstrip() + "\n"


def main():
    """Run, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    running = actions.add_parser("run", help="run benchmarks and store what they print")
    running.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    actions.add_parser("page", help="write the page of the documentation")
    arguments = parser.parse_args()
    if arguments.action == "page":
        PAGE.write_text(page())
        return
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    for name in arguments.names or BENCHMARKS:
        run(name)


if __name__ == "__main__":
    main()
