# SPDX-License-Identifier: BSD-3-Clause
"""Log evidence of transitions whose states are known, with separate or shared noise."""

from collections.abc import Callable

from torch import Tensor

from sksvae.autoregressive_hmm.segments import learn, log_evidence
from sksvae.expfam import MNIWNatural, MNIWParams, TiedMNIW, TiedMNIWParams, natural_step
from sksvae.expfam.numerics import cholesky, log_det

_TIED = TiedMNIW()


def dynamics_evidence(prior: MNIWParams | TiedMNIWParams, stats: MNIWNatural) -> Tensor:
    """``log Z(eta_0 + s) - log Z(eta_0)`` of the dynamics of all states.

    Parameters
    ----------
    prior : MNIWParams or TiedMNIWParams
        Of the dynamics, of K states that are all alike.
    stats : MNIWNatural
        Statistics, with leading axes n and K.

    Returns
    -------
    Tensor of shape (n,)
        The log evidence of transitions, up to their base measure.
    """
    if isinstance(prior, TiedMNIWParams):
        posterior = natural_step(_TIED, prior, stats, 1.0)
        return _TIED.standard_log_normalizer(posterior) - _TIED.standard_log_normalizer(prior)
    shape = stats.log_det_precision.shape
    flat = MNIWNatural(*(field.flatten(0, 1) for field in stats))
    return log_evidence(prior, flat).view(shape).sum(-1)


def merge_evidence(
    prior: MNIWParams | TiedMNIWParams, stats: MNIWNatural
) -> Callable[[Tensor, Tensor], Tensor]:
    """Prepare what merges of pairs of states add to `dynamics_evidence`.

    Parameters
    ----------
    prior : MNIWParams or TiedMNIWParams
        Of the dynamics, of K states that are all alike.
    stats : MNIWNatural
        Statistics, with leading axis K.

    Returns
    -------
    callable
        Of two tensors of int64 of shape (n_pairs,), the states of pairs; it returns a tensor of
        shape (n_pairs,).
    """
    if isinstance(prior, TiedMNIWParams):
        return _tied_merge_evidence(prior, stats)
    alone = log_evidence(prior, stats)

    def gain(i: Tensor, j: Tensor) -> Tensor:
        return log_evidence(prior, _pair_sums(stats, i, j)) - alone[i] - alone[j]

    return gain


def _tied_merge_evidence(
    prior: TiedMNIWParams, stats: MNIWNatural
) -> Callable[[Tensor, Tensor], Tensor]:
    """The scale of the noise is a sum over states, of which a merge changes three terms.

    Residuals around joint coefficients are no smaller than around separate ones, so that the
    change is positive semidefinite and nothing cancels. Degrees of freedom stay what they are.
    """
    each, n_rows = prior.per_state(), prior.scale.shape[-1]
    alone = learn(each, stats)
    scale = prior.scale + (alone.scale - prior.scale).sum(0)
    dof = prior.dof + 2.0 * stats.log_det_precision.sum()
    log_noise = log_det(cholesky(scale, "scale"))
    log_columns = log_det(cholesky(alone.mean_precision, "mean_precision"))
    log_emptied = log_det(cholesky(prior.mean_precision[0], "mean_precision"))

    def gain(i: Tensor, j: Tensor) -> Tensor:
        both = learn(each, _pair_sums(stats, i, j))
        added = both.scale - alone.scale[i] - alone.scale[j] + prior.scale
        noise = log_det(cholesky(scale + added, "scale")) - log_noise
        columns = log_det(cholesky(both.mean_precision, "mean_precision")) + log_emptied
        columns = columns - log_columns[i] - log_columns[j]
        return -0.5 * (dof * noise + n_rows * columns)

    return gain


def _pair_sums(stats: MNIWNatural, i: Tensor, j: Tensor) -> MNIWNatural:
    return MNIWNatural(*(field[i] + field[j] for field in stats))
