# SPDX-License-Identifier: BSD-3-Clause
"""Which states are given up after training, their order, and what is remembered of them."""

import functools

import numpy as np
import pytest
import torch

from sksvae.estimators.scaling import Scaling
from sksvae.estimators.sequence_start import dynamics_bound, fit_dynamics
from sksvae.estimators.state_moves import drop_states, order_states, recall_states, state_weights
from sksvae.expfam import TiedMNIWParams
from sksvae.graphical import SwitchingDynamicsModel
from sksvae.sequence_objective import SequenceRows

from .switching_cases import LOCATION, SCALE, TURNS, known, turning

_, X, STATES = turning()
CHUNK = 70  # two sequences at a time


@functools.cache
def estimator(extra):
    """Return an estimator with states that do not occur in the data, the first of all."""
    eye = np.tile(np.eye(2), (extra, 1, 1))
    return known(
        A=np.concatenate([-eye, TURNS["A"]]),
        b=np.concatenate([np.full((extra, 2), 5.0), TURNS["b"]]),
        Q=np.concatenate([0.01 * eye, TURNS["Q"]]),
        initial_states=np.ones(2 + extra),
        transitions=0.02 + 0.94 * np.eye(2 + extra),
    )


def build(extra=0, memory=True, uncut=None, length=30):
    """Model whose q(theta) has counted sequences from known dynamics, and these."""
    fitted = estimator(extra)
    model = fitted._rebuild(to_train=True)
    rows = fitted._stacked(
        X.reshape(-1, 3),
        np.full(120 // length, length),
        Scaling(LOCATION, SCALE),
        fitted._fitted_likelihood(),
    )
    if memory:
        rows = rows.with_memory(uncut)
        fit_dynamics(model, rows, max_iter=2, tol=0.0, chunk=10_000)
    return model, rows


# ---- weights ----


def test_weights_are_shares_of_the_steps():
    model, rows = build()
    weights = state_weights(model.graphical)
    assert weights.sum() == pytest.approx(1.0)
    counts = rows.memory.states.mean(0)
    torch.testing.assert_close(weights, counts, atol=1e-2, rtol=0)
    np.testing.assert_allclose(weights, np.bincount(STATES.ravel()) / STATES.size, atol=0.05)


def test_states_that_have_counted_nothing_weigh_the_same():
    prior = build()[0].graphical.prior
    torch.testing.assert_close(
        state_weights(SwitchingDynamicsModel(prior)), torch.full((2,), 0.5, dtype=torch.float64)
    )


def test_states_that_share_their_noise_are_weighed_and_selected():
    graphical = build()[0].graphical

    def shared(params):
        scale, mean, mean_precision, dof = params.dynamics
        return params._replace(dynamics=TiedMNIWParams(scale[0], mean, mean_precision, dof.sum()))

    tied = SwitchingDynamicsModel(shared(graphical.prior), shared(graphical.posterior))
    weights = state_weights(tied)
    torch.testing.assert_close(weights, state_weights(graphical))
    turned = state_weights(tied.select(torch.tensor([1, 0])))
    torch.testing.assert_close(turned, weights.flip(0))


# ---- giving up ----


@pytest.mark.parametrize("memory", [True, False])
def test_states_that_do_not_occur_go_and_the_bound_rises(memory):
    model, rows = build(extra=2)
    if not memory:
        rows = SequenceRows(*rows[:3])
    before, kept = dynamics_bound(model, rows, chunk=CHUNK), model.graphical.posterior.dynamics
    weights = state_weights(model.graphical)
    assert (weights[:2] < 0.01).all()
    assert (weights[2:] > 0.1).all()
    drop_states(model, rows, chunk=CHUNK)
    assert model.graphical.n_states == 2
    assert dynamics_bound(model, rows, chunk=CHUNK) > before
    for field, whole in zip(model.graphical.posterior.dynamics, kept, strict=True):
        assert torch.equal(field, whole[2:])
    if memory:
        assert rows.memory.states.shape == (120, 2)
        torch.testing.assert_close(
            rows.memory.states.sum(1), torch.ones(120, dtype=torch.float64), atol=1e-6, rtol=0
        )
        assert (rows.memory.states.argmax(1).numpy() == STATES.ravel()).mean() > 0.9


def test_steps_of_a_state_that_goes_prefer_none_of_the_others(monkeypatch):
    """Such as all of the probability that they had."""
    model, rows = build(extra=1)
    drop = "sksvae.estimators.state_moves.dynamics_bound"
    remembered = []

    def bound(model, rows, chunk):
        if model.graphical.n_states == 3:
            rows.memory.states[:5] = torch.tensor([1.0, 0.0, 0.0])
            return 0.0
        remembered.append(rows.memory.states.clone())
        return 1.0

    monkeypatch.setattr(drop, bound)
    drop_states(model, rows, chunk=CHUNK)
    assert model.graphical.n_states == 2
    assert (remembered[0][:5] == 0.5).all()
    torch.testing.assert_close(remembered[0].sum(1), torch.ones(120, dtype=torch.float64))


def test_states_that_the_bound_needs_stay(monkeypatch):
    monkeypatch.setattr("sksvae.estimators.state_moves._MOST", 1.0)
    model, rows = build()
    graphical = model.graphical
    dynamics_bound(model, rows, chunk=CHUNK)
    remembered = rows.memory.states.clone()
    drop_states(model, rows, chunk=CHUNK)
    assert model.graphical is graphical
    torch.testing.assert_close(rows.memory.states, remembered, atol=0.05, rtol=0)


def test_states_that_are_used_are_not_tried(monkeypatch):
    monkeypatch.setattr("sksvae.estimators.state_moves.dynamics_bound", None)
    model, rows = build()
    drop_states(model, rows, chunk=CHUNK)
    assert model.graphical.n_states == 2


def test_the_last_state_stays():
    model, rows = build()
    model.graphical = model.graphical.select(torch.tensor([1]))
    rows.memory.states = None
    drop_states(model, rows, chunk=CHUNK)
    assert model.graphical.n_states == 1


# ---- order ----


def test_states_are_ordered_by_weight_and_remembered_so():
    model, rows = build()
    heavier = int(state_weights(model.graphical).argmax())
    before, remembered = model.graphical.point_parameters(), rows.memory.states
    reverse = torch.tensor([1 - heavier, heavier])
    model.graphical = model.graphical.select(reverse)
    rows.memory.states = remembered[:, reverse]
    bound = dynamics_bound(model, rows, chunk=CHUNK)
    remembered = rows.memory.states.flip(1)
    order_states(model, rows)
    weights = state_weights(model.graphical)
    assert weights[0] > weights[1]
    torch.testing.assert_close(
        model.graphical.point_parameters().transition_matrices[0],
        before.transition_matrices[heavier],
    )
    assert torch.equal(rows.memory.states, remembered)
    # Starting from them, nothing is left to do.
    assert dynamics_bound(model, rows, chunk=CHUNK) == pytest.approx(bound, abs=1e-6)
    torch.testing.assert_close(rows.memory.states, remembered, atol=1e-2, rtol=0)


@pytest.mark.parametrize("memory", [True, False])
def test_order_without_anything_remembered(memory):
    model, rows = build()
    rows.memory.states = None
    rows = rows if memory else SequenceRows(*rows[:3])
    model.graphical = model.graphical.select(torch.tensor([1, 0]))
    order_states(model, rows)
    assert state_weights(model.graphical).diff() <= 0


# ---- memory ----


@pytest.mark.parametrize("chunk", [30, 70, 1000])
def test_states_are_recalled_as_they_are_predicted(chunk):
    """Of whole sequences, also where rows are windows of them."""
    model, rows = build(memory=False, length=10)
    rows = rows.with_memory(torch.full((4,), 30))
    recall_states(model, rows, chunk=chunk)
    expected = estimator(0).predict_proba(X).reshape(-1, 2)
    np.testing.assert_allclose(rows.memory.states, expected, atol=0.02)
    chosen = torch.tensor([7, 2])
    recalled = rows.take(chosen).recall()
    assert torch.equal(recalled[0], rows.memory.states[70:80])
    assert torch.equal(recalled[1], rows.memory.states[20:30])
