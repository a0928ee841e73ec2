# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics whose encoder is exact, against the dense joint Gaussian of all rows."""

import functools

import numpy as np
import pytest
import torch

from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequence_start import state_space_model
from sksvae.graphical import DynamicsPrior
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods import get_likelihood
from sksvae.state_space import StateSpace

from .linear_dynamics_cases import DenseGaussian, quick

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SCALE, LOCATION = np.array([2.0, 0.5, 1.0, 30.0]), np.array([1.0, -5.0, 0.0, 100.0])


@functools.cache
def exact():
    """Estimator that was given a state space model, whose evidence its encoder expresses."""
    rng = np.random.default_rng(0)
    turn = 0.95 * np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    model = StateSpace(
        rng.normal(size=(4, 2)),
        0.1 * rng.normal(size=4),
        np.array([0.3, 0.1, 0.5, 0.2]),
        turn,
        np.array([0.1, -0.2]),
        np.array([[0.2, 0.05], [0.05, 0.1]]),
        np.array([0.5, 0.3]),
        np.array([[0.6, -0.1], [-0.1, 0.4]]),
    ).canonical(np.zeros(2), np.eye(2))
    estimator = quick(hidden_layer_sizes=()).fit(rng.normal(size=(3, 10, 4)))
    estimator.location_, estimator.scale_ = LOCATION, SCALE
    return estimator._with_graphical(
        state_space_model(
            model,
            Scaling(LOCATION, SCALE),
            get_likelihood("gaussian"),
            DynamicsPrior.isotropic(2),
            100,
            (),
            "relu",
            FixedPointSettings(),
            torch.Generator(),
        )
    )


@functools.cache
def sequences():
    """Ragged sequences from the model, two of them without some of their steps."""
    drawn = exact().sample(12, 4)[0]
    drawn[1, 4:7] = np.nan
    drawn[2, [0, 8]] = np.nan
    return [drawn[0], drawn[1, :9], drawn[2], drawn[3, :1]]


def dense(sequence, n_more=0):
    return DenseGaussian(exact(), len(sequence) + n_more)


def test_the_case_is_what_it_should_be():
    """A state space model with point parameters that are those asked for, and R off its floor."""
    estimator = exact()
    assert 0.9 < estimator.spectral_radius_ < 1
    precision = estimator._rebuild().encoder(torch.zeros(1, 4, dtype=torch.float64))[1]
    assert (precision > 1).all()


def test_scores_of_a_sequence_sum_to_its_log_likelihood():
    scores = exact().score_samples(sequences())
    for sequence, score in zip(sequences(), scores, strict=True):
        assert score.shape == (len(sequence),)
        assert score.sum() == pytest.approx(dense(sequence).log_likelihood(sequence), abs=1e-9)
        assert (score[np.isnan(sequence).all(1)] == 0).all()


def test_scores_bound_the_log_likelihood_where_rows_are_seen_in_part():
    rng = np.random.default_rng(1)
    partly = [np.where(rng.random(s.shape) < 0.3, np.nan, s) for s in sequences()]
    slack = [
        dense(sequence).log_likelihood(sequence) - score.sum()
        for sequence, score in zip(partly, exact().score_samples(partly), strict=True)
    ]
    assert min(slack) > -1e-9
    assert max(slack) > 0.1


def test_score_is_the_mean_over_rows_that_are_observed():
    total = sum(dense(sequence).log_likelihood(sequence) for sequence in sequences())
    n_observed = sum((~np.isnan(sequence).all(1)).sum() for sequence in sequences())
    assert exact().score(sequences()) == pytest.approx(total / n_observed, abs=1e-9)


def test_transform_is_the_mean_of_the_smoother_of_expected_dynamics():
    """Which is that of point parameters, where the dynamics are known as well as certain."""
    estimator = exact()._edited(_certain)
    for sequence, latents in zip(sequences(), estimator.transform(sequences()), strict=True):
        expected = DenseGaussian(estimator, len(sequence)).given(sequence)[2]
        np.testing.assert_allclose(latents.ravel(), expected, atol=1e-6)


def _certain(graphical, certainty=1e9):
    """Dynamics with the same point parameters and many times the pseudo-counts."""
    initial, dynamics = graphical.posterior
    graphical.posterior = DynamicsPrior(
        initial._replace(
            scale=initial.scale * certainty,
            mean_precision=initial.mean_precision * certainty,
            dof=initial.dof * certainty,
        ),
        dynamics._replace(
            scale=dynamics.scale * certainty,
            mean_precision=dynamics.mean_precision * certainty,
            dof=dynamics.dof * certainty,
        ),
    )
    return graphical


def test_predict_is_the_mean_of_a_row_given_those_before_it():
    for sequence, predicted in zip(sequences(), exact().predict(sequences()), strict=True):
        assert predicted.shape == sequence.shape
        for t in range(len(sequence)):
            before = np.where(np.arange(len(sequence))[:, None] < t, sequence, np.nan)
            expected = dense(sequence).given(before)[0][t]
            np.testing.assert_allclose(predicted[t], expected, rtol=1e-9, atol=1e-9)


