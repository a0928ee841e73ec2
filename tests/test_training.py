# SPDX-License-Identifier: BSD-3-Clause
"""Minibatch steps and epochs against finite differences and closed forms."""

import dataclasses
import math

import pytest
import torch

from sksvae.graphical import StandardNormalModel
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.gaussian import GaussianLikelihood
from sksvae.objective import Rows
from sksvae.optimizer import Optimizer
from sksvae.persistence import load_optimizer, optimizer_to_arrays
from sksvae.training import EpochRecord, run_training

from .models import (
    LATENT_DIM,
    Bookkeeper,
    clusters,
    cubature,
    data,
    linear_model,
    make_trainer,
    mixture,
    nonlinear_model,
    numbered_rows,
)


def full_bound(model, rows, n_rows=None):
    """Per row, with the prior KL and noise of exact moments."""
    params = model.graphical.expected_params()
    with torch.no_grad():
        bound = model.elbo(rows, params, cubature(len(rows))).bound.mean()
    return (bound - model.graphical.prior_kl() / (n_rows or len(rows))).item()


def watch(monkeypatch, trainer, noise=None):
    """Record what reaches the natural step, which is not taken; fix the noise if given."""
    steps = []
    graphical = trainer.model.graphical
    monkeypatch.setattr(
        graphical, "natural_step", lambda gradient, size: steps.append((gradient, size))
    )
    if noise is not None:
        monkeypatch.setattr(trainer, "noise", lambda n_rows: noise)
    return steps


# What training is for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unbiased": False},
        {"n_draws": 3, "batch_size": 30},
        {"gradient": "richardson"},
        {"prior": "standard_normal"},
        {"solver": "muon"},
    ],
    ids=str,
)
def test_training_raises_the_bound_on_all_rows(changes):
    changes = dict(changes)
    graphical = mixture(3)
    if changes.pop("prior", None):
        graphical = StandardNormalModel(LATENT_DIM)
    model, rows = nonlinear_model(graphical, GaussianLikelihood()), clusters()
    model.settings = FixedPointSettings(gradient=changes.pop("gradient", "cg"))
    before = full_bound(model, rows)
    changes = {"max_iter": 20, "n_iter_no_change": 20, "learning_rate": 0.02, **changes}
    trainer = make_trainer(model, len(rows), **changes)
    history, _ = run_training(trainer, rows, None, lambda *_: False)
    bounds = torch.tensor([record.lower_bound for record in history])
    first, second, third, fourth = bounds.view(4, 5).mean(1).tolist()
    assert first < second < third < fourth
    assert full_bound(model, rows) > before + 0.5
    # What the last epoch reported is about the bound of the model that it left.
    assert full_bound(model, rows) == pytest.approx(bounds[-1].item(), abs=0.5)


# Natural gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [6, 600])
def test_unbiased_gradient_is_that_of_the_bound_by_finite_differences(monkeypatch, n_rows):
    """In expected parameters, scaled from the minibatch to all rows."""
    model, rows = nonlinear_model(mixture(3)), data(6)
    params = model.graphical.expected_params()
    noise = cubature(len(rows))
    fields = []
    step = 1e-5
    with torch.no_grad():
        for field in params:
            slopes = torch.zeros_like(field)
            for index in torch.ones_like(field).nonzero():
                values = []
                for sign in (1, -1):
                    field[tuple(index)] += sign * step
                    values.append(model.elbo(rows, params, noise).bound.mean())
                    field[tuple(index)] -= sign * step
                slopes[tuple(index)] = n_rows * (values[0] - values[1]) / (2 * step)
            fields.append(slopes)
    trainer = make_trainer(model, n_rows)
    steps = watch(monkeypatch, trainer, noise)
    trainer.step(rows, 0.25)
    ((gradient, size),) = steps
    assert size == 0.25
    for got, want in zip(gradient, fields, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * n_rows)


def networks_of(model):
    return list(model.parameters())


