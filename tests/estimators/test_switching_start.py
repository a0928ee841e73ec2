# SPDX-License-Identifier: BSD-3-Clause
"""How fits of switching dynamics start: networks, number of latents, length of the linear fit."""

import math
import pickle

import numpy as np
import pytest
import torch

from sksvae import SVAESwitchingLDS, straightening
from sksvae.estimators import switching_fit
from sksvae.estimators.base import BaseSVAE
from sksvae.estimators.dynamics_fit import DynamicsFit
from sksvae.estimators.switching_fit import SwitchingFit
from sksvae.graphical import LinearDynamicsModel, SwitchingPrior
from sksvae.training import Trainer

from ..walks import unevenness, walk, warped
from .cases import assert_same_attributes
from .switching_cases import assert_usable, quick, turning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = turning()[1]
SMALL = X[:, :10]


def test_networks_are_pretrained_on_single_steps(monkeypatch):
    """If there are any networks; dynamics are found afterwards."""
    seen = []

    def pretrain(self, model, rows, *rest, **options):
        seen.append(rows)
        before = model.encoder.bias.clone()
        BaseSVAE._pretrain(self, model, rows, *rest, **options)
        assert not torch.equal(model.encoder.bias, before)

    monkeypatch.setattr(SVAESwitchingLDS, "_pretrain", pretrain)
    estimator = quick(hidden_layer_sizes=(5,), pretraining_iter=3, max_iter=2).fit(SMALL)
    assert estimator.n_iter_ == len(estimator.lower_bounds_) == 5
    assert estimator.n_states_ == 2
    (rows,) = seen
    assert (rows.lengths == 1).all()
    observed = rows.observed * estimator.scale_ + estimator.location_
    np.testing.assert_allclose(observed, SMALL.reshape(-1, 3))
    assert quick(pretraining_iter=3).fit(SMALL).n_iter_ == 2
    assert quick(1, hidden_layer_sizes=(5,), pretraining_iter=3).fit(SMALL).n_iter_ == 2
    assert len(seen) == 1


def test_coordinates_are_looked_for_between_pretraining_and_states(monkeypatch):
    """In the latents of whole sequences under linear dynamics, with networks that are trained."""
    seen, start = [], SwitchingFit._start_states

    def straighten(model, rows, priors, *, generator, chunk):
        assert {tuple(prior.dynamics.scale.shape) for prior in priors} == {(2, 2, 2)}
        seen.append((type(model.graphical), rows.lengths.tolist()))

    def start_states(self, *rest):
        seen.append("states")
        start(self, *rest)

    monkeypatch.setattr(switching_fit, "straighten", straighten)
    monkeypatch.setattr(SwitchingFit, "_start_states", start_states)
    settings = {"max_iter": 1, "sequence_length": 4, "noise_covariance_type": "tied"}
    quick(hidden_layer_sizes=(5,), pretraining_iter=1, **settings).fit(SMALL)
    assert seen == [(LinearDynamicsModel, [10] * len(SMALL)), *["states"] * 3]
    for without in ({"pretraining_iter": 0, "hidden_layer_sizes": (5,)}, {"pretraining_iter": 1}):
        seen.clear()
        quick(**settings, **without).fit(SMALL)
        assert seen == ["states"]


def uneven(dtype=np.float64):
    """Three features of a walk in even steps, along which they change slowly or quickly."""
    place = warped(walk(1, n_sequences=25))[..., 0].numpy()
    features = np.stack([place, 0.5 * place**2, np.sin(place)], -1)
    noise = 0.01 * np.random.RandomState(0).randn(*features.shape)
    return (features + noise).astype(dtype)


def fitted_to_uneven(X, monkeypatch, **params):
    monkeypatch.setattr(straightening, "_N_ITER", 300)  # enough for one latent
    settings = {
        "latent_dim": 1,
        "hidden_layer_sizes": (10,),
        "pretraining_iter": 20,
        "max_iter": 3,
        "learning_rate_init": 0.005,
        "batch_size": 500,
        "transition_precision_prior": None,
        "noise_covariance_prior": None,
    }
    return quick(3, **(settings | params)).fit(X)


