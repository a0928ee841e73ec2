# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every registered latent structure; each needs a case below."""

import dataclasses
import itertools
import math

import pytest
import torch
from scipy import integrate

from sksvae.graphical import (
    GRAPHICAL_MODELS,
    GaussianMixtureModel,
    GraphicalModel,
    MixturePrior,
    Posterior,
    Potentials,
    StandardNormalModel,
)
from sksvae.inference import FixedPointSettings

TIGHT = FixedPointSettings(max_updates=2000, tol=1e-14, solver_tol=1e-13)
N_ROWS = 12
N_SIGMA = 5.0


def normal(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def mixture_case(dim, dtype):
    """Three overlapping components, learned from 60 points."""
    n_components = 3
    prior = MixturePrior.symmetric(
        n_components, 0.5, torch.ones(dim, dtype=dtype), 0.3, torch.eye(dim, dtype=dtype), dim + 1.0
    )
    model = GaussianMixtureModel(prior)
    points = normal(60, dim, seed=0).to(dtype) + 1.5 * torch.arange(60)[:, None] // 20
    labels = torch.nn.functional.one_hot(torch.arange(60) // 20, n_components).to(dtype)
    covariance = 0.1 * torch.eye(dim, dtype=dtype).expand(60, dim, dim)
    nothing = torch.zeros(60, dtype=dtype)
    root = torch.linalg.cholesky(covariance)
    rows = Posterior(points, covariance, root, labels, nothing, nothing, nothing == 0)
    model.coordinate_update(model.total_stats(rows))
    return model


# Registered name -> builder of a model that has learned something, if there is anything to learn.
CASES = {
    "mixture": mixture_case,
    "standard_normal": StandardNormalModel,
}

each_model = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def build(name, dim=2, dtype=torch.float64):
    return CASES[name](dim, dtype)


def potentials_of(dim=2, dtype=torch.float64, n_rows=N_ROWS):
    R = normal(n_rows, dim, seed=1).exp()
    return Potentials((2 * R * normal(n_rows, dim, seed=2)).to(dtype), R.to(dtype))


def infer(model, potentials, settings=TIGHT):
    return model.infer(potentials, model.expected_params(), settings)


def surrogate(potentials, posterior):
    """``E_q[log l(z)] - local_kl`` of each row."""
    r, R = potentials
    second = posterior.covariance.diagonal(dim1=-2, dim2=-1) + posterior.mean.square()
    return (r * posterior.mean - 0.5 * R * second).sum(-1) - posterior.local_kl


def posterior_fields(posterior):
    return {f.name: getattr(posterior, f.name) for f in dataclasses.fields(posterior)}


def test_every_registered_model_has_a_case():
    assert set(CASES) == set(GRAPHICAL_MODELS)


@each_model
def test_the_registry_gives_the_type_of_the_case(name):
    assert issubclass(GRAPHICAL_MODELS[name], GraphicalModel)
    assert type(build(name)) is GRAPHICAL_MODELS[name]
    assert build(name, dim=3).latent_dim == 3


# Inference ---------------------------------------------------------------------------------------


@each_model
@each_dtype
@pytest.mark.parametrize("dim", [1, 3])
def test_posteriors_have_the_stated_shapes_and_dtype(name, dtype, dim):
    posterior = infer(build(name, dim, dtype), potentials_of(dim, dtype), FixedPointSettings())
    n_components = posterior.responsibilities.shape[1]
    shapes = {
        "mean": (N_ROWS, dim),
        "covariance": (N_ROWS, dim, dim),
        "root": (N_ROWS, dim, dim),
        "responsibilities": (N_ROWS, n_components),
        "local_kl": (N_ROWS,),
        "n_updates": (N_ROWS,),
        "converged": (N_ROWS,),
    }
    dtypes = {"n_updates": torch.long, "converged": torch.bool}
    for field, value in posterior_fields(posterior).items():
        assert tuple(value.shape) == shapes[field]
        assert value.dtype == dtypes.get(field, dtype)
    assert posterior.converged.all()
    assert (posterior.responsibilities >= 0).all()
    torch.testing.assert_close(
        posterior.responsibilities.sum(-1), torch.ones(N_ROWS, dtype=dtype), rtol=1e-5, atol=0.0
    )
    draws = posterior.draw(torch.zeros(4, N_ROWS, dim, dtype=dtype))
    torch.testing.assert_close(draws, posterior.mean.expand(4, N_ROWS, dim))


@each_model
def test_local_kl_is_not_negative(name):
    """``exp E[log p(z, k | theta)]`` integrates to one at most."""
    scales = 10.0 ** torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None]
    z = normal(33, 2, seed=4)
    posterior = infer(build(name), Potentials(scales * z, scales.expand(33, 2)))
    assert (posterior.local_kl >= 0).all()
    assert posterior.local_kl[-1] > 1.0  # precise potentials are far from any prior


@each_model
def test_the_surrogate_bounds_the_evidence_of_the_potentials(name):
    """``log int l(z) p(z) dz`` by quadrature, p(z) with theta integrated out."""
    model, potentials = build(name, dim=1), potentials_of(dim=1, n_rows=6)
    bound = surrogate(potentials, infer(model, potentials))
    for n, (r, R) in enumerate(zip(*(field[:, 0].tolist() for field in potentials), strict=True)):

        def integrand(z, r=r, R=R):
            log_prior = model.log_predictive(torch.tensor([z], dtype=torch.float64)).item()
            return math.exp(r * z - 0.5 * R * z * z + log_prior)

        evidence = math.log(integrate.quad(integrand, -30, 30, points=[r / R], limit=200)[0])
        assert bound[n] <= evidence + 1e-9
        assert bound[n] > evidence - 1.5  # and it is a bound of some use
        if name == "standard_normal":
            assert bound[n].item() == pytest.approx(evidence, abs=1e-7)


@each_model
def test_rows_do_not_interact(name):
    model, potentials = build(name), potentials_of()
    together = posterior_fields(infer(model, potentials))
    rows = torch.tensor([7, 2])
    some = posterior_fields(infer(model, Potentials(*(field[rows] for field in potentials))))
    for field in together:
        torch.testing.assert_close(some[field], together[field][rows], rtol=1e-12, atol=1e-12)


@each_model
@pytest.mark.parametrize("method", ["cg", "richardson", "unrolled"])
def test_gradients_with_respect_to_potentials_agree_with_finite_differences(name, method):
    model, potentials = build(name), potentials_of(n_rows=2)
    settings = dataclasses.replace(TIGHT, gradient=method)

    def everything(r, log_R):
        posterior = model.infer(Potentials(r, log_R.exp()), model.expected_params(), settings)
        return posterior.mean, posterior.covariance, posterior.responsibilities, posterior.local_kl

    inputs = potentials.precision_mean.requires_grad_(), potentials.precision.log().requires_grad_()
    assert torch.autograd.gradcheck(everything, inputs, atol=1e-6, check_undefined_grad=False)


@each_model
def test_single_precision_agrees_with_double(name):
    double, single = build(name), build(name, dtype=torch.float32)
    want = infer(double, potentials_of(), FixedPointSettings())
    got = infer(single, potentials_of(dtype=torch.float32), FixedPointSettings())
    for field in ("mean", "covariance", "responsibilities", "local_kl"):
        torch.testing.assert_close(
            getattr(got, field).double(), getattr(want, field), rtol=1e-3, atol=1e-4
        )
    z = normal(5, 2, seed=3)
    torch.testing.assert_close(
        single.log_predictive(z.float()).double(), double.log_predictive(z), rtol=1e-5, atol=1e-5
    )


# Learning ----------------------------------------------------------------------------------------


@each_model
def test_expected_params_are_leaves_that_collect_gradients(name):
    model, potentials = build(name), potentials_of()
    params = model.expected_params()
    posterior = model.infer(potentials, params, TIGHT)
    if params:
        (posterior.mean.sum() + posterior.local_kl.sum()).backward()
    assert all(param.is_leaf and param.grad.isfinite().all() for param in params)
    again = model.expected_params()
    assert all(a is not b and torch.equal(a, b) for a, b in zip(params, again, strict=True))


@each_model
def test_total_stats_are_the_gradient_of_the_surrogate(name):
    """By the envelope theorem, and because expected parameters enter the bound linearly."""
    model, potentials = build(name), potentials_of()
    params = model.expected_params()
    posterior = model.infer(potentials, params, TIGHT)
    stats = model.total_stats(posterior)
    assert len(stats) == len(params)
    if params:
        gradient = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
        for got, want in zip(stats, gradient, strict=True):
            assert not got.requires_grad
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


def assert_equal_models(a, b, tolerance=0.0):
    assert a.state().keys() == b.state().keys()
    for name, value in a.state().items():
        torch.testing.assert_close(value, b.state()[name], rtol=tolerance, atol=tolerance)


@each_model
def test_a_full_natural_step_is_the_coordinate_update(name):
    model, potentials = build(name), potentials_of()
    stats = model.total_stats(infer(model, potentials))
    again = type(model).from_state(model.state())
    model.coordinate_update(stats)
    again.natural_step(stats, 1.0)
    assert_equal_models(model, again, 1e-10)


@each_model
def test_coordinate_updates_never_lower_the_bound(name):
    model, potentials = build(name), potentials_of()
    bounds = []
    for _ in range(6):
        posterior = infer(model, potentials)
        bounds.append((surrogate(potentials, posterior).sum() - model.prior_kl()).item())
        model.coordinate_update(model.total_stats(posterior))
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(bounds))
    if model.expected_params():
        assert bounds[-1] > bounds[0] + 0.1