@pytest.mark.parametrize(
    "changes", [{"unbiased": False}, {"beta": 0.5}, {"beta": 4.0}, {"capacity": 1.0}], ids=str
)
def test_biased_gradient_is_the_statistics_of_the_rows(monkeypatch, changes):
    """Also whenever the networks are trained for something other than the bound."""
    model, rows = nonlinear_model(mixture(3)), data(6)
    with torch.no_grad():
        stats = model.graphical.total_stats(model.infer(rows))
    trainer = make_trainer(model, 600, **changes)
    steps = watch(monkeypatch, trainer)
    trainer.step(rows, 0.25)
    for got, want in zip(steps[0][0], stats, strict=True):
        torch.testing.assert_close(got, 100 * want)
    # The two directions differ, so that the test can tell.
    other = make_trainer(nonlinear_model(mixture(3)), 600)
    steps = watch(monkeypatch, other)
    other.step(rows, 0.25)
    assert any(
        not torch.allclose(got, 100 * want, rtol=1e-2)
        for got, want in zip(steps[0][0], stats, strict=True)
    )


def test_networks_get_the_same_gradient_either_way(monkeypatch):
    gradients = []
    for unbiased in (True, False):
        model, rows = nonlinear_model(mixture(3)), data(6)
        trainer = make_trainer(model, 6, unbiased=unbiased)
        watch(monkeypatch, trainer)
        trainer.step(rows, 0.1)
        gradients.append([p.grad for p in networks_of(model)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_moves_networks_and_mixture_and_reports_the_terms_before_it():
    model, rows = nonlinear_model(mixture(3)), data(20)
    noise = make_trainer(model).noise(rows)
    params = model.graphical.expected_params()
    want = model.elbo(rows, params, noise).bound
    networks = [p.detach().clone() for p in networks_of(model)]
    posterior = model.graphical.posterior
    trainer = make_trainer(model, 20)
    terms = trainer.step(rows, 0.1)
    torch.testing.assert_close(terms.bound, want)
    for before, after in zip(networks, networks_of(model), strict=True):
        # The first step of Adam is the learning rate, against the sign of the gradient.
        torch.testing.assert_close(after, before - 0.01 * after.grad.sign(), rtol=0.0, atol=1e-6)
    moved = model.graphical.posterior
    assert not torch.equal(moved.components.mean, posterior.components.mean)
    assert not torch.equal(moved.weights.concentration, posterior.weights.concentration)


# beta and capacity -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beta", "capacity"), [(1.0, 0.0), (0.0, 0.0), (0.3, 0.0), (4.0, 0.0), (1.0, 0.5), (2.0, 1e3)]
)
def test_networks_minimise_beta_times_the_distance_of_the_kl_from_capacity(
    monkeypatch, beta, capacity
):
    model, rows = nonlinear_model(mixture(3)), data(6)
    trainer = make_trainer(model, 6, beta=beta, capacity=capacity)
    noise = trainer.noise(rows)
    watch(monkeypatch, trainer, noise)
    terms = model.elbo(rows, model.graphical.expected_params(), noise)
    kl = terms.posterior.local_kl.mean()
    sign = 1.0 if kl > capacity else -1.0
    loss = sign * beta * kl - terms.reconstruction.mean()
    want = torch.autograd.grad(loss, networks_of(model))
    trainer.step(rows, 0.1)
    for got, gradient in zip((p.grad for p in networks_of(model)), want, strict=True):
        torch.testing.assert_close(got, gradient)


def test_a_large_beta_lowers_the_local_kl():
    kls = []
    for beta in (0.1, 10.0):
        model, rows = nonlinear_model(StandardNormalModel(LATENT_DIM)), clusters()
        trainer = make_trainer(model, len(rows), beta=beta, max_iter=20, n_iter_no_change=20)
        history, _ = run_training(trainer, rows, None, lambda *_: False)
        kls.append(history[-1].local_kl)
    assert kls[1] < 0.5 * kls[0]


# Errors ------------------------------------------------------------------------------------------


def spoiled(model, **values):
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name.replace("__", ".")).fill_(value)
    return model


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e200])
def test_a_reconstruction_that_is_not_finite_is_named(value):
    model = spoiled(nonlinear_model(mixture(3)), decoder__bias=value)
    kept = {name: v.clone() for name, v in model.state_dict().items()}
    trainer = make_trainer(model)
    with pytest.raises(ValueError, match=r"reconstruction term .* not finite for 6 of 6 rows"):
        trainer.step(data(6), 0.1)
    # Nothing moved.
    for name, v in model.state_dict().items():
        assert torch.equal(v, kept[name]) or not v.isfinite().all()


