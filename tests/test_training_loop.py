# SPDX-License-Identifier: BSD-3-Clause
"""Learning rates, when training stops, the model that is kept, and what chance decides."""

import dataclasses
import math

import pytest
import torch

from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.gaussian import GaussianLikelihood
from sksvae.objective import Rows
from sksvae.training import EpochRecord, Trainer, run_training

from .models import (
    LATENT_DIM,
    SETTINGS,
    Bookkeeper,
    clusters,
    cubature,
    data,
    generator,
    linear_model,
    make_trainer,
    mixture,
    nonlinear_model,
    numbered_rows,
)

# Learning rate -----------------------------------------------------------------------------------


def test_learning_rates_fall_along_half_a_cosine():
    trainer = make_trainer(nonlinear_model(mixture(2), GaussianLikelihood()), noise_rate=0.5)
    rates = []
    for fraction in (0.0, 0.25, 0.5, 1.0, 1.5):
        trainer.set_progress(fraction)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    root = math.sqrt(0.5)
    want = torch.tensor([0.01, 0.005 * (1 + root), 0.005, 0.0, 0.0], dtype=torch.float64)
    networks, noise = torch.tensor(rates, dtype=torch.float64).T
    torch.testing.assert_close(networks, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noise, 0.5 * want, rtol=1e-12, atol=1e-12)


