# SPDX-License-Identifier: BSD-3-Clause
"""The divergence of a switching posterior, step by step."""

import math

import torch
from torch import Tensor

from sksvae.expfam import NIWStats
from sksvae.expfam.numerics import cholesky, symmetrize
from sksvae.graphical.switching_inference import SwitchingPosterior, SwitchingProblem

_LOG_2PI = math.log(2 * math.pi)


@torch.no_grad()
def split_local_kl(problem: SwitchingProblem, posterior: SwitchingPosterior) -> Tensor:
    """Split ``local_kl`` over steps by the chain rule.

    The term of step t is ::

        E[log q(z_t | z_{t-1}) - log p(z_t | z_{t-1}, k_t)] + E[log q(k_t | k_{t-1})
        - log pi_{k_{t-1}, k_t}],

    with expectations over q(z), q(k) and q(theta), and without what comes before at the first step.

    Parameters
    ----------
    problem : SwitchingProblem
        Parameters that the posterior was inferred with; evidence plays no part.
    posterior : SwitchingPosterior
        Of the sequences.

    Returns
    -------
    Tensor of shape (n_sequences, n_steps)
        Their sum is ``local_kl``; zero at steps that do not exist.

    Raises
    ------
    torch.linalg.LinAlgError
        If the covariances of a step and the next leave nothing of the noise between them.
    """
    expected = (posterior.states * problem.energies(posterior)).sum(-1)
    expected[:, 0] = _first_log_density(problem.initial, posterior)
    terms = _negative_entropy(posterior) - expected + _state_terms(problem, posterior)
    return torch.where(problem.mask, terms, 0.0)


def _first_log_density(initial: NIWStats, posterior: SwitchingPosterior) -> Tensor:
    """``E log p(z_1)`` of each sequence, as squares of residuals."""
    precision = symmetrize(initial.precision)
    center = torch.linalg.solve(precision, initial.precision_mean)
    doubt = initial.quadratic - center @ initial.precision_mean
    residual = posterior.mean[:, 0] - center
    square = torch.einsum("bi,ij,bj->b", residual, precision, residual)
    square = square + (precision * posterior.covariance[:, 0]).sum((-2, -1)) + doubt
    constant = initial.log_det_precision - len(center) * _LOG_2PI
    return 0.5 * (constant - square)


def _negative_entropy(posterior: SwitchingPosterior) -> Tensor:
    """``E log q(z_t | z_{t-1})``, of shape (n_sequences, n_steps).

    The lower block of the joint Cholesky factor of two steps is that of the conditional covariance.
    It is taken in double precision: little may be left of a step once the one before is known.
    """
    mask, lag = posterior.mask, posterior.lag_covariance.double()
    dim = lag.shape[-1]
    eye = torch.eye(dim, dtype=lag.dtype, device=lag.device)
    covariance = torch.where(mask[..., None, None], posterior.covariance.double(), eye)
    upper = torch.cat([covariance[:, :-1], lag.mT], -1)
    joint = torch.cat([upper, torch.cat([lag, covariance[:, 1:]], -1)], -2)
    first = cholesky(covariance[:, :1], "covariance").diagonal(dim1=-2, dim2=-1)
    later = cholesky(joint, "covariance of two steps").diagonal(dim1=-2, dim2=-1)[..., dim:]
    log_root = torch.cat([first, later], 1).log().sum(-1)
    return (-log_root - 0.5 * dim * (1 + _LOG_2PI)).to(posterior.mean.dtype)


def _state_terms(problem: SwitchingProblem, posterior: SwitchingPosterior) -> Tensor:
    """``E[log q(k_t | k_{t-1}) - log pi]``, of shape (n_sequences, n_steps)."""
    chain = problem.discrete(posterior.energies, want_pairs=True)
    marginals, pairs = chain.marginals, chain.pair_marginals

    def excess(weights: Tensor, log_prior: Tensor) -> Tensor:
        # 0 (log 0 - log 0) = 0
        return torch.xlogy(weights, weights) - torch.where(weights > 0, weights * log_prior, 0.0)

    first = excess(marginals[:, 0], problem.log_initial).sum(-1, keepdim=True)
    # The pairs were asked for.
    later = excess(pairs, problem.log_transition).sum((-2, -1))  # type: ignore[arg-type]
    return torch.cat([first, later - torch.xlogy(marginals, marginals)[:, :-1].sum(-1)], 1)
