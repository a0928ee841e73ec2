# SPDX-License-Identifier: BSD-3-Clause
"""Fixed points and their implicit gradients, against closed forms and dense solves."""

import math

import pytest
import torch

from sksvae.inference import FixedPointSettings, attach_implicit_gradient, solve_fixed_point

from .cases import normal, problem, product_with, solve

every_method = pytest.mark.parametrize("method", ("cg", "richardson"))


# Fixed points ------------------------------------------------------------------------------------


class Contraction:
    """``v -> rate v`` with a rate per row, which remembers which rows it was asked for."""

    def __init__(self, rates):
        self.rates = rates
        self.calls = torch.zeros(len(rates), dtype=torch.long)

    def __call__(self, point, rows=None):
        rows = slice(None) if rows is None else rows
        self.calls[rows] += 1
        rates = self.rates[rows]
        assert len(point) == len(rates)
        return point * rates.view(-1, *(1,) * (point.ndim - 1))


def contraction_rounds(rate, size, tol):
    """First n with |rate^n - rate^(n-1)| size <= tol, from the formula."""
    return 1 + max(0, math.ceil(math.log(tol / (size * (1 - rate))) / math.log(rate)))


RATES = [0.5, 0.9, 0.0, 0.3, 0.99]


@pytest.mark.parametrize("event_shape", [(1,), (4,), (2, 3)])
def test_rounds_of_each_row_are_as_many_as_it_needs(event_shape):
    update = Contraction(torch.tensor(RATES, dtype=torch.float64))
    start = torch.full((5, *event_shape), 0.5, dtype=torch.float64)
    start.view(5, -1)[:, -1] = 2.0  # the largest entry decides
    end = solve_fixed_point(update, start, 2000, 1e-5)
    want = [2 if rate == 0.0 else contraction_rounds(rate, 2.0, 1e-5) for rate in RATES]
    assert end.n_updates.tolist() == want
    assert end.converged.all()
    # A row that has converged is not touched again.
    assert update.calls.tolist() == want
    power = update.rates**end.n_updates
    torch.testing.assert_close(end.point, start * power.view(-1, *(1,) * len(event_shape)))
    assert torch.equal(start.view(5, -1)[:, -1], torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_row_ends_where_it_would_end_alone(accelerate):
    rates, start = torch.tensor(RATES), normal(5, 3, dtype=torch.float32).abs()
    together = solve_fixed_point(Contraction(rates), start, 100, 1e-4, accelerate)
    for i in range(5):
        rate, row = Contraction(rates[i : i + 1]), start[i : i + 1]
        alone = solve_fixed_point(rate, row, 100, 1e-4, accelerate)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[i : i + 1], b)


def test_rows_stop_at_the_most_updates():
    update = Contraction(torch.tensor([0.5, 0.99], dtype=torch.float64))
    end = solve_fixed_point(update, torch.ones(2, 1, dtype=torch.float64), 10, 5e-3)
    assert end.n_updates.tolist() == [8, 10]
    assert end.converged.tolist() == [True, False]
    torch.testing.assert_close(end.point[1, 0], torch.tensor(0.99**10, dtype=torch.float64))


def test_a_change_as_large_as_the_tolerance_counts_as_converged():
    half = torch.tensor([0.5], dtype=torch.float64)
    for tol, n_updates in ((0.25, 2), (0.24, 3)):  # changes 1/2, 1/4, 1/8
        end = solve_fixed_point(Contraction(half), torch.ones(1, 1, dtype=torch.float64), 9, tol)
        assert end.n_updates.item() == n_updates


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_row_of_nan_does_not_converge_and_does_not_disturb_the_others(accelerate):
    update = Contraction(torch.tensor([0.5, math.nan, 0.2], dtype=torch.float64))
    end = solve_fixed_point(update, torch.ones(3, 2, dtype=torch.float64), 30, 1e-3, accelerate)
    assert end.converged.tolist() == [True, False, True]
    assert end.n_updates[1] == 30
    assert end.point[[0, 2]].abs().max() < 2e-3


