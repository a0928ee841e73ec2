# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics: sequences of a batch, and the limit of one state."""

import dataclasses

import numpy as np
import pytest
import torch

from sksvae.expfam import Dirichlet
from sksvae.graphical import (
    ChainPosterior,
    DynamicsPrior,
    LinearDynamicsModel,
    Potentials,
    SwitchingPosterior,
)
from sksvae.inference import FixedPointSettings
from tests.graphical.dynamics_cases import assert_close, normal, random_evidence
from tests.graphical.switching_cases import (
    LENGTHS,
    best_gaussian,
    divergence,
    enumerate_paths,
    infer,
    path_probabilities,
    random_model,
)

EXACT = {"rtol": 1e-9, "atol": 1e-10}
BATCHED = [field.name for field in dataclasses.fields(SwitchingPosterior) if field.name != "draws"]


# Sequences ---------------------------------------------------------------------------------------


def test_sequences_do_not_interact_and_padding_does_not_matter():
    model, settings = random_model(), FixedPointSettings()
    potentials, mask = random_evidence(LENGTHS)
    noise = normal(2, *potentials[0].shape, seed=7)
    options = {"settings": settings, "method": "sequential"}
    together = infer(model, potentials, mask, noise=noise, **options)
    assert len(set(together.n_updates.tolist())) > 2
    assert together.converged.all()
    order = torch.tensor([3, 0, 4])

    def wider(field):
        return torch.cat([field[order], torch.full((3, 4, 2), torch.nan, dtype=field.dtype)], 1)

    longer = torch.cat([mask[order], torch.zeros(3, 4, dtype=torch.bool)], 1)
    some = infer(
        model,
        Potentials(*(wider(field) for field in potentials)),
        longer,
        noise=torch.stack([wider(draw) for draw in noise]),
        **options,
    )
    for name in BATCHED:
        want, got = getattr(together, name)[order], getattr(some, name)
        if name not in ("local_kl", "pair_counts", "n_updates", "converged"):
            assert not got[:, want.shape[1] :].any()
            got = got[:, : want.shape[1]]
        assert_close(got, want, **EXACT)
    assert_close(some.draws[:, :, :6], together.draws[:, order], **EXACT)
    for got, want in zip(
        model.total_stats(some), sum_of(model, potentials, mask, order, settings), strict=True
    ):
        assert_close(got, want, **EXACT)


def sum_of(model, potentials, mask, sequences, settings):
    """Statistics of sequences, inferred one by one and without padding."""
    each = []
    for n in sequences.tolist():
        alone = Potentials(*(field[n : n + 1, mask[n]] for field in potentials))
        all_steps = torch.ones(1, int(mask[n].sum()), dtype=torch.bool)
        each.append(model.total_stats(infer(model, alone, all_steps, settings)))
    return [sum(fields) for fields in zip(*each, strict=True)]


def test_everything_is_zero_at_steps_that_do_not_exist():
    potentials, mask = random_evidence([5, 0, 2])
    posterior = infer(random_model(), potentials, mask)
    for name in ("mean", "covariance", "states", "energies"):
        assert (getattr(posterior, name)[~mask] == 0).all()
    assert (posterior.energies[:, 0] == 0).all()
    assert posterior.local_kl[1] == 0
    assert_close(posterior.states.sum(-1), mask.double())
    assert_close(posterior.pair_counts.sum((-2, -1)), torch.tensor([4.0, 0.0, 1.0]).double())


def test_a_sequence_of_one_step_is_that_of_one_state():
    """The first step has no emission of its own: states are as expected, whatever is seen."""
    model = random_model()
    potentials, mask = random_evidence([1], unobserved=0.0)
    posterior = infer(model, potentials, mask)
    one = infer(model.select(torch.tensor([0])), potentials, mask)
    assert_close(posterior.mean, one.mean, **EXACT)
    assert_close(posterior.states[0, 0], model.expected_params()[8].softmax(0))
    assert posterior.local_kl > one.local_kl  # by the doubt about the first state
    assert posterior.n_updates == 1


