# SPDX-License-Identifier: BSD-3-Clause
"""The generator against its definition; bounds are 4 standard errors of the stated distribution."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.datasets import make_moving_laplace

# Few points, so that many steps are quick.
MANY = {"n_timesteps": 20_000, "n_features": 2, "return_latents": True, "random_state": 0}


@pytest.fixture(scope="module")
def many():
    _, states, latents = make_moving_laplace(5, **MANY)
    return states, latents


def test_shapes_and_types():
    X, states, latents = make_moving_laplace(
        3, n_timesteps=7, n_features=11, return_latents=True, random_state=0
    )
    assert X.shape == (3, 7, 11) and X.dtype == np.float64
    assert states.shape == (3, 7) and states.dtype.kind == "i"
    assert latents.shape == (3, 7, 2) and latents.dtype == np.float64
    assert len(make_moving_laplace(1, n_timesteps=1)) == 2


def test_defaults_are_the_published_setting():
    X, states = make_moving_laplace(random_state=0)
    assert X.shape == (512, 250, 100)
    assert_array_equal(np.unique(states), [0, 1, 2, 3])


def test_observations_are_the_formula_of_the_latents():
    X, _, latents = make_moving_laplace(
        2, n_timesteps=30, n_features=9, noise_std=0, return_latents=True, random_state=0
    )
    for sequence, path in zip(X, latents, strict=True):
        for x, (m, raw) in zip(sequence, path, strict=True):
            s = np.log(1 + np.exp(raw))
            grid = np.array([-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2])
            assert_allclose(x, np.sqrt(s + 1) * np.exp(-np.abs(grid - m) / (2 * s)), rtol=1e-12)


def test_noise_has_its_standard_deviation():
    setting = {"n_timesteps": 100, "random_state": 0}
    noise = make_moving_laplace(4, noise_std=0.05, **setting)[0]
    noise -= make_moving_laplace(4, noise_std=0, **setting)[0]
    assert abs(noise.std() - 0.05) < 4 * 0.05 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 4 * 0.05 / np.sqrt(noise.size)


def test_state_says_which_latent_moves_and_where(many):
    states, latents = many
    moves = np.diff(latents, axis=1, prepend=np.full((5, 1, 2), [0.0, -1.0]))
    for state, (quantity, sign, step, std) in enumerate(
        [(0, 1, 0.03, 0.004), (0, -1, 0.03, 0.004), (1, 1, 0.1, 0.01), (1, -1, 0.1, 0.01)]
    ):
        chosen = moves[states == state]
        assert np.all(chosen[:, 1 - quantity] == 0)
        steps = sign * chosen[:, quantity]
        assert abs(steps.mean() - step) < 4 * std / np.sqrt(steps.size)
        assert abs(steps.std() - std) < 4 * std / np.sqrt(2 * steps.size)


def test_segments_are_geometric_with_mean_ten(many):
    states, _ = many
    lengths = np.concatenate([np.diff(np.flatnonzero(np.diff(row))) for row in states])
    # Mean 10 and variance (1 - 0.1) / 0.1^2 = 90; a length is 1 with probability 0.1.
    assert abs(lengths.mean() - 10) < 4 * np.sqrt(90 / lengths.size)
    assert lengths.var() == pytest.approx(90, rel=0.15)
    assert abs(np.mean(lengths == 1) - 0.1) < 4 * np.sqrt(0.09 / lengths.size)


def test_switches_are_reversals_nine_times_in_ten(many):
    states, _ = many
    before, after = states[:, :-1], states[:, 1:]
    switched = before != after
    before, after = before[switched], after[switched]
    reversal = before // 2 == after // 2
    assert abs(reversal.mean() - 0.9) < 4 * np.sqrt(0.09 / reversal.size)
    up = after[~reversal] % 2 == 0
    assert abs(up.mean() - 0.5) < 4 * 0.5 / np.sqrt(up.size)
    was_up = before[~reversal] % 2 == 0
    correlation = np.corrcoef(up, was_up)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(up.size)


def test_first_state_is_uniform():
    _, states = make_moving_laplace(4000, n_timesteps=1, n_features=2, random_state=0)
    shares = np.bincount(states[:, 0], minlength=4) / 4000
    assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 4000))


def test_extreme_segments():
    setting = {"n_timesteps": 50, "n_features": 2, "random_state": 0}
    _, states = make_moving_laplace(3, mean_segment_length=1, reversal_probability=1, **setting)
    assert_array_equal(np.abs(np.diff(states, axis=1)), 1)
    _, states = make_moving_laplace(3, mean_segment_length=1, reversal_probability=0, **setting)
    assert_array_equal(np.abs(np.diff(states // 2, axis=1)), 1)
    _, states = make_moving_laplace(3, mean_segment_length=1e12, **setting)
    assert_array_equal(np.diff(states, axis=1), 0)


def test_peak_leaves_the_grid_as_often_as_documented():
    # Over 20,000 sequences: 0.096 of them and 0.019 of their steps.
    _, _, latents = make_moving_laplace(2000, n_features=2, return_latents=True, random_state=0)
    out = np.abs(latents[..., 0]) > 2
    assert abs(out.any(1).mean() - 0.096) < 4 * np.sqrt(0.096 * 0.904 / 2000)
    assert abs(out.mean() - 0.019) < 4 * out.mean(1).std() / np.sqrt(2000)


def test_a_peak_too_narrow_for_a_float_is_still_finite():
    X, _ = make_moving_laplace(
        20, n_timesteps=50, n_features=3, width_step=1e3, location_step=1e9, random_state=0
    )
    assert np.all(np.isfinite(X))


def test_random_numbers_come_from_the_given_state_only():
    np.random.seed(0)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = make_moving_laplace(2, n_timesteps=20, random_state=1)
    second = make_moving_laplace(2, n_timesteps=20, random_state=np.random.RandomState(1))
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    for one, other in zip(first, second, strict=True):
        assert_array_equal(one, other)
    assert not np.array_equal(first[0], make_moving_laplace(2, n_timesteps=20, random_state=2)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sequences": 0},
        {"n_timesteps": 2.5},
        {"n_features": 1},
        {"mean_segment_length": 0.5},
        {"reversal_probability": 1.1},
        {"location_step": -1},
        {"location_step_std": -1},
        {"width_step": -1},
        {"width_step_std": np.nan},
        {"noise_std": -1},
        {"return_latents": "yes"},
        {"random_state": "seed"},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_moving_laplace(**wrong)
