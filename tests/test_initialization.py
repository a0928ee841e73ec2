# SPDX-License-Identifier: BSD-3-Clause
"""Principal axes against scikit-learn's PCA, mixtures against exact evidence and its mixtures."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture

from sksvae import initialization
from sksvae.expfam import NIW, DirichletParams
from sksvae.graphical import GaussianMixtureModel, MixturePrior, Potentials
from sksvae.inference import FixedPointSettings
from sksvae.initialization import fit_mixture, principal_axes, search_mixture

# Principal axes ----------------------------------------------------------------------------------


def centred(n_rows=200, n_features=6, rank=None, seed=0):
    rng = np.random.default_rng(seed)
    rank = n_features if rank is None else rank
    X = rng.standard_normal((n_rows, rank)) * np.arange(1, rank + 1)
    X = X @ np.linalg.qr(rng.standard_normal((n_features, n_features)))[0][:rank]
    return X - X.mean(0)


@pytest.mark.parametrize("latent_dim", [1, 3, 5])
def test_axes_and_noise_are_those_of_probabilistic_pca(latent_dim):
    X = centred()
    got = principal_axes(X, latent_dim)
    pca = PCA(latent_dim, svd_solver="full").fit(X)
    cosines = np.abs((got.axes * pca.components_.T).sum(0))
    np.testing.assert_allclose(cosines, 1.0, rtol=1e-9)
    # scikit-learn divides by n - 1, maximum likelihood by n.
    noise = got.residual_variances.sum() / (X.shape[1] - latent_dim)
    assert noise == pytest.approx(pca.noise_variance_ * 199 / 200, rel=1e-9)
    np.testing.assert_allclose(got.axes.T @ got.axes, np.eye(latent_dim), atol=1e-12)


def test_residual_variances_are_what_the_axes_leave():
    X = centred()
    got = principal_axes(X, 3)
    left = X - PCA(3, svd_solver="full").fit(X).inverse_transform(
        PCA(3, svd_solver="full").fit_transform(X)
    )
    np.testing.assert_allclose(got.residual_variances, left.var(0), rtol=1e-9)


def test_signs_do_not_depend_on_rows_or_on_the_sign_of_the_data():
    X = centred()
    want = principal_axes(X, 4).axes
    assert (want.max(0) == np.abs(want).max(0)).all()
    for again in (X, -X, X[::-1], np.concatenate([X, -X])):
        np.testing.assert_allclose(principal_axes(again, 4).axes, want, atol=1e-9)


@pytest.mark.parametrize("n_rows", [200, 3], ids=["low rank", "few rows"])
def test_rank_deficient_rows_have_axes_and_a_positive_noise(n_rows):
    X = centred(n_rows, rank=2)
    got = principal_axes(X, 4)
    np.testing.assert_allclose(got.axes.T @ got.axes, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(X @ got.axes @ got.axes.T, X, atol=1e-10)
    # The floor under the noise is one under what is left of every feature.
    floor = got.residual_variances[0]
    assert 0 < floor < 0.1
    np.testing.assert_allclose(got.residual_variances, floor, rtol=1e-9)


def test_rows_without_variance_have_axes_and_a_positive_noise():
    got = principal_axes(np.zeros((10, 4)), 2)
    np.testing.assert_allclose(got.axes.T @ got.axes, np.eye(2), atol=1e-12)
    assert (got.residual_variances > 0).all()


@pytest.mark.parametrize("latent_dim", [3, 5])
def test_latents_beyond_the_features_have_no_axis(latent_dim):
    X = centred(n_features=3)
    got = principal_axes(X, latent_dim)
    assert got.axes.shape == (3, latent_dim)
    np.testing.assert_allclose(got.axes[:, :3] @ got.axes[:, :3].T, np.eye(3), atol=1e-12)
    assert (got.axes[:, 3:] == 0).all()
    assert (got.residual_variances > 0).all()
    assert (got.residual_variances < 0.1).all()


# Mixture, potentials fixed -----------------------------------------------------------------------

SETTINGS = FixedPointSettings(max_updates=500, tol=1e-10)


def points_of(n_rows=300, dim=2, n_clusters=4, spread=6.0, seed=0):
    rng = np.random.default_rng(seed)
    angles = np.arange(n_clusters) * 2 * np.pi / n_clusters
    centers = np.zeros((n_clusters, dim))
    centers[:, :2] = spread * np.stack([np.cos(angles), np.sin(angles)], 1)[:, :dim]
    labels = np.arange(n_rows) % n_clusters
    z = centers[labels] + rng.standard_normal((n_rows, dim)) @ (np.eye(dim) + 0.3)
    return torch.from_numpy(z), labels


def potentials_at(z, precision=1e8):
    R = torch.full_like(z, precision)
    return Potentials(R * z, R)


def prior_of(n_components, dim=2, dtype=torch.float64, concentration=0.5):
    eye = torch.eye(dim, dtype=dtype)
    return MixturePrior.symmetric(
        n_components, concentration, torch.zeros(dim, dtype=dtype), 0.1, 5.0 * eye, dim + 1.0
    )


def model_from_labels(prior, z, responsibilities):
    model = GaussianMixtureModel(prior)
    counts = responsibilities.sum(0)
    products = torch.einsum("nk,ni,nj->kij", responsibilities, z, z)
    model.coordinate_update(
        (counts, -0.5 * products, responsibilities.T @ z, -0.5 * counts, 0.5 * counts)
    )
    return model


@pytest.mark.parametrize("precision", [0.5, 1e8])
def test_the_bound_never_falls(precision):
    z, _ = points_of(spread=2.0)
    noise = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(5), len(z)))
    model = model_from_labels(prior_of(5), z, noise)
    potentials = potentials_at(z, precision)
    bounds = [fit_mixture(model, potentials, SETTINGS, max_iter=1, tol=0.0) for _ in range(25)]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0] + 0.01


def test_the_bound_of_one_component_and_precise_potentials_is_the_exact_evidence():
    """``log p(Z) = log Z(posterior) - log Z(prior) - n D / 2 log(2 pi)``."""
    z, _ = points_of(40, dim=3)
    prior = prior_of(1, dim=3)
    model = GaussianMixtureModel(prior)
    bound = fit_mixture(model, potentials_at(z, 1e10), SETTINGS, max_iter=50, tol=1e-12)
    normalizers = [
        NIW().log_normalizer(NIW().to_natural(p.components))[0] for p in (model.posterior, prior)
    ]
    evidence = normalizers[0] - normalizers[1] - 40 * 3 / 2 * math.log(2 * math.pi)
    assert bound == pytest.approx(evidence.item() / 40, rel=1e-7)
    # And the posterior is the exact one.
    exact = model_from_labels(prior, z, torch.ones(40, 1, dtype=torch.float64))
    for got, want in zip(model.posterior.components, exact.posterior.components, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_the_bound_of_a_mixture_and_precise_potentials():
    """``sum_n log sum_k exp E[log pi_k N(z_n)] - KL(q(theta) || p)`` at the converged q(theta)."""
    z, _ = points_of(spread=3.0)
    prior = prior_of(3)
    noise = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(3), len(z)))
    model = model_from_labels(prior, z, noise)
    bound = fit_mixture(model, potentials_at(z), SETTINGS, max_iter=3000, tol=1e-13)
    log_weights, precision, precision_mean, quadratic, log_det = model.expected_params()
    logits = log_weights + 0.5 * (log_det - quadratic - 2 * math.log(2 * math.pi))
    logits = logits + z @ precision_mean.T - 0.5 * torch.einsum("ni,kij,nj->nk", z, precision, z)
    want = logits.logsumexp(1).mean() - model.prior_kl() / len(z)
    assert bound == pytest.approx(want.item(), abs=1e-6)


def sklearn_twin(prior, **kwargs):
    components = prior.components
    return BayesianGaussianMixture(
        n_components=len(prior.weights.concentration),
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=prior.weights.concentration[0].item(),
        mean_precision_prior=components.mean_precision[0].item(),
        mean_prior=components.mean[0].numpy(),
        degrees_of_freedom_prior=components.dof[0].item(),
        covariance_prior=components.scale[0].numpy(),
        reg_covar=0.0,
        max_iter=3000,
        tol=1e-12,
        **kwargs,
    )


def test_precise_potentials_have_the_fixed_points_of_bayesian_gaussian_mixture():
    """From another start in the same basin."""
    z, labels = points_of(spread=3.5)
    prior = prior_of(4)
    twin = sklearn_twin(prior, random_state=0).fit(z.numpy())
    order = [np.bincount(twin.predict(z.numpy())[labels == k]).argmax() for k in range(4)]
    assert sorted(order) == [0, 1, 2, 3]
    start = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
    model = model_from_labels(prior, z, start)
    fit_mixture(model, potentials_at(z), SETTINGS, max_iter=3000, tol=1e-14)
    weights, means, covariances = (field.numpy() for field in model.point_parameters())
    np.testing.assert_allclose(weights, twin.weights_[order], rtol=1e-4)
    np.testing.assert_allclose(means, twin.means_[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(covariances, twin.covariances_[order], rtol=1e-4, atol=1e-4)
    components = model.posterior.components
    np.testing.assert_allclose(components.mean_precision, twin.mean_precision_[order], rtol=1e-4)
    np.testing.assert_allclose(components.dof, twin.degrees_of_freedom_[order], rtol=1e-4)


def test_a_coarse_tolerance_stops_earlier_and_lower():
    z, _ = points_of(spread=2.0)
    noise = torch.from_numpy(np.random.default_rng(1).dirichlet(np.ones(5), len(z)))
    bounds = []
    for tol, max_iter in ((1e-1, 100), (1e-6, 100), (1e-6, 4)):
        model = model_from_labels(prior_of(5), z, noise)
        bounds.append(fit_mixture(model, potentials_at(z), SETTINGS, max_iter=max_iter, tol=tol))
    assert bounds[1] > bounds[0] + 1e-3
    assert bounds[1] > bounds[2] + 1e-3


# Search ------------------------------------------------------------------------------------------


def search(
    z,
    n_components=4,
    n_starts=5,
    seed=0,
    precision=100.0,
    dtype=torch.float64,
    prior=None,
    weight=1.0,
):
    return search_mixture(
        prior_of(n_components, z.shape[1], dtype) if prior is None else prior,
        potentials_at(z.to(dtype), precision),
        FixedPointSettings(),
        n_starts=n_starts,
        max_iter=30,
        tol=1e-4,
        random_state=np.random.RandomState(seed),
        weight=weight,
    )


def labels_of(model, z, precision=100.0):
    potentials = potentials_at(z.to(model.prior.components.mean.dtype), precision)
    posterior = model.infer(potentials, model.expected_params(), FixedPointSettings())
    return posterior.responsibilities.argmax(1).numpy()


def bound_of(model, z, precision=100.0):
    again = GaussianMixtureModel(model.prior, model.posterior)
    settings = FixedPointSettings()
    return fit_mixture(again, potentials_at(z, precision), settings, max_iter=1, tol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_search_finds_separate_clusters(dtype):
    z, labels = points_of()
    model = search(z, dtype=dtype)
    assert model.posterior.components.mean.dtype == dtype
    assert adjusted_rand_score(labels, labels_of(model, z)) > 0.99
    # q(theta) is a posterior of all rows.
    counts = model.posterior.weights.concentration - model.prior.weights.concentration
    assert counts.sum().item() == pytest.approx(len(z), rel=1e-4)


def test_search_depends_on_the_random_state_only():
    z, _ = points_of(120, spread=2.0)
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    first, second = (search(z, n_components=6, n_starts=2).state() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_starts_are_those_of_bayesian_gaussian_mixture(monkeypatch):
    """From the same clusters, on points: the same fixed point, one start at a time or together."""
    monkeypatch.setattr(initialization, "_POINTS_TOL", 1e-12)
    z, _ = points_of(200, spread=3.0)
    prior, seeds = prior_of(5), range(4)
    labels = torch.stack([initialization._cluster(z, 5, seed) for seed in seeds], 1)
    together = initialization._fit_points(prior, z, labels, 3000)
    for seed, (bound, responsibilities) in zip(seeds, together, strict=True):
        twin = sklearn_twin(prior, random_state=seed).fit(z.numpy())
        np.testing.assert_allclose(responsibilities, twin.predict_proba(z.numpy()), atol=1e-5)
        ((alone, same),) = initialization._fit_points(prior, z, labels[:, [seed]], 3000)
        assert bound == pytest.approx(alone, abs=1e-8)
        torch.testing.assert_close(responsibilities, same, rtol=0, atol=1e-5)
        # The bound of the exact inference with potentials that leave no doubt about z.
        model = model_from_labels(prior, z, responsibilities)
        exact = fit_mixture(model, potentials_at(z, 1e10), SETTINGS, max_iter=1, tol=0.0)
        assert bound == pytest.approx(len(z) * exact, abs=1e-3)
    assert len({round(bound, 3) for bound, _ in together}) > 1


@pytest.mark.parametrize("n_starts", [1, 3])
def test_how_many_starts_are_computed_together_does_not_matter(monkeypatch, n_starts):
    z, _ = points_of(120, spread=2.0)
    want = search(z, n_components=6, n_starts=n_starts).state()
    monkeypatch.setattr(initialization, "_AT_ONCE", 1)
    got = search(z, n_components=6, n_starts=n_starts).state()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def test_more_starts_find_a_better_bound():
    z, _ = points_of(240, n_clusters=12, spread=7.0)
    prior = prior_of(12, concentration=1.0)
    singles = [bound_of(search(z, n_starts=1, seed=seed, prior=prior), z) for seed in range(3)]
    best = bound_of(search(z, n_starts=10, seed=9, prior=prior), z)
    assert best >= max(singles) - 0.02
    assert best > min(singles) + 1e-3


def test_the_exact_bound_decides_between_starts(monkeypatch):
    """The model kept is the one with the best bound of all that were compared."""
    z, _ = points_of(120, spread=2.0)
    seen = []

    def recorded(model, *args, **kwargs):
        bound = fit_mixture(model, *args, **kwargs)
        seen.append((bound, model))
        return bound

    monkeypatch.setattr(initialization, "fit_mixture", recorded)
    best = search(z, n_components=6, n_starts=5)
    bounds = [bound for bound, _ in seen]
    assert len(bounds) > 1
    assert max(bounds) > min(bounds) + 1e-6
    kept = [
        bound
        for bound, model in seen
        if torch.equal(model.state()["posterior.mean"], best.state()["posterior.mean"])
    ]
    assert max(bounds) in kept


def test_components_that_are_not_needed_stay_nearly_empty():
    z, labels = points_of(400, n_clusters=3)
    model = search(z, n_components=8, prior=prior_of(8, concentration=0.01))
    weights = model.point_parameters()[0]
    assert 3 <= (weights > 0.02).sum() <= 5
    assert adjusted_rand_score(labels, labels_of(model, z)) > 0.8


def test_weighted_rows_count_as_many():
    z, labels = points_of(200)
    weighted, repeated = search(z, weight=3.0), search(z.repeat(3, 1))
    for one, other in zip(weighted.posterior, repeated.posterior, strict=True):
        for mine, want in zip(one, other, strict=True):
            torch.testing.assert_close(mine.sort(0)[0], want.sort(0)[0], rtol=0.02, atol=0.02)
    assert adjusted_rand_score(labels, labels_of(weighted, z)) > 0.99


def test_repeated_rows_are_no_obstacle():
    z = torch.tensor([[0.0, 0.0], [5.0, 5.0]], dtype=torch.float64).repeat_interleave(20, 0)
    model = search(z, n_components=3, prior=prior_of(3))
    labels = labels_of(model, z)
    assert len(set(labels[:20])) == len(set(labels[20:])) == 1
    assert labels[0] != labels[-1]


def test_the_prior_is_kept_and_not_changed():
    z, _ = points_of()
    prior = prior_of(4)
    kept = DirichletParams(prior.weights.concentration.clone()), prior.components.scale.clone()
    model = search(z, prior=prior, n_starts=1)
    assert model.prior is prior
    assert torch.equal(prior.weights.concentration, kept[0].concentration)
    assert torch.equal(prior.components.scale, kept[1])
