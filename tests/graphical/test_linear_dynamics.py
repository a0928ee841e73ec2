# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics: inference in sequences given q(theta)."""

import numpy as np
import pytest
import torch
from scipy import stats

from sksvae.expfam import MNIW, NIW
from sksvae.graphical import SEQUENCE_MODELS, LinearDynamicsModel, Potentials, SequenceModel
from tests.graphical.dynamics_cases import (
    LOCAL,
    assert_close,
    converted,
    dense_expected,
    dense_prior,
    evidence_term,
    infer,
    normal,
    random_evidence,
    random_model,
    surrogate,
    take,
)

LENGTHS = [6, 1, 4, 2, 5]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def test_the_model_is_registered():
    assert SEQUENCE_MODELS["linear_dynamics"] is LinearDynamicsModel
    assert all(issubclass(model, SequenceModel) for model in SEQUENCE_MODELS.values())


# Inference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sequential", "parallel", "auto"])
@pytest.mark.parametrize("dim", [1, 3])
def test_posteriors_agree_with_the_dense_joint(dim, method):
    model = random_model(dim)
    potentials, mask = random_evidence(LENGTHS, dim)
    posterior = infer(model, potentials, mask, method=method)
    for n, n_steps in enumerate(LENGTHS):
        r, R = take(potentials, mask, n)
        J, h, constant = dense_expected(model, n_steps)
        joint, total = J + np.diag(R.ravel()), h + r.ravel()
        covariance = np.linalg.inv(joint)
        mean = covariance @ total
        blocks = covariance.reshape(n_steps, dim, n_steps, dim).swapaxes(1, 2)
        steps = np.arange(n_steps)
        assert_close(posterior.mean[n, :n_steps].detach().numpy().ravel(), mean, **EXACT)
        assert_close(posterior.covariance[n, :n_steps].detach(), blocks[steps, steps], **EXACT)
        lag = posterior.lag_covariance[n, : n_steps - 1].detach()
        assert_close(lag, blocks[steps[1:], steps[:-1]], **EXACT)
        # E log q(z) - E log p(z | theta)
        size = n_steps * dim
        negative_entropy = 0.5 * (np.linalg.slogdet(joint)[1] - size * (1 + np.log(2 * np.pi)))
        prior = h @ mean - 0.5 * np.trace(J @ (covariance + np.outer(mean, mean))) + constant
        assert posterior.local_kl[n].item() == pytest.approx(negative_entropy - prior, abs=1e-9)
        for field in ("mean", "covariance"):
            assert (getattr(posterior, field)[n, n_steps:] == 0).all()


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_draws_have_the_joint_covariance(method):
    """A draw is the mean plus a square root of the joint covariance times the noise."""
    model, dim, n_steps = random_model(2), 2, 5
    potentials, mask = random_evidence([n_steps], dim)
    unit = torch.eye(n_steps * dim, dtype=torch.float64).view(-1, 1, n_steps, dim)
    posterior = infer(model, potentials, mask, noise=unit, method=method)
    root = (posterior.draws - posterior.mean).detach().numpy().reshape(n_steps * dim, -1)
    J, _, _ = dense_expected(model, n_steps)
    joint = J + np.diag(take(potentials, mask, 0)[1].ravel())
    assert_close(root.T @ root, np.linalg.inv(joint), **EXACT)


@pytest.mark.parametrize("cuts", [[*range(21)], [0, 7, 14, 20], [0, 19, 20], [0, 1, 20], [0, 20]])
def test_stretches_of_a_sequence_have_the_posterior_of_the_whole(cuts):
    model = random_model(3)
    evidence, mask = random_evidence([20], 3)
    params = model.expected_params()

    def read(a, b):
        return Potentials(*(field[:, a:b] for field in evidence))

    parts = list(model.infer_stretches(read, params, cuts))
    assert not any(part.mean.requires_grad for part in parts)
    assert [part.mask.sum() for part in parts] == np.diff(cuts).tolist()
    want = model.infer(evidence, params, mask)
    for name in ("mean", "covariance", "lag_covariance"):
        got = torch.cat([getattr(part, name) for part in parts], 1)
        torch.testing.assert_close(got, getattr(want, name).detach(), rtol=1e-10, atol=1e-12)
    total = sum(part.local_kl for part in parts)
    torch.testing.assert_close(total, want.local_kl.detach(), rtol=1e-10, atol=1e-10)


def test_without_noise_there_are_no_draws():
    potentials, mask = random_evidence(LENGTHS)
    assert infer(random_model(), potentials, mask).draws.shape == (0, *potentials[0].shape)


