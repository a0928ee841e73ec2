# SPDX-License-Identifier: BSD-3-Clause
"""Straight coordinates: where they are found, where there is nothing to find, and in a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sksvae import straightening
from sksvae.coordinates import Coordinates
from sksvae.graphical import DynamicsPrior, SwitchingPrior
from sksvae.sequence_objective import SequenceRows
from sksvae.straightening import fit_straight_coordinates, straighten

from .models import generator, normal
from .walks import unevenness, walk, warped


def steps_of(sequences):
    """Latents before and after each step, and that they are known."""
    before, after = sequences[:, :-1].flatten(0, 1), sequences[:, 1:].flatten(0, 1)
    return before, after, torch.zeros_like(torch.diag_embed(before))


pytestmark = pytest.mark.usefixtures("few_rounds")


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(straightening, "_N_ITER", 300)  # enough for these


@pytest.mark.parametrize("dim", [1, 2])
def test_curved_coordinates_become_straight(dim):
    straight = walk(dim)
    bent = warped(straight)
    assert unevenness(straight) < 0.1
    assert unevenness(bent) > 0.4
    steps = steps_of(bent)
    before = steps[0]
    found = fit_straight_coordinates(*steps, generator=generator())
    again = found(bent.flatten(0, 1))[0].view_as(bent)
    assert not again.requires_grad
    assert unevenness(again) < 0.15
    # As near to what they were as a linear map makes them.
    moved = found(before)[0]
    regressors = torch.cat([moved, torch.ones_like(moved[:, :1])], 1)
    torch.testing.assert_close(regressors.mT @ (moved - before), torch.zeros(dim + 1, dim).double())
    torch.testing.assert_close(found.inverse(again), bent)


def test_the_same_numbers_give_the_same_coordinates():
    steps, sources = steps_of(warped(walk(1))), [generator(), generator()]
    maps = [fit_straight_coordinates(*steps, generator=source) for source in sources]
    assert torch.equal(*(source.get_state() for source in sources))
    # Not to the bit: sums may be rounded otherwise from run to run, and hundreds of steps follow.
    torch.testing.assert_close(*(found(steps[0])[0] for found in maps), rtol=1e-3, atol=1e-3)


def turning(n_steps=5000):
    """A linear oscillator, whose steps differ from place to place."""
    noise = normal(n_steps, 2)
    rotation = 0.999 * torch.tensor([[0.995, -0.0998], [0.0998, 0.995]], dtype=torch.float64)
    places = [noise[0]]
    for e in noise[1:]:
        places.append(rotation @ places[-1] + 0.05 * e)
    return torch.stack(places)[None]


@pytest.mark.parametrize("sequences", [turning(), walk(1)], ids=["oscillator", "even walk"])
def test_what_is_straight_stays(sequences):
    assert fit_straight_coordinates(*steps_of(sequences), generator=generator()) is None


@pytest.mark.parametrize("is_told", [True, False])
def test_places_that_are_hardly_seen_stay_as_wide_as_they_are(is_told):
    """Errors look like long steps, and to squeeze them makes them small, if nobody knows better."""
    straight = walk(1)
    error = 0.2 * (straight - 0.2).clamp_min(0.0)
    before, after, known = steps_of(straight + error * normal(*straight.shape))
    covariance = steps_of(error.square())
    doubt = torch.diag_embed(covariance[0] + covariance[1]) if is_told else known
    found = fit_straight_coordinates(before, after, doubt, generator=generator())
    if is_told:
        assert found is None
    else:
        slope = found(torch.tensor([[0.0], [1.0]]).double())[1].flatten()
        assert slope[1] < 0.5 * slope[0]


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_doubt_is_about_steps_as_they_are(scale):
    """In the same coordinates, whatever these are."""
    before, after, _ = steps_of(warped(walk(1)))
    doubt = torch.full((len(before), 1, 1), 0.01**2).double()
    old = fit_straight_coordinates(before, after, doubt, generator=generator())
    scaled = scale * before, scale * after, scale**2 * doubt
    new = fit_straight_coordinates(*scaled, generator=generator())
    torch.testing.assert_close(new(scale * before)[0], scale * old(before)[0], rtol=1e-3, atol=1e-3)


def test_doubt_that_is_rounded_below_zero_is_none():
    """In densities and their gradients to the bit, and so in what is learned."""
    before, after, known = steps_of(warped(walk(1)))
    kinds = straightening._Kinds((after - before).square().mean(0).sqrt())
    results = []
    for doubt in (known[..., 0], known[..., 0] - 1.0):
        density = kinds(before[:9], after[:9], doubt[:9])
        results.append((density, *torch.autograd.grad(density.sum(), list(kinds.parameters()))))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    maps = [
        fit_straight_coordinates(before, after, doubt, generator=generator())
        for doubt in (known, known - 1.0)
    ]
    torch.testing.assert_close(maps[0](before)[0], maps[1](before)[0], rtol=1e-3, atol=1e-3)


def test_there_must_be_steps_enough_and_movement():
    before, after, doubt = steps_of(warped(walk(1)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(straightening, "_learn", lambda *_: pytest.fail("nothing to learn"))
        for few in (0, 1, 100):
            found = fit_straight_coordinates(
                before[:few], after[:few], doubt[:few], generator=generator()
            )
            assert found is None
        for value in (2.0, np.nan, np.inf):
            same = before.index_fill(0, torch.arange(len(before)), value)
            assert fit_straight_coordinates(same, same, doubt, generator=generator()) is None


@pytest.mark.parametrize("is_bent", [True, False])
def test_states_tell_whether_coordinates_are_better(is_bent):
    """Of the latents as they are: straight ones gain where they were bent, and lose otherwise."""
    straight = walk(1)
    latents = warped(straight) if is_bent else straight
    found = fit_straight_coordinates(*steps_of(warped(straight)), generator=generator())
    priors = [SwitchingPrior.sticky(2, DynamicsPrior.isotropic(1, noise_scale=1e-3))]
    lengths = torch.full((len(straight),), straight.shape[1])
    gain = straightening._states_gain(found, latents.flatten(0, 1), lengths, priors, seed=0)
    assert gain == is_bent


def test_linear_maps_gain_nothing():
    """Evidence and volume make up for one another, but for the priors, and the price is paid."""
    latents = walk(1).flatten(0, 1)
    ones, zeros = torch.ones(1).double(), torch.zeros(8, 8, 1).double()
    double = Coordinates(
        0 * ones, ones, zeros + 1, zeros[..., 0], zeros.mT, 2 * ones[None], 0 * ones
    )
    priors = [SwitchingPrior.sticky(2, DynamicsPrior.isotropic(1, noise_scale=1e-3))]
    assert not straightening._states_gain(double, latents, torch.full((60,), 101), priors, seed=0)


class Known:
    """Posteriors with the latents that are given."""

    def __init__(self, latents):
        self.latents = latents
        self.coordinates = None

    def infer(self, rows):
        mask = rows.mask
        mean = torch.zeros(*mask.shape, 1, dtype=torch.float64)
        mean[mask] = self.latents[rows.places]
        # That of each number is its square; successive ones have half their product in common.
        covariance = mean.square().unsqueeze(-1)
        lag = 0.5 * (mean[:, 1:] * mean[:, :-1]).unsqueeze(-1)
        return SimpleNamespace(mean=mean, covariance=covariance, lag_covariance=lag, mask=mask)


def test_steps_are_those_of_steps_that_were_seen(monkeypatch):
    """In their own sequence, whatever the size of parts."""
    observed = torch.tensor([[1.0, np.nan], [2.0, 0.0], [np.nan] * 2, [4.0, 0.0], [5.0, np.nan]])
    observed = torch.cat([observed, observed])
    lengths = torch.tensor([5, 1, 4])
    rows = SequenceRows(observed, observed, lengths).with_memory()
    seen, latents = [], torch.arange(10.0).double().unsqueeze(1)

    def fit(before, after, covariance, *, generator):
        seen.append(torch.cat([before, after, covariance.flatten(1)], 1).tolist())
        return "a map"

    def gain(found, points, n_steps, priors, seed):
        assert (found, priors, seed) == ("a map", ["a prior"], 7)
        assert torch.equal(points, latents)
        assert torch.equal(n_steps, lengths)
        return gains

    monkeypatch.setattr(straightening, "fit_straight_coordinates", fit)
    monkeypatch.setattr(straightening, "_states_gain", gain)
    for chunk, gains in ((1, True), (100, False)):
        model = Known(latents)
        straighten(model, rows, ["a prior"], generator=generator(7), chunk=chunk)
        assert model.coordinates == ("a map" if gains else None)
    # Step 7 is missing, and 5 is a sequence by itself.
    assert seen == [[[0.0, 1.0, 1.0], [3.0, 4.0, 13.0], [8.0, 9.0, 73.0]]] * 2
