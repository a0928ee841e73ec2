# SPDX-License-Identifier: BSD-3-Clause
"""What the estimators share: validation, the stages of a fit, and everything after it."""

import math
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from numbers import Integral, Real

import numpy as np
import torch
from scipy import stats
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from sksvae.estimators.scaling import Scaling
from sksvae.estimators.validation import (
    checked_device,
    checked_layer_sizes,
    unchanged_on_error,
)
from sksvae.graphical import GraphicalModel, Posterior
from sksvae.importance import importance_bound
from sksvae.inference import FixedPointSettings
from sksvae.initialization import principal_axes
from sksvae.likelihoods import get_likelihood
from sksvae.likelihoods.base import Likelihood
from sksvae.networks import ACTIVATIONS
from sksvae.objective import Rows, StructuredVAE
from sksvae.persistence import (
    Architecture,
    load_optimizer,
    model_from_arrays,
    model_to_arrays,
    optimizer_to_arrays,
)
from sksvae.training import EpochRecord, Trainer, TrainingSettings, run_training

_CHUNK = 4096  # rows that are in memory at a time outside training
_MAX_LATENT_DIM = 10  # of latent_dim=None
_MIN_PRECISION = 1e-2  # of the potentials at the start, for latents that no feature depends on
_MAX_FALL = 10.0  # nats per row that noise and the end of pre-training do not explain
_SEED_BOUND = np.iinfo(np.int32).max


@dataclass
class FitResult:
    """Outcome of one run of a fit."""

    model: StructuredVAE
    trainer: Trainer
    history: list[EpochRecord]
    converged: bool
    lower_bound: float


