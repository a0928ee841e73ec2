# SPDX-License-Identifier: BSD-3-Clause
"""State space models against dense Gaussians, known models and unkind data."""

import warnings

import numpy as np
import pytest
from scipy import linalg, stats

from sksvae.datasets import make_bouncing_dot
from sksvae.state_space import StateSpace, fit_state_space, subspace_identification
from sksvae.state_space.em import Statistics, em_rounds, log_prior, maximize
from sksvae.state_space.expectation import ObservedRows
from sksvae.state_space.subspace import choose_windows


def random_model(n_features=4, latent_dim=3, seed=0):
    rng = np.random.default_rng(seed)

    def covariance():
        root = rng.standard_normal((latent_dim, latent_dim))
        return 0.1 * np.eye(latent_dim) + 0.3 * root @ root.T

    A = rng.standard_normal((latent_dim, latent_dim))
    return StateSpace(
        rng.standard_normal((n_features, latent_dim)),
        rng.standard_normal(n_features),
        0.2 + rng.random(n_features),
        0.9 * A / np.abs(linalg.eigvals(A)).max(),
        rng.standard_normal(latent_dim),
        covariance(),
        rng.standard_normal(latent_dim),
        covariance(),
    )


def draw(model, n_steps, rng):
    """One sequence."""
    C, d, psi, A, b, Q, mu, Sigma = model
    z = np.empty((n_steps, len(b)))
    z[0] = rng.multivariate_normal(mu, Sigma)
    noise = rng.multivariate_normal(np.zeros(len(b)), Q, size=n_steps)
    for t in range(1, n_steps):
        z[t] = A @ z[t - 1] + b + noise[t]
    return z @ C.T + d + np.sqrt(psi) * rng.standard_normal((n_steps, len(d)))


