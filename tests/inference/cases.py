# SPDX-License-Identifier: BSD-3-Clause
"""Random adjoint equations with dense solutions, shared by the tests of mean field inference."""

import torch

from sksvae.inference import solve_adjoint


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


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
    """Return an operator on the rows with the given indices, all of them without."""

    def product(v, rows=None):
        return ((matrix if rows is None else matrix[rows]) @ v.unsqueeze(-1)).squeeze(-1)

    return product


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
