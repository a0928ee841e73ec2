# SPDX-License-Identifier: BSD-3-Clause
"""What the estimators share: validation, the stages of a fit, and everything after it."""

import os
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from numbers import Integral, Real

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import (
    BaseEstimator,
    DensityMixin,
)
from sklearn.callback import CallbackSupportMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from torch import Tensor

from sksvae.distributed import current_process
from sksvae.estimators.checkpoint import Checkpoint, Keeper, model_arrays, scaling_of, signature_of
from sksvae.estimators.fitted import SEED_BOUND, FitResult, FittedMixin
from sksvae.estimators.moves import Moves
from sksvae.estimators.online import OnlineMixin
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.start import linear_model
from sksvae.estimators.threads import threads_that_pay
from sksvae.estimators.validation import checked_device, checked_layer_sizes
from sksvae.graphical import GraphicalModel
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods import get_likelihood
from sksvae.likelihoods.base import Likelihood
from sksvae.networks import ACTIVATIONS
from sksvae.objective import Rows, StructuredVAE
from sksvae.persistence import (
    model_to_arrays,
    optimizer_to_arrays,
)
from sksvae.training import EpochRecord, Progress, Trainer, TrainingSettings, run_training

_MAX_LATENT_DIM = 10  # of latent_dim=None
_MAX_FALL = 10.0  # nats per row that noise and the end of pre-training do not explain


