# SPDX-License-Identifier: BSD-3-Clause
r"""Coordinate ascent for a Bayesian autoregressive hidden Markov model.

The bound on the log evidence of the latents is ::

    L = E_q[log p(z, k | theta)] + H[q(k)] - KL(q(theta) || p(theta)).

For given q(theta) the best q(k) is a Markov chain whose log weights are expectations, and ``E + H``
is its log normaliser [1]_. For given q(k) the best q(theta) is conjugate: the statistics of the
sequences add to the natural parameters of the prior. The first latents have the same distribution
in all states, so their part of q(theta) and of the bound is computed once.

References
----------
.. [1] Beal, "Variational algorithms for approximate Bayesian inference", PhD thesis, University
   College London, 2003, chapter 3: (3.67)-(3.72).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from sksvae.autoregressive_hmm.sequences import Stacking, as_double
from sksvae.autoregressive_hmm.transition_moments import TransitionMoments
from sksvae.expfam import (
    MNIW,
    NIW,
    Dirichlet,
    DirichletParams,
    MNIWNatural,
    NIWNatural,
    NIWParams,
    natural_step,
)
from sksvae.expfam.numerics import cholesky, solve_from_cholesky
from sksvae.graphical import ChainPosterior, SwitchingPrior
from sksvae.inference import markov_moments

_NIW = NIW()
_MNIW = MNIW()
_DIRICHLET = Dirichlet()
_LOG_2PI = math.log(2 * math.pi)


class Statistics(NamedTuple):
    """What all sequences add to the natural parameters, beside those of the first latents.

    Parameters
    ----------
    dynamics : MNIWNatural
        With leading axis n_states.
    initial_states : Tensor of shape (n_states,)
        Expected number of sequences that begin in each state.
    transitions : Tensor of shape (n_states, n_states)
        Expected numbers of transitions.
    """

    dynamics: MNIWNatural
    initial_states: Tensor
    transitions: Tensor

    @property
    def weights(self) -> Tensor:
        """Expected number of steps in each state, of shape (n_states,)."""
        return self.initial_states + self.transitions.sum(0)


class Expectation(NamedTuple):
    """The best q(k) for a q(theta).

    Parameters
    ----------
    posterior : SwitchingPrior
        This q(theta).
    bound : float
        In nats, of all sequences.
    marginals : list of Tensor of shape (n_sequences, n_steps, n_states)
        Probability of each state at each step of each part, zero where there is no step.
    statistics : Statistics
        Their sums.
    """

    posterior: SwitchingPrior
    bound: float
    marginals: list[Tensor]
    statistics: Statistics


@dataclass(frozen=True)
class Problem:
    """Sequences and a prior, in double precision.

    Parameters
    ----------
    parts : list of ChainPosterior
        The sequences.
    prior : SwitchingPrior
        That treats all states alike.
    stacking : Stacking
        Of the sequences.
    moments : TransitionMoments
        Of the sequences.
    initial : NIWParams
        Posterior of the mean and covariance of the first latents.
    initial_evidence : float
        What the first latents add to the bound.
    """

    parts: list[ChainPosterior]
    prior: SwitchingPrior
    stacking: Stacking
    moments: TransitionMoments
    initial: NIWParams
    initial_evidence: float

    @classmethod
    def build(cls, parts: Sequence[ChainPosterior], prior: SwitchingPrior) -> "Problem":
        """Check and convert; see `fit_autoregressive_hmm`."""
        if not parts:
            raise ValueError("parts must hold at least one sequence, got none.")
        parts = [as_double(part) for part in parts]
        prior = _double_prior(prior)
        initial, evidence = _first_latents(parts, prior.initial)
        moments = TransitionMoments(parts)
        return cls(parts, prior, Stacking.of(parts), moments, initial, evidence)

    def under(self, prior: SwitchingPrior) -> "Problem":
        """The same sequences with another prior."""
        prior = _double_prior(prior)
        initial, evidence = _first_latents(self.parts, prior.initial)
        return replace(self, prior=prior, initial=initial, initial_evidence=evidence)

    @property
    def n_rows(self) -> int:
        """Number of steps."""
        return len(self.stacking.means)

    def expect(self, posterior: SwitchingPrior) -> Expectation:
        """Compute the best q(k) and the bound with it.

        Parameters
        ----------
        posterior : SwitchingPrior
            ``q(theta)``.

        Returns
        -------
        Expectation
            With statistics for `maximize`.
        """
        log_initial, log_transition = (
            _DIRICHLET.standard_expected_stats(part).log_probabilities
            for part in (posterior.initial_states, posterior.transitions)
        )
        evidence, marginals, n_initial, n_transitions = 0.0, [], 0.0, 0.0
        all_energies = self.moments.energies(posterior.state_dynamics)
        for part, energies in zip(self.parts, all_energies, strict=True):
            chain = markov_moments(
                log_initial, log_transition, pad(energies, (0, 0, 1, 0)), mask=part.mask
            )
            marginals.append(chain.marginals)
            evidence += float(chain.log_normalizer.sum())
            n_initial = n_initial + chain.marginals[:, 0].sum(0)
            n_transitions = n_transitions + chain.pair_counts.sum(0)
        statistics = Statistics(self._dynamics(marginals), n_initial, n_transitions)
        bound = self.initial_evidence + evidence - self._state_kl(posterior)
        posterior = posterior._replace(initial=self.initial)
        return Expectation(posterior, bound, marginals, statistics)

    def _dynamics(self, marginals: list[Tensor]) -> MNIWNatural:
        return self.moments.statistics([gamma[:, 1:] for gamma in marginals])

    def _state_kl(self, posterior: SwitchingPrior) -> float:
        """``KL(q || p)`` of all but the first latents."""
        parts = zip(posterior.families, posterior, self.prior, strict=True)
        return sum(float(family.standard_kl(q, p).sum()) for family, q, p in list(parts)[1:])

    def maximize(self, statistics: Statistics) -> SwitchingPrior:
        """Compute the best q(theta) for given statistics.

        Parameters
        ----------
        statistics : Statistics
            Of all sequences.

        Returns
        -------
        SwitchingPrior
            The conjugate posterior.
        """
        prior = self.prior
        return SwitchingPrior(
            self.initial,
            natural_step(prior.families[1], prior.dynamics, statistics.dynamics, 1.0),
            DirichletParams(prior.initial_states.concentration + statistics.initial_states),
            DirichletParams(prior.transitions.concentration + statistics.transitions),
        )

    def with_labels(self, labels: Tensor) -> SwitchingPrior:
        """Compute the best q(theta) if the states are known.

        Parameters
        ----------
        labels : Tensor of int64 of shape (n_rows,)
            State of each step, in the order of the stacking; -1 for steps to leave out.

        Returns
        -------
        SwitchingPrior
            The conjugate posterior.
        """
        labels = pad(labels, (0, 1), value=-1)  # for steps that do not exist
        marginals = [
            one_hot(labels[rows] + 1, self.prior.n_states + 1)[..., 1:].double()
            for rows in self.stacking.rows
        ]
        pairs = [torch.einsum("btj,btk->jk", m[:, :-1], m[:, 1:]) for m in marginals]
        n_initial = [m[:, 0].sum(0) for m in marginals]
        return self.maximize(Statistics(self._dynamics(marginals), sum(n_initial), sum(pairs)))

    def ascend(
        self, posterior: SwitchingPrior, max_iter: int, tol: float, target: float = -math.inf
    ) -> tuple[Expectation, list[float]]:
        """Coordinate ascent.

        Parameters
        ----------
        posterior : SwitchingPrior
            Where to start.
        max_iter : int
            Most rounds.
        tol : float
            Gain in nats per step of the sequences at which to stop.
        target : float, default=-inf
            Bound that is to be exceeded. Give up when it is out of reach at the present pace.

        Returns
        -------
        expectation : Expectation
            The last one.
        bounds : list of float
            Of all rounds.
        """
        expectation = self.expect(posterior)
        bounds = [expectation.bound]
        for done in range(1, max_iter + 1):
            expectation = self.expect(self.maximize(expectation.statistics))
            bounds.append(expectation.bound)
            gain = bounds[-1] - bounds[-2]
            # Gains mostly shrink from round to round; not always, hence the factor.
            hopeless = done > 1 and bounds[-1] + 2 * (max_iter - done) * gain < target
            if gain < tol * self.n_rows or hopeless:
                break
        return expectation, bounds


def _first_latents(parts: Sequence[ChainPosterior], prior: NIWParams) -> tuple[NIWParams, float]:
    """Posterior of the distribution of first latents, and ``E log p(z_1) - KL``."""
    mean = torch.cat([part.mean[:, 0] for part in parts])
    covariance = torch.cat([part.covariance[:, 0] for part in parts])
    second = covariance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    count = mean.new_tensor(0.5 * len(mean))
    stats = NIWNatural(-0.5 * second.sum(0), mean.sum(0), -count, count)
    posterior = natural_step(_NIW, prior, stats, 1.0)
    factor, dim = cholesky(posterior.scale, "scale"), mean.shape[-1]
    residual = mean - posterior.mean
    spread = residual.mT @ residual + covariance.sum(0)
    precise = posterior.dof * solve_from_cholesky(factor, spread).trace()
    log_det = _NIW.standard_expected_stats(posterior).log_det_precision
    constant = log_det - dim / posterior.mean_precision - dim * _LOG_2PI
    evidence = 0.5 * (len(mean) * constant - precise)
    return posterior, float(evidence - _NIW.standard_kl(posterior, prior))


def _double_prior(prior: SwitchingPrior) -> SwitchingPrior:
    """Prior in double precision, if it treats all states alike."""
    prior = converted(prior, torch.float64)
    order = torch.arange(prior.n_states, device=prior.initial.mean.device)
    off_diagonal = prior.transitions.concentration[order[:, None] != order]
    alike = (off_diagonal == off_diagonal[:1]).all() and all(
        torch.equal(field, turned)
        for part, other in zip(prior[1:], prior.select(order.roll(1))[1:], strict=True)
        for field, turned in zip(part, other, strict=True)
    )
    if not alike:
        raise ValueError(
            "prior must treat all states alike, as that of SwitchingPrior.sticky does: the states "
            "are found in any order."
        )
    return prior


def converted(params: SwitchingPrior, dtype: torch.dtype) -> SwitchingPrior:
    """Parameters in another precision, without a gradient.

    Parameters
    ----------
    params : SwitchingPrior
        Any.
    dtype : torch.dtype
        Type of the result.

    Returns
    -------
    SwitchingPrior
        The same.
    """
    parts = (type(part)(*(field.detach().to(dtype) for field in part)) for part in params)
    return SwitchingPrior(*parts)
