# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest

from sksvae.datasets import make_bouncing_dot


def test_moments_of_the_published_setting():
    """The noise is the floor of any forecast; the mean frame and the last period are baselines."""
    X, position = make_bouncing_dot(random_state=0)
    assert X.shape == (5000, 12) and position.shape == (5000,)
    clean, _ = make_bouncing_dot(noise_variance=0)
    assert np.mean((X - clean) ** 2) == pytest.approx(0.0099, rel=0.02)
    assert X.var(0).mean() == pytest.approx(0.119, rel=0.01)
    three_periods = 80
    assert np.mean((X[three_periods:] - X[:-three_periods]) ** 2) == pytest.approx(0.0198, rel=0.01)


def test_dot_is_where_it_is_said_to_be_and_moves_at_constant_speed():
    X, position = make_bouncing_dot(200, n_pixels=401, period=40, noise_variance=0)
    pixels = np.linspace(-1, 1, 401)
    np.testing.assert_allclose(pixels[X.argmax(1)], position, atol=2.6e-3)
    np.testing.assert_allclose(np.abs(np.diff(position)), 4 / 40, atol=1e-12)
    np.testing.assert_allclose(position[40:], position[:-40], atol=1e-12)


def test_phase_shifts_in_time():
    X, _ = make_bouncing_dot(60, period=20, noise_variance=0)
    shifted, _ = make_bouncing_dot(50, period=20, phase=0.5, noise_variance=0)
    np.testing.assert_allclose(shifted, X[10:], atol=1e-12)


def test_equal_seeds_give_equal_images():
    first, second, other = (make_bouncing_dot(10, random_state=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "wrong", [{"n_frames": 0}, {"n_pixels": 1}, {"period": 0}, {"noise_variance": -1}]
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_bouncing_dot(**{"n_frames": 5, **wrong})