def test_more_states_than_steps():
    model = random_model(9)
    potentials, mask = random_evidence([3, 2])
    posterior = infer(model, potentials, mask)
    assert posterior.states.shape == (2, 3, 9)
    assert posterior.converged.all()


def test_unobserved_steps_are_filled_in():
    """And a sequence without any observation has the dynamics as posterior."""
    model = random_model()
    nothing = Potentials(*torch.zeros(2, 1, 4, 2, dtype=torch.float64))
    mask = torch.ones(1, 4, dtype=torch.bool)
    posterior = infer(model, nothing, mask)
    assert posterior.converged.all()
    assert posterior.local_kl > 0
    every = enumerate_paths(model, 4)
    q = path_probabilities(every, posterior, 0)
    mean, covariance, _ = best_gaussian(every, q, np.zeros((4, 2)), np.zeros((4, 2)))
    want = divergence(every, q, mean, covariance)
    assert posterior.local_kl.item() == pytest.approx(want, abs=1e-9)


def test_bad_masks_and_starts_are_an_error():
    model = random_model()
    potentials, mask = random_evidence([5, 5])
    with pytest.raises(ValueError, match="mask must be boolean of shape"):
        infer(model, potentials, mask.double())
    gap = mask.clone()
    gap[1, 2] = False
    with pytest.raises(ValueError, match="without gaps"):
        infer(model, potentials, gap)
    with pytest.raises(ValueError, match=r"start must have shape \(2, 5, 3\), got \(2, 5, 2\)"):
        infer(model, potentials, mask, start=torch.ones(2, 5, 2))
    r, R = potentials
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        infer(model, Potentials(r, R.index_fill(1, torch.tensor([2]), torch.nan)), mask)


# One state ---------------------------------------------------------------------------------------


def test_one_state_is_linear_dynamics():
    model = random_model(1)
    initial, dynamics, *_ = model.posterior
    linear = LinearDynamicsModel(
        DynamicsPrior(model.prior.initial, type(dynamics)(*(f[0] for f in model.prior.dynamics))),
        DynamicsPrior(initial, type(dynamics)(*(field[0] for field in dynamics))),
    )
    potentials, mask = random_evidence(LENGTHS)
    noise = normal(2, *potentials[0].shape, seed=7)
    results = []
    for each in (model, linear):
        leaves = Potentials(*(field.clone().requires_grad_() for field in potentials))
        params = each.expected_params()
        posterior = each.infer(leaves, params, mask, noise)
        objective = posterior.draws.sin().sum() - posterior.local_kl.sum()
        results.append((posterior, torch.autograd.grad(objective, [*leaves, *params])))
    (got, got_grads), (want, want_grads) = results
    for field in dataclasses.fields(ChainPosterior):
        assert_close(getattr(got, field.name), getattr(want, field.name), rtol=1e-12, atol=1e-12)
    for a, b in zip(got_grads[:10], want_grads, strict=True):
        assert_close(a.view(b.shape), b, rtol=1e-12, atol=1e-12)
    assert torch.equal(got.states, mask.unsqueeze(-1).double())
    assert (got.n_updates == 0).all()
    assert got.converged.all()
    stats = model.total_stats(got)
    for a, b in zip(stats[:8], linear.total_stats(want), strict=True):
        assert_close(a.view(b.shape), b, rtol=1e-12, atol=1e-12)
    assert stats[8:] == (torch.tensor([5.0]), torch.tensor([[13.0]]))
    model.coordinate_update(stats)
    linear.coordinate_update(linear.total_stats(want))
    assert_close(model.prior_kl() - dirichlet_kl(model), linear.prior_kl(), rtol=1e-10, atol=1e-10)


def dirichlet_kl(model):
    pairs = zip(model.posterior[2:], model.prior[2:], strict=True)
    return sum(Dirichlet().standard_kl(q, p).sum() for q, p in pairs)
