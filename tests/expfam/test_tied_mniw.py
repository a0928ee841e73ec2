# SPDX-License-Identifier: BSD-3-Clause
"""Regressions with one noise covariance, as the one regression on blocks of columns they are."""

import math

import pytest
import torch

from sksvae.expfam import (
    MNIW,
    MNIWNatural,
    MNIWParams,
    TiedMNIW,
    TiedMNIWParams,
    natural_step,
    step_towards,
)

from .cases import BATCH_SHAPES, assert_fields_close, random_standard

N_STATES = 4
TIED = TiedMNIW()

every_batch = pytest.mark.parametrize("batch_shape", BATCH_SHAPES)
every_step_size = pytest.mark.parametrize("step_size", [0.0, 0.3, 1.0])


def random_tied(batch_shape=(), seed=0, n_states=N_STATES, dtype=torch.float64):
    """Shared fields of one regression, the others of one regression for each state."""
    shared = random_standard("mniw", batch_shape, seed, dtype)
    own = random_standard("mniw", (*batch_shape, n_states), seed + 100, dtype)
    return TiedMNIWParams(shared.scale, own.mean, own.mean_precision, shared.dof)


def side_by_side(matrices):
    """``[X_1 ... X_K]``, of shape (..., n, K m)."""
    return torch.cat(matrices.unbind(-3), -1)


def block_diagonal(matrices):
    """Shape (..., K, m, m) to (..., K m, K m), without a loop over states."""
    n_states, size = matrices.shape[-3:-1]
    eye = torch.eye(n_states, dtype=matrices.dtype)
    return torch.einsum("...kab,kl->...kalb", matrices, eye).reshape(
        *matrices.shape[:-3], n_states * size, n_states * size
    )


def stacked(tied):
    """The same distribution as one over ``X = [X_1 ... X_K]``."""
    scale, mean, mean_precision, dof = tied
    return MNIWParams(scale, side_by_side(mean), block_diagonal(mean_precision), dof)


def stacked_natural(natural):
    """Natural parameters, or a tangent, of that one."""
    precision, precision_mean, quadratic, count = natural
    return MNIWNatural(
        precision.sum(-3), side_by_side(precision_mean), block_diagonal(quadratic), count.sum(-1)
    )


def converted(fields, dtype):
    return type(fields)(*(field.to(dtype) for field in fields))


# What it is --------------------------------------------------------------------------------------


@every_batch
def test_expected_stats_are_those_of_the_blocks(batch_shape):
    tied = random_tied(batch_shape)
    got = TIED.standard_expected_stats(tied)
    want = MNIW().standard_expected_stats(stacked(tied))
    for k in range(N_STATES):
        assert_fields_close((got.precision[..., k, :, :],), (want.precision,), 1e-12)
        assert_fields_close((got.log_det_precision[..., k],), (want.log_det_precision,), 1e-12)
        block = slice(2 * k, 2 * (k + 1))
        assert_fields_close(
            (got.quadratic[..., k, :, :],), (want.quadratic[..., block, block],), 1e-12
        )
    assert_fields_close((side_by_side(got.precision_mean),), (want.precision_mean,), 1e-12)


@every_batch
def test_natural_parameters_and_their_inner_products_are_those_of_the_blocks(batch_shape):
    tied, other = random_tied(batch_shape), random_tied(batch_shape, seed=1)
    natural, want = TIED.to_natural(tied), MNIW().to_natural(stacked(tied))
    assert type(natural) is MNIWNatural
    assert_fields_close(stacked_natural(natural), want, 1e-12)
    stats = TIED.standard_expected_stats(other)
    inner = sum(
        (eta * mu).flatten(len(batch_shape)).sum(-1) for eta, mu in zip(natural, stats, strict=True)
    )
    expected = MNIW().standard_expected_stats(stacked(other))
    assert_fields_close((inner,), (MNIW().inner(want, expected),), 1e-12)


def test_expected_stats_are_the_gradient_of_the_normalizer():
    """With respect to the natural parameters of every state, shares of the noise included."""
    tied = random_tied()
    natural = MNIWNatural(*(field.requires_grad_() for field in TIED.to_natural(tied)))
    MNIW().log_normalizer(stacked_natural(natural)).backward()
    gradient = [field.grad for field in natural]
    assert_fields_close(gradient, TIED.standard_expected_stats(tied), 1e-10)


@every_batch
def test_the_normalizer_is_that_of_the_blocks(batch_shape):
    tied = random_tied(batch_shape)
    want = MNIW().log_normalizer(MNIW().to_natural(stacked(tied)))
    assert_fields_close((TIED.standard_log_normalizer(tied),), (want,), 1e-12)


