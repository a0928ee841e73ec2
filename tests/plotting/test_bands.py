# SPDX-License-Identifier: BSD-3-Clause
"""Forecasts and imputations."""

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from sksvae.plotting import ForecastDisplay, ImputationDisplay

from .cases import dynamics

NAN = np.nan


def band(collection):
    """Lower and upper end at each step of a band that has no gaps."""
    (path,) = collection.get_paths()
    x, y = path.vertices.T
    return [[function(y[x == step]) for step in np.unique(x)] for function in (min, max)]


# ---- forecasts ----


def test_a_normal_band(rng):
    history, mean, std = (
        rng.normal(size=(30, 2)),
        rng.normal(size=(5, 2)),
        rng.uniform(1, 2, (5, 2)),
    )
    display = ForecastDisplay.from_predictions(history, mean, std=std, coverage=0.8)
    expected = stats.norm.interval(0.8, mean, std)
    assert_allclose([display.lower, display.upper], expected)
    for i in range(2):
        assert_allclose(band(display.bands_[i]), [part[:, i] for part in expected])
        assert_array_equal(display.lines_[i].get_ydata()[-5:], mean[:, i])
        assert np.isnan(display.lines_[i].get_ydata()[:-5]).all()
        assert_array_equal(display.observed_lines_[i].get_ydata()[:15], history[-15:, i])
        assert_array_equal(display.lines_[i].get_xdata(), np.arange(15, 35))
    assert display.axes_[-1].get_xlim() == (14.5, 34.5)  # three times the forecast
    names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert names == ["observed", "forecast", "80 % band"]
    assert [ax.get_ylabel() for ax in display.axes_] == ["feature 0", "feature 1"]


def test_a_band_of_quantiles(rng):
    draws = rng.normal(size=(200, 5, 1))
    truth = rng.normal(size=5)
    display = ForecastDisplay.from_predictions(
        rng.normal(size=30), draws.mean(0), draws=draws, truth=truth, feature_names=["level (m)"]
    )
    assert_allclose(band(display.bands_[0]), np.quantile(draws[..., 0], [0.05, 0.95], axis=0))
    assert_array_equal(display.truth_lines_[0].get_ydata()[-5:], truth)
    assert display.ax_.get_ylabel() == "level (m)"


def test_the_forecast_of_an_estimator(rng):
    X = rng.normal(size=(3, 20, 2))
    display = ForecastDisplay.from_estimator(dynamics(), X, 4, sequence=1)
    assert_array_equal(display.history, X[1])
    assert_array_equal(display.mean, np.tile(X[1, -1], (4, 1)))
    assert_allclose(display.upper - display.mean, 0.5 * stats.norm.ppf(0.95))
    display = ForecastDisplay.from_estimator(dynamics(), X, 4, sequence=1, n_draws=11)
    assert_allclose(display.mean - X[1, -1], 5.0)  # the known draws are 0 ... 10 apart
    assert_allclose(display.lower - X[1, -1], 0.5)


def test_no_band_and_one_feature():
    display = ForecastDisplay.from_predictions([1.0, 2.0, NAN], [3.0], n_history=2)
    assert display.bands_ == []
    assert display.lower is display.coverage is None
    assert_array_equal(display.observed_lines_[0].get_ydata(), [2.0, NAN, NAN])
    assert display.ax_.get_ylabel() == "value"


def test_heat_maps(rng):
    history, mean, truth = (rng.normal(size=(n, 8)) for n in (30, 10, 10))
    display = ForecastDisplay.from_predictions(history, mean, truth=truth, time_label="frame")
    above, below = (np.asarray(mesh.get_array()) for mesh in display.meshes_)
    assert_array_equal(above, np.concatenate([history, truth]).T)
    assert_array_equal(below, np.concatenate([history, mean]).T)
    assert display.meshes_[0].get_clim() == display.meshes_[1].get_clim()
    assert [ax.get_title(loc="left") for ax in display.axes_] == ["truth", "forecast"]
    assert display.axes_[1].get_xlabel() == "frame"
    assert len(display.plot(kind="lines").lines_) == 4
    assert len(display.plot(features=[7]).lines_) == 1


def test_features_by_name(rng):
    display = ForecastDisplay(rng.normal(size=(9, 3)), np.zeros((2, 3)), feature_names=list("abc"))
    display.plot(features=["c", 0])
    assert [ax.get_ylabel() for ax in display.axes_] == ["c", "a"]
    assert len(display.plot(features="b").axes_) == 1
    with pytest.raises(ValueError, match=r"features has 'd', which is not one of \['a', 'b', 'c'"):
        display.plot(features="d")
    with pytest.raises(ValueError, match="features must be integers below 3"):
        display.plot(features=3)


