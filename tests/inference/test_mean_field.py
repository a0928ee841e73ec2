# SPDX-License-Identifier: BSD-3-Clause
"""Fixed points and their implicit gradients, against dense solves and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.inference import (
    FixedPointSettings,
    attach_implicit_gradient,
    solve_adjoint,
    solve_fixed_point,
)

METHODS = ("cg", "richardson")
every_method = pytest.mark.parametrize("method", METHODS)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


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


def test_a_row_ends_where_it_would_end_alone():
    rates, start = torch.tensor(RATES), normal(5, 3, dtype=torch.float32)
    together = solve_fixed_point(Contraction(rates), start, 100, 1e-4)
    for i in range(5):
        alone = solve_fixed_point(Contraction(rates[i : i + 1]), start[i : i + 1], 100, 1e-4)
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


def test_a_row_of_nan_does_not_converge_and_does_not_disturb_the_others():
    update = Contraction(torch.tensor([0.5, math.nan, 0.2], dtype=torch.float64))
    end = solve_fixed_point(update, torch.ones(3, 2, dtype=torch.float64), 30, 1e-3)
    assert end.converged.tolist() == [True, False, True]
    assert end.n_updates[1] == 30
    assert end.point[[0, 2]].abs().max() < 2e-3


def test_the_rounds_record_no_gradient():
    rates = torch.tensor([0.5], requires_grad=True)
    end = solve_fixed_point(Contraction(rates), torch.ones(1, 1), 5, 0.0)
    assert not end.point.requires_grad


# The adjoint equation ----------------------------------------------------------------------------


def problem(n_rows=6, n_states=5, radius=0.8, seed=0, dtype=torch.float64, rank=None):
    """Softmax Fisher ``F`` (singular), PSD ``S`` such that ``S F`` has spectral radius `radius`."""
    p = normal(n_rows, n_states, seed=seed).softmax(-1)
    F = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    root = normal(n_rows, n_states, rank or n_states, seed=seed + 1)
    S = root @ root.mT
    largest = torch.linalg.eigvals(S @ F).real.amax(-1)
    S = S * (torch.as_tensor(radius, dtype=S.dtype) / largest)[..., None, None]
    return F.to(dtype), S.to(dtype), normal(n_rows, n_states, seed=seed + 2).to(dtype)


def product_with(matrix):
    return lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)


def solve(F, S, g, method, max_steps=1000, tol=1e-12, converged=None):
    converged = torch.ones(len(g), dtype=torch.bool) if converged is None else converged
    return solve_adjoint(
        product_with(F),
        product_with(S),
        g,
        method=method,
        max_steps=max_steps,
        tol=tol,
        converged=converged,
    )


def dense(F, S, g):
    identity = torch.eye(F.shape[-1], dtype=F.dtype)
    return torch.linalg.solve(identity - S @ F, g.unsqueeze(-1)).squeeze(-1)


@every_method
@settings(max_examples=30)
@given(
    n_rows=st.integers(1, 4),
    n_states=st.integers(1, 6),
    radius=st.floats(0.0, 0.95),
    rank=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_solutions_agree_with_dense_ones(method, n_rows, n_states, radius, rank, seed):
    F, S, g = problem(n_rows, n_states, radius if n_states > 1 else 0.0, seed, rank=rank)
    if n_states == 1:
        S = torch.ones_like(S)  # F is zero
    torch.testing.assert_close(solve(F, S, g, method), dense(F, S, g), rtol=1e-8, atol=1e-9)


@every_method
def test_trailing_axes_are_one_vector(method):
    F, S, g = problem(n_states=6)
    got = solve_adjoint(
        lambda v: product_with(F)(v.flatten(1)).view_as(v),
        lambda v: product_with(S)(v.flatten(1)).view_as(v),
        g.view(6, 2, 3),
        method=method,
        max_steps=500,
        tol=1e-12,
        converged=torch.ones(6, dtype=torch.bool),
    )
    assert got.shape == (6, 2, 3)
    torch.testing.assert_close(got.flatten(1), dense(F, S, g), rtol=1e-9, atol=1e-9)


@every_method
def test_single_precision(method):
    F, S, g = problem(radius=0.5)
    got = solve(F.float(), S.float(), g.float(), method, tol=1e-8)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), dense(F, S, g), rtol=1e-4, atol=1e-5)


def test_conjugate_gradients_need_no_more_steps_than_directions():
    """Also where the Richardson iteration has hardly begun."""
    F, S, g = problem(radius=0.999)
    want = dense(F, S, g)
    by_cg = solve(F, S, g, "cg", max_steps=4)  # five states less the null direction of F
    torch.testing.assert_close(by_cg, want, rtol=1e-7, atol=1e-7)
    by_richardson = solve(F, S, g, "richardson", max_steps=100)
    assert ((by_richardson - want).norm(dim=1) > 0.1 * want.norm(dim=1)).all()


def test_richardson_steps_are_terms_of_the_neumann_series():
    """Capped at a number for each row [P]."""
    F, S, g = problem(n_rows=4)
    caps = torch.tensor([0, 1, 2, 7])
    got = solve(F, S, g, "richardson", max_steps=caps, tol=0.0)
    for n, cap in enumerate(caps):
        power = g[n]
        total = g[n].clone()
        for _ in range(cap):
            power = S[n] @ F[n] @ power
            total += power
        torch.testing.assert_close(got[n], total)


def test_richardson_takes_no_step_where_the_forward_pass_did_not_converge():
    """Thresholded [P]."""
    F, S, g = problem(n_rows=3)
    converged = torch.tensor([True, False, True])
    got = solve(F, S, g, "richardson", converged=converged)
    assert torch.equal(got[1], g[1])
    torch.testing.assert_close(got[converged], dense(F, S, g)[converged], rtol=1e-9, atol=1e-9)
    # Conjugate gradients stay safe by themselves.
    by_cg = solve(F, S, g, "cg", converged=converged)
    torch.testing.assert_close(by_cg, dense(F, S, g), rtol=1e-9, atol=1e-9)


def test_conjugate_gradients_can_be_capped_by_row():
    F, S, g = problem(n_rows=3)
    got = solve(F, S, g, "cg", max_steps=torch.tensor([0, 1, 50]))
    assert torch.equal(got[0], g[0])
    one = solve(F[1:2], S[1:2], g[1:2], "cg", max_steps=1)
    torch.testing.assert_close(got[1:2], one)
    assert not torch.allclose(one, dense(F, S, g)[1:2], rtol=1e-3)
    torch.testing.assert_close(got[2], dense(F, S, g)[2], rtol=1e-9, atol=1e-9)


def counted(operator, counts):
    def apply(v):
        counts.append(1)
        return operator(v)

    return apply


@pytest.mark.parametrize(("method", "norm"), [("cg", "fisher"), ("richardson", "largest")])
def test_a_solve_stops_at_the_stated_residual(method, norm):
    F, S, g = problem(n_rows=8, n_states=12, radius=0.9)
    tols = [1e-1, 1e-3, 1e-6]
    n_products = []
    for tol in tols:
        counts = []
        b = solve_adjoint(
            product_with(F),
            counted(product_with(S), counts),
            g,
            method=method,
            max_steps=500,
            tol=tol,
            converged=torch.ones(8, dtype=torch.bool),
        )
        residual = g - b + product_with(S @ F)(b)
        if norm == "fisher":
            size, scale = ((v * product_with(F)(v)).sum(1).sqrt() for v in (residual, g))
        else:
            size, scale = (v.abs().amax(1) for v in (residual, g))
        assert (size <= 1.01 * tol * scale).all()
        n_products.append(len(counts))
    assert n_products[0] < n_products[1] < n_products[2] < 500


@every_method
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_tolerance_is_relative(method, scale):
    F, S, g = problem(radius=0.9)
    want = scale * solve(F, S, g, method, tol=1e-4)
    got = solve(F, S, scale * g, method, tol=1e-4)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0.0)


@every_method
def test_a_row_is_solved_as_if_alone(method):
    radius = torch.tensor([0.1, 0.9, 0.5], dtype=torch.float64)
    F, S, g = problem(n_rows=3, radius=radius)
    together = solve(F, S, g, method, tol=1e-3)
    for n in range(3):
        row = slice(n, n + 1)
        alone = solve(F[row], S[row], g[row], method, tol=1e-3)
        torch.testing.assert_close(together[row], alone, rtol=1e-12, atol=1e-12)


def test_negative_curvature_stops_a_row_where_it_stands():
    """``F (I - S F)`` is not positive definite: not a maximum of the surrogate bound."""
    F, S, g = problem(n_rows=3, radius=torch.tensor([0.7, 50.0, 0.3], dtype=torch.float64))
    S[1] = 50.0 * torch.eye(5)  # no direction has positive curvature
    got = solve(F, S, g, "cg")
    assert torch.equal(got[1], g[1])
    ok = [0, 2]
    torch.testing.assert_close(got[ok], dense(F, S, g)[ok], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_where_some_directions_have_negative_curvature_the_iterates_stay_moderate(seed):
    """The solution grows along positive curvature only, and far less than a dense solve."""
    F, S, g = problem(n_rows=20, n_states=6, radius=1.02, seed=seed)
    got = solve(F, S, g, "cg", max_steps=200)
    assert got.isfinite().all()
    # Each iterate minimises q(b) = b'F(I - SF)b/2 - b'Fg over a space that contains the start.
    A = F - F @ S @ F

    def q(b):
        return 0.5 * (b * product_with(A)(b)).sum(1) - (b * product_with(F)(g)).sum(1)

    assert (q(got) <= q(g) + 1e-12).all()
    stopped_early = (got - dense(F, S, g)).norm(dim=1) > 1e-3 * got.norm(dim=1)
    assert stopped_early.any()


@every_method
def test_a_zero_cotangent_stays_zero(method):
    F, S, g = problem()
    g[2] = 0.0
    got = solve(F, S, g, method)
    assert (got[2] == 0).all()
    assert got.isfinite().all()


@every_method
def test_a_cotangent_in_the_null_space_of_the_fisher_matrix_is_its_own_solution(method):
    F, S, g = problem(n_rows=2)
    g[:] = 1.0  # F 1 = 0
    torch.testing.assert_close(solve(F, S, g, method), g)


def test_without_a_solve_the_cotangent_is_returned():
    F, S, g = problem()
    assert solve(F, S, g, "none") is g


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
        update, end, product_with(F), product_with(S.detach()), settings
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
