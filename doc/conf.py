# SPDX-License-Identifier: BSD-3-Clause
"""How Sphinx builds the documentation.

From the root of the repository, after ``pip install -c constraints.txt -e ".[doc]"``::

    python -m sphinx -W -n -b html doc doc/_build/html

``-D plot_gallery=0`` leaves out the running of the examples. With the environment variable
``SKSVAE_DOC_INTERSPHINX=1``, names of other packages become links, for which their inventories are
fetched; without it the build needs no network.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sksvae  # noqa: E402

# ---- what it is about ----

project = "sksvae"
author = "The sksvae developers"
copyright = author
release = sksvae.__version__
version = release

# ---- extensions ----

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "auto_examples/**/*.ipynb", "auto_examples/**/*.py"]
default_role = "py:obj"

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

# ---- the reference ----

autosummary_generate = True
autodoc_member_order = "bysource"
# Types are in the docstrings, in words.
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Names in backticks link where there is something to link to: `X` and `fit` need no page, nor do
# methods without their class, as examples name them.
nitpick_ignore_regex = [("py:obj", ".*"), ("py:meth", r"\w+")]

if os.environ.get("SKSVAE_DOC_INTERSPHINX") == "1":
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
else:
    nitpick_ignore_regex.append((".*", r"(builtins|joblib|numpy|pandas|scipy|sklearn|torch)\..*"))

# What scikit-learn gives to every estimator is in its documentation.
INHERITED = ("fit_transform",)


def skip_member(app, what, name, obj, skip, options):
    """Leave out what is inherited from other packages, and the fields of named tuples."""
    if type(obj).__name__ == "_tuplegetter":  # they are among the parameters
        return True
    function = getattr(obj, "fget", None) or getattr(obj, "__func__", obj)
    module = getattr(function, "__module__", None)
    if callable(function) and isinstance(module, str) and not module.startswith("sksvae"):
        return name not in INHERITED
    if name.startswith("set_") and name.endswith("_request"):
        return True
    return skip


def escape_shapes(app, what, name, obj, options, lines):
    """Keep the names of attributes in shapes, such as ``(n_components_,)``, from being links."""
    for i, line in enumerate(lines):
        if " shape (" in line:
            lines[i] = re.sub(r"(?<=\w)_(?=[,)])", r"\_", line)


# ---- the gallery ----


sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["auto_examples"],
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",  # the classroom is numbered
    "backreferences_dir": "auto_examples/backreferences",
    "doc_module": ("sksvae",),
    "reference_url": {"sksvae": None},
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "reset_modules": ("matplotlib",),
}

# ---- the pages ----

html_theme = "pydata_sphinx_theme"
html_title = f"sksvae {version}"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False


def setup(app):
    """Connect what is defined above."""
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-docstring", escape_shapes, priority=100)  # before numpydoc