def test_local_kl_is_the_kl_monte_carlo():
    """Over draws of z and of theta."""
    model, dim, n_steps, n_draws = random_model(2), 2, 3, 40_000
    potentials, mask = random_evidence([n_steps], dim)
    posterior = infer(model, potentials, mask, noise=normal(n_draws, 1, n_steps, dim, seed=5))
    z = posterior.draws[:, 0].detach()
    J, _, _ = dense_expected(model, n_steps)
    _, R = take(potentials, mask, 0)
    q = stats.multivariate_normal(
        posterior.mean[0].detach().numpy().ravel(), np.linalg.inv(J + np.diag(R.ravel()))
    )
    generator = torch.Generator().manual_seed(0)
    start = NIW().sample(model.posterior.initial, (n_draws,), generator)
    X, Q = MNIW().sample(model.posterior.dynamics, (n_draws,), generator)
    log_p = torch.distributions.MultivariateNormal(start.mean, start.covariance).log_prob(z[:, 0])
    for t in range(n_steps - 1):
        regressors = torch.cat([z[:, t], torch.ones(n_draws, 1, dtype=z.dtype)], -1)
        mean = (X @ regressors.unsqueeze(-1)).squeeze(-1)
        log_p = log_p + torch.distributions.MultivariateNormal(mean, Q).log_prob(z[:, t + 1])
    values = q.logpdf(z.reshape(n_draws, -1).numpy()) - log_p.numpy()
    error = values.std() / n_draws**0.5
    assert abs(values.mean() - posterior.local_kl.item()) < 5 * error
    assert error < 0.05


def test_expected_params_are_those_of_the_families():
    model = random_model(3)
    params = model.expected_params()
    wanted = (
        *NIW().expected_stats(NIW().to_natural(model.posterior.initial)),
        *MNIW().expected_stats(MNIW().to_natural(model.posterior.dynamics)),
    )
    for got, want in zip(params, wanted, strict=True):
        assert got.is_leaf
        assert got.requires_grad
        assert_close(got.detach(), want)


def rts_smoother(parameters, x, noise):
    """Kalman filter and RTS smoother by the book, for observations ``x`` of ``z`` itself.

    Steps without an observation have infinite noise.
    """
    A, b, Q, m, P = (field.numpy() for field in parameters)
    filtered, predicted, log_likelihood = [], [], 0.0
    for t in range(len(x)):
        if t:
            m, P = A @ m + b, A @ P @ A.T + Q
        predicted.append((m, P))
        if np.isfinite(noise[t]).all():
            S = P + np.diag(noise[t])
            log_likelihood += stats.multivariate_normal(m, S).logpdf(x[t])
            K = P @ np.linalg.inv(S)
            m, P = m + K @ (x[t] - m), P - K @ S @ K.T
        filtered.append((m, P))
    smoothed = [filtered[-1]]
    for t in reversed(range(len(x) - 1)):
        (m, P), (m_next, P_next) = filtered[t], predicted[t + 1]
        G = P @ A.T @ np.linalg.inv(P_next)
        m_smooth, P_smooth = smoothed[0]
        smoothed.insert(0, (m + G @ (m_smooth - m_next), P + G @ (P_smooth - P_next) @ G.T))
    return smoothed, log_likelihood


def test_certain_parameters_give_the_textbook_smoother_and_likelihood():
    """``E log l - local_kl`` is the log evidence of the potentials, seen as observations."""
    dim = 3
    model = random_model(dim, certainty=1e12)
    potentials, mask = random_evidence(LENGTHS, dim)
    posterior = infer(model, potentials, mask)
    parameters = model.point_parameters()
    for n, n_steps in enumerate(LENGTHS):
        r, R = take(potentials, mask, n)
        seen = R.all(-1)
        noise = np.where(R > 0, 1 / np.where(R > 0, R, 1.0), np.inf)
        x = np.where(R > 0, r, 0.0) * np.where(R > 0, noise, 0.0)
        smoothed, log_likelihood = rts_smoother(parameters, x, noise)
        for t, (m, P) in enumerate(smoothed):
            assert_close(posterior.mean[n, t].detach(), m, rtol=1e-8, atol=1e-9)
            assert_close(posterior.covariance[n, t].detach(), P, rtol=1e-8, atol=1e-9)
        # l(z) is N(x | z, 1 / R) times a constant.
        constant = 0.5 * (x**2 * R + np.log(2 * np.pi * noise))[seen].sum()
        got = surrogate(potentials, posterior)[n].item() - constant
        assert got == pytest.approx(log_likelihood, abs=1e-8)
        if seen.any():
            mean, covariance = dense_prior(parameters, n_steps)
            rows = np.repeat(seen, dim)
            total = covariance[rows][:, rows] + np.diag(noise[seen].ravel())
            stacked = stats.multivariate_normal(mean[rows], total).logpdf(x[seen].ravel())
            assert got == pytest.approx(stacked, abs=1e-8)


def test_an_unobserved_sequence_has_the_expected_dynamics_as_posterior():
    model = random_model()
    nothing = Potentials(*torch.zeros(2, 1, 4, 2, dtype=torch.float64))
    mask = torch.ones(1, 4, dtype=torch.bool)
    posterior = infer(model, nothing, mask)
    assert posterior.local_kl.item() > 0
    J, h, _ = dense_expected(model, 4)
    assert_close(posterior.mean.detach().numpy().ravel(), np.linalg.solve(J, h), **EXACT)


