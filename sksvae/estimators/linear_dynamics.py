# SPDX-License-Identifier: BSD-3-Clause
"""Structured VAE with linear dynamics over its latents."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from sksvae.estimators.dynamics_fit import DynamicsFit
from sksvae.estimators.linear_predictions import LinearPredictions
from sksvae.estimators.validation import checked_covariance, checked_numbers
from sksvae.graphical import LinearDynamicsModel
from sksvae.sequence_objective import SequenceRows, SequenceVAE
from sksvae.training import EpochRecord


class SVAELinearDynamics(DynamicsFit, LinearPredictions):
    """Linear dynamical system over the latents of a variational autoencoder.

    ``z_1 ~ N(mu_0, Sigma_0)``, ``z_t ~ N(A z_{t-1} + b, Q)``, ``x_t ~ p(x | decoder(z_t))``, with
    conjugate priors on the dynamics and their posterior q(theta) learned along with the networks,
    under one bound ([1]_, [2]_ example 3). Inference over whole sequences is exact given the
    potentials of the encoder. Without hidden layers the model is a Bayesian linear-Gaussian state
    space model, the one of the Kalman filter.

    Parameters
    ----------
    latent_dim : int or None, default=None
        Dimension of the latents; ``None`` means 10. It may exceed the number of features: what a
        single row does not tell, such as a velocity, is inferred from its neighbours.
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
    rows : {'auto', 'consecutive', 'independent'}, default='auto'
        What the rows of a table without groups are: one sequence in the order of time, or
        sequences of one step each. ``'auto'`` tests for serial dependence and warns if it finds
        none.
    sequence_length : int, default=100
        Most steps of a window in training; longer sequences are cut. After training, sequences
        are never cut.
    transition_precision_prior : float or None, default=None
        Pseudo-count of steps behind the prior mean of ``[A b]``, which is zero; ``None``: of 1,
        0.1, 0.01 and 0.001 the one with the best bound before the networks are trained.
    noise_covariance_prior : float, array-like or None, default=None
        Scale matrix of the inverse Wishart over ``Q``, of shape (latent_dim, latent_dim), or what
        to multiply the identity by; ``None``: 0.1, or 0.01 and 0.0001 with the last two of these
        counts. Latents have about unit variance.
    degrees_of_freedom_prior : float or None, default=None
        Degrees of freedom of both inverse Wisharts, above ``latent_dim - 1``; ``None`` means
        ``latent_dim + 2``.
    n_draws : int, default=1
        Monte Carlo draws per sequence and training step.
    beta : float, default=1.0
        Weight of the local KL in training (beta-VAE). 1 is the bound itself.
    capacity : float, default=0.0
        Training penalises ``beta * |KL - capacity|``, in nats per row.
    natural_gradient : {'unbiased', 'biased'}, default='unbiased'
        Whether q(theta) follows the full natural gradient [2]_ or the one that ignores that the
        local posterior moves with it [1]_. Training with ``beta`` or ``capacity`` uses the latter.
    solver : {'adam', 'muon'}, default='adam'
        How the networks learn. ``'muon'`` gives weight matrices orthogonal steps and leaves the
        rest to Adam: slower per step by a third, and faster by far where much is in fine detail
        of precise observations.
    learning_rate_init : float, default=0.005
        Step size of the networks at the start; it falls to zero along a half cosine.
    batch_size : int or 'auto', default='auto'
        Steps per minibatch, in whole windows; ``'auto'``: a fiftieth of all, but from 500 to 8,000.
    max_iter : int, default=100
        Most epochs.
    tol : float, default=1e-3
        Least improvement of the bound, in nats per row and averaged over the last
        ``n_iter_no_change`` epochs, that counts as one.
    n_iter_no_change : int, default=20
        Epochs without improvement before training stops.
    early_stopping : bool, default=False
        Whether improvement is judged on held-out sequences (or on a stretch of the only one), and
        the best model on them kept.
    validation_fraction : float, default=0.1
        Share held out for ``early_stopping``.
    n_init : int, default=1
        Runs from different seeds; the one with the best bound is kept.
    warm_start : bool, default=False
        Whether `fit` continues from the last fit.
    checkpoint : str, path or None, default=None
        File in which `fit` keeps its state while it runs, and from which it goes on if it was
        interrupted; see the user guide on :ref:`checkpoints <checkpoints>`.
    total_samples : int or None, default=None
        Steps of the data set that `partial_fit` sees in pieces; ``None``: those seen so far.
    device : str, default='cpu'
        PyTorch device.
    verbose : int, default=0
        1 prints every tenth epoch, 2 every epoch.
    random_state : int, RandomState instance or None, default=None
        Source of randomness; an int makes fits repeatable.

    Attributes
    ----------
    transition_matrix_ : ndarray of shape (latent_dim, latent_dim)
        Expected ``A``.
    offset_ : ndarray of shape (latent_dim,)
        Expected ``b``.
    noise_covariance_ : ndarray of shape (latent_dim, latent_dim)
        Inverse of the expected precision of the steps.
    initial_mean_ : ndarray of shape (latent_dim,)
        Expected mean of the first latent.
    initial_covariance_ : ndarray of shape (latent_dim, latent_dim)
        Inverse of its expected precision.
    spectral_radius_ : float
        Largest modulus of an eigenvalue of ``transition_matrix_``; from 1 on the dynamics are not
        stationary, and forecasts grow without bound.
    rows_ : {'consecutive', 'independent'}
        What the rows of a table without groups were taken for, and will be.
    lower_bound_ : float
        Bound on the log evidence of the training windows, in nats per row and in the units of X.
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
        Steps that the model was trained on.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had names that are all strings.

    See Also
    --------
    SVAEGaussianMixture : For rows without order.
    sksvae.sequences.read_sequences : The forms that X may have.

    Notes
    -----
    The start is a linear-Gaussian state space model, found from lagged correlations and
    expectation maximisation (`sksvae.state_space`), in coordinates where the encoder can express
    it; then q(theta) alone is fitted, then everything.

    References
    ----------
    .. [1] Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural
       networks for structured representations and fast inference", NeurIPS 2016.
    .. [2] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with
       structured discrete representations", NeurIPS 2023.

    Examples
    --------
    >>> from sksvae import SVAELinearDynamics
    >>> from sksvae.datasets import make_bouncing_dot
    >>> X, _ = make_bouncing_dot(600, random_state=0)
    >>> dynamics = SVAELinearDynamics(6, max_iter=20, tol=0.1, random_state=0).fit(X[:500])
    >>> mean, std = dynamics.forecast(X[:500], n_steps=100)
    >>> mean.shape
    (100, 12)
    >>> bool(((mean - X[500:]) ** 2).mean() < 0.5 * X.var(0).mean())
    True
    """

    _graphical_name = "linear_dynamics"

    def __init__(
        self,
        latent_dim=None,
        *,
        hidden_layer_sizes=(100,),
        activation="relu",
        likelihood="gaussian",
        standardize=True,
        rows="auto",
        sequence_length=100,
        transition_precision_prior=None,
        noise_covariance_prior=None,
        degrees_of_freedom_prior=None,
        n_draws=1,
        beta=1.0,
        capacity=0.0,
        natural_gradient="unbiased",
        solver="adam",
        learning_rate_init=0.005,
        batch_size="auto",
        max_iter=100,
        tol=1e-3,
        n_iter_no_change=20,
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
        self.latent_dim = latent_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.standardize = standardize
        self.rows = rows
        self.sequence_length = sequence_length
        self.transition_precision_prior = transition_precision_prior
        self.noise_covariance_prior = noise_covariance_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.n_draws = n_draws
        self.beta = beta
        self.capacity = capacity
        self.natural_gradient = natural_gradient
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

    def _initialize(
        self,
        model: SequenceVAE,
        rows: SequenceRows,
        generator: torch.Generator,
        random_state: np.random.RandomState,
        on_epoch_end: Callable[[int, EpochRecord], bool],
    ) -> None:
        self._fit_linear_dynamics(model, rows)

    def _graphical_attributes(self, graphical: LinearDynamicsModel) -> dict[str, np.ndarray]:
        fields = graphical.point_parameters()._asdict()
        attributes = {f"{name}_": value.cpu().numpy().copy() for name, value in fields.items()}
        return {**attributes, "spectral_radius_": graphical.spectral_radius}

    # ---- steering ----

    def replace_dynamics(self, *, transition_matrix=None, offset=None, noise_covariance=None):
        """Copy of the estimator with edited dynamics.

        Parameters
        ----------
        transition_matrix : array-like of shape (latent_dim, latent_dim) or None, default=None
            New ``transition_matrix_``; ``None`` keeps the one there is.
        offset : array-like of shape (latent_dim,) or None, default=None
            New ``offset_``.
        noise_covariance : array-like of shape (latent_dim, latent_dim) or None, default=None
            New ``noise_covariance_``, symmetric positive definite.

        Returns
        -------
        edited : SVAELinearDynamics
            Whose `forecast`, `transform` and `sample` follow the new dynamics. This estimator
            stays as it is.

        References
        ----------
        van den Heuvel, master thesis on the SVAE, section 6.2.3.
        """
        check_is_fitted(self)
        dim = self.latent_dim_
        edits = {}
        if transition_matrix is not None:
            edits["transition_matrix"] = checked_numbers(
                transition_matrix, (dim, dim), "transition_matrix"
            )
        if offset is not None:
            edits["offset"] = checked_numbers(offset, (dim,), "offset")
        if noise_covariance is not None:
            edits["noise_covariance"] = checked_covariance(
                noise_covariance, dim, "noise_covariance"
            )
        return self._edited(lambda dynamics: dynamics.replace_dynamics(**edits))