def test_the_advice_depends_on_the_term():
    model = spoiled(nonlinear_model(mixture(3)), decoder__bias=math.inf)
    with pytest.raises(ValueError, match=r"learning_rate_init.*student_t"):
        make_trainer(model).step(data(6), 0.1)


def test_a_local_kl_that_is_not_finite_is_named():
    """The decoder ignores latents that are out of range, the prior does not."""
    model, _, _ = linear_model(StandardNormalModel(LATENT_DIM))
    spoiled(model, encoder__bias=1e200, decoder__skip=0.0)
    with pytest.raises(ValueError, match=r"local KL term .* not finite for 6 of 6 rows") as info:
        make_trainer(model).step(data(6), 0.1)
    assert "covariance_prior" in str(info.value)


def test_only_the_bad_rows_are_counted():
    x = data(6).observed.clone()
    x[[1, 4]] = 1e200
    model = nonlinear_model(mixture(3))
    with pytest.raises(ValueError, match="2 of 6 rows"):
        make_trainer(model).step(Rows(x, data(6).encoded), 0.1)


def test_a_failed_inference_is_a_value_error():
    model = spoiled(nonlinear_model(mixture(3)), encoder__log_precision=math.nan)
    with pytest.raises(ValueError, match="Training diverged: local inference failed"):
        make_trainer(model).step(data(6), 0.1)


def test_a_failed_natural_step_is_a_value_error(monkeypatch):
    model = nonlinear_model(mixture(3))
    trainer = make_trainer(model)
    monkeypatch.setattr(
        model.graphical,
        "total_stats",
        lambda posterior: [torch.full_like(p, math.nan) for p in model.graphical.expected_params()],
    )
    trainer.settings = dataclasses.replace(trainer.settings, unbiased=False)
    with pytest.raises(ValueError, match=r"Training diverged: q\(theta\) cannot move"):
        trainer.step(data(6), 0.1)


def test_networks_spoiled_by_the_last_step_are_noticed(monkeypatch):
    model, rows = nonlinear_model(mixture(3)), data(20)
    trainer = make_trainer(model, 20)
    step = trainer.step

    def bad_step(*args):
        terms = step(*args)
        spoiled(model, encoder__bias=math.nan)
        return terms

    monkeypatch.setattr(trainer, "step", bad_step)
    with pytest.raises(ValueError, match=r"Training diverged: encoder\.bias grew to nan"):
        trainer.pass_over(rows)


# One epoch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_rows", "batch_size"), [(50, 20), (50, 50), (41, 20), (7, 1), (5, 9)])
def test_an_epoch_visits_every_row_once(monkeypatch, n_rows, batch_size):
    trainer = make_trainer(linear_model(mixture(2))[0], n_rows, batch_size=batch_size)
    book = Bookkeeper(trainer)
    monkeypatch.setattr(trainer, "step", book)
    rows = numbered_rows(n_rows)
    record = trainer.pass_over(rows)
    visited = torch.cat(book.rows)
    assert sorted(visited.tolist()) == list(range(n_rows))
    sizes = [len(batch) for batch in book.rows]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == math.ceil(n_rows / batch_size)
    # Every row has the same weight in the record, whatever the size of its batch.
    assert record.reconstruction == pytest.approx(rows.observed[:, 1].mean().item())
    assert record.local_kl == pytest.approx(rows.observed[:, 2].mean().item())
    assert record.global_kl == pytest.approx(trainer.model.graphical.prior_kl().item() / n_rows)
    assert record.lower_bound == pytest.approx(
        record.reconstruction - record.local_kl - record.global_kl
    )
    assert math.isnan(record.validation_bound)
    trainer.pass_over(rows)
    if batch_size < n_rows:
        assert not torch.equal(torch.cat(book.rows)[n_rows:], visited)


