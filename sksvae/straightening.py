# SPDX-License-Identifier: BSD-3-Clause
"""Coordinates of the latents in which sequences move evenly, along straight lines.

Networks that were trained on single steps put the data on some curved coordinates: nothing told
them where steps should be long or short. What rows look like does not depend on coordinates, but
linear dynamics do: what is one state in the right ones takes several in others. Joint training
hardly changes them, since encoder and decoder would have to move together, by more than the noise
allows one of them to move alone. So a map between networks and dynamics is fitted by itself.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sksvae.autoregressive_hmm import choose_prior, fit_autoregressive_hmm, point_sequences
from sksvae.coordinates import Coordinates
from sksvae.graphical import ChainPosterior, SwitchingPrior
from sksvae.optimizer import Optimizer
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.state_space.subspace import choose_windows
from sksvae.stored_rows import StoredSequenceRows

_N_BLOCKS, _WIDTH = 8, 8
_CONTRACTION = 0.9  # largest norm of what a block adds to the identity
_STEPS_PER_NUMBER = 10  # at least, of the numbers that make up a map
# After 1000, starts on the moving curves split a regime by place twice in five; after these, twice
# in fourteen.
_N_ITER = 3000
_STEPS_AT_ONCE, _STEPS_TO_COMPARE = 1000, 20_000
_RATE = 1e-2
_WINDOW, _TRIAL_STARTS = 250, 2


class _Steps(NamedTuple):
    """Latents before and after each step, and the covariance of the doubt about the step."""

    before: Tensor
    after: Tensor
    covariance: Tensor

    def standardized(self, center: Tensor, scale: Tensor) -> "_Steps":
        covariance = self.covariance / scale / scale.unsqueeze(-1)
        return _Steps((self.before - center) / scale, (self.after - center) / scale, covariance)

    def chosen(self, n_steps: int, generator: torch.Generator) -> "_Steps":
        """Some of the steps, or all if they are no more."""
        n_all, device = len(self.before), self.before.device
        if n_all <= n_steps:
            return self
        number = torch.randint(n_all, (n_steps,), generator=generator, device=device)
        return _Steps(*(part[number] for part in self))


class _Kinds(nn.Module):
    """Mixture of linear dynamics: at first up or down along one axis each, and all else.

    All numbers are in units of the ``spread`` of steps, so that one rate of learning suits them.
    """

    def __init__(self, spread: Tensor) -> None:
        super().__init__()
        self.spread, eye = spread, torch.diag(torch.ones_like(spread))
        self.drift = nn.Parameter(torch.cat([eye, -eye, torch.zeros_like(eye[:1])]))
        n_kinds, dim = self.drift.shape
        self.pull = nn.Parameter(spread.new_zeros(n_kinds, dim, dim))
        log_scale = spread.new_zeros(n_kinds, dim)
        log_scale[:-1] -= 1.0
        self.log_scale = nn.Parameter(log_scale)
        self.logits = nn.Parameter(spread.new_zeros(n_kinds))
        # What is doubted errs less: smoothed already, or by networks that do not fit yet.
        self.log_share = nn.Parameter(spread.new_zeros(()))

    def forward(self, before: Tensor, after: Tensor, doubt: Tensor) -> Tensor:
        """Log density of each step from ``before`` (n, D), up to a constant.

        To ``after``, with an error whose variances are in proportion to ``doubt``.
        """
        drift = self.drift + torch.einsum("kij,nj->nki", self.pull, before)
        deviation = ((after - before) / self.spread).unsqueeze(1) - drift
        # A difference of covariances: of precise steps it may be rounded to less than nothing.
        error = self.log_share.exp() * doubt.clamp_min(0.0) / self.spread.square()
        variance = error.unsqueeze(1) + torch.exp(2.0 * self.log_scale)
        each = -0.5 * (deviation.square() / variance + variance.log()).sum(-1)
        return torch.logsumexp(each + torch.log_softmax(self.logits, 0), -1)


class _Blocks(nn.Module):
    """What is learned of `Coordinates`: near the identity at first."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()

        def drawn(bound: float, *shape: int) -> nn.Parameter:
            values = torch.empty(_N_BLOCKS, *shape, device=generator.device)
            return nn.Parameter(values.uniform_(-bound, bound, generator=generator))

        self.inner = drawn(1.5, _WIDTH, dim)
        self.bias = drawn(2.0, _WIDTH)
        self.outer = drawn(1e-2, dim, _WIDTH)

    def coordinates(self) -> Coordinates:
        """The map, from standardised latents, invertible whatever the numbers are."""
        norms = torch.linalg.matrix_norm(self.inner, 2) * torch.linalg.matrix_norm(self.outer, 2)
        outer = self.outer * (_CONTRACTION / norms).clamp(max=1.0)[:, None, None]
        eye = torch.eye(outer.shape[1]).to(outer)
        ones, zeros = eye.sum(0), eye.new_zeros(len(eye))
        return Coordinates(zeros, ones, self.inner, self.bias, outer, eye, zeros)


