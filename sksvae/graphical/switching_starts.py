# SPDX-License-Identifier: BSD-3-Clause
"""Where inference in switching dynamics starts, and which of several ends is kept.

The bound of ``q(z) q(k)`` has many local maxima: q(z) under averaged dynamics agrees with the
states that averaging favours. A filter that integrates the latents out for every state does not
commit itself that way, costs about one round of block updates, and its start ends near the best.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from sksvae.expfam.numerics import cholesky, log_det, symmetrize
from sksvae.graphical.point_switching import mixture_moments
from sksvae.graphical.switching_inference import SwitchingPosterior, SwitchingProblem

StartKind = Literal["filter", "local", "average"]
_WEAK = 0.01  # weight of the dynamics where evidence is to dominate
# Long sequences are filtered in stretches side by side, each with some steps on either side to
# forget where it was cut. Where that is does not depend on the length of the batch.
_STRETCH, _MARGIN = 1000, 50


@torch.no_grad()
def start_switching(problem: SwitchingProblem, kind: StartKind) -> Tensor:
    """First q(k), from evidence and expected parameters.

    Parameters
    ----------
    problem : SwitchingProblem
        Evidence and expected parameters.
    kind : {'filter', 'local', 'average'}
        ``'filter'``: see `filter_states`. ``'local'``: the dynamics of all states, averaged, weigh
        next to nothing, so that q(z) is where the evidence puts it, and transitions between its
        means, if observed, decide on q(k). ``'average'``: q(z) under the dynamics of all states,
        averaged, then q(k).

    Returns
    -------
    Tensor of shape (n_sequences, n_steps, n_states)
        Marginals, without a gradient.

    Raises
    ------
    ValueError
        If there is no such start.
    """
    problem = problem.fixed()
    if problem.n_states == 1:
        return problem.mask.to(problem.log_initial.dtype).unsqueeze(-1)
    if kind == "filter":
        states = filter_states(problem)
        finite = states.isfinite().all(-1).all(-1)
        if finite.all():
            return states
        # Unstable dynamics left the floating point range where nothing was observed.
        return torch.where(finite[:, None, None], states, start_switching(problem, "average"))
    usage = _stationary(problem.log_transition) * problem.mask.unsqueeze(-1)
    if kind == "average":
        energies = problem.energies(problem.gaussian(usage))
    elif kind == "local":
        posterior = problem.gaussian(_WEAK * usage)
        certain = dataclasses.replace(
            posterior,
            covariance=torch.zeros_like(posterior.covariance),
            lag_covariance=torch.zeros_like(posterior.lag_covariance),
        )
        seen = (problem.potentials.precision > 0).any(-1)
        known = pad(seen[:, 1:] & seen[:, :-1], (1, 0)).unsqueeze(-1)
        energies = torch.where(known, problem.energies(certain), 0.0)
    else:
        raise ValueError(f"kind must be 'filter', 'local' or 'average', got {kind!r}.")
    return problem.discrete(energies).marginals


def _stationary(log_transition: Tensor) -> Tensor:
    """Shares of the states in the long run, of shape (n_states,)."""
    shares = torch.linalg.matrix_power(log_transition.softmax(-1), 1024).mean(0)
    return shares / shares.sum()


@torch.no_grad()
def filter_states(problem: SwitchingProblem) -> Tensor:
    """Marginals of states with the latents integrated out, approximately.

    The interacting multiple models filter [1]_ keeps one Gaussian for each state. As states do not
    depend on latents, that of ``z_{t-1}`` given ``k_t`` is a mixture over ``k_{t-1}``, replaced by
    its moments; the dynamics of ``k_t`` move it, the potential of step t weighs it. A sweep
    backwards [2]_ adds what later states say about earlier ones. Expected log densities enter as
    Gaussians with the expected precision, less the doubt about the parameters.

    Parameters
    ----------
    problem : SwitchingProblem
        Evidence and expected parameters.

    Returns
    -------
    Tensor of shape (n_sequences, n_steps, n_states)
        Marginals, zero at steps that do not exist; not finite in sequences where unstable dynamics
        leave the floating point range.

    References
    ----------
    .. [1] Blom and Bar-Shalom, "The interacting multiple model algorithm for systems with
       Markovian switching coefficients", IEEE Transactions on Automatic Control 33(8), 1988.
    .. [2] Kim, "Dynamic linear models with Markov-switching", Journal of Econometrics 60, 1994,
       equation (2.20).

    Examples
    --------
    A walk that drifts up or down, and turns:

    >>> import torch
    >>> from sksvae.expfam import MNIWStats, NIWStats
    >>> from sksvae.graphical import Potentials
    >>> from sksvae.graphical.switching_inference import SwitchingProblem
    >>> from sksvae.graphical.switching_starts import filter_states
    >>> X = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])
    >>> dynamics = MNIWStats(torch.full((2, 1, 1), 4.0), 4 * X, 4 * X.mT @ X, torch.zeros(2))
    >>> one, none = torch.ones(1, 1), torch.zeros(1)
    >>> initial = NIWStats(one, none, none.sum(), none.sum())
    >>> log_pi = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    >>> x = torch.tensor([0.0, 1.0, 2.0, 1.0]).view(1, 4, 1)
    >>> problem = SwitchingProblem.build(
    ...     Potentials(9 * x, 9 + 0 * x), (*initial, *dynamics, log_pi[0], log_pi), x[..., 0] >= 0)
    >>> filter_states(problem).argmax(-1)
    tensor([[0, 0, 0, 1]])
    """
    n_sequences, n_steps = problem.mask.shape
    if n_steps <= _STRETCH:
        return _filter(problem)
    device = problem.mask.device
    cuts = torch.arange(0, n_steps, _STRETCH, device=device)
    first = (cuts - _MARGIN).clamp_min(0)
    steps = first.unsqueeze(-1) + torch.arange(_STRETCH + 2 * _MARGIN, device=device)
    inside = steps.clamp_max(n_steps - 1)

    def stretches(field: Tensor) -> Tensor:
        return field[:, inside].flatten(0, 1)

    mask = (problem.mask[:, inside] & (steps < n_steps)).flatten(0, 1)
    potentials = type(problem.potentials)(*(stretches(field) for field in problem.potentials))
    states = _filter(problem._replace(potentials=potentials, mask=mask))
    states = states.unflatten(0, (n_sequences, len(cuts)))
    step = torch.arange(n_steps, device=device)
    stretch = step // _STRETCH
    return states[:, stretch, step - first[stretch]]


def _filter(problem: SwitchingProblem) -> Tensor:
    filtered, exists = _Filter(problem).run(), problem.mask.unsqueeze(-1)
    table = problem.log_transition.exp()
    states = filtered[-1]
    smoothed = [states]
    for t in range(len(filtered) - 2, -1, -1):
        # p(k_t | k_{t+1}, evidence up to t)
        joint = filtered[t].unsqueeze(-1) * table
        total = joint.sum(-2, keepdim=True)
        before = torch.where(total > 0, joint / total, 0.0)
        states = torch.where(
            exists[:, t + 1], (before @ states.unsqueeze(-1)).squeeze(-1), filtered[t]
        )
        smoothed.append(states)
    return torch.where(exists, torch.stack(smoothed[::-1], 1), 0.0)


class _Filter:
    """The forward sweep of `filter_states`."""

    def __init__(self, problem: SwitchingProblem) -> None:
        (r, R), dynamics = problem.potentials, problem.dynamics
        self.mask, self.roots = problem.mask, R.sqrt()
        # A potential is an observation o = s z + noise, s^2 = R, with unit noise.
        self.observed = torch.where(R > 0, r / self.roots, 0.0)
        self.log_initial, self.table = problem.log_initial, problem.log_transition.exp()
        precision = symmetrize(dynamics.precision)
        factor = cholesky(precision, "expected precision")
        self.noise = torch.cholesky_inverse(factor)
        X = torch.cholesky_solve(dynamics.precision_mean, factor)
        self.A, self.b = X[..., :-1], X[..., -1]
        self.doubt = symmetrize(dynamics.quadratic - X.mT @ dynamics.precision_mean)
        # E log|Q^-1| / 2 in the place of log|E Q^-1| / 2
        self.offset = 0.5 * (dynamics.log_det_precision - log_det(factor))
        initial = cholesky(symmetrize(problem.initial.precision), "expected precision")
        self.covariance = torch.cholesky_inverse(initial)
        self.mean = self.covariance @ problem.initial.precision_mean

    def run(self) -> list[Tensor]:
        """Probabilities of the states of each step, given the evidence up to it."""
        log_p, m, P = self._first()
        filtered: list[Tensor] = []
        for t in range(self.mask.shape[1]):
            if t:
                log_p, m, P = self._predict(filtered[-1], m, P)
                exists = self.mask[:, t, None, None]
                # Nothing holds them at steps that do not exist.
                m = torch.where(exists, m, self.mean)
                P = torch.where(exists.unsqueeze(-1), P, self.covariance)
            log_l, m, P = _condition(m, P, self.observed[:, t], self.roots[:, t])
            filtered.append((log_p + log_l).softmax(-1))
        return filtered

    def _first(self) -> tuple[Tensor, Tensor, Tensor]:
        n_sequences, n_states = len(self.mask), len(self.table)
        return (
            self.log_initial.expand(n_sequences, -1),
            self.mean.expand(n_sequences, n_states, -1),
            self.covariance.expand(n_sequences, n_states, -1, -1),
        )

    def _predict(self, p: Tensor, m: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = p.unsqueeze(-2) * self.table.mT  # the later state comes first
        total = joint.sum(-1, keepdim=True)
        # What a state is that cannot be reached does not matter.
        m, P = mixture_moments(torch.where(total > 0, joint / total, p.unsqueeze(-2)), m, P)
        y = pad(m, (0, 1), value=1.0)
        doubt = ((self.doubt @ y.unsqueeze(-1)).squeeze(-1) * y).sum(-1)
        doubt = doubt + (self.doubt[:, :-1, :-1] * P).sum((-2, -1))
        m = (self.A @ m.unsqueeze(-1)).squeeze(-1) + self.b
        P = symmetrize(self.A @ P @ self.A.mT) + self.noise
        return total.squeeze(-1).log() + self.offset - 0.5 * doubt, m, P


def _condition(m: Tensor, P: Tensor, o: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log density of an observation, and moments given it; by Joseph's form, free of differences.

    ``m`` has shape (n_sequences, n_states, latent_dim), ``o`` and ``s`` have none for states.
    """
    o, s = o.unsqueeze(-2), s.unsqueeze(-2)
    cross = P * s.unsqueeze(-2)  # Cov(z, o)
    eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    factor, _ = torch.linalg.cholesky_ex(eye + s.unsqueeze(-1) * cross)
    surprise = (o - s * m).unsqueeze(-1)
    gain = torch.cholesky_solve(cross.mT, factor).mT
    white = torch.linalg.solve_triangular(factor, surprise, upper=False)
    log_density = -0.5 * (white.square().sum((-2, -1)) + log_det(factor))
    rest = eye - gain * s.unsqueeze(-2)
    return log_density, m + (gain @ surprise).squeeze(-1), rest @ P @ rest.mT + gain @ gain.mT