def test_natural_steps_of_an_epoch_add_up_to_the_rate(monkeypatch):
    trainer = make_trainer(linear_model(mixture(2))[0], 41, natural_rate=0.3)
    book = Bookkeeper(trainer)
    monkeypatch.setattr(trainer, "step", book)
    trainer.pass_over(numbered_rows(41))
    assert sum(book.sizes) == pytest.approx(0.3)
    for rows, size in zip(book.rows, book.sizes, strict=True):
        assert size == pytest.approx(0.3 * len(rows) / 41)


def test_natural_steps_are_smaller_for_a_larger_data_set_and_never_above_one(monkeypatch):
    for n_rows, rate, want in ((400, 0.3, 0.03), (40, 50.0, 2.0)):
        trainer = make_trainer(linear_model(mixture(2))[0], n_rows, natural_rate=rate)
        book = Bookkeeper(trainer)
        monkeypatch.setattr(trainer, "step", book)
        trainer.pass_over(numbered_rows(40))
        assert sum(book.sizes) == pytest.approx(want)
        assert max(book.sizes) <= 1.0


def test_states_of_adam_and_networks_stay_as_they_are():
    trainer = make_trainer(linear_model(mixture(2))[0], 20)
    rows = numbered_rows(20)
    trainer.pass_over(rows)
    states = [
        trainer.copied_networks(),
        *(slot for _, slot in sorted(trainer.optimizer.state_dict()["state"].items())),
    ]
    before = [{name: value.clone() for name, value in state.items()} for state in states]
    trainer.pass_over(rows)
    for state, want in zip(states, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in want.items())
    assert not torch.equal(states[0]["encoder.skip"], trainer.model.state_dict()["encoder.skip"])


def test_values_of_a_record_are_its_fields_in_order():
    record = EpochRecord(1.0, 2.0, 3.0, 4.0, 5.0).shifted(10.0)
    assert record.values() == dataclasses.astuple(record) == (11.0, 12.0, 3.0, 4.0, 15.0)


def test_adam_takes_the_steps_of_torch_and_reads_its_state():
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 2), (4,), (2,)
    copies = [[torch.ones(shape, dtype=torch.float64) for shape in shapes] for _ in range(3)]
    ours, theirs, resumed = copies
    adam, later = (
        Optimizer([(values[:2], 0.1, "adam"), (values[2:], 0.02, "adam")])
        for values in (ours, resumed)
    )
    groups = [
        {"params": theirs[:2], "lr": 0.1, "initial_lr": 0.1},
        {"params": theirs[2:], "lr": 0.02, "initial_lr": 0.02},
    ]
    reference = torch.optim.Adam(groups, fused=True)
    for step in range(6):
        for values in zip(*copies, strict=True):
            gradient = torch.randn(values[0].shape, generator=generator, dtype=torch.float64)
            for value in values:
                value.grad = gradient
        adam.step()
        reference.step()
        if step == 2:
            later.load_state_dict(reference.state_dict())
            for value, current in zip(resumed, theirs, strict=True):
                value.copy_(current)
        if step > 2:
            later.step()
    for got, want, again in zip(ours, theirs, resumed, strict=True):
        assert torch.equal(got, want)
        assert torch.equal(again, want)
    reference.load_state_dict({**reference.state_dict(), "state": adam.state_dict()["state"]})


