# SPDX-License-Identifier: BSD-3-Clause
"""Models and evidence for the tests of linear dynamics, and their dense joint Gaussians."""

import numpy as np
import torch

from sksvae.expfam import MNIWParams, NIWParams
from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials

LOCAL = ("mean", "covariance", "lag_covariance", "local_kl")


def normal(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def positive(dim, seed):
    root = normal(dim, dim, seed=seed)
    return torch.eye(dim, dtype=torch.float64) + 0.3 * root @ root.mT


def random_model(dim=2, seed=0, dtype=torch.float64, certainty=1.0):
    """Model whose q(theta) has nothing symmetric; ``certainty`` scales its pseudo-counts."""
    prior = DynamicsPrior.isotropic(dim, persistence=0.9, dtype=dtype)
    rotation = torch.linalg.qr(normal(dim, dim, seed=seed)).Q
    transition = 0.95 * rotation, 0.3 * normal(dim, 1, seed=seed + 1)
    dof = torch.tensor(certainty * (dim + 8.0), dtype=torch.float64)
    posterior = DynamicsPrior(
        NIWParams(
            2 * dof * positive(dim, seed + 2),
            normal(dim, seed=seed + 3),
            certainty * torch.tensor(3.0, dtype=torch.float64),
            dof,
        ),
        MNIWParams(
            0.3 * (dof + certainty) * positive(dim, seed + 4),
            torch.cat(transition, -1),
            certainty * 5.0 * positive(dim + 1, seed + 5),
            dof + certainty,
        ),
    )
    posterior = DynamicsPrior(
        NIWParams(*(field.to(dtype) for field in posterior.initial)),
        MNIWParams(*(field.to(dtype) for field in posterior.dynamics)),
    )
    return LinearDynamicsModel(prior, posterior)


def converted(model, dtype):
    return LinearDynamicsModel.from_state({k: v.to(dtype) for k, v in model.state().items()})


def random_evidence(lengths, dim=2, seed=10, n_steps=None, unobserved=0.3, dtype=torch.float64):
    """Potentials of ragged sequences, some steps unobserved, NaN where no step exists."""
    n_steps = n_steps or max(lengths)
    shape = len(lengths), n_steps, dim
    R = normal(*shape, seed=seed).exp()
    generator = torch.Generator().manual_seed(seed + 2)
    seen = torch.rand(shape[:2], generator=generator) >= unobserved
    R = torch.where(seen.unsqueeze(-1), R, 0.0)
    r = 2 * R * normal(*shape, seed=seed + 1)
    mask = torch.arange(n_steps) < torch.tensor(lengths)[:, None]
    r, R = (field.masked_fill(~mask.unsqueeze(-1), torch.nan).to(dtype) for field in (r, R))
    return Potentials(r, R), mask


def take(potentials, mask, sequence):
    """Potentials of one sequence, at the steps that exist, as arrays."""
    return tuple(field[sequence, mask[sequence]].detach().numpy() for field in potentials)


def dense_expected(model, n_steps):
    """``E log p(z | theta) = h'z - z'Jz/2 + c`` of the stacked steps, entry by entry.

    From the standard parameters by the textbook, and as squares of residuals.
    """
    (S0, m0, kappa, nu0), (S, M, V, nu) = (
        tuple(field.numpy() for field in part) for part in model.posterior
    )
    dim = len(m0)
    J, h, c = np.zeros((n_steps * dim,) * 2), np.zeros(n_steps * dim), 0.0

    def expected_log_det(scale, dof):
        digamma = torch.digamma(torch.tensor([(dof - i) / 2 for i in range(dim)])).sum().item()
        return dim * np.log(2) - np.linalg.slogdet(scale)[1] + digamma

    P0 = nu0 * np.linalg.inv(S0)
    J[:dim, :dim] += P0
    h[:dim] += P0 @ m0
    c += 0.5 * (expected_log_det(S0, nu0) - dim * np.log(2 * np.pi) - dim / kappa - m0 @ P0 @ m0)
    P, V_inverse = nu * np.linalg.inv(S), np.linalg.inv(V)
    A, b = M[:, :-1], M[:, -1]
    for t in range(n_steps - 1):
        # E (z' - X y)'Q^-1(z' - X y) = |z' - A z - b|^2_P + D y'V^-1 y
        both = slice(t * dim, (t + 2) * dim)
        residual = np.hstack([-A, np.eye(dim)])
        J[both, both] += residual.T @ P @ residual
        h[both] += residual.T @ P @ b
        here = slice(t * dim, (t + 1) * dim)
        J[here, here] += dim * V_inverse[:-1, :-1]
        h[here] -= dim * V_inverse[:-1, -1]
        c += 0.5 * (
            expected_log_det(S, nu) - dim * np.log(2 * np.pi) - b @ P @ b - dim * V_inverse[-1, -1]
        )
    return J, h, c


def dense_prior(parameters, n_steps):
    """Mean and covariance of the stacked steps under point parameters, by recursion."""
    A, b, Q, m, P = (field.double().numpy() for field in parameters)
    dim = len(b)
    mean, covariance = np.zeros(n_steps * dim), np.zeros((n_steps * dim,) * 2)
    for t in range(n_steps):
        here, before = slice(t * dim, (t + 1) * dim), slice(0, t * dim)
        if t:
            last = slice((t - 1) * dim, t * dim)
            m, P = A @ m + b, A @ P @ A.T + Q
            covariance[here, before] = A @ covariance[last, before]
            covariance[before, here] = covariance[here, before].T
        mean[here], covariance[here, here] = m, P
    return mean, covariance


def infer(model, potentials, mask, **options):
    return model.infer(potentials, model.expected_params(), mask, **options)


def evidence_term(potentials, posterior):
    """``E_q[log l(z)]`` of each sequence."""
    r, R = (torch.where(posterior.mask[..., None], field, 0.0) for field in potentials)
    second = posterior.covariance.diagonal(dim1=-2, dim2=-1) + posterior.mean.square()
    return (r * posterior.mean - 0.5 * R * second).sum((-2, -1))


def surrogate(potentials, posterior):
    return evidence_term(potentials, posterior) - posterior.local_kl


def assert_close(got, want, **tolerance):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want), **tolerance)
