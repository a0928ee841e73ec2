# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every registered family; a new one is covered by its registration line."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import EXPONENTIAL_FAMILIES, natural_expected_stats
from sksvae.expfam.base import ExponentialFamily, Unconstrained

from .cases import (
    BATCH_SHAPES,
    NAMES,
    assert_fields_close,
    concentrated_standard,
    default_sizes,
    flatten,
    generator,
    random_natural,
    random_standard,
    random_unconstrained,
    standard_parameters,
    unflatten,
    z_scores,
)

N_DRAWS = 20_000
N_SIGMA = 5.0  # the seeds are fixed, so the tests below are deterministic

every_family = pytest.mark.parametrize("name", NAMES)
every_batch = pytest.mark.parametrize("batch_shape", BATCH_SHAPES)


def random_tangent(family, natural, seed=0):
    noise = (torch.randn(f.shape, generator=generator(seed), dtype=f.dtype) for f in natural)
    return family.symmetrize(tuple(noise))


def log_prob_draws(family, standard, natural, seed=0):
    sample = family.sample(standard, (N_DRAWS,), generator(seed))
    return sample, family.log_prob(natural, sample)


# Structure ---------------------------------------------------------------------------------------


@every_family
@every_batch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms_have_the_stated_types_shapes_and_dtype(name, batch_shape, dtype):
    family = EXPONENTIAL_FAMILIES[name]
    standard = concentrated_standard(name, batch_shape, dtype=dtype)
    natural = family.to_natural(standard)
    stats = family.expected_stats(natural)
    unconstrained = family.to_unconstrained(standard)
    sample = family.sample(standard, (5,), generator())
    assert type(standard) is type(family.from_natural(natural)) is family.standard_type
    assert type(natural) is family.natural_type
    assert type(stats) is type(family.stats_of(sample)) is family.stats_type
    shapes = [(*batch_shape, *s) for s in family.unconstrained_shapes(*default_sizes(family))]
    assert [tuple(u.shape) for u in unconstrained] == shapes
    for eta, mu, drawn, n_dims in zip(
        natural, stats, family.stats_of(sample), family.event_dims, strict=True
    ):
        assert eta.shape == mu.shape
        assert eta.shape[: eta.ndim - n_dims] == batch_shape
        assert drawn.shape == (5, *eta.shape)
    per_entry = [
        family.log_normalizer(natural),
        family.entropy(natural),
        family.kl(natural, natural),
        family.unconstrained_kl(unconstrained, natural),
        family.inner(natural, stats),
    ]
    assert all(value.shape == batch_shape for value in per_entry)
    assert family.log_prob(natural, sample).shape == (5, *batch_shape)
    everything = (*standard, *natural, *stats, *unconstrained, *per_entry)
    assert {tensor.dtype for tensor in everything} == {dtype}


@every_family
def test_batch_entries_do_not_interact(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name, (2, 3))
    other = random_natural(name, (2, 3), seed=1)
    tangent = random_tangent(family, other)

    def everything(standard, other, tangent):
        natural = family.to_natural(standard)
        unconstrained = family.to_unconstrained(standard)
        return (
            *natural,
            *family.from_natural(natural),
            *unconstrained,
            *family.expected_stats(natural),
            *family.tangent_to_unconstrained(unconstrained, tangent),
            family.log_normalizer(natural),
            family.entropy(natural),
            family.kl(natural, other),
            family.unconstrained_kl(unconstrained, other),
        )

    def entry(fields):
        return type(fields)(*(field[1, 2] for field in fields))

    batched = everything(standard, other, tangent)
    single = everything(entry(standard), entry(other), entry(tangent))
    assert_fields_close(tuple(field[1, 2] for field in batched), single, 1e-11)


@every_family
def test_single_precision_agrees_with_double(name):
    family = EXPONENTIAL_FAMILIES[name]
    natural = random_natural(name, (3,))
    prior = random_natural(name, (3,), seed=1)
    single, single_prior = (type(n)(*(f.float() for f in n)) for n in (natural, prior))
    assert_fields_close(
        tuple(f.double() for f in family.expected_stats(single)),
        family.expected_stats(natural),
        1e-4,
    )
    torch.testing.assert_close(
        family.log_normalizer(single).double(), family.log_normalizer(natural), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        family.kl(single, single_prior).double(), family.kl(natural, prior), rtol=1e-3, atol=1e-4
    )


# Conversions -------------------------------------------------------------------------------------


@every_family
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_round_trips(name, data):
    family = EXPONENTIAL_FAMILIES[name]
    standard = data.draw(standard_parameters(family))
    natural = family.to_natural(standard)
    unconstrained = family.to_unconstrained(standard)
    assert_fields_close(family.from_natural(natural), standard, 1e-9)
    assert_fields_close(family.to_natural(family.from_natural(natural)), natural, 1e-9)
    back = family.from_unconstrained(unconstrained)
    assert_fields_close(back, standard, 1e-9)
    assert_fields_close(family.to_unconstrained(back), unconstrained, 1e-9)


