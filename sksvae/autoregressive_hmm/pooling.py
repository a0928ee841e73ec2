# SPDX-License-Identifier: BSD-3-Clause
"""Priors of states around the dynamics that all steps share."""

import math
from collections.abc import Sequence

from sksvae.autoregressive_hmm.model import Problem
from sksvae.expfam import MNIW, MNIWParams, natural_step
from sksvae.graphical import SwitchingPrior

_MNIW = MNIW()


def pooled_priors(problem: Problem, weights: Sequence[float]) -> list[SwitchingPrior]:
    """Expect of each state what a single one would learn, with some weight.

    If ``[A b]`` and ``Q`` are the linear dynamics of all n steps, and ``Y`` their regressors, then
    ``Q_k ~ IW(c Q, c + D + 1)``, whose mean is ``Q``, and ``[A_k b_k] | Q_k ~ MN([A b], Q_k, (c/n
    Y'Y)^-1)``, for ``c = 1`` the unit information prior [1]_. Unlike one around
    zero it asks for no units: latents that are turned or scaled have a prior that is, too.

    Parameters
    ----------
    problem : Problem
        Sequences, and a prior that says the rest, and what is shrunk to where steps are too few to
        tell.
    weights : sequence of float
        The weights, in steps. Those that would outweigh what the steps say are left out.

    Returns
    -------
    list of SwitchingPrior
        In double precision, in the order of their weights.

    References
    ----------
    .. [1] Kass and Wasserman, "A reference Bayesian test for nested hypotheses and its relationship
       to the Schwarz criterion", Journal of the American Statistical Association 90(431), 1995.
    """
    prior, n_states = problem.prior, problem.prior.n_states
    single = MNIWParams(*(field[:1] for field in prior.state_dynamics))
    stats = problem.moments.statistics(
        [part.mask[:, 1:, None].to(part.mean.dtype) for part in problem.parts]
    )
    n_steps = 2.0 * float(stats.log_det_precision)
    learned = MNIWParams(*(field[0] for field in natural_step(_MNIW, single, stats, 1.0)))
    noise = learned.scale / learned.dof
    return [
        prior.with_dynamics(
            MNIWParams(
                weight * noise,
                learned.mean,
                weight / n_steps * learned.mean_precision,
                learned.dof.new_tensor(weight + len(noise) + 1.0),
            )
        )
        for weight in weights
        if weight * n_states <= n_steps
    ]


def pooling_price(latent_dim: int, n_steps: int) -> float:
    """What a prior around the dynamics of all steps gains by chance, in nats.

    Parameters
    ----------
    latent_dim : int
        Dimension of the latents.
    n_steps : int
        Steps that the dynamics were fitted to.

    Returns
    -------
    float
        The Bayesian information criterion of ``[A b]`` and ``Q``, numbers that were fitted and are
        no random variables of the model.

    Examples
    --------
    >>> from sksvae.autoregressive_hmm.pooling import pooling_price
    >>> print(f"{pooling_price(latent_dim=2, n_steps=500):.1f}")
    28.0
    """
    n_numbers = latent_dim * (latent_dim + 1) + latent_dim * (latent_dim + 1) // 2
    return 0.5 * n_numbers * math.log(n_steps)
