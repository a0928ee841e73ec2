# SPDX-License-Identifier: BSD-3-Clause
"""Matrix normal inverse Wishart of several regressions that share one noise covariance."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sksvae.expfam.mniw import (
    MNIW,
    MNIWFactors,
    MNIWNatural,
    MNIWParams,
    MNIWStats,
    factorize,
    normal_kl,
    normal_log_normalizer,
    wishart_kl,
    wishart_log_normalizer,
)

_MNIW = MNIW()


class TiedMNIWParams(NamedTuple):
    """Standard parameters ``(S, M_k, V_k, nu)`` of regressions that share their noise.

    Parameters
    ----------
    scale : Tensor of shape (..., n, n)
        ``S``, symmetric positive definite.
    mean : Tensor of shape (..., n_states, n, m)
        ``M_k``, the mean of ``X_k``.
    mean_precision : Tensor of shape (..., n_states, m, m)
        ``V_k``, the precision between the columns of ``X_k``, symmetric positive definite.
    dof : Tensor of shape (...)
        ``nu > n - 1``, the degrees of freedom.
    """

    scale: Tensor
    mean: Tensor
    mean_precision: Tensor
    dof: Tensor

    def per_state(self) -> MNIWParams:
        """Marginal distribution of ``(X_k, Sigma)`` for each state.

        Returns
        -------
        MNIWParams
            With last batch axis n_states. Scale and degrees of freedom repeat without a copy.

        Examples
        --------
        >>> import torch
        >>> from sksvae.expfam import TiedMNIWParams
        >>> eye, four = torch.eye(2), torch.tensor(4.0)
        >>> tied = TiedMNIWParams(eye, torch.zeros(3, 2, 2), eye.repeat(3, 1, 1), four)
        >>> [tuple(field.shape) for field in tied.per_state()]
        [(3, 2, 2), (3, 2, 2), (3, 2, 2), (3,)]
        """
        scale, mean, mean_precision, dof = _with_state_axis(self)
        batch = mean.shape[:-2]
        return MNIWParams(
            scale.expand(*batch, *scale.shape[-2:]), mean, mean_precision, dof.expand(batch)
        )


@dataclass(frozen=True)
class TiedMNIW:
    """Matrices ``X_k`` (n, m) with one ``Sigma`` (n, n): ``covariance_type='tied'``.

    ``Sigma ~ IW(S, nu)`` and ``X_k | Sigma ~ MN(M_k, Sigma, V_k^-1)`` for each of K states,
    independent given ``Sigma``. That is the `MNIW` of ``[X_1 ... X_K]`` with a block-diagonal
    precision between the columns, and so conjugate to ``x ~ N(X_k y, Sigma)``.

    Natural parameters, statistics and tangents have the layout of K separate `MNIW`, all four
    fields with an axis for states, so that nothing that adds up statistics or takes gradients needs
    to know that ``Sigma`` is shared. Expected statistics repeat ``E Sigma^-1`` and
    ``E log|Sigma^-1|`` for each state. In natural parameters each state holds a share of
    ``precision`` and ``log_det_precision``, and what matters is the sum over states: the natural
    parameter of the one ``Sigma``. ``<eta, mu>`` is then a plain sum over all entries, and
    gradients with respect to the copies add up by themselves. In these two fields the
    representation is overcomplete: shares that have the same sum are the same distribution.

    Examples
    --------
    Two regressions without input, on 4 and 6 observations: both tell of the noise.

    >>> import torch
    >>> from sksvae.expfam import MNIWNatural, TiedMNIW, TiedMNIWParams, natural_step
    >>> one = torch.ones(2, 1, 1)
    >>> prior = TiedMNIWParams(torch.eye(1), 0.0 * one, one, torch.tensor(3.0))
    >>> count = torch.tensor([4.0, 6.0])
    >>> column = count.view(2, 1, 1)
    >>> stats = MNIWNatural(-0.5 * column, 0.0 * one, -0.5 * column, 0.5 * count)
    >>> posterior = natural_step(TiedMNIW(), prior, stats, 1.0)
    >>> posterior.scale, posterior.dof
    (tensor([[11.]]), tensor(13.))
    """

    standard_type = TiedMNIWParams
    natural_type = MNIWNatural
    stats_type = MNIWStats

    def to_natural(self, standard: TiedMNIWParams) -> MNIWNatural:
        """Convert standard to natural parameters.

        Parameters
        ----------
        standard : TiedMNIWParams
            Textbook parameters.

        Returns
        -------
        MNIWNatural
            ``(-(S/K + M_k V_k M_k')/2, M_k V_k, -V_k/2, ((nu + n + 1)/K + m)/2)`` for each state:
            equal shares of what is shared.
        """
        n_states, n_rows = standard.mean.shape[-3:-1]
        share = standard._replace(
            scale=standard.scale / n_states,
            dof=(standard.dof + (n_rows + 1)) / n_states - (n_rows + 1),
        )
        return _MNIW.to_natural(share.per_state())

    def standard_expected_stats(self, standard: TiedMNIWParams) -> MNIWStats:
        """Compute the expected statistics of each state's marginal distribution.

        Parameters
        ----------
        standard : TiedMNIWParams
            Textbook parameters.

        Returns
        -------
        MNIWStats
            With last batch axis n_states; those of ``Sigma`` are the same for all.
        """
        return _MNIW.standard_expected_stats(standard.per_state())

    def standard_log_normalizer(self, standard: TiedMNIWParams) -> Tensor:
        """Log normaliser with all constants, of all states together.

        Parameters
        ----------
        standard : TiedMNIWParams
            Textbook parameters.

        Returns
        -------
        Tensor of shape (...)
            ``nu/2 (n log 2 - log|S|) + log Gamma_n(nu/2) + sum_k (nm/2 log(2 pi) - n/2 log|V_k|)``.
        """
        factors = _factors(standard)
        normal = normal_log_normalizer(factors).sum(-1)
        return wishart_log_normalizer(factors).squeeze(-1) + normal

    def standard_kl(self, standard_q: TiedMNIWParams, standard_p: TiedMNIWParams) -> Tensor:
        """Divergence ``KL(q || p)`` of all states together.

        Parameters
        ----------
        standard_q, standard_p : TiedMNIWParams
            Textbook parameters, batch shapes broadcasting.

        Returns
        -------
        Tensor of shape (...)
            In nats: that of the inverse Wisharts, once, plus the mean one of the matrix normals of
            each state.
        """
        q, p = _factors(standard_q), _factors(standard_p)
        return wishart_kl(q, p).squeeze(-1) + normal_kl(q, p).sum(-1)


def _with_state_axis(standard: TiedMNIWParams) -> MNIWParams:
    """Shared fields get an axis of length one in the place of that for states."""
    scale, mean, mean_precision, dof = standard
    return MNIWParams(scale.unsqueeze(-3), mean, mean_precision, dof.unsqueeze(-1))


def _factors(standard: TiedMNIWParams) -> MNIWFactors:
    return factorize(_with_state_axis(standard))
