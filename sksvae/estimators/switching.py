# SPDX-License-Identifier: BSD-3-Clause
"""Structured VAE with switching linear dynamics over its latents."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from sksvae.estimators.state_moves import state_weights
from sksvae.estimators.state_predictions import StatePredictions
from sksvae.estimators.switching_fit import SwitchingFit
from sksvae.graphical import SwitchingDynamicsModel


class SVAESwitchingLDS(SwitchingFit, StatePredictions):
    """Switching linear dynamical system over the latents of a variational autoencoder.

    ``k_t ~ Cat(pi_{k_{t-1}})``, ``z_t ~ N(A_k z_{t-1} + b_k, Q_k)`` with ``k = k_t``, ``x_t ~ p(x |
    decoder(z_t))``, with conjugate priors on everything but the networks, whose posterior q(theta)
    is learned along with them, under one bound ([1]_, [2]_ example 4). Inference is structured mean
    field between the chain of latents and that of states. It segments recordings: `predict` gives
    the state of each row.

    Parameters
    ----------
    n_states : int, default=8
        Most discrete states.
    latent_dim : int or None, default=None
        Dimension of the latents; ``None``: of 16, 8, 4 and 2 the one with the best bound before
        training, on at most 20,000 steps, and no more than one for ten steps. It may exceed the
        number of features: what a single row does not tell, such as a velocity, is inferred from
        its neighbours. States that share too few latents move in ways that no linear dynamics
        describe, and with too many the dynamics of a single state fit everything.
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
        Most steps of a window in training; longer sequences are cut.
    transition_precision_prior : float or None, default=None
        Pseudo-count of steps behind the prior mean of ``[A_k b_k]``, which is zero; ``None``: of 1,
        0.1, 0.01 and 0.001 the one with the best bound before states and networks are trained.
        If the two priors below are ``None``, too, and nothing is pretrained, priors around the
        linear dynamics of all steps, worth 1 to 16 of them, compete with these [4]_.
    noise_covariance_prior : float, array-like or None, default=None
        Scale matrix of the inverse Wishart over ``Q_k``, of shape (latent_dim, latent_dim), or what
        to multiply the identity by; ``None``: 0.1, or 0.01 and 0.0001 with the last two of these
        counts, if a prior around zero is chosen. Latents have about unit variance.
    noise_covariance_type : {'full', 'tied'}, default='full'
        Whether each state has its own ``Q_k``, or all states share one: where states differ in how
        they move but not in how precisely. Steps that fit badly cannot be given to a state of large
        noise then.
    degrees_of_freedom_prior : float or None, default=None
        Degrees of freedom of the inverse Wisharts, above ``latent_dim - 1``; ``None`` means
        ``latent_dim + 2``, if a prior around zero is chosen.
    transition_concentration_prior : float, default=0.5
        Dirichlet pseudo-count of transitions from each state to each other one.
    stickiness_prior : float, default=100.0
        Dirichlet pseudo-count of transitions from each state to itself.
    n_draws : int, default=1
        Monte Carlo draws per sequence and training step.
    beta : float, default=1.0
        Weight of the local KL in training (beta-VAE). 1 is the bound itself.
    capacity : float, default=0.0
        Training penalises ``beta * |KL - capacity|``, in nats per row.
    natural_gradient : {'unbiased', 'biased'}, default='unbiased'
        Whether q(theta) follows the full natural gradient [2]_ or the one that ignores that the
        local posterior moves with it [1]_. Training with ``beta`` or ``capacity`` uses the latter.
    implicit_gradient : {'cg', 'richardson', 'none', 'unrolled'}, default='cg'
        Gradient of the fixed point of the block updates: conjugate gradients, the Richardson
        iteration of [2]_, none at all, or differentiation through all updates.
    max_updates : int, default=20
        Most rounds of block updates of a sequence.
    n_starts : int, default=5
        Starts of the autoregressive hidden Markov model that initialises states and dynamics.
    pretraining_iter : int, default=0
        Most epochs of training on single steps before that, as a variational autoencoder without
        dynamics, if there are hidden layers: where the observations bend so much that states show
        only once the networks have straightened them. An invertible map then gives the latents
        coordinates in which they move evenly, if the steps are enough to tell [3]_. States are
        started three times, and what follows takes a tenth of ``learning_rate_init``.
    solver : {'adam', 'muon'}, default='adam'
        How the networks learn. ``'muon'`` gives weight matrices orthogonal steps and leaves the
        rest to Adam: slower per step by a third, and faster by far where much is in fine detail
        of precise observations.
    learning_rate_init : float, default=0.001
        Step size of the networks at the start; it falls to zero along a half cosine.
    batch_size : int or 'auto', default='auto'
        Steps per minibatch, in whole windows; ``'auto'``: a fiftieth of all, but from 500 to 8,000.
    max_iter : int, default=30
        Most epochs.
    tol : float, default=1e-3
        Least improvement of the bound, in nats per row and averaged over the last
        ``n_iter_no_change`` epochs, that counts as one.
    n_iter_no_change : int, default=10
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
    n_states_ : int
        States that are left: those without use are given up at the end, if the bound agrees.
    state_weights_ : ndarray of shape (n_states_,)
        Share of the training steps in each state, decreasing.
    state_transition_probabilities_ : ndarray of shape (n_states_, n_states_)
        Expected probabilities of the state of a row given that of the row before, which has the
        first axis.
    initial_state_probabilities_ : ndarray of shape (n_states_,)
        Expected probabilities of the state of the first row.
    transition_matrix_ : ndarray of shape (n_states_, latent_dim, latent_dim)
        Expected ``A_k``.
    offset_ : ndarray of shape (n_states_, latent_dim)
        Expected ``b_k``.
    noise_covariance_ : ndarray of shape (n_states_, latent_dim, latent_dim)
        Inverses of the expected precisions of the steps.
    initial_mean_ : ndarray of shape (latent_dim,)
        Expected mean of the first latent.
    initial_covariance_ : ndarray of shape (latent_dim, latent_dim)
        Inverse of its expected precision.
    spectral_radius_ : ndarray of shape (n_states_,)
        Largest modulus of an eigenvalue of each transition matrix.
    rows_ : {'consecutive', 'independent'}
        What the rows of a table without groups were taken for, and will be.
    lower_bound_ : float
        Bound on the log evidence of the training windows, in nats per row and in the units of X.
        Not charged for a prior around the dynamics of all steps, which is fitted: `score` of data
        that were left out compares such fits with others.
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
    SVAELinearDynamics : With a single state.
    SVAEGaussianMixture : For rows without order.
    sksvae.sequences.read_sequences : The forms that X may have.

    Notes
    -----
    The start is that of `SVAELinearDynamics`, or one that ends earlier: where they differ, the one
    with the better bound after 15 epochs of training. On its latents a variational autoregressive
    hidden Markov model is fitted, from several starts, with merges, deletions and births of states
    (`sksvae.autoregressive_hmm`), then q(theta) alone to the potentials of the encoder, then
    everything. Block updates go on from where they ended in the last epoch.

    A sequence of more than 6,000 steps is inferred in pieces of 800 steps, each with 50 further
    steps on both sides, and with more where neighbours do not agree.

    References
    ----------
    .. [1] Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural
       networks for structured representations and fast inference", NeurIPS 2016.
    .. [2] Bendekgey, Hope and Sudderth, "Unbiased learning of deep generative models with
       structured discrete representations", NeurIPS 2023.
    .. [3] Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", ICML
       2019.
    .. [4] Kass and Wasserman, "A reference Bayesian test for nested hypotheses and its relationship
       to the Schwarz criterion", Journal of the American Statistical Association 90(431), 1995.

    Examples
    --------
    >>> from sksvae import SVAESwitchingLDS
    >>> from sksvae.datasets import make_switching_oscillator
    >>> from sksvae.metrics import matched_accuracy
    >>> X, states = make_switching_oscillator(4, random_state=0)
    >>> oscillator = SVAESwitchingLDS(
    ...     4, latent_dim=2, n_starts=1, max_iter=5, tol=0.1, random_state=0)
    >>> labels = oscillator.fit_predict(X)
    >>> matched_accuracy(states.ravel(), labels.ravel()) > 0.8
    True
    """

    _parameter_constraints: dict = {
        **SwitchingFit._parameter_constraints,
        "n_states": [Interval(Integral, 1, None, closed="left")],
        "noise_covariance_type": [StrOptions({"full", "tied"})],
        "transition_concentration_prior": [Interval(Real, 0, None, closed="neither")],
        "stickiness_prior": [Interval(Real, 0, None, closed="neither")],
        "implicit_gradient": [StrOptions({"cg", "richardson", "none", "unrolled"})],
        "max_updates": [Interval(Integral, 1, None, closed="left")],
        "n_starts": [Interval(Integral, 1, None, closed="left")],
        "pretraining_iter": [Interval(Integral, 0, None, closed="left")],
    }
    _graphical_name = "switching_dynamics"
    _architecture_names = ("n_states", *SwitchingFit._architecture_names)

    def __init__(
        self,
        n_states=8,
        *,
        latent_dim=None,
        hidden_layer_sizes=(100,),
        activation="relu",
        likelihood="gaussian",
        standardize=True,
        rows="auto",
        sequence_length=100,
        transition_precision_prior=None,
        noise_covariance_prior=None,
        noise_covariance_type="full",
        degrees_of_freedom_prior=None,
        transition_concentration_prior=0.5,
        stickiness_prior=100.0,
        n_draws=1,
        beta=1.0,
        capacity=0.0,
        natural_gradient="unbiased",
        implicit_gradient="cg",
        max_updates=20,
        n_starts=5,
        pretraining_iter=0,
        solver="adam",
        learning_rate_init=0.001,
        batch_size="auto",
        max_iter=30,
        tol=1e-3,
        n_iter_no_change=10,
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
        self.n_states = n_states
        self.latent_dim = latent_dim
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.standardize = standardize
        self.rows = rows
        self.sequence_length = sequence_length
        self.transition_precision_prior = transition_precision_prior
        self.noise_covariance_prior = noise_covariance_prior
        self.noise_covariance_type = noise_covariance_type
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.transition_concentration_prior = transition_concentration_prior
        self.stickiness_prior = stickiness_prior
        self.n_draws = n_draws
        self.beta = beta
        self.capacity = capacity
        self.natural_gradient = natural_gradient
        self.implicit_gradient = implicit_gradient
        self.max_updates = max_updates
        self.n_starts = n_starts
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

    def _graphical_attributes(self, graphical: SwitchingDynamicsModel) -> dict[str, np.ndarray]:
        point = graphical.point_parameters()
        values = {
            "transition_matrix_": point.transition_matrices,
            "offset_": point.offsets,
            "noise_covariance_": point.noise_covariances,
            "initial_mean_": point.initial_mean,
            "initial_covariance_": point.initial_covariance,
            "initial_state_probabilities_": point.initial_state_probabilities,
            "state_transition_probabilities_": point.state_transition_probabilities,
            "spectral_radius_": point.spectral_radii,
            "state_weights_": state_weights(graphical),
        }
        arrays = {name: value.cpu().numpy().copy() for name, value in values.items()}
        return {**arrays, "n_states_": graphical.n_states}
