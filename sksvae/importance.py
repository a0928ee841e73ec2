# SPDX-License-Identifier: BSD-3-Clause
"""Log-likelihood of rows by importance sampling, with proposals that do not trust the encoder.

The encoder amortises inference: its posteriors are good where it was trained, and can be far off
for rows unlike the training data, whose importance-weighted bound is then loose by tens of nats.
So half of the draws come from a Laplace approximation at a mode of ``p(z | x)``, which a few
Gauss-Newton steps find from the posterior mean, and half from the posterior itself, which guards
against a mode that misrepresents the rest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sksvae.objective import Rows, StructuredVAE

_N_STEPS = 8
_STEP_SIZES = (1.0, 0.5, 0.2, 0.05)
_SHORT = 0.01  # squared length of a step, in units of the posterior
# Machine epsilons on the diagonal of a correlation matrix. A proposal need not be exact, since the
# weights make up for it, but it must exist for every row.
_JITTER = 100.0


class _Proposal(NamedTuple):
    """Gaussians, one per row: means and factors with ``covariance = factor factor'``."""

    mean: Tensor
    factor: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Draws of shape (n_draws, n_rows, D) from noise of shape (n_draws, 1, D)."""
        return self.mean + (self.factor @ noise.unsqueeze(-1)).squeeze(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """Log density of z of shape (n_draws, n_rows, D)."""
        deviation = (z - self.mean).movedim(0, -1)
        whitened = torch.linalg.solve_triangular(self.factor, deviation, upper=False)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = log_det + 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return (-0.5 * whitened.square().sum(-2) - constant.unsqueeze(-1)).mT


def importance_bound(model: StructuredVAE, rows: Rows, noise: Tensor) -> Tensor:
    """Importance-weighted bound on ``log p(x_n)`` of each row.

    ``log 1/S sum_s p(x | z_s) p(z_s) / q(z_s)`` with the predictive ``p(z)``, in which q(theta) is
    integrated out, and for ``q`` the mixture that the draws come from: half of them, rounded up,
    from the posterior, the others from a Laplace approximation. For any ``q`` the expectation
    under the logarithm is ``p(x)``, so that of the bound is below ``log p(x)``.

    Parameters
    ----------
    model : StructuredVAE
        Fitted model.
    rows : Rows
        Data.
    noise : Tensor of shape (n_draws, latent_dim)
        Standard normal numbers, the same for every row, so that the bound on a row does not
        depend on the rows around it.

    Returns
    -------
    Tensor of shape (n_rows,)
        In nats, without a gradient; tightens as the number of draws grows.

    References
    ----------
    Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", ICLR 2016. Owen and Zhou,
    "Safe and effective importance sampling", JASA 2000, on mixtures as proposals.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import StandardNormalModel
    >>> from sksvae.importance import importance_bound
    >>> from sksvae.inference import FixedPointSettings
    >>> from sksvae.likelihoods import GaussianLikelihood
    >>> from sksvae.objective import Rows, StructuredVAE
    >>> generator, x = torch.Generator().manual_seed(0), torch.tensor([[0.0], [9.0]])
    >>> model = StructuredVAE(
    ...     1, 1, (), "relu", GaussianLikelihood(1.0), StandardNormalModel(1), torch.zeros(1),
    ...     torch.ones(1), FixedPointSettings())
    >>> model.encoder.reset(torch.eye(1), 0.01, generator)  # says far too little
    >>> model.decoder.reset(torch.eye(1), torch.zeros(0, 1), generator)
    >>> bound = importance_bound(model, Rows(x, x), torch.randn(256, 1, generator=generator))
    >>> want = torch.distributions.Normal(0.0, 2.0**0.5).log_prob(x[:, 0])
    >>> (bound - want).abs().max() < 0.1
    tensor(True)
    """
    with torch.no_grad():
        posterior = model.infer(rows)
        encoded = _Proposal(posterior.mean, torch.linalg.cholesky(posterior.covariance))
        # Halves, not every second one: both halves of a quasi-random sequence are spread out.
        half = (len(noise) + 1) // 2
        proposals = [(encoded, noise[:half])]
        if len(noise) > 1:
            prior_precision = model.graphical.latent_precision(posterior.responsibilities)
            laplace = _laplace(model, rows, posterior.mean, prior_precision)
            proposals.append((laplace, noise[half:]))
        z = torch.cat([q.draw(part.unsqueeze(1)) for q, part in proposals])
        shares = [q.log_density(z) + math.log(len(part)) for q, part in proposals]
        log_q = torch.logsumexp(torch.stack(shares), 0)
        return torch.logsumexp(_log_joint(model, rows, z) - log_q, 0)


def _log_joint(model: StructuredVAE, rows: Rows, z: Tensor) -> Tensor:
    return model.log_likelihood(rows, z) + model.graphical.log_predictive(z)


def _laplace(model: StructuredVAE, rows: Rows, start: Tensor, prior_precision: Tensor) -> _Proposal:
    """Gaussians at modes of ``p(x, z)``, with the Gauss-Newton precision there.

    Each step is damped for each row, and left out where it does not raise ``p(x, z)``: no row
    depends on another. Short steps are taken as they are, since near the mode rounding errors
    would decide whether they raise anything.
    """
    z, value = start, _log_joint(model, rows, start)
    sizes = z.new_tensor(_STEP_SIZES)[:, None, None]
    for _ in range(_N_STEPS):
        gradient = _gradient(model, rows, z)
        factor = _covariance_factor(model, z, prior_precision)
        step = (factor @ (factor.mT @ gradient.unsqueeze(-1))).squeeze(-1)
        short = (gradient * step).sum(-1) < _SHORT
        candidates = z + sizes * step
        values = _log_joint(model, rows, candidates).nan_to_num(nan=-math.inf)
        highest, which = values.max(0)
        which = torch.where(short, torch.zeros_like(which), which)
        taken = candidates.gather(0, which[None, :, None].expand(1, *z.shape))[0]
        move = short | (highest > value)
        z = torch.where(move.unsqueeze(-1), taken, z)
        value = torch.where(move, values.gather(0, which[None])[0], value)
    return _Proposal(z, _covariance_factor(model, z, prior_precision))


def _gradient(model: StructuredVAE, rows: Rows, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(_log_joint(model, rows, z).sum(), z)[0]


def _jacobian(model: StructuredVAE, z: Tensor) -> Tensor:
    """Derivatives of the first output of the decoder, of shape (n_rows, n_features, D).

    Forward differentiation by two backward passes: ``v -> J v`` is the derivative of
    ``u -> v'J'u``. PyTorch's forward mode has state that threads share.
    """
    dim = z.shape[-1]
    with torch.enable_grad():
        copies = z.detach().expand(dim, *z.shape).clone().requires_grad_()
        outputs = model.decode(copies)[..., 0, :]
        u = torch.zeros_like(outputs, requires_grad=True)
        (products,) = torch.autograd.grad(outputs, copies, u, create_graph=True)
        tangents = torch.eye(dim, dtype=z.dtype, device=z.device).unsqueeze(1).expand_as(products)
        (columns,) = torch.autograd.grad(products, u, tangents)
    return columns.movedim(0, -1)


def _covariance_factor(model: StructuredVAE, z: Tensor, prior_precision: Tensor) -> Tensor:
    """Lower factor of ``(J' diag(w) J + P)^-1``, where J is the Jacobian of the decoder at z."""
    weights = model.likelihood.noise_precision(model.noise_params, model.decode(z))
    jacobian = _jacobian(model, z) * weights.sqrt().unsqueeze(-1)
    precision = jacobian.mT @ jacobian + prior_precision
    # Unit diagonals first: features on which noise is tiny make precisions of any size.
    scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
    correlation = scale.unsqueeze(-1) * precision * scale.unsqueeze(-2)
    correlation.diagonal(dim1=-2, dim2=-1).add_(_JITTER * torch.finfo(z.dtype).eps)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(correlation))
    return scale.unsqueeze(-1) * torch.linalg.cholesky(covariance)
