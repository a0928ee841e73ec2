# SPDX-License-Identifier: BSD-3-Clause
"""What every latent structure provides to the objective and to the estimators."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from sksvae.inference import FixedPointSettings
from sksvae.inference.block_tridiagonal import ChainMethod

DEFAULT_SETTINGS = FixedPointSettings()


class Potentials(NamedTuple):
    """Gaussian evidence of the encoder, ``log l(z) = r'z - z' diag(R) z / 2``.

    Parameters
    ----------
    precision_mean : Tensor of shape (n_rows, latent_dim) or (n_sequences, n_steps, latent_dim)
        ``r``.
    precision : Tensor of the same shape
        ``R``, positive; zero, as ``r``, where nothing was observed.
    """

    precision_mean: Tensor
    precision: Tensor


@dataclass(frozen=True)
class Posterior:
    """Posterior of the local latents of each row.

    Parameters
    ----------
    mean : Tensor of shape (n_rows, latent_dim)
        ``E[z]``.
    covariance : Tensor of shape (n_rows, latent_dim, latent_dim)
        ``Cov[z]``.
    root : Tensor of shape (n_rows, latent_dim, latent_dim)
        Any ``U`` with ``U U' = Cov[z]``.
    responsibilities : Tensor of shape (n_rows, n_components)
        ``q(k)``; a single column of ones where there is no discrete latent.
    local_kl : Tensor of shape (n_rows,)
        ``E_q[log q(z, k) - E_q(theta) log p(z, k | theta)]``, in nats.
    n_updates : Tensor of shape (n_rows,)
        Rounds of block updates that inference took.
    converged : Tensor of shape (n_rows,)
        Whether they met the tolerance.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import Potentials, StandardNormalModel
    >>> from sksvae.inference import FixedPointSettings
    >>> evidence = Potentials(torch.tensor([[3.0]]), torch.tensor([[2.0]]))
    >>> posterior = StandardNormalModel(1).infer(evidence, (), FixedPointSettings())
    >>> posterior.draw(torch.zeros(1, 1, 1))
    tensor([[[1.]]])
    """

    mean: Tensor
    covariance: Tensor
    root: Tensor
    responsibilities: Tensor
    local_kl: Tensor
    n_updates: Tensor
    converged: Tensor

    @property
    def second_moment(self) -> Tensor:
        """``E[zz']``, of shape (n_rows, latent_dim, latent_dim)."""
        return self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)

    @property
    def variance(self) -> Tensor:
        """Diagonal of ``Cov[z]``, of shape (n_rows, latent_dim)."""
        # By way of the root, which draws need anyway: its gradient comes for little more.
        return self.root.square().sum(-1)

    def draw(self, noise: Tensor) -> Tensor:
        """Reparameterised draws ``E[z] + U eps``.

        Parameters
        ----------
        noise : Tensor of shape (n_draws, n_rows, latent_dim)
            Standard normal numbers.

        Returns
        -------
        Tensor of shape (n_draws, n_rows, latent_dim)
            Draws, differentiable in the posterior.
        """
        return self.mean + (self.root @ noise.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class ChainPosterior:
    """Posterior of the latents of sequences, padded to one length.

    Everything is zero at steps that do not exist.

    Parameters
    ----------
    mean : Tensor of shape (n_sequences, n_steps, latent_dim)
        ``E[z_t]``.
    covariance : Tensor of shape (n_sequences, n_steps, latent_dim, latent_dim)
        ``Cov[z_t]``.
    lag_covariance : Tensor of shape (n_sequences, n_steps - 1, latent_dim, latent_dim)
        ``Cov(z_{t+1}, z_t)``: rows belong to the later step.
    draws : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim)
        Draws of whole sequences, reparameterised; ``n_draws`` is zero where no noise was given.
    local_kl : Tensor of shape (n_sequences,)
        ``E_q[log q - E_q(theta) log p(. | theta)]`` over all local latents, in nats.
    mask : Tensor of bool of shape (n_sequences, n_steps)
        Which steps exist.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import DynamicsPrior, LinearDynamicsModel, Potentials
    >>> model = LinearDynamicsModel(DynamicsPrior.isotropic(2))
    >>> nothing = Potentials(*torch.zeros(2, 1, 5, 2, dtype=torch.float64))
    >>> mask = torch.tensor([[True, True, True, False, False]])
    >>> posterior = model.infer(nothing, model.expected_params(), mask)
    >>> posterior.second_moment.shape, posterior.lag_covariance.shape
    (torch.Size([1, 5, 2, 2]), torch.Size([1, 4, 2, 2]))
    """

    mean: Tensor
    covariance: Tensor
    lag_covariance: Tensor
    draws: Tensor
    local_kl: Tensor
    mask: Tensor

    @property
    def second_moment(self) -> Tensor:
        """``E[z_t z_t']``, of shape (n_sequences, n_steps, latent_dim, latent_dim)."""
        return self.covariance + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)

    @property
    def lag_moment(self) -> Tensor:
        """``E[z_{t+1} z_t']``, of shape (n_sequences, n_steps - 1, latent_dim, latent_dim)."""
        return self.lag_covariance + self.mean[:, 1:, :, None] * self.mean[:, :-1, None, :]


PosteriorT = TypeVar("PosteriorT", Posterior, ChainPosterior)


