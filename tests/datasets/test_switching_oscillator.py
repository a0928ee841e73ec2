# SPDX-License-Identifier: BSD-3-Clause
"""The generator against its definition; bounds are 4 standard errors of the stated distribution."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neighbors import KNeighborsRegressor

from sksvae.datasets import make_switching_oscillator
from sksvae.datasets.switching_oscillator import draw_smooth_network

CLEAN = {"dynamics_noise_std": 0, "noise_std": 0, "random_state": 0}


def as_complex(latents):
    return latents @ [1, 1j]


def test_shapes_and_types():
    X, states, latents = make_switching_oscillator(
        3, n_timesteps=7, n_features=4, return_latents=True, random_state=0
    )
    assert X.shape == (3, 7, 4) and X.dtype == np.float64
    assert states.shape == (3, 7) and states.dtype.kind == "i"
    assert latents.shape == (3, 7, 2) and latents.dtype == np.float64
    assert len(make_switching_oscillator(1, n_timesteps=1)) == 2


@pytest.mark.parametrize("periods", [None, [8, 16, 32], [-5.5, 9, 40]])
def test_each_state_has_its_frequency_damping_and_centre(periods):
    damping = np.array([0.9, 0.95, 0.99])
    _, states, latents = make_switching_oscillator(
        100, periods=periods, damping=damping, return_latents=True, random_state=0
    )
    points = as_complex(latents)
    for state, centre in enumerate([1, np.exp(2j * np.pi / 3), np.exp(4j * np.pi / 3)]):
        chosen = states[:, 1:] == state
        before, after = points[:, :-1][chosen], points[:, 1:][chosen]
        # Least squares for after = slope * before + offset, all complex.
        design = np.column_stack([before, np.ones_like(before)])
        (slope, offset), *_ = np.linalg.lstsq(design, after, rcond=None)
        noise = after - design @ [slope, offset]
        error = 0.05 * np.sqrt(2 * np.diag(np.linalg.inv(design.conj().T @ design)).real)
        turn = 2 * np.pi / ([8, 16, 32] if periods is None else periods)[state]
        expected = damping[state] * np.exp(1j * turn)
        assert abs(slope - expected) < 4 * error[0]
        assert abs(offset - (1 - expected) * centre) < 4 * error[1]
        coordinates = np.concatenate([noise.real, noise.imag])
        assert abs(coordinates.std() - 0.05) < 4 * 0.05 / np.sqrt(2 * coordinates.size)


@pytest.mark.parametrize("period", [8, -20])
def test_one_undamped_state_is_periodic(period):
    X, states, latents = make_switching_oscillator(
        4, n_states=1, periods=[period], damping=1, return_latents=True, **CLEAN
    )
    assert_array_equal(states, 0)
    assert_allclose(X[:, abs(period) :], X[:, : -abs(period)], atol=1e-9)
    turn = np.angle((as_complex(latents)[:, 1:] - 1) / (as_complex(latents)[:, :-1] - 1))
    assert_allclose(turn, 2 * np.pi / period, atol=1e-9)


def test_spectrum_of_the_observations_peaks_at_the_frequency_of_the_state():
    setting = {"n_timesteps": 256, "mean_segment_length": 1e12, "damping": 1, "centre_radius": 0}
    X, states = make_switching_oscillator(30, periods=[8, 16, 32], **setting, **CLEAN)
    power = np.abs(np.fft.rfft(X - X.mean(1, keepdims=True), axis=1)) ** 2
    # Harmonics of the bent waves may be larger in a feature, but not in the sum of all.
    assert_array_equal(power.sum(2).argmax(1), np.array([32, 16, 8])[states[:, 0]])


def test_damping_halves_the_distance_in_time():
    _, _, latents = make_switching_oscillator(
        4, n_states=1, damping=0.5 ** (1 / 10), centre_radius=3, return_latents=True, **CLEAN
    )
    distance = np.abs(as_complex(latents) - 3)
    assert_allclose(distance[:, 10:] / distance[:, :-10], 0.5, rtol=1e-6)


def test_chain_is_sticky_and_uniform():
    _, states = make_switching_oscillator(
        200, n_timesteps=1000, n_states=4, n_features=1, random_state=0
    )
    switched = states[:, 1:] != states[:, :-1]
    assert abs(switched.mean() - 1 / 40) < 4 * np.sqrt(0.025 * 0.975 / switched.size)
    counts = np.zeros((4, 4))
    np.add.at(counts, (states[:, :-1][switched], states[:, 1:][switched]), 1)
    assert np.all(np.diag(counts) == 0)
    shares = counts[~np.eye(4, dtype=bool)] / counts.sum()
    assert_allclose(shares, 1 / 12, atol=4 * np.sqrt(11 / 12**2 / counts.sum()))
    first = np.bincount(states[:, 0], minlength=4) / 200
    assert_allclose(first, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 200))


def test_segments_of_one_step_switch_always():
    _, states = make_switching_oscillator(
        5, n_states=2, mean_segment_length=1, n_timesteps=50, random_state=0
    )
    assert_array_equal(np.abs(np.diff(states, axis=1)), 1)


def test_network_is_smooth_and_bounded():
    rng = np.random.RandomState(0)
    network = draw_smooth_network(10, rng)
    points = rng.standard_normal((2000, 2))
    outputs = network(points)
    assert outputs.shape == (2000, 10)
    assert_allclose(network(points.reshape(4, 500, 2)), outputs.reshape(4, 500, 10), rtol=1e-12)
    assert outputs.var() == pytest.approx(0.6, rel=0.5)
    change = np.linalg.norm(network(points + np.array([1e-4, 0])) - outputs, axis=1)
    assert change.max() < 20 * 1e-4
    assert np.all(np.isfinite(network(1e9 * points)))


def test_latents_can_be_told_from_the_observations_but_not_linearly_exactly():
    X, _, latents = make_switching_oscillator(noise_std=0.1, return_latents=True, random_state=0)
    X, latents = X[:40].reshape(-1, 10), latents[:40].reshape(-1, 2)
    train, test = slice(None, 6000), slice(6000, None)
    nearest = KNeighborsRegressor(10).fit(X[train], latents[train])
    assert nearest.score(X[test], latents[test]) > 0.95
    design = np.column_stack([latents, np.ones(len(latents))])
    residual = X - design @ np.linalg.lstsq(design, X, rcond=None)[0]
    assert residual.var() > 3 * 0.1**2  # the noise alone would leave 0.1^2


def test_noise_has_its_standard_deviation_and_is_drawn_last():
    setting = {"return_latents": True, "random_state": 0}
    clean, states, latents = make_switching_oscillator(10, noise_std=0, **setting)
    X, same_states, same_latents = make_switching_oscillator(10, noise_std=0.3, **setting)
    assert_array_equal(states, same_states)
    assert_array_equal(latents, same_latents)
    assert abs((X - clean).std() - 0.3) < 4 * 0.3 / np.sqrt(2 * X.size)


def test_random_numbers_come_from_the_given_state_only():
    np.random.seed(0)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make_switching_oscillator(2, random_state=1)
    second = make_switching_oscillator(2, random_state=np.random.RandomState(1))
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    for one, other in zip(first, second, strict=True):
        assert_array_equal(one, other)
    assert not np.array_equal(first[0], make_switching_oscillator(2, random_state=2)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sequences": 0},
        {"n_timesteps": 0},
        {"n_features": 0},
        {"n_states": 0},
        {"mean_segment_length": 0.9},
        {"periods": 8},
        {"periods": [8, 9]},
        {"periods": [8, 9, 1]},
        {"periods": [8, 9, np.nan]},
        {"damping": 0},
        {"damping": 1.1},
        {"damping": [0.9, 0.9]},
        {"damping": [0.9, 0.9, 1.1]},
        {"centre_radius": -1},
        {"dynamics_noise_std": -1},
        {"noise_std": -1},
        {"return_latents": None},
        {"random_state": "seed"},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_switching_oscillator(**wrong)
