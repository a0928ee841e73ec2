# SPDX-License-Identifier: BSD-3-Clause
"""Editing a fitted mixture."""

from numbers import Integral

import torch
from sklearn.base import _fit_context
from sklearn.utils.validation import check_is_fitted

from sksvae.estimators.scaling import Scaling
from sksvae.estimators.validation import checked_numbers, unchanged_on_error
from sksvae.expfam import NIWParams
from sksvae.graphical import GaussianMixtureModel
from sksvae.initialization import fit_mixture

_REFIT_ITER = 1000  # rounds of variational Bayes
_REFIT_TOL = 1e-6  # nats per row


class SteeringMixin:
    """Copies with components removed or moved, and a new mixture on the same networks."""

    def remove_component(self, k):
        """Copy without one component ([T] 6.1.2).

        Parameters
        ----------
        k : int
            Index of the component.

        Returns
        -------
        edited : SVAEGaussianMixture
            A fitted copy; components after ``k`` move up by one and weights renormalise.
        """
        k = self._checked_component(k)
        n_components = self.weights_.shape[0]
        if n_components == 1:
            raise ValueError("k=0 is the only component left, and a mixture needs one.")
        return self._edited(lambda mixture: mixture.select(mixture.others(k)))

    def move_component(self, k, mean):
        """Copy with one component moved ([T] 6.1.2).

        Parameters
        ----------
        k : int
            Index of the component.
        mean : array-like of shape (latent_dim,)
            Its new mean.

        Returns
        -------
        edited : SVAEGaussianMixture
            A fitted copy.
        """
        k = self._checked_component(k)
        mean = checked_numbers(mean, (self.latent_dim_,), "mean")

        def move(mixture: GaussianMixtureModel) -> GaussianMixtureModel:
            components = mixture.posterior.components
            means = components.mean.clone()
            means[k] = torch.as_tensor(mean)
            moved = NIWParams(components.scale, means, *components[2:])
            return GaussianMixtureModel(mixture.prior, mixture.posterior._replace(components=moved))

        return self._edited(move)

    @_fit_context(prefer_skip_nested_validation=True)
    @unchanged_on_error
    def refit_mixture(self, X, y=None):
        """Fit the mixture to new rows with the networks as they are.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        self : SVAEGaussianMixture
            With new ``weights_``, ``means_`` and ``covariances_``, fitted from where they stood
            to the posterior of ``X`` alone. Components keep their places, and what `fit` said
            about its own training (``lower_bound_``, ``history_``) stays.
        """
        X, likelihood = self._checked_rows(X)
        model = self._rebuild()
        scaling = Scaling(self.location_, self.scale_)
        rows = scaling.rows(X, likelihood, self.device)
        with torch.no_grad():
            potentials = model.encode(rows)
        fit_mixture(
            model.graphical, potentials, model.settings, max_iter=_REFIT_ITER, tol=_REFIT_TOL
        )
        return self._with_graphical(model)

    def _checked_component(self, k) -> int:
        check_is_fitted(self)
        n_components = self.weights_.shape[0]
        if not isinstance(k, Integral) or not 0 <= k < n_components:
            raise ValueError(f"k must be an integer from 0 to {n_components - 1}, got {k!r}.")
        return int(k)
