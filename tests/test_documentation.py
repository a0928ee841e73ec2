# SPDX-License-Identifier: BSD-3-Clause
"""The documentation names what there is, and its recipes work.

That it builds without a warning is for Sphinx to say; the examples in its pages are doctests.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from sksvae import VAE
from sksvae.expfam import NIWParams
from sksvae.graphical import GaussianMixtureModel, MixturePrior, Potentials
from sksvae.inference import FixedPointSettings

DOC = Path(__file__).parents[1] / "doc"


def reference_pages():
    """Yield each module of the reference, the names that its page lists, and the page."""
    paths = sorted((DOC / "api").glob("*.rst"))
    pages = {path.stem for path in paths}
    for path in paths:
        text = path.read_text("utf-8")
        module = re.search(r"^\.\. currentmodule:: (\S+)$", text, re.MULTILINE).group(1)
        listed = re.findall(r"^   ([A-Za-z]\w*)$", text, re.MULTILINE)
        yield module, [name for name in listed if name not in pages], text


PAGES = list(reference_pages())


@pytest.mark.parametrize(("module", "names", "text"), PAGES, ids=[page[0] for page in PAGES])
def test_the_reference_has_every_public_name(module, names, text):
    public = set(importlib.import_module(module).__all__)
    # Registries stand in the text: nobody wants to read their representation.
    registries = {name for name in public if f"``{name}``" in text}
    assert len(set(names)) == len(names)
    assert set(names) == public - registries


# ---- what the pages for contributors tell them to write ----


def recipe(name):
    """Load a file of the pages for contributors as a module."""
    spec = importlib.util.spec_from_file_location(name, DOC / "contributing" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_likelihood_of_the_recipe():
    likelihood = recipe("logistic").LogisticLikelihood()
    x = np.random.default_rng(0).logistic(size=(30, 2))
    params = {"log_scale": torch.tensor([0.0, 0.5], dtype=torch.float64)}
    got = likelihood.log_prob(torch.from_numpy(x), torch.zeros(30, 1, 2).double(), params)
    want = stats.logistic(0.0, 0.01 + np.exp([0.0, 0.5])).logpdf(x)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    vae = VAE(1, hidden_layer_sizes=(3,), likelihood=likelihood, max_iter=2, random_state=0).fit(x)
    assert np.isfinite(vae.score(x))


def test_the_latent_structure_of_the_recipe():
    """It is a mixture of one component."""
    recipes = recipe("gaussian")
    eye, one = torch.eye(2).double(), torch.ones((), dtype=torch.float64)
    prior = NIWParams(eye, torch.zeros(2).double(), one, 3 * one)
    gaussian = recipes.GaussianModel(recipes.GaussianPrior(prior))
    mixture = GaussianMixtureModel(MixturePrior.symmetric(1, 1.0, prior.mean, 1.0, eye, 3.0))
    R = torch.arange(1.0, 11.0).double().view(5, 2)
    potentials, settings = Potentials(R * R.flip(0), R), FixedPointSettings()
    for model in (gaussian, mixture):
        posterior = model.infer(potentials, model.expected_params(), settings)
        model.coordinate_update(model.total_stats(posterior))
    got, want = (
        model.infer(potentials, model.expected_params(), settings) for model in (gaussian, mixture)
    )
    for field in ("mean", "covariance", "local_kl"):
        torch.testing.assert_close(getattr(got, field), getattr(want, field))
    torch.testing.assert_close(gaussian.log_predictive(R), mixture.log_predictive(R))
    torch.testing.assert_close(gaussian.prior_kl(), mixture.prior_kl())