def fit_straight_coordinates(
    before: Tensor, after: Tensor, covariance: Tensor, *, generator: torch.Generator
) -> Coordinates | None:
    """Coordinates in which steps are as probable as can be as a few kinds of linear dynamics.

    ``log p(g(z_t) | g(z_(t-1))) + log |det g'(z_t)|`` is maximised over the map ``g`` and a mixture
    ``p`` of ``2 D + 1`` linear dynamics with noise along the axes, to which the doubt about each
    step is added, times a number that is learned. Without it, what is hardly seen, and jitters,
    would have to be made narrow.

    Parameters
    ----------
    before, after : Tensor of shape (n_steps, latent_dim)
        Latents of successive steps.
    covariance : Tensor of shape (n_steps, latent_dim, latent_dim)
        Posterior covariance of ``after - before``.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    Coordinates or None
        Such that latents move little, by least squares. None if what a map gains is below the
        price of its numbers (half the logarithm of ``n_steps`` each, as in the Bayesian
        information criterion), where there are too few steps to tell, or some axis never moves.

    References
    ----------
    Behrmann et al., "Invertible residual networks", ICML 2019, section 2, for the map; what is
    maximised is our own, see "Straight coordinates" in the mathematics (``doc/mathematics.rst``).

    Examples
    --------
    >>> import torch
    >>> from sksvae.straightening import fit_straight_coordinates
    >>> generator = torch.Generator().manual_seed(0)
    >>> walk = 0.2 * torch.randn(4000, 1, generator=generator).sign().cumsum(0)
    >>> walk = torch.sinh(walk.sin())
    >>> known = torch.zeros(3999, 1, 1)
    >>> fit_straight_coordinates(walk[:-1], walk[1:], known, generator=generator) is None
    False
    """
    blocks = _Blocks(before.shape[1], generator).to(before)
    n_steps = len(before)
    if n_steps < _STEPS_PER_NUMBER * blocks.coordinates().n_numbers:
        return None
    center, scale = before.mean(0), before.std(0)
    steps = _Steps(before, after, covariance).standardized(center, scale)
    spread = (steps.after - steps.before).square().mean(0).sqrt()
    if not (torch.isfinite(spread).all() and spread.min() > 0):
        return None
    straight, bent = _Kinds(spread), _Kinds(spread)
    _learn(steps, straight, None, generator)
    _learn(steps, bent, blocks, generator)
    compared = steps.chosen(_STEPS_TO_COMPARE, generator)
    with torch.no_grad():
        gain = _log_density(compared, bent, blocks) - _log_density(compared, straight, None)
        bend = blocks.coordinates()
        if not gain * n_steps > _price(bend, n_steps):
            return None
        return _close_to(center, scale, compared.before, bend)


def _learn(
    steps: _Steps, kinds: _Kinds, blocks: _Blocks | None, generator: torch.Generator
) -> None:
    """Fit kinds of steps, and the coordinates in which they are such."""
    modules = [kinds] if blocks is None else [kinds, blocks]
    optimizer = Optimizer([(list(module.parameters()), _RATE, "adam") for module in modules])
    moved = [value for group in optimizer.param_groups for value in group["params"]]
    for i in range(_N_ITER):
        # From the first step on: kinds of steps that suit the old coordinates hold on to them.
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, 2.0 - 2.0 * i / _N_ITER)
        loss = -_log_density(steps.chosen(_STEPS_AT_ONCE, generator), kinds, blocks)
        for value, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
            value.grad = gradient
        optimizer.step()


def _log_density(steps: _Steps, kinds: _Kinds, blocks: _Blocks | None) -> Tensor:
    """Mean log density of steps, in the coordinates that they are given in."""
    before, after, covariance = steps
    if blocks is None:
        return kinds(before, after, covariance.diagonal(dim1=-2, dim2=-1)).mean()
    y, slope = blocks.coordinates()(torch.cat([before, after]))
    slope = slope[len(before) :]
    doubt = (slope @ covariance * slope).sum(-1)
    log_volume = torch.linalg.slogdet(slope)[1]
    return (kinds(*y.chunk(2), doubt) + log_volume).mean()


