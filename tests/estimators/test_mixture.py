# SPDX-License-Identifier: BSD-3-Clause
"""What is special about `SVAEGaussianMixture`: components, labels, priors and steering."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sksvae import SVAEGaussianMixture

from .cases import assert_same_outputs, blobs, outputs, quick

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = blobs(n_blobs=3, n_per_blob=15)


def mixture(n_components=3, **params):
    params = {"latent_dim": 3, "n_starts": 3, "max_iter": 10, **params}
    return quick(SVAEGaussianMixture, n_components=n_components, **params)


@pytest.fixture(scope="module")
def fitted():
    with pytest.warns(match="max_iter"):
        return mixture().fit(X)


# ---- components and labels ----


def test_labels_find_the_groups(fitted):
    labels = fitted.predict(X)
    assert labels.dtype.kind == "i"
    assert adjusted_rand_score(LABELS, labels) > 0.95
    np.testing.assert_array_equal(labels, fitted.predict_proba(X).argmax(1))


def test_fit_predict_is_fit_then_predict(fitted):
    np.testing.assert_array_equal(mixture().fit_predict(X, y=LABELS), fitted.predict(X))


def test_fit_transform_is_fit_then_transform(fitted):
    np.testing.assert_allclose(mixture().fit_transform(X), fitted.transform(X), atol=1e-12)


def test_probabilities_sum_to_one(fitted):
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (len(X), 3)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("first", ["fit", "partial_fit"])
def test_components_are_ordered_by_weight(first):
    """Sizes of the groups are 45, 30 and 15, so labels follow the sizes, too."""
    estimator = getattr(mixture(n_components=5), first)(X)
    weights = estimator.weights_
    assert (np.diff(weights) <= 0).all()
    assert weights.sum() == pytest.approx(1)
    sizes = np.bincount(estimator.predict(X), minlength=5)
    assert sizes[0] == sizes.max()
    # The used ones come first.
    assert sizes.sum() == sizes[: np.count_nonzero(sizes)].sum()


def test_fitted_attributes(fitted):
    assert fitted.weights_.shape == (3,)
    assert fitted.means_.shape == (3, 3)
    assert fitted.covariances_.shape == (3, 3, 3)
    for covariance in fitted.covariances_:
        np.testing.assert_allclose(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance)[0] > 0
    assert fitted.n_iter_ == len(fitted.lower_bounds_)
    latents = fitted.transform(X)
    for k in range(3):
        centre = latents[fitted.predict(X) == k].mean(0)
        np.testing.assert_allclose(fitted.means_[k], centre, atol=0.5 * latents.std())


def test_components_that_are_not_needed_are_not_used():
    estimator = mixture(n_components=8, weight_concentration_prior=1e-3).fit(X)
    assert len(np.unique(estimator.predict(X))) == 3
    assert estimator.weights_[3:].sum() < 0.1


def test_the_bound_chooses_the_number_of_components():
    bounds = [mixture(n_components=k, max_iter=20).fit(X).lower_bound_ for k in (1, 3)]
    assert bounds[1] > bounds[0]


@pytest.mark.parametrize("hidden_layer_sizes", [(), (6,)])
def test_samples_come_from_the_components_they_are_labelled_with(hidden_layer_sizes):
    estimator = mixture(hidden_layer_sizes=hidden_layer_sizes).fit(X)
    draws, labels = estimator.sample(400)
    np.testing.assert_allclose(np.bincount(labels) / 400, estimator.weights_, atol=0.1)
    assert adjusted_rand_score(labels, estimator.predict(draws)) > 0.85


def test_inverse_transform_of_the_means_is_in_the_data(fitted):
    for centre, k in zip(fitted.inverse_transform(fitted.means_), range(3), strict=True):
        rows = X[fitted.predict(X) == k]
        assert np.abs(centre - rows.mean(0)).max() < 2


# ---- priors ----


def test_priors_are_used():
    """A prior of many pseudo-counts wins."""
    where = np.array([9.0, -9.0, 9.0])
    drawn = mixture(1, mean_prior=where, mean_precision_prior=1e6, max_iter=2).fit(X)
    np.testing.assert_allclose(drawn.means_[0], where, atol=0.5)
    tight = mixture(1, covariance_prior=1e4 * np.eye(3), degrees_of_freedom_prior=1e4).fit(X)
    np.testing.assert_allclose(tight.covariances_[0], np.eye(3), atol=0.2)
    even = mixture(3, weight_concentration_prior=1e6, max_iter=2).fit(X)
    np.testing.assert_allclose(even.weights_, 1 / 3, atol=1e-3)


def test_lists_are_arrays():
    lists = mixture(1, mean_prior=[0, 0, 0], covariance_prior=np.eye(3, dtype=int).tolist())
    arrays = mixture(1, mean_prior=np.zeros(3), covariance_prior=np.eye(3))
    assert_same_outputs(lists.fit(X), arrays.fit(X), X)


# ---- steering ----


@pytest.fixture
def untouched(fitted):
    """Check that what a test does to copies leaves the original alone."""
    before = outputs(fitted, X)
    yield fitted
    for name, value in outputs(fitted, X).items():
        np.testing.assert_array_equal(value, before[name])
    assert fitted.weights_.shape == (3,)


@pytest.mark.parametrize("k", [0, 1, np.int64(2)])
def test_remove_component(untouched, k):
    edited = untouched.remove_component(k)
    kept = [i for i in range(3) if i != k]
    np.testing.assert_allclose(edited.means_, untouched.means_[kept])
    np.testing.assert_allclose(edited.covariances_, untouched.covariances_[kept])
    weights = untouched.weights_[kept]
    np.testing.assert_allclose(edited.weights_, weights / weights.sum(), atol=1e-6)
    assert edited.predict_proba(X).shape == (len(X), 2)
    before, after = untouched.predict(X), edited.predict(X)
    elsewhere = before != k
    np.testing.assert_array_equal(np.array(kept)[after[elsewhere]], before[elsewhere])
    draws, labels = edited.sample(200)
    assert set(labels) == {0, 1}
    # Of the removed group there are no draws.
    assert np.mean(untouched.predict(draws) == k) < 0.03
    assert np.isfinite(edited.score(X))
    assert edited.get_params() == untouched.get_params()


def test_remove_all_but_one(untouched):
    edited = untouched.remove_component(2).remove_component(0)
    assert (edited.predict(X) == 0).all()
    np.testing.assert_allclose(edited.weights_, 1)
    with pytest.raises(ValueError, match="only component left"):
        edited.remove_component(0)


def test_move_component(untouched):
    k, other = 1, 0
    target = 2 * untouched.means_[k] - untouched.means_[other]
    edited = untouched.move_component(k, target.tolist())
    np.testing.assert_allclose(edited.means_[k], target)
    np.testing.assert_allclose(edited.means_[other], untouched.means_[other])
    np.testing.assert_allclose(edited.weights_, untouched.weights_)
    draws, labels = edited.sample(600)
    centre = edited.transform(draws[labels == k]).mean(0)
    gap = np.linalg.norm(target - untouched.means_[k])
    assert np.linalg.norm(centre - target) < 0.5 * gap
    # Rows that decode from the new place are assigned to the component that moved.
    assert edited.predict(untouched.inverse_transform([target]))[0] == k


def test_swapping_two_means_swaps_labels(untouched):
    first, second = untouched.means_[[0, 1]]
    swapped = untouched.move_component(0, second).move_component(1, first)
    before, after = untouched.predict(X), swapped.predict(X)
    assert np.mean(after[before == 0] == 1) > 0.9
    assert np.mean(after[before == 1] == 0) > 0.9


@pytest.mark.parametrize("k", [-1, 3, 1.0, "0", None])
def test_unknown_component(untouched, k):
    for edit in (untouched.remove_component, lambda k: untouched.move_component(k, np.zeros(3))):
        with pytest.raises(ValueError, match=r"k must be an integer from 0 to 2, got"):
            edit(k)


@pytest.mark.parametrize(
    "mean",
    [np.zeros(2), np.zeros((1, 3)), [0, np.nan, 0], [0, np.inf, 0], ["a", "b", "c"], None, 1],
)
def test_mean_of_a_wrong_kind(untouched, mean):
    with pytest.raises(ValueError, match=r"mean must hold finite numbers in shape \(3,\)"):
        untouched.move_component(0, mean)


def test_refit_mixture_follows_shifted_data():
    estimator = mixture().fit(X)
    networks = {
        name: value.copy()
        for name, value in estimator.model_state_.items()
        if name.startswith("networks.")
    }
    before, labels = estimator.weights_ @ estimator.means_, estimator.predict(X)
    expected = estimator.transform(X + 3.0).mean(0) - estimator.transform(X).mean(0)
    assert estimator.refit_mixture(X + 3.0) is estimator
    for name, value in networks.items():
        np.testing.assert_array_equal(estimator.model_state_[name], value)
    shift = estimator.weights_ @ estimator.means_ - before
    assert shift @ expected > 0.5 * expected @ expected
    assert np.mean(estimator.predict(X + 3.0) == labels) > 0.9


def test_refit_mixture_forgets_the_weights():
    """The rows of one group are all it sees."""
    estimator = mixture().fit(X)
    k = 1
    rows = X[estimator.predict(X) == k]
    estimator.refit_mixture(rows)
    assert estimator.weights_[k] > 0.8
    assert (estimator.predict(rows) == k).mean() > 0.9


def test_an_edited_copy_can_be_trained_further():
    edited = mixture(warm_start=True).fit(X).remove_component(2)
    before = edited.weights_
    edited.fit(X)
    assert edited.weights_.shape == (2,)
    assert np.abs(edited.weights_ - before).max() > 0
    edited.partial_fit(X)
    assert edited.weights_.shape == (2,)
    # A fit from scratch has all components again.
    assert edited.set_params(warm_start=False).fit(X).weights_.shape == (3,)


def test_components_of_partial_fit_keep_their_labels():
    """The light component grows heavy; labels must not change hands on the way."""
    heavy, light = X[LABELS == 0], X[LABELS == 2]
    estimator = mixture(n_components=2).partial_fit(np.concatenate([heavy, light]))
    label = estimator.predict(light)[0]
    for _ in range(10):
        estimator.partial_fit(np.repeat(light, 5, axis=0))
    assert (estimator.predict(light) == label).all()
