# SPDX-License-Identifier: BSD-3-Clause
"""The recipes for other packages work as the page has them, where the packages are installed."""

import importlib.util
import re
import sys
import textwrap
import threading
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics
from sksvae.datasets import make_pinwheel

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

GUIDE = Path(__file__).parents[1] / "doc" / "guide"
QUICK = {
    "hidden_layer_sizes": (8,),
    "max_iter": 5,
    "tol": 10,
    "n_iter_no_change": 2,
    "random_state": 0,
}
X = make_pinwheel(30, n_arms=3, random_state=0)[0]


@pytest.fixture(scope="module")
def mixture():
    return SVAEGaussianMixture(3, n_starts=1, pretraining_iter=5, **QUICK).fit(X)


@pytest.fixture(scope="module")
def recipe():
    """Return the file of the page as a module that its blocks can import."""
    spec = importlib.util.spec_from_file_location("export_onnx", GUIDE / "export_onnx.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["export_onnx"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["export_onnx"]


def run_block(name, **names):
    """Run a block of the page, and return what it leaves."""
    page = (GUIDE / "ecosystem.rst").read_text("utf-8")
    pattern = rf"^\.\. code-block:: python\n   :name: recipe-{name}\n\n((?:   .*\n|\n)+)"
    code = textwrap.dedent(re.search(pattern, page, re.MULTILINE).group(1))
    names = {"X": X, "quick": QUICK} | names
    exec(compile(code, name, "exec"), names)
    return names


# ---- tables ----


def test_polars():
    pl = pytest.importorskip("polars")
    found = run_block("polars")
    assert isinstance(found["latents"], pl.DataFrame)
    assert found["latents"].columns == ["vae0", "vae1"]
    assert_allclose(found["latents"].to_numpy(), VAE(2, **QUICK).fit_transform(X), rtol=0)
    assert list(found["vae"].feature_names_in_) == ["length", "width"]
    groups = found["frame"]["run"].to_numpy()
    expected = SVAELinearDynamics(2, **QUICK).fit_transform(X, groups=groups)
    assert_allclose(found["by_groups"], expected, rtol=0)
    assert len(found["by_parts"]) == 3
    ids = [groups[i] for i in sorted(np.unique(groups, return_index=True)[1])]
    for part, run in zip(found["by_parts"], ids, strict=True):
        assert_allclose(part, expected[groups == run], rtol=0)


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    online = run_block("parquet", folder=tmp_path)["online"]
    assert online.n_samples_seen_ == 5 * len(X)
    assert list(online.feature_names_in_) == ["length", "width"]
    assert len(online.lower_bounds_) == 15
    assert online.lower_bounds_[-3:].mean() > online.lower_bounds_[:3].mean()


# ---- ONNX ----


def test_rounds(recipe, mixture):
    found = run_block("rounds", mixture=mixture)
    assert found["rounds_error"] < 1e-6
    assert_allclose(found["probabilities"].numpy(), mixture.predict_proba(X), atol=1e-6)
    again = mixture.inverse_transform(mixture.transform(X))
    assert_allclose(found["X_again"].numpy(), again, atol=1e-5)


@pytest.mark.parametrize(
    "likelihood",
    ["gaussian", "gaussian_network", "student_t", "bernoulli", "poisson", "gamma"],
)
def test_modules_of_any_likelihood(recipe, likelihood):
    rng = np.random.default_rng(0)
    rows = rng.poisson(3, size=(40, 3)).astype(float)
    if likelihood == "bernoulli":
        rows = (rows > 3).astype(float)
    vae = VAE(2, likelihood=likelihood, **QUICK).fit(rows)
    with torch.no_grad():
        Z = recipe.Encode(vae)(torch.tensor(rows))
        means = recipe.Decode(vae)(Z)
    assert_allclose(Z.numpy(), vae.transform(rows), rtol=1e-10, atol=1e-12)
    assert_allclose(means.numpy(), vae.inverse_transform(Z.numpy()), rtol=1e-10)


def test_mixture_of_more_dimensions_in_float32(recipe):
    rows = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    rows[::2] += 3
    mixture = SVAEGaussianMixture(3, latent_dim=5, prune=False, n_starts=1, **QUICK).fit(rows)
    with torch.no_grad():
        Z, probabilities = recipe.Encode(mixture, n_rounds=50)(torch.tensor(rows))
    assert Z.dtype == torch.float32
    assert_allclose(Z.numpy(), mixture.transform(rows), atol=1e-3)
    assert_allclose(probabilities.numpy(), mixture.predict_proba(rows), atol=1e-3)


def onnx_packages():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_onnx_of_a_mixture(recipe, mixture, tmp_path):
    onnx_packages()
    found = run_block("onnx", mixture=mixture, folder=tmp_path)
    with torch.no_grad():
        Z, probabilities = recipe.Encode(mixture, n_rounds=3)(torch.tensor(X))
    assert_allclose(found["Z"], Z.numpy(), atol=1e-10)
    assert_allclose(found["probabilities"], probabilities.numpy(), atol=1e-10)
    assert_allclose(found["Z"], mixture.transform(X), atol=1e-3)
    assert_allclose(found["X_again"], mixture.inverse_transform(found["Z"]), atol=1e-10)
    assert found["encode"].run(None, {"x": X[:1]})[0].shape == (1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"encode.onnx", "decode.onnx"}


def test_onnx_of_a_vae(recipe, tmp_path):
    onnxruntime = onnx_packages()
    counts = np.random.default_rng(0).poisson(3, size=(40, 3)).astype(np.float32)
    vae = VAE(2, likelihood="poisson", **QUICK).fit(counts)
    recipe.export(vae, tmp_path)
    encode = onnxruntime.InferenceSession(tmp_path / "encode.onnx")
    decode = onnxruntime.InferenceSession(tmp_path / "decode.onnx")
    (Z,) = encode.run(None, {"x": counts})
    (means,) = decode.run(None, {"z": Z})
    assert Z.dtype == np.float32
    assert_allclose(Z, vae.transform(counts), atol=1e-5)
    assert_allclose(means, vae.inverse_transform(Z), rtol=1e-5)


# ---- clusters ----


@pytest.mark.slow
def test_dask(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = run_block("dask")
    here = found["search"]
    assert here.best_params_["latent_dim"] in (1, 2)
    expected = [
        VAE(dim, **QUICK).fit(X[45:]).score(X[:45]) for dim in here.cv_results_["param_latent_dim"]
    ]
    assert_allclose(here.cv_results_["split0_test_score"], expected, rtol=1e-6)
    same_fit(found["vae"], VAE(n_init=3, **QUICK).fit(X))


def same_fit(found, wanted):
    assert found.lower_bound_ == wanted.lower_bound_
    for name, value in wanted.model_state_.items():
        assert np.array_equal(found.model_state_[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_runs_do_not_depend_on_where_they_run(monkeypatch, backend):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wide = np.random.default_rng(0).normal(size=(1500, 90))  # joblib maps a MB into memory
    quick = QUICK | {"max_iter": 1, "n_init": 3}
    wanted = VAE(2, **quick).fit(wide)
    assert wanted.lower_bound_ != VAE(2, **quick | {"n_init": 1}).fit(wide).lower_bound_
    with joblib.parallel_config(backend=backend, n_jobs=2):
        same_fit(VAE(2, **quick).fit(wide), wanted)


class Witness:
    """A callback that notes in which thread each run ends, and stops at one of them."""

    def __init__(self, last):
        self.last, self.threads = last, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name != "run":
            return False
        self.threads.append(threading.get_ident())
        return context.task_id == self.last


def test_runs_that_callbacks_watch_stay_in_turn():
    witness = Witness(last=1)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        VAE(2, n_init=3, **QUICK).set_callbacks(witness).fit(X)
    assert witness.threads == [threading.get_ident()] * 2
