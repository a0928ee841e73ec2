# SPDX-License-Identifier: BSD-3-Clause
"""Models for the tests of switching dynamics, and their joint distributions by enumeration."""

import itertools
from typing import NamedTuple

import numpy as np
import torch

from sksvae.expfam import DirichletParams, MNIWParams, NIWParams, TiedMNIWParams
from sksvae.graphical import DynamicsPrior, Potentials, SwitchingDynamicsModel, SwitchingPrior
from sksvae.inference import FixedPointSettings
from tests.graphical.dynamics_cases import normal, positive

TIGHT = FixedPointSettings(max_updates=5000, tol=1e-14, max_solver_steps=1000, solver_tol=1e-13)
LENGTHS = [6, 1, 4, 2, 5]


def random_model(
    n_states=3, dim=2, seed=0, dtype=torch.float64, certainty=1.0, spread=0.6, tied=False
):
    """Model whose q(theta) has nothing symmetric; ``certainty`` scales its pseudo-counts."""
    prior = SwitchingPrior.sticky(
        n_states, DynamicsPrior.isotropic(dim, persistence=0.9), stickiness=4.0, tied=tied
    )
    states = range(n_states)
    rotations = [torch.linalg.qr(normal(dim, dim, seed=seed + k)).Q for k in states]
    offsets = spread * normal(n_states, dim, 1, seed=seed + 100)
    dof = certainty * torch.linspace(dim + 8.0, dim + 12.0, n_states).double()
    scales = torch.stack([positive(dim, seed + 200 + k) for k in states])
    counts = torch.stack([5.0 * positive(dim + 1, seed + 300 + k) for k in states])
    one = torch.ones((), dtype=torch.float64)
    dynamics = MNIWParams(
        0.3 * dof[:, None, None] * scales,
        torch.cat([0.9 * torch.stack(rotations), offsets], -1),
        certainty * counts,
        dof,
    )
    shared = TiedMNIWParams(dynamics.scale[-1], *dynamics[1:3], dof[-1])
    posterior = SwitchingPrior(
        NIWParams(
            2.0 * dof[0] * positive(dim, seed + 400),
            normal(dim, seed=seed + 401),
            3.0 * certainty * one,
            dof[0],
        ),
        shared if tied else dynamics,
        DirichletParams(certainty * normal(n_states, seed=seed + 500).exp()),
        DirichletParams(
            certainty
            * (normal(n_states, n_states, seed=seed + 501).exp() + 3.0 * torch.eye(n_states))
        ),
    )
    return converted(SwitchingDynamicsModel(prior, posterior), dtype)


def converted(model, dtype):
    return SwitchingDynamicsModel.from_state({k: v.to(dtype) for k, v in model.state().items()})


def infer(model, potentials, mask, settings=TIGHT, **options):
    return model.infer(potentials, model.expected_params(), mask, settings=settings, **options)


class Enumerated(NamedTuple):
    """All paths of states, and ``E log p(z | k) = h'z - z'Jz/2 + c`` of each, dense."""

    paths: np.ndarray  # (P, T)
    log_prior: np.ndarray  # E log p(k), (P,)
    J: np.ndarray  # (P, TD, TD)
    h: np.ndarray  # (P, TD)
    c: np.ndarray  # (P,)


