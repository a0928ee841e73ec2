# SPDX-License-Identifier: BSD-3-Clause
"""The evidence lower bound of a structured VAE.

``log p(X) >= sum_n ( E_q[log p(x_n | z_n)] - KL_n ) - KL(q(theta) || p(theta))`` where ``KL_n`` is
the local divergence ``E_q[log q(z, k) - E_q(theta) log p(z, k | theta)]`` ([J] section 4, [P]
section 3). Nothing is dropped from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sksvae.coordinates import Coordinates
from sksvae.graphical import ChainPosterior, GraphicalModel, Posterior, Potentials, SequenceModel
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.base import Likelihood
from sksvae.networks import Decoder, Encoder

_ENCODED_AT_ONCE = 16_384  # rows, whose hidden layers are in memory together


class Rows(NamedTuple):
    """Rows of data, in the two forms in which the model needs them.

    Parameters
    ----------
    observed : Tensor of shape (n_rows, n_features)
        What the likelihood sees: standardised for real-valued domains, else in its own units.
    encoded : Tensor of shape (n_rows, n_features)
        What the encoder sees: standardised on the link scale.
    """

    observed: Tensor
    encoded: Tensor

    def __len__(self) -> int:
        return self.observed.shape[0]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Leading shape of the latents; its first axis counts what minibatches are made of."""
        return (len(self),)

    def take(self, rows: Tensor | slice) -> "Rows":
        """Select rows by index."""
        observed = self.observed[rows]
        # Both are one where the domain is real-valued.
        return Rows(observed, observed if self.encoded is self.observed else self.encoded[rows])

    def subset(self, rows: Tensor) -> "Rows":
        """Some of the rows, held where these are: here, in memory."""
        return self.take(rows)

    def share(self, rank: int, size: int, noise: Tensor) -> tuple["Rows | None", Tensor]:
        """Rows of one process of several, None for none, and their part of the noise."""
        mine = slice(len(self) * rank // size, len(self) * (rank + 1) // size)
        return (self.take(mine) if mine.start < mine.stop else None), noise[:, mine]

    def remembered(self, share: "Rows | None") -> list[Tensor]:
        """What a process that had this share of the rows has to tell the others: nothing."""
        return []

    def remind(self, remembered: Sequence[Tensor]) -> None:
        """Take in what all processes remember of the rows: nothing."""

    def parts(self, n_rows: int) -> Iterator["Rows"]:
        """All rows in order, at most so many at a time."""
        for start in range(0, len(self), n_rows):
            yield self.take(slice(start, start + n_rows))


@dataclass(frozen=True)
class ELBOTerms:
    """Terms of the bound.

    Parameters
    ----------
    reconstruction : Tensor of shape (n_rows,)
        Monte Carlo estimate of ``E_q[log p(x | z)]``.
    posterior : Posterior or ChainPosterior
        Of the latents, with the local KL.
    """

    reconstruction: Tensor
    posterior: Posterior | ChainPosterior

    @property
    def bound(self) -> Tensor:
        """``reconstruction - local_kl`` of each row, where rows are independent."""
        return self.reconstruction - self.posterior.local_kl

    @property
    def total(self) -> Tensor:
        """Sum of the bounds on all rows."""
        return self.reconstruction.sum() - self.posterior.local_kl.sum()


class StructuredVAE(nn.Module):
    """Networks, likelihood and graphical model under one bound.

    Parameters
    ----------
    n_features : int
        Number of features.
    latent_dim : int
        Dimension of the latents.
    hidden_layer_sizes : sequence of int
        Hidden layers of the encoder; the decoder mirrors them.
    activation : str
        Key of `sksvae.networks.ACTIVATIONS`.
    likelihood : Likelihood
        Observation model.
    graphical : GraphicalModel
        Latent structure.
    link_location, link_scale : Tensor of shape (n_features,)
        Standardisation of the working features, undone on the first output of the decoder where
        the likelihood sees X in its own units.
    settings : FixedPointSettings
        Of local inference.
    """

    link_location: Tensor
    link_scale: Tensor

    def __init__(
        self,
        n_features: int,
        latent_dim: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        likelihood: Likelihood,
        graphical: GraphicalModel | SequenceModel,
        link_location: Tensor,
        link_scale: Tensor,
        settings: FixedPointSettings,
    ) -> None:
        super().__init__()
        dtype = link_location.dtype
        hidden = tuple(hidden_layer_sizes)
        self.encoder = Encoder(n_features, hidden, latent_dim, activation, dtype)
        self.decoder = Decoder(
            latent_dim, hidden[::-1], n_features, likelihood.n_outputs, activation, dtype
        )
        self.likelihood = likelihood
        start = likelihood.init_params(None, n_features, dtype)
        self.likelihood_params = nn.ParameterDict(
            {name: nn.Parameter(value) for name, value in start.items()}
        )
        self.coordinates: Coordinates | None = None  # of the latents, if not those of the networks
        # Each estimator knows which model it is.
        self.graphical: Any = graphical
        self.settings = settings
        self.register_buffer("link_location", link_location)
        self.register_buffer("link_scale", link_scale)

    @property
    def noise_params(self) -> dict[str, Tensor]:
        """Learned parameters of the likelihood."""
        return dict(self.likelihood_params.items())

    def encode(self, rows: Rows) -> Potentials:
        """Potentials of each row."""
        # Stored rows hold nothing themselves.
        if len(rows.encoded) == len(rows) <= _ENCODED_AT_ONCE:
            return self.potentials(rows.encoded)
        parts = [self.potentials(part.encoded) for part in rows.parts(_ENCODED_AT_ONCE)]
        return Potentials(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def potentials(self, encoded: Tensor) -> Potentials:
        """Potentials of what the encoder sees, in the coordinates of the latents."""
        r, R = self.encoder(encoded)
        if self.coordinates is not None:
            r, R = self.coordinates.carry(r, R)
        return Potentials(r, R)

    def decode(self, z: Tensor) -> Tensor:
        """Outputs for the likelihood, of shape (..., n_outputs, n_features)."""
        if self.coordinates is not None:
            z = self.coordinates.inverse(z)
        outputs = self.decoder(z)
        if self.likelihood.standardizes:
            return outputs
        padding = (0, 0, 0, self.likelihood.n_outputs - 1)
        location = nn.functional.pad(self.link_location.unsqueeze(0), padding)
        scale = nn.functional.pad(self.link_scale.unsqueeze(0), padding, value=1.0)
        return torch.addcmul(location, scale, outputs)

    def infer(self, rows: Rows, params: tuple[Tensor, ...] | None = None) -> Posterior:
        """Posterior of the latents of each row."""
        if params is None:
            params = self.graphical.expected_params()
        return self.graphical.infer(self.encode(rows), params, self.settings)

    def log_likelihood(self, rows: Rows, z: Tensor) -> Tensor:
        """``log p(x | z)`` of draws (..., n_rows, latent_dim), summed over features."""
        log_prob = self.likelihood.log_prob(rows.observed, self.decode(z), self.noise_params)
        return log_prob.sum(-1)

    def elbo(self, rows: Rows, params: tuple[Tensor, ...], noise: Tensor) -> ELBOTerms:
        """Bound on each row, the prior KL left out.

        Parameters
        ----------
        rows : Rows
            Data.
        params : tuple of Tensor
            Expected parameters of the graphical model.
        noise : Tensor of shape (n_draws, n_rows, latent_dim)
            Standard normal numbers.

        Returns
        -------
        ELBOTerms
            Differentiable in the networks and in ``params``.
        """
        potentials = self.encode(rows)
        posterior = self.graphical.infer(potentials, params, self.settings)
        draws = posterior.draw(noise)
        reconstruction = self.log_likelihood(rows, draws)
        reconstruction = reconstruction - control_variate(
            potentials, posterior.mean, posterior.variance, draws
        )
        return ELBOTerms(reconstruction.mean(0), posterior)


def control_variate(
    potentials: Potentials, mean: Tensor, variance: Tensor, draws: Tensor
) -> Tensor:
    """``log l(z_s) - E_q[log l(z)]``, per draw: zero on average, in value and in gradient.

    The potentials imitate the likelihood, so the noise of ``log p(x | z_s)`` is nearly that of
    ``log l(z_s)``, and the difference is left with little. What remains to be estimated by
    sampling is ``E_q[log p(x | z) - log l(z)]``, the only part of the bound that needs implicit
    differentiation [P, app. C]. Potentials are held fixed: their own gradient cancels exactly.

    Parameters
    ----------
    potentials : Potentials
        Of each row.
    mean, variance : Tensor of shape (n_rows, latent_dim)
        Marginal moments of each latent under q.
    draws : Tensor of shape (n_draws, n_rows, latent_dim)
        Draws from q.

    Returns
    -------
    Tensor of shape (n_draws, n_rows)
        To be subtracted from the log-likelihood of the draws.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import Potentials
    >>> from sksvae.objective import control_variate
    >>> one = torch.ones(1, 1)
    >>> control_variate(Potentials(one, one), one, one, torch.tensor([[[1.0]], [[2.0]]]))
    tensor([[0.5000],
            [0.0000]])
    """
    r, R = potentials.precision_mean.detach(), 0.5 * potentials.precision.detach()
    # Written about the posterior mean: squares of latents themselves would cancel in float32.
    slope = r - R * (draws + mean)
    return torch.addcmul(R * variance, slope, draws - mean).sum(-1)
