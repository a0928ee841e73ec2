# SPDX-License-Identifier: BSD-3-Clause
"""Steps of sequences in two forms, what is missing of them, and the memory of states."""

import pytest
import torch

from sksvae.inference import FixedPointSettings
from sksvae.sequence_objective import SequenceRows, padded

from .graphical import switching_cases
from .models import (
    LATENT_DIM,
    N_FEATURES,
    bent_coordinates,
    normal,
)
from .sequence_cases import LENGTHS, build, data, noise_for, terms_of

# Steps in two forms ------------------------------------------------------------------------------


def test_rows_know_their_shape():
    rows = data()
    assert len(rows) == sum(LENGTHS)
    assert rows.latent_shape == rows.mask.shape == (4, 5)
    assert rows.mask.sum(1).tolist() == list(LENGTHS)
    assert rows.mask[2].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("chosen", [[0], [2, 1], [3, 0, 2], [1, 1, 0], [0, 1, 2, 3]])
def test_sequences_can_be_taken_in_any_order(chosen):
    rows = data(gaps=True)
    parts = rows.observed.split(LENGTHS)
    taken = rows.take(torch.tensor(chosen))
    for got, want in ((taken.observed, rows.observed), (taken.encoded, rows.encoded)):
        parts = want.split(LENGTHS)
        torch.testing.assert_close(
            got, torch.cat([parts[i] for i in chosen]), rtol=0, atol=0, equal_nan=True
        )
    assert taken.lengths.tolist() == [LENGTHS[i] for i in chosen]


def test_none_can_be_taken():
    taken = data().take(torch.tensor([], dtype=torch.long))
    assert len(taken) == 0
    assert taken.lengths.shape == (0,)


@pytest.mark.parametrize("n_rows", [1, 5, 6, 10, 15, 19, 20, 1000])
def test_parts_are_bounded_with_padding_and_cover_all_in_order(n_rows):
    rows = data()
    parts = list(rows.parts(n_rows))
    for part in parts:
        n_sequences, n_steps = part.latent_shape
        assert n_sequences * n_steps <= n_rows or n_sequences == 1
    for name in ("observed", "encoded", "lengths"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(rows, name))


def test_parts_are_not_smaller_than_need_be():
    """Each but the last would burst with the next sequence."""
    rows = data((2, 2, 2, 3, 1, 1, 1))
    assert [part.lengths.tolist() for part in rows.parts(6)] == [[2, 2, 2], [3, 1], [1, 1]]


def test_padded_potentials_are_zero_after_the_ends():
    model, _, _ = build()
    rows = data()
    potentials = model.encode(rows)
    for field, stacked in zip(padded(potentials, rows.mask), potentials, strict=True):
        assert torch.equal(field[rows.mask], stacked)
        assert (field[~rows.mask] == 0).all()


def test_potentials_shrink_with_what_is_missing():
    model, _, _ = build()
    complete, gappy = data(), data(gaps=True)
    for whole, part in zip(model.encode(complete), model.encode(gappy), strict=True):
        assert (part[[0, 6, 7, 8]] == 0).all()
        assert torch.equal(whole[[1, 2, 4, 5]], part[[1, 2, 4, 5]])


def test_coordinates_lie_between_networks_and_dynamics():
    """Other ones are given and taken back, and nothing is told of what is missing."""
    model, _, _ = build()
    rows, z = data(gaps=True), normal(5, LATENT_DIM, seed=3)
    (r, R), said = model.encode(rows), model.decode(z)
    model.coordinates = bent_coordinates(LATENT_DIM)
    torch.testing.assert_close(model.decode(model.coordinates(z)[0]), said)
    whole = (rows.observed.isnan().sum(1) == 0).nonzero().squeeze(1)
    carried = model.encode(rows)
    for got, want in zip(carried, model.coordinates.carry(r[whole], R[whole]), strict=True):
        torch.testing.assert_close(got[whole], want)
    gone = rows.observed.isnan().all(1)
    assert gone.any()
    assert all((field[gone] == 0).all() for field in carried)
    # What is filled in is what the networks agree on, in their own coordinates.
    share = 1 - rows.observed[3].isnan().to(r.dtype).mean()
    want = model.coordinates.carry(r[3:4] / share, R[3:4] / share)
    for got, field in zip(carried, want, strict=True):
        torch.testing.assert_close(got[3:4], share * field)


def test_missing_values_are_filled_with_what_the_rest_says():
    """In a linear model that is where a linear map of them has its fixed point."""
    model, W, b = build(hidden=())
    observed = data(gaps=True).observed
    observed[4, 2], observed[3, 0] = torch.nan, torch.nan
    rows = SequenceRows(observed, observed.nan_to_num(nan=0.0), torch.tensor(LENGTHS))
    r, R = model.encode(rows)
    E, precision = model.encoder.skip, model.encoder(rows.encoded[:1])[1][0]
    shrunk = (E * (precision / (precision + 1))) @ W.T  # features to features
    for t in (3, 4):
        gone = observed[t].isnan()
        share = 1 - gone.to(r.dtype).mean()
        torch.testing.assert_close(R[t], share * precision)
        offset = (model.encoder.bias * precision / (precision + 1)) @ W.T + b
        known = rows.encoded[t] @ shrunk + offset
        eye = torch.eye(int(gone.sum()), dtype=r.dtype)
        filled = rows.encoded[t].clone()
        filled[gone] = torch.linalg.solve(eye - shrunk[gone][:, gone].T, known[gone])
        want = filled @ E + model.encoder.bias
        rate = torch.linalg.eigvals(shrunk[gone][:, gone]).abs().max()
        error = (r[t] / R[t] - want).norm()
        zeros = (rows.encoded[t] @ E + model.encoder.bias - want).norm()
        assert error < 2 * rate**8 * zeros + 1e-12
        assert error < 0.5 * zeros