@every_batch
def test_the_divergence_is_that_of_the_blocks(batch_shape):
    q, p = random_tied(batch_shape), random_tied(seed=1)
    want = MNIW().standard_kl(stacked(q), stacked(p))
    assert_fields_close((TIED.standard_kl(q, p),), (want,), 1e-12)
    # The noise counts once: that is less than in the marginals together.
    apart = MNIW().standard_kl(q.per_state(), p.per_state()).sum(-1)
    assert (want < apart - 0.01).all()
    assert TIED.standard_kl(q, q).abs().max() < 1e-12


def test_single_precision_agrees_with_double():
    q, p = random_tied((3,)), random_tied((3,), seed=1)
    single = converted(q, torch.float32), converted(p, torch.float32)
    pairs = [
        (TIED.standard_expected_stats(single[0]), TIED.standard_expected_stats(q)),
        (TIED.to_natural(single[0]), TIED.to_natural(q)),
        ((TIED.standard_kl(*single),), (TIED.standard_kl(q, p),)),
        ((TIED.standard_log_normalizer(single[0]),), (TIED.standard_log_normalizer(q),)),
    ]
    for got, want in pairs:
        assert all(field.dtype == torch.float32 for field in got)
        assert_fields_close([field.double() for field in got], list(want), 1e-5)


@every_batch
def test_a_single_state_is_a_regression(batch_shape):
    q, p = random_tied(batch_shape, n_states=1), random_tied(batch_shape, 1, n_states=1)
    one, other = (
        MNIWParams(t.scale, t.mean.squeeze(-3), t.mean_precision.squeeze(-3), t.dof) for t in (q, p)
    )
    target = TIED.to_natural(p)
    for got, want in [
        (TIED.standard_expected_stats(q), MNIW().standard_expected_stats(one)),
        (target, MNIW().to_natural(other)),
        (
            step_towards(TIED, q, target, 0.3).per_state(),
            step_towards(MNIW(), one, MNIW().to_natural(other), 0.3),
        ),
    ]:
        dropped = [f.squeeze(len(batch_shape)) for f in got]
        assert_fields_close(dropped, list(want), 1e-12)
    assert_fields_close((TIED.standard_kl(q, p),), (MNIW().standard_kl(one, other),), 1e-12)


@pytest.mark.parametrize("field", ["scale", "mean_precision"])
def test_indefinite_matrices_are_an_error(field):
    tied = random_tied()
    broken = tied._replace(**{field: -getattr(tied, field)})
    with pytest.raises(torch.linalg.LinAlgError, match=field):
        TIED.standard_expected_stats(broken)
    with pytest.raises(torch.linalg.LinAlgError, match=field):
        TIED.standard_kl(tied, broken)
    with pytest.raises(torch.linalg.LinAlgError, match=field):
        TIED.standard_log_normalizer(broken)


# Steps -------------------------------------------------------------------------------------------


def way_between(start, end):
    return MNIWNatural(
        *(b - a for a, b in zip(TIED.to_natural(start), TIED.to_natural(end), strict=True))
    )


@every_batch
@every_step_size
def test_steps_are_those_of_the_blocks(batch_shape, step_size):
    standard, end = random_tied(batch_shape), random_tied(batch_shape, seed=1)
    tangent, target = way_between(standard, end), TIED.to_natural(end)
    want = natural_step(MNIW(), stacked(standard), stacked_natural(tangent), step_size)
    for got in (
        natural_step(TIED, standard, tangent, step_size),
        step_towards(TIED, standard, target, step_size),
    ):
        assert type(got) is TiedMNIWParams
        assert_fields_close(stacked(got), want, 1e-10)
    if step_size == 1.0:
        assert_fields_close(got, end, 1e-10)


def test_a_full_step_is_the_posterior_of_all_regressions():
    """Residuals of all states add up in one scale; by the textbook, state by state."""
    prior, current = random_tied(), random_tied(seed=1)
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(N_STATES, 3, 15, generator=generator, dtype=torch.float64)
    x = torch.randn(N_STATES, 2, 15, generator=generator, dtype=torch.float64)
    count = torch.full((N_STATES,), 7.5, dtype=torch.float64)
    stats = MNIWNatural(-0.5 * y @ y.mT, y @ x.mT, -0.5 * x @ x.mT, count)
    target = MNIWNatural(*(a + b for a, b in zip(TIED.to_natural(prior), stats, strict=True)))
    scale, mean, mean_precision, dof = prior
    new_precision = mean_precision + x @ x.mT
    new_mean = (mean @ mean_precision + y @ x.mT) @ torch.linalg.inv(new_precision)
    residual, shift = y - new_mean @ x, new_mean - mean
    outer = residual @ residual.mT + shift @ mean_precision @ shift.mT
    want = TiedMNIWParams(scale + outer.sum(0), new_mean, new_precision, dof + 15 * N_STATES)
    assert_fields_close(step_towards(TIED, current, target, 1.0), want, 1e-11)
    assert_fields_close(natural_step(TIED, prior, stats, 1.0), want, 1e-11)