class BaseSVAE(
    OnlineMixin,
    FittedMixin,
    CallbackSupportMixin,
    DensityMixin,
    BaseEstimator,
    metaclass=ABCMeta,
):
    """Base class of the structured VAEs over rows."""

    _parameter_constraints: dict = {
        "latent_dim": [Interval(Integral, 1, None, closed="left"), None],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "likelihood": [str, Likelihood],
        "standardize": ["boolean"],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "capacity": [Interval(Real, 0, None, closed="left")],
        "n_importance": [Interval(Integral, 1, None, closed="left")],
        "solver": [StrOptions({"adam", "muon"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "checkpoint": [str, os.PathLike, None],
        "total_samples": [Interval(Integral, 1, None, closed="left"), None],
        "device": [str],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }
    _graphical_name: str
    # Parameters that fix the shape of the model: what was fitted with one of them cannot go on
    # with another.
    _architecture_names: tuple[str, ...] = (
        "latent_dim",
        "hidden_layer_sizes",
        "activation",
        "likelihood",
    )

    # ---- hooks ----

    @abstractmethod
    def _values(self, data) -> np.ndarray:
        """All rows of checked data, of shape (n_rows, n_features)."""

    def _arrays(self, data) -> tuple[np.ndarray, ...]:
        """All that tells checked data from other data."""
        return (self._values(data),)

    @abstractmethod
    def _tensors(self, data, scaling: Scaling, likelihood: Likelihood) -> Rows:
        """Checked data as tensors."""

    @abstractmethod
    def _split(self, rows: Rows, random_state: np.random.RandomState) -> tuple[Rows, Rows | None]:
        """Training rows and, for early stopping, validation rows."""

    @abstractmethod
    def _initial_graphical(self, latent_dim: int, like: Tensor) -> GraphicalModel:
        """Latent structure before it has seen data."""

    @abstractmethod
    def _initialize(
        self,
        model: StructuredVAE,
        rows: Rows,
        generator: torch.Generator,
        random_state: np.random.RandomState,
        on_epoch_end: Callable[[int, EpochRecord], bool],
    ) -> None:
        """Stages one (in part) and two of the initialisation, before joint training."""

    def _moves(
        self, model: StructuredVAE, rows: Rows, random_state: np.random.RandomState
    ) -> Moves:
        """Changes of the latent structure between epochs of joint training."""
        return Moves()

    def _finish(self, model: StructuredVAE, rows: Rows) -> None:
        """Last touches after joint training."""

    def _graphical_attributes(self, graphical: GraphicalModel) -> dict[str, np.ndarray]:
        """Fitted attributes of the latent structure."""
        return {}

    def _n_initial_epochs(self) -> int:
        """Epochs that `_initialize` reports."""
        return 0

    def _auto_batch(self, n_rows: int) -> int:
        """``batch_size='auto'``, in rows."""
        return 200

    def _fixed_point_settings(self, to_train: bool) -> FixedPointSettings:
        """How local inference is iterated."""
        return FixedPointSettings()

    # ---- fit ----

    def _fit(self, data, likelihood: Likelihood, told: dict) -> None:
        """All runs, the best of which sets the fitted attributes.

        Parameters
        ----------
        data : object
            Checked training data, as `_values` and `_tensors` read them.
        likelihood : Likelihood
            Observation model.
        told : dict
            What callbacks get to know of the call.
        """
        n_runs, n_initial = self.n_init, self._n_initial_epochs()
        if self._continues():
            n_runs, n_initial = 1, 0
        seeds = self._seeds(data, n_runs)
        signature = {} if self.checkpoint is None else signature_of(self, self._arrays(data))
        file = Checkpoint(self.checkpoint, signature, seeds)
        context = self._init_callback_context(max_subtasks=n_runs)
        context.call_on_fit_task_begin(**told)
        interrupted = ""
        run_task = {"task_name": "run", "max_subtasks": n_initial + self.max_iter}
        if self._may_spread(n_runs):
            contexts = [context.subcontext(**run_task) for _ in file.seeds]
            self._spread(data, likelihood, file, contexts)
        while file.run < len(file.seeds):
            run_context = context.subcontext(**run_task)
            run_context.call_on_fit_task_begin(**told)
            try:
                with self._threads(data):
                    found, result = self._run(data, likelihood, file, run_context, told)
                interrupted = result.interrupted
            except KeyboardInterrupt:
                if file.best is None or current_process().size > 1:
                    raise
                found, interrupted = file.best, f"at the start of run {file.run + 1}"
            file.add(found)
            if interrupted:
                break
            file.end_run()
            if any(current_process().gather(run_context.call_on_fit_task_end(**told))):
                break
        # Plain values of parameters: they are not in the file.
        best = file.best | {"architecture_": self._architecture()}
        if interrupted:
            best["converged_"] = False
        for name, value in best.items():
            setattr(self, name, value)
        self._warn_of_poor_training(interrupted)
        if not interrupted:
            file.remove()
        context.call_on_fit_task_end(**told, reconstruction_attributes=lambda: dict(best))

    def _seeds(self, data, n_seeds: int) -> list[int]:
        """Seeds of runs: the same in all processes, which are to have been given the same."""

        def given() -> dict:
            signature = signature_of(self, self._arrays(data))
            return signature | {"what was fitted before": getattr(self, "model_state_", None)}

        process = current_process()
        process.check_equal(given)
        random_state = check_random_state(self.random_state)
        return process.gather([random_state.randint(SEED_BOUND) for _ in range(n_seeds)])[0]

    def _may_spread(self, n_runs: int) -> bool:
        """Whether joblib has been told to send work elsewhere, and nothing needs runs in turn.

        Callbacks may stop a fit between runs, a checkpoint is about one run at a time, and under
        `data_parallel` all processes work on each run.
        """
        in_turn = getattr(self, "_skl_callbacks", None) or self.checkpoint is not None
        alone = current_process().size == 1
        return n_runs > 1 and alone and not in_turn and effective_n_jobs(None) > 1

    def _spread(self, data, likelihood: Likelihood, file: Checkpoint, contexts: list) -> None:
        """All runs at once, wherever joblib sends them."""
        found = Parallel()(
            delayed(self._run_elsewhere)(data, likelihood, file.seeds, run, context)
            for run, context in enumerate(contexts)
        )
        for fitted in found:
            file.add(fitted)
            file.end_run()

    def _run_elsewhere(self, data, likelihood, seeds, run, context) -> dict:
        """Fitted attributes that one of several runs leaves."""
        file = Checkpoint(None, {}, seeds)
        file.run = run
        with self._threads(data):
            return self._run(data, likelihood, file, context, {"estimator": self})[0]

    def _threads(self, data) -> AbstractContextManager:
        """Context of training, with the threads that its batches can use."""
        n_rows, n_features = self._values(data).shape
        batch_size = min(self._training_settings(n_rows).batch_size, n_rows)
        hidden = checked_layer_sizes(self.hidden_layer_sizes)
        widths = (n_features, *hidden, self._checked_latent_dim(n_features))
        return threads_that_pay(self.device, batch_size, widths)

    def _continues(self) -> bool:
        return self.warm_start and hasattr(self, "model_state_")

    def _run(
        self, data, likelihood: Likelihood, file: Checkpoint, context, told: dict
    ) -> tuple[dict, FitResult]:
        """One run of all stages, or what an interrupted fit has left of it to do.

        What comes is the fitted attributes, and what they were made from.
        """
        run, saved = file.run, file.take()
        random_state = np.random.RandomState(file.seeds[run])
        generator = torch.Generator(device=self.device).manual_seed(file.seeds[run])
        scaling, rows, model = self._begin(data, likelihood, generator, self._continues(), saved)
        training, validation = self._split(rows, random_state)
        trainer = Trainer(model, len(training), self._training_settings(len(training)), generator)
        log_jacobian = scaling.mean_log_jacobian(self._values(data), likelihood)
        history: list[EpochRecord] = []
        keeper, stopped, interrupted = None, False, ""

        def report(_: int, record: EpochRecord) -> bool:
            """Tell the user and the callbacks about an epoch."""
            nonlocal stopped
            record = record.shifted(log_jacobian)
            history.append(record)
            if keeper is not None:
                keeper.keep()
            self._print(run, len(history), record)
            epoch = context.subcontext(task_name="epoch")
            epoch.call_on_fit_task_begin(**told)
            stop = epoch.call_on_fit_task_end(
                **told,
                reconstruction_attributes=lambda: self._fitted_attributes(
                    scaling,
                    FitResult(model, trainer, history, False, record.lower_bound),
                    len(rows),
                ),
            )
            stopped = any(current_process().gather(stop))
            return stopped

        if saved is None and not self._continues():
            self._initialize(model, training, generator, random_state, report)
        current_process().check_equal(lambda: {"the start": model_to_arrays(model)})
        # A callback that stops the first epochs, of the initialisation, means all of them.
        converged = stopped
        if not stopped:
            progress = Progress.begin(trainer, validation)
            keeper = Keeper(trainer, training, progress, history, scaling, random_state, file)
            moves = keeper.begin(saved, lambda: self._moves(model, training, random_state))
            try:
                converged = run_training(trainer, training, validation, report, moves, progress)[1]
            except KeyboardInterrupt:
                keeper.end()
                if current_process().size > 1:
                    raise
                converged, interrupted = False, f"after epoch {len(history)} of run {run + 1}"
        self._finish(model, training)
        lower_bound = self._final_bound(model, training, generator) + log_jacobian
        result = FitResult(model, trainer, history, converged, lower_bound, interrupted)
        return self._fitted_attributes(scaling, result, len(rows)), result

    def _begin(
        self,
        data,
        likelihood: Likelihood,
        generator: torch.Generator,
        fitted: bool,
        saved: dict | None = None,
    ) -> tuple[Scaling, Rows, StructuredVAE]:
        """What training begins with: of an interrupted fit, of the fitted attributes, or new."""
        if saved is not None:
            scaling = scaling_of(saved)
        elif fitted:
            scaling = Scaling(self.location_, self.scale_)
        else:
            scaling = Scaling.of(self._values(data), self.standardize, likelihood)
        rows = self._tensors(data, scaling, likelihood)
        if saved is not None:
            latent_dim = len(saved["networks"]["encoder.bias"])
            model = self._model_of(model_arrays(saved), self._architecture(), latent_dim, True)
        elif fitted:
            model = self._rebuild(to_train=True)
        else:
            model = self._initial_model(rows, scaling, likelihood, generator)
        return scaling, rows, model

    # ---- pieces of a fit ----

    def _warn_of_poor_training(self, interrupted: str) -> None:
        bound_is_objective = self.beta == 1 and self.capacity == 0
        if interrupted:
            message = f"Training was interrupted by the user {interrupted}."
            if self.checkpoint is not None:
                message += f" The same fit goes on from checkpoint={str(self.checkpoint)!r}."
        elif bound_is_objective and self.lower_bound_ < self.lower_bounds_[0] - _MAX_FALL:
            message = (
                f"The bound fell in training, from {self.lower_bounds_[0]:.4g} to "
                f"{self.lower_bound_:.4g} nats per row. Lower "
                f"learning_rate_init={self.learning_rate_init}."
            )
        elif not self.converged_:
            message = (
                f"Training stopped at max_iter={self.max_iter} epochs before the bound converged. "
                "Increase max_iter, or raise tol."
            )
        else:
            return
        # The level is that of the line that called fit, past the decorators.
        warnings.warn(message, ConvergenceWarning, stacklevel=7)

    def _checked_likelihood(self, reset: bool) -> Likelihood:
        """Check what does not depend on the data."""
        checked_device(self.device)
        likelihood = get_likelihood(self.likelihood)
        architecture = self._architecture()
        if not reset:
            self._check_unchanged(architecture)
        return likelihood

    def _architecture(self) -> dict:
        """Values of the parameters that fix the shape of the model."""
        values = {name: getattr(self, name) for name in self._architecture_names}
        return values | {"hidden_layer_sizes": checked_layer_sizes(self.hidden_layer_sizes)}

    def _check_unchanged(self, architecture: dict) -> None:
        for name, value in self.architecture_.items():
            if architecture[name] != value:
                raise ValueError(
                    f"{name}={architecture[name]!r} does not go with the last fit, which had "
                    f"{name}={value!r} and is to be continued. Set it back, or fit anew: with "
                    "warm_start=False, or in place of partial_fit."
                )

    def _training_settings(self, n_rows: int, anneal: bool = True) -> TrainingSettings:
        batch_size = self._auto_batch(n_rows) if self.batch_size == "auto" else self.batch_size
        return TrainingSettings(
            max_iter=self.max_iter,
            batch_size=min(batch_size, n_rows),
            learning_rate=self.learning_rate_init,
            solver=self.solver,
            anneal=anneal,
            n_draws=self.n_draws,
            beta=self.beta,
            capacity=self.capacity,
            unbiased=getattr(self, "natural_gradient", "unbiased") == "unbiased",
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
        )

    def _pretrain(
        self,
        model: StructuredVAE,
        rows: Rows,
        max_iter: int,
        generator: torch.Generator,
        on_epoch_end: Callable[[int, EpochRecord], bool],
        anneal: bool = False,
    ) -> None:
        """Train everything with the latent structure of the start, at a constant learning rate.

        ``anneal``: at one that falls to zero, as in training.
        """
        settings = self._training_settings(len(rows), anneal=False)
        settings = replace(settings, max_iter=max_iter, anneal=anneal)
        trainer = Trainer(model, len(rows), settings, generator)
        run_training(trainer, rows, None, on_epoch_end)

    def _initial_model(
        self, rows: Rows, scaling: Scaling, likelihood: Likelihood, generator: torch.Generator
    ) -> StructuredVAE:
        latent_dim = self._checked_latent_dim(rows.observed.shape[1])
        return linear_model(
            rows,
            scaling,
            likelihood,
            self._initial_graphical(latent_dim, rows.encoded),
            checked_layer_sizes(self.hidden_layer_sizes),
            self.activation,
            self._fixed_point_settings(to_train=True),
            generator,
        )

    def _checked_latent_dim(self, n_features: int) -> int:
        # A NumPy integer, as in a grid made by arange, is no size to torch.
        return int(self.latent_dim or min(n_features, _MAX_LATENT_DIM))

    def _fitted_attributes(self, scaling: Scaling, result: FitResult, n_seen: int) -> dict:
        """Everything that a fit leaves on the estimator."""
        history = result.history
        return {
            "location_": scaling.location,
            "scale_": scaling.scale,
            "architecture_": self._architecture(),
            "model_state_": model_to_arrays(result.model),
            "optimizer_state_": optimizer_to_arrays(result.trainer.optimizer),
            "latent_dim_": result.model.graphical.latent_dim,
            "n_samples_seen_": n_seen,
            "history_": {
                name: np.array([getattr(record, name) for record in history])
                for name in EpochRecord.__dataclass_fields__
            },
            "lower_bounds_": np.array([record.lower_bound for record in history]),
            "lower_bound_": result.lower_bound,
            "n_iter_": len(history),
            "converged_": result.converged,
            **self._graphical_attributes(result.model.graphical),
        }

    def _print(self, run: int, epoch: int, record: EpochRecord) -> None:
        interval = 10 if self.verbose == 1 else 1
        if self.verbose and epoch % interval == 0 and current_process().rank == 0:
            terms = ", ".join(
                f"{name} {value:.4f}" for name, value in asdict(record).items() if value == value
            )
            print(f"[{type(self).__name__}] run {run + 1}, epoch {epoch}: {terms}")

    def __sklearn_tags__(self):
        """Tags for scikit-learn's machinery."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        try:
            get_likelihood(self.likelihood).validate(np.array([[-1.0]]))
        except (TypeError, ValueError):
            tags.input_tags.positive_only = True
        return tags