def test_gradients_may_lie_in_memory_in_any_order():
    gradient = torch.arange(6.0).view(3, 2)
    ours = torch.zeros(3, 2), torch.zeros(2, 3).mT, torch.zeros(3, 2)
    for value, laid in zip(ours, (gradient, gradient, gradient.mT.contiguous().mT), strict=True):
        value.grad = laid
        adam = Optimizer([([value], 0.1, "adam")])
        for _ in range(3):
            adam.step()
    for value in ours[1:]:
        assert torch.equal(value, ours[0])


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (5, 1)])
def test_muon_makes_averages_of_gradients_orthogonal(shape):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    weight = torch.zeros(shape, dtype=torch.float64)
    muon, average = Optimizer([([weight], 0.1, "muon")]), torch.zeros(shape).double()
    for gradient in gradients:
        before, weight.grad = weight.clone(), gradient
        average = 0.95 * average + 0.05 * gradient
        muon.step()
        step = (before - weight) / (0.1 * 0.2 * max(shape) ** 0.5)
        u, s, v = torch.linalg.svd(0.05 * gradient + 0.95 * average, full_matrices=False)
        inside = u.mT @ step @ v.mT
        assert torch.allclose(u @ inside @ v, step, atol=1e-12)
        assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-12)
        of_size = inside.diagonal()[s > 0.05 * s.norm()]
        assert ((of_size > 0.65) & (of_size < 1.25)).all()


def test_muon_takes_the_steps_of_torch_up_to_the_rounding_of_those():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.ones(30, 20), torch.ones(30, 20)
    muon = Optimizer([([ours], 0.1, "muon")])
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(30, 20, generator=generator)
        muon.step()
        reference.step()
    # Theirs are computed in eight bits.
    assert (ours - theirs).norm() < 0.02 * (theirs - 1).norm()


def test_muon_is_for_weights_of_perceptrons_and_adam_for_the_rest():
    model = nonlinear_model(mixture(2), GaussianLikelihood())
    trainer = make_trainer(model, 20, solver="muon")
    weights, others, noise = trainer.optimizer.param_groups
    layers = [*model.encoder.mlp.hidden, model.encoder.mlp.output]
    layers += [*model.decoder.mlp.hidden, model.decoder.mlp.output]
    assert [id(p) for p in weights["params"]] == [id(layer.weight) for layer in layers]
    assert weights["rule"] == "muon"
    assert others["rule"] == noise["rule"] == "adam"
    together = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, together)) == sorted(map(id, model.parameters()))


def test_moments_of_the_other_solver_are_left_behind():
    rows, trainers = clusters(), {}

    def begin(solver):
        model = nonlinear_model(mixture(2), GaussianLikelihood())
        return make_trainer(model, len(rows), solver=solver)

    for solver in ("adam", "muon"):
        trainers[solver] = begin(solver)
        trainers[solver].pass_over(rows)
    for own, other in (("adam", "muon"), ("muon", "adam")):
        optimizer = begin(own).optimizer
        kept = optimizer_to_arrays(trainers[own].optimizer)
        load_optimizer(optimizer, kept)
        assert optimizer_to_arrays(optimizer).keys() == kept.keys()
        load_optimizer(optimizer, optimizer_to_arrays(trainers[other].optimizer))
        assert optimizer.state == {}


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-37])
def test_what_fades_is_zero_before_it_is_slow(scale):
    """Entries of averages behind units that died get ever smaller, but never subnormal."""
    weight = torch.zeros(8, 6)
    muon = Optimizer([([weight], 0.1, "muon")])
    for alive in (True, False, False):
        gradient = torch.ones(8, 6)
        gradient[::2] = scale if alive else 0.0
        weight.grad = gradient
        muon.step()
    average = muon.state[0]["momentum_buffer"]
    assert ((average == 0) | (average.abs() > 1e-30)).all()
    assert (average[::2] == 0).all() == (scale < 1e-30)
    assert weight.isfinite().all()
