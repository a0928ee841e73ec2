# SPDX-License-Identifier: BSD-3-Clause
"""Fits that are interrupted: what they leave, and that they end as if nothing had happened."""

import functools
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import check_is_fitted

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.datasets import make_pinwheel, make_switching_oscillator
from sksvae.estimators import checkpoint
from sksvae.training import Trainer

from .estimators.cases import assert_same_attributes

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = make_pinwheel(20, n_arms=3, random_state=0)[0]
SEQUENCES = make_switching_oscillator(3, random_state=0)[0][:, :60]
QUICK = {"max_iter": 6, "tol": 0, "n_iter_no_change": 6, "random_state": 0}
DYNAMICS = QUICK | {
    "hidden_layer_sizes": (4,),
    "batch_size": 90,
    "sequence_length": 30,
    "transition_precision_prior": 1.0,
    "noise_covariance_prior": 0.1,
}
# Each with the data and the number of the step, of all, in which the interrupt comes.
CASES = {
    "VAE": (VAE(2, hidden_layer_sizes=(5,), batch_size=20, **QUICK), ROWS, 8),
    "VAE, early stopping": (
        VAE(2, hidden_layer_sizes=(5,), batch_size=20, early_stopping=True, **QUICK),
        ROWS,
        10,
    ),
    "VAE, two runs": (VAE(2, hidden_layer_sizes=(5,), batch_size=20, n_init=2, **QUICK), ROWS, 26),
    "VAE, float32": (
        VAE(2, hidden_layer_sizes=(5,), batch_size=20, **QUICK),
        ROWS.astype(np.float32),
        8,
    ),
    "mixture that loses components": (
        SVAEGaussianMixture(
            2,
            hidden_layer_sizes=(5,),
            n_starting_components=6,
            n_starts=1,
            pretraining_iter=2,
            batch_size=20,
            early_stopping=True,
            **(QUICK | {"max_iter": 10}),
        ),
        ROWS,
        15,
    ),
    "linear dynamics": (SVAELinearDynamics(2, **DYNAMICS), SEQUENCES, 6),
    "linear dynamics, early stopping": (
        SVAELinearDynamics(2, early_stopping=True, validation_fraction=0.3, **DYNAMICS),
        SEQUENCES,
        6,
    ),
    "switching dynamics": (
        SVAESwitchingLDS(2, latent_dim=2, n_starts=1, **(DYNAMICS | {"max_iter": 4})),
        SEQUENCES,
        6,
    ),
}
each_case = pytest.mark.parametrize("case", CASES)


