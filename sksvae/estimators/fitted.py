# SPDX-License-Identifier: BSD-3-Clause
"""What a fitted structured VAE does with rows."""

import math
from collections.abc import Callable, Iterator
from numbers import Integral

import numpy as np
import torch
from scipy import stats
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from sksvae.estimators.scaling import Scaling
from sksvae.estimators.validation import checked_device
from sksvae.graphical import Posterior
from sksvae.importance import importance_bound
from sksvae.likelihoods import get_likelihood
from sksvae.likelihoods.base import Likelihood
from sksvae.objective import Rows, StructuredVAE
from sksvae.persistence import Architecture, model_from_arrays

CHUNK = 4096  # rows that are in memory at a time outside training
SEED_BOUND = np.iinfo(np.int32).max


class FittedMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Methods that read the fitted attributes, for `BaseSVAE`."""

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
            for start in range(0, X.shape[0], CHUNK):
                rows = scaling.rows(X[start : start + CHUNK], likelihood, self.device)
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
                for chunk in torch.as_tensor(Z, device=self.device).split(CHUNK)
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
        seed = check_random_state(self.random_state).randint(SEED_BOUND)
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
