# SPDX-License-Identifier: BSD-3-Clause
"""Encoder and decoder: multilayer perceptrons around linear skip connections.

The skip connections start as a partial isometry onto the principal axes of the data and the
nonlinear parts near zero, so that training starts from a linear model whose latents have the
scale of the data ([P] app. A.5, [T] 6.1). Without hidden layers the linear model is all there is.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# In place: what they are applied to, a product just made, is not needed for its gradient.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "logistic": torch.sigmoid_,
    "tanh": torch.tanh_,
    "relu": torch.relu_,
}

_NEAR_ZERO = 1e-2  # factor on the last layer of the nonlinear part at the start
_LOG_PRECISION_BOUND = 30.0  # exp(+-30) stays far from overflow in float32, even when squared


class _Linear(nn.Linear):
    """Without first weights, which `MLP.reset` draws.

    `torch.nn.utils.skip_init` would do, but imports half a second's worth of modules.
    """

    def reset_parameters(self) -> None:
        pass


class MLP(nn.Module):
    """Hidden layers and a linear output without bias; zero if there are no hidden layers.

    Parameters
    ----------
    n_inputs : int
        Size of the input.
    hidden_layer_sizes : sequence of int
        Sizes of the hidden layers.
    n_outputs : int
        Size of the output.
    activation : {'identity', 'logistic', 'tanh', 'relu'}
        As in `MLPRegressor`.
    dtype : torch.dtype
        Type of the weights.

    Examples
    --------
    >>> import torch
    >>> from sksvae.networks import MLP
    >>> net = MLP(3, (4,), 2, "relu", torch.float32)
    >>> net.reset(torch.Generator().manual_seed(0))
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        n_inputs: int,
        hidden_layer_sizes: Sequence[int],
        n_outputs: int,
        activation: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        sizes = [n_inputs, *hidden_layer_sizes]
        self.n_outputs = n_outputs
        self.activation = ACTIVATIONS[activation]
        self.gain = 2.0 if activation == "logistic" else 6.0  # as in MLPRegressor
        self.hidden = nn.ModuleList(
            _Linear(n_in, n_out, dtype=dtype) for n_in, n_out in itertools.pairwise(sizes)
        )
        self.output = (
            _Linear(sizes[-1], n_outputs, bias=False, dtype=dtype) if hidden_layer_sizes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_inputs) to (..., n_outputs)."""
        if self.output is None:
            return x.new_zeros(*x.shape[:-1], self.n_outputs)
        # Of several leading axes a layer would return a view, and autograd would copy gradients of
        # what is changed in place behind one.
        hidden = x.reshape(-1, x.shape[-1])
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        return self.output(hidden).view(*x.shape[:-1], self.n_outputs)

    def reset(self, generator: torch.Generator) -> None:
        """Draw new weights: Glorot uniform, the last layer near zero."""
        if self.output is None:
            return
        with torch.no_grad():
            for layer in (*self.hidden, self.output):
                n_out, n_in = layer.weight.shape
                bound = math.sqrt(self.gain / (n_in + n_out))
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
            self.output.weight.mul_(_NEAR_ZERO)


class Encoder(nn.Module):
    """Rows to Gaussian potentials ``(r, R)``, with ``r = R m``.

    ``m = x W + f(x)`` and ``log R = a + g(x)``, where ``(f, g)`` is one perceptron. Writing ``r``
    through ``m`` makes the linear model exact: the posterior of factor analysis has ``m`` linear
    and ``R`` constant.

    Parameters
    ----------
    n_features : int
        Features of a row.
    hidden_layer_sizes : sequence of int
        Sizes of the hidden layers.
    latent_dim : int
        Dimension of the latents.
    activation : str
        Key of `ACTIVATIONS`.
    dtype : torch.dtype
        Type of the weights.

    Examples
    --------
    >>> import torch
    >>> from sksvae.networks import Encoder
    >>> encoder = Encoder(3, (), 2, "relu", torch.float32)
    >>> encoder.reset(torch.eye(3)[:, :2], 4.0, torch.Generator())
    >>> encoder(torch.tensor([[1.0, 2.0, 3.0]]))[0]
    tensor([[4., 8.]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        n_features: int,
        hidden_layer_sizes: Sequence[int],
        latent_dim: int,
        activation: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.skip = nn.Parameter(torch.empty(n_features, latent_dim, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(latent_dim, dtype=dtype))
        self.log_precision = nn.Parameter(torch.empty(latent_dim, dtype=dtype))
        self.mlp = MLP(n_features, hidden_layer_sizes, 2 * latent_dim, activation, dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows (..., n_features) to ``(r, R)``, each (..., latent_dim)."""
        nonlinear_mean, nonlinear_precision = self.mlp(x).split(self.latent_dim, -1)
        mean = nn.functional.linear(x, self.skip.mT, self.bias) + nonlinear_mean
        log_precision = self.log_precision + nonlinear_precision
        bound = _LOG_PRECISION_BOUND
        precision = torch.exp(bound * torch.tanh(log_precision / bound))
        return precision * mean, precision

    def reset(self, axes: Tensor, precision: Tensor | float, generator: torch.Generator) -> None:
        """Start from a linear encoder.

        Parameters
        ----------
        axes : Tensor of shape (n_features, latent_dim)
            Columns to project on.
        precision : float or Tensor of shape (latent_dim,)
            Precision of the potentials.
        generator : torch.Generator
            For the weights of the nonlinear part.
        """
        bound = _LOG_PRECISION_BOUND
        with torch.no_grad():
            self.skip.copy_(axes)
            self.bias.zero_()
            ratio = torch.as_tensor(precision, dtype=axes.dtype).log() / bound
            self.log_precision.copy_(bound * torch.atanh(ratio.clamp(-0.99, 0.99)))
        self.mlp.reset(generator)


class Decoder(nn.Module):
    """Latents to the outputs that a likelihood takes.

    The first output of each feature is ``z W + b + f(z)``, further ones (such as a log-variance)
    ``c + g(z)``, where ``(f, g)`` is one perceptron.

    Parameters
    ----------
    latent_dim : int
        Dimension of the latents.
    hidden_layer_sizes : sequence of int
        Sizes of the hidden layers, from the latents on.
    n_features : int
        Number of features.
    n_outputs : int
        Outputs per feature.
    activation : str
        Key of `ACTIVATIONS`.
    dtype : torch.dtype
        Type of the weights.

    Examples
    --------
    >>> import torch
    >>> from sksvae.networks import Decoder
    >>> decoder = Decoder(2, (), 3, 1, "relu", torch.float32)
    >>> decoder.reset(torch.eye(3)[:, :2], torch.zeros(0, 3), torch.Generator())
    >>> decoder(torch.tensor([[1.0, 2.0]])).detach()
    tensor([[[1., 2., 0.]]])
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_layer_sizes: Sequence[int],
        n_features: int,
        n_outputs: int,
        activation: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.shape = (n_outputs, n_features)
        self.skip = nn.Parameter(torch.empty(latent_dim, n_features, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(n_outputs, n_features, dtype=dtype))
        self.mlp = MLP(latent_dim, hidden_layer_sizes, n_outputs * n_features, activation, dtype)

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., latent_dim) to (..., n_outputs, n_features)."""
        linear = nn.functional.linear(z, self.skip.mT, self.bias[0])
        if len(self.bias) > 1:
            further = self.bias[1:].flatten()
            linear = torch.cat([linear, further.expand(*z.shape[:-1], -1)], -1)
        return (self.mlp(z) + linear).unflatten(-1, self.shape)

    def reset(self, axes: Tensor, further_bias: Tensor, generator: torch.Generator) -> None:
        """Start from a linear decoder.

        Parameters
        ----------
        axes : Tensor of shape (n_features, latent_dim)
            Columns are the reconstructions of unit latents.
        further_bias : Tensor of shape (n_outputs - 1, n_features)
            Start of the outputs after the first.
        generator : torch.Generator
            For the weights of the nonlinear part.
        """
        with torch.no_grad():
            self.skip.copy_(axes.mT)
            self.bias[:1].zero_()
            self.bias[1:].copy_(further_bias)
        self.mlp.reset(generator)