def _close_to(center: Tensor, scale: Tensor, x: Tensor, bend: Coordinates) -> Coordinates:
    """The same coordinates, of latents that are not standardised, turned and stretched.

    What is even and straight stays so under linear maps, and latents move little under this one.
    """
    y = bend(x)[0]
    regressors = torch.cat([y, torch.ones_like(y[:, :1])], 1)
    solution = torch.linalg.lstsq(regressors, x * scale + center).solution
    turn, shift = solution[:-1].mT, solution[-1]
    inner, bias, outer = (part.detach().clone() for part in (bend.inner, bend.bias, bend.outer))
    return Coordinates(center, scale, inner, bias, outer, turn, shift)


def _states_gain(
    found: Coordinates,
    latents: Tensor,
    lengths: Tensor,
    priors: Sequence[SwitchingPrior],
    seed: int,
) -> bool:
    """Whether states explain the same latents better in new coordinates, the price paid.

    Kinds of steps that follow at random, as in the fit of the map, are not all there is to tell:
    what lasts is cheap, and a track of four states can be bent to a single one, if an imprecise
    one.
    """
    numbers, n_steps = choose_windows(
        np.arange(len(latents)),
        lengths.cpu().numpy(),
        max_length=_WINDOW,
        max_rows=_STEPS_TO_COMPARE,
        random_state=np.random.RandomState(seed),
    )
    old = latents[torch.as_tensor(numbers, device=latents.device)]
    new, slope = found(old)

    def evidence(points: Tensor) -> float:
        generator = torch.Generator(device=points.device).manual_seed(seed)
        parts = point_sequences(points, n_steps).parts
        prior = choose_prior(parts, priors, generator=generator)
        fit = fit_autoregressive_hmm(parts, prior, n_starts=_TRIAL_STARTS, generator=generator)
        return fit.bound / len(points)

    log_volume = float(torch.linalg.slogdet(slope)[1].mean())
    gain = evidence(new) + log_volume - evidence(old)
    return gain * len(latents) > _price(found, len(latents))


def _price(coordinates: Coordinates, n_steps: int) -> float:
    """What the numbers of a map gain by chance, in nats: the Bayesian information criterion."""
    return 0.5 * math.log(n_steps) * coordinates.n_numbers


def straighten(
    model: SequenceVAE,
    rows: SequenceRows | StoredSequenceRows,
    priors: Sequence[SwitchingPrior],
    *,
    generator: torch.Generator,
    chunk: int,
) -> None:
    """Give a model coordinates in which its latents move evenly, if states gain by it.

    Parameters
    ----------
    model : SequenceVAE
        Over linear dynamics that were fitted to its latents. Changed in place.
    rows : SequenceRows or StoredSequenceRows
        Sequences. Steps without any observation say nothing.
    priors : sequence of SwitchingPrior
        Of the states by whose evidence coordinates are compared; the best of each.
    generator : torch.Generator
        Source of randomness.
    chunk : int
        Steps, with padding, that are in memory at a time.
    """
    latents, parts = [], []
    with torch.no_grad():
        for part in rows.parts(chunk):
            posterior = model.infer(part)
            latents.append(posterior.mean[posterior.mask])
            parts.append(_seen_steps(posterior, part))
    steps = _Steps(*(torch.cat(part) for part in zip(*parts, strict=True)))
    seed = generator.initial_seed() % 2**32
    found = fit_straight_coordinates(*steps, generator=generator)
    if found is not None and _states_gain(found, torch.cat(latents), rows.lengths, priors, seed):
        model.coordinates = found


def _seen_steps(posterior: ChainPosterior, rows: SequenceRows) -> _Steps:
    """Steps from one row with an observation to another."""
    mean, covariance = posterior.mean, posterior.covariance
    seen = torch.zeros_like(posterior.mask)
    seen[posterior.mask] = ~rows.observed.isnan().all(-1)
    both = seen[:, 1:] & seen[:, :-1]
    lag = posterior.lag_covariance[both]
    doubt = covariance[:, 1:][both] + covariance[:, :-1][both] - lag - lag.mT
    return _Steps(mean[:, :-1][both], mean[:, 1:][both], doubt)