@each_model
def test_without_data_a_full_natural_step_returns_to_the_prior(name):
    model = build(name)
    learned = model.prior_kl()
    assert learned.shape == ()
    assert learned > 1.0 if model.expected_params() else learned == 0.0
    model.natural_step([torch.zeros_like(param) for param in model.expected_params()], 1.0)
    assert model.prior_kl().abs() < 1e-9


# Generation --------------------------------------------------------------------------------------


@each_model
def test_log_predictive_integrates_to_one(name):
    model = build(name, dim=1)

    def density(z):
        return math.exp(model.log_predictive(torch.tensor([z], dtype=torch.float64)).item())

    mass, _ = integrate.quad(density, -math.inf, math.inf, limit=200)
    assert mass == pytest.approx(1.0, abs=1e-6)


@each_model
def test_log_predictive_integrates_to_one_in_the_plane(name):
    axis = torch.linspace(-25, 27, 601, dtype=torch.float64)
    density = build(name, dim=2).log_predictive(torch.cartesian_prod(axis, axis)).exp()
    assert density.sum().item() * (52 / 600) ** 2 == pytest.approx(1.0, abs=1e-4)


@each_model
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_log_predictive_takes_any_leading_shape(name, shape):
    model, z = build(name), normal(*shape, 2, seed=5)
    got = model.log_predictive(z)
    assert got.shape == shape
    one_by_one = torch.stack([model.log_predictive(point) for point in z.view(-1, 2)])
    torch.testing.assert_close(got.flatten(), one_by_one)


