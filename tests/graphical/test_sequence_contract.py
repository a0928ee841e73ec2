# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every registered latent structure over sequences; each needs a case below."""

import dataclasses
import itertools

import pytest
import torch

from sksvae.graphical import SEQUENCE_MODELS, ChainPosterior, Potentials, SequenceModel
from sksvae.inference import FixedPointSettings
from tests.graphical import dynamics_cases, switching_cases
from tests.graphical.dynamics_cases import LOCAL, assert_close, normal, random_evidence, surrogate

TIGHT = FixedPointSettings(max_updates=5000, tol=1e-14, solver_tol=1e-13)
LENGTHS = [6, 1, 4]

# Registered name, and kind after a comma -> builder of a model that has learned something, and its
# number of states.
CASES = {
    "linear_dynamics": (lambda dim, dtype: dynamics_cases.random_model(dim, dtype=dtype), 1),
    "switching_dynamics": (lambda dim, dtype: switching_cases.random_model(3, dim, dtype=dtype), 3),
    "switching_dynamics, tied": (
        lambda dim, dtype: switching_cases.random_model(3, dim, dtype=dtype, tied=True),
        3,
    ),
}

each_model = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def build(name, dim=2, dtype=torch.float64):
    return CASES[name][0](dim, dtype)


def model_type(name):
    return SEQUENCE_MODELS[name.split(",")[0]]


def infer(model, potentials, mask, settings=TIGHT, **options):
    return model.infer(potentials, model.expected_params(), mask, settings=settings, **options)


def test_every_registered_model_has_a_case():
    assert {name.split(",")[0] for name in CASES} == set(SEQUENCE_MODELS)
    for name in CASES:
        assert issubclass(model_type(name), SequenceModel)
        assert type(build(name)) is model_type(name)
        assert build(name, dim=3).latent_dim == 3


@each_model
@each_dtype
@pytest.mark.parametrize("dim", [1, 3])
def test_posteriors_have_the_stated_shapes_and_dtype(name, dtype, dim):
    potentials, mask = random_evidence(LENGTHS, dim, dtype=dtype)
    noise = normal(2, 3, 6, dim, seed=3, dtype=dtype)
    posterior = infer(build(name, dim, dtype), potentials, mask, FixedPointSettings(), noise=noise)
    shapes = {
        "mean": (3, 6, dim),
        "covariance": (3, 6, dim, dim),
        "lag_covariance": (3, 5, dim, dim),
        "draws": (2, 3, 6, dim),
        "local_kl": (3,),
        "second_moment": (3, 6, dim, dim),
        "lag_moment": (3, 5, dim, dim),
    }
    assert isinstance(posterior, ChainPosterior)
    for field, shape in shapes.items():
        assert tuple(getattr(posterior, field).shape) == shape
        assert getattr(posterior, field).dtype == dtype
    assert torch.equal(posterior.mask, mask)
    assert (posterior.local_kl >= 0).all()
    assert (posterior.mean[~mask] == 0).all()


@each_model
@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_sequences_do_not_interact(name, method):
    model = build(name)
    potentials, mask = random_evidence(LENGTHS)
    noise = normal(2, 3, 6, 2, seed=3)
    together = infer(model, potentials, mask, noise=noise, method=method)
    rows = torch.tensor([2, 0])
    some = Potentials(*(field[rows] for field in potentials))
    alone = infer(model, some, mask[rows], noise=noise[:, rows], method=method)
    for field in LOCAL:
        assert_close(getattr(alone, field), getattr(together, field)[rows], rtol=1e-9, atol=1e-10)
    assert_close(alone.draws, together.draws[:, rows], rtol=1e-9, atol=1e-10)


@each_model
def test_total_stats_are_the_gradient_of_the_surrogate(name):
    """By the envelope theorem, and because expected parameters enter the bound linearly."""
    model = build(name)
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()
    assert all(param.is_leaf and param.requires_grad for param in params)
    posterior = model.infer(potentials, params, mask, settings=TIGHT)
    gradient = torch.autograd.grad(surrogate(potentials, posterior).sum(), params)
    for got, want in zip(model.total_stats(posterior), gradient, strict=True):
        assert not got.requires_grad
        assert_close(got, want, rtol=1e-8, atol=1e-9)


@each_model
def test_coordinate_updates_never_lower_the_bound(name):
    model = build(name)
    potentials, mask = random_evidence(LENGTHS)
    bounds, start = [], None
    for _ in range(6):
        posterior = infer(model, potentials, mask, start=start)
        bounds.append((surrogate(potentials, posterior).sum() - model.prior_kl()).item())
        start = getattr(posterior, "states", None)
        model.coordinate_update(model.total_stats(posterior))
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0] + 0.1


@each_model
def test_without_data_a_full_natural_step_returns_to_the_prior(name):
    model = build(name)
    assert model.prior_kl() > 1
    model.natural_step([torch.zeros_like(param) for param in model.expected_params()], 1.0)
    assert model.prior_kl().abs() < 1e-9


@each_model
@each_dtype
def test_state_round_trip(name, dtype):
    model = build(name, dtype=dtype)
    potentials, mask = random_evidence(LENGTHS, dtype=dtype)
    again = model_type(name).from_state(model.state())
    assert again.state().keys() == model.state().keys()
    first, second = (infer(m, potentials, mask, FixedPointSettings()) for m in (model, again))
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))


@each_model
@each_dtype
def test_samples_come_from_the_generator_only(name, dtype):
    model, n_states = build(name, dtype=dtype), CASES[name][1]
    before = torch.random.get_rng_state()
    z, states = model.sample(5, 40, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (z.shape, z.dtype) == ((40, 5, 2), dtype)
    assert (states.shape, states.dtype) == ((40, 5), torch.long)
    assert states.unique().tolist() == list(range(n_states))
    assert torch.equal(z, model.sample(5, 40, torch.Generator().manual_seed(0))[0])
    assert not torch.equal(z, model.sample(5, 40, torch.Generator().manual_seed(1))[0])