def test_dates():
    dates = np.datetime64("2020-01-01") + np.arange(12)
    display = ForecastDisplay.from_predictions(np.zeros(10), np.zeros(2), times=dates)
    display.figure_.canvas.draw()
    assert display.ax_.get_xticklabels()[-1].get_text() == "12"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": np.zeros((0, 1))}, "history is empty"),
        ({"mean": np.zeros((2, 3))}, r"mean must have shape \(any, 1\), got \(2, 3\)"),
        ({"mean": [NAN, 0.0]}, "mean contains NaN"),
        ({"std": [1.0]}, "std must have shape"),
        ({"std": [1.0, -1.0]}, "std must not be negative"),
        ({"draws": np.zeros((5, 3, 1))}, r"draws must have shape \(any, 2, 1\)"),
        ({"draws": np.zeros((0, 2))}, "draws is empty"),
        ({"std": [1.0, 1.0], "draws": np.zeros((5, 2))}, "std and draws cannot both be given"),
        ({"truth": [1.0]}, "truth must have shape"),
        ({"coverage": 90}, "coverage must be between 0 and 1, got 90"),
        ({"n_history": 0}, "n_history must be at least 1, got 0"),
        ({"times": [0.0]}, r"times must have shape \(5,\)"),
        ({"kind": "pie"}, "kind must be one of"),
    ],
)
def test_errors_of_forecasts(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForecastDisplay.from_predictions(
            **{"history": np.zeros(3), "mean": np.zeros(2), **arguments}
        )


def test_half_a_band():
    with pytest.raises(ValueError, match="lower and upper must be given together"):
        ForecastDisplay(np.zeros(3), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="lower and upper must be given together"):
        ImputationDisplay(np.zeros(3), np.zeros(3), None, np.zeros(3))


# ---- imputations ----


def test_gaps_are_drawn_and_joined_to_what_was_observed():
    observed = np.array([0.0, NAN, NAN, 3.0, 4.0, 5.0, NAN, 7.0])
    filled = np.array([0.0, 1.5, 2.5, 3.0, 4.0, 5.0, 6.5, 7.0])
    std = np.where(np.isnan(observed), 1.0, 0.0)
    display = ImputationDisplay.from_predictions(
        observed, filled, std=std, truth=np.arange(8.0) + 0.1
    )
    assert_array_equal(display.lines_[0].get_ydata(), [0, 1.5, 2.5, 3, NAN, 5, 6.5, 7])
    assert_allclose(display.truth_lines_[0].get_ydata(), [0, 1.1, 2.1, 3, NAN, 5, 6.1, 7])
    assert_array_equal(display.observed_lines_[0].get_ydata(), observed)
    corners = np.concatenate([path.vertices for path in display.bands_[0].get_paths()])
    reach = stats.norm.ppf(0.95)
    assert_allclose(corners[corners[:, 0] == 1, 1], [1.5 - reach, 1.5 + reach])
    assert np.all(corners[corners[:, 0] == 3, 1] == 3.0)
    assert not np.any(corners[:, 0] == 4)


def test_the_imputation_of_an_estimator(rng):
    X = rng.normal(size=(2, 20, 3))
    X[1, 5:8] = X[1, 12, 0] = NAN
    display = ImputationDisplay.from_estimator(dynamics(), X, sequence=1, n_draws=11, coverage=0.8)
    missing = np.isnan(X[1])
    assert np.all(display.filled[missing] == 7.0)
    assert_allclose(display.lower[missing], 1.0)  # the known draws are 0 ... 10
    assert_allclose(display.upper[missing], 9.0)
    assert_array_equal(display.upper[~missing], X[1][~missing])
    assert len(display.lines_) == 3
    none = ImputationDisplay.from_estimator(dynamics(), X, sequence=1, n_draws=None)
    assert none.bands_ == []


def test_heat_maps_of_imputations(rng):
    truth = rng.normal(size=(20, 8))
    observed = np.where(rng.random((20, 8)) < 0.2, NAN, truth)
    display = ImputationDisplay.from_predictions(observed, np.nan_to_num(observed), truth=truth)
    assert [ax.get_title(loc="left") for ax in display.axes_] == ["truth", "observed", "imputed"]
    assert_array_equal(np.ma.filled(display.meshes_[1].get_array(), NAN), observed.T)
    assert len(display.plot(kind="heatmap", steps=(5, 9)).meshes_[0].get_array()[0]) == 4


def test_a_stretch():
    observed = np.where(np.arange(100) % 10 == 0, NAN, 1.0)
    display = ImputationDisplay.from_predictions(observed, np.ones(100), steps=(20, 40))
    assert display.lines_[0].get_xdata().tolist() == list(range(20, 40))
    assert display.ax_.get_xlim() == (19.5, 39.5)
    for steps in [(0, 101), (5, 5), (-1, 5)]:
        with pytest.raises(ValueError, match="steps must be a range within 0 and 100"):
            display.plot(steps=steps)


def test_a_long_imputation_is_quick(rng):
    observed = rng.normal(size=(100_000, 4))
    observed[::1000] = NAN
    start = time.perf_counter()
    display = ImputationDisplay.from_predictions(observed, np.nan_to_num(observed))
    display.figure_.canvas.draw()
    assert time.perf_counter() - start < 5
    assert display.observed_lines_[0].get_xdata().size == 4000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filled": [0.0]}, r"filled must have shape \(3, 1\), got \(1, 1\)"),
        ({"filled": [0.0, NAN, 0.0]}, "filled contains NaN"),
        ({"truth": [0.0]}, "truth must have shape"),
        ({"feature_names": ["a", "b"]}, "feature_names must have 1 entries, got 2"),
    ],
)
def test_errors_of_imputations(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImputationDisplay.from_predictions(
            **{"observed": [0.0, NAN, 1.0], "filled": np.zeros(3), **arguments}
        )
