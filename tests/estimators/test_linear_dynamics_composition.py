# SPDX-License-Identifier: BSD-3-Clause
"""Linear dynamics inside what scikit-learn and others build around estimators."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.decomposition import PCA
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    TimeSeriesSplit,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from sksvae import SVAELinearDynamics
from sksvae.likelihoods import GaussianLikelihood

from .cases import assert_same_attributes, fitted_attributes
from .linear_dynamics_cases import NAMES, fitted, framed, quick, ragged, read_all, rotation

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = rotation(6, 12)
TABLE, GROUPS = X.reshape(-1, 3), np.repeat(np.arange(6), 12)
SERIES = rotation(1, 80)[0]


# ---- copies and files ----


def through_skops(estimator, _):
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(estimator)
    untrusted = skops.get_untrusted_types(data=data)
    assert all(name.startswith("sksvae.") for name in untrusted)
    return skops.loads(data, trusted=untrusted)


def through_joblib(estimator, folder):
    joblib.dump(estimator, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def through_mapped_memory(estimator, folder):
    joblib.dump(estimator, folder / "model.joblib")
    return joblib.load(folder / "model.joblib", mmap_mode="r")


COPIES = {
    "deepcopy": lambda estimator, _: copy.deepcopy(estimator),
    "pickle": lambda estimator, _: pickle.loads(pickle.dumps(estimator)),
    "joblib": through_joblib,
    "joblib, mapped memory": through_mapped_memory,
    "skops": through_skops,
}


@pytest.mark.filterwarnings("error:.*not writable.*:UserWarning")
@pytest.mark.parametrize("made", COPIES.values(), ids=list(COPIES))
def test_copies_say_the_same_and_can_go_on(made, tmp_path):
    estimator = quick(warm_start=True, noise_covariance_prior=[[1, 0], [0, 2]]).fit(X)
    loaded = made(estimator, tmp_path)
    assert repr(loaded) == repr(estimator)
    assert_same_attributes(loaded, estimator)
    for name, value in read_all(loaded, X).items():
        np.testing.assert_array_equal(value, getattr(estimator, name)(X))
    np.testing.assert_array_equal(loaded.forecast(X, 2), estimator.forecast(X, 2))
    np.testing.assert_array_equal(loaded.sample(3)[0], estimator.sample(3)[0])
    for method in ("partial_fit", "fit", "refit_dynamics"):
        assert_same_attributes(getattr(loaded, method)(X), getattr(estimator, method)(X))
    assert_same_attributes(
        loaded.replace_dynamics(offset=[0, 0]), estimator.replace_dynamics(offset=[0, 0])
    )


def test_a_fit_holds_arrays_only():
    for value in fitted_attributes(fitted()).values():
        assert not isinstance(value, torch.Tensor | torch.nn.Module | torch.Generator)


def test_clone():
    estimator = quick(likelihood=GaussianLikelihood(noise_variance=0.1)).fit(X)
    copied = clone(estimator)
    assert vars(copied) == copied.get_params(deep=False)
    assert_same_attributes(copied.fit(X), estimator)


def test_displays():
    assert repr(SVAELinearDynamics()) == "SVAELinearDynamics()"
    estimator = quick(3, likelihood=GaussianLikelihood(noise_variance=0.1))
    for shown in (estimator, copy.deepcopy(estimator).fit(X)):
        assert "latent_dim=3" in repr(shown)
        html = shown._repr_html_()
        assert "SVAELinearDynamics" in html
        assert "GaussianLikelihood" in html


def test_tags():
    tags = get_tags(SVAELinearDynamics())
    assert tags.estimator_type == "density_estimator"
    assert tags.input_tags.allow_nan
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.sparse
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    assert get_tags(SVAELinearDynamics(likelihood="poisson")).input_tags.positive_only


# ---- pipelines ----


def test_in_a_pipeline_on_a_series():
    pipeline = make_pipeline(StandardScaler(), PCA(2), quick()).fit(SERIES)
    inner = pipeline[:-1].transform(SERIES)
    alone = quick().fit(inner)
    np.testing.assert_allclose(pipeline.transform(SERIES), alone.transform(inner))
    np.testing.assert_allclose(pipeline.predict(SERIES), alone.predict(inner))
    np.testing.assert_allclose(pipeline.score_samples(SERIES), alone.score_samples(inner))
    assert pipeline.score(SERIES) == pytest.approx(alone.score(inner))
    rows = pipeline.inverse_transform(pipeline.transform(SERIES))
    assert rows.shape == SERIES.shape
    assert list(pipeline.get_feature_names_out()) == list(alone.get_feature_names_out())
    assert pipeline[-1].rows_ == "consecutive"
    np.testing.assert_allclose(pipeline.fit_transform(SERIES), alone.transform(inner))


def test_in_a_pipeline_with_groups():
    """`Pipeline` hands ``<step>__groups`` to the step."""
    pipeline = make_pipeline(StandardScaler(), PCA(2), quick())
    pipeline.fit(TABLE, svaelineardynamics__groups=GROUPS)
    alone = quick().fit(pipeline[:-1].transform(TABLE), groups=GROUPS)
    assert_same_attributes(pipeline[-1], alone)
    assert not np.allclose(pipeline.transform(TABLE)[12:], alone.transform(TABLE[:, :2])[12:])


def test_in_a_pipeline_with_routed_groups():
    with sklearn.config_context(enable_metadata_routing=True):
        last = (
            quick()
            .set_fit_request(groups=True)
            .set_transform_request(groups=True)
            .set_predict_request(groups=True)
            .set_score_request(groups=True, sample_weight=True)
        )
        pipeline = make_pipeline(StandardScaler(), PCA(2), last).fit(TABLE, groups=GROUPS)
        inner = pipeline[:-1].transform(TABLE)
        alone = quick().fit(inner, groups=GROUPS)
        assert_same_attributes(pipeline[-1], alone)
        for name in ("transform", "predict"):
            np.testing.assert_array_equal(
                getattr(pipeline, name)(TABLE, groups=GROUPS),
                getattr(alone, name)(inner, groups=GROUPS),
            )
        assert pipeline.score(TABLE, groups=GROUPS) == alone.score(inner, groups=GROUPS)


def test_in_a_pipeline_with_an_index_that_tells_sequences_apart():
    frame = framed(X)
    pipeline = make_pipeline(StandardScaler(), PCA(2), quick()).set_output(transform="pandas")
    latents = pipeline.fit(frame).transform(frame)
    pd.testing.assert_index_equal(latents.index, frame.index)
    inner = pipeline[:-1].transform(frame)
    alone = quick().fit(inner.to_numpy(), groups=GROUPS)
    np.testing.assert_allclose(latents.to_numpy(), alone.transform(inner.to_numpy(), groups=GROUPS))
    assert pipeline.score(frame) == pytest.approx(alone.score(inner.to_numpy(), groups=GROUPS))
    assert list(pipeline[-1].feature_names_in_) == ["pca0", "pca1"]


# ---- cross-validation ----

GRID = {"hidden_layer_sizes": [(), (5,)]}


@pytest.mark.parametrize(
    "data", [X, list(X), ragged((12, 5, 9, 12))], ids=["3-D", "list", "ragged"]
)
def test_grid_search_over_sequences(data):
    search = GridSearchCV(quick(), GRID, cv=2, error_score="raise").fit(data)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(data) == pytest.approx(search.best_estimator_.score(data))
    said = search.transform(data)
    assert len(said) == len(data)
    # The folds are of whole sequences.
    half = len(data) // 2
    first = quick(**search.best_params_).fit(data[half:]).score(data[:half])
    best = search.best_index_
    assert search.cv_results_["split0_test_score"][best] == pytest.approx(first)


def test_grid_search_over_a_frame_with_an_index():
    frame = framed(X)
    search = GridSearchCV(quick(), GRID, cv=GroupKFold(3), error_score="raise").fit(
        frame, groups=frame.index.get_level_values(0)
    )
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.transform(frame).shape == (72, 2)
    by_list = quick(**search.best_params_).fit(list(X))
    assert search.best_estimator_.score(frame) == pytest.approx(by_list.score(list(X)))


def test_grid_search_with_routed_groups():
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = quick()
        estimator.set_fit_request(groups=True).set_score_request(groups=True)
        search = GridSearchCV(estimator, GRID, cv=GroupKFold(3), error_score="raise")
        search.fit(TABLE, groups=GROUPS)
        scores = cross_val_score(
            search.best_estimator_,
            TABLE,
            cv=GroupKFold(3),
            params={"groups": GROUPS},
            error_score="raise",
        )
    best = search.cv_results_
    routed = [best[f"split{i}_test_score"][search.best_index_] for i in range(3)]
    np.testing.assert_allclose(scores, routed)
    estimator = quick(**search.best_params_)
    assert_same_attributes(search.best_estimator_, estimator.fit(TABLE, groups=GROUPS))
    train, test = next(GroupKFold(3).split(TABLE, groups=GROUPS))
    estimator.fit(TABLE[train], groups=GROUPS[train])
    assert scores[0] == pytest.approx(estimator.score(TABLE[test], groups=GROUPS[test]))


def test_groups_in_a_pipeline_in_a_grid_search():
    with sklearn.config_context(enable_metadata_routing=True):
        last = quick().set_fit_request(groups=True)
        last.set_score_request(groups=True, sample_weight=True)
        pipeline = make_pipeline(StandardScaler(), last)
        search = GridSearchCV(
            pipeline,
            {f"svaelineardynamics__{name}": values for name, values in GRID.items()},
            cv=GroupKFold(2),
            error_score="raise",
        ).fit(TABLE, groups=GROUPS)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        assert np.isfinite(search.score(TABLE, groups=GROUPS))


def test_splits_in_time():
    splits = TimeSeriesSplit(2)
    estimator = quick(rows="consecutive")
    scores = cross_val_score(estimator, SERIES, cv=splits, error_score="raise")
    for score, (train, test) in zip(scores, splits.split(SERIES), strict=True):
        expected = clone(estimator).fit(SERIES[train]).score(SERIES[test])
        assert score == pytest.approx(expected)


def test_cross_validation_returns_estimators_that_forecast():
    result = cross_validate(quick(), X, cv=3, return_estimator=True, error_score="raise")
    for estimator in result["estimator"]:
        assert estimator.forecast(X, 2)[0].shape == (6, 2, 3)


def test_threads_agree_with_one():
    one = cross_val_score(quick(), X, cv=2, error_score="raise")
    with joblib.parallel_config("threading"):
        two = cross_val_score(quick(), X, cv=2, n_jobs=2, error_score="raise")
    np.testing.assert_allclose(two, one, atol=1e-9)


# ---- callbacks ----


def own_score(estimator, X, y):
    """Score as the estimator does; `ScoringMonitor(scoring=None)` fails in scikit-learn 1.9.1.

    Which also scores nothing where there is no y.
    """
    return estimator.score(X)


@pytest.mark.parametrize(
    "data", [X, list(X), pd.DataFrame(SERIES, columns=NAMES)], ids=["3-D", "list", "frame"]
)
def test_scoring_monitor(data):
    monitor = ScoringMonitor(scoring={"score": own_score})
    estimator = quick(rows="consecutive").set_callbacks(monitor).fit(data, np.zeros(len(data)))
    log = monitor.get_logs().data_as_pandas
    assert (log.task_name == "epoch").sum() == estimator.n_iter_
    final = log[log.task_name == "fit"].score.item()
    assert final == pytest.approx(estimator.score(data))
    plain = quick(rows="consecutive").fit(data)
    np.testing.assert_array_equal(plain.transition_matrix_, estimator.transition_matrix_)


def test_scoring_monitor_knows_the_groups():
    def score(estimator, X, y, groups):
        return estimator.score(X, groups=groups)

    monitor = ScoringMonitor(scoring={"score": score})
    estimator = quick().set_callbacks(monitor).fit(TABLE, np.zeros(72), groups=GROUPS)
    log = monitor.get_logs().data_as_pandas
    final = log[log.task_name == "fit"].score.item()
    assert final == pytest.approx(estimator.score(TABLE, groups=GROUPS))


def test_scoring_monitor_on_a_series_whose_rows_are_guessed():
    """`rows_` has to be there before the end of a fit."""
    monitor = ScoringMonitor(scoring={"score": own_score})
    estimator = quick().set_callbacks(monitor).fit(SERIES, np.zeros(len(SERIES)))
    log = monitor.get_logs().data_as_pandas
    final = log[log.task_name == "fit"].score.item()
    assert final == pytest.approx(estimator.score(SERIES))


@pytest.mark.parametrize("params", [{}, {"n_init": 2, "early_stopping": True}])
def test_progress_bar(params, capsys):
    pytest.importorskip("rich")
    quick(**params).set_callbacks(ProgressBar()).fit(X)
    shown = capsys.readouterr().out
    assert "SVAELinearDynamics" in shown
    assert "100%" in shown


def test_verbose(capsys):
    quick(verbose=2).fit(X)
    shown = capsys.readouterr().out
    assert shown.count("[SVAELinearDynamics] run 1, epoch") == 2
    assert "lower_bound" in shown