def interrupt_at(monkeypatch, number):
    """Let the step of this number, and no other, be interrupted in its middle."""
    plain, calls = Trainer.step, []

    def step(self, *args):
        calls.append(args)
        terms = plain(self, *args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return terms

    monkeypatch.setattr(Trainer, "step", step)


@functools.cache
def uninterrupted(name):
    estimator, X, _ = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clone(estimator).fit(X)


def with_file(name, path, **params):
    estimator, X, number = CASES[name]
    return clone(estimator).set_params(checkpoint=path, **params), X, number


@each_case
def test_an_interrupted_fit_goes_on_to_the_same_end(case, monkeypatch, tmp_path):
    path = tmp_path / "fit.checkpoint"
    estimator, X, number = with_file(case, path)
    expected = uninterrupted(case)
    interrupt_at(monkeypatch, number)
    with pytest.warns(ConvergenceWarning, match=r"interrupted by the user after epoch \d"):
        estimator.fit(X)
    assert not estimator.converged_
    assert path.exists()
    # As in another process: another estimator, with nothing but the file.
    again = with_file(case, str(path))[0].fit(X)
    assert_same_attributes(again, expected)
    assert not list(tmp_path.iterdir())


def test_the_estimator_that_was_interrupted_goes_on_and_then_begins_anew(monkeypatch, tmp_path):
    estimator, X, number = with_file("VAE", tmp_path / "fit.checkpoint")
    interrupt_at(monkeypatch, number)
    for n_epochs in (2, 6, 6):
        assert estimator.fit(X).n_iter_ == n_epochs
    assert_same_attributes(estimator, uninterrupted("VAE"))


@each_case
def test_every_epoch_can_be_gone_on_from(case, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)
    estimator, X, _ = with_file(case, tmp_path / "fit.checkpoint")
    copies, write = [], checkpoint.Checkpoint.write

    def copying(self, *args, **options):
        write(self, *args, **options)
        copies.append(self.path.read_bytes())

    monkeypatch.setattr(checkpoint.Checkpoint, "write", copying)
    estimator.fit(X)
    monkeypatch.undo()
    assert len(copies) == estimator.n_init * (2 + estimator.max_iter)
    # After the initialisation, in the middle, and after the last run.
    for copy in (copies[0], copies[len(copies) // 2], copies[-1]):
        (tmp_path / "fit.checkpoint").write_bytes(copy)
        assert_same_attributes(clone(estimator).fit(X), estimator)


def test_other_processes_go_on(monkeypatch, tmp_path):
    """Also where no seed was given."""
    path = tmp_path / "fit.checkpoint"
    estimator, X, number = with_file("mixture that loses components", path, random_state=None)
    np.save(tmp_path / "X.npy", X)
    (tmp_path / "estimator.pickle").write_bytes(pickle.dumps(clone(estimator)))
    interrupt_at(monkeypatch, number)
    estimator.fit(X)
    content = path.read_bytes()
    script = (
        "import pickle, numpy as np\n"
        "estimator = pickle.load(open('estimator.pickle', 'rb')).fit(np.load('X.npy'))\n"
        "pickle.dump(estimator, open('estimator.pickle', 'wb'))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONWARNINGS": "ignore",
    }
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    there = pickle.loads((tmp_path / "estimator.pickle").read_bytes())
    assert not path.exists()
    path.write_bytes(content)
    assert_same_attributes(there, clone(estimator).fit(X))


# ---- interrupts without a file ----


@pytest.mark.parametrize("number", [1, 2, 8, 18])
def test_an_interrupt_leaves_the_model_of_the_last_epoch(monkeypatch, number):
    estimator, X, _ = with_file("VAE", None)
    interrupt_at(monkeypatch, number)
    with pytest.warns(ConvergenceWarning, match=f"after epoch {(number - 1) // 3} of run 1"):
        estimator.fit(X)
    monkeypatch.undo()
    assert not estimator.converged_
    assert estimator.n_iter_ == len(estimator.lower_bounds_) == (number - 1) // 3
    whole = with_file("VAE", None)[0]

    # Callbacks may stop a fit at the end of that epoch: the models are the same.
    class Stop:
        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context):
            return context.task_name == "epoch" and context.task_id + 1 == estimator_epochs

    estimator_epochs = estimator.n_iter_
    if estimator_epochs:
        whole.set_callbacks(Stop()).fit(X)
        assert_same_models(estimator, whole)
    assert np.isfinite(estimator.score(X))
    assert estimator.lower_bound_ < 0


def assert_same_models(first, second):
    for name in ("model_state_", "optimizer_state_"):
        for key, value in getattr(first, name).items():
            np.testing.assert_array_equal(value, getattr(second, name)[key], err_msg=key)
    assert first.lower_bound_ == second.lower_bound_


def test_an_interrupt_leaves_the_best_model_on_the_validation_rows(monkeypatch):
    estimator, X, _ = with_file("VAE, early stopping", None)
    interrupt_at(monkeypatch, 14)
    # By this bound the second of the four epochs is the best.
    bounds = iter([1.0, 3.0, 2.0, 0.0])
    monkeypatch.setattr("sksvae.training._mean_bound", lambda *_: next(bounds))
    seen = []
    end = checkpoint.Keeper.end

    def ending(self):
        end(self)
        seen.append(self.progress)
        best = self.progress.best_model[0]
        for name, value in self.trainer.model.state_dict().items():
            assert torch.equal(value, best[name])

    monkeypatch.setattr(checkpoint.Keeper, "end", ending)
    estimator.fit(X)
    assert len(seen) == 1
    assert np.argmax(estimator.history_["validation_bound"]) == 1
    assert estimator.n_iter_ == 4


def test_callbacks_may_interrupt():
    class Interrupt:
        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...

        def on_fit_task_end(self, estimator, context):
            if context.task_name == "epoch" and context.task_id == 2:
                raise KeyboardInterrupt

    estimator, X, _ = with_file("VAE", None)
    with pytest.warns(ConvergenceWarning, match="after epoch 3 of run 1"):
        estimator.set_callbacks(Interrupt()).fit(X)
    assert estimator.n_iter_ == 3


def test_an_interrupt_of_the_initialisation_changes_nothing(monkeypatch, tmp_path):
    path = tmp_path / "fit.checkpoint"
    estimator, X, _ = with_file("mixture that loses components", path)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X)
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)
    assert not list(tmp_path.iterdir())


def test_later_runs_are_not_begun(monkeypatch):
    estimator, X, _ = with_file("VAE, two runs", None)
    interrupt_at(monkeypatch, 8)
    with pytest.warns(ConvergenceWarning, match="after epoch 2 of run 1"):
        estimator.fit(X)
    assert estimator.n_iter_ == 2


