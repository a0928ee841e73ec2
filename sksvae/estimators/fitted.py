# SPDX-License-Identifier: BSD-3-Clause
"""What all fitted structured VAEs share."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeVar

import numpy as np
import torch
from numpy.exceptions import DTypePromotionError
from scipy import stats
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sksvae.distributed import current_process
from sksvae.estimators.scaling import Scaling
from sksvae.estimators.validation import checked_device
from sksvae.graphical import ConjugateModel
from sksvae.likelihoods import get_likelihood
from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows, StructuredVAE
from sksvae.persistence import (
    Architecture,
    ArrayState,
    model_from_arrays,
    model_to_arrays,
)
from sksvae.sequences.forms import not_numbers
from sksvae.training import EpochRecord, Trainer

CHUNK = 4096  # rows that are in memory at a time outside training
GraphicalT = TypeVar("GraphicalT", bound=ConjugateModel)
SEED_BOUND = np.iinfo(np.int32).max


@dataclass
class FitResult:
    """Outcome of one run of a fit."""

    model: StructuredVAE
    trainer: Trainer
    history: list[EpochRecord]
    converged: bool
    lower_bound: float
    interrupted: str = ""  # where the user interrupted it, if so


class FittedMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """What reads the fitted attributes alike for rows and for sequences, for `BaseSVAE`."""

    def _rebuild(self, to_train: bool = False) -> StructuredVAE:
        """The fitted model."""
        state = self.model_state_
        if to_train:
            # The model shares memory with its arrays, which may be a file, and training can fail.
            state = {name: array.copy() for name, array in state.items()}
        return self._model_of(state, self.architecture_, self.latent_dim_, to_train)

    def _model_of(
        self, state: ArrayState, architecture: dict, latent_dim: int, to_train: bool
    ) -> StructuredVAE:
        """A model from its arrays."""
        return model_from_arrays(
            state,
            Architecture(
                n_features=self.n_features_in_,
                latent_dim=latent_dim,
                hidden_layer_sizes=architecture["hidden_layer_sizes"],
                activation=architecture["activation"],
                likelihood=get_likelihood(architecture["likelihood"]),
                graphical=self._graphical_name,
                settings=self._fixed_point_settings(to_train),
                device=str(checked_device(self.device)),
            ),
        )

    def _fitted_likelihood(self) -> Likelihood:
        return get_likelihood(self.architecture_["likelihood"])

    def _validated(self, X, reset: bool, **options) -> np.ndarray:
        """X as an array, in the type that the model computes in."""
        dtype = [np.float64, np.float32] if reset else self.location_.dtype
        try:
            # One layout, so that a DataFrame and its array give equal sums to the bit.
            return validate_data(self, X, reset=reset, dtype=dtype, order="C", **options)
        except (ValueError, DTypePromotionError) as error:
            clearer = not_numbers(error)
            if clearer is None:
                raise
            raise clearer from error

    def _check_reach(self, X: np.ndarray, rows: Rows, numbers: Sequence[int]) -> None:
        """Squares of what the encoder sees must not overflow, times the largest precision.

        ``numbers`` are those of the rows, for the error.
        """
        distance = rows.encoded.abs()
        if distance.max() > 1e-7 * math.sqrt(torch.finfo(distance.dtype).max):
            row, column = divmod(int(distance.argmax()), X.shape[1])
            raise ValueError(
                f"X has the value {X[row, column]:.6g} in row {numbers[row]}, column "
                f"{column}, {float(distance.max()):.3g} times the scale of the training data away "
                f"from their mean: too far to compute with in {X.dtype}."
            )

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
                for chunk in torch.as_tensor(Z, device=self.device).split(CHUNK)
            ]
        return Scaling(self.location_, self.scale_).restore(np.concatenate(parts), model.likelihood)

    @staticmethod
    def _check_count(value, name: str) -> None:
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")

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
        params, process = model.graphical.expected_params(), current_process()
        with torch.no_grad(), process.together():
            for part in rows.parts(CHUNK):
                noise = torch.randn(
                    (10, *part.latent_shape, model.graphical.latent_dim),
                    generator=generator,
                    dtype=part.encoded.dtype,
                    device=part.encoded.device,
                )
                share, noise = process.share(part, noise)
                if share is not None:
                    total += float(model.elbo(share, params, noise).total)
        (sums,) = process.sum([rows.encoded.new_tensor([total], dtype=torch.float64)])
        return (float(sums) - float(model.graphical.prior_kl())) / len(rows)

    def _generator(self) -> torch.Generator:
        seed = check_random_state(self.random_state).randint(SEED_BOUND)
        return torch.Generator(device=self.device).manual_seed(seed)

    def _edited(self, edit: Callable[[GraphicalT], GraphicalT]):
        """Copy of the estimator with another graphical model."""
        edited = copy.deepcopy(self)
        model = edited._rebuild()
        model.graphical = edit(model.graphical)
        return edited._with_graphical(model)

    def _with_graphical(self, model: StructuredVAE):
        """Take over the graphical part of a model."""
        self.model_state_ = model_to_arrays(model)
        for name, value in self._graphical_attributes(model.graphical).items():
            setattr(self, name, value)
        return self

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim_

    def _get_fitted_attr_html(self, doc_link: str = ""):
        """What scikit-learn's HTML representation shows, dictionaries of arrays in a few words.

        It would show the first four entries, with names and numbers cut short.
        """
        shown = super()._get_fitted_attr_html(doc_link)
        for attribute in shown.values():
            value = attribute["value"]
            if isinstance(value, dict) and all(isinstance(v, np.ndarray) for v in value.values()):
                attribute["value"] = _Summary(value)
        return shown


class _Summary:
    """How many arrays and numbers a dictionary holds.

    scikit-learn shows the first 30 characters of what an object says of itself.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.n_arrays = len(arrays)
        self.n_numbers = sum(array.size for array in arrays.values())

    def __repr__(self) -> str:
        return f"{self.n_arrays} arrays, {self.n_numbers:,} numbers"


def normal_points(n_points: int, like: np.ndarray) -> torch.Tensor:
    """Quasi-random points of a standard normal distribution, the same in every call.

    Parameters
    ----------
    n_points : int
        How many.
    like : ndarray of shape (..., dim)
        Says of what dimension and type.

    Returns
    -------
    Tensor of shape (n_points, dim)
        The points: scrambled Sobol numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.estimators.fitted import normal_points
    >>> normal_points(256, np.zeros(2)).mean(0).abs() < 0.02
    tensor([True, True])
    """
    sobol = stats.qmc.Sobol(like.shape[-1], seed=0)
    uniform = sobol.random_base2(math.ceil(math.log2(n_points)))[:n_points]
    return torch.from_numpy(stats.norm.ppf(uniform).astype(like.dtype))
