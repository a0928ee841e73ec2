# SPDX-License-Identifier: BSD-3-Clause
"""The report of versions says what it should, whatever is installed."""

import builtins
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import sksvae
from sksvae import versions

ROOT = Path(__file__).parents[1]


def report(capsys):
    """Return title of the section, name and value of each line that is printed."""
    assert sksvae.show_versions() is None
    lines, section = [], None
    for line in capsys.readouterr().out.splitlines():
        if match := re.fullmatch(r"(\S.*):", line):
            section = match.group(1)
        elif line:
            name, _, value = line.strip().partition(": ")
            lines.append((section, name, value))
    assert len({line[:2] for line in lines}) == len(lines)
    return {line[:2]: line[2] for line in lines}


def test_report(capsys):
    found = report(capsys)
    assert found["System", "python"].startswith(platform.python_version())
    assert found["System", "executable"] == sys.executable
    assert found["Packages", "sksvae"] == sksvae.__version__
    for name in ("numpy", "scipy", "scikit-learn", "torch"):
        assert found["Packages", name] == version(name)
    assert found["PyTorch", "threads"] == str(torch.get_num_threads())
    assert any(section.startswith("Threads") for section, _ in found)


def test_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(versions, "_OPTIONAL", ("no-such-one",))
    assert report(capsys)["Packages", "no-such-one"] == "not installed"


def test_pytorch_that_does_not_load(capsys, monkeypatch):
    original = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch":
            raise OSError("libtorch.so: cannot open")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    found = report(capsys)
    assert found["PyTorch", "not loaded"] == "libtorch.so: cannot open"
    assert found["Packages", "torch"] == version("torch")


def test_the_report_needs_no_estimators():
    code = "import sys, sksvae; sksvae.show_versions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
