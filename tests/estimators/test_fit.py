# SPDX-License-Identifier: BSD-3-Clause
"""What `fit` and its relatives promise, for every estimator over rows."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

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
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = blobs()
HISTORY = {"lower_bound", "reconstruction", "local_kl", "global_kl", "validation_bound"}


def trained(Estimator, **params):
    """Return an estimator that trains for long enough to be good on easy data."""
    return quick(Estimator, **{"max_iter": 25, "learning_rate_init": 0.02, **params})


class StopAfter:
    """A callback that ends training."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def setup(self, estimator, context):
        self.left = self.n_epochs

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.left -= context.task_name == "epoch"
        return self.left <= 0


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


# ---- training ----


@each_estimator
def test_history(Estimator):
    estimator = quick(Estimator, max_iter=4, tol=0).fit(X)
    assert set(estimator.history_) == HISTORY
    assert estimator.n_iter_ >= 4
    assert all(len(values) == estimator.n_iter_ for values in estimator.history_.values())
    history = estimator.history_
    np.testing.assert_array_equal(estimator.lower_bounds_, history["lower_bound"])
    np.testing.assert_allclose(
        history["lower_bound"],
        history["reconstruction"] - history["local_kl"] - history["global_kl"],
    )
    assert np.isnan(history["validation_bound"]).all()
    assert np.isfinite(estimator.lower_bound_)
    assert estimator.n_samples_seen_ == len(X)


@each_estimator
def test_a_fit_that_runs_out_of_epochs_warns(Estimator):
    estimator = quick(Estimator, max_iter=2)
    with pytest.warns(
        ConvergenceWarning, match=r"max_iter=2 epochs .* Increase max_iter"
    ) as caught:
        estimator.fit(X)
    assert caught[0].filename == __file__
    assert not estimator.converged_


@each_estimator
@pytest.mark.filterwarnings("error")
def test_a_fit_that_converges_does_not(Estimator):
    estimator = quick(Estimator, max_iter=30, tol=1e6, n_iter_no_change=2).fit(X)
    assert estimator.converged_
    assert estimator.n_iter_ < 30


def test_a_fit_that_gets_worse_warns():
    """Finite but useless: seen with converged_=True and a bound of -1e96."""
    with pytest.warns(ConvergenceWarning, match="bound fell.* Lower learning_rate_init=1.0"):
        quick(VAE, learning_rate_init=1.0, likelihood="gamma", max_iter=6).fit(data_for("gamma"))


@each_estimator
def test_n_init_keeps_the_best_bound(Estimator, monkeypatch):
    run, results = Estimator._run, []

    def recorded(*args):
        results.append(run(*args))
        return results[-1]

    monkeypatch.setattr(Estimator, "_run", recorded)
    estimator = quick(Estimator, n_init=4).fit(X)
    bounds = [result.lower_bound for _, result in results]
    assert len(set(bounds)) == 4
    assert estimator.lower_bound_ == max(bounds)
    best = [record.lower_bound for record in results[np.argmax(bounds)][1].history]
    np.testing.assert_array_equal(estimator.lower_bounds_, best)


@each_estimator
def test_warm_start_continues(Estimator):
    estimator = quick(Estimator, warm_start=True, max_iter=2).fit(X)
    first = estimator.transform(X)
    estimator.set_params(max_iter=1, learning_rate_init=1e-9).fit(X)
    assert estimator.n_iter_ == 1
    np.testing.assert_allclose(estimator.transform(X), first, atol=0.05 * first.std())
    # Without it, a fit starts again.
    fresh = clone(estimator).set_params(warm_start=False, max_iter=2, learning_rate_init=0.005)
    again = clone(fresh).fit(X).fit(X)
    assert_same_attributes(again, fresh.fit(X))


@each_estimator
def test_warm_start_improves_the_bound(Estimator):
    estimator = trained(Estimator, warm_start=True, max_iter=5).fit(X)
    short = estimator.score(X)
    assert estimator.set_params(max_iter=30).fit(X).score(X) > short - 0.2


@each_estimator
def test_warm_start_keeps_the_type_and_the_scaling(Estimator):
    estimator = quick(Estimator, warm_start=True).fit(X)
    location = estimator.location_
    estimator.fit((X + 1).astype(np.float32))
    np.testing.assert_array_equal(estimator.location_, location)
    assert estimator.transform(X).dtype == np.float64


