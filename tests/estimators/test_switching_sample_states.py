# SPDX-License-Identifier: BSD-3-Clause
"""Sequences drawn with given states."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError

from .switching_cases import Enumerated, fitted, quick, turning

KNOWN, X, _ = turning()
PATH = np.array([0, 0, 1, 1, 1, 0, 1])
N = len(PATH)
WIDTH = 4.5  # standard errors


def test_states_are_returned_as_given():
    rows, states = KNOWN.sample(N, 3, states=PATH)
    assert rows.shape == (3, N, 3)
    assert states.dtype == np.int64
    np.testing.assert_array_equal(states, np.tile(PATH, (3, 1)))
    each = np.stack([PATH, 1 - PATH])
    np.testing.assert_array_equal(KNOWN.sample(N, 2, states=each)[1], each)
    for one in (PATH, PATH[None]):
        rows, states = KNOWN.sample(N, states=one)
        assert rows.shape == (N, 3)
        np.testing.assert_array_equal(states, PATH)


@pytest.mark.parametrize(
    "kind", [list, pd.Series, np.uint8, np.int32, lambda path: path[::-1].copy()[::-1]]
)
def test_states_in_any_form_of_integers(kind):
    expected, _ = KNOWN.sample(N, 2, states=PATH)
    rows, states = KNOWN.sample(N, 2, states=kind(PATH))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(states[0], PATH)


def test_what_is_passed_is_left_alone():
    given = PATH.copy()
    given.flags.writeable = False
    _, states = KNOWN.sample(N, states=given)
    states[:] = 1
    np.testing.assert_array_equal(given, PATH)


def test_latents_have_the_moments_of_the_dynamics():
    """Means, covariances and those of neighbours follow from A, b and Q of each state."""
    n_draws = 20_000
    states = torch.as_tensor(PATH).expand(n_draws, -1)
    generator = torch.Generator().manual_seed(0)
    z, returned = KNOWN._rebuild().graphical.sample(N, n_draws, generator, states)
    assert returned is states
    z = z.numpy()
    mean, covariance = KNOWN.initial_mean_, KNOWN.initial_covariance_
    deviation = z[:, 0] - mean
    assert_mean(z[:, 0], mean)
    assert_mean(products(deviation, deviation), covariance)
    for t, k in enumerate(PATH[1:], start=1):
        before, lagged = deviation, KNOWN.transition_matrix_[k] @ covariance
        mean = KNOWN.transition_matrix_[k] @ mean + KNOWN.offset_[k]
        covariance = lagged @ KNOWN.transition_matrix_[k].T + KNOWN.noise_covariance_[k]
        deviation = z[:, t] - mean
        assert_mean(z[:, t], mean)
        assert_mean(products(deviation, deviation), covariance)
        assert_mean(products(deviation, before), lagged)


def products(one, other):
    return one[:, :, None] * other[:, None, :]


def assert_mean(draws, expected):
    """Check a mean of independent draws, of which the standard error is estimated."""
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - expected) < WIDTH * error).all()


def test_rows_have_the_moments_that_the_path_gives_them():
    n_draws = 4000
    exact = Enumerated(KNOWN, np.full((N, 3), np.nan))
    at = int(np.flatnonzero((exact.paths == PATH).all(1))[0])
    mean, variance = exact.means[at].reshape(N, 3), exact.variances[at].reshape(N, 3)
    rows, _ = KNOWN.sample(N, n_draws, states=PATH)
    assert (np.abs(rows.mean(0) - mean) < WIDTH * np.sqrt(variance / n_draws)).all()
    error = variance * np.sqrt(2 / n_draws)
    assert (np.abs(rows.var(0) - variance) < WIDTH * error).all()


def test_given_states_are_found_again():
    """A segmentation is a summary: what is drawn from it is segmented alike."""
    segmentation = KNOWN.predict(X)
    rows, states = KNOWN.sample(X.shape[1], len(X), states=segmentation)
    np.testing.assert_array_equal(states, segmentation)
    assert (KNOWN.predict(rows) == segmentation).mean() > 0.95


def test_the_first_state_does_not_matter():
    """The first latent has the initial distribution, whatever its state."""
    other = PATH.copy()
    other[0] = 1
    np.testing.assert_array_equal(
        KNOWN.sample(N, 2, states=PATH)[0], KNOWN.sample(N, 2, states=other)[0]
    )


def test_none_draws_states():
    for drawn, default in zip(KNOWN.sample(5, 2, states=None), KNOWN.sample(5, 2), strict=True):
        np.testing.assert_array_equal(drawn, default)


BAD_STATES = {
    "too short": (PATH[:-1], "in shape (n_samples,) or (n_sequences, n_samples), got shape (6,)"),
    "n_samples left out": (PATH, "got shape (7,) with n_samples=1 and n_sequences=1"),
    "another number of sequences": (np.tile(PATH, (3, 1)), "got shape (3, 7) with n_samples=7"),
    "ragged": ([[0, 1], [0]], ""),
    "a number": (0, "got shape ()"),
    "too large": (np.where(PATH == 1, 2, 0), "from 0 to 1, got 2"),
    "negative": (-PATH, "from 0 to 1, got -1"),
    "probabilities": (PATH.astype(float), "got values of type float64"),
    "booleans": (PATH == 1, "got values of type bool"),
    "words": (["walk"] * N, "got values of type <U4"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_states_that_cannot_be(case):
    states, message = BAD_STATES[case]
    counts = () if case == "n_samples left out" else (N, 2)
    with pytest.raises(ValueError, match="states must hold integers .*" + re.escape(message)):
        KNOWN.sample(*counts, states=states)


def test_counts_and_unfitted_estimators_are_refused_as_without_states():
    with pytest.raises(NotFittedError, match="not fitted"):
        quick().sample(N, states=PATH)
    with pytest.raises(ValueError, match=r"n_samples must be an integer of at least 1, got 7\.0"):
        fitted().sample(7.0, states=PATH)