def test_filling_in_single_precision_agrees_with_double():
    """After few rounds what changes is rounding errors, which may grow."""
    model, _, _ = build(hidden=())
    with torch.no_grad():
        model.decoder.skip.mul_(0.1)
    observed = data(gaps=True).observed
    steps = [
        SequenceRows(x, x.nan_to_num(nan=0.0), torch.tensor(LENGTHS))
        for x in (observed, observed.float())
    ]
    want = model.encode(steps[0])
    for got, field in zip(model.float().encode(steps[1]), want, strict=True):
        torch.testing.assert_close(got.double(), field, rtol=1e-4, atol=1e-4)


def test_networks_that_do_not_agree_fill_nothing_in():
    """A decoder that says ten times as much leads away in each round."""
    model, _, _ = build(hidden=())
    gappy = data(gaps=True)
    with torch.no_grad():
        model.decoder.skip.mul_(10.0)
        model.decoder.bias.zero_()
        model.encoder.bias.zero_()
    share = 1 - 1 / N_FEATURES
    for field, zeros in zip(model.encode(gappy), model.encoder(gappy.encoded), strict=True):
        torch.testing.assert_close(field[3], share * zeros[3])


def test_one_step_is_filled_whatever_the_others_miss():
    model, _, _ = build()
    gappy = data(gaps=True)
    for field, alone in zip(
        model.encode(gappy), model.encode(gappy.take(torch.tensor([0]))), strict=True
    ):
        torch.testing.assert_close(alone, field[:5])


# Memory of states --------------------------------------------------------------------------------


def switching(lengths=LENGTHS, uncut=None):
    """Model with states, rows with a memory, and their posterior."""
    model, _, _ = build()
    model.graphical = switching_cases.random_model(dim=LATENT_DIM)
    rows = data(lengths).with_memory(uncut)
    return model, rows, model.infer(rows)


def test_a_memory_begins_empty():
    _, rows, _ = switching()
    assert rows.memory.states is None
    assert rows.recall() is None
    assert rows.take(torch.tensor([1])).memory is rows.memory
    assert data().recall() is None
    assert data().take(torch.tensor([1])).memory is None
    for name in ("observed", "encoded", "lengths"):
        assert torch.equal(getattr(rows, name), getattr(data(), name))


def test_states_are_recalled_as_they_were_remembered():
    _, rows, posterior = switching()
    rows.remember(posterior)
    assert rows.memory.states.shape == (sum(LENGTHS), 3)
    assert not rows.memory.states.requires_grad
    assert torch.equal(rows.recall(), posterior.states)


@pytest.mark.parametrize("chosen", [[0], [2, 1], [3, 0, 2], [1, 1, 0]])
def test_states_are_recalled_by_whom_they_belong_to(chosen):
    _, rows, posterior = switching()
    rows.remember(posterior)
    taken = rows.take(torch.tensor(chosen))
    recalled = taken.recall()
    assert recalled.shape == (*taken.latent_shape, 3)
    assert torch.equal(recalled, posterior.states[chosen, : taken.latent_shape[1]])
    again = taken.take(torch.tensor([len(chosen) - 1]))
    assert torch.equal(again.recall()[0], recalled[-1, : again.latent_shape[1]])


def test_what_a_batch_remembers_leaves_the_others_alone():
    model, rows, posterior = switching()
    rows.remember(posterior)
    batch = rows.take(torch.tensor([3, 1]))
    other = model.infer(SequenceRows(batch.observed, batch.encoded + 1.0, batch.lengths))
    batch.remember(other)
    recalled = rows.recall()
    assert torch.equal(recalled[[3, 1]], other.states)
    assert torch.equal(recalled[[0, 2]], posterior.states[[0, 2]])
    parts = list(rows.parts(6))
    assert len(parts) > 1
    torch.testing.assert_close(
        torch.cat([part.recall()[part.mask] for part in parts]), rows.memory.states, rtol=0, atol=0
    )


def test_windows_and_the_sequences_that_they_were_cut_from_share_a_memory():
    """Of lengths 5 and 9, in windows of 5, 1, 3 and 5 steps."""
    model, windows, posterior = switching(uncut=torch.tensor([5, 9]))
    rejoined = windows.rejoined()
    assert rejoined.lengths.tolist() == [5, 9]
    assert rejoined.memory is windows.memory
    assert torch.equal(rejoined.observed, windows.observed)
    rejoined.remember(model.infer(rejoined))
    recalled = rejoined.recall()
    assert torch.equal(windows.recall()[0], recalled[0, :5])
    assert torch.equal(windows.recall()[2, :3], recalled[1, 1:4])
    windows.remember(posterior)
    assert torch.equal(rejoined.recall()[1, 4:9], posterior.states[3])
    for rows in (data(), data().with_memory()):
        assert rows.rejoined() is rows


def test_there_is_nothing_to_remember_without_states_or_a_memory():
    model, _, _ = build()
    rows = data().with_memory()
    rows.remember(model.infer(rows))
    assert rows.memory.states is None
    _, _, posterior = switching()
    data().remember(posterior)


def test_the_bound_begins_where_the_last_one_ended():
    model, rows, posterior = switching()
    model.settings = FixedPointSettings(max_updates=1)
    first = model.infer(rows)
    assert not first.converged.all()
    for _ in range(60):
        terms = terms_of(model, rows, noise_for(rows))
    assert terms.posterior.converged.all()
    torch.testing.assert_close(rows.recall(), posterior.states, rtol=0, atol=1e-5)
