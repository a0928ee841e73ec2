# SPDX-License-Identifier: BSD-3-Clause
"""What every estimator promises of its training: history, stopping, continuing, parameters."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from sksvae import VAE, SVAEGaussianMixture

from .cases import (
    assert_same_attributes,
    assert_same_outputs,
    blobs,
    data_for,
    each_estimator,
    outputs,
    quick,
    trained,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, _ = blobs()
HISTORY = {"lower_bound", "reconstruction", "local_kl", "global_kl", "validation_bound"}


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
def test_both_solvers_learn(Estimator):
    start = quick(Estimator, max_iter=1, learning_rate_init=1e-9).fit(X).lower_bound_
    adam, muon = (trained(Estimator, solver=solver).fit(X) for solver in ("adam", "muon"))
    assert min(adam.lower_bound_, muon.lower_bound_) > start
    assert muon.lower_bound_ != adam.lower_bound_
    assert muon.lower_bound_ > adam.lower_bound_ - 0.2


@each_estimator
def test_batches_go_on_with_another_solver(Estimator):
    estimator = quick(Estimator).partial_fit(X).set_params(solver="muon").partial_fit(X)
    assert any("momentum" in name for name in estimator.optimizer_state_)
    assert np.isfinite(estimator.score(X))


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