def enumerate_paths(model, n_steps):
    """Entry by entry from the standard parameters, with residuals as in the textbook."""
    initial, _, first, table = model.posterior
    dynamics = model.posterior.state_dynamics
    n_states, dim = model.n_states, model.latent_dim

    def expected_log(concentration):
        return (concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()).numpy()

    def log_det(scale, dof):
        digamma = torch.digamma(torch.tensor([(dof - i) / 2 for i in range(dim)])).sum().item()
        return dim * np.log(2) - np.linalg.slogdet(scale)[1] + digamma

    log_first, log_table = expected_log(first.concentration), expected_log(table.concentration)
    paths = np.array(list(itertools.product(range(n_states), repeat=n_steps)))
    log_prior = log_first[paths[:, 0]] + log_table[paths[:, :-1], paths[:, 1:]].sum(-1)
    size = n_steps * dim
    J, h, c = np.zeros((len(paths), size, size)), np.zeros((len(paths), size)), np.zeros(len(paths))
    S, m, kappa, nu = (field.numpy() for field in initial)
    P = nu * np.linalg.inv(S)
    J[:, :dim, :dim] += P
    h[:, :dim] += P @ m
    c += 0.5 * (log_det(S, nu) - dim * np.log(2 * np.pi) - dim / kappa - m @ P @ m)
    for n, path in enumerate(paths):
        for t, k in enumerate(path[1:]):
            S, X, V, nu = (field[k].numpy() for field in dynamics)
            P, spread, b = nu * np.linalg.inv(S), dim * np.linalg.inv(V), X[:, -1]
            both, here = slice(t * dim, (t + 2) * dim), slice(t * dim, (t + 1) * dim)
            residual = np.hstack([-X[:, :-1], np.eye(dim)])
            J[n, both, both] += residual.T @ P @ residual
            h[n, both] += residual.T @ P @ b
            J[n, here, here] += spread[:-1, :-1]
            h[n, here] -= spread[:-1, -1]
            constant = log_det(S, nu) - dim * np.log(2 * np.pi) - b @ P @ b - spread[-1, -1]
            c[n] += 0.5 * constant
    return Enumerated(paths, log_prior, J, h, c)


def best_gaussian(every, q, r, R):
    """Mean, covariance and joint precision of q(z) given ``q(k)`` over paths."""
    joint = np.tensordot(q, every.J, 1) + np.diag(R.ravel())
    covariance = np.linalg.inv(joint)
    return covariance @ (q @ every.h + r.ravel()), covariance, joint


def expected_log_densities(every, mean, covariance):
    """``E_q(z) E log p(z | k)`` of each path."""
    second = covariance + np.outer(mean, mean)
    return every.h @ mean - 0.5 * np.tensordot(every.J, second, 2) + every.c


def divergence(every, q, mean, covariance):
    """``KL(q(z) q(k) || exp E log p(z, k))``, term by term."""
    size = len(mean)
    negative_entropy = -0.5 * (np.linalg.slogdet(covariance)[1] + size * (1 + np.log(2 * np.pi)))
    used = q > 0
    log_q = np.log(np.where(used, q, 1.0))
    expected = every.log_prior + expected_log_densities(every, mean, covariance)
    return negative_entropy + (q * (log_q - expected)).sum()


def log_evidence(every, r, R):
    """``log sum_k int l(z) exp E log p(z, k) dz``, which the surrogate bounds from below."""
    terms = []
    for log_prior, J, h, c in zip(every.log_prior, every.J, every.h, every.c, strict=True):
        joint, total = J + np.diag(R.ravel()), h + r.ravel()
        log_det = np.linalg.slogdet(joint / (2 * np.pi))[1]
        terms.append(log_prior + c + 0.5 * (total @ np.linalg.solve(joint, total) - log_det))
    return np.logaddexp.reduce(terms)


def path_probabilities(every, posterior, n):
    """``q(k)`` over paths, of the energies that a posterior reports."""
    energies = posterior.energies[n].numpy()
    steps = np.arange(every.paths.shape[1])
    log_q = every.log_prior + energies[steps, every.paths].sum(-1)
    return np.exp(log_q - np.logaddexp.reduce(log_q))


def switching_data(n_steps=80, n_sequences=3, seed=0, noise=0.05):
    """Two rotations of opposite sense and a decay, seen through noise; potentials and states."""
    prior = SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2))
    angle = torch.tensor(0.5, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    A = torch.stack([turn, turn.mT, 0.7 * torch.eye(2, dtype=torch.float64)])
    b = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.6, -0.6]], dtype=torch.float64).unsqueeze(-1)
    one = torch.ones(3, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    dynamics = MNIWParams(
        200 * 0.02 * eye[:2, :2].expand(3, 2, 2),
        torch.cat([A, b], -1),
        1e3 * eye.expand(3, 3, 3),
        200 * one,
    )
    truth = SwitchingDynamicsModel(
        prior,
        prior._replace(
            dynamics=dynamics,
            transitions=DirichletParams(1e3 * (0.9 * eye + 0.05 * (1 - eye))),
            initial_states=DirichletParams(one),
        ),
    )
    z, states = truth.sample(n_steps, n_sequences, torch.Generator().manual_seed(seed))
    R = torch.full_like(z, 1 / noise)
    x = z + noise**0.5 * normal(*z.shape, seed=seed + 1)
    return truth, Potentials(R * x, R), states
