# SPDX-License-Identifier: BSD-3-Clause
"""Sequences that switch between autoregressions, and the exact evidence of given states."""

import numpy as np
import torch
from scipy import linalg, special, stats

from sksvae.autoregressive_hmm import point_sequences
from sksvae.autoregressive_hmm.model import Problem
from sksvae.graphical import ChainPosterior, DynamicsPrior, SwitchingPrior


def switching(seed, n_states=3, dim=2, lengths=(600,), stay=0.97, noise=0.1):
    """Slow rotations, each about a point of its own: stacked points and states."""
    rng = np.random.default_rng(seed)
    A, b = [], []
    for _ in range(n_states):
        W = rng.standard_normal((dim, dim))
        A.append(0.95 * linalg.expm((W - W.T) * rng.uniform(0.1, 0.4)))
        b.append(0.3 * rng.standard_normal(dim))
    P = np.full((n_states, n_states), (1 - stay) / max(n_states - 1, 1))
    np.fill_diagonal(P, stay)
    points, states = [], []
    for length in lengths:
        k, z = rng.integers(n_states), rng.standard_normal(dim)
        for t in range(length):
            if t:
                k = rng.choice(n_states, p=P[k] / P[k].sum())
                z = A[k] @ z + b[k] + noise * rng.standard_normal(dim)
            points.append(z)
            states.append(k)
    return torch.tensor(np.array(points)), np.array(states)


def prior(n_states, dim=2, noise=0.1, dtype=torch.float64, **options):
    dynamics = DynamicsPrior.isotropic(dim, noise_scale=noise**2, dtype=dtype)
    return SwitchingPrior.sticky(n_states, dynamics, **options)


def problem(seed=0, n_states=3, n_prior=None, tied=False, **options):
    """Problem, its points and the true states in the order of its stacking."""
    points, states = switching(seed, n_states=n_states, **options)
    sequences = point_sequences(points, options.get("lengths", (600,)))
    built = Problem.build(
        sequences.parts,
        prior(n_prior or n_states, points.shape[1], options.get("noise", 0.1), tied=tied),
    )
    padded = [torch.tensor(states)[rows.clamp_min(0)] for rows in sequences.rows]
    return built, points, built.stacking.stack(padded)


def random_posteriors(lengths, dim=2, seed=0):
    """Posteriors of walks: random means, and moments of a chain that is positive definite."""
    rng = np.random.default_rng(seed)
    n_steps, n = max(lengths), len(lengths)
    mask = np.arange(n_steps) < np.array(lengths)[:, None]
    mean = rng.standard_normal((n, n_steps, dim)).cumsum(1) * mask[..., None]
    size = n_steps * dim
    roots = 0.3 * rng.standard_normal((n, size, size)) / np.sqrt(size)
    joint = roots @ roots.transpose(0, 2, 1) + 0.01 * np.eye(size)
    blocks = joint.reshape(n, n_steps, dim, n_steps, dim)
    step = np.arange(n_steps)
    covariance = blocks[:, step, :, step].transpose(1, 0, 2, 3) * mask[..., None, None]
    moves = mask[:, 1:, None, None]
    lag = blocks[:, step[1:], :, step[:-1]].transpose(1, 0, 2, 3) * moves
    mean, covariance, lag = (torch.tensor(array) for array in (mean, covariance, lag))
    return ChainPosterior(
        mean, covariance, lag, mean.new_zeros(0, *mean.shape), mean.new_zeros(n), torch.tensor(mask)
    )


def first_evidence(points, prior):
    """``log p(z_1's)``: Student t predictions, one sequence after the other."""
    S, m, kappa, nu = (field.numpy() for field in prior)
    total = 0.0
    for z in points:
        dof = nu - len(m) + 1
        total += stats.multivariate_t.logpdf(z, m, S * (kappa + 1) / kappa / dof, dof)
        error = z - m
        S = S + kappa / (kappa + 1) * np.outer(error, error)
        m, kappa, nu = m + error / (kappa + 1), kappa + 1, nu + 1
    return total


def transition_evidence(pairs, prior, noise=None):
    """``log p(z' | z)`` of pairs under one state, by Student t predictions.

    And the scale and the degrees of freedom of the noise after them, which go on from ``noise``.
    """
    S, M, V, nu = (field[0].numpy() for field in prior)
    S, nu = (S, nu) if noise is None else noise
    total = 0.0
    for z, following in pairs:
        y = np.append(z, 1.0)
        slack, dof = 1 + y @ np.linalg.solve(V, y), nu - len(z) + 1
        total += stats.multivariate_t.logpdf(following, M @ y, S * slack / dof, dof)
        error = following - M @ y
        S, M = (
            S + np.outer(error, error) / slack,
            M + np.outer(error, np.linalg.solve(V, y)) / slack,
        )
        V, nu = V + np.outer(y, y), nu + 1
    return total, (S, nu)


def dirichlet_evidence(counts, concentration):
    """Log probability of a sequence of outcomes with these counts."""
    return (
        special.gammaln(concentration + counts).sum()
        - special.gammaln(concentration).sum()
        + special.gammaln(concentration.sum())
        - special.gammaln((concentration + counts).sum())
    )


def path_evidence(sequences, paths, prior):
    """``log p(z, k)`` of sequences of points with given states, theta integrated out."""
    n_states = prior.n_states
    total = first_evidence([z[0] for z in sequences], prior.initial)
    initial, counts = np.zeros(n_states), np.zeros((n_states, n_states))
    pairs = [[] for _ in range(n_states)]
    for z, path in zip(sequences, paths, strict=True):
        initial[path[0]] += 1
        for t in range(1, len(z)):
            counts[path[t - 1], path[t]] += 1
            pairs[path[t]].append((z[t - 1], z[t]))
    tied, noise = prior.dynamics.scale.ndim == 2, None
    for own in pairs:
        evidence, after = transition_evidence(own, prior.state_dynamics, noise)
        total, noise = total + evidence, after if tied else None
    total += dirichlet_evidence(initial, prior.initial_states.concentration.numpy())
    rows = prior.transitions.concentration.numpy()
    return total + sum(dirichlet_evidence(counts[k], rows[k]) for k in range(n_states))
