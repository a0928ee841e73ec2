# SPDX-License-Identifier: BSD-3-Clause
"""Minibatch training: Adam or Muon for the networks, natural gradients for the graphical model."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sksvae.distributed import current_process
from sksvae.divergence import (
    KL_ADVICE,
    check_faults,
    check_networks,
    count_faults,
    diverged,
    inference_may_fail,
)
from sksvae.objective import ELBOTerms, Rows, StructuredVAE
from sksvae.optimizer import Optimizer


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
        Step size of the networks.
    solver : {"adam", "muon"}
        What moves weight matrices of perceptrons; all other parameters follow Adam.
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
    solver: str = "adam"
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

    def values(self) -> tuple[float, ...]:
        """All fields, as `dataclasses.astuple` has them, which takes ten times as long."""
        return tuple(vars(self).values())

    def shifted(self, log_jacobian: float) -> "EpochRecord":
        """Express it in other units of the rows."""
        return replace(
            self,
            lower_bound=self.lower_bound + log_jacobian,
            reconstruction=self.reconstruction + log_jacobian,
            validation_bound=self.validation_bound + log_jacobian,
        )


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
        self.process = current_process()
        self.networks = list(model.parameters())
        # Like an optimiser of torch for those who keep its state, but not derived from one.
        self.optimizer: Any = Optimizer(_groups(model, settings))

    def copied_networks(self) -> dict[str, Tensor]:
        """State of the networks that further steps do not change."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def set_progress(self, fraction: float) -> None:
        """Set the learning rate for a point of training between 0 and 1."""
        if self.settings.anneal:
            factor = 0.5 * (1.0 + math.cos(math.pi * min(fraction, 1.0)))
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def noise(self, rows: Rows) -> Tensor:
        """Standard normal numbers for the draws of a batch."""
        like = self.model.link_location
        shape = (self.settings.n_draws, *rows.latent_shape, self.model.graphical.latent_dim)
        return torch.randn(shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def step(self, rows: Rows, step_size: float) -> ELBOTerms | None:
        """Take one step on a minibatch.

        Parameters
        ----------
        rows : Rows
            The minibatch.
        step_size : float
            Of the natural gradient step.

        Returns
        -------
        ELBOTerms or None
            The terms before the step, of the share of this process; None if it has none.

        Raises
        ------
        ValueError
            If a term of the objective is not finite, or inference or the step fails.
        """
        graphical = self.model.graphical
        params = graphical.expected_params()
        share, noise = self.process.share(rows, self.noise(rows))
        terms = failure = None
        if share is not None:
            inputs = params if self._unbiased else tuple(p.detach() for p in params)
            try:
                terms = self.model.elbo(share, inputs, noise)
            except torch.linalg.LinAlgError as error:
                failure = error
        faults = count_faults(terms, failure, self.model.link_location)
        gradients = self._gradients(None if faults[:3].any() else terms, params, len(rows))
        faults, *sums = self.process.sum([faults, *gradients, *rows.remembered(share)])
        check_faults(faults, failure)
        for parameter in self.networks:
            parameter.grad = sums.pop(0)
        gradient = [sums.pop(0) for _ in params]
        rows.remind(sums)
        self.optimizer.step()
        try:
            graphical.natural_step(gradient, step_size)
        except ValueError as error:
            raise diverged(f"q(theta) cannot move, since {error}", KL_ADVICE) from error
        return terms

    @property
    def _unbiased(self) -> bool:
        settings = self.settings
        return settings.unbiased and settings.beta == 1.0 and settings.capacity == 0.0

    def _gradients(
        self, terms: ELBOTerms | None, params: tuple[Tensor, ...], n_rows: int
    ) -> list[Tensor]:
        """What these terms add to the gradients: of the loss in the networks, then of q(theta).

        The loss is a mean over ``n_rows`` rows; for q(theta) it is scaled to the whole data set.
        Without terms there is nothing to add, but other processes may have some.
        """
        settings, weight = self.settings, 1.0
        leaves = [*self.networks, *params]
        local_kl = leaves[0].new_zeros(()) if terms is None else terms.posterior.local_kl.sum()
        if settings.beta != 1.0 or settings.capacity != 0.0:
            (total,) = self.process.sum([local_kl.detach()])
            # The slope of beta |KL - capacity|.
            weight = settings.beta * torch.sign(total / n_rows - settings.capacity)
        if terms is None:
            return [torch.zeros_like(leaf) for leaf in leaves]
        loss = (weight * local_kl - terms.reconstruction.sum()) / n_rows
        # Zero where nothing depends on a leaf.
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        of_networks, of_params = gradients[: len(self.networks)], gradients[len(self.networks) :]
        if self._unbiased:
            return [*of_networks, *(-self.n_rows * g for g in of_params)]
        scale, stats = self.n_rows / n_rows, self.model.graphical.total_stats(terms.posterior)
        return [*of_networks, *(scale * s for s in stats)]

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
            if terms is not None:
                reconstruction += float(terms.reconstruction.detach().sum())
                local_kl += float(terms.posterior.local_kl.detach().sum())
        check_networks(self.model)
        mine = torch.tensor([reconstruction, local_kl], dtype=torch.float64, device=device)
        reconstruction, local_kl = (self.process.sum([mine])[0] / len(rows)).tolist()
        global_kl = float(self.model.graphical.prior_kl()) / self.n_rows
        return EpochRecord(
            reconstruction - local_kl - global_kl, reconstruction, local_kl, global_kl
        )


def _groups(
    model: StructuredVAE, settings: TrainingSettings
) -> list[tuple[list[Tensor], float, str]]:
    """Tensors that move by one rule, at one rate."""
    networks, rate = (model.encoder, model.decoder), settings.learning_rate
    weights: list[Tensor] = [
        p for network in networks for p in network.mlp.parameters() if p.ndim == 2
    ]
    rest: list[Tensor] = [p for network in networks for p in network.parameters()]
    noise: list[Tensor] = list(model.likelihood_params.parameters())
    groups = [(rest, rate, "adam"), (noise, settings.noise_rate * rate, "adam")]
    if settings.solver == "adam" or not weights:
        return groups
    taken = {id(p) for p in weights}
    groups[0] = [p for p in rest if id(p) not in taken], rate, "adam"
    return [(weights, rate, settings.solver), *groups]


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


@dataclass
class Progress:
    """Where the loop over epochs stands.

    Parameters
    ----------
    plateau : Plateau
        Has seen the bounds of the epochs.
    validation_noise : Tensor or None
        Standard normal numbers, the same for the validation rows of every epoch.
    history : list of EpochRecord, optional
        One record per epoch that is over.
    best : float, optional
        Highest bound of an epoch whose model may be kept.
    best_model : pair of dict of str to Tensor or None, default=None
        State of networks and graphical model in that epoch, if there are validation rows.
    converged : bool, default=False
        Whether the plateau is reached.
    """

    plateau: Plateau
    validation_noise: Tensor | None
    history: list[EpochRecord] = field(default_factory=list)
    best: float = -math.inf
    best_model: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
    converged: bool = False

    @classmethod
    def begin(cls, trainer: Trainer, validation: Rows | None) -> "Progress":
        """Before the first epoch."""
        settings = trainer.settings
        plateau = Plateau(settings.tol, settings.n_iter_no_change)
        return cls(plateau, None if validation is None else trainer.noise(validation))

    def state(self) -> dict[str, Any]:
        """What `restore` needs, in tensors, numbers, records and lists that change no more."""
        return {
            "recent": list(self.plateau.recent),
            "plateau": [self.plateau.best, self.plateau.without_change],
            "validation_noise": self.validation_noise,
            "history": list(self.history),
            "best": self.best,
            "best_model": self.best_model,
            "converged": self.converged,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state`."""
        self.plateau.recent = deque(state["recent"], self.plateau.n_iter_no_change)
        self.plateau.best, self.plateau.without_change = state["plateau"]
        self.validation_noise = state["validation_noise"]
        self.history[:] = state["history"]
        self.best, self.best_model = state["best"], state["best_model"]
        self.converged = state["converged"]

    def end(self, trainer: Trainer) -> None:
        """Leave the best model on the validation rows, if there are any."""
        if self.best_model is not None:
            networks, graphical = self.best_model
            trainer.model.load_state_dict(networks)
            trainer.model.graphical = type(trainer.model.graphical).from_state(graphical)


def run_training(
    trainer: Trainer,
    rows: Rows,
    validation: Rows | None,
    on_epoch_end: Callable[[int, EpochRecord], bool],
    on_epoch_begin: Callable[[int], bool] = lambda epoch: False,
    progress: Progress | None = None,
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
    progress : Progress or None, default=None
        Where to go on, and to keep where training stands; ``None``: from the beginning.

    Returns
    -------
    history : list of EpochRecord
        One record per epoch.
    converged : bool
        Whether training stopped because the bound no longer improved, or had been asked to.
    """
    settings = trainer.settings
    if progress is None:
        progress = Progress.begin(trainer, validation)
    stop = False
    while not (stop or progress.converged) and len(progress.history) < settings.max_iter:
        epoch = len(progress.history)
        changing = on_epoch_begin(epoch)
        if changing:
            progress.plateau = Plateau(settings.tol, settings.n_iter_no_change)
        record = trainer.pass_over(rows, epoch / settings.max_iter, 1 / settings.max_iter)
        judged = record.lower_bound
        if validation is not None and progress.validation_noise is not None:
            bound = _mean_bound(trainer.model, validation, progress.validation_noise)
            judged = bound - record.global_kl
            record = replace(record, validation_bound=judged)
        progress.history.append(record)
        progress.converged = progress.plateau.reached(judged)
        if judged > progress.best and not changing:
            progress.best = judged
            if validation is not None:
                progress.best_model = trainer.copied_networks(), trainer.model.graphical.state()
        stop = on_epoch_end(epoch, record)
    progress.end(trainer)
    return progress.history, bool(stop) or progress.converged


def _mean_bound(model: StructuredVAE, rows: Rows, noise: Tensor) -> float:
    with torch.no_grad(), inference_may_fail():
        terms = model.elbo(rows, model.graphical.expected_params(), noise)
        return float(terms.total) / len(rows)