def test_straight_coordinates_give_one_state_to_what_moves_alike(monkeypatch):
    """And the bound is higher than in the coordinates that the networks happen to have."""
    X = uneven()
    straight = fitted_to_uneven(X, monkeypatch)
    monkeypatch.setattr(switching_fit, "straighten", lambda *args, **options: None)
    bent = fitted_to_uneven(X, monkeypatch)
    steps = {
        name: unevenness(torch.from_numpy(estimator.transform(X)))
        for name, estimator in {"straight": straight, "bent": bent}.items()
    }
    assert steps["straight"] < 0.15 < 0.5 < steps["bent"]
    assert straight.lower_bound_ > bent.lower_bound_ + 0.2
    # To the left and to the right.
    assert (straight.n_states_, bent.n_states_) == (2, 3)
    left, right = sorted(straight.offset_.ravel())
    assert left == pytest.approx(-right, rel=0.1)


@pytest.mark.parametrize(
    ("bounds", "best"),
    [((1.0, 3.0, 2.0), 1), ((2.0, -1.0, 0.0), 0), ((math.nan, -math.inf, -5.0), 2)],
)
def test_after_pretraining_the_start_with_the_best_bound_goes_on(monkeypatch, bounds, best):
    """With the states that belong to it; what has no bound has lost."""
    starts, draws = [], []

    def bound_of_start(self, model, rows, generator):
        draws.append(torch.rand(3, generator=generator).tolist())
        starts.append((model.graphical, rows.memory.states))
        return bounds[len(starts) - 1]

    def begin(self, model, rows, *rest):
        assert model.graphical is starts[best][0]
        assert rows.memory.states is starts[best][1]
        raise StopIteration

    monkeypatch.setattr(SwitchingFit, "_mean_bound", bound_of_start)
    monkeypatch.setattr(SwitchingFit, "_moves", begin)
    with pytest.raises(StopIteration):
        quick(hidden_layer_sizes=(5,), pretraining_iter=1).fit(SMALL)
    assert len({id(graphical) for graphical, _ in starts}) == len({id(s) for _, s in starts}) == 3
    assert draws[0] == draws[1] == draws[2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fitted_models_keep_their_coordinates(dtype, monkeypatch, tmp_path):
    X = uneven(dtype)
    estimator = fitted_to_uneven(X, monkeypatch, checkpoint=tmp_path / "fit.checkpoint", max_iter=1)
    assert "networks.coordinates.inner" in estimator.model_state_
    latents = estimator.transform(X)
    assert latents.dtype == dtype
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.transform(X), latents)
    back = estimator.inverse_transform(latents.reshape(-1, 1)).reshape(X.shape)
    # The first feature is what the networks begin with.
    assert np.sqrt(((back - X)[..., 0] ** 2).mean()) < 0.1 * X[..., 0].std()
    gappy = X[:2].copy()
    gappy[:, 40:43] = np.nan
    assert_usable(estimator, gappy)
    kept = {name: value.copy() for name, value in estimator.model_state_.items()}
    estimator.set_params(warm_start=True).fit(X)
    for name, value in estimator.model_state_.items():
        same = name.startswith("networks.coordinates.")
        if same or name == "networks.decoder.skip":
            assert np.array_equal(value, kept[name]) == same


def test_partial_fit_starts_in_the_same_way(monkeypatch):
    """With all epochs of pretraining at once, and the best of three starts, but on one batch."""
    seen, pretrain, start = [], SwitchingFit._pretrain, SwitchingFit._start_states

    def pretrained(self, model, rows, max_iter, *rest, **options):
        seen.append(max_iter)
        pretrain(self, model, rows, max_iter, *rest, **options)

    def start_states(self, *rest):
        seen.append("states")
        start(self, *rest)

    monkeypatch.setattr(SwitchingFit, "_pretrain", pretrained)
    monkeypatch.setattr(SwitchingFit, "_start_states", start_states)
    estimator = quick(hidden_layer_sizes=(5,), pretraining_iter=2)
    estimator.partial_fit(SMALL).partial_fit(SMALL)
    assert seen == [2, *["states"] * 3]
    assert_usable(estimator, SMALL)


