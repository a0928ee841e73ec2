# SPDX-License-Identifier: BSD-3-Clause
"""Models and optimisers as arrays, and back."""

import dataclasses
import io
import pickle

import joblib
import numpy as np
import pytest
import torch

from sksvae.graphical import GRAPHICAL_MODELS, StandardNormalModel
from sksvae.importance import importance_bound
from sksvae.likelihoods import LIKELIHOODS, get_likelihood
from sksvae.objective import Rows
from sksvae.persistence import (
    Architecture,
    load_optimizer,
    model_from_arrays,
    model_to_arrays,
    optimizer_to_arrays,
)
from sksvae.sequence_objective import SequenceVAE
from sksvae.training import Trainer, TrainingSettings

from .graphical.switching_cases import random_model
from .models import (
    LATENT_DIM,
    N_FEATURES,
    TIGHT,
    bent_coordinates,
    build,
    cubature,
    data,
    generator,
    mixture,
    nonlinear_model,
    normal,
)

ARCHITECTURE = Architecture(
    n_features=N_FEATURES,
    latent_dim=LATENT_DIM,
    hidden_layer_sizes=(6,),
    activation="tanh",
    likelihood=get_likelihood("gaussian"),
    graphical="mixture",
    settings=TIGHT,
    device="cpu",
)
GRAPHICAL = {"mixture": lambda: mixture(3), "standard_normal": lambda: StandardNormalModel(2)}


def a_model(likelihood="gaussian", graphical="mixture", dtype=torch.float64):
    """A model with nothing left at its starting value."""
    ones = torch.ones(N_FEATURES, dtype=torch.float64)
    model = nonlinear_model(
        GRAPHICAL[graphical](), get_likelihood(likelihood), location=0.1 * ones, scale=0.5 * ones
    )
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=seed))
    model = model.to(dtype)
    state = model.graphical.state()
    model.graphical = type(model.graphical).from_state({k: v.to(dtype) for k, v in state.items()})
    return model


def counts(dtype=torch.float64):
    x = torch.ones(5, N_FEATURES, dtype=dtype)
    x[1] = 0.0
    return Rows(x, normal(5, N_FEATURES).to(dtype))


def outputs_of(model, rows):
    noise = cubature(len(rows)).to(rows.observed.dtype)
    with torch.no_grad():
        return (
            model.elbo(rows, model.graphical.expected_params(), noise).bound,
            importance_bound(model, rows, noise[:, 0]),
            model.graphical.sample(5, generator())[0],
        )


# Models ------------------------------------------------------------------------------------------


def test_every_latent_structure_is_covered():
    assert set(GRAPHICAL) == set(GRAPHICAL_MODELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("likelihood", "graphical"),
    [(name, "mixture") for name in LIKELIHOODS] + [("gaussian", name) for name in GRAPHICAL],
)
def test_a_model_comes_back_to_the_bit(likelihood, graphical, dtype):
    model = a_model(likelihood, graphical, dtype)
    architecture = dataclasses.replace(
        ARCHITECTURE,
        likelihood=get_likelihood(likelihood),
        graphical=graphical,
        settings=dataclasses.replace(TIGHT, tol=1e-4),
    )
    model.settings = architecture.settings
    state = model_to_arrays(model)
    assert all(type(value) is np.ndarray for value in state.values())
    assert all(key.startswith(("networks.", "graphical.")) for key in state)
    again = model_from_arrays(pickle.loads(pickle.dumps(state)), architecture)
    assert {p.dtype for p in again.state_dict().values()} == {dtype}
    rows = counts(dtype)
    for got, want in zip(outputs_of(again, rows), outputs_of(model, rows), strict=True):
        assert torch.equal(got, want)
    back = model_to_arrays(again)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bent", [False, True])
