# SPDX-License-Identifier: BSD-3-Clause
"""Rounds of block updates in NumPy and their derivatives, against those through torch's graph."""

import pytest
import torch

from sksvae.graphical import switching_updates
from sksvae.graphical.switching_gradients import differentiable_energies, energy_change
from sksvae.graphical.switching_inference import infer_switching
from sksvae.graphical.switching_problem import SwitchingProblem
from sksvae.graphical.switching_updates import SwitchingUpdates
from sksvae.inference import FixedPointSettings, markov_messages
from sksvae.inference.markov_messages import Transition
from tests.graphical.dynamics_cases import assert_close, normal, random_evidence
from tests.graphical.switching_cases import random_model

# Odd and even numbers of steps are cut in different places; one step has no transition.
each_case = pytest.mark.parametrize("lengths", [[1], [2, 1], [3, 3], [6, 1, 4, 2, 5], [7, 7, 2]])


def made_problem(lengths, n_states=3, dtype=torch.float64):
    """Problem with leaves for everything that has a gradient, and weights of the states."""
    model = random_model(n_states, dtype=dtype)
    potentials, mask = random_evidence(lengths, dtype=dtype)
    leaves = [field.clone().requires_grad_() for field in potentials]
    params = model.expected_params()
    problem = SwitchingProblem.build(type(potentials)(*leaves), params, mask)
    weights = 2.0 * normal(*mask.shape, n_states, seed=3)
    states = weights.softmax(-1).to(dtype) * mask.unsqueeze(-1)
    return problem, states, [*leaves, *params[:8]]


@each_case
def test_a_round_is_that_of_the_problem(lengths):
    problem, states, _ = made_problem(lengths)
    fixed = problem.fixed()
    updates = SwitchingUpdates.build(fixed, "auto")
    for _ in range(3):  # in the same memory
        expected = fixed.next_states(states)
        found = updates(states)
        assert_close(found, expected, rtol=0.0, atol=1e-12)
        states = found


def test_a_round_does_not_read_what_stands_at_steps_that_do_not_exist():
    problem, states, _ = made_problem([6, 2])
    updates = SwitchingUpdates.build(problem.fixed(), "auto")
    expected = updates(states)
    states[1, 2:] = torch.nan
    assert_close(updates(states), expected, rtol=0.0, atol=0.0)


def test_many_transitions_are_worked_on_in_parts(monkeypatch):
    problem, states, _ = made_problem([7, 7, 2])
    expected = SwitchingUpdates.build(problem.fixed(), "auto")(states)
    monkeypatch.setattr(switching_updates, "_IN_CACHE", 40)
    updates = SwitchingUpdates.build(problem.fixed(), "auto")
    assert len(list(updates.in_cache())) > 3
    assert_close(updates(states), expected, rtol=0.0, atol=1e-14)


@each_case
def test_energies_have_the_gradients_of_the_graph(lengths):
    problem, states, leaves = made_problem(lengths)
    updates = SwitchingUpdates.build(problem.fixed(), "auto")
    assert updates.infer_latents(states)
    energies, expected = (
        differentiable_energies(problem, updates),
        problem.energies(problem.gaussian(states)),
    )
    assert_close(energies, expected, rtol=0.0, atol=1e-12)
    cotangent = normal(*states.shape, seed=8)
    options = {"materialize_grads": True, "allow_unused": True, "retain_graph": True}
    found = torch.autograd.grad(energies, leaves, cotangent, **options)
    wanted = torch.autograd.grad(expected, leaves, cotangent, **options)
    for gradient, want in zip(found, wanted, strict=True):
        assert_close(gradient, want, rtol=1e-10, atol=1e-11)


@each_case
def test_the_change_of_energies_is_that_of_the_graph(lengths):
    problem, states, _ = made_problem(lengths)
    problem = problem.fixed()
    updates = SwitchingUpdates.build(problem, "auto")
    assert updates.infer_latents(states)
    v = normal(*states.shape, seed=8)
    leaf = states.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(problem.energies(problem.gaussian(leaf)), leaf, v)
    assert_close(energy_change(updates, v), wanted, rtol=1e-10, atol=1e-11)


def test_energies_are_differentiable_once():
    problem, states, leaves = made_problem([4])
    updates = SwitchingUpdates.build(problem.fixed(), "auto")
    assert updates.infer_latents(states)
    energies = differentiable_energies(problem, updates)
    (gradient,) = torch.autograd.grad(energies.sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        gradient.sum().backward()


def results(lengths, settings, without=False, monkeypatch=None):
    """Posterior and gradients of all that depends on something."""
    problem, states, leaves = made_problem(lengths)
    if without:
        refuse = classmethod(lambda cls, problem, method: None)
        monkeypatch.setattr(SwitchingUpdates, "build", refuse)
    posterior = infer_switching(problem, states, settings=settings)
    total = (
        posterior.local_kl.sum() + (posterior.mean * normal(*posterior.mean.shape, seed=5)).sum()
    )
    return posterior, torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("gradient", ["cg", "richardson", "none", "unrolled"])
def test_inference_is_the_same_without_them(gradient, monkeypatch):
    """Sequences stop after different numbers of rounds, and solves at different steps."""
    lengths = [9, 2, 6, 9, 3]
    settings = FixedPointSettings(max_updates=300, tol=1e-10, gradient=gradient, solver_tol=1e-11)
    posterior, gradients = results(lengths, settings)
    assert len(posterior.n_updates.unique()) > 1
    other, expected = results(lengths, settings, without=True, monkeypatch=monkeypatch)
    assert torch.equal(posterior.n_updates, other.n_updates)
    for name in ("states", "energies", "mean", "covariance", "local_kl", "pair_counts"):
        assert_close(getattr(posterior, name), getattr(other, name), rtol=1e-9, atol=1e-10)
    for found, want in zip(gradients, expected, strict=True):
        assert_close(found, want, rtol=1e-7, atol=1e-8)


def test_single_precision_is_as_near_to_double_as_the_problem():
    problem, states, _ = made_problem([40, 33])
    expected = problem.fixed().next_states(states)
    single = made_problem([40, 33], dtype=torch.float32)[0].fixed()
    found = SwitchingUpdates.build(single, "auto")(states.float())
    assert found.dtype == torch.float32
    plain = (single.next_states(states.float()).double() - expected).abs().max()
    assert (found.double() - expected).abs().max() < 4.0 * plain + 1e-6


def test_other_ways_are_taken_where_these_are_not_for(monkeypatch):
    problem = made_problem([5])[0].fixed()
    assert SwitchingUpdates.build(problem, "sequential") is not None
    assert SwitchingUpdates.build(problem, "parallel") is None
    monkeypatch.setattr(switching_updates, "choose_parallel", lambda *_: True)
    assert SwitchingUpdates.build(problem, "auto") is None
    monkeypatch.undo()
    refuse = classmethod(lambda cls, log_transition: None)
    monkeypatch.setattr(markov_messages.Transition, "build", refuse)
    assert Transition.build(problem.log_transition[None]) is None
    assert SwitchingUpdates.build(problem, "auto") is None


def test_what_is_not_finite_is_told_as_ever():
    problem, states, _ = made_problem([5, 4])
    broken = problem.fixed()
    broken.potentials.precision[1, 2] = -1e3
    assert SwitchingUpdates.build(broken, "auto")(states) is None
    with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
        infer_switching(broken, states)
