# SPDX-License-Identifier: BSD-3-Clause
"""A variational autoencoder whose latents have a learned covariance."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sksvae.estimators.vae import VAE
from sksvae.expfam import NIWParams
from sksvae.graphical import GaussianModel, GaussianPrior
from sksvae.objective import Rows, StructuredVAE
from sksvae.training import EpochRecord

_ROUNDS = 10  # of variational Bayes, with the networks as they are


class SVAEGaussian(VAE):
    """Variational autoencoder with one Gaussian over its latents, of unknown moments.

    ``z ~ N(mu, Sigma)``, ``x | z ~ p(x | decoder(z))``, with a conjugate prior on ``mu`` and
    ``Sigma``.

    Parameters
    ----------
    latent_dim : int or None, default=None
        Dimension of the latents; ``None`` means ``min(n_features, 10)``.
    hidden_layer_sizes : array-like of int, default=(100,)
        Hidden layers of the encoder, mirrored in the decoder. ``()`` makes both linear.
    activation : {'identity', 'logistic', 'tanh', 'relu'}, default='relu'
        Activation of the hidden layers.
    likelihood : str or Likelihood, default='gaussian'
        Observation model: ``'gaussian'`` (one learned variance per feature),
        ``'gaussian_network'``, ``'student_t'``, ``'bernoulli'``, ``'poisson'``, ``'gamma'``, or an
        instance from `sksvae.likelihoods`.
    standardize : bool, default=True
        Whether each feature is scaled to unit variance inside the model; if not, all share one
        scale. Scores and samples are in the units of X either way.
    n_draws : int, default=1
        Monte Carlo draws per row and training step.
    beta : float, default=1.0
        Weight of the local KL in training (beta-VAE). 1 is the bound itself.
    capacity : float, default=0.0
        Training penalises ``beta * |KL - capacity|``, in nats per row.
    n_importance : int, default=64
        Draws per row in `score_samples`.
    solver : {'adam', 'muon'}, default='adam'
        How the networks learn. ``'muon'`` gives weight matrices orthogonal steps and leaves the
        rest to Adam: slower per step by a third, and faster by far where much is in fine detail
        of precise observations.
    learning_rate_init : float, default=0.005
        Step size of the networks at the start; it falls to zero along a half cosine.
    batch_size : int or 'auto', default='auto'
        Rows per minibatch; ``'auto'`` means ``min(200, n_samples)``.
    max_iter : int, default=200
        Most epochs.
    tol : float, default=1e-3
        Least improvement of the bound, in nats per row and averaged over the last
        ``n_iter_no_change`` epochs, that counts as one.
    n_iter_no_change : int, default=30
        Epochs without improvement before training stops.
    early_stopping : bool, default=False
        Whether improvement is judged on held-out rows, and the best model on them kept.
    validation_fraction : float, default=0.1
        Share of rows held out for ``early_stopping``.
    n_init : int, default=1
        Runs from different seeds; the one with the best bound is kept.
    warm_start : bool, default=False
        Whether `fit` continues from the last fit.
    checkpoint : str, path or None, default=None
        File in which `fit` keeps its state while it runs, and from which it goes on if it was
        interrupted.
    total_samples : int or None, default=None
        Size of the data set that `partial_fit` sees in pieces; ``None``: the rows seen so far.
    device : str, default='cpu'
        PyTorch device.
    verbose : int, default=0
        1 prints every tenth epoch, 2 every epoch.
    random_state : int, RandomState instance or None, default=None
        Source of randomness; an int makes fits repeatable.

    Attributes
    ----------
    mean_ : ndarray of shape (latent_dim,)
        Expected mean of the latents.
    covariance_ : ndarray of shape (latent_dim, latent_dim)
        Inverse of their expected precision.
    lower_bound_ : float
        Bound on the log evidence of the training rows, in nats per row and in the units of X.
    lower_bounds_ : ndarray of shape (n_iter_,)
        Bound in each epoch, as met in training.
    history_ : dict of str to ndarray of shape (n_iter_,)
        The bound and its terms in each epoch.
    n_iter_ : int
        Epochs that were run.
    converged_ : bool
        Whether training stopped before `max_iter`.
    latent_dim_ : int
        Dimension of the latents.
    location_, scale_ : ndarray of shape (n_features,)
        Standardisation of the features on the link scale.
    architecture_ : dict
        Parameters that fix the shape of the model, as they were in `fit`: `set_params` changes
        the next fit, not this one.
    model_state_, optimizer_state_ : dict of str to ndarray
        Everything learned, as arrays.
    n_samples_seen_ : int
        Rows that the model was trained on.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had names that are all strings.

    See Also
    --------
    VAE : With a fixed standard normal.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksvae import SVAEGaussian
    >>> X = load_iris().data
    >>> gaussian = SVAEGaussian(2, max_iter=5, tol=10, n_iter_no_change=1, random_state=0).fit(X)
    >>> gaussian.covariance_.shape
    (2, 2)
    """

    _graphical_name = "gaussian"

    def _initial_graphical(self, latent_dim: int, like: Tensor) -> GaussianModel:
        eye = torch.eye(latent_dim, dtype=like.dtype, device=like.device)
        one = eye.new_ones(())
        return GaussianModel(
            GaussianPrior(NIWParams(eye, eye.new_zeros(latent_dim), one, latent_dim * one))
        )

    def _initialize(
        self,
        model: StructuredVAE,
        rows: Rows,
        generator: torch.Generator,
        random_state: np.random.RandomState,
        on_epoch_end: Callable[[int, EpochRecord], bool],
    ) -> None:
        """Scale the linear start, then fit q(theta) to what the encoder gives."""
        super()._initialize(model, rows, generator, random_state, on_epoch_end)
        with torch.no_grad():
            for _ in range(_ROUNDS):
                posterior = model.infer(rows)
                model.graphical.coordinate_update(model.graphical.total_stats(posterior))

    def _graphical_attributes(self, graphical: GaussianModel) -> dict[str, np.ndarray]:
        scale, mean, _, dof = graphical.posterior.latent
        values = {"mean_": mean, "covariance_": scale / dof}
        return {name: value.cpu().numpy().copy() for name, value in values.items()}