def test_local_kl_is_not_negative():
    potentials, mask = random_evidence([7] * 20)
    for exponent in range(-8, 9, 2):
        scaled = Potentials(*(10.0**exponent * field for field in potentials))
        assert (infer(random_model(), scaled, mask).local_kl >= 0).all()


# Sequences ---------------------------------------------------------------------------------------


def test_sequences_do_not_interact_and_padding_does_not_matter():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    noise = normal(2, *potentials[0].shape, seed=7)
    together = infer(model, potentials, mask, noise=noise, method="sequential")
    order = torch.tensor([3, 0, 4])
    shape = 3, 4, 2

    def wider(field):
        return torch.cat([field[order], torch.full(shape, torch.nan, dtype=field.dtype)], 1)

    longer = torch.cat([mask[order], torch.zeros(3, 4, dtype=torch.bool)], 1)
    some = infer(
        model,
        Potentials(*(wider(field) for field in potentials)),
        longer,
        noise=torch.stack([wider(draw) for draw in noise]),
        method="sequential",
    )
    tight = {"rtol": 1e-12, "atol": 1e-12}
    assert_close(some.local_kl, together.local_kl[order], **tight)
    for field in ("mean", "covariance"):
        assert_close(getattr(some, field)[:, :6], getattr(together, field)[order], **tight)
    assert_close(some.lag_covariance[:, :5], together.lag_covariance[order], **tight)
    assert_close(some.draws[:, :, :6], together.draws[:, order], **tight)
    one_by_one = sum_of(model, potentials, mask, order)
    for got, want in zip(model.total_stats(some), one_by_one, strict=True):
        assert_close(got, want, **tight)


def sum_of(model, potentials, mask, sequences):
    """Statistics of sequences, inferred one by one and without padding."""
    each = []
    for n in sequences.tolist():
        alone = Potentials(*(field[n : n + 1, mask[n]] for field in potentials))
        all_steps = torch.ones(1, int(mask[n].sum()), dtype=torch.bool)
        each.append(model.total_stats(infer(model, alone, all_steps)))
    return [sum(fields) for fields in zip(*each, strict=True)]


def test_a_gap_in_the_mask_separates_sequences():
    """Two sequences in one row of the batch are as good as one in each."""
    model = random_model()
    potentials, mask = random_evidence([3, 3])
    packed = Potentials(*(torch.cat([f[:1], f[:1] * torch.nan, f[1:]], 1) for f in potentials))
    joined = torch.cat([mask[:1], ~mask[:1], mask[1:]], 1)
    apart, got = infer(model, potentials, mask), infer(model, packed, joined)
    assert_close(got.local_kl, apart.local_kl.sum().view(1))
    assert_close(got.mean[0, :3], apart.mean[0])
    assert_close(got.covariance[0, 6:], apart.covariance[1])
    for a, b in zip(model.total_stats(got), model.total_stats(apart), strict=True):
        assert_close(a, b)


def test_a_sequence_without_steps_counts_for_nothing():
    model = random_model()
    potentials, mask = random_evidence([4, 0])
    posterior = infer(model, potentials, mask)
    assert posterior.local_kl[1] == 0
    first = sum_of(model, potentials, mask, torch.tensor([0]))
    for got, want in zip(model.total_stats(posterior), first, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 5), torch.float64), ((2, 4), torch.bool), ((5,), torch.bool)]
)
def test_masks_that_do_not_fit_are_an_error(shape, dtype):
    potentials, _ = random_evidence([5, 5])
    with pytest.raises(ValueError, match="mask must be boolean of shape"):
        infer(random_model(), potentials, torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_potentials_are_an_error(bad):
    (r, R), mask = random_evidence([4])
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        infer(random_model(), Potentials(r, R.index_fill(1, torch.tensor([2]), bad)), mask)


# Precision ---------------------------------------------------------------------------------------


def test_single_precision_agrees_with_double():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    single = converted(model, torch.float32)
    got = infer(single, Potentials(*(field.float() for field in potentials)), mask)
    want = infer(model, potentials, mask)
    for field in LOCAL:
        assert getattr(got, field).dtype == torch.float32
        assert_close(getattr(got, field).double(), getattr(want, field), rtol=1e-4, atol=1e-4)
    for a, b in zip(single.total_stats(got), model.total_stats(want), strict=True):
        assert a.dtype == torch.float32
        assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_precise_potentials_in_single_precision():
    """Where ``log l(z)`` is in the millions, the divergence is exact to a thousandth per step."""
    model, n_steps = random_model(4), 200
    (r, R), mask = random_evidence([n_steps] * 3, 4, unobserved=0.0)
    potentials = Potentials(1e4 * r, 1e4 * R)
    want = infer(model, potentials, mask)
    single = converted(model, torch.float32)
    got = infer(single, Potentials(*(field.float() for field in potentials)), mask)
    assert evidence_term(potentials, want).min() > 1e6
    assert ((got.local_kl - want.local_kl).abs() < 1e-3 * n_steps).all()
