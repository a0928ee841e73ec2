# SPDX-License-Identifier: BSD-3-Clause
"""The mixture: its mean field inference, its gradients, its q(theta)."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from sksvae.expfam import NIW, Dirichlet, DirichletParams, NIWParams
from sksvae.graphical import GaussianMixtureModel, MixturePrior, Potentials
from sksvae.inference import FixedPointSettings

TIGHT = FixedPointSettings(max_updates=2000, tol=1e-14, solver_tol=1e-13)


def random_model(n_components=4, dim=3, seed=0, dtype=torch.float64, spread=2.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    prior = MixturePrior.symmetric(
        n_components, 0.7, normal(dim), 0.5, torch.eye(dim, dtype=dtype), dim + 1.0
    )
    root = normal(n_components, dim, dim)
    components = NIWParams(
        20 * torch.eye(dim, dtype=dtype) + 5 * root @ root.mT,
        spread * normal(n_components, dim),
        5 + 5 * normal(n_components).abs(),
        dim + 20 + 5 * normal(n_components).abs(),
    )
    weights = DirichletParams(1 + 10 * normal(n_components).abs())
    return GaussianMixtureModel(prior, MixturePrior(weights, components))


def random_potentials(n_rows=12, dim=3, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    R = torch.randn(n_rows, dim, generator=generator, dtype=dtype).exp()
    return Potentials(2 * R * torch.randn(n_rows, dim, generator=generator, dtype=dtype), R)


def free_energy(model, potentials, posterior):
    """Surrogate bound E log l(z) - local KL of each row."""
    r, R = potentials
    square = posterior.covariance.diagonal(dim1=-2, dim2=-1) + posterior.mean**2
    return (r * posterior.mean - 0.5 * R * square).sum(-1) - posterior.local_kl


def smooth_objective(posterior, seed=3):
    """Something that depends on every part of the posterior, draws included."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, *posterior.mean.shape, generator=generator, dtype=posterior.mean.dtype)
    draws = posterior.draw(noise)
    weights = torch.linspace(-1, 1, posterior.responsibilities.shape[1], dtype=draws.dtype)
    return (draws.sin().sum() + (posterior.responsibilities * weights).sum() * 2) / 3


def gradients(model, potentials, gradient, settings=TIGHT, objective=None):
    settings = dataclasses.replace(settings, gradient=gradient)
    leaves = Potentials(*(field.clone().requires_grad_() for field in potentials))
    params = model.expected_params()
    posterior = model.infer(leaves, params, settings)
    value = smooth_objective(posterior) - posterior.local_kl.sum()
    if objective is not None:
        value = objective(model, leaves, posterior)
    return torch.autograd.grad(value, [*leaves, *params])


def slow_update(params, r, R, rho):
    """One round for one row, with dense inverses and one component at a time."""
    log_weights, precision, precision_mean, quadratic, log_det = params
    J = torch.diag(R) + (rho[:, None, None] * precision).sum(0)
    V = torch.linalg.inv(J)
    m = V @ (r + (rho[:, None] * precision_mean).sum(0))
    phi = [
        log_weights[k]
        + 0.5 * log_det[k]
        - 0.5 * quadratic[k]
        + precision_mean[k] @ m
        - 0.5 * torch.trace(precision[k] @ (V + torch.outer(m, m)))
        for k in range(len(rho))
    ]
    return torch.stack(phi).softmax(0), m, V


