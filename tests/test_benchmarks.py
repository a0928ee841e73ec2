# SPDX-License-Identifier: BSD-3-Clause
"""The page of benchmarks against what it is made from."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def suite():
    spec = importlib.util.spec_from_file_location("suite", ROOT / "benchmarks" / "suite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_stored_results(suite):
    assert (ROOT / "doc" / "benchmarks.rst").read_text() == suite.page()


def test_stored_results_are_those_of_the_commands(suite):
    for stored in suite.RESULTS.glob("*.jsonl"):
        commands = suite.BENCHMARKS[stored.stem].commands
        for command in commands:
            assert f'{{"command": "{command}"' in stored.read_text()


def test_every_script_exists(suite):
    scripts = {
        command.split()[0]
        for benchmark in suite.BENCHMARKS.values()
        for command in benchmark.commands
    }
    for script in scripts:
        assert (ROOT / "benchmarks" / script).exists()


def test_an_unknown_name_is_refused_with_the_known_ones_left_alone():
    command = [sys.executable, ROOT / "benchmarks" / "suite.py", "run", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no benchmark is called nothing" in done.stderr
