# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics with point parameters: draws and forecasts."""

import pytest
import torch

from sksvae.expfam import DirichletParams
from sksvae.graphical import DynamicsParameters, SwitchingParameters
from sksvae.graphical.point_dynamics import forecast_moments as linear_forecast
from sksvae.graphical.point_switching import continue_draws, draw_sequences, forecast_moments
from tests.graphical.dynamics_cases import assert_close, normal, positive
from tests.graphical.switching_cases import converted, random_model

EXACT = {"rtol": 1e-10, "atol": 1e-11}
N_SIGMA = 5.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def belief(n_sequences=2, n_states=3, dim=2):
    """Moments of a last step, and probabilities of its state."""
    mean = normal(n_sequences, dim, seed=1)
    covariance = torch.stack([positive(dim, seed=2 + n) for n in range(n_sequences)])
    return mean, covariance, normal(n_sequences, n_states, seed=9).softmax(-1)


def certain(n_states, *, jumps):
    """Parameters whose states never change, or take turns."""
    parameters = random_model(n_states).point_parameters()
    eye = torch.eye(n_states, dtype=torch.float64)
    return parameters._replace(state_transition_probabilities=eye.roll(1, 1) if jumps else eye)


def linear(parameters, k):
    A, b, Q, mean, covariance, *_ = parameters
    return DynamicsParameters(A[k], b[k], Q[k], mean, covariance)


# Forecasts ---------------------------------------------------------------------------------------


def test_forecasts_of_one_state_are_those_of_linear_dynamics():
    parameters = random_model(1).point_parameters()
    mean, covariance, ones = belief(n_states=1)
    got = forecast_moments(parameters, mean, covariance, ones, 6)
    want = linear_forecast(linear(parameters, 0), mean, covariance, 6)
    assert (got.state_probabilities == 1).all()
    for a, b, c in zip(got[1:], want, (got.mean, got.covariance), strict=True):
        assert_close(a.squeeze(2), b, **EXACT)
        assert_close(c, b, **EXACT)


def test_forecasts_of_states_that_never_change():
    """Each state goes its own way; those of probability zero do no harm."""
    parameters = certain(3, jumps=False)
    mean, covariance, _ = belief()
    p = torch.tensor([[0.0, 0.3, 0.7], [1.0, 0.0, 0.0]], dtype=torch.float64)
    got = forecast_moments(parameters, mean, covariance, p, 6)
    assert_close(got.state_probabilities, p.unsqueeze(1).expand(-1, 6, -1))
    assert all(field.isfinite().all() for field in got)
    for k in range(3):
        want = linear_forecast(linear(parameters, k), mean, covariance, 6)
        for n in range(2):
            if p[n, k] > 0:
                assert_close(got.means[n, :, k], want[0][n], **EXACT)
                assert_close(got.covariances[n, :, k], want[1][n], **EXACT)


def test_forecasts_by_enumeration_of_all_paths():
    parameters = random_model(3).point_parameters()
    A, b, Q, *_, table = parameters
    mean, covariance, p = belief()
    n_steps = 4
    got = forecast_moments(parameters, mean, covariance, p, n_steps)
    # One entry for each path so far: its probability, state and moments.
    paths = [[(p[0, k], k, mean[0], covariance[0]) for k in range(3)]]
    for _ in range(n_steps):
        paths.append(
            [
                (w * table[i, j], j, A[j] @ m + b[j], A[j] @ P @ A[j].mT + Q[j])
                for w, i, m, P in paths[-1]
                for j in range(3)
            ]
        )
    for t, ends in enumerate(paths[1:]):
        for k in range(3):
            mine = [(w, m, P) for w, state, m, P in ends if state == k]
            total = sum(w for w, _, _ in mine)
            first = sum(w * m for w, m, _ in mine) / total
            second = sum(w * (P + torch.outer(m, m)) for w, m, P in mine) / total
            assert_close(got.state_probabilities[0, t, k], total, **EXACT)
            assert_close(got.means[0, t, k], first, **EXACT)
            assert_close(got.covariances[0, t, k], second - torch.outer(first, first), **EXACT)
        first = sum(w * m for w, _, m, _ in ends)
        second = sum(w * (P + torch.outer(m, m)) for w, _, m, P in ends)
        assert_close(got.mean[0, t], first, **EXACT)
        assert_close(got.covariance[0, t], second - torch.outer(first, first), **EXACT)


def test_forecasts_agree_with_draws():
    model, n_draws, n_steps = random_model(3), 40_000, 5
    mean, covariance, p = belief(n_sequences=1)
    forecast = model.forecast_moments(mean, covariance, p, n_steps)
    start = mean + normal(n_draws, 2, seed=5) @ torch.linalg.cholesky(covariance[0]).mT
    first = torch.multinomial(p[0], n_draws, replacement=True, generator=generator())
    z, states = model.continue_draws(start, first, n_steps, generator(1))
    shares = torch.nn.functional.one_hot(states, 3).double()
    want = forecast.state_probabilities[0]
    error = (want * (1 - want) / n_draws).sqrt()
    assert ((shares.mean(0) - want).abs() < N_SIGMA * error).all()
    for t in range(n_steps):
        for k in range(3):
            mine = z[states[:, t] == k, t]
            assert_moments(mine, forecast.means[0, t, k], forecast.covariances[0, t, k])
        assert_moments(z[:, t], forecast.mean[0, t], forecast.covariance[0, t])