class BaseSVAE(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
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
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
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
    ) -> Callable[[int], None]:
        """Changes of the latent structure between epochs of joint training."""
        return lambda epoch: None

    def _finish(self, model: StructuredVAE, rows: Rows) -> None:
        """Last touches after joint training."""

    def _graphical_attributes(self, graphical: GraphicalModel) -> dict[str, np.ndarray]:
        """Fitted attributes of the latent structure."""
        return {}

    def _n_initial_epochs(self) -> int:
        """Epochs that `_initialize` reports."""
        return 0

    def _min_rows(self) -> int:
        """Fewest training rows that `_initialize` can do with."""
        return 1

    def _fixed_point_settings(self, to_train: bool) -> FixedPointSettings:
        """How local inference is iterated."""
        return FixedPointSettings()

    # ---- fit ----

    @_fit_context(prefer_skip_nested_validation=True)
    @with_callbacks
    @unchanged_on_error
    def fit(self, X, y=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, in the domain of the likelihood.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X or a parameter is not valid, or training diverges. The message says what to
            change; what an earlier fit left stays as it was.
        """
        data, likelihood = self._check_training_data(X, reset=not self._continues())
        random_state = check_random_state(self.random_state)
        n_runs, n_initial = self.n_init, self._n_initial_epochs()
        if self._continues():
            n_runs, n_initial = 1, 0
        # Callbacks get X as it came: with its feature names, a scorer warns of nothing.
        told = {"estimator": self, "X": X, "y": y}
        context = self._init_callback_context(max_subtasks=n_runs)
        context.call_on_fit_task_begin(**told)
        best = None
        for run in range(n_runs):
            seed = random_state.randint(_SEED_BOUND)
            run_context = context.subcontext(
                task_name="run", max_subtasks=n_initial + self.max_iter
            )
            run_context.call_on_fit_task_begin(**told)
            scaling, result = self._run(data, likelihood, seed, run, run_context, told)
            if best is None or result.lower_bound > best[1].lower_bound:
                best = scaling, result
            if run_context.call_on_fit_task_end(**told):
                break
        for name, value in self._fitted_attributes(*best, data.shape[0]).items():
            setattr(self, name, value)
        self._warn_of_poor_training()
        context.call_on_fit_task_end(
            **told,
            reconstruction_attributes=lambda: self._fitted_attributes(*best, data.shape[0]),
        )
        return self

    def _continues(self) -> bool:
        return self.warm_start and hasattr(self, "model_state_")

    def _run(self, X, likelihood, seed, run, context, told) -> tuple[Scaling, FitResult]:
        """One run of all stages, from one seed."""
        random_state = np.random.RandomState(seed)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        if self._continues():
            scaling = Scaling(self.location_, self.scale_)
            rows = scaling.rows(X, likelihood, self.device)
            model = self._rebuild(to_train=True)
        else:
            scaling = Scaling.of(likelihood.working_features(X), self.standardize)
            rows = scaling.rows(X, likelihood, self.device)
            model = self._initial_model(rows, scaling, likelihood, generator)
        training, validation = self._split(rows, random_state)
        trainer = Trainer(model, len(training), self._training_settings(len(training)), generator)
        log_jacobian = scaling.log_jacobian(likelihood)
        history: list[EpochRecord] = []
        stopped = False

        def report(_: int, record: EpochRecord) -> bool:
            """Tell the user and the callbacks about an epoch."""
            nonlocal stopped
            record = _shift(record, log_jacobian)
            history.append(record)
            self._print(run, len(history), record)
            epoch = context.subcontext(task_name="epoch")
            epoch.call_on_fit_task_begin(**told)
            stopped = epoch.call_on_fit_task_end(
                **told,
                reconstruction_attributes=lambda: self._fitted_attributes(
                    scaling,
                    FitResult(model, trainer, history, False, record.lower_bound),
                    X.shape[0],
                ),
            )
            return stopped

        if not self._continues():
            self._initialize(model, training, generator, random_state, report)
        # A callback that stops the first epochs, of the initialisation, means all of them.
        converged = stopped
        if not stopped:
            moves = self._moves(model, training, random_state)
            converged = run_training(trainer, training, validation, report, moves)[1]
        self._finish(model, training)
        lower_bound = self._final_bound(model, training, generator) + log_jacobian
        return scaling, FitResult(model, trainer, history, converged, lower_bound)

    @_fit_context(prefer_skip_nested_validation=True)
    @unchanged_on_error
    def partial_fit(self, X, y=None):
        """Take one pass of training steps over a batch of rows.

        The first call initialises the model on its rows, which should therefore be typical and
        at least as many as for `fit`. Later calls continue, with the standardisation of the first,
        and components keep the labels that the first call gave them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : object
            The estimator.

        Notes
        -----
        Stochastic variational inference: the global terms are weighted for a data set of
        ``total_samples`` rows, or of the rows seen so far.
        """
        first = not hasattr(self, "model_state_")
        X, likelihood = self._check_training_data(X, reset=first)
        random_state = check_random_state(self.random_state)
        seen = 0 if first else self.n_samples_seen_
        seed = (random_state.randint(_SEED_BOUND) + seen) % _SEED_BOUND
        generator = torch.Generator(device=self.device).manual_seed(seed)
        if first:
            scaling = Scaling.of(likelihood.working_features(X), self.standardize)
            rows = scaling.rows(X, likelihood, self.device)
            model = self._initial_model(rows, scaling, likelihood, generator)
            start = np.random.RandomState(seed)
            self._initialize(model, rows, generator, start, lambda *_: False)
            # Once only: later calls must not exchange labels.
            self._finish(model, rows)
        else:
            scaling = Scaling(self.location_, self.scale_)
            rows = scaling.rows(X, likelihood, self.device)
            model = self._rebuild(to_train=True)
        seen += X.shape[0]
        total = max(self.total_samples or 0, seen)
        settings = self._training_settings(len(rows), anneal=False)
        trainer = Trainer(model, total, settings, generator)
        if not first:
            load_optimizer(trainer.adam, self.optimizer_state_)
        record = _shift(trainer.pass_over(rows), scaling.log_jacobian(likelihood))
        history = (
            []
            if first
            else [EpochRecord(*values) for values in zip(*self.history_.values(), strict=True)]
        )
        result = FitResult(model, trainer, [*history, record], True, record.lower_bound)
        for name, value in self._fitted_attributes(scaling, result, seen).items():
            setattr(self, name, value)
        return self

    # ---- pieces of a fit ----

    def _warn_of_poor_training(self) -> None:
        bound_is_objective = self.beta == 1 and self.capacity == 0
        if bound_is_objective and self.lower_bound_ < self.lower_bounds_[0] - _MAX_FALL:
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
        warnings.warn(message, ConvergenceWarning, stacklevel=6)

    def _check_training_data(self, X, reset: bool) -> tuple[np.ndarray, Likelihood]:
        checked_device(self.device)
        likelihood = get_likelihood(self.likelihood)
        architecture = self._architecture()
        if not reset:
            self._check_unchanged(architecture)
        X = self._validated(X, reset, ensure_min_samples=2 if reset else 1)
        likelihood.validate(X)
        return X, likelihood

    def _validated(self, X, reset: bool, **options) -> np.ndarray:
        """X as an array, in the type that the model computes in."""
        dtype = [np.float64, np.float32] if reset else self.location_.dtype
        try:
            # One layout, so that a DataFrame and its array give equal sums to the bit.
            return validate_data(self, X, reset=reset, dtype=dtype, order="C", **options)
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError(
                f"X must hold numbers, but {error}. Encode text and categories as numbers, or "
                "leave them out."
            ) from error

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
        batch_size = min(200, n_rows) if self.batch_size == "auto" else min(self.batch_size, n_rows)
        return TrainingSettings(
            max_iter=self.max_iter,
            batch_size=batch_size,
            learning_rate=self.learning_rate_init,
            anneal=anneal,
            n_draws=self.n_draws,
            beta=self.beta,
            capacity=self.capacity,
            unbiased=getattr(self, "natural_gradient", "unbiased") == "unbiased",
            tol=self.tol,
            n_iter_no_change=self.n_iter_no_change,
        )

    def _checked_latent_dim(self, n_features: int) -> int:
        return self.latent_dim or min(n_features, _MAX_LATENT_DIM)

    def _initial_model(
        self, rows: Rows, scaling: Scaling, likelihood: Likelihood, generator: torch.Generator
    ) -> StructuredVAE:
        """First stage: a linear model on the principal axes, nonlinear parts near zero."""
        n_features = rows.observed.shape[1]
        latent_dim = self._checked_latent_dim(n_features)
        axes, left = principal_axes(rows.encoded.double().cpu().numpy(), latent_dim)
        like = rows.encoded

        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=like.dtype, device=like.device)

        graphical = self._initial_graphical(latent_dim, like)
        model = StructuredVAE(
            n_features,
            latent_dim,
            checked_layer_sizes(self.hidden_layer_sizes),
            self.activation,
            likelihood,
            graphical,
            tensor(scaling.location),
            tensor(scaling.scale),
            self._fixed_point_settings(to_train=True),
        ).to(like.device)
        # Two rows with the variances that the linear model leaves, in the units of the likelihood.
        deviations = np.sqrt(left) * (1.0 if likelihood.standardizes else scaling.scale)
        working = tensor(np.stack([deviations, -deviations]))
        for name, value in likelihood.init_params(working, n_features, like.dtype).items():
            model.likelihood_params[name].data.copy_(value)
        further = likelihood.init_outputs(n_features, working, like.dtype)
        model.decoder.reset(tensor(axes), further.to(like.device), generator)
        model.encoder.reset(tensor(axes), _evidence_precision(model, tensor(axes)), generator)
        return model

    def _split(self, rows: Rows, random_state: np.random.RandomState) -> tuple[Rows, Rows | None]:
        """Training rows and, for early stopping, validation rows."""
        if not self.early_stopping:
            return rows, None
        order = torch.as_tensor(random_state.permutation(len(rows)), device=rows.observed.device)
        n_validation = math.ceil(self.validation_fraction * len(rows))
        n_training = len(rows) - n_validation
        if n_training < self._min_rows():
            raise ValueError(
                f"early_stopping=True with validation_fraction={self.validation_fraction} leaves "
                f"{n_training} of {len(rows)} samples for training, and at least "
                f"{self._min_rows()} are needed. Pass more rows or lower validation_fraction."
            )
        return rows.take(order[n_validation:]), rows.take(order[:n_validation])

    def _final_bound(self, model: StructuredVAE, rows: Rows, generator: torch.Generator) -> float:
        """Bound on all training rows, checked: no step follows that would notice."""
        try:
            bound = self._mean_bound(model, rows, generator)
        except torch.linalg.LinAlgError as error:
            raise self._diverged_at_the_end(f"local inference fails, since {error}") from error
        if not math.isfinite(bound):
            raise self._diverged_at_the_end(f"the bound is {bound}")
        return bound

    def _diverged_at_the_end(self, what: str) -> ValueError:
        return ValueError(
            f"Training diverged: at its end {what.rstrip('.')}. What may help: lower "
            f"learning_rate_init={self.learning_rate_init}."
        )

    def _mean_bound(self, model: StructuredVAE, rows: Rows, generator: torch.Generator) -> float:
        """Bound per row, with fresh draws."""
        total = 0.0
        params = model.graphical.expected_params()
        with torch.no_grad():
            for start in range(0, len(rows), _CHUNK):
                chunk = rows.take(slice(start, start + _CHUNK))
                noise = torch.randn(
                    (10, len(chunk), model.graphical.latent_dim),
                    generator=generator,
                    dtype=chunk.encoded.dtype,
                    device=chunk.encoded.device,
                )
                total += float(model.elbo(chunk, params, noise).bound.sum())
        return (total - float(model.graphical.prior_kl())) / len(rows)

    def _fitted_attributes(self, scaling: Scaling, result: FitResult, n_seen: int) -> dict:
        """Everything that a fit leaves on the estimator."""
        history = result.history
        return {
            "location_": scaling.location,
            "scale_": scaling.scale,
            "architecture_": self._architecture(),
            "model_state_": model_to_arrays(result.model),
            "optimizer_state_": optimizer_to_arrays(result.trainer.adam),
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
        if self.verbose and epoch % interval == 0:
            terms = ", ".join(
                f"{name} {value:.4f}" for name, value in asdict(record).items() if value == value
            )
            print(f"[{type(self).__name__}] run {run + 1}, epoch {epoch}: {terms}")

    # ---- after the fit ----

    def _rebuild(self, to_train: bool = False) -> StructuredVAE:
        architecture = Architecture(
            n_features=self.n_features_in_,
            latent_dim=self.latent_dim_,
            hidden_layer_sizes=self.architecture_["hidden_layer_sizes"],
            activation=self.architecture_["activation"],
            likelihood=self._fitted_likelihood(),
            graphical=self._graphical_name,
            settings=self._fixed_point_settings(to_train),
            device=str(checked_device(self.device)),
        )
        state = self.model_state_
        if to_train:
            # The model shares memory with its arrays, which may be a file, and training can fail.
            state = {name: array.copy() for name, array in state.items()}
        return model_from_arrays(state, architecture)

    def _fitted_likelihood(self) -> Likelihood:
        return get_likelihood(self.architecture_["likelihood"])

    def _checked_rows(self, X) -> tuple[np.ndarray, Likelihood]:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        likelihood = self._fitted_likelihood()
        likelihood.validate(X)
        return X, likelihood

    def _chunks(self, X) -> Iterator[tuple[StructuredVAE, Rows]]:
        """Validated rows, a bounded number at a time."""
        X, likelihood = self._checked_rows(X)
        scaling = Scaling(self.location_, self.scale_)
        model = self._rebuild()
        with torch.no_grad():
            for start in range(0, X.shape[0], _CHUNK):
                rows = scaling.rows(X[start : start + _CHUNK], likelihood, self.device)
                self._check_reach(X, rows, start)
                yield model, rows

    def _check_reach(self, X: np.ndarray, rows: Rows, start: int) -> None:
        """Squares of what the encoder sees must not overflow, times the largest precision."""
        distance = rows.encoded.abs()
        if distance.max() > 1e-7 * math.sqrt(torch.finfo(distance.dtype).max):
            row, column = divmod(int(distance.argmax()), X.shape[1])
            raise ValueError(
                f"X has the value {X[start + row, column]:.6g} in row {start + row}, column "
                f"{column}, {float(distance.max()):.3g} times the scale of the training data away "
                f"from their mean: too far to compute with in {X.dtype}."
            )

    def _collect(self, X, read: Callable[[Posterior], Tensor]) -> np.ndarray:
        """Read something off the posterior of every row."""
        parts = [read(model.infer(rows)).cpu().numpy() for model, rows in self._chunks(X)]
        return np.concatenate(parts)

    def transform(self, X):
        """Posterior mean of the latents of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Z : ndarray of shape (n_samples, latent_dim)
            Posterior means.
        """
        return self._collect(X, lambda posterior: posterior.mean)

    def inverse_transform(self, Z):
        """Mean of the rows that latents decode to.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_dim)
            Latents.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Means, in the units of X.
        """
        check_is_fitted(self)
        # A copy: torch cannot wrap read-only memory, nor negative strides.
        Z = check_array(Z, dtype=self.location_.dtype, order="C", copy=True, input_name="Z")
        if Z.shape[1] != self.latent_dim_:
            raise ValueError(
                f"Z has {Z.shape[1]} columns, but this {type(self).__name__} has "
                f"{self.latent_dim_} latent dimensions."
            )
        model = self._rebuild()
        with torch.no_grad():
            parts = [
                model.likelihood.mean(model.decode(chunk), model.noise_params).cpu().numpy()
                for chunk in torch.as_tensor(Z, device=self.device).split(_CHUNK)
            ]
        return Scaling(self.location_, self.scale_).restore(np.concatenate(parts), model.likelihood)

    def score_samples(self, X):
        """Log-likelihood of each row, bounded from below by importance weighting.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats and in the units of X, from ``n_importance`` draws per row. It tightens as
            their number grows, and equal rows give equal values.

        References
        ----------
        Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
        """
        check_is_fitted(self)
        # Quasi-random points, the same for every row and every call.
        sobol = stats.qmc.Sobol(self.latent_dim_, seed=0)
        uniform = sobol.random_base2(math.ceil(math.log2(self.n_importance)))[: self.n_importance]
        noise = torch.from_numpy(stats.norm.ppf(uniform).astype(self.location_.dtype))
        parts = []
        for model, rows in self._chunks(X):
            n_at_once = max(1, 65_536 // self.n_importance)
            for start in range(0, len(rows), n_at_once):
                part = rows.take(slice(start, start + n_at_once))
                bound = importance_bound(model, part, noise.to(part.encoded.device))
                parts.append(bound.cpu().numpy())
        jacobian = Scaling(self.location_, self.scale_).log_jacobian(self._fitted_likelihood())
        return np.concatenate(parts) + self.location_.dtype.type(jacobian)

    def score(self, X, y=None):
        """Mean of `score_samples` over rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        score : float
            Log-likelihood per row, in nats.
        """
        return float(np.mean(self.score_samples(X)))

    def _sample(self, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and the components they came from."""
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"n_samples must be an integer of at least 1, got {n_samples!r}.")
        seed = check_random_state(self.random_state).randint(_SEED_BOUND)
        model = self._rebuild()
        generator = torch.Generator(device=self.device).manual_seed(seed)
        with torch.no_grad():
            z, labels = model.graphical.sample(int(n_samples), generator)
            x = model.likelihood.sample(model.decode(z), model.noise_params, generator)
        restored = Scaling(self.location_, self.scale_).restore(x.cpu().numpy(), model.likelihood)
        return restored, labels.cpu().numpy()

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim_

    def __sklearn_tags__(self):
        """Tags for scikit-learn's machinery."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        try:
            get_likelihood(self.likelihood).validate(np.array([[-1.0]]))
        except (TypeError, ValueError):
            tags.input_tags.positive_only = True
        return tags


def _evidence_precision(model: StructuredVAE, axes: Tensor) -> Tensor:
    """What one row says about each latent, at the mean of the data and along the given axes."""
    with torch.no_grad():
        outputs = model.decode(axes.new_zeros(1, axes.shape[1]))
        precision = model.likelihood.noise_precision(model.noise_params, outputs)[0]
        if not model.likelihood.standardizes:
            precision = precision * model.link_scale.square()
        return (precision @ axes.square()).clamp_min(_MIN_PRECISION)


def _shift(record: EpochRecord, log_jacobian: float) -> EpochRecord:
    """Express a record in the units of X."""
    values = asdict(record)
    for name in ("lower_bound", "reconstruction", "validation_bound"):
        values[name] += log_jacobian
    return EpochRecord(**values)
