# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics on series that look hard: constants, trends, roots on the unit circle, scales."""

import numpy as np
import pytest

from .linear_dynamics_cases import assert_usable, fitted, quick, ragged, rotation

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # nothing overflows unseen
]

X = rotation(2, 30)
TIME = np.arange(60.0)[:, None]
RNG = np.random.default_rng(0)
HARD = {
    "two steps": X[0, :2],
    "sequences of one step": list(X[0, :, None]),
    "sequences of one step in an array": X[0, :, None],
    "one long and many short": [X[0], *X[1, :5, None]],
    "a constant series": np.full((30, 2), 0.1),
    "zeros": np.zeros((30, 2)),
    "a constant column": np.concatenate([X, np.full((2, 30, 1), 7.0)], -1),
    "a linear trend": TIME * [1.0, -2.0],
    "a noisy trend": TIME + RNG.normal(size=(60, 2)),
    "a parabola": TIME**2,
    "an exponential": np.exp(0.3 * TIME),
    "random walks": np.cumsum(RNG.normal(size=(60, 2)), 0),
    "a double sum": np.cumsum(np.cumsum(RNG.normal(size=(60, 1)), 0), 0),
    "a jump": (TIME > 30).astype(float),
    "an impulse": (TIME == 30).astype(float),
    "alternating signs": (-1.0) ** TIME,
    "a pure sine": np.sin(0.3 * TIME),
    "white noise": RNG.normal(size=(60, 2)),
    "duplicated steps": np.repeat(X[0, :3], 10, axis=0),
    "columns on many scales": X * [1e-8, 1.0, 1e8],
    "huge": X * 1e300,
    "tiny": X * 1e-300,
    "far from zero": X + 1e8,
    "single precision": X.astype(np.float32),
    "half precision": X.astype(np.float16),
    "integers": (10 * X).astype(int),
    "booleans": X > 2,
    "Fortran order": np.asfortranarray(X),
    "reversed": X[:, ::-1],
    "one column": X[..., :1],
    "more columns than steps": RNG.normal(size=(8, 30)).cumsum(0),
    "an outlier": np.concatenate([X[0], [[1e9, 0, 0]], X[1]]),
    "collinear columns": X @ np.ones((3, 3)),
}


@pytest.mark.parametrize("series", HARD.values(), ids=list(HARD))
def test_hard_series(series):
    estimator = quick(rows="consecutive", max_iter=1).fit(series)
    assert_usable(estimator, series)
    assert 0 <= estimator.spectral_radius_ < 1.5


@pytest.mark.parametrize("name", ["a linear trend", "a noisy trend", "random walks"])
def test_roots_near_the_unit_circle(name):
    """Forecasts go on from where the series ends, and do not explode."""
    series = HARD[name]
    estimator = quick(rows="consecutive", hidden_layer_sizes=(), max_iter=5).fit(series)
    assert 0.8 < estimator.spectral_radius_ < 1.1
    mean, std = estimator.forecast(series, 10)
    spread = series.std(0)
    assert (np.abs(mean[0] - series[-1]) < spread).all()
    assert (np.abs(mean - series[-1]) < 3 * spread).all()
    assert (np.diff(std, axis=0) > -1e-6 * spread).all()


def test_a_constant_series_is_forecast_as_such():
    series = np.full((30, 2), 7.0)
    mean, _ = quick(rows="consecutive").fit(series).forecast(series, 5)
    np.testing.assert_allclose(mean, 7.0, atol=0.3)


def test_unstable_dynamics_are_told_by_the_spectral_radius():
    estimator = fitted().replace_dynamics(transition_matrix=1.3 * np.eye(2))
    assert estimator.spectral_radius_ == pytest.approx(1.3)
    with pytest.warns(RuntimeWarning, match=r"unstable: .* radius 1\.3, .* up to 4\.98e\+05 times"):
        mean, std = estimator.forecast(X, 50)
    assert np.isfinite(mean).all()
    assert (std[:, -1] > 1e3 * std[:, 0]).all()
    for n_draws in (None, 2):
        with (
            pytest.raises(OverflowError, match=r"spectral radius 1\.3, .*fewer steps"),
            pytest.warns(RuntimeWarning, match="up to inf times in n_steps=10000"),
        ):
            estimator.forecast(X, 10_000, n_draws)


@pytest.mark.filterwarnings("error:.*not writable.*:UserWarning")
def test_arrays_that_torch_cannot_wrap():
    frozen = X.copy()
    frozen.flags.writeable = False
    estimator = fitted()
    np.testing.assert_array_equal(estimator.transform(frozen), estimator.transform(X))
    quick().fit(frozen)
    latents = estimator.transform(X)
    expected = estimator.inverse_transform(latents)
    latents.flags.writeable = False
    np.testing.assert_array_equal(estimator.inverse_transform(latents), expected)
    prior = np.eye(2)[::-1, ::-1]
    prior.flags.writeable = False
    quick(noise_covariance_prior=prior).fit(frozen)


@pytest.mark.parametrize("latent_dim", [1, 4, 20])
def test_any_number_of_latents(latent_dim):
    sequences = ragged()
    estimator = quick(latent_dim, hidden_layer_sizes=()).fit(sequences)
    assert_usable(estimator, sequences)
    assert estimator.transform(sequences)[0].shape == (12, latent_dim)


def test_latent_dim_is_ten_if_nothing_is_said():
    estimator = quick(None).fit(X)
    assert estimator.latent_dim_ == 10
    assert estimator.transition_matrix_.shape == (10, 10)


@pytest.mark.parametrize("sequence_length", [1, 2, 7, 1000])
def test_windows_of_any_length(sequence_length):
    sequences = ragged()
    estimator = quick(sequence_length=sequence_length, batch_size=3).fit(sequences)
    assert_usable(estimator, sequences)
    assert estimator.n_samples_seen_ == sum(len(sequence) for sequence in sequences)