@every_batch
def test_states_are_halved_together(batch_shape):
    """Wherever any of them would leave the domain, and as the blocks are."""
    standard = random_tied(batch_shape)
    target = MNIWNatural(*(-2.0 * field for field in TIED.to_natural(standard)))
    tangent = MNIWNatural(*(-3.0 * field for field in TIED.to_natural(standard)))
    want = natural_step(MNIW(), stacked(standard), stacked_natural(tangent), 1.0)
    assert (want.dof - standard.dof).abs().max() > 0.01
    for got in (
        natural_step(TIED, standard, tangent, 1.0),
        step_towards(TIED, standard, target, 1.0),
    ):
        assert_fields_close(stacked(got), want, 1e-9)


@pytest.mark.parametrize(
    ("field", "velocity", "n_halvings"),
    [
        ("quadratic", 1.6, 2),  # V: 1 - 2 rho 1.6 > 0 needs rho < 0.3125
        ("precision", 5.0, 4),  # S: 1 - 2 rho 5 > 0 needs rho < 1/10
        ("log_det_precision", -9.0, 3),  # nu: 4 - 2 rho 9 > 1 needs rho < 1/6
    ],
)
def test_one_state_that_would_leave_the_domain_halves_the_step_of_all(field, velocity, n_halvings):
    """Of this entry of the batch, and not of the other."""
    eye = torch.eye(2, dtype=torch.float64)
    nothing = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    four = torch.full((2,), 4.0, dtype=torch.float64)
    standard = TiedMNIWParams(eye.expand(2, 2, 2), nothing, eye.expand(2, 3, 2, 2), four)
    tangent = MNIWNatural(nothing.clone(), nothing + eye, nothing.clone(), torch.zeros(2, 3))
    tangent = converted(tangent, torch.float64)
    tangent.precision_mean[1, 1:] = 0.0
    tangent.precision_mean[0] *= 0.1
    tangent.precision_mean[1, 0] *= 0.01
    getattr(tangent, field)[1, 2] = velocity * (eye if field != "log_det_precision" else 1.0)
    got = natural_step(TIED, standard, tangent, 1.0)
    rho = torch.tensor([1.0, 0.5**n_halvings], dtype=torch.float64)
    torch.testing.assert_close(got.mean[0], 0.1 * eye.expand(3, 2, 2))
    torch.testing.assert_close(got.mean[1, 0], 0.01 * rho[1] * eye)
    direction = MNIWNatural(*(f * rho.view(2, *(1,) * (f.ndim - 1)) for f in tangent))
    want = natural_step(MNIW(), stacked(standard), stacked_natural(direction), 1.0)
    assert_fields_close(stacked(got), want, 1e-12)


def test_only_the_sum_of_shares_matters():
    standard, tangent = random_tied(), way_between(random_tied(), random_tied(seed=1))
    order = torch.tensor([2, 0, 3, 1])
    turned = tangent._replace(
        precision=tangent.precision[order], log_det_precision=tangent.log_det_precision[order]
    )
    got, want = (natural_step(TIED, standard, t, 0.7) for t in (turned, tangent))
    assert_fields_close(got, want, 1e-12)


def test_far_from_the_origin_single_precision_keeps_the_scale():
    """Data where the distribution is centred, with numbers that fit in single precision."""
    eye, ones = torch.eye(2), torch.ones(3, 2, 2)
    mean = 1000.0 * torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1) * ones
    standard = TiedMNIWParams(1e-4 * eye, mean, 2 * eye.expand(3, 2, 2), torch.tensor(6.0))
    stats = MNIWNatural(
        -0.5 * mean @ mean.mT, mean, -0.5 * eye.expand(3, 2, 2), torch.full((3,), 0.5)
    )
    got = natural_step(TIED, standard, stats, 1.0)
    assert {field.dtype for field in got} == {torch.float32}
    torch.testing.assert_close(got.scale, standard.scale, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(got.mean, mean, rtol=1e-6, atol=0.0)
    assert got.dof == 9.0


def test_the_arguments_are_left_as_they_are():
    standard, tangent = random_tied(), way_between(random_tied(), random_tied(seed=1))
    copies = [[field.clone() for field in fields] for fields in (standard, tangent)]
    natural_step(TIED, standard, tangent, 0.5)
    for fields, copied in zip((standard, tangent), copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(fields, copied, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_tangent_that_is_not_finite_is_an_error(value):
    standard = random_tied((2,))
    for field in range(4):
        tangent = [torch.zeros_like(f) for f in TIED.to_natural(standard)]
        tangent[field].view(2, -1)[1, 0] = value
        with pytest.raises(ValueError, match="is not finite"):
            natural_step(TIED, standard, MNIWNatural(*tangent), 1.0)
