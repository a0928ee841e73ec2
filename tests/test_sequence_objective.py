# SPDX-License-Identifier: BSD-3-Clause
"""The bound over sequences: sums of single sequences, dense Gaussians, gradients, and padding."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from sksvae.inference import FixedPointSettings
from sksvae.inference.elimination_orders import Sequential
from sksvae.likelihoods.gaussian import GaussianLikelihood
from sksvae.sequence_objective import SequenceRows, SequenceVAE, padded

from .graphical import switching_cases
from .graphical.dynamics_cases import random_model
from .models import (
    LATENT_DIM,
    N_FEATURES,
    NOISE,
    bent_coordinates,
    cubature,
    generator,
    normal,
)

LENGTHS = (5, 1, 3, 5)


def build(hidden=(6,), certainty=1.0, location=0.0, scale=1.0):
    """Model whose linear part is exact, for orthogonal loadings and known noise."""
    ones = torch.ones(N_FEATURES, dtype=torch.float64)
    model = SequenceVAE(
        N_FEATURES,
        LATENT_DIM,
        hidden,
        "tanh",
        GaussianLikelihood(noise_variance=NOISE),
        random_model(LATENT_DIM, certainty=certainty),
        location * ones,
        scale * ones,
        FixedPointSettings(),
    )
    sizes = torch.tensor([0.8, 1.5], dtype=torch.float64)
    W = torch.linalg.qr(normal(N_FEATURES, LATENT_DIM, seed=5)).Q * sizes
    b = normal(N_FEATURES, seed=6)
    model.decoder.reset(W, torch.zeros(0, N_FEATURES), generator(1))
    model.encoder.reset(W / sizes**2, sizes**2 / NOISE, generator(2))
    with torch.no_grad():
        model.decoder.bias[0].copy_(b)
        model.encoder.bias.copy_(-b @ W / sizes**2)
        for network in (model.encoder, model.decoder):
            if hidden:
                network.mlp.output.weight.mul_(60.0)
    return model, W, b


def data(lengths=LENGTHS, gaps=False, seed=8):
    x = 2 * normal(sum(lengths), N_FEATURES, seed=seed)
    observed = x.clone()
    if gaps:
        observed[0] = torch.nan
        observed[3, 1] = torch.nan
        observed[6:9] = torch.nan  # a sequence of its own
    return SequenceRows(observed, observed.nan_to_num(nan=0.0), torch.tensor(lengths))


def noise_for(rows, n_draws=3, seed=9):
    return normal(n_draws, *rows.latent_shape, LATENT_DIM, seed=seed)


def terms_of(model, rows, noise):
    return model.elbo(rows, model.graphical.expected_params(), noise)


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


# Sums over sequences -----------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
def test_the_bound_is_the_sum_over_single_sequences(gaps):
    model, _, _ = build()
    rows = data(gaps=gaps)
    noise = noise_for(rows)
    terms = terms_of(model, rows, noise)
    total = 0.0
    for i, length in enumerate(LENGTHS):
        one = terms_of(model, rows.take(torch.tensor([i])), noise[:, i : i + 1, :length])
        total = total + one.total
        stop = sum(LENGTHS[: i + 1])
        torch.testing.assert_close(
            terms.reconstruction[stop - length : stop], one.reconstruction, rtol=0, atol=1e-10
        )
        torch.testing.assert_close(
            terms.posterior.local_kl[i], one.posterior.local_kl[0], rtol=0, atol=1e-10
        )
    torch.testing.assert_close(terms.total, total, rtol=0, atol=1e-9)


def test_the_order_of_sequences_does_not_matter():
    model, _, _ = build()
    rows = data(gaps=True)
    noise = noise_for(rows)
    order = torch.tensor([2, 0, 3, 1])
    there = terms_of(model, rows.take(order), noise[:, order])
    here = terms_of(model, rows, noise)
    torch.testing.assert_close(there.total, here.total, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        there.posterior.local_kl, here.posterior.local_kl[order], rtol=0, atol=1e-10
    )


def test_noise_at_steps_that_do_not_exist_does_not_matter():
    model, _, _ = build()
    rows = data()
    noise = noise_for(rows)
    other = torch.where(rows.mask[:, :, None], noise, 100.0)
    assert torch.equal(terms_of(model, rows, other).total, terms_of(model, rows, noise).total)


def test_unobserved_sequences_count_for_nothing():
    """Their posterior is the prior, so that the KL is what expected parameters lack of one."""
    model, _, _ = build(certainty=1e9)
    rows = data(gaps=True)
    terms = terms_of(model, rows, noise_for(rows))
    assert (terms.reconstruction[6:9] == 0).all()
    assert abs(float(terms.posterior.local_kl[2])) < 1e-6


# Dense Gaussians ---------------------------------------------------------------------------------


def joint(model, W, b, n_steps):
    """Distribution of the stacked rows of one sequence under point parameters."""
    A, offset, Q, mean, covariance = model.graphical.point_parameters()
    means, covariances = [mean], [covariance]
    for _ in range(n_steps - 1):
        means.append(A @ means[-1] + offset)
        covariances.append(A @ covariances[-1] @ A.mT + Q)

    def block(t, s):
        if t < s:
            return block(s, t).mT
        return torch.linalg.matrix_power(A, t - s) @ covariances[s]

    latent = torch.cat(
        [torch.cat([block(t, s) for s in range(n_steps)], 1) for t in range(n_steps)]
    )
    spread = torch.kron(torch.eye(n_steps, dtype=torch.float64), W.contiguous())
    eye = torch.eye(n_steps * len(b), dtype=torch.float64)
    return MultivariateNormal(
        spread @ torch.cat(means) + b.repeat(n_steps), spread @ latent @ spread.mT + NOISE * eye
    )


@pytest.mark.parametrize("n_draws", [1, 2])
def test_an_exact_encoder_makes_the_bound_the_evidence_for_every_draw(n_draws):
    model, W, b = build(hidden=(), certainty=1e9)
    rows = data()
    noise = noise_for(rows, n_draws)
    for i, x in enumerate(rows.observed.split(LENGTHS)):
        one = terms_of(model, rows.take(torch.tensor([i])), noise[:, i : i + 1, : len(x)])
        want = joint(model, W, b, len(x)).log_prob(x.flatten())
        torch.testing.assert_close(one.total, want, rtol=0, atol=1e-5)


def test_a_wrong_encoder_falls_short_of_the_evidence():
    model, W, b = build(hidden=(), certainty=1e9)
    with torch.no_grad():
        model.encoder.log_precision.add_(0.5)
        model.encoder.bias.add_(0.3)
    rows = data()
    for i, x in enumerate(rows.observed.split(LENGTHS)):
        part = rows.take(torch.tensor([i]))
        slack = joint(model, W, b, len(x)).log_prob(x.flatten())
        slack = slack - terms_of(model, part, noise_for(part, 2000)).total
        assert slack > 0.05


def test_uncertain_dynamics_lower_the_bound():
    rows = data()
    totals = [
        terms_of(build(hidden=(), certainty=certainty)[0], rows, noise_for(rows)).total
        for certainty in (1.0, 10.0, 1e9)
    ]
    assert totals[0] < totals[1] < totals[2]


def test_sequences_of_one_step_are_rows_with_a_gaussian_prior():
    """Everything by the closed forms of Gaussians, any networks."""
    model, _, _ = build(certainty=1e9)
    rows = data((1,) * 6)
    noise = cubature(6)[:, :, None]
    terms = terms_of(model, rows, noise)
    parameters = model.graphical.point_parameters()
    prior = MultivariateNormal(parameters.initial_mean, parameters.initial_covariance)
    r, R = model.encode(rows)
    covariance = torch.linalg.inv(prior.precision_matrix + torch.diag_embed(R))
    mean = (covariance @ (prior.precision_matrix @ prior.mean + r).unsqueeze(-1)).squeeze(-1)
    posterior = MultivariateNormal(mean, covariance)
    torch.testing.assert_close(terms.posterior.mean[:, 0], mean)
    torch.testing.assert_close(terms.posterior.covariance[:, 0], covariance)
    want = kl_divergence(posterior, prior)
    torch.testing.assert_close(terms.posterior.local_kl, want, rtol=0, atol=1e-6)
    # The points have exact moments, so that the control variate adds nothing.
    means = model.decode(terms.posterior.draws[:, :, 0])[..., 0, :]
    log_density = -0.5 * ((rows.observed - means) ** 2 / NOISE + math.log(2 * math.pi * NOISE))
    torch.testing.assert_close(terms.reconstruction, log_density.sum(-1).mean(0))


# Gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
def test_every_parameter_has_a_gradient(gaps):
    model, _, _ = build()
    rows = data(gaps=gaps)
    params = model.graphical.expected_params()
    model.elbo(rows, params, noise_for(rows)).total.backward()
    for name, parameter in [*model.named_parameters(), *enumerate(params)]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("bent", [False, True])
def test_gradient_of_the_bound_agrees_with_finite_differences(bent):
    """With noise of exact moments, what the control variate leaves out is exactly zero."""
    model, _, _ = build()
    if bent:
        model.coordinates = bent_coordinates(LATENT_DIM)
    lengths = (3, 1)
    rows = data(lengths)
    # Antithetic draws along each axis of the noise of all steps together.
    size = 2 * 3 * LATENT_DIM
    points = math.sqrt(size) * torch.eye(size, dtype=torch.float64)
    noise = torch.cat([points, -points]).view(-1, 2, 3, LATENT_DIM)
    params = model.graphical.expected_params()
    leaves = [*model.parameters(), *params]
    gradient = torch.autograd.grad(model.elbo(rows, params, noise).total, leaves)
    direction = [normal(1, *leaf.shape, seed=i)[0] for i, leaf in enumerate(leaves)]
    # Statistics of q(theta) are symmetric where they are matrices.
    direction = [d + d.mT if d.ndim == 2 and d.shape[0] == d.shape[1] else d for d in direction]
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.add_(sign * step * d)
            values.append(model.elbo(rows, params, noise).total)
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.sub_(sign * step * d)
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    torch.testing.assert_close(slope, (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("n_draws", [1, 2])
def test_covariances_have_no_cotangent_in_the_bound_itself(monkeypatch, weight, n_draws):
    """What divergence and control variate add cancels exactly, and the sweep for it is saved."""
    model, _, _ = build()
    rows = data()
    terms = terms_of(model, rows, noise_for(rows, n_draws))
    loss = (weight * terms.posterior.local_kl.sum() - terms.reconstruction.sum()) / len(rows)
    swept, adjoint = [], Sequential.covariances_adjoint

    def counted(*arguments):
        swept.append(arguments)
        return adjoint(*arguments)

    monkeypatch.setattr(Sequential, "covariances_adjoint", staticmethod(counted))
    torch.autograd.grad(loss, list(model.encoder.parameters()), allow_unused=True)
    assert len(swept) == (weight != 1.0)
