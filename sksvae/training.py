# SPDX-License-Identifier: BSD-3-Clause
"""Minibatch training: Adam for the networks, natural gradients for the graphical model."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sksvae.objective import ELBOTerms, Rows, StructuredVAE


@dataclass(frozen=True)
class TrainingSettings:
    """What a user chooses about training; see the estimators for the meaning of each.

    Parameters
    ----------
    max_iter : int
        Most epochs.
    batch_size : int
        Rows of a minibatch.
    learning_rate : float
        Step size of Adam.
    anneal : bool
        Whether the learning rate falls to zero along a half cosine over ``max_iter`` epochs.
    n_draws : int
        Monte Carlo draws per row for the reconstruction.
    beta, capacity : float
        The networks see ``beta |KL - capacity|`` in place of the local KL of a batch.
    unbiased : bool
        Whether q(theta) follows the unbiased natural gradient of [P] or the biased one of [J].
    natural_rate : float
        Natural gradient steps of a whole epoch add up to this; 1 replaces q(theta) once an epoch.
        A full step is exact for the conjugate part of the bound only. The remaining part, which
        the unbiased gradient adds, has curvature of its own: at a rate of 1 it was seen to empty
        components within an epoch, at 0.1 to raise the bound steadily.
    noise_rate : float
        Learning rate of the likelihood's own parameters, relative to the networks. Noise that
        shrinks slowly keeps the posteriors wide for long, in which time the networks can still
        bend the latent space; once it is small, bending costs too much likelihood on the way.
    tol : float
        Least improvement of the bound, in nats per row, that counts as one. It is the mean over
        the last ``n_iter_no_change`` epochs that has to improve, since single epochs are noisy.
    n_iter_no_change : int
        Epochs without such an improvement before training stops.
    """

    max_iter: int
    batch_size: int
    learning_rate: float
    anneal: bool = True
    n_draws: int = 1
    beta: float = 1.0
    capacity: float = 0.0
    unbiased: bool = True
    natural_rate: float = 0.1
    noise_rate: float = 0.5
    tol: float = 1e-3
    n_iter_no_change: int = 10


@dataclass(frozen=True)
class EpochRecord:
    """Averages over one epoch, in nats per row.

    Parameters
    ----------
    lower_bound : float
        ``reconstruction - local_kl - global_kl``.
    reconstruction : float
        Expected log-likelihood.
    local_kl : float
        Divergence of the local posteriors.
    global_kl : float
        Divergence of q(theta) from its prior, divided by the number of rows.
    validation_bound : float
        Bound on the validation rows; NaN without any.
    """

    lower_bound: float
    reconstruction: float
    local_kl: float
    global_kl: float
    validation_bound: float = math.nan


class Trainer:
    """Takes training steps on a model and keeps what must survive between them.

    Parameters
    ----------
    model : StructuredVAE
        Changed in place.
    n_rows : int
        Size of the data set that the bound is about; minibatches are scaled up to it.
    settings : TrainingSettings
        How to train.
    generator : torch.Generator
        Source of all randomness, on the device of the model.
    """

    def __init__(
        self,
        model: StructuredVAE,
        n_rows: int,
        settings: TrainingSettings,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.n_rows = n_rows
        self.settings = settings
        self.generator = generator
        groups = [
            {"params": list(parameters), "lr": rate, "initial_lr": rate}
            for parameters, rate in (
                (
                    (*model.encoder.parameters(), *model.decoder.parameters()),
                    settings.learning_rate,
                ),
                (
                    model.likelihood_params.parameters(),
                    settings.noise_rate * settings.learning_rate,
                ),
            )
        ]
        self.adam = torch.optim.Adam(groups, fused=True)

    def set_progress(self, fraction: float) -> None:
        """Set the learning rate for a point of training between 0 and 1."""
        if self.settings.anneal:
            factor = 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
            for group in self.adam.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def noise(self, rows: Rows) -> Tensor:
        """Standard normal numbers for the draws of a batch."""
        like = self.model.link_location
        shape = (self.settings.n_draws, *rows.latent_shape, self.model.graphical.latent_dim)
        return torch.randn(shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def step(self, rows: Rows, step_size: float) -> ELBOTerms:
        """Take one step on a minibatch.

        Parameters
        ----------
        rows : Rows
            The minibatch.
        step_size : float
            Of the natural gradient step.

        Returns
        -------
        ELBOTerms
            The terms before the step.

        Raises
        ------
        ValueError
            If a term of the objective is not finite, or inference or the step fails.
        """
        settings, graphical = self.settings, self.model.graphical
        params = graphical.expected_params()
        unbiased = settings.unbiased and settings.beta == 1.0 and settings.capacity == 0.0
        inputs = params if unbiased else tuple(p.detach() for p in params)
        with _inference_may_fail():
            terms = self.model.elbo(rows, inputs, self.noise(rows))
        _check_finite(terms)
        local_kl = terms.posterior.local_kl.sum() / len(rows)
        penalty = local_kl
        if settings.beta != 1.0 or settings.capacity != 0.0:
            penalty = settings.beta * (local_kl - settings.capacity).abs()
        loss = penalty - terms.reconstruction.sum() / len(rows)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        if unbiased:
            gradient = [-self.n_rows * p.grad for p in params]
        else:
            scale = self.n_rows / len(rows)
            gradient = [scale * s for s in graphical.total_stats(terms.posterior)]
        try:
            graphical.natural_step(gradient, step_size)
        except ValueError as error:
            raise _diverged(f"q(theta) cannot move, since {error}", _KL_ADVICE) from error
        return terms

    def pass_over(self, rows: Rows, fraction: float = 0.0, length: float = 0.0) -> EpochRecord:
        """Visit every row once, in random order.

        Parameters
        ----------
        rows : Rows
            Training rows.
        fraction, length : float, default=0
            Where the pass starts in training, and its share of it, for the annealing.

        Returns
        -------
        EpochRecord
            Averages of the terms as they were met.
        """
        device = rows.observed.device
        n_items = rows.latent_shape[0]
        order = torch.randperm(n_items, generator=self.generator, device=device)
        # As equal as possible, and none of them empty.
        n_batches = min(math.ceil(len(rows) / self.settings.batch_size), n_items)
        batches = order.tensor_split(n_batches)
        reconstruction = local_kl = 0.0
        for i, chosen in enumerate(batches):
            self.set_progress(fraction + length * i / n_batches)
            batch = rows.take(chosen)
            share = len(batch) / self.n_rows
            terms = self.step(batch, min(1.0, self.settings.natural_rate * share))
            reconstruction += float(terms.reconstruction.detach().sum())
            local_kl += float(terms.posterior.local_kl.detach().sum())
        _check_networks(self.model)
        reconstruction, local_kl = reconstruction / len(rows), local_kl / len(rows)
        global_kl = float(self.model.graphical.prior_kl()) / self.n_rows
        return EpochRecord(
            reconstruction - local_kl - global_kl, reconstruction, local_kl, global_kl
        )


class Plateau:
    """Tells when a noisy sequence of bounds has stopped rising.

    Parameters
    ----------
    tol : float
        Least improvement of the running mean that counts as one.
    n_iter_no_change : int
        Length of the running mean, and the number of values without an improvement that make a
        plateau.

    Examples
    --------
    >>> from sksvae.training import Plateau
    >>> plateau = Plateau(tol=0.1, n_iter_no_change=2)
    >>> [plateau.reached(bound) for bound in [1.0, 2.0, 2.0, 2.0, 2.0]]
    [False, False, False, False, True]
    """

    def __init__(self, tol: float, n_iter_no_change: int) -> None:
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.recent: deque[float] = deque(maxlen=n_iter_no_change)
        self.best = -math.inf
        self.without_change = 0

    def reached(self, bound: float) -> bool:
        """Take the next value and say whether the plateau is reached."""
        self.recent.append(bound)
        if len(self.recent) < self.n_iter_no_change:
            return False
        mean = sum(self.recent) / len(self.recent)
        if mean > self.best + self.tol:
            self.best, self.without_change = mean, 0
        else:
            self.without_change += 1
        return self.without_change >= self.n_iter_no_change


def run_training(
    trainer: Trainer,
    rows: Rows,
    validation: Rows | None,
    on_epoch_end: Callable[[int, EpochRecord], bool],
    on_epoch_begin: Callable[[int], bool] = lambda epoch: False,
) -> tuple[list[EpochRecord], bool]:
    """Train until the bound stops improving, the epochs run out or a callback says stop.

    Parameters
    ----------
    trainer : Trainer
        Holds the model, which is changed in place. With validation rows it ends as the best
        model seen on them.
    rows : Rows
        Training rows.
    validation : Rows or None
        Rows on which improvement is judged; ``None``: the training bound.
    on_epoch_end : callable
        Called with the number of the epoch and its record; a true answer stops training.
    on_epoch_begin : callable, optional
        Called with the number of the epoch; may change the graphical model. After a true answer,
        that more changes must come, the wait for convergence begins anew and the model of that
        epoch is not one to end with.

    Returns
    -------
    history : list of EpochRecord
        One record per epoch.
    converged : bool
        Whether training stopped because the bound no longer improved, or had been asked to.
    """
    settings = trainer.settings
    history: list[EpochRecord] = []
    plateau = Plateau(settings.tol, settings.n_iter_no_change)
    best, best_model = -math.inf, None
    validation_noise = None if validation is None else trainer.noise(validation)
    for epoch in range(settings.max_iter):
        changing = on_epoch_begin(epoch)
        if changing:
            plateau = Plateau(settings.tol, settings.n_iter_no_change)
        record = trainer.pass_over(rows, epoch / settings.max_iter, 1 / settings.max_iter)
        judged = record.lower_bound
        if validation is not None and validation_noise is not None:
            judged = _mean_bound(trainer.model, validation, validation_noise) - record.global_kl
            record = EpochRecord(**{**asdict(record), "validation_bound": judged})
        history.append(record)
        converged = plateau.reached(judged)
        if judged > best and not changing:
            best = judged
            if validation is not None:
                best_model = (
                    copy.deepcopy(trainer.model.state_dict()),
                    trainer.model.graphical.state(),
                )
        stop = on_epoch_end(epoch, record)
        if stop or converged:
            break
    if best_model is not None:
        trainer.model.load_state_dict(best_model[0])
        trainer.model.graphical = type(trainer.model.graphical).from_state(best_model[1])
    return history, bool(stop) or converged


def _mean_bound(model: StructuredVAE, rows: Rows, noise: Tensor) -> float:
    with torch.no_grad(), _inference_may_fail():
        terms = model.elbo(rows, model.graphical.expected_params(), noise)
        return float(terms.total) / len(rows)


_RECONSTRUCTION_ADVICE = (
    "lower learning_rate_init, or check X for extreme values that the likelihood cannot explain "
    "(likelihood='student_t' tolerates them)"
)
_KL_ADVICE = (
    "lower learning_rate_init, or raise degrees_of_freedom_prior or the prior covariance "
    "(covariance_prior of components, noise_covariance_prior of dynamics) so that no covariance "
    "can shrink to nothing"
)


def _diverged(what: str, advice: str) -> ValueError:
    """Say which term failed and what to change."""
    return ValueError(f"Training diverged: {what.rstrip('.')}. What may help: {advice}.")


@contextmanager
def _inference_may_fail() -> Iterator[None]:
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise _diverged(f"local inference failed, since {error}", _KL_ADVICE) from error


def _check_finite(terms: ELBOTerms) -> None:
    for name, value, advice in (
        ("reconstruction term E[log p(x|z)]", terms.reconstruction, _RECONSTRUCTION_ADVICE),
        ("local KL term", terms.posterior.local_kl, _KL_ADVICE),
    ):
        bad = ~torch.isfinite(value)
        if bad.any():
            raise _diverged(
                f"the {name} of the objective is not finite for {int(bad.sum())} of "
                f"{value.numel()} rows of a minibatch",
                advice,
            )


def _check_networks(model: StructuredVAE) -> None:
    """The objective is that before a step; the last step of all may still spoil the weights."""
    norms = torch._foreach_norm([value.detach() for value in model.parameters()])
    if torch.isfinite(torch.stack(norms)).all():
        return
    for (name, value), norm in zip(model.named_parameters(), norms, strict=True):
        if not torch.isfinite(norm):
            largest = float(value.detach().abs().max())
            raise _diverged(f"{name} grew to {largest:.3g}", _RECONSTRUCTION_ADVICE)
