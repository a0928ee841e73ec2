# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian chains under expected linear dynamics: natural parameters and statistics.

With expected statistics under q(theta), of the initial state and of ``X = [A b]``, ``Q`` ::

    E log p(z_1) = h_0'z_1 - z_1'P_0 z_1/2 + (E log|Sigma_0^-1| - E[mu_0'Sigma_0^-1 mu_0]
                   - D log 2 pi) / 2,
    E log p(z' | z) = z''C y - z''P z'/2 - y'G y/2 + (E log|Q^-1| - D log 2 pi) / 2,

where ``y = (z, 1)``, ``P = E[Q^-1]``, ``C = E[Q^-1 X]`` and ``G = E[X'Q^-1 X]``. These are
expected, not point parameters: ``G`` holds ``D V^-1``, the uncertainty about the dynamics, beside
what the means give [1]_. Potentials add ``log l(z) = r'z - z' diag(R) z/2`` to each step, and the
posterior of the chain is what `sksvae.inference.chain_moments` works with.

There may be several dynamics, each weighted by how much a transition counts for it: a mask where
there is one, probabilities of states where dynamics switch.

References
----------
.. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with structured
   discrete representations", NeurIPS 2023, appendices D.1 and E.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.expfam import MNIWNatural, NIWNatural
from sksvae.graphical.api import ChainPosterior, Potentials
from sksvae.graphical.transition_tables import ChainNatural
from sksvae.inference import ChainMoments, long_chain_moments
from sksvae.inference.block_tridiagonal import CenteredMoments, ChainMethod, centered_moments


def clean_potentials(potentials: Potentials, mask: Tensor) -> Potentials:
    """Set potentials to zero at steps that do not exist, whatever stands there.

    Parameters
    ----------
    potentials : Potentials
        Of shape (n_sequences, n_steps, latent_dim).
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.

    Returns
    -------
    Potentials
        The same where the mask is true.

    Raises
    ------
    ValueError
        If the mask is not one of booleans that fits the potentials.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import Potentials
    >>> from sksvae.graphical.gaussian_chain import clean_potentials
    >>> evidence = Potentials(torch.tensor([[[1.0], [torch.nan]]]), torch.ones(1, 2, 1))
    >>> clean_potentials(evidence, torch.tensor([[True, False]])).precision_mean
    tensor([[[1.],
             [0.]]])
    """
    shape = tuple(potentials.precision_mean.shape)
    if len(shape) != 3 or mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
        raise ValueError(
            "potentials must have shape (n_sequences, n_steps, latent_dim) and mask must be "
            f"boolean of shape (n_sequences, n_steps), got potentials of shape {shape} and a mask "
            f"of shape {tuple(mask.shape)} and type {mask.dtype}."
        )
    exists = mask.unsqueeze(-1)
    return Potentials(*(torch.where(exists, field, 0.0) for field in potentials))


def chain_roles(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps start a sequence, and which pairs of steps are a transition.

    Parameters
    ----------
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.

    Returns
    -------
    starts : Tensor of bool of shape (n_sequences, n_steps)
        Steps that exist and whose predecessor does not.
    moves : Tensor of bool of shape (n_sequences, n_steps - 1)
        Whether a step and the next both exist.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical.gaussian_chain import chain_roles
    >>> chain_roles(torch.tensor([[True, True, False]]))
    (tensor([[ True, False, False]]), tensor([[ True, False]]))
    """
    moves = mask[:, 1:] & mask[:, :-1]
    return mask & ~pad(moves, (1, 0)), moves


def chain_posterior(
    potentials: Potentials,
    natural: ChainNatural,
    mask: Tensor,
    noise: Tensor | None = None,
    method: ChainMethod = "auto",
) -> ChainPosterior:
    """Exact posterior of chains with potentials.

    As ``log q(z) = E log p(z | theta) + log l(z) - log Z``, the local divergence is
    ``E_q[log l(z)] - log Z`` [P, app. E], ``Z`` with the constants of the dynamics. Both terms are
    large where potentials are precise, so they are taken relative to a point ``c`` near the mean of
    q(z), in ``y = z - c``, where the potentials of ``y`` are small: ::

        log Z = log l(c) + E log p(c | theta) + log int exp((h - J c)'y - y'Jy/2) dy.

    Parameters
    ----------
    potentials : Potentials
        Of shape (n_sequences, n_steps, latent_dim), zero at steps that do not exist.
    natural : ChainNatural
        ``E log p(z | theta)``.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.
    noise : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim), optional
        Standard normal numbers for the draws.
    method : {'auto', 'sequential', 'parallel'}, default='auto'
        Order of elimination, see `sksvae.inference.chain_moments`.

    Returns
    -------
    ChainPosterior
        Differentiable in potentials and natural parameters.

    Examples
    --------
    One step with a standard normal prior, seen once with unit noise:

    >>> import torch
    >>> from sksvae.graphical import Potentials
    >>> from sksvae.graphical.gaussian_chain import ChainNatural, chain_posterior
    >>> from sksvae.inference.chain_blocks import Blocks
    >>> one, none = torch.ones(1, 1, 1), torch.zeros(1, 0, 1, 1)
    >>> blocks = Blocks(one.unsqueeze(-1)), Blocks(none)
    >>> prior = ChainNatural(0 * one, *blocks, torch.tensor([-0.9189]))
    >>> chain_posterior(Potentials(3 * one, one), prior, one.bool().squeeze(-1)).mean
    tensor([[[1.5000]]])
    """
    centered = _Centered.build(potentials, natural, mask)
    chain = centered_moments(
        centered.center,
        centered.slope,
        centered.precision,
        natural.diagonal,
        natural.lower,
        mask=mask,
        noise=noise,
        method=method,
    )
    return centered.posterior(chain, chain.variance, natural.constant, mask)


@torch.no_grad()
def chain_stretches(
    potentials: Callable[[int, int], Potentials],
    natural: Callable[[int, int], ChainNatural],
    cuts: Sequence[int],
) -> Iterator[ChainPosterior]:
    """`chain_posterior` of one sequence, stretch by stretch: only messages between them are held.

    Parameters
    ----------
    potentials : callable
        ``potentials(a, b)`` gives those of the steps from a to b, without b, of shape
        (1, b - a, latent_dim).
    natural : callable
        ``natural(a, b)`` gives ``E log p(z | theta)`` of these steps, without what the transitions
        to others add.
    cuts : sequence of int
        Where stretches begin, in order and from 0, and the number of steps.

    Yields
    ------
    ChainPosterior
        Of each stretch in order, without a gradient. Lag covariances begin with that of the last
        step of the stretch before and the first of this. Divergences add up to that of the
        sequence.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials
    >>> model = LinearDynamicsModel(DynamicsPrior.isotropic(1))
    >>> x = torch.tensor([[[0.0], [1.0], [3.0], [2.0]]], dtype=torch.float64)
    >>> def evidence(a, b):
    ...     return Potentials(x[:, a:b], torch.ones_like(x[:, a:b]))
    >>> parts = model.infer_stretches(evidence, model.expected_params(), [0, 3, 4])
    >>> [part.mean.shape for part in parts]
    [torch.Size([1, 3, 1]), torch.Size([1, 1, 1])]
    """
    latest: Any = None

    def read(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal latest
        # Both neighbours are needed, and theirs for the points about which they are.
        first, last = max(start - 2, 0), min(stop + 2, cuts[-1])
        evidence = potentials(first, last)
        exists = evidence.precision.new_ones(1, last - first, dtype=torch.bool)
        dynamics, here = natural(first, last), slice(start - first, stop - first)
        latest = _Centered(
            *(field[:, here] for field in _Centered.build(evidence, dynamics, exists))
        )
        diagonal = dynamics.diagonal.whole()[:, here] + torch.diag_embed(latest.precision)
        return latest.slope, diagonal, dynamics.lower.whole()[:, here]

    chains = long_chain_moments(read, cuts)
    for (start, stop), chain in zip(pairwise(cuts), chains, strict=True):
        # The transition to the next stretch counts for this one.
        constant = natural(start, min(stop + 1, cuts[-1])).constant
        exists = torch.ones(chain.mean.shape[:2], dtype=torch.bool, device=chain.mean.device)
        # A stretch is read just before its moments come.
        variance = chain.covariance.diagonal(dim1=-2, dim2=-1)
        yield latest.posterior(chain, variance, constant, exists)


class _Centered(NamedTuple):
    """What is relative to the point ``c`` in a chain with potentials, see `chain_posterior`."""

    center: Tensor
    precision: Tensor
    evidence_slope: Tensor
    log_prior: Tensor
    slope: Tensor

    @classmethod
    def build(cls, potentials: Potentials, natural: ChainNatural, mask: Tensor) -> "_Centered":
        r, R = potentials
        h = natural.precision_mean
        with torch.no_grad():
            # The mean, if steps were independent. Any point will do, so it needs no gradient.
            center = torch.where(
                mask.unsqueeze(-1), (r + h) / (R + natural.diagonal.diagonals()), 0.0
            )
            product = natural.times(center)  # its gradient is that of `centered_moments`
        evidence_slope = r - R * center
        log_prior = (h - 0.5 * product) * center
        return cls(center, R, evidence_slope, log_prior, evidence_slope + (h - product))

    def posterior(
        self,
        chain: ChainMoments | CenteredMoments,
        variance: Tensor,
        constant: Tensor,
        mask: Tensor,
    ) -> ChainPosterior:
        """Posterior from the moments of ``y`` and the constant of ``E log p(z | theta)``."""
        shift = chain.mean
        evidence = self.evidence_slope * shift
        evidence = evidence - 0.5 * self.precision * (variance + shift.square())
        divergence = (evidence - self.log_prior).sum((-2, -1))
        return ChainPosterior(
            mean=self.center + shift,
            covariance=chain.covariance,
            lag_covariance=chain.lag_covariance,
            draws=self.center + chain.draws,
            local_kl=divergence - constant - chain.log_normalizer,
            mask=mask,
        )


def chain_stats(
    posterior: ChainPosterior, starts: Tensor, moves: Tensor
) -> tuple[NIWNatural, MNIWNatural]:
    """Sufficient statistics of the initial state and of K dynamics, summed over sequences.

    Parameters
    ----------
    posterior : ChainPosterior
        Of the sequences.
    starts : Tensor of shape (n_sequences, n_steps)
        How much each step counts as the first of its sequence.
    moves : Tensor of shape (n_sequences, n_steps - 1, K)
        How much each transition counts for each of the dynamics.

    Returns
    -------
    initial : NIWNatural
        What sequences add to the natural parameters of the initial state.
    dynamics : MNIWNatural
        What transitions add to those of the dynamics, with leading axis K.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials
    >>> from sksvae.graphical.gaussian_chain import chain_stats
    >>> model = LinearDynamicsModel(DynamicsPrior.isotropic(2))
    >>> evidence = Potentials(*torch.ones(2, 1, 5, 2, dtype=torch.float64))
    >>> mask = torch.ones(1, 5, dtype=torch.bool)
    >>> posterior = model.infer(evidence, model.expected_params(), mask)
    >>> starts = torch.eye(5, dtype=torch.float64)[:1]
    >>> moves = torch.ones(1, 4, 1, dtype=torch.float64)
    >>> initial, dynamics = chain_stats(posterior, starts, moves)
    >>> initial.log_det_precision, dynamics.log_det_precision  # half the counts
    (tensor(0.5000, dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    mean, second = posterior.mean, posterior.second_moment

    def total(weights: Tensor, values: Tensor) -> Tensor:
        return torch.tensordot(weights, values, dims=([0, 1], [0, 1]))

    n_starts, counts = starts.sum(), moves.sum((0, 1))
    initial = NIWNatural(
        -0.5 * total(starts, second), total(starts, mean), -0.5 * n_starts, 0.5 * n_starts
    )
    # Sums of z'y' and yy' with y = (z, 1), block by block.
    later, earlier = total(moves, mean[:, 1:]), total(moves, mean[:, :-1])
    cross = torch.cat([total(moves, posterior.lag_moment), later.unsqueeze(-1)], -1)
    above = torch.cat([total(moves, second[:, :-1]), earlier.unsqueeze(-1)], -1)
    below = torch.cat([earlier, counts.unsqueeze(-1)], -1)
    regressors = torch.cat([above, below.unsqueeze(-2)], -2)
    precision = -0.5 * total(moves, second[:, 1:])
    return initial, MNIWNatural(precision, cross, -0.5 * regressors, 0.5 * counts)