def keep_best(
    problem: SwitchingProblem, candidates: Iterable[SwitchingPosterior]
) -> SwitchingPosterior:
    """Posterior of each sequence with the largest bound ``E_q[log l(z)] - local_kl``.

    Parameters
    ----------
    problem : SwitchingProblem
        That they are posteriors of.
    candidates : iterable of SwitchingPosterior
        At least one; of equal bounds, the first is kept.

    Returns
    -------
    SwitchingPosterior
        Sequence by sequence one of the candidates.
    """
    remaining = iter(candidates)
    best = next(remaining)
    highest = _relative_bound(problem, best)
    for posterior in remaining:
        bound = _relative_bound(problem, posterior)
        best = _choose(bound > highest, posterior, best)
        highest = torch.maximum(bound, highest)
    return best


def _relative_bound(problem: SwitchingProblem, posterior: SwitchingPosterior) -> Tensor:
    """Bound of each sequence, less ``log l(r / R)``: large, and the same for all posteriors."""
    r, R = problem.potentials
    variance = posterior.covariance.diagonal(dim1=-2, dim2=-1)
    square = (r - R * posterior.mean).square() / R
    evidence = torch.where(R > 0, -0.5 * square, r * posterior.mean) - 0.5 * R * variance
    return evidence.sum((-2, -1)) - posterior.local_kl


def _choose(
    first: Tensor, one: SwitchingPosterior, other: SwitchingPosterior
) -> SwitchingPosterior:
    """Sequences of one posterior where ``first`` is true, else of the other."""
    fields = {}
    for field in dataclasses.fields(SwitchingPosterior):
        a, b = getattr(one, field.name), getattr(other, field.name)
        axis = 1 if field.name == "draws" else 0  # that of the sequences
        fields[field.name] = torch.where(first.view(-1, *(1,) * (a.ndim - axis - 1)), a, b)
    return SwitchingPosterior(**fields)