def test_networks_are_refined_at_a_tenth_of_the_learning_rate():
    settings = {"hidden_layer_sizes": (5,), "learning_rate_init": 0.01}
    rates = {
        epochs: quick(pretraining_iter=epochs, **settings)._training_settings(100).learning_rate
        for epochs in (0, 3)
    }
    assert rates == {0: 0.01, 3: pytest.approx(0.001)}
    pretraining = quick(pretraining_iter=3, **settings)._training_settings(100, anneal=False)
    assert pretraining.learning_rate == 0.01


def test_the_learning_rate_of_pretraining_falls_to_zero(monkeypatch):
    """And then begins anew, at a tenth."""
    rates, step = [], Trainer.step

    def recorded(self, rows, step_size):
        rates.append((len(rows) == rows.latent_shape[0], self.optimizer.param_groups[0]["lr"]))
        return step(self, rows, step_size)

    monkeypatch.setattr(Trainer, "step", recorded)
    settings = {"hidden_layer_sizes": (5,), "learning_rate_init": 0.01, "batch_size": 20}
    quick(pretraining_iter=4, max_iter=2, **settings).fit(SMALL)
    alone, together = ([rate for single, rate in rates if single == kind] for kind in (True, False))
    for falling, first in ((alone, 0.01), (together, 0.001)):
        assert falling[0] == pytest.approx(first)
        assert (np.diff(falling) < 0).all()
        assert falling[-1] < 0.4 * first


OPEN = {"transition_precision_prior": None, "noise_covariance_prior": None}


@pytest.mark.parametrize(
    ("params", "is_open"),
    [
        ({}, True),
        ({"hidden_layer_sizes": (5,)}, True),
        ({"hidden_layer_sizes": (5,), "pretraining_iter": 1}, False),
        ({"transition_precision_prior": 1.0}, False),
        ({"noise_covariance_prior": 0.1}, False),
        ({"degrees_of_freedom_prior": 5.0}, False),
    ],
    ids=str,
)
def test_priors_around_the_dynamics_of_all_steps_compete_if_all_is_left_open(
    monkeypatch, params, is_open
):
    weights, choose = set(), switching_fit.choose_prior

    def chosen(latents, priors, *, pooled_weights, generator):
        weights.add(pooled_weights)
        return choose(latents, priors, pooled_weights=pooled_weights, generator=generator)

    monkeypatch.setattr(switching_fit, "choose_prior", chosen)
    quick(**(OPEN | params)).fit(SMALL)
    assert weights == {(1.0, 2.0, 4.0, 8.0, 16.0) if is_open else ()}


def test_numbers_of_latents_compete_at_the_price_of_priors_that_were_fitted(monkeypatch):
    """Half the logarithm of the steps for each of ``3 D (D + 1) / 2`` numbers."""
    bounds = []  # of each fit, by the number of latents; of the shorter linear fit
    begin = SwitchingFit._begun

    def begun(self, start, windows, *rest):
        found = begin(self, start, windows, *rest)
        bounds[-1].setdefault(len(start.offset), found.bound * len(windows))
        return found

    monkeypatch.setattr(SwitchingFit, "_begun", begun)
    for choose in (lambda priors: priors[0], lambda priors: SwitchingPrior(*priors[0])):
        monkeypatch.setattr(
            switching_fit,
            "choose_prior",
            lambda latents, priors, choose=choose, **_: choose(priors),
        )
        bounds.append({})
        quick(latent_dim=None, **OPEN).fit(SMALL)
    fixed, fitted = bounds
    assert {4, 2} <= set(fixed)
    for dim in fixed:
        price = 0.75 * dim * (dim + 1) * math.log(SMALL[..., 0].size)
        assert fixed[dim] - fitted[dim] == pytest.approx(price, rel=1e-6)