def test_the_kind_of_switching_dynamics_comes_back(bent, tied, dtype):
    """Whether states share their noise, and latents have coordinates, shows in the arrays alone."""
    graphical = random_model(3, LATENT_DIM, dtype=dtype, tied=tied)
    ones = torch.ones(N_FEATURES, dtype=dtype)
    likelihood = get_likelihood("gaussian")
    model = SequenceVAE(
        N_FEATURES, LATENT_DIM, (6,), "tanh", likelihood, graphical, ones, ones, TIGHT
    ).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    if bent:
        model.coordinates = bent_coordinates(LATENT_DIM).to(dtype)
    architecture = dataclasses.replace(ARCHITECTURE, graphical="switching_dynamics")
    state = model_to_arrays(model)
    again = model_from_arrays(pickle.loads(pickle.dumps(state)), architecture)
    assert again.graphical.families == graphical.families
    back = model_to_arrays(again)
    assert back.keys() == state.keys()
    for key in state:
        assert back[key].dtype == state[key].dtype
        assert np.array_equal(back[key], state[key])
    draws = [m.graphical.sample(20, 3, generator()) for m in (model, again)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert (again.coordinates is not None) == bent
    assert torch.equal(*(m.decode(draws[0][0]) for m in (model, again)))


def test_a_model_without_hidden_layers():
    model = build(mixture(2))
    model.encoder.reset(torch.eye(N_FEATURES)[:, :LATENT_DIM], 2.0, generator())
    model.decoder.reset(torch.eye(N_FEATURES)[:, :LATENT_DIM], torch.zeros(0, 4), generator())
    architecture = dataclasses.replace(
        ARCHITECTURE, hidden_layer_sizes=(), likelihood=model.likelihood
    )
    again = model_from_arrays(model_to_arrays(model), architecture)
    for got, want in zip(outputs_of(again, data()), outputs_of(model, data()), strict=True):
        assert torch.equal(got, want)


def test_arrays_are_copies_of_the_model():
    model = a_model()
    state = model_to_arrays(model)
    kept = {key: value.copy() for key, value in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
        model.graphical.posterior.components.mean.fill_(7.0)
    assert all(np.array_equal(state[key], kept[key]) for key in state)


def test_a_rebuilt_model_can_be_trained():
    """Its parameters are leaves of an optimiser like any others."""
    model = model_from_arrays(model_to_arrays(a_model()), ARCHITECTURE)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert not model.link_location.requires_grad
    settings = TrainingSettings(max_iter=1, batch_size=6, learning_rate=0.01)
    before = model_to_arrays(model)
    Trainer(model, 6, settings, generator()).step(data(6), 0.1)
    after = model_to_arrays(model)
    fixed = {"networks.link_location", "networks.link_scale"}
    fixed |= {key for key in after if key.startswith("graphical.prior")}
    for key in after:
        assert np.array_equal(before[key], after[key]) == (key in fixed)


def test_a_missing_array_is_an_error():
    state = model_to_arrays(a_model())
    del state["networks.encoder.bias"]
    with pytest.raises(RuntimeError, match=r"encoder\.bias"):
        model_from_arrays(state, ARCHITECTURE)


def test_arrays_of_another_shape_are_an_error():
    state = model_to_arrays(a_model())
    other = dataclasses.replace(ARCHITECTURE, hidden_layer_sizes=(7,))
    with pytest.raises(RuntimeError, match="size mismatch"):
        model_from_arrays(state, other)


@pytest.mark.filterwarnings("error")
def test_read_only_memory_maps_of_joblib(tmp_path):
    """Loaded without a warning, and never written to."""
    model = a_model()
    path = tmp_path / "state.joblib"
    joblib.dump(model_to_arrays(model), path)
    mapped = joblib.load(path, mmap_mode="r")
    assert any(isinstance(value, np.memmap) for value in mapped.values())
    again = model_from_arrays(mapped, ARCHITECTURE)
    rows = data(6)
    for got, want in zip(outputs_of(again, rows), outputs_of(model, rows), strict=True):
        assert torch.equal(got, want)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(7.0)
    assert not (joblib.load(path)["networks.encoder.bias"] == 7.0).any()


# Optimisers --------------------------------------------------------------------------------------


def trained(n_steps, dtype=torch.float64):
    model = a_model(dtype=dtype)
    model.settings = dataclasses.replace(TIGHT, tol=1e-4)
    settings = TrainingSettings(max_iter=1, batch_size=6, learning_rate=0.01, anneal=False)
    trainer = Trainer(model, 6, settings, generator())
    for _ in range(n_steps):
        trainer.step(Rows(*(field.to(dtype) for field in data(6))), 0.1)
    return trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_training_goes_on_as_if_never_interrupted(dtype):
    straight = trained(3, dtype)
    broken = trained(3, dtype)
    stored = io.BytesIO()
    joblib.dump([model_to_arrays(broken.model), optimizer_to_arrays(broken.optimizer)], stored)
    stored.seek(0)
    state, optimizer_state = joblib.load(stored)
    architecture = dataclasses.replace(ARCHITECTURE, settings=broken.model.settings)
    rebuilt = model_from_arrays(state, architecture)
    resumed = Trainer(rebuilt, 6, broken.settings, broken.generator)
    load_optimizer(resumed.optimizer, optimizer_state)
    rows = Rows(*(field.to(dtype) for field in data(6)))
    for trainer in (straight, resumed):
        for _ in range(2):
            trainer.step(rows, 0.1)
    got, want = (model_to_arrays(trainer.model) for trainer in (resumed, straight))
    assert all(np.array_equal(got[key], want[key]) for key in want)
    got, want = (optimizer_to_arrays(trainer.optimizer) for trainer in (resumed, straight))
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[key], want[key]) for key in want)


