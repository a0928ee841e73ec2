# SPDX-License-Identifier: BSD-3-Clause
"""The adjoint equation of a fixed point against dense solves; capped, thresholded, indefinite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksvae.inference import solve_adjoint

from .cases import dense, problem, product_with, solve

METHODS = ("cg", "richardson")
every_method = pytest.mark.parametrize("method", METHODS)


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
        lambda v, rows: product_with(F)(v.flatten(1), rows).view_as(v),
        lambda v, rows: product_with(S)(v.flatten(1), rows).view_as(v),
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
    def apply(v, rows):
        counts.append(len(v))
        return operator(v, rows)

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


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_that_are_sure_of_one_state_need_no_solve(method, dtype):
    """Their Fisher matrices underflow, here from 1e-10 to zero, and nothing depends on them."""
    p = torch.stack([torch.tensor([0.0, -x, -2 * x]) for x in (23.0, 60.0, 90.0, 350.0, 800.0)])
    p = p.to(dtype).softmax(-1)
    F = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    _, S, g = problem(n_rows=5, n_states=3, dtype=dtype)
    counts = []
    got = solve_adjoint(
        product_with(F),
        counted(product_with(S), counts),
        g,
        method=method,
        max_steps=100,
        tol=1e-8,
        converged=torch.ones(5, dtype=torch.bool),
    )
    torch.testing.assert_close(got, g, rtol=1e-6, atol=1e-6)
    assert len(counts) < 10


def test_without_a_solve_the_cotangent_is_returned():
    F, S, g = problem()
    assert solve(F, S, g, "none") is g