@each_estimator
def test_partial_fit(Estimator):
    estimator = quick(Estimator, n_components=2).partial_fit(X[:30])
    assert estimator.n_samples_seen_ == 30
    assert estimator.n_iter_ == 1
    location = estimator.location_
    before = estimator.transform(X)
    estimator.partial_fit(X[30:]).partial_fit(X[:1])
    assert estimator.n_samples_seen_ == len(X) + 1
    assert estimator.n_iter_ == 3
    assert all(len(values) == 3 for values in estimator.history_.values())
    np.testing.assert_array_equal(estimator.location_, location)
    assert np.abs(estimator.transform(X) - before).max() > 0
    assert np.isfinite(estimator.score(X))


@each_estimator
def test_partial_fit_is_repeatable_and_leaves_earlier_copies_alone(Estimator):
    first, second = (quick(Estimator).partial_fit(X).partial_fit(X) for _ in range(2))
    assert_same_attributes(first, second)
    expected = outputs(first, X)
    shallow = clone(first)
    vars(shallow).update(vars(first))
    shallow.partial_fit(X)
    for name, value in outputs(first, X).items():
        np.testing.assert_array_equal(value, expected[name])


@each_estimator
def test_partial_fit_continues_a_fit(Estimator):
    estimator = quick(Estimator).fit(X)
    n_iter = estimator.n_iter_
    estimator.partial_fit(X)
    assert estimator.n_samples_seen_ == 2 * len(X)
    assert estimator.n_iter_ == n_iter + 1


def test_total_samples_weights_the_prior():
    """Thirty rows of a million say little less than a million would."""
    few = quick(SVAEGaussianMixture).partial_fit(X[:30])
    many = quick(SVAEGaussianMixture, total_samples=10**6).partial_fit(X[:30])
    assert many.history_["global_kl"][-1] < 0.1 * few.history_["global_kl"][-1]


@each_estimator
def test_many_passes_of_partial_fit_learn(Estimator):
    estimator = quick(Estimator, n_components=2).partial_fit(X)
    for _ in range(15):
        estimator.partial_fit(X)
    assert estimator.lower_bounds_[-5:].mean() > estimator.lower_bounds_[:5].mean() - 0.5


@each_estimator
def test_early_stopping_keeps_the_best_model_on_held_out_rows(Estimator):
    estimator = quick(
        Estimator, early_stopping=True, validation_fraction=0.3, max_iter=20, n_iter_no_change=3
    ).fit(X)
    judged = estimator.history_["validation_bound"]
    n_judged = np.isfinite(judged).sum()
    assert 1 <= n_judged <= 20
    assert estimator.converged_ == (n_judged < 20)
    best = int(np.nanargmax(judged)) + 1
    stopped = clone(estimator).set_callbacks(StopAfter(best)).fit(X)
    assert stopped.n_iter_ == best
    assert_same_outputs(stopped, estimator, X)


@each_estimator
@pytest.mark.parametrize("params", [{"beta": 4.0}, {"beta": 1.0, "capacity": 25.0}])
def test_beta_and_capacity_move_the_local_kl(Estimator, params):
    plain = trained(Estimator).fit(X).history_["local_kl"][-1]
    weighted = trained(Estimator, **params).fit(X).history_["local_kl"][-1]
    if "capacity" in params:
        assert weighted > plain
    else:
        assert weighted < plain


@each_estimator
def test_draws_make_the_gradient_less_noisy(Estimator):
    def spread(n_draws):
        bounds = quick(Estimator, n_draws=n_draws, max_iter=20, learning_rate_init=1e-9, tol=0)
        return np.std(bounds.fit(X).history_["reconstruction"][-15:])

    assert spread(16) < spread(1)


@each_estimator
def test_batch_size(Estimator):
    assert np.isfinite(quick(Estimator, batch_size=7).fit(X).lower_bound_)
    whole = quick(Estimator, batch_size=len(X)).fit(X)
    assert_same_attributes(whole, quick(Estimator, batch_size=10**6).fit(X))
    assert_same_attributes(whole, quick(Estimator, batch_size="auto").fit(X))


@each_estimator
def test_verbose(Estimator, capsys):
    quick(Estimator).fit(X)
    assert capsys.readouterr().out == ""
    estimator = quick(Estimator, verbose=2, early_stopping=True).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == estimator.n_iter_
    assert all(f"[{Estimator.__name__}] run 1, epoch " in line for line in lines)
    assert "nan" not in "".join(lines)
    quick(Estimator, verbose=1, max_iter=25, n_iter_no_change=25).fit(X)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_estimator
def test_cuda(Estimator):
    estimator = quick(Estimator, n_components=2, device="cuda").fit(X).partial_fit(X)
    on_device = outputs(estimator, X)
    for name, value in outputs(estimator.set_params(device="cpu"), X).items():
        np.testing.assert_allclose(value, on_device[name], atol=1e-8)


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
