# SPDX-License-Identifier: BSD-3-Clause
"""Latents, ellipses and the planes that they are shown in."""

import time

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from sksvae.plotting import LatentSpaceDisplay
from sksvae.plotting._components import state_moments
from sksvae.plotting._palette import state_colors

from .cases import dynamics, mixture


def gaussians(rng, n_components, dim, n_rows=300):
    means = 4.0 * rng.normal(size=(n_components, dim))
    roots = 0.5 * rng.normal(size=(n_components, dim, dim))
    covariances = roots @ roots.mT + 0.2 * np.eye(dim)
    labels = rng.integers(n_components, size=n_rows)
    noise = rng.normal(size=(n_rows, dim, 1))
    latents = means[labels] + (np.linalg.cholesky(covariances)[labels] @ noise)[..., 0]
    return latents, labels, means, covariances


def outline(ellipse):
    """Points on an ellipse, as it is drawn."""
    return ellipse.get_patch_transform().transform(ellipse.get_path().vertices[:-1])


@pytest.mark.parametrize("dim", [2, 5])
def test_ellipses_are_contours_of_the_projected_gaussians(rng, dim):
    latents, labels, means, covariances = gaussians(rng, 4, dim)
    display = LatentSpaceDisplay(latents, labels=labels, means=means, covariances=covariances).plot(
        n_std=(1.0, 2.0, 3.0)
    )
    W, center = display.projection_, display.center_
    for k, ellipses in enumerate(display.ellipses_):
        projected = W @ covariances[k] @ W.T
        roots = np.sqrt(np.linalg.eigvalsh(projected))
        mean = W @ (means[k] - center)
        for n, ellipse in zip((1, 2, 3), ellipses, strict=True):
            assert_allclose([ellipse.height, ellipse.width], 2 * n * roots)
            assert_allclose(ellipse.center, mean)
            away = outline(ellipse)[::3] - mean  # the others are off the curve
            distances = np.einsum("ni,ij,nj->n", away, np.linalg.inv(projected), away)
            assert_allclose(np.sqrt(distances), n, rtol=1e-3)
        assert_array_equal(ellipses[0].get_edgecolor()[:3], state_colors(4)[k])
    assert [text.get_text() for text in display.text_] == list("0123")


def test_points_are_projected_alike_and_have_the_colours_of_their_labels(rng):
    latents, labels, means, covariances = gaussians(rng, 3, 4)
    display = LatentSpaceDisplay(
        latents, labels=labels, means=means, covariances=covariances
    ).plot()
    points = (latents - display.center_) @ display.projection_.T
    drawn = np.asarray(display.scatter_.get_offsets())
    order = np.lexsort(points.T), np.lexsort(drawn.T)
    assert_allclose(drawn[order[1]], points[order[0]])
    colors = display.scatter_.get_facecolors()[order[1], :3]
    assert_allclose(colors, state_colors(3)[labels[order[0]]])


def test_discriminant_axes_are_those_of_scikit_learn(rng):
    latents, labels, _, _ = gaussians(rng, 4, 5, n_rows=2000)
    means, covariances, weights = state_moments(latents, np.eye(4)[labels])
    display = LatentSpaceDisplay(
        latents, means=means, covariances=covariances, weights=weights
    ).plot()
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(latents, labels)
    for ours, theirs in zip(display.projection_, lda.scalings_.T[:2], strict=True):
        assert abs(ours @ theirs) / np.linalg.norm(ours) / np.linalg.norm(theirs) > 1 - 1e-9
    within = np.einsum("k,kij->ij", weights, covariances)
    assert_allclose(display.projection_ @ within @ display.projection_.T, np.eye(2), atol=1e-9)
    share = round(100 * lda.explained_variance_ratio_[0])
    assert display.ax_.get_xlabel() == f"discriminant axis 1 ({share} %)"


def test_principal_axes(rng):
    latents = rng.normal(size=(500, 3)) * [1.0, 5.0, 2.0]
    display = LatentSpaceDisplay(latents).plot()  # no components
    values, vectors = np.linalg.eigh(np.cov(latents.T))
    assert_allclose(np.abs(display.projection_), np.abs(vectors.T[::-1][:2]), atol=1e-9)
    assert display.ax_.get_xlabel().startswith("principal axis 1 (")
    assert f"({100 * values[1] / values.sum():.0f} %)" in display.ax_.get_ylabel()
    assert np.all(display.projection_[[0, 1], np.abs(display.projection_).argmax(1)] > 0)


def test_planes_by_choice(rng):
    latents, _, means, covariances = gaussians(rng, 3, 4)
    display = LatentSpaceDisplay(latents, means=means, covariances=covariances)
    assert_array_equal(display.plot(projection=(3, 1)).projection_, np.eye(4)[[3, 1]])
    assert display.ax_.get_xlabel() == "latent 3"
    W = rng.normal(size=(2, 4))
    assert_array_equal(display.plot(projection=W).projection_, W)
    assert "principal" in display.plot(projection="principal").ax_.get_xlabel()
    two = LatentSpaceDisplay(latents, means=means[:2], covariances=covariances[:2])
    assert "principal" in two.plot().ax_.get_xlabel()
    with pytest.raises(ValueError, match="projection='discriminant' needs three or more"):
        two.plot(projection="discriminant")


