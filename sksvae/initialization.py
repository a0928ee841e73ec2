# SPDX-License-Identifier: BSD-3-Clause
"""Starts that do not collapse, in three stages ([P] app. A.5, [T] 6.1).

1. Networks: linear skip connections onto the principal axes (`principal_axes`).
2. Graphical model, networks fixed: variational Bayes on what the encoder gives, from several
   starts, the best bound kept (`fit_mixture`).
3. Joint training, see `sksvae.training`.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sksvae.expfam import NIW, Dirichlet, DirichletParams, NIWNatural, natural_step
from sksvae.graphical import GaussianMixtureModel, MixturePrior, Posterior, Potentials
from sksvae.graphical.mixture import log_joint, mixture_stats
from sksvae.inference import FixedPointSettings

# Least noise variance at the start, for standardised features. Where the latents could explain the
# data exactly, a noise level well above zero lets training bend them first (see noise_rate).
_MIN_NOISE = 0.05

_POINTS_TOL = 1e-3  # nats, of all points, as in `sklearn.mixture.BayesianGaussianMixture`
_AT_ONCE = 2**22  # responsibilities of starts that are computed together

_NIW = NIW()
_DIRICHLET = Dirichlet()


class PrincipalAxes(NamedTuple):
    """Principal subspace of standardised features.

    Parameters
    ----------
    axes : ndarray of shape (n_features, latent_dim)
        Orthonormal columns, then zero columns where latent_dim exceeds n_features.
    residual_variances : ndarray of shape (n_features,)
        Variance that the subspace leaves of each feature, raised so that the mean per direction
        outside of the subspace (the noise of probabilistic PCA) is no less than a floor.
    """

    axes: np.ndarray
    residual_variances: np.ndarray


def principal_axes(X: np.ndarray, latent_dim: int) -> PrincipalAxes:
    """Principal axes of centred rows.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        Centred features.
    latent_dim : int
        Number of axes.

    Returns
    -------
    PrincipalAxes
        With signs fixed so that equal data give equal axes.

    References
    ----------
    Tipping and Bishop, "Probabilistic principal component analysis", 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.initialization import principal_axes
    >>> principal_axes(np.array([[2.0, 0.0], [-2.0, 0.0]]), 1).axes.ravel()
    array([1., 0.])
    """
    n_features = X.shape[1]
    eigenvalues, vectors = linalg.eigh(X.T @ X / X.shape[0])
    order = np.argsort(eigenvalues)[::-1][:latent_dim]
    axes = vectors[:, order]
    largest = axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    left = np.mean((X - X @ axes @ axes.T) ** 2, axis=0)
    n_left = n_features - axes.shape[1]
    noise = float(left.sum() / n_left) if n_left else 0.0
    if axes.shape[1] < latent_dim:
        axes = np.pad(axes, ((0, 0), (0, latent_dim - axes.shape[1])))
    return PrincipalAxes(axes, left + max(_MIN_NOISE - noise, 0.0))


def fit_mixture(
    model: GaussianMixtureModel,
    potentials: Potentials,
    settings: FixedPointSettings,
    *,
    max_iter: int,
    tol: float,
    weight: float = 1.0,
) -> float:
    """Coordinate ascent on q(theta) and the local posteriors, the potentials fixed.

    Parameters
    ----------
    model : GaussianMixtureModel
        Changed in place, from where it stands.
    potentials : Potentials
        Of all rows, detached.
    settings : FixedPointSettings
        Of the local inference.
    max_iter : int
        Most rounds.
    tol : float
        Gain per row, in nats, at which to stop.
    weight : float, default=1.0
        Rows that each row of ``potentials`` stands for.

    Returns
    -------
    float
        Bound on the evidence of the potentials, per row.

    Examples
    --------
    >>> import torch
    >>> from sksvae.graphical import GaussianMixtureModel, MixturePrior, Potentials
    >>> from sksvae.inference import FixedPointSettings
    >>> from sksvae.initialization import fit_mixture
    >>> prior = MixturePrior.symmetric(1, 1.0, torch.zeros(1), 1e-6, torch.eye(1), 1.0)
    >>> model = GaussianMixtureModel(prior)
    >>> z = torch.tensor([[1.0], [2.0], [3.0]])
    >>> _ = fit_mixture(model, Potentials(1e6 * z, 1e6 * torch.ones_like(z)),
    ...                 FixedPointSettings(), max_iter=10, tol=1e-6)
    >>> model.posterior.components.mean.round(decimals=3)
    tensor([[2.]])
    """
    bound = -math.inf
    with torch.no_grad():
        for _ in range(max_iter):
            posterior = model.infer(potentials, model.expected_params(), settings)
            previous, bound = bound, _potential_bound(model, potentials, posterior, weight)
            model.coordinate_update([weight * s for s in model.total_stats(posterior)])
            if bound - previous < tol:
                break
    return bound


def _potential_bound(
    model: GaussianMixtureModel, potentials: Potentials, posterior: Posterior, weight: float
) -> float:
    """``mean(E log N(z | m, R^-1) - KL) - KL(q(theta) || p) / n``, normalised potentials."""
    r, R = potentials
    variance = posterior.covariance.diagonal(dim1=-2, dim2=-1)
    square = R * ((posterior.mean - r / R).square() + variance)
    evidence = 0.5 * (R.log() - math.log(2 * math.pi) - square).sum(-1)
    n_rows = weight * r.shape[0]
    return float((evidence - posterior.local_kl).mean() - model.prior_kl() / n_rows)


def search_mixture(
    prior: MixturePrior,
    potentials: Potentials,
    settings: FixedPointSettings,
    *,
    n_starts: int,
    max_iter: int,
    tol: float,
    random_state: np.random.RandomState,
    weight: float = 1.0,
) -> GaussianMixtureModel:
    """Variational Bayes for a mixture from several starts, the best bound kept.

    Each start goes from clusters of `sklearn.cluster.KMeans` to a mixture of the points that the
    potentials centre on, which costs a small part of structured inference; the best three then
    compete under the exact bound.

    Parameters
    ----------
    prior : MixturePrior
        Prior with equal components.
    potentials : Potentials
        Of all rows, detached.
    settings : FixedPointSettings
        Of the local inference.
    n_starts : int
        Number of starts.
    max_iter : int
        Most rounds of each.
    tol : float
        As in `fit_mixture`.
    random_state : RandomState
        For the starts.
    weight : float, default=1.0
        As in `fit_mixture`.

    Returns
    -------
    GaussianMixtureModel
        The best mixture.
    """
    r, R = potentials
    points = (r / R).double()
    n_components = prior.weights.concentration.shape[0]
    # With one component they all find the same.
    seeds = random_state.randint(np.iinfo(np.int32).max, size=n_starts if n_components > 1 else 1)
    labels = torch.stack([_cluster(points, n_components, seed) for seed in seeds], 1)
    n_at_once = max(1, _AT_ONCE // (len(points) * n_components))
    candidates = [
        candidate
        for part in labels.split(n_at_once, 1)
        for candidate in _fit_points(prior.double(), points, part, max_iter)
    ]
    candidates.sort(key=lambda candidate: -candidate[0])
    best, best_bound = None, -math.inf
    for _, responsibilities in candidates[:3]:
        model = GaussianMixtureModel(prior)
        stats = model.total_stats(_as_posterior(potentials, responsibilities.to(r.dtype)))
        model.coordinate_update([weight * s for s in stats])
        bound = fit_mixture(model, potentials, settings, max_iter=max_iter, tol=tol, weight=weight)
        if best is None or bound > best_bound:
            best, best_bound = model, bound
    return best  # type: ignore[return-value]  # there is a start


def _cluster(points: Tensor, n_clusters: int, seed: int) -> Tensor:
    """Labels of shape (n_rows,)."""
    kmeans = KMeans(n_clusters, n_init=1, random_state=np.random.RandomState(seed))
    with warnings.catch_warnings():
        # There may be fewer points than clusters that differ.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kmeans.fit(points.cpu().numpy()).labels_
    return torch.as_tensor(labels, dtype=torch.long, device=points.device)


def _fit_points(
    prior: MixturePrior, points: Tensor, labels: Tensor, max_iter: int
) -> list[tuple[float, Tensor]]:
    """Variational Bayes for mixtures of points, from labels (n_rows, n_starts).

    What comes is the bound of each start and its responsibilities (n_rows, n_components). All
    starts are computed together, with their components side by side, until they have converged.
    """
    n_starts, n_components = labels.shape[1], prior.weights.concentration.shape[0]
    products = points.unsqueeze(-1) * points.unsqueeze(-2)
    responsibilities = torch.nn.functional.one_hot(labels, n_components).to(points.dtype)
    bounds = points.new_full((n_starts,), -math.inf)
    left = torch.arange(n_starts, device=points.device)
    for _ in range(max_iter):
        copies = prior.select(torch.arange(n_components, device=points.device).repeat(len(left)))
        counts, *stats = mixture_stats(responsibilities[:, left].flatten(1), points, products)
        weights = DirichletParams(prior.weights.concentration + counts.view(-1, n_components))
        components = natural_step(_NIW, copies.components, NIWNatural(*stats), 1.0)
        log_weights = _DIRICHLET.standard_expected_stats(weights).log_probabilities.flatten()
        params = (log_weights, *_NIW.standard_expected_stats(components))
        joint = log_joint(params, points, products).view(len(points), -1, n_components)
        evidence = joint.logsumexp(-1, keepdim=True)
        responsibilities[:, left] = (joint - evidence).exp()
        divergence = _NIW.standard_kl(components, copies.components).view(-1, n_components)
        divergence = divergence.sum(-1) + _DIRICHLET.standard_kl(weights, prior.weights)
        bound = evidence.sum((0, 2)) - divergence
        going_on = bound - bounds[left] >= _POINTS_TOL
        bounds[left] = bound
        left = left[going_on]
        if not len(left):
            break
    return list(zip(bounds.tolist(), responsibilities.unbind(1), strict=True))


def _as_posterior(potentials: Potentials, responsibilities: Tensor) -> Posterior:
    """Local posterior that trusts the potentials alone."""
    r, R = potentials
    n_rows = r.shape[0]
    return Posterior(
        mean=r / R,
        covariance=torch.diag_embed(1.0 / R),
        root=torch.diag_embed(R.rsqrt()),
        responsibilities=responsibilities,
        local_kl=r.new_zeros(n_rows),
        n_updates=torch.zeros(n_rows, dtype=torch.long, device=r.device),
        converged=torch.ones(n_rows, dtype=torch.bool, device=r.device),
    )