class ConjugateModel(ABC, Generic[PosteriorT]):
    """What graphical models over rows and over sequences share: their distribution q(theta).

    ``params`` below are tuples of tensors: the expected statistics of q(theta). They are the only
    way in which q(theta) enters an objective, so their gradient is its natural gradient
    [P, app. F].
    """

    latent_dim: int

    @abstractmethod
    def expected_params(self) -> tuple[Tensor, ...]:
        """Expected statistics of q(theta), as leaves that collect gradients.

        Returns
        -------
        tuple of Tensor
            Empty where nothing is learned.
        """

    @abstractmethod
    def prior_kl(self) -> Tensor:
        """``KL(q(theta) || p(theta))`` in nats, without a gradient."""

    @abstractmethod
    def natural_step(self, gradient: Sequence[Tensor], step_size: float) -> None:
        """Move q(theta) along a natural gradient and the pull of its prior.

        Parameters
        ----------
        gradient : sequence of Tensor
            Gradient with respect to `expected_params` of the part of the bound, in nats over all
            rows, that does not include the prior KL.
        step_size : float
            1 is the exact coordinate update where the model is conjugate.
        """

    @abstractmethod
    def total_stats(self, posterior: PosteriorT) -> tuple[Tensor, ...]:
        """Sufficient statistics that rows add to the natural parameters of q(theta).

        They are the gradient of the bound with respect to `expected_params` when the dependence
        of the local posterior on q(theta) is left out: the biased natural gradient of [J].

        Parameters
        ----------
        posterior : Posterior or ChainPosterior
            Of the rows.

        Returns
        -------
        tuple of Tensor
            Sums over the rows, in the order of `expected_params`, without a gradient.
        """

    @abstractmethod
    def coordinate_update(self, total_stats: Sequence[Tensor]) -> None:
        """Set q(theta) to the conjugate posterior given statistics of all rows.

        Parameters
        ----------
        total_stats : sequence of Tensor
            As from `total_stats`, summed over all rows.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything needed to rebuild the model with `from_state`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild a model from `state`.

        Parameters
        ----------
        state : dict of str to Tensor
            As returned by `state`.

        Returns
        -------
        Self
            An equal model.
        """


class GraphicalModel(ConjugateModel[Posterior]):
    """A conjugate graphical model over the latents of independent rows."""

    @abstractmethod
    def infer(
        self, potentials: Potentials, params: tuple[Tensor, ...], settings: FixedPointSettings
    ) -> Posterior:
        """Posterior of the local latents given potentials and expected parameters.

        Parameters
        ----------
        potentials : Potentials
            Evidence for each row.
        params : tuple of Tensor
            As from `expected_params`.
        settings : FixedPointSettings
            How block updates are iterated and differentiated.

        Returns
        -------
        Posterior
            Differentiable in potentials and params.
        """

    @abstractmethod
    def log_predictive(self, z: Tensor) -> Tensor:
        """Log density of new latents, q(theta) integrated out.

        Parameters
        ----------
        z : Tensor of shape (..., latent_dim)
            Points.

        Returns
        -------
        Tensor of shape (...)
            ``log int p(z | theta) q(theta) dtheta``.
        """

    @abstractmethod
    def latent_precision(self, responsibilities: Tensor) -> Tensor:
        """Expected precision of z under the model, without evidence.

        Parameters
        ----------
        responsibilities : Tensor of shape (n_rows, n_components)
            ``q(k)`` of each row.

        Returns
        -------
        Tensor of shape (n_rows, latent_dim, latent_dim)
            What q(k) and q(theta) add to the precision of q(z), without a gradient.
        """

    @abstractmethod
    def sample(self, n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw latents from the model with its fitted parameters.

        Parameters
        ----------
        n_samples : int
            Number of draws.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        z : Tensor of shape (n_samples, latent_dim)
            Latents.
        labels : Tensor of shape (n_samples,)
            Components; zeros where there is no discrete latent.
        """


class SequenceModel(ConjugateModel[ChainPosterior]):
    """A conjugate graphical model over sequences of latents, batched and padded."""

    @abstractmethod
    def infer(
        self,
        potentials: Potentials,
        params: tuple[Tensor, ...],
        mask: Tensor,
        noise: Tensor | None = None,
        method: ChainMethod = "auto",
        settings: FixedPointSettings = DEFAULT_SETTINGS,
        start: Tensor | None = None,
    ) -> ChainPosterior:
        """Posterior of the latents of each sequence given potentials and expected parameters.

        Parameters
        ----------
        potentials : Potentials
            Evidence for each step, of shape (n_sequences, n_steps, latent_dim). A step without an
            observation has a zero potential. What stands at steps that do not exist is not read.
        params : tuple of Tensor
            As from `expected_params`.
        mask : Tensor of bool of shape (n_sequences, n_steps)
            Which steps exist. A step whose predecessor does not exist starts a sequence of its
            own.
        noise : Tensor of shape (n_draws, n_sequences, n_steps, latent_dim), optional
            Standard normal numbers for the draws.
        method : {'auto', 'sequential', 'parallel'}, default='auto'
            Order of elimination, see `sksvae.inference.chain_moments`.
        settings : FixedPointSettings, default=FixedPointSettings()
            How block updates are iterated and differentiated, where inference takes any.
        start : Tensor of shape (n_sequences, n_steps, n_states), optional
            First ``q(k_t)`` of the block updates, where there are states.

        Returns
        -------
        ChainPosterior
            Differentiable in potentials and params.
        """

    @abstractmethod
    def sample(
        self, n_steps: int, n_sequences: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw sequences of latents from the model with its fitted parameters.

        Parameters
        ----------
        n_steps : int
            Length of each sequence.
        n_sequences : int
            Number of sequences.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        z : Tensor of shape (n_sequences, n_steps, latent_dim)
            Latents.
        states : Tensor of shape (n_sequences, n_steps)
            Discrete states; zeros where there are none.
        """
