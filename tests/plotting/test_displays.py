# SPDX-License-Identifier: BSD-3-Clause
"""What is true of all displays."""

import builtins
import inspect
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.exceptions import NotFittedError

import sksvae
from sksvae import plotting

from .cases import dynamics, mixture
from .conftest import TINY

ROOT = Path(__file__).parents[2]
NAMES = plotting.__all__

# Per display: estimator, further arguments of from_estimator, and whether it needs data.
FROM_ESTIMATOR = [
    ("BoundDisplay", "vae", {}, False),
    ("BoundDisplay", "switching", {}, False),
    ("LatentSpaceDisplay", "vae", {}, True),
    ("LatentSpaceDisplay", "mixture", {}, True),
    ("LatentSpaceDisplay", "linear", {}, True),
    ("LatentSpaceDisplay", "switching", {}, True),
    ("DecodedMeansDisplay", "mixture", {"image_shape": (2, 2)}, False),
    ("DecodedMeansDisplay", "switching", {}, True),
    ("SegmentationDisplay", "switching", {}, True),
    ("StateUsageDisplay", "mixture", {}, True),
    ("StateUsageDisplay", "switching", {}, True),
    ("TransitionMatrixDisplay", "switching", {}, False),
    ("ForecastDisplay", "linear", {"n_steps": 3}, True),
    ("ForecastDisplay", "switching", {"n_steps": 3, "n_draws": 5}, True),
    ("ImputationDisplay", "linear", {"n_draws": None}, True),
    ("ImputationDisplay", "switching", {"n_draws": 2}, True),
    ("LatentDynamicsDisplay", "linear", {}, True),
    ("LatentDynamicsDisplay", "switching", {}, True),
    ("ReconstructionDisplay", "vae", {}, True),
    ("ReconstructionDisplay", "mixture", {"image_shape": (2, 2)}, True),
    ("ReconstructionDisplay", "linear", {}, True),
    ("ReconstructionDisplay", "switching", {}, True),
]
IDS = [f"{name}-{which}" for name, which, _, _ in FROM_ESTIMATOR]


def draw(name, estimator, arguments, data, **more):
    method = getattr(plotting, name).from_estimator
    return method(estimator, *([data] if data is not None else []), **arguments, **more)


def data_for(which, needed, recordings, name):
    if not needed:
        return None
    X = recordings[0].copy()
    if name == "ImputationDisplay":
        X[0, 5:9] = np.nan
    return X.reshape(-1, 4) if which in ("vae", "mixture") else X


@pytest.mark.parametrize(("name", "which", "arguments", "needs_data"), FROM_ESTIMATOR, ids=IDS)
def test_from_estimator(name, which, arguments, needs_data, fitted, recordings):
    data = data_for(which, needs_data, recordings, name)
    display = draw(name, fitted[which], arguments, data)
    assert isinstance(display, getattr(plotting, name))
    assert isinstance(display.ax_, Axes)
    assert isinstance(display.figure_, Figure)
    assert display.ax_.figure is display.figure_
    assert display.ax_ in np.ravel(getattr(display, "axes_", [display.ax_]))
    assert len(plt.get_fignums()) == 1


# With estimators that cost nothing.
STEPS = np.random.default_rng(0).normal(size=(2, 12, 2))
KNOWN = {
    "BoundDisplay": (dynamics(history_={"local_kl": np.zeros(3)}), {}),
    "LatentSpaceDisplay": (mixture(), {"X": STEPS[0]}),
    "DecodedMeansDisplay": (mixture(), {"image_shape": (1, 2)}),
    "SegmentationDisplay": (dynamics(), {"X": STEPS, "y_true": STEPS[..., 1] > 0}),
    "StateUsageDisplay": (dynamics(), {"X": STEPS}),
    "TransitionMatrixDisplay": (dynamics(), {}),
    "ForecastDisplay": (dynamics(), {"X": STEPS, "n_steps": 3, "kind": "heatmap"}),
    "ImputationDisplay": (dynamics(), {"X": np.where(STEPS > 1, np.nan, STEPS)}),
    "LatentDynamicsDisplay": (dynamics(), {"X": STEPS}),
    "ReconstructionDisplay": (dynamics(), {"X": STEPS, "image_shape": (1, 2)}),
}


