# SPDX-License-Identifier: BSD-3-Clause
"""A plain variational autoencoder, for comparison and pre-training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sksvae.estimators.rows import RowSVAE
from sksvae.graphical import StandardNormalModel
from sksvae.objective import Rows, StructuredVAE
from sksvae.training import EpochRecord

_AT_ONCE = 16_384  # rows that are encoded together at the start
_LEAST_PRECISION = 1e-3  # of potentials at the start, against the prior's of one


class VAE(RowSVAE):
    """Variational autoencoder with a standard normal prior.

    ``z ~ N(0, I)``, ``x | z ~ p(x | decoder(z))``, and a Gaussian posterior made of the prior and
    diagonal potentials from the encoder ([1]_, example 1). It shares networks, likelihoods and
    training with the structured estimators, so that a comparison isolates the latent structure.

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
    SVAEGaussianMixture : A mixture over the latents.

    References
    ----------
    .. [1] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with
       structured discrete representations", NeurIPS 2023.
    .. [2] Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sksvae import VAE
    >>> X = load_iris().data
    >>> vae = VAE(latent_dim=2, max_iter=30, tol=0.1, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (150, 2)
    """

    _graphical_name = "standard_normal"

    def __init__(
        self,
        latent_dim=None,
        *,
        hidden_layer_sizes=(100,),
        activation="relu",
        likelihood="gaussian",
        standardize=True,
        n_draws=1,
        beta=1.0,
        capacity=0.0,
        n_importance=64,
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
        self.latent_dim = latent_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.standardize = standardize
        self.n_draws = n_draws
        self.beta = beta
        self.capacity = capacity
        self.n_importance = n_importance
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

    def _initial_graphical(self, latent_dim: int, like: Tensor) -> StandardNormalModel:
        return StandardNormalModel(latent_dim, like.dtype)

    def _initialize(
        self,
        model: StructuredVAE,
        rows: Rows,
        generator: torch.Generator,
        random_state: np.random.RandomState,
        on_epoch_end: Callable[[int, EpochRecord], bool],
    ) -> None:
        """Scale the linear start so that the latents have unit variance."""
        # The nonlinear part adds a little to the variance: the second round takes that off.
        for _ in range(2):
            with torch.no_grad():
                square = precision = 0.0
                for part in rows.parts(_AT_ONCE):
                    r, R = model.encode(part)
                    square = square + (r / R).square().sum(0) / len(rows)
                    precision = precision + R.sum(0) / len(rows)
                # Along an axis without variation the posterior starts at the prior.
                scale = square.sqrt().maximum((_LEAST_PRECISION / precision).sqrt())
                model.encoder.skip.div_(scale)
                # A latent that is `scale` times smaller is that much better known.
                model.encoder.log_precision.add_(2.0 * scale.log())
                model.decoder.skip.mul_(scale[:, None])

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
            Zeros: there is a single component, as in ``GaussianMixture(1)``.
        """
        return self._sample(n_samples)
