# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics: randomness, ways to fit, types, quality on easy data, edits of the dynamics."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from .cases import assert_same_attributes, fitted_attributes
from .linear_dynamics_cases import (
    assert_usable,
    fitted,
    quick,
    ragged,
    read_all,
    rotation,
    with_gaps,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = rotation()
DYNAMICS = {
    "transition_matrix_": (2, 2),
    "offset_": (2,),
    "noise_covariance_": (2, 2),
    "initial_mean_": (2,),
    "initial_covariance_": (2, 2),
}


# ---- randomness ----


def everything(estimator):
    return [
        *read_all(estimator, X).values(),
        *estimator.forecast(X, 3),
        estimator.forecast(X, 3, n_draws=2),
        estimator.impute(with_gaps(X), n_draws=2),
        *estimator.sample(4, 2),
    ]


@pytest.mark.parametrize("params", [{}, {"n_init": 2, "early_stopping": True}])
def test_equal_seeds_give_equal_results_to_the_bit(params):
    first = quick(**params).fit(X)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    second = quick(**params).fit(X)
    assert_same_attributes(first, second)
    for one, other in zip(everything(first), everything(second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert_same_attributes(first.partial_fit(X), second.partial_fit(X))
    assert_same_attributes(second.fit(X), quick(**params).fit(X))


def test_different_seeds_differ():
    assert quick().fit(X).lower_bound_ != quick(random_state=1).fit(X).lower_bound_
    estimator = copy.deepcopy(fitted())
    first = estimator.forecast(X, 2, n_draws=3)
    assert (estimator.set_params(random_state=1).forecast(X, 2, n_draws=3) != first).all()


def test_global_generators_are_left_alone():
    # random_state=None draws from NumPy's global state, as everywhere in scikit-learn.
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    everything(quick().fit(X).partial_fit(X).refit_dynamics(X))
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    quick(random_state=None).fit(X).partial_fit(X).sample(3)
    np.testing.assert_array_equal(torch.get_rng_state(), before[1])


def test_reading_changes_nothing():
    estimator = fitted()
    before = {name: np.copy(value) for name, value in fitted_attributes(estimator).items()}
    attributes = dict(vars(estimator))
    first = everything(estimator)
    estimator.score(X)
    for one, other in zip(everything(estimator), first, strict=True):
        np.testing.assert_array_equal(one, other)
    assert vars(estimator).keys() == attributes.keys()
    assert all(value is attributes[name] for name, value in vars(estimator).items())
    for name, value in fitted_attributes(estimator).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


# ---- ways to fit ----


def test_attributes():
    estimator = quick().fit(X)
    for name, shape in DYNAMICS.items():
        value = getattr(estimator, name)
        assert isinstance(value, np.ndarray)
        assert value.shape == shape
    moduli = np.abs(np.linalg.eigvals(estimator.transition_matrix_))
    assert isinstance(estimator.spectral_radius_, float)
    assert estimator.spectral_radius_ == pytest.approx(moduli.max())
    for name in ("noise_covariance_", "initial_covariance_"):
        np.linalg.cholesky(getattr(estimator, name))
    assert estimator.n_samples_seen_ == 80
    assert estimator.n_features_in_ == 3
    assert estimator.latent_dim_ == 2
    assert estimator.lower_bounds_.shape == (2,)


def test_a_fit_that_stops_early_says_so():
    with pytest.warns(ConvergenceWarning, match="max_iter=2 epochs") as caught:
        quick().fit(X)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        estimator = quick(max_iter=30, tol=1e6, n_iter_no_change=2).fit(X)
    assert estimator.converged_
    assert estimator.n_iter_ < 30


def test_later_parameters_leave_a_fit_alone():
    estimator = quick().fit(X)
    expected = read_all(estimator, X)
    estimator.set_params(
        latent_dim=1,
        hidden_layer_sizes=(3, 2),
        likelihood="poisson",
        activation="tanh",
        noise_covariance_prior=np.eye(9),
        rows="independent",
    )
    for name, value in read_all(estimator, X).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_warm_start_goes_on_from_the_last_fit():
    estimator = quick(warm_start=True, max_iter=3).fit(X)
    first = estimator.lower_bound_
    for _ in range(3):
        estimator.fit(X)
    assert estimator.lower_bound_ > first
    again = quick(max_iter=3).fit(X)
    assert again.lower_bound_ == first
    location = estimator.location_
    estimator.fit(with_gaps(X) + 1)
    np.testing.assert_array_equal(estimator.location_, location)


def test_partial_fit_in_pieces():
    estimator = quick(total_samples=80)
    for _ in range(3):
        for sequence in X:
            estimator.partial_fit([sequence])
    assert estimator.n_samples_seen_ == 240
    assert estimator.n_iter_ == 12
    assert_usable(estimator, X)
    np.testing.assert_allclose(estimator.location_, X[0].mean(0))
    assert estimator.partial_fit(X[:1, :1]).n_samples_seen_ == 241


def test_the_best_of_several_runs_is_kept():
    several = quick(n_init=4, random_state=3).fit(X)
    one = quick(n_init=1, random_state=3).fit(X)
    assert several.lower_bound_ >= one.lower_bound_


@pytest.mark.parametrize("data", [X, X[0], ragged()], ids=["sequences", "one sequence", "ragged"])
def test_early_stopping_holds_out_sequences_or_a_stretch(data):
    estimator = quick(early_stopping=True, validation_fraction=0.25, rows="consecutive").fit(data)
    assert np.isfinite(estimator.history_["validation_bound"]).all()
    assert_usable(estimator, data)


@pytest.mark.parametrize(
    "params",
    [
        {"natural_gradient": "biased"},
        {"beta": 2.0, "capacity": 1.0},
        {"beta": 0.0},
        {"n_draws": 3},
        {"activation": "tanh", "hidden_layer_sizes": (4, 3)},
        {"standardize": False},
        {"noise_covariance_prior": [[2.0, 0.1], [0.1, 1.0]]},
        {"transition_precision_prior": 100.0, "degrees_of_freedom_prior": 50.0},
        {"degrees_of_freedom_prior": 1.01},
    ],
    ids=str,
)
def test_every_parameter_is_fitted_with(params):
    assert_usable(quick(**params).fit(X), X)


def test_strong_priors_win():
    zero = quick(transition_precision_prior=1e9, max_iter=5).fit(X)
    assert np.abs(zero.transition_matrix_).max() < 0.05
    scale = np.array([[3.0, 0.5], [0.5, 2.0]])
    tight = quick(noise_covariance_prior=1e7 * scale, degrees_of_freedom_prior=1e7, max_iter=5)
    np.testing.assert_allclose(tight.fit(X).noise_covariance_, scale, rtol=0.05)


# ---- types ----


@pytest.mark.parametrize("likelihood", ["gaussian", "student_t", "poisson"])
def test_single_precision(likelihood):
    rows = np.round(np.exp(X)) if likelihood == "poisson" else X
    estimator = quick(likelihood=likelihood).fit(rows.astype(np.float32))
    gappy = with_gaps(rows.astype(np.float32))
    said = [
        *read_all(estimator, gappy).values(),
        *estimator.forecast(gappy, 2),
        estimator.forecast(gappy, 2, n_draws=2),
        estimator.impute(gappy, n_draws=2),
        *estimator.sample(3, 2),
        estimator.inverse_transform(estimator.transform(rows)),
    ]
    for value in said:
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
    for name in DYNAMICS:
        assert getattr(estimator, name).dtype == np.float32
    # Rows of another type are read in that of the model.
    assert estimator.transform(rows).dtype == np.float32
    wide = quick(likelihood=likelihood).fit(rows)
    assert wide.transform(rows.astype(np.float32)).dtype == np.float64
    assert estimator.score(rows) == pytest.approx(wide.score(rows), abs=0.3)


# ---- quality on easy data ----


@pytest.fixture(scope="module")
def trained():
    long = rotation(4, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return quick(max_iter=10, hidden_layer_sizes=()).fit(long), long


def test_the_frequency_of_a_rotation_is_found(trained):
    estimator, _ = trained
    eigenvalues = np.linalg.eigvals(estimator.transition_matrix_)
    np.testing.assert_allclose(np.abs(np.angle(eigenvalues)), 0.5, atol=0.03)
    np.testing.assert_allclose(np.abs(eigenvalues), 1.0, atol=0.1)


def test_forecasts_go_on_with_the_rotation(trained):
    estimator, long = trained
    mean, std = estimator.forecast(long[:, :40], 20)
    error = np.square(mean - long[:, 40:]).mean()
    assert error < 0.25 * long.var((0, 1)).mean()
    assert np.mean(np.abs(mean - long[:, 40:]) < 1.645 * std) > 0.8


def test_predictions_are_better_than_the_row_before(trained):
    estimator, long = trained
    error = np.square(estimator.predict(long) - long)[:, 5:].mean()
    assert error < 0.5 * np.square(np.diff(long, axis=1)).mean()


def test_order_scores_better_than_none(trained):
    estimator, long = trained
    shuffled = np.random.default_rng(0).permutation(long, axis=1)
    assert estimator.score(long) > estimator.score(shuffled) + 0.5


# ---- edits of the dynamics ----


def test_replaced_dynamics_are_those_given():
    estimator = fitted()
    before = {name: np.copy(value) for name, value in fitted_attributes(estimator).items()}
    A = 0.8 * np.array([[np.cos(0.9), -np.sin(0.9)], [np.sin(0.9), np.cos(0.9)]])
    b, Q = np.array([0.3, -0.1]), np.array([[0.3, 0.1], [0.1, 0.2]])
    edited = estimator.replace_dynamics(transition_matrix=A, offset=b, noise_covariance=Q)
    np.testing.assert_array_equal(edited.transition_matrix_, A)
    np.testing.assert_array_equal(edited.offset_, b)
    np.testing.assert_allclose(edited.noise_covariance_, Q, rtol=1e-14)
    assert edited.spectral_radius_ == pytest.approx(0.8)
    assert edited is not estimator
    for name, value in fitted_attributes(estimator).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for name in ("initial_mean_", "initial_covariance_", "location_", "scale_"):
        np.testing.assert_array_equal(getattr(edited, name), getattr(estimator, name))
    assert_same_networks(edited, estimator)
    assert_usable(edited, X)


def assert_same_networks(first, second):
    for name, value in first.model_state_.items():
        if name.startswith("networks."):
            np.testing.assert_array_equal(value, second.model_state_[name], err_msg=name)


@pytest.mark.parametrize("name", ["transition_matrix", "offset", "noise_covariance"])
def test_what_is_not_replaced_stays(name):
    estimator = fitted()
    value = {"offset": np.ones(2)}.get(name, 0.5 * np.eye(2))
    edited = estimator.replace_dynamics(**{name: value})
    np.testing.assert_allclose(getattr(edited, f"{name}_"), value, rtol=1e-14)
    for other in DYNAMICS.keys() - {f"{name}_"}:
        np.testing.assert_allclose(getattr(edited, other), getattr(estimator, other), rtol=1e-14)
    for said, expected in zip(
        everything(estimator.replace_dynamics()), everything(estimator), strict=True
    ):
        np.testing.assert_allclose(said, expected)


def test_forecasts_follow_replaced_dynamics():
    """Still after one step: all that is left is the decoder at the offset."""
    still = fitted().replace_dynamics(
        transition_matrix=np.zeros((2, 2)), offset=[0.5, -1.0], noise_covariance=1e-8 * np.eye(2)
    )
    mean, _ = still.forecast(X, 3)
    expected = still.inverse_transform([[0.5, -1.0]])
    np.testing.assert_allclose(mean, np.broadcast_to(expected, mean.shape), atol=1e-3)


def test_refitted_dynamics_are_those_of_the_new_data(trained):
    """A new frequency through old networks, see section 6.2.4 of the thesis."""
    estimator, long = trained
    faster = long[:, ::2]
    refitted = copy.deepcopy(estimator)
    assert refitted.refit_dynamics(faster) is refitted
    eigenvalues = np.linalg.eigvals(refitted.transition_matrix_)
    np.testing.assert_allclose(np.abs(np.angle(eigenvalues)), 1.0, atol=0.05)
    assert_same_networks(refitted, estimator)
    changed = {*DYNAMICS, "spectral_radius_"}
    for name, value in vars(refitted).items():
        if name.endswith("_") and name not in {*changed, "model_state_"}:
            assert_equal(value, getattr(estimator, name))
    for name in changed:
        assert not np.array_equal(getattr(refitted, name), getattr(estimator, name))
    assert refitted.score(faster) > estimator.score(faster) + 0.2
    # And back.
    refitted.refit_dynamics(long)
    np.testing.assert_allclose(refitted.spectral_radius_, estimator.spectral_radius_, atol=0.05)


def assert_equal(value, expected):
    if isinstance(value, dict):
        assert value.keys() == expected.keys()
        for key, item in value.items():
            assert_equal(item, expected[key])
    else:
        np.testing.assert_array_equal(value, expected)


def test_refitting_is_repeatable_and_does_not_depend_on_where_it_starts(trained):
    estimator, long = trained
    first = copy.deepcopy(estimator).refit_dynamics(long[:2])
    second = copy.deepcopy(estimator).refit_dynamics(long[:2])
    assert_same_attributes(first, second)
    elsewhere = estimator.replace_dynamics(transition_matrix=0.5 * np.eye(2))
    third = elsewhere.refit_dynamics(long[:2])
    np.testing.assert_allclose(third.transition_matrix_, first.transition_matrix_, atol=0.1)


def test_a_refit_that_fails_leaves_the_estimator_as_it_was():
    estimator = quick().fit(X)
    before = fitted_attributes(estimator)
    with pytest.raises(ValueError, match=r"no observed|NaN"):
        estimator.refit_dynamics(np.full_like(X, np.nan))
    assert all(fitted_attributes(estimator)[name] is value for name, value in before.items())