def test_without_the_optimiser_training_goes_another_way():
    """So the test above can fail."""
    straight, restarted = trained(5), trained(3)
    fresh = Trainer(restarted.model, 6, restarted.settings, restarted.generator)
    for _ in range(2):
        fresh.step(data(6), 0.1)
    got, want = (model_to_arrays(trainer.model) for trainer in (fresh, straight))
    assert not np.allclose(got["networks.encoder.bias"], want["networks.encoder.bias"], atol=1e-4)


def test_optimizer_arrays_are_copies_with_one_key_per_parameter_and_moment():
    trainer = trained(2)
    state = optimizer_to_arrays(trainer.optimizer)
    n_parameters = len(list(trainer.model.parameters()))
    names = {"step", "exp_avg", "exp_avg_sq"}
    assert state.keys() == {f"{i}.{name}" for i in range(n_parameters) for name in names}
    assert all(type(value) is np.ndarray for value in state.values())
    assert all(state[f"{i}.step"] == 2 for i in range(n_parameters))
    kept = {key: value.copy() for key, value in state.items()}
    other = trained(0)
    load_optimizer(other.optimizer, state)
    for stepped in (trainer, other):
        stepped.step(data(6), 0.1)
    assert all(np.array_equal(state[key], kept[key]) for key in state)


def test_an_optimiser_that_took_no_step_has_no_state():
    state = optimizer_to_arrays(trained(0).optimizer)
    assert state == {}
    other = trained(0)
    load_optimizer(other.optimizer, state)
    other.step(data(6), 0.1)


def test_loading_keeps_the_learning_rate_of_the_optimiser():
    state = optimizer_to_arrays(trained(2).optimizer)
    other = trained(0)
    other.optimizer.param_groups[0]["lr"] = 0.125
    load_optimizer(other.optimizer, state)
    assert other.optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.filterwarnings("error")
def test_read_only_optimizer_arrays(tmp_path):
    path = tmp_path / "optimizer.joblib"
    joblib.dump(optimizer_to_arrays(trained(2).optimizer), path)
    other = trained(0)
    load_optimizer(other.optimizer, joblib.load(path, mmap_mode="r"))
    other.step(data(6), 0.1)
    assert all(
        value == 3 for key, value in optimizer_to_arrays(other.optimizer).items() if "step" in key
    )
