# SPDX-License-Identifier: BSD-3-Clause
"""Estimators inside what scikit-learn and others build around them."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags

from sksvae import VAE, SVAEGaussianMixture
from sksvae.likelihoods import GaussianLikelihood

from .cases import (
    assert_same_attributes,
    assert_same_outputs,
    blobs,
    each_estimator,
    fitted,
    quick,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = blobs()
TABLE = pd.DataFrame(X, columns=["length", "width", "height"], index=np.arange(len(X)) + 100)


# ---- copies and files ----


def through_skops(estimator, _):
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(estimator)
    untrusted = skops.get_untrusted_types(data=data)
    # Nothing of torch: skops would refuse modules, and files should outlive torch's versions.
    assert all(name.startswith("sksvae.") for name in untrusted)
    return skops.loads(data, trusted=untrusted)


def through_joblib(estimator, folder):
    joblib.dump(estimator, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def through_mapped_memory(estimator, folder):
    joblib.dump(estimator, folder / "model.joblib")
    loaded = joblib.load(folder / "model.joblib", mmap_mode="r")
    assert isinstance(loaded.location_, np.memmap)
    return loaded


COPIES = [
    lambda estimator, _: copy.deepcopy(estimator),
    lambda estimator, _: pickle.loads(pickle.dumps(estimator)),
    through_joblib,
    through_mapped_memory,
    through_skops,
]
COPY_IDS = ["deepcopy", "pickle", "joblib", "joblib, mapped memory", "skops"]


@each_estimator
@pytest.mark.parametrize("made", COPIES, ids=COPY_IDS)
def test_copies_say_the_same(Estimator, made, tmp_path):
    estimator = fitted(Estimator)
    loaded = made(estimator, tmp_path)
    assert loaded.get_params() == estimator.get_params()
    assert_same_attributes(loaded, estimator)
    assert_same_outputs(loaded, estimator, X)
    np.testing.assert_array_equal(loaded.sample(3)[0], estimator.sample(3)[0])


@pytest.mark.parametrize("made", COPIES, ids=COPY_IDS)
def test_copies_of_likelihoods(made, tmp_path):
    estimator = quick(VAE, likelihood=GaussianLikelihood(noise_variance=0.1)).fit(X)
    loaded = made(estimator, tmp_path)
    assert loaded.likelihood == estimator.likelihood
    assert_same_outputs(loaded, estimator, X)


@each_estimator
@pytest.mark.filterwarnings("error:.*not writable.*:UserWarning")
@pytest.mark.parametrize("made", COPIES, ids=COPY_IDS)
def test_copies_can_go_on(Estimator, made, tmp_path):
    estimator = quick(Estimator, warm_start=True).fit(X)
    loaded = made(estimator, tmp_path)
    assert_same_attributes(loaded.partial_fit(X), estimator.partial_fit(X))
    assert_same_attributes(loaded.fit(X), estimator.fit(X))


@each_estimator
def test_training_on_does_not_write_into_a_mapped_file(Estimator, tmp_path):
    estimator = quick(Estimator, warm_start=True).fit(X)
    joblib.dump(estimator, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib", mmap_mode="r+")
    loaded.fit(X).partial_fit(X)
    assert_same_attributes(joblib.load(tmp_path / "model.joblib"), estimator)


@each_estimator
def test_a_fit_holds_arrays_only(Estimator):
    def leaves(value):
        if isinstance(value, dict):
            for item in value.values():
                yield from leaves(item)
        else:
            yield value

    for value in leaves(vars(fitted(Estimator))):
        assert not isinstance(value, torch.Tensor | torch.nn.Module | torch.Generator)


@each_estimator
def test_clone(Estimator):
    likelihood = GaussianLikelihood(noise_variance=0.1)
    estimator = quick(Estimator, likelihood=likelihood, hidden_layer_sizes=[4]).fit(X)
    copied = clone(estimator)
    assert copied.get_params() == estimator.get_params()
    assert vars(copied) == copied.get_params(deep=False)
    assert_same_outputs(copied.fit(X), estimator, X)


# ---- names, tags and displays ----


@each_estimator
def test_set_output(Estimator):
    estimator = quick(Estimator, latent_dim=2).set_output(transform="pandas")
    name = Estimator.__name__.lower()
    for latents in (estimator.fit_transform(TABLE), estimator.transform(TABLE)):
        assert isinstance(latents, pd.DataFrame)
        assert list(latents.columns) == [f"{name}0", f"{name}1"]
        pd.testing.assert_index_equal(latents.index, TABLE.index)
    np.testing.assert_array_equal(estimator.get_feature_names_out(), [f"{name}0", f"{name}1"])
    np.testing.assert_array_equal(estimator.feature_names_in_, TABLE.columns)
    np.testing.assert_array_equal(
        estimator.inverse_transform(latents), estimator.inverse_transform(latents.to_numpy())
    )


@each_estimator
def test_tables_and_arrays_give_equal_fits(Estimator):
    by_table, by_array = quick(Estimator).fit(TABLE), quick(Estimator).fit(X)
    np.testing.assert_array_equal(by_table.transform(TABLE), by_array.transform(X))


@each_estimator
def test_tags(Estimator):
    tags = get_tags(Estimator())
    assert tags.estimator_type == "density_estimator"
    assert not tags.input_tags.allow_nan
    assert not tags.input_tags.sparse
    assert not tags.input_tags.positive_only
    assert not tags.target_tags.required
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    for likelihood in ("gamma", "poisson", "bernoulli"):
        assert get_tags(Estimator(likelihood=likelihood)).input_tags.positive_only


@each_estimator
def test_displays(Estimator):
    estimator = quick(Estimator, likelihood=GaussianLikelihood(noise_variance=0.1))
    assert "GaussianLikelihood(noise_variance=0.1" in repr(estimator)
    assert repr(Estimator()) == f"{Estimator.__name__}()"
    for shown in (estimator, estimator.fit(X)):
        html = shown._repr_html_()
        assert Estimator.__name__ in html
        assert "GaussianLikelihood" in html


# ---- meta-estimators ----


@each_estimator
def test_in_a_pipeline(Estimator):
    pipeline = make_pipeline(StandardScaler(), quick(Estimator, n_components=2)).fit(X)
    standardised = StandardScaler().fit_transform(X)
    alone = quick(Estimator, n_components=2).fit(standardised)
    np.testing.assert_allclose(pipeline.transform(X), alone.transform(standardised))
    assert pipeline.score(X) == pytest.approx(alone.score(standardised))
    latents = pipeline.transform(X)
    np.testing.assert_allclose(
        pipeline.inverse_transform(latents),
        pipeline[0].inverse_transform(alone.inverse_transform(latents)),
    )
    assert list(pipeline.get_feature_names_out()) == list(alone.get_feature_names_out())


def test_clustering_at_the_end_of_a_pipeline():
    pipeline = make_pipeline(
        FunctionTransformer(), quick(SVAEGaussianMixture, n_components=2, max_iter=10)
    )
    labels = pipeline.fit_predict(X)
    np.testing.assert_array_equal(labels, pipeline.predict(X))
    assert pipeline.predict_proba(X).shape == (len(X), 2)
    assert max(np.mean(labels == LABELS), np.mean(labels != LABELS)) > 0.9


@each_estimator
def test_before_a_classifier(Estimator):
    pipeline = make_pipeline(quick(Estimator, latent_dim=2, max_iter=10), LogisticRegression())
    assert pipeline.fit(X, LABELS).score(X, LABELS) > 0.9


@each_estimator
def test_in_a_column_transformer(Estimator):
    transformer = ColumnTransformer(
        [("latent", quick(Estimator, latent_dim=1), ["length", "height"])], remainder="passthrough"
    ).set_output(transform="pandas")
    table = transformer.fit_transform(TABLE)
    assert list(table.columns) == [f"latent__{Estimator.__name__.lower()}0", "remainder__width"]


def test_grid_search_by_the_score_of_the_estimator():
    rows, _ = blobs(distance=30.0)
    search = GridSearchCV(
        quick(SVAEGaussianMixture, max_iter=20, hidden_layer_sizes=(), latent_dim=2),
        {"n_components": [1, 2]},
        cv=2,
        error_score="raise",
    ).fit(rows)
    assert search.best_params_ == {"n_components": 2}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(rows) == pytest.approx(search.best_estimator_.score(rows))
    np.testing.assert_array_equal(search.predict(rows), search.best_estimator_.predict(rows))


def test_grid_search_over_likelihoods():
    """Scores are in the units of X, so likelihoods of real numbers can be compared."""
    rng = np.random.default_rng(0)
    heavy = rng.standard_t(1.5, size=(120, 2))
    search = GridSearchCV(
        quick(VAE, hidden_layer_sizes=(), latent_dim=1, max_iter=40),
        {"likelihood": ["gaussian", "student_t"]},
        cv=2,
        error_score="raise",
    ).fit(heavy)
    assert search.best_params_ == {"likelihood": "student_t"}


@each_estimator
def test_cross_validation(Estimator):
    scores = cross_val_score(quick(Estimator), X, cv=3, error_score="raise")
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()


def test_labels_out_of_sample():
    labels = cross_val_predict(quick(SVAEGaussianMixture, n_components=2, max_iter=10), X, cv=2)
    assert max(np.mean(labels == LABELS), np.mean(labels != LABELS)) > 0.9


@pytest.mark.slow  # each worker imports torch
def test_processes_agree_with_one():
    estimator = quick(SVAEGaussianMixture, n_components=2)
    one = cross_val_score(estimator, X, cv=2, error_score="raise")
    two = cross_val_score(estimator, X, cv=2, n_jobs=2, error_score="raise")
    np.testing.assert_allclose(two, one, atol=1e-9)


@each_estimator
def test_threads_agree_with_one(Estimator):
    """Local generators make fits in threads independent of each other."""
    one = cross_val_score(quick(Estimator), X, cv=2, error_score="raise")
    with joblib.parallel_config("threading"):
        two = cross_val_score(quick(Estimator), X, cv=2, n_jobs=2, error_score="raise")
    np.testing.assert_allclose(two, one, atol=1e-9)


@each_estimator
def test_sizes_may_be_numpy_integers(Estimator):
    X = blobs()[0]
    sizes = {"latent_dim": np.int64(2), "n_components": np.int64(2)}
    found = quick(Estimator, **sizes).fit(X)
    expected = quick(Estimator, **{name: int(size) for name, size in sizes.items()}).fit(X)
    assert_same_outputs(found, expected, X)