@every_family
@every_batch
def test_any_real_numbers_are_valid_unconstrained_parameters(name, batch_shape):
    family = EXPONENTIAL_FAMILIES[name]
    unconstrained = tuple(
        3.0 * torch.randn((*batch_shape, *shape), generator=generator(), dtype=torch.float32)
        for shape in family.unconstrained_shapes(*default_sizes(family))
    )
    stats = family.unconstrained_expected_stats(unconstrained)
    assert all(field.isfinite().all() for field in stats)
    tangent = family.tangent_to_unconstrained(unconstrained, family.natural_type(*stats))
    assert all(field.isfinite().all() for field in tangent)


# Expectations and divergences --------------------------------------------------------------------


@every_family
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_expected_stats_are_the_gradient_of_the_log_normalizer(name, data):
    family = EXPONENTIAL_FAMILIES[name]
    natural = family.to_natural(data.draw(standard_parameters(family)))
    leaves = family.natural_type(*(field.clone().requires_grad_() for field in natural))
    gradient = torch.autograd.grad(family.log_normalizer(leaves).sum(), leaves)
    assert_fields_close(tuple(family.symmetrize(gradient)), family.expected_stats(natural), 1e-8)


@every_family
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_expected_stats_agree_whatever_they_come_from(name, data):
    family = EXPONENTIAL_FAMILIES[name]
    standard = data.draw(standard_parameters(family))
    expected = family.expected_stats(family.to_natural(standard))
    from_u = family.unconstrained_expected_stats(family.to_unconstrained(standard))
    assert_fields_close(from_u, expected, 1e-8)
    assert_fields_close(family.standard_expected_stats(standard), expected, 1e-8)


