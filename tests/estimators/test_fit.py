# SPDX-License-Identifier: BSD-3-Clause
"""What every estimator promises of a fit: randomness, units, quality, likelihoods."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sksvae import VAE, SVAEGaussianMixture
from sksvae.likelihoods import (
    LIKELIHOODS,
    BernoulliLikelihood,
    GammaLikelihood,
    GaussianLikelihood,
    GaussianNetworkLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

from .cases import (
    assert_same_attributes,
    assert_same_outputs,
    blobs,
    data_for,
    each_estimator,
    fitted,
    fitted_attributes,
    outputs,
    quick,
    trained,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, _ = blobs()


# ---- randomness ----


@each_estimator
def test_equal_seeds_give_equal_fits_to_the_bit(Estimator):
    first = quick(Estimator, n_init=2, early_stopping=True).fit(X)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    second = quick(Estimator, n_init=2, early_stopping=True).fit(X)
    assert_same_attributes(first, second)
    assert_same_attributes(first, first.fit(X))
    np.testing.assert_array_equal(first.sample(5)[0], second.sample(5)[0])


@each_estimator
def test_different_seeds_differ(Estimator):
    assert (
        quick(Estimator, random_state=0).fit(X).lower_bound_
        != quick(Estimator, random_state=1).fit(X).lower_bound_
    )


@each_estimator
def test_a_random_state_instance_advances(Estimator):
    def fit_twice():
        random_state = np.random.RandomState(0)
        return [quick(Estimator, random_state=random_state).fit(X).lower_bound_ for _ in range(2)]

    first, second = fit_twice(), fit_twice()
    assert first == second
    assert first[0] != first[1]


@each_estimator
def test_global_generators_are_left_alone(Estimator):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    estimator = quick(Estimator, random_state=None).fit(X).partial_fit(X)
    outputs(estimator, X)
    estimator.set_params(random_state=0).sample(3)
    np.testing.assert_array_equal(torch.get_rng_state(), before[1])
    estimator = quick(Estimator).fit(X)
    estimator.sample(3)
    # random_state=None draws from NumPy's global state, as everywhere in scikit-learn.
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    quick(Estimator).fit(X).partial_fit(X).sample(3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# ---- what reads a fitted estimator ----


@each_estimator
def test_reading_changes_nothing(Estimator):
    estimator = fitted(Estimator)
    before = {name: np.copy(value) for name, value in fitted_attributes(estimator).items()}
    attributes = dict(vars(estimator))
    given = X.copy()
    first = outputs(estimator, given)
    estimator.score(given)
    estimator.sample(3)
    for name, value in outputs(estimator, given).items():
        np.testing.assert_array_equal(value, first[name])
    np.testing.assert_array_equal(given, X)
    assert vars(estimator).keys() == attributes.keys()
    assert all(value is attributes[name] for name, value in vars(estimator).items())
    for name, value in fitted_attributes(estimator).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@each_estimator
@pytest.mark.parametrize("likelihood", ["gaussian_network", "poisson"])
def test_rows_do_not_depend_on_the_rows_around_them(Estimator, likelihood):
    rows = data_for(likelihood, n_rows=40)
    estimator = quick(Estimator, n_components=3, likelihood=likelihood).fit(rows)
    whole = outputs(estimator, rows)
    for part in (slice(0, 1), slice(5, 12), slice(None, None, -3)):
        for name, value in outputs(estimator, rows[part]).items():
            np.testing.assert_allclose(value, whole[name][part], rtol=0, atol=1e-9, err_msg=name)


@each_estimator
def test_many_rows_are_read_in_chunks(Estimator, monkeypatch):
    estimator = fitted(Estimator)
    whole = outputs(estimator, X)
    monkeypatch.setattr("sksvae.estimators.fitted.CHUNK", 7)
    for name, value in outputs(estimator, X).items():
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=1e-9, err_msg=name)
    assert np.isfinite(clone(estimator).fit(X).lower_bound_)


@each_estimator
def test_score_is_the_mean_of_score_samples(Estimator):
    estimator = fitted(Estimator)
    score = estimator.score(X, np.zeros(len(X)))
    assert isinstance(score, float)
    assert score == pytest.approx(estimator.score_samples(X).mean())


@each_estimator
def test_later_parameters_leave_a_fit_alone(Estimator):
    """Only the next fit may see them; before, `transform` failed or used the wrong function."""
    estimator = copy.deepcopy(fitted(Estimator))
    expected = outputs(estimator, X)
    estimator.set_params(
        hidden_layer_sizes=(3, 2), activation="tanh", likelihood="bernoulli", latent_dim=1
    )
    for name, value in outputs(estimator, X).items():
        np.testing.assert_array_equal(value, expected[name])


@each_estimator
def test_transform_has_latent_dim_columns(Estimator):
    for latent_dim, expected in ((None, 3), (2, 2), (5, 5)):
        estimator = quick(Estimator, latent_dim=latent_dim).fit(X)
        assert estimator.latent_dim_ == expected
        assert estimator.transform(X).shape == (len(X), expected)
    wide = np.random.default_rng(0).normal(size=(15, 12))
    assert quick(Estimator).fit(wide).latent_dim_ == 10


# ---- units ----


@each_estimator
@pytest.mark.parametrize("standardize", [True, False])
def test_fits_follow_the_units_of_the_data(Estimator, standardize):
    c, shift = 1000.0, 5.0
    one = quick(Estimator, standardize=standardize).fit(X)
    other = quick(Estimator, standardize=standardize).fit(c * X + shift)
    log_jacobian = -X.shape[1] * np.log(c)
    np.testing.assert_allclose(
        other.score_samples(c * X + shift), one.score_samples(X) + log_jacobian, atol=1e-6
    )
    assert other.lower_bound_ == pytest.approx(one.lower_bound_ + log_jacobian, abs=1e-6)
    for name in ("lower_bound", "reconstruction"):
        np.testing.assert_allclose(
            other.history_[name], one.history_[name] + log_jacobian, atol=1e-6
        )
    for name in ("local_kl", "global_kl"):
        np.testing.assert_allclose(other.history_[name], one.history_[name], atol=1e-6)
    np.testing.assert_allclose(other.transform(c * X + shift), one.transform(X), atol=1e-6)
    np.testing.assert_allclose(other.sample(9)[0], c * one.sample(9)[0] + shift, rtol=1e-6)
    np.testing.assert_allclose(
        other.inverse_transform(one.transform(X)),
        c * one.inverse_transform(one.transform(X)) + shift,
        rtol=1e-6,
        atol=1e-4,
    )


@each_estimator
def test_standardised_fits_follow_the_units_of_each_column(Estimator):
    scales = np.array([1e-8, 1.0, 1e8])
    one, other = quick(Estimator).fit(X), quick(Estimator).fit(X * scales)
    np.testing.assert_allclose(
        other.score_samples(X * scales), one.score_samples(X) - np.log(scales).sum(), atol=1e-6
    )
    assert quick(Estimator, standardize=False).fit(X * scales).scale_ == pytest.approx(
        np.full(3, 1e8 * X[:, 2].std() / np.sqrt(3)), rel=1e-6
    )


# ---- quality on easy data ----


@each_estimator
def test_reconstructions_are_better_than_the_mean(Estimator):
    estimator = trained(Estimator, latent_dim=2).fit(X)
    reconstruction = estimator.inverse_transform(estimator.transform(X))
    assert np.mean((X - reconstruction) ** 2) < 0.5 * np.mean((X - X.mean(0)) ** 2)


@each_estimator
def test_sample_moments_are_those_of_the_data(Estimator):
    estimator = trained(Estimator, n_components=2).fit(X)
    draws, labels = estimator.sample(4000)
    assert draws.shape == (4000, 3)
    assert labels.shape == (4000,)
    np.testing.assert_allclose(draws.mean(0), X.mean(0), atol=0.3 * X.std())
    np.testing.assert_allclose(np.cov(draws.T), np.cov(X.T), atol=0.4 * X.var())


@each_estimator
def test_score_samples_tightens_with_the_number_of_draws(Estimator):
    estimator = trained(Estimator, n_components=2, latent_dim=2).fit(X)
    scores = [estimator.set_params(n_importance=n).score(X) for n in (8, 64, 512)]
    # All rows share their draws, whose errors do not average out.
    assert np.all(np.diff(scores) > -0.05), scores
    assert scores[-1] > scores[0]


@each_estimator
def test_score_samples_is_a_log_density(Estimator):
    """In one dimension its exponential integrates to one, hardly less for many draws."""
    line = np.concatenate([X[:, :1], 12 + X[:20, :1]])
    estimator = trained(Estimator, n_components=2, n_importance=256).fit(line)
    grid = np.linspace(-60, 80, 4001)
    density = np.exp(estimator.score_samples(grid[:, None]))
    assert 0.97 < np.trapezoid(density, grid) < 1.005


@each_estimator
def test_held_out_rows_score_like_training_rows(Estimator):
    estimator = trained(Estimator, n_components=2).fit(X[::2])
    assert estimator.score(X[1::2]) == pytest.approx(estimator.score(X[::2]), abs=2.0)
    assert estimator.score(X + 100) < estimator.score(X) - 10


# ---- likelihoods ----

INSTANCES = [
    GaussianLikelihood(noise_variance=0.1),
    GaussianNetworkLikelihood(min_variance=0.01),
    StudentTLikelihood(dof=6.0),
    BernoulliLikelihood(),
    PoissonLikelihood(),
    GammaLikelihood(concentration=2.0),
]


@each_estimator
@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, *INSTANCES], ids=str)
def test_likelihoods(Estimator, likelihood):
    name = getattr(likelihood, "name", likelihood)
    rows = data_for(name)
    estimator = quick(Estimator, likelihood=likelihood, n_components=2).fit(rows)
    for value in outputs(estimator, rows).values():
        assert np.isfinite(value).all()
    draws, _ = estimator.sample(50)
    LIKELIHOODS[name]().validate(draws)
    reconstruction = estimator.inverse_transform(estimator.transform(rows))
    if name in ("bernoulli", "poisson", "gamma"):
        assert (reconstruction > 0).all()
    if name == "bernoulli":
        assert (reconstruction < 1).all()


@each_estimator
def test_names_stand_for_instances_with_defaults(Estimator):
    rows = data_for("poisson")
    by_name = quick(Estimator, likelihood="poisson").fit(rows)
    by_instance = quick(Estimator, likelihood=PoissonLikelihood()).fit(rows)
    assert_same_outputs(by_name, by_instance, rows)


@each_estimator
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_single_precision(Estimator, likelihood):
    rows = data_for(likelihood)
    wide = quick(Estimator, likelihood=likelihood).fit(rows)
    narrow = quick(Estimator, likelihood=likelihood).fit(rows.astype(np.float32))
    for name, value in outputs(narrow, rows).items():
        if name != "predict":
            assert value.dtype == np.float32
            assert np.isfinite(value).all()
    assert narrow.sample(2)[0].dtype == np.float32
    # Draws differ between types, so that only the level can agree.
    assert narrow.score(rows) == pytest.approx(wide.score(rows), abs=0.5)


@pytest.mark.parametrize("implicit_gradient", ["cg", "richardson", "none", "unrolled"])
def test_every_gradient_of_the_fixed_point_trains(implicit_gradient):
    estimator = quick(SVAEGaussianMixture, n_components=2, implicit_gradient=implicit_gradient)
    assert np.isfinite(estimator.fit(X).lower_bound_)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("hidden_layer_sizes", [(), 4, [4], (5, 4)])
def test_networks(activation, hidden_layer_sizes):
    estimator = quick(VAE, activation=activation, hidden_layer_sizes=hidden_layer_sizes).fit(X)
    assert np.isfinite(estimator.score(X))
    assert isinstance(estimator.architecture_["hidden_layer_sizes"], tuple)
