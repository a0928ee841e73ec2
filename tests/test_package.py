# SPDX-License-Identifier: BSD-3-Clause
"""What is true of the package as a whole: metadata, contents, documentation, and set-up."""

import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from numpydoc.validate import validate

import sksvae

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "sksvae").rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
]

# numpydoc's checks of the docstrings that users read, those of the names in some __all__.
CHECKS = {
    "PR01",  # a parameter is not documented ...
    "PR02",  # ... or documented and absent ...
    "PR04",  # ... or without a type ...
    "PR07",  # ... or without a description
    "RT01",  # no Returns section
}
EXAMPLE = "EX01"
# Everything else without a leading underscore, and methods that override a documented one, need
# a docstring at least, and nothing stale in it.
CHECKS_INTERNAL = {"GL08", "PR02"}


def read(name):
    return (ROOT / name).read_text("utf-8")


def test_version_is_that_of_the_metadata():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sksvae.__version__)
    try:
        installed = version("sksvae")
    except PackageNotFoundError:
        pytest.skip("sksvae is not installed")
    assert installed == sksvae.__version__


def test_changelog_opens_with_the_version():
    assert (
        re.search(r"^Version (\S+)", read("CHANGELOG.rst"), re.MULTILINE).group(1)
        == (sksvae.__version__.partition(".dev")[0])
    )


def test_public_names_exist_once():
    assert len(set(sksvae.__all__)) == len(sksvae.__all__)
    for name in sksvae.__all__:
        assert getattr(sksvae, name).__module__.startswith("sksvae.")


def test_metrics_and_datasets_are_light_to_import():
    code = "import sys, sksvae.datasets, sksvae.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_build_has_every_module_and_the_typing_marker(tmp_path):
    build = [f"--build-base={tmp_path / 'base'}", f"--build-lib={tmp_path / 'lib'}"]
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", *build],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    built = {path.relative_to(tmp_path / "lib") for path in (tmp_path / "lib").rglob("*.*")}
    expected = [*SOURCES, ROOT / "sksvae" / "py.typed"]
    assert built == {path.relative_to(ROOT) for path in expected}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_names_its_licence_first(path):
    assert path.read_text("utf-8").startswith("# SPDX-License-Identifier: BSD-3-Clause\n")


def members(owner, module_name):
    """Yield name and object of the functions, classes and methods written in a module."""
    for name, member in vars(owner).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if name.startswith("_") or getattr(function, "__module__", None) != module_name:
            continue
        # What dataclass and NamedTuple generate is a member too, of a file that is not one.
        if inspect.isclass(function) or (
            inspect.isfunction(function) and Path(function.__code__.co_filename).is_file()
        ):
            yield name, function


def documented_names(module_name):
    """Collect the names in the __all__ of a module and of the packages that it is in."""
    parts = module_name.split(".")
    above = [importlib.import_module(".".join(parts[: n + 1])) for n in range(len(parts))]
    return {name for module in above for name in getattr(module, "__all__", ())}


def needs_example(member):
    """Leave out what cannot be used on its own: records, warnings and abstract classes."""
    return not inspect.isclass(member) or not (
        issubclass(member, (tuple, BaseException)) or inspect.isabstract(member)
    )


def problems_of(name, checks):
    return [f"{name}: {text}" for code, text in validate(name)["errors"] if code in checks]


@pytest.mark.parametrize("module_name", MODULES)
def test_docstrings_are_complete(module_name):
    module = importlib.import_module(module_name)
    assert module.__doc__
    documented = documented_names(module_name)
    problems = []
    for name, member in members(module, module_name):
        checks = CHECKS_INTERNAL | (CHECKS if name in documented else set())
        example = {EXAMPLE} if name in documented and needs_example(member) else set()
        problems += problems_of(f"{module_name}.{name}", checks | example)
        if inspect.isclass(member):
            for method, _ in members(member, module_name):
                inherited = any(hasattr(base, method) for base in member.__bases__)
                problems += problems_of(
                    f"{module_name}.{name}.{method}", CHECKS_INTERNAL if inherited else checks
                )
    assert not problems, "\n".join(problems)


def test_constraints_pin_every_dependency_exactly():
    pins = {}
    for line in read("constraints.txt").splitlines():
        if not line.startswith("#"):
            # A plain release: a local version, such as "+cpu", is not on PyPI.
            name, pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9a-z.]*)", line).groups()
            pins[name.lower()] = pin
    metadata = read("setup.py")
    lists = re.findall(r"(?:EXAMPLES = |install_requires=)\[(.*?)\]", metadata, re.DOTALL)
    lists.append(metadata.partition("extras_require=")[2])
    required = set(re.findall(r'"([A-Za-z0-9._-]+)(?:>=[0-9.]+)?"(?!:)', " ".join(lists)))
    assert {"torch", "scikit-learn", "matplotlib", "pytest", "sphinx"} <= required
    assert required <= pins.keys()


def set_up_commands():
    return re.findall(r"^ +(.*pip install.*)$", read("README.rst"), re.MULTILINE)


def test_readme_has_two_set_up_commands():
    run, test = set_up_commands()
    assert '".[examples]"' in run
    assert run.endswith("examples/plot_cluster_digits.py")
    assert '".[tests]"' in test
    for command in (run, test):
        environment, install, _ = command.split(" && ")
        assert environment == "python3 -m venv .venv"
        assert install.startswith(".venv/bin/pip install -c constraints.txt -e ")


def test_ci_runs_the_test_command_of_the_readme():
    # .ci/run reads its command from README.rst; run the same lines of shell up to the first step.
    script = read(".ci/run")
    extract = script[script.index("line=$(grep") : script.index("bin=")]
    shown = subprocess.run(
        ["bash", "-euc", f'work=WORK\n{extract}\nprintf "%s\\n" "$install" "$tests"'],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(shown) == 2
    assert " && ".join(shown).strip() == set_up_commands()[1].replace(".venv", "WORK/venv")
    assert 'step "$install"' in script
    assert 'step "$tests"' in script