@every_family
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_kl_agrees_with_bregman_form_and_is_nonnegative(name, data):
    family = EXPONENTIAL_FAMILIES[name]
    q, p = data.draw(standard_parameters(family, n=2))
    natural_q, natural_p = family.to_natural(q), family.to_natural(p)
    kl = family.kl(natural_q, natural_p)
    bregman = ExponentialFamily.kl(family, natural_q, natural_p)
    torch.testing.assert_close(kl, bregman, rtol=1e-8, atol=1e-8)
    from_u = family.unconstrained_kl(family.to_unconstrained(q), natural_p)
    torch.testing.assert_close(from_u, kl, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(family.standard_kl(q, p), kl, rtol=1e-8, atol=1e-8)
    assert (kl > -1e-9).all()


@every_family
def test_kl_is_zero_if_and_only_if_equal(name):
    family = EXPONENTIAL_FAMILIES[name]
    natural = random_natural(name, (3,))
    assert family.kl(natural, natural).abs().max() < 1e-11
    # Moving any single coordinate by little gives a KL that is small, positive and quadratic.
    unconstrained = random_unconstrained(name, (3,))
    for index in range(len(unconstrained)):
        kl = []
        for step in (1e-2, 2e-2):
            moved = list(unconstrained)
            moved[index] = moved[index].clone()
            moved[index].view(3, -1)[:, 0] += step  # entry (0, 0) is free in a lower triangle
            kl.append(family.unconstrained_kl(tuple(moved), natural))
        assert (kl[0] > 1e-9).all()
        torch.testing.assert_close(kl[1] / kl[0], torch.full_like(kl[0], 4.0), rtol=0.1, atol=0.0)


@every_family
def test_kl_broadcasts_a_single_prior(name):
    family = EXPONENTIAL_FAMILIES[name]
    q, p = random_natural(name, (2, 3)), random_natural(name, seed=1)
    expanded = type(p)(*(field.expand(2, 3, *field.shape) for field in p))
    torch.testing.assert_close(family.kl(q, p), family.kl(q, expanded))
    torch.testing.assert_close(family.kl(p, q), family.kl(expanded, q))


@every_family
def test_kl_and_entropy_agree_with_monte_carlo(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard = concentrated_standard(name)
    natural_q, natural_p = family.to_natural(standard), random_natural(name, seed=1)
    sample, log_q = log_prob_draws(family, standard, natural_q)
    kl = z_scores(log_q - family.log_prob(natural_p, sample), family.kl(natural_q, natural_p))
    assert kl.abs() < N_SIGMA
    assert z_scores(-log_q, family.entropy(natural_q)).abs() < N_SIGMA


# Draws -------------------------------------------------------------------------------------------


@every_family
@every_batch
def test_draws_have_the_expected_statistics(name, batch_shape):
    family = EXPONENTIAL_FAMILIES[name]
    standard = concentrated_standard(name, batch_shape)
    stats = family.stats_of(family.sample(standard, (N_DRAWS,), generator(3)))
    expected = family.expected_stats(family.to_natural(standard))
    for drawn, mean in zip(stats, expected, strict=True):
        assert z_scores(drawn, mean).abs().max() < N_SIGMA


@every_family
def test_variance_of_draws_is_the_fisher_information(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard = concentrated_standard(name)
    natural = family.to_natural(standard)
    sample = family.sample(standard, (N_DRAWS,), generator(4))
    for seed in range(5):
        direction = random_tangent(family, natural, seed)
        projected = family.inner(direction, family.stats_of(sample))

        def along(step, direction=direction):
            moved = (eta + step * d for eta, d in zip(natural, direction, strict=True))
            return family.log_normalizer(family.natural_type(*moved))

        step = torch.zeros((), dtype=torch.float64)
        fisher = torch.autograd.functional.hessian(along, step)
        mean = family.inner(direction, family.expected_stats(natural))
        assert z_scores((projected - mean).square(), fisher).abs() < N_SIGMA


@every_family
def test_draws_come_from_the_given_generator_only(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard = concentrated_standard(name, (3,))
    state = torch.random.get_rng_state()

    def draw(seed):
        return flatten(family.stats_of(family.sample(standard, (4, 2), generator(seed))))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(state, torch.random.get_rng_state())
    # One generator goes on, it is not rewound.
    rng = generator(0)
    first, second = (flatten(family.stats_of(family.sample(standard, (4, 2), rng))) for _ in "ab")
    assert not torch.equal(first, second)


# Natural gradients -------------------------------------------------------------------------------


@every_family
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_closed_form_tangent_agrees_with_forward_mode(name, data):
    family = EXPONENTIAL_FAMILIES[name]
    standard = data.draw(standard_parameters(family))
    unconstrained = family.to_unconstrained(standard)
    tangent = random_tangent(family, family.to_natural(standard))
    closed = family.tangent_to_unconstrained(unconstrained, tangent)
    forward = ExponentialFamily.tangent_to_unconstrained(family, unconstrained, tangent)
    assert_fields_close(closed, forward, 1e-7)


def fisher_and_jacobian(family, unconstrained: Unconstrained):
    """Dense Fisher matrix in ``u``: ``J' (d^2 log Z / d eta^2) J`` by automatic differentiation."""
    natural = family.to_natural(family.from_unconstrained(unconstrained))

    def log_normalizer(vector):
        return family.log_normalizer(family.symmetrize(unflatten(vector, natural)))

    def to_natural(vector):
        standard = family.from_unconstrained(unflatten(vector, unconstrained))
        return flatten(family.to_natural(standard))

    hessian = torch.autograd.functional.hessian(log_normalizer, flatten(natural))
    jacobian = torch.autograd.functional.jacobian(to_natural, flatten(unconstrained))
    return jacobian.T @ hessian @ jacobian, jacobian


@every_family
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_natural_gradient_is_the_inverse_fisher_times_the_gradient(name, seed):
    family = EXPONENTIAL_FAMILIES[name]
    sizes = (2,) * len(family.size_names)
    unconstrained = random_unconstrained(name, seed=seed, sizes=sizes)
    leaves = tuple(u.clone().requires_grad_() for u in unconstrained)
    weights = torch.randn(
        flatten(family.unconstrained_expected_stats(leaves)).shape, generator=generator(7)
    ).double()

    def objective(stats):  # smooth, not linear, and not symmetric in the matrix entries
        vector = flatten(stats)
        return (weights * vector).sin().sum() + 0.1 * (weights * vector).sum().square()

    ordinary = flatten(
        torch.autograd.grad(objective(family.unconstrained_expected_stats(leaves)), leaves)
    )
    natural = flatten(
        torch.autograd.grad(objective(natural_expected_stats(family, leaves)), leaves)
    )

    fisher, jacobian = fisher_and_jacobian(family, unconstrained)
    free = jacobian.abs().sum(0) > 0  # not the upper triangle of a log-Cholesky matrix
    assert (natural[~free] == 0).all()
    natural, ordinary, fisher = natural[free], ordinary[free], fisher[free][:, free]
    # The pseudo-inverse, because the categorical's logits have a direction without information.
    inverse = torch.linalg.pinv(fisher, rtol=1e-11, hermitian=True)
    informative = inverse @ fisher
    error = informative @ natural - inverse @ ordinary
    assert error.norm() < 1e-6 * (inverse @ ordinary).norm()
    if name != "categorical":
        assert (informative - torch.eye(len(informative))).abs().max() < 1e-6


@every_family
def test_log_normalizer_passes_gradcheck_in_unconstrained_coordinates(name):
    family = EXPONENTIAL_FAMILIES[name]
    leaves = tuple(u.requires_grad_() for u in random_unconstrained(name, (2,)))

    def log_normalizer(*unconstrained):
        return family.log_normalizer(family.to_natural(family.from_unconstrained(unconstrained)))

    def stats(*unconstrained):
        return tuple(family.unconstrained_expected_stats(unconstrained))

    assert torch.autograd.gradcheck(log_normalizer, leaves)
    assert torch.autograd.gradcheck(stats, leaves)
