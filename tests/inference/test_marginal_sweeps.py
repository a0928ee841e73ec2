# SPDX-License-Identifier: BSD-3-Clause
"""Marginals in the same memory again and again, against `markov_moments`."""

import numpy as np
import pytest
import torch

from sksvae.inference import markov_moments
from sksvae.inference.marginal_sweeps import MarginalSweeps
from sksvae.inference.markov_messages import Transition
from tests.inference.test_forward_backward import random_chain


def run(sweeps, likelihood):
    sweeps.energies[:] = likelihood.transpose(0, 1).numpy()
    return torch.from_numpy(sweeps.run()).transpose(0, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lengths", [[1], [2, 1], [9, 9, 9], [9, 1, 40]])
def test_marginals_are_those_of_the_moments(lengths, dtype):
    n_steps, lengths = max(lengths), torch.tensor(lengths)
    mask = torch.arange(n_steps) < lengths.unsqueeze(-1)
    sweeps = None
    for seed in range(0, 9, 3):  # the energies change, the rest does not
        *_, likelihood = random_chain((len(lengths),), n_steps, 4, seed=seed)
        initial, table, _ = random_chain((), n_steps, 4)
        chain = initial.to(dtype), table.to(dtype), likelihood.to(dtype)
        if sweeps is None:
            transition = Transition.build(chain[1].unsqueeze(0))
            sweeps = MarginalSweeps(chain[0], transition, lengths, n_steps)
        expected = markov_moments(*chain, mask=mask).marginals
        tolerance = 1e-14 if dtype == torch.float64 else 1e-6
        found = run(sweeps, torch.where(mask.unsqueeze(-1), chain[2], 0.0))
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance)


def test_rare_transitions_and_strong_evidence_do_not_underflow():
    """So rare that vectors have to be normalised at every other step."""
    n_steps, n_states, dtype = 60, 3, torch.float32
    table = torch.where(torch.eye(n_states) > 0, 0.0, -28.0).to(dtype)
    transition = Transition.build(table.unsqueeze(0))
    assert transition.period <= 2
    likelihood = 40.0 * random_chain((2,), n_steps, n_states)[2].to(dtype)
    initial = torch.zeros(n_states, dtype=dtype)
    sweeps = MarginalSweeps(initial, transition, torch.tensor([n_steps] * 2), n_steps)
    expected = markov_moments(initial.double(), table.double(), likelihood.double()).marginals
    found = run(sweeps, likelihood)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0.0, atol=1e-4)


def test_without_a_finite_path_marginals_are_not_finite():
    initial, table, likelihood = random_chain((2,), 4, 3)
    likelihood[1, 2] = torch.nan
    sweeps = MarginalSweeps(initial, Transition.build(table[None]), torch.tensor([4, 4]), 4)
    found = run(sweeps, likelihood)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().all()
