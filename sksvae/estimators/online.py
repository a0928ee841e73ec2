# SPDX-License-Identifier: BSD-3-Clause
"""Stochastic variational inference over calls of ``partial_fit``.

References
----------
Hoffman, Blei, Wang and Paisley, "Stochastic variational inference", JMLR 14, 2013.
"""

from dataclasses import replace

import numpy as np
import torch

from sksvae.estimators.fitted import CHUNK, SEED_BOUND, FitResult
from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows, StructuredVAE
from sksvae.persistence import load_optimizer
from sksvae.training import EpochRecord, Trainer, TrainingSettings

# After this many passes over all rows, steps have half their size.
_DELAY = 10.0
_FORGETTING = 1.0


class OnlineMixin:
    """Calls of ``partial_fit``, for `BaseSVAE`."""

    def _cut(self, rows: Rows) -> Rows:
        """Rows in the pieces that minibatches are made of."""
        return rows

    def _partial_fit(self, data, likelihood: Likelihood) -> None:
        """One pass over a batch, from where the last call ended."""
        first = not hasattr(self, "model_state_")
        seen = 0 if first else self.n_samples_seen_
        seed = (self._seeds(data, 1)[0] + seen) % SEED_BOUND
        generator = torch.Generator(device=self.device).manual_seed(seed)
        scaling, rows, model = self._begin(data, likelihood, generator, fitted=not first)
        n_rows = seen + len(rows)
        if self.total_samples is not None:
            # Rows that come again are not more rows.
            n_rows = max(self.total_samples, len(rows))
        if first:
            random_state = np.random.RandomState(seed)
            self._initialize(model, rows, generator, random_state, lambda *_: False)
            # Once only: later calls must not exchange labels.
            self._finish(model, rows)
            if n_rows > len(rows):
                weigh(model, rows, n_rows)
        settings = slowed(self._training_settings(len(rows), anneal=False), seen / n_rows)
        trainer = Trainer(model, n_rows, settings, generator)
        history: list[EpochRecord] = []
        if not first:
            load_optimizer(trainer.optimizer, self.optimizer_state_)
            history = [EpochRecord(*values) for values in zip(*self.history_.values(), strict=True)]
        log_jacobian = scaling.mean_log_jacobian(self._values(data), likelihood)
        record = trainer.pass_over(self._cut(rows)).shifted(log_jacobian)
        result = FitResult(model, trainer, [*history, record], True, record.lower_bound)
        attributes = self._fitted_attributes(scaling, result, seen + len(rows))
        for name, value in attributes.items():
            setattr(self, name, value)


def slowed(settings: TrainingSettings, passes: float) -> TrainingSettings:
    r"""Shrink the steps of networks and of q(theta) as the rows come again.

    Parameters
    ----------
    settings : TrainingSettings
        For the first pass.
    passes : float
        Passes over the whole data set that are over.

    Returns
    -------
    TrainingSettings
        Rates times :math:`(1 + t / \tau)^{-\kappa}` after :math:`t` passes: Robbins-Monro step
        sizes, as their sum diverges and that of their squares does not.

    References
    ----------
    Hoffman et al., "Stochastic variational inference", JMLR 14, 2013, eq. (26).

    Examples
    --------
    >>> from sksvae.estimators.online import slowed
    >>> from sksvae.training import TrainingSettings
    >>> settings = TrainingSettings(max_iter=1, batch_size=200, learning_rate=0.01)
    >>> [slowed(settings, passes).learning_rate for passes in (0, 10, 30)]
    [0.01, 0.005, 0.0025]
    """
    factor = (1.0 + passes / _DELAY) ** -_FORGETTING
    return replace(
        settings,
        learning_rate=factor * settings.learning_rate,
        natural_rate=factor * settings.natural_rate,
    )


@torch.no_grad()
def weigh(model: StructuredVAE, rows: Rows, n_rows: int) -> None:
    """Let some rows stand for all in q(theta), by a coordinate update.

    Natural gradient steps would take many passes to add up to the count of all rows.

    Parameters
    ----------
    model : StructuredVAE
        Fitted to the rows; q(theta) changes, if there is one.
    rows : Rows
        Of the first call.
    n_rows : int
        How many they stand for.
    """
    sums = None
    for part in rows.parts(CHUNK):
        stats = model.graphical.total_stats(model.infer(part))
        sums = stats if sums is None else [a + b for a, b in zip(sums, stats, strict=True)]
    if sums:
        model.graphical.coordinate_update([n_rows / len(rows) * total for total in sums])
