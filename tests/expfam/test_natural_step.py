# SPDX-License-Identifier: BSD-3-Clause
"""Steps in natural parameters that stay in the domain."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.expfam import (
    EXPONENTIAL_FAMILIES,
    MNIW,
    NIW,
    Dirichlet,
    DirichletNatural,
    DirichletParams,
    MNIWNatural,
    MNIWParams,
    NIWNatural,
    NIWParams,
    natural_step,
)
from sksvae.expfam.natural_step import step_towards
from sksvae.expfam.niw import drop_column_axes, lift_column_axes

from .cases import (
    BATCH_SHAPES,
    assert_fields_close,
    generator,
    random_natural,
    random_standard,
    standard_parameters,
)

NAMES = ("dirichlet", "mniw", "niw")

every_family = pytest.mark.parametrize("name", NAMES)
every_batch = pytest.mark.parametrize("batch_shape", BATCH_SHAPES)


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def moved_natural(family, standard, tangent, step_size):
    """``eta + rho * tangent``, with one step size for all entries or one for each."""
    rho = torch.as_tensor(step_size, dtype=tangent[-1].dtype)
    return family.natural_type(
        *(
            eta + rho[(..., *(None,) * n_dims)] * velocity
            for eta, velocity, n_dims in zip(
                family.to_natural(standard), tangent, family.event_dims, strict=True
            )
        )
    )


def is_inside(family, natural):
    """Whether natural parameters without batch axes belong to a distribution."""
    try:
        family.to_unconstrained(family.from_natural(natural))
    except (ValueError, torch.linalg.LinAlgError):
        return False
    return True


def entry(fields, index):
    return type(fields)(*(field[index] for field in fields))


# Inside the domain -------------------------------------------------------------------------------


@every_family
@every_batch
@pytest.mark.parametrize("step_size", [0.0, 0.3, 1.0])
def test_steps_inside_the_domain_are_straight_lines_in_natural_parameters(
    name, batch_shape, step_size
):
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name, batch_shape)
    target = random_natural(name, batch_shape, seed=1)
    eta = family.to_natural(standard)
    # The domain is convex, so the way to another distribution never leaves it.
    tangent = family.natural_type(*(b - a for a, b in zip(eta, target, strict=True)))
    got = natural_step(family, standard, tangent, step_size)
    assert type(got) is family.standard_type
    want = family.from_natural(moved_natural(family, standard, tangent, step_size))
    assert_fields_close(got, want, 1e-10)


@every_family
def test_single_precision_agrees_with_double(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name, (3,))
    eta, target = family.to_natural(standard), random_natural(name, (3,), seed=1)
    tangent = family.natural_type(*(b - a for a, b in zip(eta, target, strict=True)))
    want = natural_step(family, standard, tangent, 0.5)
    got = natural_step(
        family,
        type(standard)(*(field.float() for field in standard)),
        type(tangent)(*(field.float() for field in tangent)),
        0.5,
    )
    assert all(field.dtype == torch.float32 for field in got)
    assert_fields_close(type(want)(*(field.double() for field in got)), want, 1e-5)


@every_family
def test_the_arguments_are_left_as_they_are(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard, tangent = random_standard(name, (3,)), random_natural(name, (3,), seed=1)
    copies = [[field.clone() for field in fields] for fields in (standard, tangent)]
    natural_step(family, standard, tangent, 0.01)
    for fields, copied in zip((standard, tangent), copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(fields, copied, strict=True))


# The conjugate update, by the formulas of textbooks ----------------------------------------------


def pull_of(family, prior, stats, current):
    """``eta_0 + stats - eta``: the natural gradient of a conjugate model."""
    fields = zip(family.to_natural(prior), stats, family.to_natural(current), strict=True)
    return family.natural_type(*(eta_0 + t - eta for eta_0, t, eta in fields))


def test_a_full_step_adds_counts_to_a_dirichlet():
    prior, current = DirichletParams(double(0.5, 0.5, 2.0)), DirichletParams(double(9.0, 0.1, 3.0))
    tangent = pull_of(Dirichlet(), prior, (double(4.0, 0.0, 1.0),), current)
    got = natural_step(Dirichlet(), current, tangent, 1.0)
    assert_fields_close(got, (double(4.5, 0.5, 3.0),), 1e-14)


def test_a_full_step_is_the_normal_inverse_wishart_posterior():
    z = torch.randn(20, 3, generator=generator(), dtype=torch.float64) + double(1.0, -2.0, 0.5)
    prior, current = random_standard("niw"), random_standard("niw", seed=1)
    n = torch.tensor(20.0, dtype=torch.float64)
    stats = -0.5 * z.T @ z, z.sum(0), -0.5 * n, 0.5 * n
    got = natural_step(NIW(), current, pull_of(NIW(), prior, stats, current), 1.0)
    # Gelman et al., Bayesian Data Analysis, section 3.6.
    scale, mean, kappa, dof = prior
    sample_mean, shift = z.mean(0), z.mean(0) - mean
    want = (
        scale
        + (z - sample_mean).T @ (z - sample_mean)
        + kappa * n / (kappa + n) * torch.outer(shift, shift),
        (kappa * mean + n * sample_mean) / (kappa + n),
        kappa + n,
        dof + n,
    )
    assert_fields_close(got, want, 1e-12)


def test_a_full_step_is_the_regression_posterior():
    x = torch.randn(2, 15, generator=generator(), dtype=torch.float64)
    y = torch.randn(3, 15, generator=generator(1), dtype=torch.float64)
    prior, current = random_standard("mniw"), random_standard("mniw", seed=1)
    stats = -0.5 * y @ y.T, y @ x.T, -0.5 * x @ x.T, torch.tensor(7.5, dtype=torch.float64)
    got = natural_step(MNIW(), current, pull_of(MNIW(), prior, stats, current), 1.0)
    scale, mean, column_precision, dof = prior
    new_precision = column_precision + x @ x.T
    new_mean = (mean @ column_precision + y @ x.T) @ torch.linalg.inv(new_precision)
    residual, shift = y - new_mean @ x, new_mean - mean
    want = (
        scale + residual @ residual.T + shift @ column_precision @ shift.T,
        new_mean,
        new_precision,
        dof + 15,
    )
    assert_fields_close(got, want, 1e-11)


# Steps that would leave the domain ---------------------------------------------------------------


def niw_tangent(like, **velocities):
    """Tangent of zeros, apart from the named fields of the last of three entries."""
    fields = {
        "precision": torch.zeros_like(like.scale),
        "precision_mean": torch.zeros_like(like.mean),
        "quadratic": torch.zeros_like(like.mean_precision),
        "log_det_precision": torch.zeros_like(like.dof),
    }
    for name, velocity in velocities.items():
        fields[name][2] = velocity
    return NIWNatural(**fields)


@pytest.mark.parametrize(
    ("velocities", "n_halvings"),
    [
        ({"quadratic": 1.6}, 2),  # kappa: 1 - 2 rho 1.6 > 0 needs rho < 0.3125
        ({"log_det_precision": -9.0}, 3),  # nu: 4 - 2 rho 9 > 1 needs rho < 1/6
        ({"precision": 5.0 * torch.eye(2)}, 4),  # S: 1 - 2 rho 5 > 0 needs rho < 1/10
        ({"precision_mean": double(3.0, 0.0)}, 2),  # S: 1 - (3 rho)^2 > 0 needs rho < 1/3
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_only_the_step_of_the_offending_entry_is_halved(velocities, n_halvings):
    eye = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    ones = torch.ones(3, dtype=torch.float64)
    standard = NIWParams(eye, torch.zeros(3, 2, dtype=torch.float64), ones, 4.0 * ones)
    tangent = niw_tangent(standard, **velocities)
    tangent.log_det_precision[:2] = 5.0
    got = natural_step(NIW(), standard, tangent, 1.0)
    rho = double(1.0, 1.0, 0.5**n_halvings)
    want = NIW().from_natural(moved_natural(NIW(), standard, tangent, rho))
    assert_fields_close(got, want, 1e-12)
    torch.testing.assert_close(got.dof[:2], 14.0 * ones[:2])


def test_only_the_row_of_the_offending_concentration_is_halved():
    standard = DirichletParams(torch.ones(2, 2, 2, dtype=torch.float64))
    tangent = DirichletNatural(torch.full((2, 2, 2), 3.0, dtype=torch.float64))
    tangent.concentration[1, 0, 1] = -3.0  # 1 - 3 rho > 0 needs rho < 1/3
    got = natural_step(Dirichlet(), standard, tangent, 1.0).concentration
    want = torch.full((2, 2, 2), 4.0, dtype=torch.float64)
    want[1, 0] = double(1.75, 0.25)
    torch.testing.assert_close(got, want)


@every_family
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_step_is_the_longest_of_its_halvings_that_stays_inside(name, data):
    family = EXPONENTIAL_FAMILIES[name]
    standard, toward = data.draw(standard_parameters(family, n=2))
    length = data.draw(st.floats(-20.0, 20.0))
    step_size = data.draw(st.sampled_from([1.0, 0.7]))
    tangent = family.natural_type(*(length * field for field in family.to_natural(toward)))
    got = natural_step(family, standard, tangent, step_size)
    eta, tiny = family.to_natural(standard), 1e-9
    batch_shape = got[-1].shape[: got[-1].ndim - family.event_dims[-1]]
    for index in [tuple(i) for i in torch.ones(batch_shape).nonzero().tolist()]:
        moved, start, velocity = (entry(f, index) for f in (got, eta, tangent))
        assert is_inside(family, family.to_natural(moved))
        rhos = [step_size * 0.5**halvings for halvings in range(40)]

        def along(rho, start=start, velocity=velocity):
            fields = zip(start, velocity, strict=True)
            return family.natural_type(*(a + rho * b for a, b in fields))

        # Rounding decides on the boundary itself, so both neighbours of it count as right.
        valid = {
            next(rho for rho in rhos if is_inside(family, along(rho * (1 + sign * tiny))))
            for sign in (-1, 1)
        }
        natural = family.to_natural(moved)
        errors = [
            max(
                float((a - b).abs().max() / (1 + b.abs().max()))
                for a, b in zip(natural, along(rho), strict=True)
            )
            for rho in valid
        ]
        assert min(errors) < 1e-9


# Precision ---------------------------------------------------------------------------------------


def far_away(family, offset, dtype):
    """A distribution with mean ``offset`` and spread one hundredth, and what two data add to it.

    The data lie where the distribution is centred and all numbers fit in float32, so that only
    rounding inside `natural_step` can move its mean or its scale.
    """
    eye, two = torch.eye(2, dtype=dtype), torch.tensor(2.0, dtype=dtype)
    mean = torch.full((2,), offset, dtype=dtype)
    outer = torch.outer(mean, mean)
    if isinstance(family, NIW):
        standard = NIWParams(1e-4 * eye, mean, two, 3 * two)
        return standard, NIWNatural(-outer, 2 * mean, -0.5 * two, 0.5 * two)
    columns = mean[:, None] * torch.ones(2, dtype=dtype)  # X y = mean for y = (1, 0) and (0, 1)
    standard = MNIWParams(1e-4 * eye, columns, 2 * eye, 3 * two)
    return standard, MNIWNatural(-outer, columns, -0.5 * eye, 0.5 * two)


@pytest.mark.parametrize("name", ["niw", "mniw"])
def test_far_from_the_origin_single_precision_keeps_the_scale(name):
    family = EXPONENTIAL_FAMILIES[name]
    start, tangent = far_away(family, 1000.0, torch.float32)
    got = natural_step(family, start, tangent, 1.0)
    wide = far_away(family, 1000.0, torch.float64)
    want = family.from_natural(moved_natural(family, *wide, 1.0))
    assert_fields_close(type(got)(*(field.double() for field in got)), want, 1e-6)
    torch.testing.assert_close(got.scale, start.scale, rtol=1e-6, atol=0.0)
    # Through natural parameters the same step loses the scale altogether.
    naive = moved_natural(family, start, tangent, 1.0)
    lost = family.from_natural(naive).scale
    assert (lost - start.scale).abs().max() > 0.5 * start.scale.max()


def test_a_shift_of_the_origin_shifts_the_mean_only():
    """The Student-t of new data must not depend on where zero is."""
    standard, shift = random_standard("niw", (3,)), double(4.0, -3.0, 2.0)
    data = torch.randn(3, 3, generator=generator(), dtype=torch.float64)

    def step(standard, data):
        stats = NIWNatural(
            -0.5 * data.unsqueeze(-1) * data.unsqueeze(-2),
            data,
            torch.full((3,), -0.5, dtype=torch.float64),
            torch.full((3,), 0.5, dtype=torch.float64),
        )
        return natural_step(NIW(), standard, stats, 0.7)

    here = step(standard, data)
    there = step(standard._replace(mean=standard.mean + shift), data + shift)
    assert_fields_close(there, here._replace(mean=here.mean + shift), 1e-11)


# Errors ------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [1, 3])
def test_a_tangent_that_is_not_finite_is_an_error(name, value, size):
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name, (2,), sizes=(size,) * len(family.size_names))
    for field in range(len(family.natural_type._fields)):
        tangent = [torch.zeros_like(f) for f in family.to_natural(standard)]
        tangent[field].view(2, -1)[1, 0] = value
        with pytest.raises(ValueError, match="is not finite"):
            natural_step(family, standard, family.natural_type(*tangent), 1.0)


@every_family
def test_a_tangent_that_no_halving_makes_short_enough_is_an_error(name):
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name)
    tangent = family.natural_type(*(-1e30 * field for field in family.to_natural(standard)))
    with pytest.raises(ValueError, match="so long that no step"):
        natural_step(family, standard, tangent, 1.0)


# Towards natural parameters ----------------------------------------------------------------------


@every_family
@every_batch
@pytest.mark.parametrize("step_size", [0.0, 0.3, 1.0])
def test_a_step_towards_parameters_ends_on_the_way_to_them(name, batch_shape, step_size):
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name, batch_shape)
    target = random_natural(name, batch_shape, seed=1)
    got = step_towards(family, standard, target, step_size)
    assert type(got) is family.standard_type
    eta = family.to_natural(standard)
    tangent = family.natural_type(*(b - a for a, b in zip(eta, target, strict=True)))
    want = family.from_natural(moved_natural(family, standard, tangent, step_size))
    assert_fields_close(got, want, 1e-10)


@every_family
def test_steps_towards_what_is_no_distribution_are_halved(name):
    """As `natural_step` along the difference halves them."""
    family = EXPONENTIAL_FAMILIES[name]
    standard = random_standard(name, (3,))
    eta = family.to_natural(standard)
    target = family.natural_type(*(-2.0 * field for field in eta))
    tangent = family.natural_type(*(b - a for a, b in zip(eta, target, strict=True)))
    want = natural_step(family, standard, tangent, 1.0)
    assert_fields_close(step_towards(family, standard, target, 1.0), want, 1e-10)
    single = [type(fields)(*(f.float() for f in fields)) for fields in (standard, target)]
    got = step_towards(family, *single, 1.0)
    assert all(field.dtype == torch.float32 for field in got)
    assert_fields_close(type(want)(*(field.double() for field in got)), want, 1e-4)


# Helpers -----------------------------------------------------------------------------------------


@every_batch
def test_lifting_a_normal_inverse_wishart_gives_the_same_distribution(batch_shape):
    standard = random_standard("niw", batch_shape)
    natural = NIW().to_natural(standard)
    lifted = MNIWParams(*lift_column_axes(standard))
    assert_fields_close(MNIW().to_natural(lifted), MNIWNatural(*lift_column_axes(natural)), 1e-14)
    torch.testing.assert_close(
        MNIW().log_normalizer(MNIWNatural(*lift_column_axes(natural))),
        NIW().log_normalizer(natural),
    )
    back = drop_column_axes(lift_column_axes(standard))
    assert all(torch.equal(a, b) for a, b in zip(back, standard, strict=True))