def draw_known(name, **more):
    estimator, arguments = KNOWN[name]
    return getattr(plotting, name).from_estimator(estimator, **arguments, **more)


@pytest.mark.parametrize("name", NAMES)
def test_given_axes_are_used(name):
    figure, axes = plt.subplots(1, 2)
    others = axes[0].get_children()
    display = draw_known(name, ax=axes[1])
    assert plt.get_fignums() == [figure.number]
    assert display.figure_ is figure
    assert axes[0].get_children() == others
    used = np.ravel(getattr(display, "axes_", [display.ax_]))
    if used.size == 1:
        assert used[0] is axes[1]
    else:  # divided
        place = axes[1].get_subplotspec()
        assert all(ax.get_subplotspec().get_topmost_subplotspec() == place for ax in used)
        assert not axes[1].axison
    figure.canvas.draw()


@pytest.mark.parametrize("name", NAMES)
def test_drawn_again(name):
    """In a new figure, with the same artists."""
    display = draw_known(name)
    first = display.figure_
    counts = [len(ax.get_children()) for ax in first.axes]
    plot = inspect.signature(display.plot).parameters
    assert display.plot(**{k: v for k, v in KNOWN[name][1].items() if k in plot}) is display
    assert display.figure_ is not first
    assert [len(ax.get_children()) for ax in display.figure_.axes] == counts


@pytest.mark.parametrize(("name", "which", "arguments", "needs_data"), FROM_ESTIMATOR, ids=IDS)
def test_unfitted(name, which, arguments, needs_data, recordings):
    classes = {"vae": "VAE", "mixture": "SVAEGaussianMixture", "linear": "SVAELinearDynamics"}
    estimator = getattr(sksvae, classes.get(which, "SVAESwitchingLDS"))(**TINY)
    data = data_for(which, needs_data, recordings, name)
    with pytest.raises(NotFittedError):
        draw(name, estimator, arguments, data)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("name", "which", "missing"),
    [
        ("SegmentationDisplay", "mixture", "n_states_ and rows_"),
        ("TransitionMatrixDisplay", "linear", "state_transition_probabilities_"),
        ("ForecastDisplay", "vae", "forecast and rows_"),
        ("ImputationDisplay", "mixture", "impute and rows_"),
        ("LatentDynamicsDisplay", "mixture", "transition_matrix_"),
        ("DecodedMeansDisplay", "vae", "predict_proba"),
        ("StateUsageDisplay", "vae", "predict"),
    ],
)
def test_an_estimator_that_cannot_be_drawn(name, which, missing, fitted, recordings):
    needs_data = name != "TransitionMatrixDisplay"
    data = data_for(which, needs_data, recordings, name)
    arguments = {"n_steps": 2} if name == "ForecastDisplay" else {}
    with pytest.raises(TypeError, match=f"estimator must have {missing}"):
        draw(name, fitted[which], arguments, data)


@pytest.mark.parametrize("name", NAMES)
def test_without_matplotlib(name, monkeypatch):
    found = builtins.__import__

    def absent(module, *args, **kwargs):
        if module.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return found(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    expected = rf'{name}.plot needs matplotlib.* pip install "sksvae\[examples\]"'
    with pytest.raises(ImportError, match=expected):
        draw_known(name)


def test_import_loads_neither_matplotlib_nor_torch():
    code = "import sys, sksvae.plotting; sys.exit(bool({'matplotlib', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_conventions(name):
    display = getattr(plotting, name)
    assert name.endswith("Display")
    assert inspect.signature(display.plot).parameters["ax"].default is None
    parameters = inspect.signature(display.from_estimator).parameters
    assert next(iter(parameters)) == "estimator"
    assert parameters["ax"].default is None


@pytest.mark.parametrize("form", ["list", "groups"])
def test_forms_of_sequences_give_the_same_figure(form, fitted, recordings):
    X, _ = recordings
    order = np.argsort(np.tile(np.arange(20), 2), kind="stable")  # rows of sequences in turn
    table, groups = X.reshape(-1, 4)[order], np.repeat([0, 1], 20)[order]
    given = {"list": (list(X), None), "groups": (table, groups)}[form]
    expected, found = (
        plotting.LatentSpaceDisplay.from_estimator(fitted["linear"], data, groups=ids)
        for data, ids in ((X, None), given)
    )
    np.testing.assert_allclose(expected.latents, found.latents)
