# SPDX-License-Identifier: BSD-3-Clause
"""Structured VAE with a Gaussian mixture over its latents."""

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sksvae.estimators.moves import Moves, removal_moves, remove_down_to
from sksvae.estimators.rows import RowSVAE
from sksvae.estimators.start import sample_rows
from sksvae.estimators.steering import SteeringMixin
from sksvae.estimators.validation import (
    checked_covariance,
    checked_layer_sizes,
    checked_numbers,
)
from sksvae.graphical import (
    GaussianMixtureModel,
    MixturePrior,
    Potentials,
)
from sksvae.inference import FixedPointSettings
from sksvae.initialization import fit_mixture, search_mixture
from sksvae.objective import Rows, StructuredVAE
from sksvae.training import EpochRecord

_VB_ITER = 100  # rounds of variational Bayes in the initialisation
_VB_TOL = 1e-4  # nats per row


class SVAEGaussianMixture(SteeringMixin, RowSVAE):
    """Gaussian mixture over the latents of a variational autoencoder.

    ``k ~ Cat(pi)``, ``z | k ~ N(mu_k, Sigma_k)``, ``x | z ~ p(x | decoder(z))``, with conjugate
    priors on the mixture and its posterior q(theta) learned along with the networks, under one
    bound ([1]_, [2]_ example 2). Inference per row is structured mean field, ``q(z) q(k)``, with
    full covariances. Without hidden layers the model is a Bayesian Gaussian mixture on a linear
    subspace with noise.

    Parameters
    ----------
    n_components : int, default=1
        Most mixture components. With ``prune`` the model may end with fewer.
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
    weight_concentration_prior : float or None, default=None
        Dirichlet concentration of each component; ``None`` means ``1 / n_components``. Smaller
        values use fewer components.
    mean_precision_prior : float or None, default=None
        Pseudo-count of rows behind ``mean_prior``; ``None`` means 1.
    mean_prior : array-like of shape (latent_dim,) or None, default=None
        Prior mean of the components; ``None``: the mean of the latents.
    degrees_of_freedom_prior : float or None, default=None
        Degrees of freedom of the inverse Wishart, above ``latent_dim - 1``; ``None`` means
        ``latent_dim``.
    covariance_prior : array-like of shape (latent_dim, latent_dim) or None, default=None
        Scale matrix of the inverse Wishart; ``None``: the covariance of the latents.
    n_draws : int, default=1
        Monte Carlo draws per row and training step.
    beta : float, default=1.0
        Weight of the local KL in training (beta-VAE). 1 is the bound itself.
    capacity : float, default=0.0
        Training penalises ``beta * |KL - capacity|``, in nats per row.
    natural_gradient : {'unbiased', 'biased'}, default='unbiased'
        Whether q(theta) follows the full natural gradient [2]_ or the one that ignores that the
        local posterior moves with it [1]_. Training with ``beta`` or ``capacity`` uses the latter.
    implicit_gradient : {'cg', 'richardson', 'none', 'unrolled'}, default='cg'
        Gradient of the local fixed point: conjugate gradients, the Richardson iteration of [2]_,
        no linear solve, or differentiation through all updates.
    max_updates : int, default=50
        Most block updates of the local posterior of a row.
    n_starts : int, default=10
        Starts of variational Bayes for the mixture in the initialisation.
    n_starting_components : int or None, default=None
        Components that training begins with; ``None`` means ``n_components``. Those beyond
        ``n_components`` are removed one by one in the first half of training, while the networks
        bend the latent space. Twice ``n_components`` keeps strongly curved clusters from sharing
        a component, and takes longer.
    prune : bool, default=True
        Whether components are removed, after the initialisation and every ten epochs, where the
        bound with one component less is at least as high; in the first half of training it may be
        a little lower. Without it, components that the data do not need end with small weights.
    pretraining_iter : int, default=100
        Most epochs with a single component before that, if there are hidden layers. They end
        early where the bound converges, and decide more than later ones what becomes a cluster.
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
        interrupted; see the user guide on :ref:`checkpoints <checkpoints>`.
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
    n_components_ : int
        Number of components, at most ``n_components``.
    weights_ : ndarray of shape (n_components_,)
        Expected weights, in decreasing order after `fit`.
    means_ : ndarray of shape (n_components_, latent_dim)
        Expected means, in the latent space; `inverse_transform` decodes them.
    covariances_ : ndarray of shape (n_components_, latent_dim, latent_dim)
        Inverses of the expected precisions.
    lower_bound_ : float
        Bound on the log evidence of the training rows, in nats per row and in the units of X.
    lower_bounds_ : ndarray of shape (n_iter_,)
        Bound in each epoch, as met in training.
    history_ : dict of str to ndarray of shape (n_iter_,)
        The bound and its terms in each epoch.
    n_iter_ : int
        Epochs that were run.
    converged_ : bool
        Whether training ended because the bound stopped rising, or a callback said so.
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
    VAE : The same networks with a standard normal prior.
    sklearn.mixture.BayesianGaussianMixture : The mixture without networks.

    Notes
    -----
    Compare ``n_components``, ``latent_dim`` and other choices by ``lower_bound_``, or by `score`
    on held-out rows.

    References
    ----------
    .. [1] Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural
       networks for structured representations and fast inference", NeurIPS 2016.
    .. [2] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with
       structured discrete representations", NeurIPS 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksvae import SVAEGaussianMixture
    >>> X = load_iris().data
    >>> mixture = SVAEGaussianMixture(3, latent_dim=2, max_iter=30, tol=0.1, random_state=0)
    >>> labels = mixture.fit_predict(X)
    >>> labels.shape, mixture.means_.shape  # two species overlap: the bound has them as one
    ((150,), (2, 2))
    """

    _parameter_constraints: dict = {
        **RowSVAE._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "weight_concentration_prior": [Interval(Real, 0, None, closed="neither"), None],
        "mean_precision_prior": [Interval(Real, 0, None, closed="neither"), None],
        "mean_prior": ["array-like", None],
        "degrees_of_freedom_prior": [Interval(Real, 0, None, closed="neither"), None],
        "covariance_prior": ["array-like", None],
        "natural_gradient": [StrOptions({"unbiased", "biased"})],
        "implicit_gradient": [StrOptions({"cg", "richardson", "none", "unrolled"})],
        "max_updates": [Interval(Integral, 1, None, closed="left")],
        "n_starts": [Interval(Integral, 1, None, closed="left")],
        "n_starting_components": [Interval(Integral, 1, None, closed="left"), None],
        "prune": ["boolean"],
        "pretraining_iter": [Interval(Integral, 0, None, closed="left")],
    }
    _graphical_name = "mixture"
    _architecture_names = (*RowSVAE._architecture_names, "n_components")

    def __init__(
        self,
        n_components=1,
        *,
        latent_dim=None,
        hidden_layer_sizes=(100,),
        activation="relu",
        likelihood="gaussian",
        standardize=True,
        weight_concentration_prior=None,
        mean_precision_prior=None,
        mean_prior=None,
        degrees_of_freedom_prior=None,
        covariance_prior=None,
        n_draws=1,
        beta=1.0,
        capacity=0.0,
        natural_gradient="unbiased",
        implicit_gradient="cg",
        max_updates=50,
        n_importance=64,
        n_starts=10,
        n_starting_components=None,
        prune=True,
        pretraining_iter=100,
        solver="adam",
        learning_rate_init=0.005,
        batch_size="auto",
        max_iter=200,
        tol=1e-3,
        n_iter_no_change=30,
        early_stopping=False,
        validation_fraction=0.1,
        n_init=1,
        warm_start=False,
        checkpoint=None,
        total_samples=None,
        device="cpu",
        verbose=0,
        random_state=None,
    ):
        self.n_components = n_components
        self.latent_dim = latent_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.standardize = standardize
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.n_draws = n_draws
        self.beta = beta
        self.capacity = capacity
        self.natural_gradient = natural_gradient
        self.implicit_gradient = implicit_gradient
        self.max_updates = max_updates
        self.n_importance = n_importance
        self.n_starts = n_starts
        self.n_starting_components = n_starting_components
        self.prune = prune
        self.pretraining_iter = pretraining_iter
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_init = n_init
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.total_samples = total_samples
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    # ---- fit ----

    def _check_training_data(self, X, reset: bool):
        X, likelihood = super()._check_training_data(X, reset)
        if self._n_starting() < self.n_components:
            raise ValueError(
                f"n_starting_components={self.n_starting_components} must be at least "
                f"n_components={self.n_components}."
            )
        if reset and X.shape[0] < self._n_starting():
            name = "n_components" if self.n_starting_components is None else "n_starting_components"
            raise ValueError(
                f"{name}={self._n_starting()} needs at least as many samples, but X has "
                f"n_samples = {X.shape[0]}. Lower {name} or pass more rows."
            )
        self._check_priors(self._checked_latent_dim(X.shape[1]))
        return X, likelihood

    def _check_priors(self, dim: int) -> None:
        if self.mean_prior is not None:
            checked_numbers(self.mean_prior, (dim,), "mean_prior")
        if self.covariance_prior is not None:
            checked_covariance(self.covariance_prior, dim, "covariance_prior")
        dof = self.degrees_of_freedom_prior
        if dof is not None and dof <= dim - 1:
            raise ValueError(
                f"degrees_of_freedom_prior must exceed latent_dim - 1 = {dim - 1}, got {dof}."
            )

    def _min_rows(self) -> int:
        return max(2, self._n_starting())

    def _n_starting(self) -> int:
        return self.n_starting_components or self.n_components

    def _fixed_point_settings(self, to_train: bool) -> FixedPointSettings:
        # In training, what these leave of rows that hesitate between components is 1e-5 of the
        # gradient in most minibatches and 1e-3 at worst, far below its sampling noise of 5e-2.
        precise = {"tol": 1e-6}
        quick = {"tol": 3e-3, "solver_tol": 3e-2, "max_solver_steps": 3}
        return FixedPointSettings(
            max_updates=self.max_updates,
            gradient=self.implicit_gradient,
            **(quick if to_train else precise),
        )

    def _initial_graphical(self, latent_dim: int, like: Tensor) -> GaussianMixtureModel:
        """One component, so that pre-training assumes no clusters."""
        eye = torch.eye(latent_dim, dtype=like.dtype, device=like.device)
        return GaussianMixtureModel(
            MixturePrior.symmetric(1, 1.0, eye.new_zeros(latent_dim), 1.0, eye, float(latent_dim))
        )

    def _n_initial_epochs(self) -> int:
        # With one component, what would be pre-trained is what is trained.
        needed = self._n_starting() > 1 and checked_layer_sizes(self.hidden_layer_sizes)
        return self.pretraining_iter if needed else 0

    def _initialize(
        self,
        model: StructuredVAE,
        rows: Rows,
        generator: torch.Generator,
        random_state: np.random.RandomState,
        on_epoch_end: Callable[[int, EpochRecord], bool],
    ) -> None:
        sample, weight = sample_rows(rows, random_state)
        potentials = _potentials(model, sample)
        with torch.no_grad():
            points = sample.encoded @ model.encoder.skip
            noise = torch.diag(1.0 / potentials.precision.mean(0))
            covariance = points.mT @ points / len(sample) + noise
        single = MixturePrior.symmetric(
            1, 1.0, points.mean(0), 1.0, covariance, float(points.shape[1])
        )
        model.graphical = GaussianMixtureModel(single)
        search = {"tol": _VB_TOL, "weight": weight}
        fit_mixture(model.graphical, potentials, model.settings, max_iter=20, **search)
        if self._n_initial_epochs():
            self._pretrain(model, rows, self.pretraining_iter, generator, on_epoch_end)
            potentials = _potentials(model, sample)
        model.graphical = search_mixture(
            self._prior(model),
            potentials,
            model.settings,
            n_starts=self.n_starts,
            max_iter=_VB_ITER,
            random_state=random_state,
            **search,
        )

    def _prior(self, model: StructuredVAE) -> MixturePrior:
        """Prior over the mixture, data-dependent where the user left it open."""
        _, means, covariances = model.graphical.point_parameters()
        dim = means.shape[-1]
        mean, covariance = means[0], covariances[0]
        if self.mean_prior is not None:
            mean = mean.new_tensor(checked_numbers(self.mean_prior, (dim,), "mean_prior"))
        if self.covariance_prior is not None:
            covariance = mean.new_tensor(
                checked_covariance(self.covariance_prior, dim, "covariance_prior")
            )
        dof = dim if self.degrees_of_freedom_prior is None else self.degrees_of_freedom_prior
        concentration = self.weight_concentration_prior
        return MixturePrior.symmetric(
            self._n_starting(),
            1.0 / self.n_components if concentration is None else float(concentration),
            mean,
            1.0 if self.mean_precision_prior is None else float(self.mean_precision_prior),
            covariance,
            float(dof),
        )

    def _moves(
        self, model: StructuredVAE, rows: Rows, random_state: np.random.RandomState
    ) -> Moves:
        return removal_moves(
            model,
            rows,
            n_components=self.n_components,
            prune=self.prune,
            max_iter=self.max_iter,
            random_state=random_state,
        )

    def _finish(self, model: StructuredVAE, rows: Rows) -> None:
        """Order components by weight."""
        remove_down_to(model, rows, self.n_components)
        weights = model.graphical.posterior.weights.concentration
        model.graphical = model.graphical.select(weights.argsort(descending=True, stable=True))

    def _graphical_attributes(self, graphical: GaussianMixtureModel) -> dict[str, np.ndarray]:
        names = ("weights_", "means_", "covariances_")
        values = (value.cpu().numpy().copy() for value in graphical.point_parameters())
        return {"n_components_": graphical.n_components, **dict(zip(names, values, strict=True))}

    # ---- after the fit ----

    def predict_proba(self, X):
        """Posterior probability of each component.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        responsibilities : ndarray of shape (n_samples, n_components_)
            ``q(k)`` of each row.
        """
        return self._collect(X, _responsibilities)

    def predict(self, X):
        """Most probable component of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Indices into ``weights_``; 0 is the heaviest component.
        """
        return self._collect(X, lambda model, rows: _responsibilities(model, rows).argmax(1))

    def fit_predict(self, X, y=None):
        """Fit, then `predict` the same rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        y : Ignored
            Not used, present for API consistency by convention.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            As from ``fit(X).predict(X)``.
        """
        return self.fit(X, y).predict(X)

    def sample(self, n_samples=1):
        """Draw rows from the model.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows, in the units of X.
        y : ndarray of shape (n_samples,)
            Component of each.
        """
        return self._sample(n_samples)


def _responsibilities(model: StructuredVAE, rows: Rows) -> Tensor:
    return model.graphical.responsibilities(model.encode(rows), model.settings)


def _potentials(model: StructuredVAE, rows: Rows) -> Potentials:
    with torch.no_grad():
        return model.encode(rows)
