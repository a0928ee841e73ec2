# SPDX-License-Identifier: BSD-3-Clause
"""Package metadata; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Read, not imported: the build has none of the run-time dependencies.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "sksvae" / "__init__.py").read_text("utf-8"), re.MULTILINE
).group(1)

EXAMPLES = ["matplotlib", "pandas", "statsmodels"]

setup(
    name="sksvae",
    version=VERSION,
    description="Structured variational autoencoders as scikit-learn estimators",
    long_description=(ROOT / "README.rst").read_text("utf-8"),
    long_description_content_type="text/x-rst",
    author="The sksvae developers",
    license_expression="BSD-3-Clause",
    license_files=["LICENSE"],
    keywords="variational autoencoder, mixture model, clustering, scikit-learn, torch",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["sksvae", "sksvae.*"]),
    package_data={"sksvae": ["py.typed"]},
    zip_safe=False,
    install_requires=["numpy", "scipy", "scikit-learn>=1.9", "torch"],
    extras_require={
        "examples": EXAMPLES,
        "tests": [
            *EXAMPLES,
            "dask[distributed]",
            "hypothesis",
            "import-linter",
            "mypy",
            "numpydoc",
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools>=77",
            "skops",
        ],
        "doc": [
            *EXAMPLES,
            "numpydoc",
            "pydata-sphinx-theme",
            "sphinx",
            "sphinx-gallery",
            "sphinxcontrib-bibtex",
        ],
    },
)