def test_the_noise_of_the_likelihood_has_a_learning_rate_of_its_own():
    model = nonlinear_model(mixture(2), GaussianLikelihood())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    make_trainer(model, noise_rate=0.25).step(data(6), 0.1)
    for name, value in model.named_parameters():
        # The first step of Adam is the learning rate itself.
        rate = 0.0025 if name.startswith("likelihood_params") else 0.01
        want = torch.full_like(value, rate)
        torch.testing.assert_close((value - before[name]).abs(), want, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("anneal", [True, False])
def test_learning_rates_of_a_whole_training(monkeypatch, anneal):
    rows = numbered_rows(40)
    trainer = make_trainer(
        linear_model(mixture(2))[0], 40, anneal=anneal, max_iter=3, n_iter_no_change=9
    )
    book = Bookkeeper(trainer)
    monkeypatch.setattr(trainer, "step", book)
    run_training(trainer, rows, None, lambda *_: False)
    want = [0.005 * (1 + math.cos(math.pi * i / 6)) if anneal else 0.01 for i in range(6)]
    assert book.rates == pytest.approx(want)


# When training stops -----------------------------------------------------------------------------


class ScriptedTrainer:
    """Its epochs have the bounds that it was given."""

    def __init__(self, bounds, **changes):
        self.settings = dataclasses.replace(SETTINGS, max_iter=len(bounds), **changes)
        self.bounds = iter(bounds)

    def pass_over(self, rows, fraction, length):
        return EpochRecord(next(self.bounds), 0.0, 0.0, 0.0)


def run_script(bounds, on_epoch_end=lambda *_: False, **changes):
    history, converged = run_training(
        ScriptedTrainer(bounds, **changes), data(2), None, on_epoch_end
    )
    assert [record.lower_bound for record in history] == bounds[: len(history)]
    return len(history), converged


@pytest.mark.parametrize(
    ("bounds", "n_epochs", "converged"),
    [
        ([float(i) for i in range(12)], 12, False),  # every epoch improves
        ([0.0] * 9, 6, True),  # three make the first mean, three more do not improve it
        ([0.0] * 5, 5, False),  # the epochs run out first
        ([0.0] * 6, 6, True),  # both at once
        ([9.0, 6.0, 3.0, 0.0, -3.0, -6.0, 99.0], 6, True),  # falling is not improving
        # Means of three: 0, 1, 2, 3, 3, 3, 3.
        ([0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 99.0], 9, True),
        # One good epoch raises three means, but only the first of them above the best.
        ([0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 99.0], 7, True),
        # Noise of a nat, while the mean rises by 0.2 an epoch.
        ([0.2 * i + (-1) ** i for i in range(30)], 30, False),
        # Rises below tol add up: three in a row may not reach it together.
        ([0.06 * i for i in range(30)], 30, False),
        ([0.04 * i for i in range(30)], 6, True),
    ],
)
def test_stops_after_epochs_in_which_the_running_mean_did_not_improve(bounds, n_epochs, converged):
    assert run_script(bounds, tol=0.15, n_iter_no_change=3) == (n_epochs, converged)


def test_an_improvement_equal_to_tol_is_none():
    assert run_script([0.0, 0.5, 1.0, 1.5], tol=0.5, n_iter_no_change=1) == (2, True)
    assert run_script([0.0, 0.5, 1.0, 1.5], tol=0.49, n_iter_no_change=1) == (4, False)


def test_a_bound_that_is_not_a_number_does_not_count_as_an_improvement():
    assert run_script([math.nan] * 9, tol=0.15, n_iter_no_change=3) == (5, True)


def test_a_callback_sees_every_epoch_and_can_stop():
    seen = []

    def on_epoch_end(epoch, record):
        seen.append((epoch, record.lower_bound))
        return epoch == 2

    assert run_script([5.0, 6.0, 7.0, 8.0], on_epoch_end) == (3, True)
    assert seen == [(0, 5.0), (1, 6.0), (2, 7.0)]


# Early stopping ----------------------------------------------------------------------------------


class WanderingTrainer(Trainer):
    """Its epochs put the decoder at scripted distances from the best one, and the mixture too."""

    def pass_over(self, rows, fraction=0.0, length=0.0):
        distance = next(self.distances)
        with torch.no_grad():
            self.model.decoder.bias.copy_(self.best_bias + distance)
        weights = self.model.graphical.posterior.weights
        moved = weights._replace(concentration=weights.concentration + 1.0)
        self.model.graphical.posterior = self.model.graphical.posterior._replace(weights=moved)
        self.concentrations.append(moved.concentration)
        return EpochRecord(-distance, 0.0, 0.0, 0.125)


def wandering(distances, **changes):
    model, _, b = linear_model(mixture(2))
    settings = dataclasses.replace(SETTINGS, max_iter=len(distances), **changes)
    trainer = WanderingTrainer(model, 60, settings, generator())
    trainer.distances, trainer.best_bias, trainer.concentrations = iter(distances), b, []
    likelihood = model.likelihood
    z, _ = model.graphical.sample(200, generator(5))
    x = likelihood.sample(model.decode(z), {}, generator(6)).detach()
    return trainer, Rows(x, x)


def test_early_stopping_ends_as_the_best_model_on_the_validation_rows():
    trainer, validation = wandering([3.0, 2.0, 0.0, 1.0, 2.0, 3.0, 0.0], n_iter_no_change=2)
    history, converged = run_training(trainer, data(4), validation, lambda *_: False)
    assert converged
    bounds = [record.validation_bound for record in history]
    assert len(bounds) == 6
    assert max(bounds) == bounds[2]
    assert bounds[0] < bounds[1] < bounds[2] > bounds[3] > bounds[4] > bounds[5]
    torch.testing.assert_close(trainer.model.decoder.bias[0].detach(), trainer.best_bias)
    assert torch.equal(
        trainer.model.graphical.posterior.weights.concentration, trainer.concentrations[2]
    )


def test_the_validation_bound_is_that_of_the_rows_less_the_global_term():
    trainer, validation = wandering([0.0])
    (record,), _ = run_training(trainer, data(4), validation, lambda *_: False)
    # Encoder and decoder are linear and match, so the bound does not depend on the noise.
    params = trainer.model.graphical.expected_params()
    want = trainer.model.elbo(validation, params, cubature(200)).bound.mean().item() - 0.125
    assert record.validation_bound == pytest.approx(want, rel=1e-9)
    assert record.lower_bound == 0.0


def test_failed_inference_on_validation_rows_is_a_clear_error():
    trainer, validation = wandering([0.0])
    validation = Rows(validation.observed, torch.full_like(validation.encoded, torch.nan))
    with pytest.raises(ValueError, match="Training diverged: local inference failed"):
        run_training(trainer, data(4), validation, lambda *_: False)


def test_the_wait_for_convergence_begins_anew_while_the_structure_changes():
    ended = []
    for busy_until in (0, 6):
        trainer, _ = wandering([0.0] * 20, n_iter_no_change=2)
        history, converged = run_training(
            trainer, data(4), None, lambda *_: False, lambda epoch, end=busy_until: epoch < end
        )
        assert converged
        ended.append(len(history))
    assert ended[1] == ended[0] + 5


def test_a_model_whose_structure_has_to_change_is_not_kept():
    trainer, validation = wandering([0.0, 0.1, 2.0, 1.0, 2.0], n_iter_no_change=9)
    run_training(trainer, data(4), validation, lambda *_: False, lambda epoch: epoch < 2)
    assert torch.equal(
        trainer.model.graphical.posterior.weights.concentration, trainer.concentrations[3]
    )


def test_validation_rows_decide_and_not_the_training_bound():
    """Here the training bound falls for the first three epochs and the validation bound rises."""
    trainer, validation = wandering([0.3, 0.2, 0.1, 0.0], n_iter_no_change=2)
    scripted = iter([-1.0, -2.0, -3.0, -4.0])
    plain = trainer.pass_over

    def pass_over(*args):
        return dataclasses.replace(plain(*args), lower_bound=next(scripted))

    trainer.pass_over = pass_over
    history, converged = run_training(trainer, data(4), validation, lambda *_: False)
    assert len(history) == 4
    assert not converged


def test_without_validation_rows_training_ends_with_the_last_model():
    trainer, _ = wandering([0.0, 1.0, 2.0])
    run_training(trainer, data(4), None, lambda *_: False)
    torch.testing.assert_close(trainer.model.decoder.bias[0].detach(), trainer.best_bias + 2.0)


# Randomness --------------------------------------------------------------------------------------


def trained_state(seed, dtype=torch.float64, validation=None):
    model = nonlinear_model(mixture(3)).to(dtype)
    model.graphical = type(model.graphical).from_state(
        {name: value.to(dtype) for name, value in model.graphical.state().items()}
    )
    model.settings = FixedPointSettings()
    rows = Rows(*(field.to(dtype) for field in clusters()))
    trainer = make_trainer(model, len(rows), seed=seed, max_iter=3)
    history, _ = run_training(trainer, rows, validation, lambda *_: False)
    state = {**model.state_dict(), **model.graphical.state()}
    assert all(value.dtype == dtype for value in state.values())
    return torch.cat([value.flatten() for value in state.values()]), history


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_seeds_give_equal_models_to_the_bit(dtype):
    before = torch.random.get_rng_state()
    first, second, other = (trained_state(seed, dtype) for seed in (0, 0, 1))
    assert torch.equal(first[0], second[0])
    assert str(first[1]) == str(second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_single_precision_follows_double():
    single, double = trained_state(0, torch.float32)[1], trained_state(0)[1]
    # Draws in the two precisions differ, so only the size of the bound is comparable.
    assert single[-1].lower_bound == pytest.approx(double[-1].lower_bound, rel=0.1)


def test_noise_has_a_draw_for_every_row():
    trainer = make_trainer(linear_model(mixture(2))[0], n_draws=3)
    noise = trainer.noise(data(7))
    assert noise.shape == (3, 7, LATENT_DIM)
    assert noise.dtype == torch.float64
    assert not torch.equal(noise, trainer.noise(data(7)))
    assert torch.equal(noise, make_trainer(linear_model(mixture(2))[0], n_draws=3).noise(data(7)))