def assert_moments(draws, mean, covariance):
    """Within standard errors, themselves estimated."""
    deviation = draws - mean
    products = deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
    for values, want in ((draws, mean), (products, covariance)):
        error = values.std(0) / len(draws) ** 0.5
        assert ((values.mean(0) - want).abs() < N_SIGMA * error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forecasts_keep_dtype_and_symmetry(dtype):
    model = converted(random_model(), dtype)
    evidence = (field.to(dtype) for field in belief())
    forecast = model.forecast_moments(*evidence, 8)
    assert all(field.dtype == dtype for field in forecast)
    assert forecast.mean.shape == (2, 8, 2)
    assert torch.equal(forecast.covariances, forecast.covariances.mT)
    want = random_model().forecast_moments(*belief(), 8)
    for got, exact in zip(forecast, want, strict=True):
        assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


def unstable():
    parameters = random_model().point_parameters()
    A = parameters.transition_matrices.clone()
    A[1] = 2 * torch.eye(2)
    return parameters._replace(transition_matrices=A)


def test_unstable_dynamics_are_reported():
    parameters = unstable()
    assert parameters.spectral_radii[1] == 2.0
    sticky = torch.tensor([[0.1, 0.9, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).double()
    parameters = parameters._replace(state_transition_probabilities=sticky)
    start, states = torch.ones(1, 2).double(), torch.ones(1, dtype=torch.long)
    for overflow in (
        lambda: forecast_moments(parameters, *belief(), 2000),
        lambda: continue_draws(parameters, start, states, 2000, generator()),
        lambda: draw_sequences(parameters, 2000, 1, generator()),
    ):
        with pytest.raises(OverflowError, match="matrix of state 1 has spectral radius 2,"):
            overflow()


# Draws -------------------------------------------------------------------------------------------


def test_samples_have_the_moments_of_forecasts():
    model, n_draws = random_model(), 20_000
    parameters = model.point_parameters()
    z, states = model.sample(4, n_draws, generator())
    assert z.shape == (n_draws, 4, 2)
    assert states.shape == (n_draws, 4)
    first = parameters.initial_state_probabilities
    assert_moments(z[:, 0], parameters.initial_mean, parameters.initial_covariance)
    start = parameters.initial_mean[None], parameters.initial_covariance[None], first[None]
    forecast = model.forecast_moments(*start, 3)
    for t in range(3):
        assert_moments(z[:, t + 1], forecast.mean[0, t], forecast.covariance[0, t])
    shares = torch.bincount(states[:, 0], minlength=3) / n_draws
    assert ((shares - first).abs() < N_SIGMA * (first * (1 - first) / n_draws).sqrt()).all()
    table = parameters.state_transition_probabilities
    for i in range(3):
        after = states[:, 1:][states[:, :-1] == i]
        shares = torch.bincount(after, minlength=3) / len(after)
        error = (table[i] * (1 - table[i]) / len(after)).sqrt()
        assert ((shares - table[i]).abs() < N_SIGMA * error).all()


def test_draws_follow_the_dynamics_of_their_own_state():
    """Without noise, the path of states gives that of the latents."""
    parameters = certain(3, jumps=True)
    tiny = 1e-20 * parameters.noise_covariances
    parameters = parameters._replace(noise_covariances=tiny)
    start, states = normal(4, 2, 2, seed=0), torch.tensor([[0, 1]]).expand(4, 2)
    z, path = continue_draws(parameters, start, states, 3, generator())
    assert (z.shape, path.shape) == ((4, 2, 3, 2), (4, 2, 3))
    assert path[0].tolist() == [[1, 2, 0], [2, 0, 1]]
    A, b, *_ = parameters
    for n in range(2):
        want = start[:, n]
        for t, k in enumerate(path[0, n].tolist()):
            want = want @ A[k].mT + b[k]
            assert_close(z[:, n, t], want, rtol=1e-8, atol=1e-8)


def test_impossible_states_are_never_drawn():
    parameters = random_model(4).point_parameters()
    table = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64).expand(4, 4)
    parameters = parameters._replace(
        state_transition_probabilities=table, initial_state_probabilities=table[0]
    )
    _, states = draw_sequences(parameters, 50, 200, generator())
    assert states.unique().tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_come_from_the_generator_only(dtype):
    model = random_model(dtype=dtype)
    before = torch.random.get_rng_state()
    z, states = model.sample(5, 3, generator())
    assert torch.equal(before, torch.random.get_rng_state())
    assert z.dtype == dtype
    assert states.dtype == torch.long
    again = model.sample(5, 3, generator())
    assert torch.equal(z, again[0])
    assert torch.equal(states, again[1])
    assert not torch.equal(z, model.sample(5, 3, generator(1))[0])
    assert model.sample(1, 3, generator())[0].shape == (3, 1, 2)


def test_parameters_of_the_model_are_those_of_its_posterior():
    model = random_model()
    model.posterior = model.posterior._replace(initial_states=DirichletParams(torch.ones(3)))
    parameters = model.point_parameters()
    assert isinstance(parameters, SwitchingParameters)
    assert_close(parameters.initial_state_probabilities, torch.ones(3) / 3)