def test_the_rounds_record_no_gradient():
    rates = torch.tensor([0.5], requires_grad=True)
    end = solve_fixed_point(Contraction(rates), torch.ones(1, 1), 5, 0.0)
    assert not end.point.requires_grad


class Chains:
    """Weights of each step approach their own end at their own rate; remembers where it was."""

    def __init__(self, rates, ends):
        self.rates, self.ends, self.seen = rates, ends, []

    def __call__(self, point, rows=None):
        rows = slice(None) if rows is None else rows
        self.seen.append(point)
        ends = self.ends[rows]
        return (ends + self.rates[rows].unsqueeze(-1) * (point - ends)).clamp_min(0.0)


def test_a_secant_step_is_exact_where_changes_shrink_by_one_factor():
    rates = torch.tensor([[0.5, 0.9, 0.0], [0.98, 0.2, 0.7]], dtype=torch.float64)
    ends = normal(2, 3, 4).softmax(-1)
    start = 0.95 * ends + 0.05 * 0.25
    end = solve_fixed_point(Chains(rates, ends), start, 50, 1e-12, accelerate=True)
    assert end.converged.all()
    assert end.n_updates.tolist() == [3, 3]
    torch.testing.assert_close(end.point, ends, rtol=1e-12, atol=1e-12)
    plain = solve_fixed_point(Chains(rates, ends), start, 50, 1e-12)
    assert plain.n_updates.tolist() == [50, 50]


def test_weights_stay_weights_where_a_secant_goes_too_far():
    """The second weight would shrink below zero, and is cut off there."""
    ends = torch.tensor([[[1.1, -0.1]]], dtype=torch.float64)
    update = Chains(torch.full((1, 1), 0.8, dtype=torch.float64), ends)
    start = torch.tensor([[[0.9, 0.1]]], dtype=torch.float64)
    solve_fixed_point(update, start, 10, 0.0, accelerate=True)
    seen = torch.stack(update.seen)
    assert seen.min() >= 0.0
    assert seen[2, 0, 0, 1] == 0.0
    torch.testing.assert_close(seen[:3].sum(-1), torch.ones(3, 1, 1).double())


def test_far_from_the_end_updates_are_as_they_are():
    """Of steps 0.06, 0.054 and 0.0486 a secant follows the last."""
    ends = torch.tensor([[[0.6, 0.0]]], dtype=torch.float64)
    update = Chains(torch.full((1, 1), 0.9, dtype=torch.float64), ends)
    end = solve_fixed_point(update, 0 * ends, 9, 1e-9, accelerate=True)
    assert end.n_updates == 4
    seen = torch.stack(update.seen)[:, 0, 0, 0]
    want = torch.tensor([0.6 * (1 - 0.9**n) for n in range(3)] + [0.6]).double()
    torch.testing.assert_close(seen, want)


# Implicit gradients ------------------------------------------------------------------------------


def softmax_fixed_point(a, S, settings):
    """``v = softmax(a + S v)``: ``F`` is that of the softmax at ``v``."""

    def update(point, rows=None):
        rows = slice(None) if rows is None else rows
        return (a[rows] + product_with(S[rows])(point)).softmax(-1)

    start = torch.full_like(a, 1.0 / a.shape[1]).detach()
    end = solve_fixed_point(update, start, settings.max_updates, settings.tol)
    p = end.point
    F = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    point = attach_implicit_gradient(
        update(end.point), end, product_with(F), product_with(S.detach()), settings
    )
    return point, F, end


TIGHT = {"max_updates": 2000, "tol": 1e-15, "solver_tol": 1e-13, "max_solver_steps": 500}