def test_the_number_of_latents_has_the_best_bound_of_the_start():
    """The fit is then that with this number given, to the bit."""
    settings = {"max_iter": 1, "transition_precision_prior": 1.0}
    chosen = quick(latent_dim=None, **settings).fit(X)
    assert chosen.latent_dim_ == 2
    given = quick(latent_dim=2, **settings).fit(X)
    assert chosen.architecture_["latent_dim"] is None
    chosen.architecture_ = given.architecture_
    assert_same_attributes(chosen, given)
    assert given.lower_bound_ > quick(latent_dim=8, **settings).fit(X).lower_bound_


@pytest.mark.parametrize(
    ("params", "dims"),
    [
        ({}, (16, 8, 4, 2)),
        ({"latent_dim": 3}, (3,)),
        ({"noise_covariance_prior": np.eye(5)}, (5,)),
        ({"degrees_of_freedom_prior": 5.0}, (4, 2)),
    ],
    ids=str,
)
def test_what_is_given_limits_the_number_of_latents(params, dims):
    assert SVAESwitchingLDS(**params)._latent_dims() == dims


# ---- how far the linear start goes ----


def slow_to_fit():
    """Return oscillations that change their periods: their linear model converges slowly."""
    rng, t = np.random.RandomState(4), np.arange(60)
    waves = np.stack([np.sin(2 * np.pi * t / period) for period in (7, 11, 17, 29)], 1)
    waves[30:, :2] = np.stack([np.sin(2 * np.pi * t / period) for period in (5, 13)], 1)[30:]
    return waves @ rng.standard_normal((4, 6)) + 0.01 * rng.standard_normal((60, 6))


@pytest.mark.parametrize("bounds", [(1.0, 2.0), (2.0, 1.0)], ids=["further", "early"])
def test_the_fit_starts_from_what_is_better_after_some_training(monkeypatch, bounds):
    trials, used = [], []
    bound_after_training, linear_model = (
        SwitchingFit._bound_after_training,
        DynamicsFit._linear_model,
    )

    def after_training(self, begun):
        before = begun.model.encoder.bias.clone()
        assert np.isfinite(bound_after_training(self, begun))
        assert not torch.equal(begun.model.encoder.bias, before)
        trials.append(begun.start)
        return bounds[len(trials) - 1]

    def recorded(self, start, *rest):
        used.append(start)
        return linear_model(self, start, *rest)

    monkeypatch.setattr(SwitchingFit, "_bound_after_training", after_training)
    monkeypatch.setattr(DynamicsFit, "_linear_model", recorded)
    series = slow_to_fit()
    estimator = quick(latent_dim=5, rows="consecutive", max_iter=3).fit(series)
    early, further = (start.log_likelihood(scaled(series), [60])[0] for start in trials)
    assert further > early + 0.05 * 60
    assert used[-1] is trials[int(np.argmax(bounds))]
    assert estimator.n_iter_ == 3  # epochs of trials are not among them


def scaled(series):
    return (series - series.mean(0)) / series.std(0)


@pytest.mark.parametrize(
    ("series", "params"),
    [
        (X, {}),
        (slow_to_fit(), {"n_states": 1}),
        (slow_to_fit(), {"hidden_layer_sizes": (5,), "pretraining_iter": 1}),
    ],
    ids=["hardly better", "one state", "pretrained"],
)
def test_where_there_is_nothing_to_compare(monkeypatch, series, params):
    def fail(self, begun):
        raise AssertionError

    monkeypatch.setattr(SwitchingFit, "_bound_after_training", fail)
    quick(latent_dim=5, rows="consecutive", max_iter=1, **params).fit(series)


def test_a_start_that_fails_in_training_has_lost(monkeypatch):
    def fail(self, *args, **options):
        raise ValueError("Training diverged.")

    monkeypatch.setattr(SwitchingFit, "_pretrain", fail)
    assert_usable(quick(latent_dim=5, rows="consecutive").fit(slow_to_fit()), slow_to_fit())
