# SPDX-License-Identifier: BSD-3-Clause
"""The generators against their definitions, and the exact density against independent oracles."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal, norm
from sklearn.mixture import GaussianMixture

from sksvae.datasets import make_pinwheel, pinwheel_log_density

# The default; strongly curved; turning the other way; and wound so far that it folds over itself.
DEFAULT = {}
CURVED = {"rate": 0.35}
LEFT = {"rate": -0.4, "n_arms": 3, "radial_std": 0.4, "tangential_std": 0.1, "scale": 2.0}
FOLDED = {"rate": 2.0, "n_arms": 3, "radial_std": 0.3, "tangential_std": 0.3, "scale": 1.0}
SHAPES = [
    pytest.param(DEFAULT, id="default"),
    pytest.param(CURVED, id="curved"),
    pytest.param(LEFT, id="left"),
    pytest.param(FOLDED, id="folded"),
]


def grid(half_width, n_cells, rng):
    """Make one random point in each cell of a square grid, and the area of a cell."""
    width = 2 * half_width / n_cells
    corner = np.stack(np.meshgrid(*[np.arange(n_cells)] * 2), axis=-1).reshape(-1, 2)
    return (corner + rng.random(corner.shape)) * width - half_width, width**2


def turn(flat, arm, n_arms, rate):
    """Bend rows of one arm, written as a rotation matrix per row."""
    angle = 2 * np.pi * arm / n_arms + rate * np.exp(flat[:, 0])
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.einsum("ijn,nj->ni", rotation, flat)


@pytest.mark.parametrize("shape", SHAPES)
def test_make_pinwheel_follows_its_definition(shape):
    shape = {"n_arms": 5, "rate": 0.25, "scale": 10.0, **shape}
    X, y = make_pinwheel(7, shuffle=False, random_state=3, **shape)
    stds = [shape.get("radial_std", 0.3), shape.get("tangential_std", 0.05)]
    flat = np.random.RandomState(3).standard_normal((7 * shape["n_arms"], 2)) * stds + [1, 0]
    assert_array_equal(y, np.repeat(np.arange(shape["n_arms"]), 7))
    expected = shape["scale"] * turn(flat, y, shape["n_arms"], shape["rate"])
    assert_allclose(X, expected, rtol=0, atol=1e-13 * shape["scale"])


def test_make_pinwheel_shuffles_rows_with_their_labels():
    ordered, arms = make_pinwheel(50, shuffle=False, random_state=0)
    X, y = make_pinwheel(50, random_state=0)
    assert not np.array_equal(y, arms)
    order, expected = np.lexsort(X.T), np.lexsort(ordered.T)
    assert_array_equal(X[order], ordered[expected])
    assert_array_equal(y[order], arms[expected])


def test_make_pinwheel_has_the_stated_moments():
    # A turn keeps the norm, so E|x|^2 = scale^2 (1 + r^2 + s^2). Bound: 5 standard errors.
    X, _ = make_pinwheel(20_000, random_state=0)
    squared_norm = np.sum(X**2, axis=1)
    standard_error = squared_norm.std() / np.sqrt(squared_norm.size)
    assert abs(squared_norm.mean() - 100 * (1 + 0.3**2 + 0.05**2)) < 5 * standard_error


def test_make_pinwheel_draws_the_same_numbers_in_both_precisions():
    X64, y64 = make_pinwheel(20, random_state=0)
    for dtype in ("float32", np.float32, np.dtype(np.float32)):
        X32, y32 = make_pinwheel(20, random_state=0, dtype=dtype)
        assert X32.dtype == np.float32
        assert_array_equal(X32, X64.astype(np.float32))
        assert_array_equal(y32, y64)


def test_make_pinwheel_uses_only_the_given_random_state():
    np.random.seed(0)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, _ = make_pinwheel(20, random_state=1)
    second, _ = make_pinwheel(20, random_state=np.random.RandomState(1))
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert_array_equal(first, second)
    assert not np.array_equal(first, make_pinwheel(20, random_state=2)[0])


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_samples_per_arm": 0},
        {"n_arms": 2.5},
        {"radial_std": 0},
        {"tangential_std": -1},
        {"rate": np.inf},
        {"scale": 0},
        {"random_state": "seed"},
        {"dtype": "int64"},
    ],
    ids=str,
)
def test_make_pinwheel_names_a_bad_argument(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        make_pinwheel(**parameters)


def test_make_pinwheel_rejects_an_integer_dtype():
    with pytest.raises(ValueError, match="floating point"):
        make_pinwheel(dtype=np.int64)


def test_density_of_one_straight_arm_is_the_gaussian():
    X, _ = make_pinwheel(500, n_arms=1, rate=0, scale=2, random_state=0)
    expected = multivariate_normal([2, 0], np.diag([0.6, 0.1]) ** 2).logpdf(X)
    assert_allclose(pinwheel_log_density(X, n_arms=1, rate=0, scale=2), expected, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.25, -0.25, 0.6])
def test_density_is_the_change_of_variables(rate):
    # Within the radius where nothing folds each arm has one preimage, and the determinant of the
    # turn comes from central differences.
    rng = np.random.default_rng(0)
    flat = rng.normal([0.6, 0], [0.2, 0.1], size=(200, 2))
    step, columns = 1e-6, []
    for axis in np.eye(2):
        ahead, behind = flat + step * axis, flat - step * axis
        columns.append((turn(ahead, 0, 1, rate) - turn(behind, 0, 1, rate)) / (2 * step))
    determinant = np.linalg.det(np.stack(columns, axis=-1))
    assert determinant.min() > 0
    log_flat = norm(1, 0.3).logpdf(flat[:, 0]) + norm(0, 0.05).logpdf(flat[:, 1])
    computed = pinwheel_log_density(turn(flat, 0, 1, rate), n_arms=1, rate=rate, scale=1)
    assert_allclose(computed, log_flat - np.log(determinant), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("shape", "half_width"), [(DEFAULT, 30), (CURVED, 30), (LEFT, 7)])
def test_density_integrates_to_one(shape, half_width):
    n_cells = 300
    width = 2 * half_width / n_cells
    centre = (np.arange(n_cells) + 0.5) * width - half_width
    X = np.stack(np.meshgrid(centre, centre), axis=-1).reshape(-1, 2)
    # Smooth and gone at the border, so that the midpoint rule converges geometrically.
    assert_allclose(np.exp(pinwheel_log_density(X, **shape)).sum() * width**2, 1, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_density_agrees_with_the_generator(shape):
    # E[1{p(x) > c} / p(x)] is the area where p > c, whatever folds and overlaps: two estimates of
    # that area, one from the generator, one from a grid, within 5 standard errors of both.
    X, _ = make_pinwheel(8_000, random_state=0, **shape)
    log_density = pinwheel_log_density(X, **shape)
    level = np.quantile(log_density, 0.1)
    weights = np.where(log_density > level, np.exp(-log_density), 0)
    half_width = 1.01 * np.abs(X[log_density > level]).max()
    cells, cell_area = grid(half_width, 200, np.random.default_rng(1))
    inside = pinwheel_log_density(cells, **shape) > level
    error = np.hypot(
        weights.std() / np.sqrt(weights.size), cell_area * np.sqrt(inside.size) * inside.std()
    )
    assert error < 0.03 * weights.mean()
    assert abs(weights.mean() - cell_area * inside.sum()) < 5 * error


@pytest.mark.parametrize("shape", SHAPES)
def test_density_has_the_symmetries_of_the_pinwheel(shape):
    rng = np.random.default_rng(0)
    shape = {"n_arms": 5, "rate": 0.25, "scale": 10.0, **shape}
    X = rng.normal(scale=shape["scale"], size=(300, 2))
    expected = pinwheel_log_density(X, **shape)
    angle = 2 * np.pi / shape["n_arms"]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert_allclose(pinwheel_log_density(X @ rotation, **shape), expected, rtol=1e-8)
    mirrored = pinwheel_log_density(X * [1, -1], **{**shape, "rate": -shape["rate"]})
    assert_allclose(mirrored, expected, rtol=1e-8)
    scaled = pinwheel_log_density(3 * X, **{**shape, "scale": 3 * shape["scale"]})
    assert_allclose(scaled, expected - 2 * np.log(3), rtol=1e-8)


def test_density_at_the_origin_has_every_arm():
    expected = norm(1, 0.3).logpdf(0) + norm(0, 0.05).logpdf(0)
    computed = pinwheel_log_density([[0.0, 0.0]], scale=1)
    assert_allclose(computed, expected, rtol=1e-12)


def test_density_is_finite_far_out_and_refuses_what_it_cannot_sum():
    far = pinwheel_log_density([[50.0, 0.0], [0.0, 90.0], [0.0, 0.0]])
    assert np.all(np.isfinite(far))
    with pytest.raises(ValueError, match="the first is row 1"):
        pinwheel_log_density([[0.0, 0.0], [0.0, 1e300]])
    assert np.isfinite(pinwheel_log_density([[0.0, 1e3]], rate=0)).all()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[0.0, 1.0, 2.0]], "2 columns"),
        ([[0.0, np.nan]], "NaN"),
        ([0.0, 1.0], "2D array"),
        (np.empty((0, 2)), "0 sample"),
    ],
)
def test_density_names_bad_input(X, message):
    with pytest.raises(ValueError, match=message):
        pinwheel_log_density(X)


def test_density_bounds_what_a_mixture_reaches():
    # Means over 5 pairs of training and test sets of 1,000 rows. The pairs scatter by 0.1 at most,
    # so that the means are within 0.15 of the values seen over many: -6.01, -5.12 and -4.85.
    scores = []
    for seed in range(5):
        train, _ = make_pinwheel(random_state=seed)
        test, _ = make_pinwheel(random_state=100 + seed)
        scores.append(
            [GaussianMixture(k, random_state=0).fit(train).score(test) for k in (5, 20)]
            + [pinwheel_log_density(test).mean()]
        )
    assert_allclose(np.mean(scores, axis=0), [-6.01, -5.12, -4.85], rtol=0, atol=0.15)
    assert np.all(np.diff(scores, axis=1) > 0)


def test_mean_log_density_is_minus_the_entropy():
    # The entropy of well separated arms, without their overlap and curvature, which are below 0.01
    # here. Bound: that and 4 standard errors.
    log_density = pinwheel_log_density(make_pinwheel(4_000, random_state=0)[0])
    entropy = np.log(2 * np.pi * np.e * 0.3 * 0.05) + np.log(5) + 2 * np.log(10)
    error = log_density.std() / np.sqrt(log_density.size)
    assert abs(log_density.mean() + entropy) < 0.01 + 4 * error