@each_model
@each_dtype
def test_samples_come_from_the_generator_only(name, dtype):
    model = build(name, dtype=dtype)
    before = torch.random.get_rng_state()
    z, labels = model.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (z.shape, z.dtype) == ((50, 2), dtype)
    assert (labels.shape, labels.dtype) == ((50,), torch.long)
    posterior = infer(model, potentials_of(dtype=dtype), FixedPointSettings())
    n_components = posterior.responsibilities.shape[1]
    assert labels.min() >= 0
    assert labels.max() < n_components
    again = model.sample(50, torch.Generator().manual_seed(0))
    assert torch.equal(z, again[0])
    assert torch.equal(labels, again[1])
    assert not torch.equal(z, model.sample(50, torch.Generator().manual_seed(1))[0])


@each_model
def test_samples_are_where_the_predictive_density_is(name):
    """Their mean is that of the predictive, by quadrature in one dimension."""
    model = build(name, dim=1)

    def weighted(z):
        return z * math.exp(model.log_predictive(torch.tensor([z], dtype=torch.float64)).item())

    mean, _ = integrate.quad(weighted, -60, 60, points=[0.0, 3.0], limit=400)
    z, _ = model.sample(20_000, torch.Generator().manual_seed(0))
    assert abs(z.mean().item() - mean) < N_SIGMA * z.std().item() / 20_000**0.5 + 1e-3


# State -------------------------------------------------------------------------------------------


@each_model
@each_dtype
def test_state_round_trip(name, dtype):
    model, potentials = build(name, dtype=dtype), potentials_of(dtype=dtype)
    state = model.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = GRAPHICAL_MODELS[name].from_state(state)
    assert again.latent_dim == model.latent_dim
    assert_equal_models(model, again)
    settings = FixedPointSettings()
    first, second = (posterior_fields(infer(m, potentials, settings)) for m in (model, again))
    assert all(torch.equal(first[field], second[field]) for field in first)
    samples = [m.sample(9, torch.Generator().manual_seed(0))[0] for m in (model, again)]
    assert torch.equal(*samples)
    assert samples[0].dtype == samples[1].dtype == dtype


@each_model
def test_a_state_is_not_changed_by_learning(name):
    """So that the best of several epochs can be kept without a copy."""
    model, potentials = build(name), potentials_of()
    state = model.state()
    kept = {key: value.clone() for key, value in state.items()}
    stats = model.total_stats(infer(model, potentials))
    model.natural_step(stats, 0.3)
    model.coordinate_update(stats)
    assert all(torch.equal(state[key], kept[key]) for key in state)
    if stats:
        assert any(not torch.equal(model.state()[key], kept[key]) for key in kept)
