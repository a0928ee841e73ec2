# SPDX-License-Identifier: BSD-3-Clause
"""Callbacks by scikit-learn's protocol."""

import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sksvae import VAE, SVAEGaussianMixture

from .cases import assert_same_attributes, blobs, each_estimator, quick

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, _ = blobs()


@dataclass(eq=False)
class Recorder:
    """Writes down every call of every hook."""

    stop_after: float = np.inf
    stop_runs: bool = False
    read: bool = False
    calls: list = field(default_factory=list)
    scores: list = field(default_factory=list)

    def setup(self, estimator, context):
        self.calls.append(("setup", context))

    def teardown(self, estimator, context):
        self.calls.append(("teardown", context))

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        assert X is not None
        self.calls.append(("begin", context))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        assert X is not None
        self.calls.append(("end", context))
        if context.task_name == "run":
            return self.stop_runs
        assert fitted_estimator is not None
        assert fitted_estimator is not estimator
        if self.read:
            self.scores.append(fitted_estimator.score(X))
            assert fitted_estimator.transform(X).shape[0] == len(X)
            if hasattr(fitted_estimator, "predict"):
                n_components = fitted_estimator.weights_.shape[0]
                assert fitted_estimator.predict(X).max() < n_components
            assert np.isfinite(fitted_estimator.sample(2)[0]).all()
        return len(self.tasks("epoch")) >= self.stop_after

    def tasks(self, name):
        return [c for hook, c in self.calls if hook == "end" and c.task_name == name]

    @property
    def root(self):
        return self.calls[0][1]


class Propagated(Recorder):
    max_propagation_depth = None


def own_score(estimator, X, y):
    """Score as the estimator does; `ScoringMonitor(scoring=None)` fails in scikit-learn 1.9.1."""
    return estimator.score(X)


def fit_with(callback, estimator, X=X):
    return estimator.set_callbacks(callback).fit(X)


@each_estimator
@pytest.mark.parametrize(
    ("n_init", "params"),
    [(1, {}), (2, {}), (1, {"hidden_layer_sizes": ()}), (2, {"early_stopping": True})],
)
def test_tasks(Estimator, n_init, params):
    recorder = Recorder()
    estimator = fit_with(recorder, quick(Estimator, n_init=n_init, **params))
    hooks = [hook for hook, _ in recorder.calls]
    assert (hooks[0], hooks[-1]) == ("setup", "teardown")
    assert hooks.count("begin") == hooks.count("end")
    root = recorder.root
    assert root.estimator_name == Estimator.__name__
    assert root.max_subtasks == len(recorder.tasks("run")) == n_init
    assert [run.task_id for run in recorder.tasks("run")] == list(range(n_init))
    for run in recorder.tasks("run"):
        epochs = [epoch for epoch in recorder.tasks("epoch") if epoch.parent is run]
        # Nothing stops these early, so the count that a progress bar shows is exact.
        assert len(epochs) == run.max_subtasks == estimator.n_iter_
        assert [epoch.task_id for epoch in epochs] == list(range(len(epochs)))
        assert all(epoch.max_subtasks == 0 for epoch in epochs)


@each_estimator
def test_a_fit_that_converges_uses_fewer_tasks(Estimator):
    recorder = Recorder()
    estimator = fit_with(recorder, quick(Estimator, max_iter=50, tol=1e6, n_iter_no_change=2))
    (run,) = recorder.tasks("run")
    assert estimator.converged_
    assert len(recorder.tasks("epoch")) == estimator.n_iter_ < run.max_subtasks


@each_estimator
def test_a_warm_start_has_no_pretraining(Estimator):
    estimator = quick(Estimator, warm_start=True, n_init=2).fit(X)
    recorder = Recorder()
    fit_with(recorder, estimator)
    (run,) = recorder.tasks("run")
    assert recorder.root.max_subtasks == 1
    assert len(recorder.tasks("epoch")) == run.max_subtasks == estimator.max_iter


@each_estimator
def test_callbacks_do_not_change_the_fit(Estimator):
    """Not even those that predict, score and sample on the way."""
    plain = quick(Estimator, n_components=2).fit(X)
    recorder = Recorder(read=True)
    watched = fit_with(recorder, quick(Estimator, n_components=2))
    assert_same_attributes(watched, plain)
    # One score per epoch, and one at the end of the fit.
    assert len(recorder.scores) == plain.n_iter_ + 1
    assert np.isfinite(recorder.scores).all()
    assert recorder.scores[-1] == pytest.approx(plain.score(X))


