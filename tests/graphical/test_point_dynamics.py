# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics with point parameters: one-step-ahead prediction, forecasts, draws."""

import numpy as np
import pytest
import torch

from sksvae.graphical import Potentials
from sksvae.graphical.point_dynamics import predictive_stretches
from tests.graphical.dynamics_cases import (
    converted,
    dense_prior,
    normal,
    random_evidence,
    random_model,
    take,
)

LENGTHS = [6, 1, 4]


def dense_predictions(parameters, r, R):
    """Moments of each step given the potentials before it, by conditioning the dense joint."""
    n_steps, dim = r.shape
    mean, covariance = dense_prior(parameters, n_steps)
    precision = np.linalg.inv(covariance)
    for t in range(n_steps):
        past = np.arange(n_steps * dim) < t * dim
        posterior = np.linalg.inv(precision + np.diag(np.where(past, R.ravel(), 0.0)))
        total = posterior @ (precision @ mean + np.where(past, r.ravel(), 0.0))
        here = slice(t * dim, (t + 1) * dim)
        yield total[here], posterior[here, here]


@pytest.mark.parametrize("dim", [1, 3])
def test_predictions_agree_with_dense_conditioning(dim):
    model = random_model(dim)
    potentials, mask = random_evidence(LENGTHS, dim, n_steps=7)
    means, covariances = model.predictive_moments(potentials, mask)
    for n, n_steps in enumerate(LENGTHS):
        dense = dense_predictions(model.point_parameters(), *take(potentials, mask, n))
        for t, (mean, covariance) in enumerate(dense):
            np.testing.assert_allclose(means[n, t], mean, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(covariances[n, t], covariance, rtol=1e-9, atol=1e-10)
        assert (means[n, n_steps:] == 0).all()
        assert (covariances[n, n_steps:] == 0).all()
    assert torch.equal(covariances, covariances.mT)


@pytest.mark.parametrize("length", [1, 4, 9, 20])
def test_stretches_of_a_sequence_continue_each_other(length):
    model = random_model()
    potentials, mask = random_evidence([20])
    want = model.predictive_moments(potentials, mask)
    stretches = (
        Potentials(*(field[:, start : start + length] for field in potentials))
        for start in range(0, 20, length)
    )
    parts = predictive_stretches(model.point_parameters(), stretches)
    for got, expected in zip(zip(*parts, strict=True), want, strict=True):
        torch.testing.assert_close(torch.cat(got, 1), expected, rtol=1e-12, atol=1e-14)


def test_a_gap_in_the_mask_separates_sequences():
    """In one row of the batch, and not in the others."""
    model = random_model()
    potentials, mask = random_evidence([9, 9])
    mask[0, [0, 4]] = False
    got = model.predictive_moments(potentials, mask)
    for row, steps in ((0, slice(1, 4)), (0, slice(5, 9)), (1, slice(0, 9))):
        alone = model.predictive_moments(
            Potentials(*(field[row : row + 1, steps] for field in potentials)),
            mask[row : row + 1, steps],
        )
        for together, want in zip(got, alone, strict=True):
            torch.testing.assert_close(together[row, steps], want[0])
    for together in got:
        assert (together[~mask] == 0).all()


@pytest.mark.parametrize("exponent", [-8, 4, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_predictions_are_stable_at_any_precision_of_potentials(dtype, exponent):
    """Precise, vague and missing ones in turn, of latents that are of order one."""
    model = random_model(3)
    x = normal(2, 8, 3, seed=0)
    scale = torch.tensor([10.0**exponent, 1e-6, 1.0]).double()
    R = torch.stack([scale.roll(k) for k in range(8)]).expand(2, 8, 3).clone()
    R[:, 5] = 0
    mask = torch.ones(2, 8, dtype=torch.bool)
    potentials = Potentials(R * x, R)
    single = converted(model, dtype)
    means, covariances = single.predictive_moments(
        Potentials(*(f.to(dtype) for f in potentials)), mask
    )
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    for n in range(2):
        dense = dense_predictions(model.point_parameters(), *take(potentials, mask, n))
        for t, (mean, covariance) in enumerate(dense):
            np.testing.assert_allclose(means[n, t], mean, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(
                covariances[n, t], covariance, rtol=tolerance, atol=1e-4 * tolerance
            )


def test_the_last_smoothed_step_is_the_filtered_one():
    """So that the next prediction follows from it, where parameters are certain."""
    model = random_model(certainty=1e12)
    potentials, mask = random_evidence([6, 6])
    posterior = model.infer(
        Potentials(*(f[:, :5] for f in potentials)), model.expected_params(), mask[:, :5]
    )
    forecast = model.forecast_moments(posterior.mean[:, -1], posterior.covariance[:, -1], 1)
    predicted = model.predictive_moments(potentials, mask)
    for got, want in zip(forecast, predicted, strict=True):
        torch.testing.assert_close(got[:, 0], want[:, 5], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_potentials_are_an_error(bad):
    (r, R), mask = random_evidence([4])
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        random_model().predictive_moments(
            Potentials(r, R.index_fill(1, torch.tensor([2]), bad)), mask
        )


def test_a_linear_term_without_precision_is_an_error():
    r, R = torch.ones(1, 3, 2).double(), torch.zeros(1, 3, 2).double()
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        random_model().predictive_moments(Potentials(r, R), torch.ones(1, 3, dtype=torch.bool))


# Forecasts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forecasts_continue_the_dense_prior(dtype):
    """From the moments of the first step those of all others follow."""
    model = random_model(3)
    parameters = model.point_parameters()
    mean, covariance = dense_prior(parameters, 9)
    single = converted(model, dtype)
    point = single.point_parameters()
    means, covariances = single.forecast_moments(
        point.initial_mean[None], point.initial_covariance[None], 8
    )
    assert means.dtype == covariances.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    blocks = covariance.reshape(9, 3, 9, 3).swapaxes(1, 2)[np.arange(9), np.arange(9)]
    np.testing.assert_allclose(means[0], mean.reshape(9, 3)[1:], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(covariances[0], blocks[1:], rtol=tolerance, atol=tolerance)


def test_unstable_dynamics_are_reported_and_exact_until_they_overflow():
    model = random_model().replace_dynamics(
        transition_matrix=2 * torch.eye(2), offset=torch.zeros(2), noise_covariance=torch.eye(2)
    )
    assert model.spectral_radius == 2.0
    start = torch.ones(1, 2).double(), torch.eye(2).double()[None]
    means, covariances = model.forecast_moments(*start, 500)
    assert means[0, -1, 0] == 2.0**500
    # P_{t+1} = 4 P_t + 1
    torch.testing.assert_close(covariances[0, 9, 0, 0].item(), (4.0**10 * 4 - 1) / 3)
    for overflow in (
        lambda: model.forecast_moments(*start, 2000),
        lambda: model.continue_draws(start[0], 2000, torch.Generator().manual_seed(0)),
        lambda: model.sample(2000, 1, torch.Generator().manual_seed(0)),
    ):
        with pytest.raises(OverflowError, match="spectral radius 2,"):
            overflow()


# Draws -------------------------------------------------------------------------------------------


def test_samples_have_the_moments_of_the_dense_prior():
    model, n_draws = random_model(), 20_000
    z, states = model.sample(4, n_draws, torch.Generator().manual_seed(0))
    assert z.shape == (n_draws, 4, 2)
    assert states.shape == (n_draws, 4)
    assert (states == 0).all()
    mean, covariance = dense_prior(model.point_parameters(), 4)
    flat = z.flatten(1).numpy()
    error = np.sqrt(np.diag(covariance) / n_draws)
    assert (np.abs(flat.mean(0) - mean) < 5 * error).all()
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2)
    assert (np.abs(np.cov(flat.T) - covariance) < 5 * spread / np.sqrt(n_draws)).all()


def test_continued_draws_have_the_moments_of_forecasts():
    model, n_draws = random_model(), 20_000
    start = normal(3, 2, seed=0)
    draws = model.continue_draws(start.expand(n_draws, 3, 2), 5, torch.Generator().manual_seed(0))
    assert draws.shape == (n_draws, 3, 5, 2)
    means, covariances = model.forecast_moments(start, torch.zeros(3, 2, 2).double(), 5)
    variances = covariances.diagonal(dim1=-2, dim2=-1)
    assert ((draws.mean(0) - means).abs() < 5 * (variances / n_draws).sqrt()).all()
    assert ((draws.var(0) / variances - 1).abs() < 5 * (2 / n_draws) ** 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_come_from_the_generator_only(dtype):
    model = random_model(dtype=dtype)
    before = torch.random.get_rng_state()
    z, _ = model.sample(5, 3, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert z.dtype == dtype
    assert torch.equal(z, model.sample(5, 3, torch.Generator().manual_seed(0))[0])
    assert not torch.equal(z, model.sample(5, 3, torch.Generator().manual_seed(1))[0])
    assert model.sample(1, 3, torch.Generator().manual_seed(0))[0].shape == (3, 1, 2)
