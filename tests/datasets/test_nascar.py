# SPDX-License-Identifier: BSD-3-Clause
"""The laps against the track as documented, written out once more."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.datasets import make_nascar


def radius(latents):
    """Measure the distance from the line between the centres of the turns."""
    beyond = np.maximum(np.abs(latents[..., 0]) - 2, 0)
    return np.hypot(beyond, latents[..., 1])


def next_point(a, b):
    """Move a point by the track's table; also its state."""
    if abs(a) <= 2:
        return (0, a + 0.1, b) if b > 0 else (2, a - 0.25, b)
    state, centre, angle = (1, 2, np.pi / 24) if a > 0 else (3, -2, np.pi / 48)
    point = centre + (a - centre + 1j * b) * np.exp(-1j * angle)
    return state, point.real, point.imag


def test_shapes_and_types():
    for emission in ("linear", "nonlinear"):
        X, states, latents = make_nascar(
            3, n_timesteps=7, n_features=4, emission=emission, return_latents=True, random_state=0
        )
        assert X.shape == (3, 7, 4) and X.dtype == np.float64
        assert states.shape == (3, 7) and states.dtype.kind == "i"
        assert latents.shape == (3, 7, 2) and latents.dtype == np.float64
    assert len(make_nascar(1, n_timesteps=1)) == 2


def test_track_is_closed():
    _, states, latents = make_nascar(
        20, n_timesteps=600, dynamics_noise_std=0, return_latents=True, random_state=0
    )
    lap = 128
    assert_allclose(latents[:, lap:], latents[:, :-lap], atol=1e-9)
    assert_array_equal(states[:, lap:], states[:, :-lap])
    assert np.abs(radius(latents) - 1).max() < 0.002
    for row in states:
        assert_array_equal(np.bincount(row[:lap]), [40, 24, 16, 48])
        assert_array_equal(np.diff(row)[np.diff(row) != 0] % 4, 1)


@pytest.mark.parametrize("std", [0.01, 0.3])  # the larger one leaves the track
def test_each_step_is_that_of_the_place(std):
    _, states, latents = make_nascar(
        2, n_timesteps=1000, dynamics_noise_std=std, return_latents=True, random_state=0
    )
    noise = []
    for row, path in zip(states, latents, strict=True):
        expected = np.array([next_point(*point) for point in path[:-1]])
        assert_array_equal(row[1:], expected[:, 0])
        noise.append(path[1:] - expected[:, 1:])
    noise = np.concatenate(noise)
    assert abs(noise.std() - std) < 4 * std / np.sqrt(2 * noise.size)
    assert_allclose(noise.mean(0), 0, atol=4 * std / np.sqrt(len(noise)))


def test_starts_are_spread_over_the_time_of_a_lap():
    _, states = make_nascar(4000, n_timesteps=1, n_features=1, random_state=0)
    shares = np.bincount(states[:, 0]) / 4000
    assert_allclose(shares, np.array([40, 24, 16, 48]) / 128, atol=4 * 0.5 / np.sqrt(4000))


def test_radius_roams_as_documented():
    _, _, latents = make_nascar(200, n_features=1, return_latents=True, random_state=0)
    last = radius(latents)[:, -1]
    assert abs(last.mean() - 1.06) < 4 * 0.3 / np.sqrt(200)
    assert abs(last.std() - 0.3) < 4 * 0.3 / np.sqrt(2 * 200)


def test_linear_emission_is_a_random_matrix():
    X, _, latents = make_nascar(
        3, n_features=2000, n_timesteps=50, noise_std=0, random_state=0, return_latents=True
    )
    X, latents = X.reshape(-1, 2000), latents.reshape(-1, 2)
    matrix = np.linalg.lstsq(latents, X, rcond=None)[0]
    assert_allclose(latents @ matrix, X, atol=1e-10)
    assert abs(matrix.std() - 1) < 4 / np.sqrt(2 * matrix.size)


def test_nonlinear_emission_is_not_a_matrix():
    X, _, latents = make_nascar(
        5, emission="nonlinear", noise_std=0, return_latents=True, random_state=0
    )
    X, latents = X.reshape(-1, 10), latents.reshape(-1, 2)
    design = np.column_stack([latents, np.ones(len(latents))])
    residual = X - design @ np.linalg.lstsq(design, X, rcond=None)[0]
    assert residual.var() > 0.03 * X.var()


@pytest.mark.parametrize("emission", ["linear", "nonlinear"])
def test_noise_has_its_standard_deviation_and_is_drawn_last(emission):
    setting = {"emission": emission, "n_timesteps": 500, "random_state": 0}
    clean, states = make_nascar(4, noise_std=0, **setting)
    X, same_states = make_nascar(4, noise_std=0.2, **setting)
    assert_array_equal(states, same_states)
    assert abs((X - clean).std() - 0.2) < 4 * 0.2 / np.sqrt(2 * X.size)


def test_emission_does_not_depend_on_the_number_of_sequences():
    matrices = []
    for n_sequences in (1, 4):
        X, _, latents = make_nascar(n_sequences, noise_std=0, return_latents=True, random_state=0)
        X, latents = X.reshape(-1, 10), latents.reshape(-1, 2)
        matrices.append(np.linalg.lstsq(latents, X, rcond=None)[0])
    assert_allclose(*matrices, atol=1e-10)


def test_random_numbers_come_from_the_given_state_only():
    np.random.seed(0)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make_nascar(2, n_timesteps=20, random_state=1)
    second = make_nascar(2, n_timesteps=20, random_state=np.random.RandomState(1))
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    for one, other in zip(first, second, strict=True):
        assert_array_equal(one, other)
    assert not np.array_equal(first[0], make_nascar(2, n_timesteps=20, random_state=2)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sequences": 0},
        {"n_timesteps": 0},
        {"n_features": 0},
        {"emission": "quadratic"},
        {"dynamics_noise_std": -1},
        {"noise_std": np.inf},
        {"return_latents": 2},
        {"random_state": "seed"},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_nascar(**wrong)