def with_gaps(X, seed=0):
    """Single values, a whole row and most of a column missing."""
    X = np.where(np.random.default_rng(seed).random(X.shape) < 0.2, np.nan, X)
    X[len(X) // 2] = np.nan
    X[2:, 1] = np.nan
    return X


def dense(model, n_steps):
    """Joint mean of stacked states and rows, covariance of the states and of both."""
    C, d, psi, A, b, Q, mu, Sigma = model
    means, covariances = [mu], [Sigma]
    for _ in range(n_steps - 1):
        means.append(A @ means[-1] + b)
        covariances.append(A @ covariances[-1] @ A.T + Q)
    blocks = [
        [
            np.linalg.matrix_power(A, t - s) @ covariances[s]
            if t >= s
            else covariances[t] @ np.linalg.matrix_power(A, s - t).T
            for s in range(n_steps)
        ]
        for t in range(n_steps)
    ]
    states = np.block(blocks)
    emission = np.kron(np.eye(n_steps), C)
    x_mean = (np.array(means) @ C.T + d).ravel()
    x_covariance = emission @ states @ emission.T + np.diag(np.tile(psi, n_steps))
    return np.concatenate(means), states, emission, x_mean, x_covariance


def dense_log_likelihood(model, X):
    *_, mean, covariance = dense(model, len(X))
    seen = ~np.isnan(X.ravel())
    if not seen.any():
        return 0.0
    return stats.multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(
        X.ravel()[seen]
    )


def sequences(model, lengths, seed=0, gaps=False):
    rng = np.random.default_rng(seed)
    X = np.concatenate([draw(model, n, rng) for n in lengths])
    return with_gaps(X, seed) if gaps else X


# The model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_log_likelihood_is_that_of_the_stacked_vector(gaps, latent_dim):
    model, lengths = random_model(latent_dim=latent_dim), [6, 1, 3, 6, 2]
    X = sequences(model, lengths, gaps=gaps)
    want = [dense_log_likelihood(model, x) for x in np.split(X, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(model.log_likelihood(X, lengths), want, rtol=1e-10)
    got = model.log_likelihood(X.astype(np.float32), lengths)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_an_unobserved_sequence_has_probability_one():
    model = random_model()
    np.testing.assert_allclose(model.log_likelihood(np.full((5, 4), np.nan), [3, 2]), 0, atol=1e-12)


def test_smoothed_means_and_moments_are_those_of_the_stacked_vector():
    model, lengths = random_model(), [5, 2, 4]
    X = sequences(model, lengths, gaps=True)
    means, seconds = [], 0.0
    for x in np.split(X, np.cumsum(lengths)[:-1]):
        z_mean, states, emission, x_mean, x_covariance = dense(model, len(x))
        seen = ~np.isnan(x.ravel())
        gain = linalg.solve(x_covariance[np.ix_(seen, seen)], emission[seen] @ states).T
        mean = z_mean + gain @ (x.ravel() - x_mean)[seen]
        means.append(mean.reshape(len(x), -1))
        covariance = states - gain @ emission[seen] @ states
        steps = [slice(3 * t, 3 * t + 3) for t in range(len(x))]
        seconds = seconds + sum(covariance[s, s] + np.outer(mean[s], mean[s]) for s in steps)
    means = np.concatenate(means)
    np.testing.assert_allclose(model.smoothed_means(X, lengths), means, atol=1e-10)
    mean, covariance = model.state_moments(X, lengths)
    np.testing.assert_allclose(mean, means.mean(0), atol=1e-10)
    want = seconds / len(X) - np.outer(means.mean(0), means.mean(0))
    np.testing.assert_allclose(covariance, want, atol=1e-10)


def test_batches_of_bounded_size_change_nothing(monkeypatch):
    model, lengths = random_model(), [7, 30, 2, 12, 7]
    X = sequences(model, lengths, gaps=True)
    rows = ObservedRows.from_arrays(X, lengths)
    want = model.log_likelihood(X, lengths), model.smoothed_means(X, lengths)
    statistics = Statistics.of(model, rows)
    monkeypatch.setattr("sksvae.state_space.expectation._BATCH_ELEMENTS", 9 * 15)
    got = model.log_likelihood(X, lengths), model.smoothed_means(X, lengths)
    for a, b in zip((*got, *Statistics.of(model, rows)), (*want, *statistics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", [[3, 3], [7, 0], [8, -1]])
def test_lengths_have_to_fit(lengths):
    with pytest.raises(ValueError, match="add up to the 7 rows"):
        random_model().log_likelihood(np.zeros((7, 4)), lengths)


@pytest.mark.parametrize("n_features", [2, 6])
def test_canonical_coordinates(n_features):
    model, lengths = random_model(n_features), [6, 5, 2]
    X = sequences(model, lengths, gaps=True)
    canonical = model.canonical(*model.state_moments(X, lengths))
    want = [dense_log_likelihood(model, x) for x in np.split(X, np.cumsum(lengths)[:-1])]
    got = [dense_log_likelihood(canonical, x) for x in np.split(X, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(got, want, rtol=1e-10)
    mean, covariance = canonical.state_moments(X, lengths)
    np.testing.assert_allclose(mean, 0.0, atol=1e-10)
    np.testing.assert_allclose(covariance, np.eye(3), atol=1e-10)
    C = canonical.loading
    precision = C.T @ (C / canonical.noise_variances[:, None])
    R = np.diag(precision)
    np.testing.assert_allclose(precision, np.diag(R), atol=1e-10 * R[0])
    assert (np.diff(R) <= 1e-10 * R[0]).all()
    assert (R > 1e-8 * R[0]).sum() == min(n_features, 3)
    assert (C.max(0) >= -C.min(0)).all()


# Expectation maximisation ------------------------------------------------------------------------


def test_maximisation_is_the_mode():
    """No other parameters have more expected complete-data density plus prior."""
    model, lengths = random_model(), [12, 9, 1, 5]
    X = sequences(model, lengths, gaps=True)
    rows = ObservedRows.from_arrays(X, lengths)
    statistics = Statistics.of(model, rows)
    best = maximize(statistics, 1e-3, 0.1)

    def value(model):
        C, d, psi, A, b, Q, mu, Sigma = model

        def gaussian(outputs, products, inputs, W, covariance):
            scatter = outputs - W @ products.T - products @ W.T + W @ inputs @ W.T
            log_det = np.linalg.slogdet(covariance)[1]
            return -0.5 * (inputs[-1, -1] * log_det + np.trace(linalg.solve(covariance, scatter)))

        s, total = statistics, log_prior(model, 0.1)
        total += gaussian(s.after[:3, :3], s.cross[:3], s.before, np.column_stack((A, b)), Q)
        first = s.first
        total += gaussian(first[:3, :3], first[:3, 3:], first[3:, 3:], mu[:, None], Sigma)
        for f, g in enumerate(s.group):
            terms = s.squares[f : f + 1, None], s.features[f : f + 1], s.observed[g]
            total += gaussian(*terms, np.append(C[f], d[f])[None], psi[f].reshape(1, 1))
        return total

    rng = np.random.default_rng(1)
    for name, parameter in zip(StateSpace._fields, best, strict=True):
        for _ in range(5):
            step = 1e-4 * rng.standard_normal(parameter.shape)
            if name in ("transition_noise", "initial_covariance"):
                step = step + step.T
            changes = [
                value(best._replace(**{name: parameter + sign * step})) - value(best)
                for sign in (1, -1)
            ]
            assert max(changes) < 0, name
            # Stationary: what is left is of second order.
            assert abs(changes[0] - changes[1]) < 1e-2 * abs(sum(changes)), name


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("min_noise", [1e-3, 0.5])
def test_no_round_decreases_the_objective(gaps, min_noise):
    lengths = [40, 1, 25, 30]
    X = sequences(random_model(seed=1), lengths, gaps=gaps)
    X = (X - np.nanmean(X, 0)) / np.nanstd(X, 0)
    start = subspace_identification(X, lengths, 2, min_noise=min_noise)
    rounds = em_rounds(ObservedRows.from_arrays(X, lengths), start, min_noise, 1e-3)
    objectives = []
    for _ in range(40):
        model, objective = next(rounds)
        objectives.append(objective)
        want = (model.log_likelihood(X, lengths).sum() + log_prior(model, 1e-3)) / len(X)
        assert objective == pytest.approx(want, rel=1e-10)
        assert (model.noise_variances >= min_noise).all()
    assert (np.diff(objectives) > -1e-9).all()
    assert objectives[-1] > objectives[0]


def rotation(n_features=10):
    """Damped rotation by 0.4 per step, in its stationary state."""
    rng = np.random.default_rng(5)
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    zero, eye = np.zeros(2), np.eye(2)
    return StateSpace(
        rng.standard_normal((n_features, 2)),
        np.zeros(n_features),
        0.5 + rng.random(n_features),
        0.95 * turn,
        zero,
        (1 - 0.95**2) * eye,
        zero,
        eye,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_known_model_is_recovered(seed):
    true = rotation()
    train, held_out = (sequences(true, [2000], seed=s) for s in (seed, seed + 100))
    mean, scale = train.mean(0), train.std(0)
    fit = fit_state_space((train - mean) / scale, [2000], 2, tol=1e-4, random_state=0)
    got, want = (np.sort_complex(linalg.eigvals(m.transition)) for m in (fit.model, true))
    np.testing.assert_allclose(got, want, atol=0.02)
    per_step = fit.model.log_likelihood((held_out - mean) / scale, [2000])[0] / 2000
    per_step -= np.log(scale).sum()
    assert per_step == pytest.approx(true.log_likelihood(held_out, [2000])[0] / 2000, rel=0.01)


def test_a_known_model_is_recovered_in_spite_of_gaps():
    true = rotation()
    X = sequences(true, [500] * 4)
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    X = (X - np.nanmean(X, 0)) / np.nanstd(X, 0)
    fit = fit_state_space(X, [500] * 4, 2, random_state=0)
    got, want = (np.sort_complex(linalg.eigvals(m.transition)) for m in (fit.model, true))
    np.testing.assert_allclose(got, want, atol=0.02)


def test_bouncing_dot():
    """Single frames do not tell the direction; its state is found, and foretells the dot."""
    X, _ = make_bouncing_dot(random_state=0)
    mean, scale = X.mean(0), X.std(0)
    Z = (X - mean) / scale
    start = subspace_identification(Z, [5000], 10)
    fit = fit_state_space(Z, [5000], 10, max_length=100, max_iter=20, random_state=0)
    for model in (start, fit.model):
        turns = np.abs(np.angle(linalg.eigvals(model.transition))) / (2 * np.pi / (80 / 3))
        assert np.abs(turns - 1).min() < 0.01
    X, _ = make_bouncing_dot(200, phase=0.3, random_state=1)
    z = fit.model.smoothed_means((X[:100] - mean) / scale, [100])[-1]
    forecasts = []
    for _ in range(100):
        z = fit.model.transition @ z + fit.model.offset
        forecasts.append(fit.model.loading @ z + fit.model.mean)
    error = np.mean((np.array(forecasts) * scale + mean - X[100:]) ** 2)
    assert error < 0.5 * np.mean((mean - X[100:]) ** 2)


def test_a_fit_goes_on_from_where_another_ended():
    """In canonical coordinates, in which the weak priors differ a little."""
    lengths = [60, 40]
    X = sequences(random_model(n_features=6, seed=2), lengths)
    X = (X - X.mean(0)) / X.std(0)
    early = fit_state_space(X, lengths, 3, max_iter=5, tol=0.0)
    further = fit_state_space(X, lengths, 3, max_iter=15, tol=0.0, start=early.model)
    whole = fit_state_space(X, lengths, 3, max_iter=20, tol=0.0)
    likelihoods = [fit.model.log_likelihood(X, lengths).sum() for fit in (early, further, whole)]
    assert likelihoods[0] + 5 < likelihoods[1]
    assert likelihoods[1] == pytest.approx(likelihoods[2], abs=0.5)
    assert (np.diff(further.objectives) > -1e-9).all()


def test_equal_seeds_give_equal_models_and_rows_are_bounded():
    X = sequences(rotation(), [1500, 700])
    fits = [
        fit_state_space(X, [1500, 700], 2, max_length=50, max_rows=600, random_state=seed)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fits[0].model.loading, fits[1].model.loading)
    assert not np.array_equal(fits[0].model.loading, fits[2].model.loading)


def test_chosen_windows_are_stretches_of_sequences():
    lengths = [100, 7, 55]
    X = np.column_stack((np.repeat(range(3), lengths), np.concatenate([*map(np.arange, lengths)])))
    chosen, kept = choose_windows(X, lengths, 10, 60, np.random.RandomState(0))
    assert 50 < len(chosen) == kept.sum() <= 60
    for window in np.split(chosen, np.cumsum(kept)[:-1]):
        assert (np.diff(window, axis=0) == [0, 1]).all()
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    everything, kept = choose_windows(X, lengths, 1000, 162, np.random.RandomState(0))
    np.testing.assert_array_equal(everything, X)
    assert kept.tolist() == lengths


# Unkind data -------------------------------------------------------------------------------------


def unkind():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    wave = np.sin(np.arange(300) / 3)[:, None]
    hidden = X.copy()
    hidden[:, 2] = np.nan
    constant = X * [1, 0, 1, 1]
    silent = X.copy()
    silent[20:40] = np.nan
    return {
        "sequences of one step": (X, [1] * 60, 3),
        "two rows": (X[:2], [2], 3),
        "one row": (X[:1], [1], 3),
        "short sequences": (X, [3] * 20, 3),
        "ragged": (X, [1, 2, 30, 20, 7], 3),
        "more dimensions than features": (X, [60], 9),
        "one feature": (wave, [300], 10),
        "a constant": (constant, [60], 3),
        "all constant": (np.zeros((60, 4)), [60], 3),
        "a feature never seen": (hidden, [60], 3),
        "a sequence never seen": (silent, [20, 20, 20], 3),
        "nothing seen": (np.full((60, 4), np.nan), [30, 30], 3),
        "equal features": (np.tile(wave, 5), [300], 3),
        "without noise": (wave @ rng.standard_normal((1, 5)), [150, 150], 2),
        "many features": (rng.standard_normal((50, 200)), [25, 25], 4),
        "random walk": (rng.standard_normal((400, 3)).cumsum(0) / 10, [400], 3),
        "explosion": (1.05 ** np.arange(200)[:, None] / 1.05**198 * [1, -2], [200], 2),
        "float32": (X.astype(np.float32), [60], 3),
        "large values": (1e4 * X, [60], 3),
    }


@pytest.mark.parametrize("case", unkind())
def test_any_data_give_a_proper_model(case):
    X, lengths, latent_dim = unkind()[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = subspace_identification(X, lengths, latent_dim)
        fit = fit_state_space(X, lengths, latent_dim, max_iter=15, random_state=0)
    n_features = X.shape[1]
    assert np.abs(linalg.eigvals(start.transition)).max() < 1
    assert (np.diff(fit.objectives) > -1e-7 * np.abs(fit.objectives[0])).all()
    for model in (start, fit.model):
        assert model.loading.shape == (n_features, latent_dim)
        for parameter in model:
            assert parameter.dtype == np.float64
            assert np.isfinite(parameter).all()
        assert (model.noise_variances > 0).all()
        for covariance in (model.transition_noise, model.initial_covariance):
            np.testing.assert_array_equal(covariance, covariance.T)
            assert linalg.eigvalsh(covariance)[0] > 0
        assert np.isfinite(model.log_likelihood(X, lengths)).all()


def test_independent_rows_get_principal_axes_and_no_memory():
    rng = np.random.default_rng(0)
    loading = linalg.qr(rng.standard_normal((8, 2)), mode="economic")[0] * [3, 2]
    X = rng.standard_normal((3000, 2)) @ loading.T + 0.5 * rng.standard_normal((3000, 8))
    for lengths in ([1] * 3000, [3000]):
        start = subspace_identification(X, lengths, 2)
        assert linalg.subspace_angles(start.loading, loading).max() < 0.05
        np.testing.assert_allclose(start.transition, 0.0)
    model = fit_state_space(X, [3000], 2, random_state=0).model
    assert linalg.subspace_angles(model.loading, loading).max() < 0.05
    np.testing.assert_allclose(model.transition, 0.0, atol=0.1)


def test_directions_that_are_left_over_load_on_nothing():
    x = np.sin(np.arange(400) / 3)[:, None] + 0.1 * np.random.default_rng(0).standard_normal(
        (400, 1)
    )
    start = subspace_identification(x, [400], 10)
    spare = np.abs(start.loading[0]) == 0
    assert 5 <= spare.sum() <= 8
    np.testing.assert_array_equal(start.transition[spare], 0.0)
    np.testing.assert_array_equal(start.transition_noise[spare][:, spare], np.eye(spare.sum()))


def test_gaps_are_interpolated_for_the_start():
    X = np.sin(np.arange(500) / 4)[:, None] * [1.0, -1.0, 0.5]
    gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    turns = [
        np.abs(np.angle(linalg.eigvals(subspace_identification(x, [500], 2).transition)))
        for x in (X, gaps)
    ]
    np.testing.assert_allclose(turns, 0.25, rtol=0.01)


def test_many_rows_and_features_are_reduced():
    X = sequences(rotation(30), [1000] * 2)
    start = subspace_identification(X, [1000] * 2, 2, max_rows=1500, max_length=100)
    got = np.sort_complex(linalg.eigvals(start.transition))
    want = np.sort_complex(linalg.eigvals(rotation().transition))
    np.testing.assert_allclose(got, want, atol=0.05)