@pytest.mark.parametrize("projection", ["tsne", (0, 0), (0, 4), np.eye(3), (0, 1, 2)])
def test_planes_that_are_none(rng, projection):
    with pytest.raises(ValueError, match="projection must"):
        LatentSpaceDisplay(rng.normal(size=(5, 4))).plot(projection=projection)


def test_a_mixture_has_its_own_ellipses(rng):
    X = rng.normal(size=(40, 2))
    display = LatentSpaceDisplay.from_estimator(mixture(), X)
    assert_array_equal(display.means, mixture().means_)
    assert_array_equal(display.covariances, mixture().covariances_)
    assert_array_equal(display.labels, X[:, 0] <= 0)


def test_states_have_those_of_their_latents(rng):
    X = rng.normal(size=(2, 40, 3))
    display = LatentSpaceDisplay.from_estimator(dynamics(), X)
    stacked = X.reshape(-1, 3)
    for k, part in enumerate((stacked[stacked[:, 0] <= 0], stacked[stacked[:, 0] > 0])):
        assert_allclose(display.means[k], part[:, :2].mean(0))
        assert_allclose(display.covariances[k], np.cov(part[:, :2].T, bias=True))
        assert_allclose(display.weights[k], len(part) / 80)


def test_a_state_that_does_not_occur_is_not_drawn(rng):
    X = np.abs(rng.normal(size=(1, 40, 3)))
    display = LatentSpaceDisplay.from_estimator(dynamics(), X)
    assert display.ellipses_[0] == []
    assert [text.get_text() for text in display.text_] == ["1"]


def test_classes_have_a_legend_and_ellipses_no_colour(rng):
    X = rng.normal(size=(6, 2))
    y = np.array(["cat", "dog", "cat", "owl", "dog", "cat"])
    display = LatentSpaceDisplay.from_estimator(mixture(), X, y=y)
    names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert names == ["cat", "dog", "owl"]
    assert display.ellipses_[0][0].get_edgecolor()[:3] == (0, 0, 0)
    X, y = rng.normal(size=(4, 2)), [0, 0, 1, 1]  # a table in the order of groups
    display = LatentSpaceDisplay.from_estimator(dynamics(), X, y=y, groups=[0, 1, 0, 1])
    assert_array_equal(display.labels, [0, 1, 0, 1])
    display = LatentSpaceDisplay.from_estimator(dynamics(), X[None], y=[[0, 0, 1, 2]])
    assert_array_equal(display.labels, [0, 0, 1, 2])


def test_styles(rng):
    display = LatentSpaceDisplay(
        rng.normal(size=(6, 2)), means=[[0, 0]], covariances=[np.eye(2)]
    ).plot(scatter_kw={"s": 50}, ellipse_kw={"linestyle": "--"}, include_numbers=False)
    assert display.scatter_.get_sizes() == [50]
    assert display.ellipses_[0][0].get_linestyle() == "--"
    assert display.text_ == []
    assert display.ellipses_[0][0].get_edgecolor()[:3] == to_rgb("black")


def test_fifty_components_and_many_points_are_quick(rng):
    latents, labels, means, covariances = gaussians(rng, 50, 6, n_rows=50_000)
    start = time.perf_counter()
    display = LatentSpaceDisplay(
        latents, labels=labels, means=means, covariances=covariances
    ).plot()
    display.figure_.canvas.draw()
    assert time.perf_counter() - start < 5
    assert len(display.ellipses_) == len(display.text_) == 50
    assert display.scatter_.get_rasterized()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": np.zeros((3, 1))}, "latents must have a row and at least two columns.*histog"),
        ({"latents": np.zeros((0, 2))}, "latents must have a row"),
        ({"latents": [[0, np.inf]]}, "latents contains infinity"),
        ({"labels": [0]}, r"labels must have shape \(2,\)"),
        ({"labels": ["a", "b"]}, "labels must be numbers of components.*labels_are_components"),
        ({"means": np.zeros((1, 2))}, "means and covariances must be given together"),
        (
            {"means": np.zeros((1, 2)), "covariances": np.zeros((2, 2, 2))},
            r"covariances must have shape \(1, 2, 2\)",
        ),
        (
            {"means": np.zeros((1, 2)), "covariances": np.ones((1, 2, 2)), "weights": [0]},
            "weights must not be negative, and not all be zero",
        ),
        (
            {"means": np.zeros((1, 2)), "covariances": np.ones((1, 2, 2)), "labels": [0, 1]},
            "labels must be numbers of components",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatentSpaceDisplay(**{"latents": np.zeros((2, 2)), **arguments})


def test_classes_of_the_wrong_number(rng):
    with pytest.raises(ValueError, match="y must have 6 entries, one per row, got 5"):
        LatentSpaceDisplay.from_estimator(mixture(), rng.normal(size=(6, 2)), y=np.zeros(5))
