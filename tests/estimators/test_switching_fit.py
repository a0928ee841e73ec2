# SPDX-License-Identifier: BSD-3-Clause
"""Switching dynamics: attributes, randomness, ways to fit, one state, states that go, copies."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sksvae import SVAELinearDynamics
from sksvae.sequence_objective import SequenceRows

from .cases import assert_same_attributes, fitted_attributes
from .linear_dynamics_cases import with_gaps
from .switching_cases import (
    TURNS,
    Enumerated,
    assert_usable,
    fitted,
    known,
    quick,
    read_all,
    turning,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = turning()[1]
SMALL = X[:, :10]


def dynamics_shapes(K, dim):
    return {
        "state_weights_": (K,),
        "state_transition_probabilities_": (K, K),
        "initial_state_probabilities_": (K,),
        "transition_matrix_": (K, dim, dim),
        "offset_": (K, dim),
        "noise_covariance_": (K, dim, dim),
        "initial_mean_": (dim,),
        "initial_covariance_": (dim, dim),
        "spectral_radius_": (K,),
    }


# ---- attributes ----


def test_attributes():
    estimator = fitted()
    K = estimator.n_states_
    assert isinstance(K, int)
    assert 2 <= K <= 3
    for name, shape in dynamics_shapes(K, 2).items():
        value = getattr(estimator, name)
        assert isinstance(value, np.ndarray)
        assert value.shape == shape, name
    assert (np.diff(estimator.state_weights_) <= 0).all()
    for name in ("state_weights_", "state_transition_probabilities_"):
        np.testing.assert_allclose(getattr(estimator, name).sum(-1), 1.0)
    assert estimator.initial_state_probabilities_.sum() == pytest.approx(1.0)
    assert (estimator.state_transition_probabilities_ > 0).all()
    np.linalg.cholesky(estimator.noise_covariance_)
    radii = np.abs(np.linalg.eigvals(estimator.transition_matrix_)).max(-1)
    np.testing.assert_allclose(estimator.spectral_radius_, radii)
    shares = np.bincount(estimator.predict(X).ravel(), minlength=K) / X[..., 0].size
    np.testing.assert_allclose(estimator.state_weights_, shares, atol=0.1)
    assert estimator.n_samples_seen_ == 120
    assert estimator.n_features_in_ == 3
    assert estimator.latent_dim_ == 2
    assert estimator.lower_bounds_.shape == (2,)
    assert not any(
        isinstance(value, torch.Tensor | torch.nn.Module)
        for value in fitted_attributes(estimator).values()
    )


def test_a_fit_that_stops_early_says_so():
    with pytest.warns(ConvergenceWarning, match="max_iter=1 epochs") as caught:
        quick(max_iter=1).fit(SMALL)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        estimator = quick(max_iter=9, tol=1e6, n_iter_no_change=1).fit(SMALL)
    assert estimator.converged_
    assert estimator.n_iter_ < 9


@pytest.mark.parametrize("hidden_layer_sizes", [(), (5,)])
def test_the_bound_at_the_end_continues_those_in_training(hidden_layer_sizes):
    """Also after states have been given up and put in order."""
    estimator = fitted(hidden_layer_sizes=hidden_layer_sizes)
    assert estimator.lower_bound_ == pytest.approx(estimator.lower_bounds_[-1], abs=0.2)
    # Point estimates know the dynamics for certain.
    assert estimator.score(X) > estimator.lower_bound_


# ---- randomness ----


def test_equal_seeds_give_equal_results_to_the_bit_and_leave_no_trace():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    params = {"hidden_layer_sizes": (3,), "max_iter": 1}
    first = quick(**params).fit(SMALL).partial_fit(SMALL).refit_dynamics(SMALL)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    np.testing.assert_array_equal(torch.get_rng_state(), before[1])
    torch.manual_seed(3)
    second = quick(**params).fit(SMALL).partial_fit(SMALL).refit_dynamics(SMALL)
    torch.set_rng_state(before[1])
    assert_same_attributes(first, second)
    assert quick(**params, random_state=1).fit(SMALL).lower_bound_ != first.lower_bound_


# ---- ways to fit ----


def test_warm_start_goes_on_from_the_last_fit():
    """In minibatches, of which each remembers the states of its own windows."""
    estimator = quick(warm_start=True, batch_size=30, max_iter=2).fit(X)
    first, location = estimator.lower_bound_, estimator.location_
    estimator.fit(X)
    assert estimator.lower_bound_ > first - 0.05
    assert estimator.lower_bounds_[0] > first - 0.5
    assert_usable(estimator, SMALL)
    estimator.fit(with_gaps(X) + 1)
    np.testing.assert_array_equal(estimator.location_, location)
    np.testing.assert_allclose(estimator.state_weights_.sum(), 1.0)


def test_a_fit_that_goes_on_remembers_what_it_knew(monkeypatch):
    """Block updates begin where those of the last fit ended, in every window."""
    estimator = quick(warm_start=True, batch_size=30, max_iter=1).fit(X)
    starts = []
    recall = SequenceRows.recall
    monkeypatch.setattr(
        SequenceRows, "recall", lambda rows: starts.append(recall(rows)) or starts[-1]
    )
    estimator.fit(X)
    assert len(starts) >= 4
    known = np.concatenate([states.max(-1).values.numpy().ravel() for states in starts])
    assert (known > 0.9).mean() > 0.8


def test_partial_fit_in_pieces():
    estimator = quick(total_samples=40)
    for sequence in SMALL[[0, 1, 0]]:
        estimator.partial_fit([sequence])
    assert estimator.n_samples_seen_ == 30
    assert estimator.n_iter_ == 3
    assert_usable(estimator, SMALL)
    np.testing.assert_allclose(estimator.location_, SMALL[0].mean(0))
    assert estimator.partial_fit(SMALL[:1, :1]).n_samples_seen_ == 31


@pytest.mark.parametrize("data", [SMALL, X[:1]], ids=["sequences", "one sequence"])
def test_early_stopping_holds_out_sequences_or_a_stretch(data):
    estimator = quick(early_stopping=True, validation_fraction=0.25).fit(data)
    assert np.isfinite(estimator.history_["validation_bound"]).all()
    assert_usable(estimator, SMALL)


@pytest.mark.slow
def test_the_best_of_several_runs_is_kept():
    several = quick(n_init=2, max_iter=1, random_state=3).fit(SMALL)
    assert several.lower_bound_ >= quick(max_iter=1, random_state=3).fit(SMALL).lower_bound_


def test_refitted_dynamics_are_those_of_the_new_data(monkeypatch):
    """In several parts: none of them may remember more or less than its own states."""
    monkeypatch.setattr("sksvae.estimators.dynamics_fit.FIT_CHUNK", 45)
    monkeypatch.setattr("sksvae.estimators.switching_fit.FIT_CHUNK", 45)
    estimator = copy.deepcopy(fitted())
    faster = turning()[0].sample(40, 2)[0][:, ::2]
    score, weights = estimator.score(faster), estimator.state_weights_
    assert estimator.refit_dynamics(faster) is estimator
    assert estimator.score(faster) > score + 0.1
    assert estimator.state_weights_.shape == weights.shape  # states keep their places
    changed = {*dynamics_shapes(1, 1), "n_states_", "model_state_"}
    for name, value in fitted_attributes(estimator).items():
        if name.split(".")[0] not in changed or "networks" in name:
            np.testing.assert_array_equal(value, fitted_attributes(fitted())[name], err_msg=name)
    with pytest.raises(ValueError, match="no observed value"):
        estimator.refit_dynamics(np.full_like(SMALL, np.nan))


UNUSUAL = [
    {"natural_gradient": "biased", "implicit_gradient": "none"},
    {"implicit_gradient": "richardson", "beta": 2.0, "capacity": 1.0},
    {"implicit_gradient": "unrolled", "max_updates": 2, "n_draws": 2, "likelihood": "student_t"},
    {"noise_covariance_prior": [[2.0, 0.1], [0.1, 1.0]], "degrees_of_freedom_prior": 1.5},
    {"n_states": 4, "sequence_length": 7, "batch_size": 3, "latent_dim": 4},
    {"noise_covariance_type": "tied", "n_starts": 3},
    {"stickiness_prior": 1.0, "transition_concentration_prior": 5.0, "standardize": False},
    {"latent_dim": None, "sequence_length": 1, "activation": "tanh", "hidden_layer_sizes": (3, 2)},
]


@pytest.mark.parametrize(
    "params", UNUSUAL[:4] + [pytest.param(p, marks=pytest.mark.slow) for p in UNUSUAL[4:]], ids=str
)
def test_every_parameter_is_fitted_with(params):
    estimator = quick(**params).fit(SMALL)
    assert_usable(estimator, SMALL[:2, :5])


@pytest.mark.slow
@pytest.mark.parametrize(
    "likelihood", ["gaussian_network", "student_t", "bernoulli", "poisson", "gamma"]
)
def test_gaps_with_every_likelihood(likelihood):
    domain = {
        "bernoulli": lambda x: (x > 0).astype(float),
        "poisson": lambda x: np.round(np.exp(x / 3)),
        "gamma": np.exp,
    }
    gappy = with_gaps(SMALL)
    rows = domain.get(likelihood, np.asarray)(gappy)
    rows[np.isnan(gappy)] = np.nan
    assert_usable(quick(likelihood=likelihood).fit(rows), rows)


# ---- types ----


def test_single_precision():
    estimator = quick(hidden_layer_sizes=(3,)).fit(X.astype(np.float32))
    gappy = with_gaps(SMALL[:2, :6]).astype(np.float32)
    said = read_all(estimator, gappy)
    states = said.pop("predict"), said.pop("decode"), estimator.sample(3)[1]
    floats = [
        *said.values(),
        *estimator.forecast(gappy, 2),
        estimator.forecast(gappy, 2, n_draws=2),
        estimator.impute(gappy, n_draws=2),
        estimator.sample(3, 2)[0],
        estimator.inverse_transform(estimator.transform(gappy)),
        *(getattr(estimator, name) for name in dynamics_shapes(1, 1)),
    ]
    for value in floats:
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
    assert all(value.dtype.kind == "i" for value in states)
    # Rows of another type are read in that of the model.
    assert estimator.transform(SMALL).dtype == np.float32
    assert fitted().transform(gappy).dtype == np.float64
    assert estimator.score(X) == pytest.approx(fitted().score(X), abs=0.3)


# ---- one state, more than there are, none ----


@pytest.mark.parametrize("hidden_layer_sizes", [(), (5,)])
def test_one_state_is_linear_dynamics(hidden_layer_sizes):
    """Sums differ in the last digits; draws differ as those of states come in between."""
    gappy = with_gaps(X[:, :12])
    one = quick(1, hidden_layer_sizes=hidden_layer_sizes, max_iter=3)
    params = {k: v for k, v in one.get_params().items() if k in SVAELinearDynamics().get_params()}
    linear = SVAELinearDynamics(**params).fit(gappy)
    one.fit(gappy)
    assert one.n_states_ == 1
    np.testing.assert_allclose(one.lower_bounds_, linear.lower_bounds_, rtol=0, atol=1e-7)
    for name, shape in dynamics_shapes(1, 2).items():
        if hasattr(linear, name):
            expected = np.reshape(getattr(linear, name), shape)
            np.testing.assert_allclose(getattr(one, name), expected, rtol=0, atol=1e-7)
    for name in ("transform", "impute"):
        expected = getattr(linear, name)(gappy)
        np.testing.assert_allclose(getattr(one, name)(gappy), expected, rtol=0, atol=1e-7)
    for part, expected in zip(one.forecast(gappy, 4), linear.forecast(gappy, 4), strict=True):
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-7)
    # Rows share what sequences score in another way: here, q has seen what follows.
    by_sequence = one.score_samples(gappy).sum(1), linear.score_samples(gappy).sum(1)
    np.testing.assert_allclose(*by_sequence, rtol=0, atol=1e-6)
    assert one.score(gappy) == pytest.approx(linear.score(gappy), abs=1e-7)
    assert (one.predict(gappy) == 0).all()
    assert (one.decode(gappy) == 0).all()
    assert (one.predict_proba(gappy) == 1).all()
    n_draws = 2000
    drawn, expected = one.sample(4, n_draws)[0], linear.sample(4, n_draws)[0]
    error = 5 * np.sqrt(2 / n_draws) * expected.std(0)
    assert (np.abs(drawn.mean(0) - expected.mean(0)) < error).all()
    np.testing.assert_allclose(drawn.std(0), expected.std(0), rtol=0.12)


def test_with_one_state_and_an_exact_encoder_scores_are_exact():
    one = known(
        **{name: TURNS[name][:1] for name in "AbQ"},
        initial_states=np.ones(1),
        transitions=np.ones((1, 1)),
    )
    sequences = [X[0, :6], X[1, :1], np.where(np.arange(7)[:, None] % 3 == 1, np.nan, X[2, :7])]
    for sequence, scores in zip(sequences, one.score_samples(sequences), strict=True):
        assert scores.sum() == pytest.approx(Enumerated(one, sequence).log_evidence, abs=1e-6)
        assert (scores[np.isnan(sequence).all(1)] == 0).all()


def test_more_states_than_steps():
    data = [X[0, :3], X[1, :2]]
    estimator = quick(8, max_iter=1).fit(data)
    assert estimator.n_states_ < 8
    assert_usable(estimator, data)


def test_states_that_do_not_occur_go():
    """Six are allowed and two are there; none that is left is without steps."""
    estimator = fitted(6)
    assert 2 <= estimator.n_states_ <= 3
    assert estimator.state_weights_.min() > 0.02
    assert set(np.unique(estimator.predict(X))) == set(range(estimator.n_states_))
    assert estimator.predict_proba(X).shape[-1] == estimator.n_states_
    noise = np.random.default_rng(0).normal(size=(40, 2))
    assert quick(4, rows="consecutive").fit(noise).n_states_ == 1


# ---- copies ----


def through_skops(estimator):
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(estimator)
    untrusted = skops.get_untrusted_types(data=data)
    assert all(name.startswith("sksvae.") for name in untrusted)
    return skops.loads(data, trusted=untrusted)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda estimator: pickle.loads(pickle.dumps(estimator)),
    "skops": through_skops,
}


@pytest.mark.parametrize("made", COPIES.values(), ids=list(COPIES))
def test_copies_say_the_same_and_can_go_on(made):
    loaded, estimator = made(fitted()), fitted()
    assert repr(loaded) == repr(estimator)
    assert_same_attributes(loaded, estimator)
    for name in ("transform", "predict"):
        np.testing.assert_array_equal(getattr(loaded, name)(SMALL), getattr(estimator, name)(SMALL))
    np.testing.assert_array_equal(loaded.sample(3)[0], estimator.sample(3)[0])
    assert_same_attributes(loaded.partial_fit(SMALL), copy.deepcopy(estimator).partial_fit(SMALL))


def test_clones_are_as_new():
    copied = clone(fitted())
    assert vars(copied) == copied.get_params(deep=False)
    assert_same_attributes(copied.fit(X), fitted())