@every_method
def test_implicit_gradient_is_that_of_the_implicit_function_theorem(method):
    """``dv/da = (I - F S)^-1 F`` and ``dv/dS_ij = (I - F S)^-1 F e_i v_j``."""
    _, S, g = problem(n_rows=4)
    a = normal(4, 5, seed=9).requires_grad_()
    S.requires_grad_()
    point, F, end = softmax_fixed_point(a, S, FixedPointSettings(gradient=method, **TIGHT))
    assert end.converged.all()
    torch.testing.assert_close(point, end.point, rtol=1e-13, atol=1e-13)
    got = torch.autograd.grad((g * point).sum(), (a, S))
    identity = torch.eye(5, dtype=torch.float64)
    jacobian = torch.linalg.solve(identity - F @ S, F).detach()
    want_a = (jacobian.mT @ g.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(got[0], want_a, rtol=1e-9, atol=1e-10)
    want_S = want_a.unsqueeze(-1) * point.detach().unsqueeze(-2)
    torch.testing.assert_close(got[1], want_S, rtol=1e-9, atol=1e-10)


def test_implicit_gradient_agrees_with_finite_differences():
    _, S, _ = problem(n_rows=2, n_states=3, radius=0.7)
    a = normal(2, 3, seed=9).requires_grad_()
    settings = FixedPointSettings(gradient="cg", **TIGHT)

    def fixed_point(a):
        return softmax_fixed_point(a, S, settings)[0]

    assert torch.autograd.gradcheck(fixed_point, (a,), check_undefined_grad=False)


def test_without_a_solve_the_gradient_is_that_of_one_more_round():
    _, S, g = problem(n_rows=4)
    a = normal(4, 5, seed=9).requires_grad_()
    point, F, _ = softmax_fixed_point(a, S, FixedPointSettings(gradient="none", **TIGHT))
    (got,) = torch.autograd.grad((g * point).sum(), a)
    torch.testing.assert_close(got, product_with(F)(g))
    full, _, _ = softmax_fixed_point(a, S, FixedPointSettings(gradient="cg", **TIGHT))
    (want,) = torch.autograd.grad((g * full).sum(), a)
    assert (got - want).norm() > 1e-2 * want.norm()


def test_richardson_is_capped_at_the_rounds_of_the_forward_pass():
    _, S, g = problem(n_rows=4, radius=0.9)
    a = normal(4, 5, seed=9).requires_grad_()
    settings = FixedPointSettings(gradient="richardson", tol=0.05, max_updates=50, solver_tol=0.0)
    point, F, end = softmax_fixed_point(a, S, settings)
    assert end.converged.all()
    assert end.n_updates.max() < 20
    (got,) = torch.autograd.grad((g * point).sum(), a)
    b = solve(F, S, g, "richardson", max_steps=end.n_updates, tol=0.0)
    # The last round is taken from the fixed point, and its softmax is at that round's end.
    p = point.detach()
    last = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    torch.testing.assert_close(got, product_with(last)(b))


def test_rows_that_did_not_converge_get_no_richardson_step():
    _, S, g = problem(n_rows=4, radius=0.9)
    a = normal(4, 5, seed=9).requires_grad_()
    settings = FixedPointSettings(gradient="richardson", tol=0.0, max_updates=3)
    point, _, end = softmax_fixed_point(a, S, settings)
    assert not end.converged.any()
    (got,) = torch.autograd.grad((g * point).sum(), a)
    p = point.detach()
    last = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    torch.testing.assert_close(got, product_with(last)(g))


def test_max_solver_steps_limits_conjugate_gradients():
    _, S, g = problem(n_rows=4)
    a = normal(4, 5, seed=9).requires_grad_()
    gradients = []
    for steps in (0, 1, 500):
        settings = FixedPointSettings(**{**TIGHT, "max_solver_steps": steps})
        point, F, _ = softmax_fixed_point(a, S, settings)
        gradients.append(torch.autograd.grad((g * point).sum(), a)[0])
    torch.testing.assert_close(gradients[0], product_with(F)(g))
    errors = [(gradient - gradients[2]).norm() for gradient in gradients[:2]]
    assert errors[0] > errors[1] > 1e-6


def test_a_constant_update_stays_a_constant():
    a, S = torch.zeros(2, 3), torch.zeros(2, 3, 3)
    point, _, _ = softmax_fixed_point(a, S, FixedPointSettings())
    assert not point.requires_grad
