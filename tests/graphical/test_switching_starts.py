# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics: where inference starts."""

import dataclasses

import numpy as np
import pytest
import torch

from sksvae.graphical import Potentials
from sksvae.graphical.switching_inference import SwitchingProblem
from sksvae.graphical.switching_starts import filter_states
from sksvae.inference import FixedPointSettings
from tests.graphical.dynamics_cases import assert_close, normal, random_evidence, surrogate, take
from tests.graphical.switching_cases import (
    LENGTHS,
    converted,
    enumerate_paths,
    infer,
    log_evidence,
    random_model,
    switching_data,
)

EXACT = {"rtol": 1e-9, "atol": 1e-10}


def assert_equal_posteriors(got, want):
    for field in dataclasses.fields(want):
        assert torch.equal(getattr(got, field.name), getattr(want, field.name))


# Starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["filter", "local", "average"])
def test_starts_are_marginals_that_a_batch_does_not_change(kind):
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    params = model.expected_params()
    states = model.starting_states(potentials, params, mask, kind)
    assert not states.requires_grad
    assert_close(states.sum(-1), mask.double())
    alone = Potentials(*(field[2:3, :4] for field in potentials))
    got = model.starting_states(alone, params, mask[2:3, :4], kind)
    assert_close(got, states[2:3, :4], **EXACT)
    with pytest.raises(ValueError, match=r"kind must be 'filter', .* got 'random'"):
        model.starting_states(potentials, params, mask, "random")


def test_the_local_start_finds_states_that_are_plain_to_see():
    truth, potentials, states = switching_data(noise=1e-4)
    mask = torch.ones(states.shape, dtype=torch.bool)
    first = truth.starting_states(potentials, truth.expected_params(), mask, "local")
    assert (first.argmax(-1) == states).double().mean() > 0.9


def test_the_filter_is_the_default_and_a_fixed_point_stays():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    start = model.starting_states(potentials, model.expected_params(), mask)
    default, named = infer(model, potentials, mask), infer(model, potentials, mask, start=start)
    assert_equal_posteriors(named, default)
    settings = FixedPointSettings(tol=1e-9)
    again = infer(model, potentials, mask, settings, start=default.states)
    assert (again.n_updates == 1).all()
    assert_close(again.local_kl, default.local_kl, **EXACT)


def test_padding_of_a_start_is_not_read():
    model = random_model()
    potentials, mask = random_evidence(LENGTHS)
    start = infer(model, potentials, mask, FixedPointSettings(max_updates=3)).states.detach()
    got = [
        infer(model, potentials, mask, start=start.masked_fill(~mask.unsqueeze(-1), value))
        for value in (0.0, torch.nan)
    ]
    assert_equal_posteriors(*got)


def test_the_best_of_several_starts_is_the_best_for_each_sequence():
    truth, potentials, _ = switching_data(n_sequences=6, noise=0.3)
    mask = torch.arange(80) < torch.tensor([80, 50, 80, 20, 80, 3])[:, None]
    params = truth.expected_params()
    random = normal(6, 80, 3, seed=4).mul(3).softmax(-1)
    starts = ["average", random, "local"]
    noise = normal(2, 6, 80, 2, seed=5)
    best = truth.infer_best(potentials, params, mask, starts, noise=noise)
    assert not best.mean.requires_grad
    each = [
        infer(truth, potentials, mask, FixedPointSettings(), noise=noise, start=start)
        for start in (
            truth.starting_states(potentials, params, mask, "average"),
            random,
            truth.starting_states(potentials, params, mask, "local"),
        )
    ]
    bounds = torch.stack([surrogate(potentials, posterior) for posterior in each]).detach()
    assert_close(surrogate(potentials, best), bounds.amax(0))
    winner = bounds.argmax(0)
    assert len(set(winner.tolist())) > 1
    for n, w in enumerate(winner.tolist()):
        assert_close(best.states[n], each[w].states[n].detach())
        assert_close(best.draws[:, n], each[w].draws[:, n].detach())
    with pytest.raises(ValueError, match="at least one start"):
        truth.infer_best(potentials, params, mask, [])


# The filter --------------------------------------------------------------------------------------


def filtered(model, potentials, mask, params=None):
    params = model.point_stats() if params is None else params
    return filter_states(SwitchingProblem.build(potentials, params, mask).fixed())


def evidence_of_paths(model, potentials, mask, n):
    """Paths and ``log p(k) int l(z) p(z | k) dz`` of each."""
    every = enumerate_paths(model, int(mask[n].sum()))
    r, R = take(potentials, mask, n)
    each = [
        log_evidence(type(every)(*(field[i : i + 1] for field in every)), r, R)
        for i in range(len(every.paths))
    ]
    return every.paths, np.array(each)


def test_the_filter_is_exact_in_two_steps():
    """There is no mixture to replace before the third. With known parameters."""
    model = random_model(certainty=1e10)
    potentials, mask = random_evidence([2, 1, 2, 2])
    states = filtered(model, potentials, mask, model.expected_params())
    for n, n_steps in enumerate([2, 1, 2, 2]):
        paths, log_weights = evidence_of_paths(model, potentials, mask, n)
        q = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        for t in range(n_steps):
            want = np.bincount(paths[:, t], q, 3)
            assert_close(states[n, t].numpy(), want, rtol=1e-6, atol=1e-7)


