# SPDX-License-Identifier: BSD-3-Clause
"""The import contract of pyproject.toml holds, and notices what it is there to notice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint_imports(folder):
    """Run import-linter on the package in a folder, installed elsewhere or not."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_package_keeps_the_contract():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("path", "statement", "contract"),
    [
        ("expfam/extra.py", "import sksvae.likelihoods", "layers below its own BROKEN"),
        ("metrics.py", "import sksvae.expfam", "layers below its own BROKEN"),
        ("likelihoods/extra.py", "import sksvae.training", "layers below its own BROKEN"),
        ("unplaced.py", "import sksvae.metrics", "unplaced"),
        ("expfam/extra.py", "import sklearn.utils", "nothing of scikit-learn BROKEN"),
        ("inference/extra.py", "import sklearn.utils", "nothing of scikit-learn BROKEN"),
        ("datasets/pinwheel.py", "import torch.nn", "do without torch BROKEN"),
    ],
)
def test_a_forbidden_import_breaks_the_contract(tmp_path, path, statement, contract):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "sksvae", tmp_path / "sksvae", ignore=shutil.ignore_patterns("__pycache__")
    )
    for module in ("inference/__init__.py", "training.py", path):
        file = tmp_path / "sksvae" / module
        file.parent.mkdir(exist_ok=True)
        file.touch()
    file.write_text(f"{file.read_text('utf-8')}\n{statement}\n", "utf-8")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert contract in " ".join(result.stdout.split()), result.stdout + result.stderr