def test_an_interrupt_of_a_later_run_leaves_the_best_of_all(monkeypatch, tmp_path):
    path = tmp_path / "fit.checkpoint"
    estimator, X, _ = with_file("VAE, two runs", path)
    first = clone(estimator).set_params(n_init=1, checkpoint=None).fit(X)
    plain, calls = VAE._initialize, []

    def initialize(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(VAE, "_initialize", initialize)
    with pytest.warns(ConvergenceWarning, match="interrupted by the user at the start of run 2"):
        estimator.fit(X)
    assert_same_models(estimator, first)
    monkeypatch.undo()
    assert_same_attributes(clone(estimator).fit(X), uninterrupted("VAE, two runs"))


# ---- the file ----


def interrupted_file(monkeypatch, tmp_path, **params):
    path = tmp_path / "fit.checkpoint"
    estimator, X, number = with_file("VAE", path, **params)
    with monkeypatch.context() as patch:
        interrupt_at(patch, number)
        estimator.fit(X)
    return clone(estimator), X, path


@pytest.mark.parametrize(
    "change",
    [
        {"max_iter": 7},
        {"hidden_layer_sizes": (6,)},
        {"random_state": 1},
        {"random_state": None},
        {"likelihood": "student_t"},
    ],
    ids=str,
)
def test_other_parameters_are_refused(monkeypatch, tmp_path, change):
    estimator, X, path = interrupted_file(monkeypatch, tmp_path)
    before = path.read_bytes()
    (name,) = change
    with pytest.raises(
        ValueError, match=rf"checkpoint='.*' was begun by a fit with {name}="
    ) as error:
        estimator.set_params(**change).fit(X)
    assert "Set it back" in str(error.value)
    assert "delete the file or name another one" in str(error.value)
    assert path.read_bytes() == before
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)


def test_other_data_and_other_estimators_are_refused(monkeypatch, tmp_path):
    estimator, X, path = interrupted_file(monkeypatch, tmp_path)
    other = X.copy()
    other[3, 1] = np.nextafter(other[3, 1], np.inf)
    for rows in (other, X[:-1], X.astype(np.float32)):
        with pytest.raises(ValueError, match=r"checkpoint=.* begun by a fit on other data"):
            estimator.fit(rows)
    mixture = SVAEGaussianMixture(2, checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint=.* begun by a fit with class=VAE"):
        mixture.fit(X)


def test_sequences_of_other_lengths_are_other_data(monkeypatch, tmp_path):
    path = tmp_path / "fit.checkpoint"
    estimator, X, number = with_file("linear dynamics", path)
    interrupt_at(monkeypatch, number)
    estimator.fit(X)
    table = np.concatenate(X)
    with pytest.raises(ValueError, match="on other data"):
        clone(estimator).fit(table, groups=np.repeat([0, 1, 2], [50, 70, 60]))
    assert_same_attributes(
        clone(estimator).fit(table, groups=np.repeat([0, 1, 2], 60)),
        uninterrupted("linear dynamics"),
    )


def test_equal_parameters_of_other_types_go_on(monkeypatch, tmp_path):
    estimator, X, _ = interrupted_file(monkeypatch, tmp_path)
    estimator.set_params(
        latent_dim=np.int64(2), hidden_layer_sizes=[5], verbose=0, random_state=np.int32(0)
    )
    assert_same_models(estimator.fit(X.tolist()), uninterrupted("VAE"))


@pytest.mark.parametrize("content", [b"", b"no such thing", pickle.dumps({"signature": {}})])
def test_other_files_are_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "fit.checkpoint"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint=.* is no file that a fit has written"):
        VAE(2, checkpoint=path).fit(ROWS)
    assert path.read_bytes() == content


def test_code_in_a_file_is_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    path = tmp_path / "fit.checkpoint"
    torch.save({"signature": Bad()}, path)
    with pytest.raises(ValueError, match="is no file that a fit has written"):
        VAE(2, checkpoint=path).fit(ROWS)
    assert not (tmp_path / "made").exists()


def test_folders_that_do_not_exist_are_an_error_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint=.* is in a folder that does not exist"):
        VAE(2, checkpoint=tmp_path / "no" / "fit").fit(ROWS)
    with pytest.raises(ValueError, match="'checkpoint' parameter of VAE must be"):
        VAE(2, checkpoint=3).fit(ROWS)


def test_warm_starts_go_on(monkeypatch, tmp_path):
    path = tmp_path / "fit.checkpoint"
    estimator, X, number = with_file("VAE", path, warm_start=True)
    estimator.fit(X)
    expected = pickle.loads(pickle.dumps(estimator)).fit(X)
    interrupt_at(monkeypatch, number)
    estimator.fit(X)
    assert path.exists()
    assert_same_attributes(estimator.fit(X), expected)


def test_a_grid_search_may_not_share_a_file(tmp_path):
    """One after the other, fits that end remove the file; it is not meant for them."""
    search = GridSearchCV(
        with_file("VAE", tmp_path / "fit.checkpoint")[0], {"latent_dim": [1, 2]}, cv=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(ROWS)
    assert not list(tmp_path.iterdir())