@each_estimator
@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_callback_stops_a_run(Estimator, stop_after):
    """In pretraining (the first epoch of the mixture), too."""
    recorder = Recorder(stop_after=stop_after)
    estimator = fit_with(recorder, quick(Estimator, n_components=2, max_iter=30))
    assert len(recorder.tasks("epoch")) == estimator.n_iter_ == stop_after
    assert recorder.calls[-1][0] == "teardown"
    assert estimator.converged_
    assert np.isfinite(estimator.score(X))
    if Estimator is SVAEGaussianMixture:
        assert estimator.weights_.shape == (2,)
        assert (np.diff(estimator.weights_) <= 0).all()


@each_estimator
def test_a_callback_stops_all_runs(Estimator):
    recorder = Recorder(stop_runs=True)
    estimator = fit_with(recorder, quick(Estimator, n_init=5))
    assert len(recorder.tasks("run")) == 1
    assert recorder.root.max_subtasks == 5
    assert np.isfinite(estimator.lower_bound_)


@each_estimator
def test_an_error_in_a_callback_leaves_nothing(Estimator):
    class Failing(Recorder):
        def on_fit_task_end(self, estimator, context):
            raise RuntimeError("no more")

    failing = Failing()
    estimator = quick(Estimator).set_callbacks(failing)
    with pytest.raises(RuntimeError, match="no more"):
        estimator.fit(X)
    assert failing.calls[-1][0] == "teardown"
    assert set(vars(estimator)) - {"_skl_callbacks"} == set(estimator.get_params(deep=False))
    estimator.set_callbacks().fit(X)


@each_estimator
def test_scoring_monitor(Estimator):
    monitor = ScoringMonitor(scoring={"score": own_score})
    table = pd.DataFrame(X, columns=list("abc"))
    estimator = quick(Estimator).set_callbacks(monitor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(table, np.zeros(len(X)))
    assert not any("feature names" in str(warning.message) for warning in caught)
    log = monitor.get_logs().data_as_pandas
    epochs = log[log.task_name == "epoch"]
    assert len(epochs) == estimator.n_iter_
    final = log[log.task_name == "fit"].score.item()
    assert final == pytest.approx(estimator.score(table))


@each_estimator
def test_scoring_monitor_in_a_grid_search(Estimator):
    monitor = ScoringMonitor(scoring={"score": own_score})
    search = GridSearchCV(
        quick(Estimator).set_callbacks(monitor), {"n_draws": [1, 2]}, cv=2, error_score="raise"
    ).fit(X, np.zeros(len(X)))
    log = monitor.get_logs().data_as_pandas
    # 2 candidates x 2 folds, and the refit.
    assert (log.task_name == "epoch").sum() == 5 * search.best_estimator_.n_iter_


@each_estimator
def test_callbacks_reach_a_step_of_a_pipeline(Estimator):
    recorder = Propagated()

    def on_fit_task_end(estimator, context):
        recorder.calls.append(("end", context))

    recorder.on_fit_task_begin = lambda estimator, context: None
    recorder.on_fit_task_end = on_fit_task_end
    pipeline = make_pipeline(StandardScaler(), quick(Estimator)).set_callbacks(recorder)
    pipeline.fit(X)
    assert recorder.root.estimator_name == "Pipeline"
    assert len(recorder.tasks("epoch")) == pipeline[-1].n_iter_
    assert not hasattr(pipeline[-1], "_skl_callbacks")
    assert np.isfinite(pipeline.score(X))


@each_estimator
@pytest.mark.parametrize("params", [{}, {"n_init": 2, "early_stopping": True}])
def test_progress_bar(Estimator, params, capsys):
    pytest.importorskip("rich")
    fit_with(ProgressBar(), quick(Estimator, **params))
    shown = capsys.readouterr().out
    assert Estimator.__name__ in shown
    assert "run" in shown
    assert "100%" in shown


@pytest.mark.parametrize("Meta", [make_pipeline, lambda est: GridSearchCV(est, {"tol": [0]}, cv=2)])
def test_one_progress_bar_for_all(Meta, capsys):
    pytest.importorskip("rich")
    meta = Meta(quick(VAE)).set_callbacks(ProgressBar(max_propagation_depth=None))
    assert np.isfinite(meta.fit(X).score(X))
    shown = capsys.readouterr().out
    assert "VAE" in shown
    assert "100%" in shown


@each_estimator
def test_callbacks_stay_with_the_estimator(Estimator):
    estimator = quick(Estimator).set_callbacks(Recorder())
    # Not a parameter: scikit-learn's clone carries callbacks over by itself.
    assert "callbacks" not in estimator.get_params()
    assert hasattr(clone(estimator), "_skl_callbacks")
    edited = fit_with(Recorder(), quick(SVAEGaussianMixture, n_components=2)).remove_component(0)
    assert edited.weights_.shape == (1,)