def test_responsibilities_solve_the_fixed_point_equation():
    model, potentials = random_model(), random_potentials()
    params = model.expected_params()
    posterior = model.infer(potentials, params, TIGHT)
    for n, rho in enumerate(posterior.responsibilities):
        following, m, V = slow_update(params, *(field[n] for field in potentials), rho)
        torch.testing.assert_close(rho, following, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(posterior.mean[n], m)
        torch.testing.assert_close(posterior.covariance[n], V)


@hypothesis_settings(max_examples=40)
@given(
    exponents=st.lists(st.floats(-8.0, 8.0), min_size=3, max_size=3),
    location=st.lists(st.floats(-100.0, 100.0), min_size=3, max_size=3),
    seed=st.integers(0, 20),
)
def test_any_potentials_have_a_posterior(exponents, location, seed):
    """Precisions from 1e-8 to 1e8, within a row too."""
    model = random_model(seed=seed)
    R = 10.0 ** torch.tensor([exponents], dtype=torch.float64)
    r = R * torch.tensor([location], dtype=torch.float64)
    params = model.expected_params()
    posterior = model.infer(Potentials(r, R), params, TIGHT)
    (rho,) = posterior.responsibilities
    assert posterior.converged.all()
    torch.testing.assert_close(rho.sum(), torch.ones((), dtype=torch.float64))
    assert (rho >= 0).all()
    assert posterior.local_kl > -1e-9
    following, m, V = slow_update(params, r[0], R[0], rho)
    torch.testing.assert_close(rho, following, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(posterior.mean[0], m, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(posterior.covariance[0], V, rtol=1e-6, atol=1e-16)
    assert posterior.draw(torch.ones(1, 1, 3, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precise_potentials_leave_nothing_to_infer_but_the_component(dtype):
    model = random_model(dtype=dtype)
    z = random_potentials(50, dtype=dtype).precision.log()  # normal
    R = torch.full_like(z, 1e8)
    params = model.expected_params()
    posterior = model.infer(Potentials(R * z, R), params, FixedPointSettings())
    torch.testing.assert_close(posterior.mean, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.covariance, torch.diag_embed(1 / R), rtol=1e-4, atol=1e-12)
    log_weights, precision, precision_mean, quadratic, log_det = params
    phi = log_weights + 0.5 * (log_det - quadratic) + z @ precision_mean.mT
    phi = phi - 0.5 * torch.einsum("ni,kij,nj->nk", z, precision, z)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(
        posterior.responsibilities, phi.softmax(-1), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vague_potentials_leave_the_prior(dtype):
    model = random_model(dtype=dtype)
    r, R = random_potentials(50, dtype=dtype)
    nothing = Potentials(1e-8 * r / R, 1e-8 * R / R)
    posterior = model.infer(nothing, model.expected_params(), FixedPointSettings())
    for name in ("mean", "covariance", "responsibilities", "local_kl"):
        rows = getattr(posterior, name)
        torch.testing.assert_close(rows, rows[:1].expand_as(rows), rtol=1e-4, atol=1e-4)
    assert posterior.local_kl.min() > 0


@pytest.mark.parametrize("dim", [1, 3])
def test_one_component_is_exact(dim):
    """``log int l(z) exp E[log N(z | mu, Sigma)] dz`` in closed form; no rounds are needed."""
    model, potentials = random_model(1, dim), random_potentials(dim=dim)
    posterior = model.infer(potentials, model.expected_params(), FixedPointSettings())
    assert (posterior.n_updates == 0).all()
    assert (posterior.responsibilities == 1).all()
    scale, mean, kappa, dof = (field[0].numpy() for field in model.posterior.components)
    # E[log N] = log N(z | m, (nu S^-1)^-1) + (E log|Sigma^-1| - log|nu S^-1| - D / kappa) / 2
    digamma = torch.digamma(torch.tensor([(dof - i) / 2 for i in range(dim)])).sum().item()
    expected_log_det = dim * np.log(2) - np.linalg.slogdet(scale)[1] + digamma
    log_det = dim * np.log(dof) - np.linalg.slogdet(scale)[1]
    missing = 0.5 * (expected_log_det - log_det - dim / kappa)
    r, R = (field.numpy() for field in potentials)
    for n in range(len(r)):
        # l(z) is a Gaussian in z around r / R, times a constant.
        joint = stats.multivariate_normal(mean, scale / dof + np.diag(1 / R[n]))
        constant = 0.5 * (r[n] ** 2 / R[n] + np.log(2 * np.pi / R[n])).sum()
        want = joint.logpdf(r[n] / R[n]) + constant + missing
        got = free_energy(model, potentials, posterior)[n].item()
        assert got == pytest.approx(want, rel=1e-10, abs=1e-10)
        cov = np.linalg.inv(np.diag(R[n]) + dof * np.linalg.inv(scale))
        np.testing.assert_allclose(posterior.covariance[n].detach(), cov, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            posterior.mean[n].detach(),
            cov @ (r[n] + dof * np.linalg.solve(scale, mean)),
            rtol=1e-9,
            atol=1e-12,
        )


def test_components_out_of_reach_leave_finite_values_and_gradients():
    """Responsibilities that underflow to zero: 0 log 0 = 0."""
    model = random_model()
    concentration = model.posterior.weights.concentration.clone()
    concentration[2] = 1e-5  # E[log pi] = -1e5
    model.posterior = model.posterior._replace(weights=DirichletParams(concentration))
    potentials = random_potentials()
    posterior = model.infer(potentials, model.expected_params(), TIGHT)
    assert (posterior.responsibilities[:, 2] == 0).all()
    for gradient in gradients(model, potentials, "cg"):
        assert gradient.isfinite().all()


def test_local_kl_is_the_kl_monte_carlo():
    model, potentials = random_model(), random_potentials(3)
    params = model.expected_params()
    posterior = model.infer(potentials, params, TIGHT)
    rng = np.random.default_rng(0)
    n_draws = 200_000
    weights, precision, precision_mean, quadratic, log_det = (p.detach().numpy() for p in params)
    for n in range(3):
        q = stats.multivariate_normal(
            posterior.mean[n].detach().numpy(), posterior.covariance[n].detach().numpy()
        )
        rho = posterior.responsibilities[n].detach().numpy()
        z = q.rvs(n_draws, random_state=rng)
        k = rng.choice(len(rho), n_draws, p=rho / rho.sum())
        log_joint = weights[k] + 0.5 * (log_det - quadratic - 3 * np.log(2 * np.pi))[k]
        log_joint += (precision_mean[k] * z).sum(1)
        log_joint -= 0.5 * np.einsum("ni,nij,nj->n", z, precision[k], z)
        values = q.logpdf(z) + np.log(rho[k]) - log_joint
        error = values.std() / np.sqrt(n_draws)
        assert abs(values.mean() - posterior.local_kl[n].item()) < 5 * error


def test_expected_params_are_expectations_under_q_theta():
    model = random_model(2, 2)
    params = model.expected_params()
    generator = torch.Generator().manual_seed(0)
    draws = NIW().sample(model.posterior.components, (40_000,), generator)
    samples = NIW().stats_of(draws)
    for expected, sample in zip(params[1:], samples, strict=True):
        error = sample.std(0) / 200
        assert ((sample.mean(0) - expected).abs() < 5 * error).all()
    pi = Dirichlet().sample(model.posterior.weights, (40_000,), generator)
    assert ((pi.log().mean(0) - params[0]).abs() < 5 * pi.log().std(0) / 200).all()


@pytest.mark.parametrize("method", ["cg", "richardson"])
@pytest.mark.parametrize("seed", range(3))
def test_implicit_gradient_equals_the_unrolled_one(method, seed):
    model, potentials = random_model(seed=seed), random_potentials(seed=seed + 10)
    exact = gradients(model, potentials, "unrolled")
    for got, want in zip(gradients(model, potentials, method), exact, strict=True):
        assert (got - want).norm() <= 1e-6 * want.norm()


def test_the_solve_matters():
    """Without it the gradient is wrong, so the test above can fail."""
    model, potentials = random_model(spread=0.5), random_potentials()
    exact = gradients(model, potentials, "unrolled")
    no_solve = gradients(model, potentials, "none")
    assert max((a - b).norm() / b.norm() for a, b in zip(no_solve, exact, strict=True)) > 1e-3


def test_envelope_identity():
    """The surrogate bound needs no implicit gradient (DESIGN 5.3)."""
    model, potentials = random_model(spread=0.5), random_potentials()

    def surrogate(model, leaves, posterior):
        return free_energy(model, leaves, posterior).sum()

    exact = gradients(model, potentials, "unrolled", objective=surrogate)
    for method in ("none", "cg"):
        approximate = gradients(model, potentials, method, objective=surrogate)
        for got, want in zip(approximate, exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def test_surrogate_at_the_fixed_point_from_log_normalizers():
    """Lhat = log Z_z + log Z_k - sum_k mu_k (Theta mu_z)_k, coupling counted once."""
    model, potentials = random_model(), random_potentials()
    params = model.expected_params()
    posterior = model.infer(potentials, params, TIGHT)
    log_weights, precision, precision_mean, quadratic, log_det = params
    rho = posterior.responsibilities
    h = potentials.precision_mean + rho @ precision_mean
    J = torch.diag_embed(potentials.precision) + torch.einsum("nk,kij->nij", rho, precision)
    log_z = 0.5 * (h * posterior.mean).sum(-1) - 0.5 * torch.logdet(J) + 1.5 * np.log(2 * np.pi)
    second = posterior.covariance + posterior.mean[:, :, None] * posterior.mean[:, None, :]
    coupling = posterior.mean @ precision_mean.T - 0.5 * torch.einsum(
        "kij,nij->nk", precision, second
    )
    constant = log_weights + 0.5 * (log_det - quadratic - 3 * np.log(2 * np.pi))
    log_k = torch.logsumexp(constant + coupling, -1)
    surrogate = log_z + log_k - (rho * coupling).sum(-1)
    torch.testing.assert_close(surrogate, free_energy(model, potentials, posterior))


def test_a_rows_posterior_does_not_depend_on_its_batch():
    model, potentials = random_model(), random_potentials(40)
    settings = FixedPointSettings()
    together = model.infer(potentials, model.expected_params(), settings)
    for rows in (slice(0, 1), slice(7, 19), slice(39, 40)):
        alone = model.infer(
            Potentials(*(field[rows] for field in potentials)), model.expected_params(), settings
        )
        assert torch.equal(alone.n_updates, together.n_updates[rows])
        for name in ("mean", "covariance", "responsibilities", "local_kl"):
            got, want = getattr(alone, name), getattr(together, name)[rows]
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_updates_never_lower_the_surrogate():
    model, potentials = random_model(spread=0.5), random_potentials(30)
    values = []
    for max_updates in range(1, 15):
        settings = FixedPointSettings(max_updates=max_updates, tol=0.0, gradient="none")
        posterior = model.infer(potentials, model.expected_params(), settings)
        values.append(free_energy(model, potentials, posterior))
    steps = torch.stack(values).diff(dim=0)
    assert steps.min() > -1e-10
    assert steps.max() > 1e-6


def test_natural_step_of_size_one_is_the_coordinate_update():
    """In the conjugate part, the gradient of the bound leads to the exact update at once."""
    model, potentials = random_model(), random_potentials(50)
    params = model.expected_params()
    posterior = model.infer(potentials, params, TIGHT)
    surrogate = free_energy(model, potentials, posterior).sum()
    gradient = torch.autograd.grad(surrogate, params)
    by_moments = GaussianMixtureModel(model.prior)
    stats = model.total_stats(posterior)
    for got, want in zip(gradient, stats, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
    by_moments.coordinate_update(stats)
    model.natural_step(gradient, 1.0)
    torch.testing.assert_close(
        model.posterior.weights.concentration, by_moments.posterior.weights.concentration
    )
    for got, want in zip(model.posterior.components, by_moments.posterior.components, strict=True):
        torch.testing.assert_close(got, want)


def test_prior_kl_agrees_with_monte_carlo():
    model = random_model(2, 2)
    generator = torch.Generator().manual_seed(0)
    values = 0.0
    for family, q, p in (
        (Dirichlet(), model.posterior.weights, model.prior.weights),
        (NIW(), model.posterior.components, model.prior.components),
    ):
        draws = family.sample(q, (20_000,), generator)
        log_ratio = family.log_prob(family.to_natural(q), draws)
        log_ratio = log_ratio - family.log_prob(family.to_natural(p), draws)
        values = values + log_ratio.view(20_000, -1).sum(1)
    error = values.std() / 20_000**0.5
    assert (values.mean() - model.prior_kl()).abs() < 5 * error
    assert error < 0.01 * model.prior_kl()


def test_prior_kl_gradient_is_the_pull_of_the_prior():
    """A step of one with no data returns to the prior."""
    model = random_model()
    model.natural_step([torch.zeros_like(p) for p in model.expected_params()], 1.0)
    assert model.prior_kl().abs() < 1e-9


def test_log_predictive_is_the_average_over_q_theta():
    model = random_model(2, 2)
    generator = torch.Generator().manual_seed(0)
    n_draws = 20_000
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    theta = NIW().sample(model.posterior.components, (n_draws,), generator)
    pi = Dirichlet().sample(model.posterior.weights, (n_draws,), generator)
    component = torch.distributions.MultivariateNormal(theta.mean, theta.covariance)
    density = (pi * component.log_prob(z[:, None, None]).exp()).sum(-1)  # (5, n_draws)
    error = density.std(1) / n_draws**0.5
    assert ((density.mean(1) - model.log_predictive(z).exp()).abs() < 5 * error).all()


def test_log_predictive_is_a_mixture_of_student_t():
    model = random_model()
    z = random_potentials(20).precision.log()
    scale, mean, kappa, dof = (field.numpy() for field in model.posterior.components)
    weights = model.point_parameters()[0].numpy()
    density = np.zeros(20)
    for k in range(4):
        t_dof = dof[k] - 2
        shape = scale[k] * (kappa[k] + 1) / (kappa[k] * t_dof)
        density += weights[k] * stats.multivariate_t(mean[k], shape, df=t_dof).pdf(z.numpy())
    np.testing.assert_allclose(model.log_predictive(z), np.log(density), rtol=1e-10)


def test_log_predictive_of_many_rows_in_single_precision():
    """A million rows behind each component, where lgamma is in the millions."""
    double = random_model()
    scale, mean, kappa, dof = double.posterior.components
    n = 1e6
    components = NIWParams(scale + n * torch.eye(3), mean, kappa + n, dof + n)
    double.posterior = double.posterior._replace(components=components)
    single = GaussianMixtureModel.from_state({k: v.float() for k, v in double.state().items()})
    z = random_potentials(20).precision.log()
    got, want = single.log_predictive(z.float()), double.log_predictive(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_samples_have_the_moments_of_the_mixture():
    model = random_model()
    z, labels = model.sample(40_000, torch.Generator().manual_seed(0))
    weights, means, covariances = model.point_parameters()
    counts = torch.bincount(labels, minlength=4) / 40_000
    assert ((counts - weights).abs() < 5 * (weights * (1 - weights) / 40_000).sqrt()).all()
    for k in range(4):
        mine = z[labels == k]
        error = (covariances[k].diagonal() / len(mine)).sqrt()
        assert ((mine.mean(0) - means[k]).abs() < 5 * error).all()
        torch.testing.assert_close(torch.cov(mine.T), covariances[k], rtol=0.1, atol=0.2)


def test_state_round_trip_and_selection():
    model, potentials = random_model(), random_potentials()
    again = GaussianMixtureModel.from_state(model.state())
    order = torch.tensor([2, 0, 3, 1])
    permuted = model.select(order)
    settings = FixedPointSettings()
    a, b, c = (m.infer(potentials, m.expected_params(), settings) for m in (model, again, permuted))
    assert torch.equal(a.responsibilities, b.responsibilities)
    torch.testing.assert_close(a.responsibilities[:, order], c.responsibilities)


def test_float32_agrees_with_float64():
    double = random_model()
    single = GaussianMixtureModel.from_state({k: v.float() for k, v in double.state().items()})
    potentials = random_potentials()
    settings = FixedPointSettings(tol=1e-5)
    want = double.infer(potentials, double.expected_params(), settings)
    floats = Potentials(*(field.float() for field in potentials))
    got = single.infer(floats, single.expected_params(), settings)
    assert got.mean.dtype == torch.float32
    torch.testing.assert_close(got.local_kl.double(), want.local_kl, rtol=1e-4, atol=1e-3)


def test_non_finite_potentials_are_an_error():
    model, (r, R) = random_model(), random_potentials()
    with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
        model.infer(Potentials(r, R * float("nan")), model.expected_params(), FixedPointSettings())