def test_forecast_is_the_distribution_of_what_follows():
    estimator = exact()._edited(_certain)
    mean, std = estimator.forecast(sequences(), 4)
    for i, sequence in enumerate(sequences()):
        longer = np.concatenate([sequence, np.full((4, 4), np.nan)])
        want, variance, _ = DenseGaussian(estimator, len(longer)).given(longer)
        np.testing.assert_allclose(mean[i], want[-4:], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(std[i], np.sqrt(variance[-4:]), rtol=1e-6)


def test_draws_of_forecasts_have_its_moments():
    n_draws = 4000
    mean, std = exact().forecast(sequences(), 3)
    draws = exact().forecast(sequences(), 3, n_draws=n_draws)
    assert draws.shape == (n_draws, 4, 3, 4)
    error = 5 * std / np.sqrt(n_draws)
    assert (np.abs(draws.mean(0) - mean) < error).all()
    np.testing.assert_allclose(draws.std(0), std, rtol=0.08)


def test_impute_is_the_mean_of_what_is_missing_given_the_rest():
    estimator = exact()._edited(_certain)
    for sequence, filled in zip(sequences(), estimator.impute(sequences()), strict=True):
        expected = DenseGaussian(estimator, len(sequence)).given(sequence)[0]
        missing = np.isnan(sequence)
        np.testing.assert_allclose(filled[missing], expected[missing], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(filled[~missing], sequence[~missing])


def test_draws_of_what_is_missing_have_its_moments():
    estimator, n_draws = exact()._edited(_certain), 4000
    for sequence, draws in zip(sequences(), estimator.impute(sequences(), n_draws), strict=True):
        assert draws.shape == (n_draws, *sequence.shape)
        mean, variance, _ = DenseGaussian(estimator, len(sequence)).given(sequence)
        missing = np.isnan(sequence)
        error = 5 * np.sqrt(variance / n_draws)
        assert (np.abs(draws.mean(0) - mean) < error)[missing].all()
        np.testing.assert_allclose(draws.std(0)[missing], np.sqrt(variance)[missing], rtol=0.08)
        assert (draws[:, ~missing] == sequence[~missing]).all()


def test_completions_are_joint_draws():
    """Neighbours that are missing vary together, as their joint distribution says."""
    estimator = exact()._edited(_certain)
    sequence = sequences()[1]
    missing = np.flatnonzero(np.isnan(sequence).ravel())
    seen = np.flatnonzero(~np.isnan(sequence).ravel())
    draws = estimator.impute([sequence], 4000)[0].reshape(4000, -1)[:, missing]
    joint = DenseGaussian(estimator, len(sequence)).covariance
    across = joint[np.ix_(missing, seen)]
    explained = across @ np.linalg.solve(joint[np.ix_(seen, seen)], across.T)
    want = joint[np.ix_(missing, missing)] - explained
    spread = np.sqrt(np.diagonal(want))
    correlation = want / np.outer(spread, spread)
    assert np.abs(correlation[:4, 4:8]).max() > 0.3
    np.testing.assert_allclose(np.corrcoef(draws.T), correlation, atol=0.08)


def test_samples_have_the_moments_of_the_joint_distribution():
    X, Z = exact().sample(3, 6000)
    joint = dense(X[0])
    spread = np.sqrt(np.diagonal(joint.covariance))
    flat = X.reshape(6000, -1)
    np.testing.assert_allclose((flat.mean(0) - joint.mean) / spread, 0.0, atol=0.06)
    correlation = joint.covariance / np.outer(spread, spread)
    np.testing.assert_allclose(np.cov(flat.T) / np.outer(spread, spread), correlation, atol=0.08)
    latents = Z.reshape(6000, -1)
    np.testing.assert_allclose(np.cov(latents.T), joint.latent_covariance, atol=0.08)


def test_inverse_transform_is_the_mean_of_a_row_given_its_latents():
    Z = np.random.default_rng(0).normal(size=(5, 2))
    joint = DenseGaussian(exact(), 1)
    center = joint.mean - joint.spread @ joint.latent_mean
    np.testing.assert_allclose(exact().inverse_transform(Z), Z @ joint.spread.T + center)


@pytest.mark.parametrize("latent_dim", [1, 6])
def test_a_fit_scores_below_the_log_likelihood_of_what_it_learned(latent_dim):
    """Its encoder is not exact, and 1 direction is too few and 6 are too many for the data."""
    drawn, _ = exact().sample(12, 3)
    estimator = quick(latent_dim, hidden_layer_sizes=()).fit(drawn)
    joint = DenseGaussian(estimator, 12)
    slack = [
        joint.log_likelihood(sequence) - score.sum()
        for sequence, score in zip(drawn, estimator.score_samples(drawn), strict=True)
    ]
    assert min(slack) > -1e-6