def test_the_filter_is_exact_where_states_never_change():
    """As mixtures have one part each; states are then told apart by all of the evidence."""
    model, n_steps = random_model(certainty=1e10), 5
    potentials, mask = random_evidence([n_steps], unobserved=0.4)
    params = list(model.point_stats())
    params[9] = torch.eye(3, dtype=torch.float64).log()
    states = filtered(model, potentials, mask, tuple(params))
    paths, log_weights = evidence_of_paths(model, potentials, mask, 0)
    constant = log_weights[(paths == paths[:, :1]).all(1)]
    # Without the probabilities of staying
    stay = model.expected_params()[9].diagonal().detach().numpy() * (n_steps - 1)
    want = np.exp(constant - stay - np.logaddexp.reduce(constant - stay))
    assert_close(states[0].numpy(), np.broadcast_to(want, (n_steps, 3)), rtol=1e-6, atol=1e-7)


def test_the_filter_doubts_states_that_are_not_known():
    """Two states with the same mean, one of them certain."""
    model = random_model(2)
    dynamics = model.posterior.dynamics
    dynamics = type(dynamics)(*(field[[0, 0]] for field in dynamics))
    surer = torch.tensor([1e4, 1.0], dtype=torch.float64)[:, None, None]
    dynamics = dynamics._replace(mean_precision=surer * dynamics.mean_precision)
    even = torch.ones_like(model.posterior.transitions.concentration)
    model.posterior = model.posterior._replace(
        dynamics=dynamics, transitions=model.posterior.transitions._replace(concentration=even)
    )
    potentials, mask = random_evidence([6], unobserved=0.0)
    states = filtered(model, potentials, mask, model.expected_params())
    assert (states[0, 1:, 0] > 0.5).all()


def test_long_sequences_are_filtered_in_stretches():
    truth, potentials, _ = switching_data(1300, 2, noise=0.5)
    mask = torch.arange(1300) < torch.tensor([1300, 450])[:, None]
    problem = SwitchingProblem.build(potentials, truth.expected_params(), mask).fixed()
    in_stretches = filter_states(problem)
    assert_close(in_stretches.sum(-1), mask.double())
    for n, n_steps in enumerate([1300, 450]):
        alone = Potentials(*(field[n : n + 1, :n_steps] for field in potentials))
        got = filtered(truth, alone, mask[n : n + 1, :n_steps], truth.expected_params())
        assert_close(got[0], in_stretches[n, :n_steps], **EXACT)
        # Cut at other places
        rest = Potentials(*(field[:, 150:] for field in alone))
        got = filtered(truth, rest, mask[n : n + 1, 150:n_steps], truth.expected_params())
        assert_close(got[0, 50:], in_stretches[n, 200:n_steps], rtol=0.0, atol=1e-4)


def test_where_the_filter_overflows_another_start_takes_over():
    model = random_model()
    dynamics = model.posterior.dynamics
    mean = dynamics.mean.clone()
    mean[..., :2] *= 4.0
    model.posterior = model.posterior._replace(dynamics=dynamics._replace(mean=mean))
    (r, R), mask = random_evidence([400, 400], unobserved=0.0)
    r[0, 5:] = R[0, 5:] = 0.0
    params = model.expected_params()
    states = model.starting_states(Potentials(r, R), params, mask)
    assert not filtered(model, Potentials(r, R), mask, params)[0].isfinite().all()
    average = model.starting_states(Potentials(r, R), params, mask, "average")
    assert torch.equal(states[0], average[0])
    assert not torch.allclose(states[1], average[1])


def test_the_filter_in_single_precision():
    truth, potentials, _ = switching_data()
    mask = torch.ones(3, 80, dtype=torch.bool)
    for factor in (1.0, 1e6):
        scaled = Potentials(*(factor * field for field in potentials))
        floats = Potentials(*(field.float() for field in scaled))
        want = truth.starting_states(scaled, truth.expected_params(), mask)
        single = converted(truth, torch.float32)
        got = single.starting_states(floats, single.expected_params(), mask)
        assert got.dtype == torch.float32
        assert_close(got.double(), want, rtol=0.0, atol=1e-3)


def test_the_filter_starts_near_the_best():
    """Better than from averaged dynamics, and no worse than from the true states."""
    truth, potentials, states = switching_data(n_sequences=6, noise=0.3)
    mask = torch.ones(6, 80, dtype=torch.bool)
    known = torch.nn.functional.one_hot(states, 3).double()
    bounds = [
        surrogate(potentials, infer(truth, potentials, mask, FixedPointSettings(), start=start))
        for start in (
            truth.starting_states(potentials, truth.expected_params(), mask, "filter"),
            truth.starting_states(potentials, truth.expected_params(), mask, "average"),
            known,
        )
    ]
    from_filter, from_average, from_truth = (bound.mean().item() for bound in bounds)
    assert from_filter > from_average + 50
    assert from_filter > from_truth - 5
