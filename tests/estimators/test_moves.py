# SPDX-License-Identifier: BSD-3-Clause
"""Components that go in training: those beyond n_components, and those the bound does not need."""

import numpy as np
import pytest
import torch

from sksvae import SVAEGaussianMixture
from sksvae.datasets import make_pinwheel
from sksvae.estimators.moves import removal_moves, remove_down_to
from sksvae.objective import Rows

from ..models import LATENT_DIM, data, linear_model, mixture
from .cases import blobs, quick

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def moves_for(model, rows, **settings):
    settings = {"n_components": 2, "prune": False, "max_iter": 40} | settings
    return removal_moves(model, rows, random_state=np.random.RandomState(0), **settings)


def test_extra_components_go_at_a_steady_pace_in_the_first_half():
    model, rows = linear_model(mixture(6))[0], data(50)
    move = moves_for(model, rows)
    left, busy = [], []
    for epoch in range(40):
        busy.append(move(epoch))
        left.append(model.graphical.n_components)
    assert left[0] == 6
    assert set(np.diff(left)) == {0, -1}
    assert left[15] > 2
    assert left[20:] == [2] * 20
    assert busy == [n > 2 for n in left]


def test_what_the_bound_misses_least_goes_first():
    model, rows = linear_model(mixture(3, certainty=100.0, spread=4.0))[0], data(40)
    weights = model.graphical.posterior.weights.concentration
    weights[1] = 1e-3  # hardly any prior weight: no row goes there
    means = model.graphical.posterior.components.mean
    remove_down_to(model, rows, 2)
    torch.testing.assert_close(
        model.graphical.posterior.components.mean[:, 0].sort().values,
        means[[0, 2], 0].sort().values,
        atol=1e-9,
        rtol=0.0,
    )


def test_pruning_leaves_what_the_rows_need():
    """All rows are alike, up to a little noise: one component is enough for them."""
    model = linear_model(mixture(4))[0]
    row = data(1)
    noise = 0.1 * torch.randn(
        200, *row.encoded.shape[1:], generator=torch.Generator(), dtype=torch.float64
    )
    rows = Rows(row.observed + noise, row.encoded + noise)
    for prune, n_left in ((False, 4), (True, 1)):
        move = moves_for(model, rows, n_components=4, prune=prune)
        assert move(0) is False
        assert model.graphical.n_components == n_left


def test_many_rows_are_judged_by_a_sample(monkeypatch):
    monkeypatch.setattr("sksvae.estimators.start._SAMPLE_ROWS", 30)
    model, rows = linear_model(mixture(5))[0], data(100)
    sizes = []
    encode = type(model).encode
    monkeypatch.setattr(
        type(model), "encode", lambda self, rows: sizes.append(len(rows)) or encode(self, rows)
    )
    remove_down_to(model, rows, 3)
    assert model.graphical.n_components == 3
    assert model.graphical.latent_dim == LATENT_DIM
    assert set(sizes) == {30}


@pytest.mark.parametrize("max_iter", [1, 2, 30])
def test_a_fit_ends_with_the_number_asked_for(max_iter):
    X = blobs(20, n_blobs=3)[0]
    estimator = quick(
        SVAEGaussianMixture,
        n_components=3,
        n_starting_components=8,
        prune=False,
        max_iter=max_iter,
        tol=100.0,
        n_iter_no_change=1,
    ).fit(X)
    assert estimator.n_components_ == 3
    assert estimator.means_.shape[0] == 3
    # An improvement below tol ends training, but not before the last removal.
    assert estimator.n_iter_ >= 1 + max_iter // 2


def test_partial_fit_begins_with_the_number_asked_for():
    estimator = quick(SVAEGaussianMixture, n_components=2, n_starting_components=6)
    assert estimator.partial_fit(blobs()[0]).n_components_ == 2


def test_bad_numbers_of_components_are_named():
    X = blobs()[0]
    with pytest.raises(ValueError, match="n_starting_components=2 must be at least n_components=3"):
        quick(SVAEGaussianMixture, n_components=3, n_starting_components=2).fit(X)
    with pytest.raises(ValueError, match="n_starting_components=99 needs at least as many samples"):
        quick(SVAEGaussianMixture, n_components=3, n_starting_components=99).fit(X)


def test_many_rows_are_searched_by_a_sample_that_stands_for_all(monkeypatch):
    """One step of training cannot make up for a mixture that counts the sample alone."""
    X = blobs(40, n_blobs=2)[0]
    concentrations = []
    for n_sample in (10_000, 30):
        monkeypatch.setattr("sksvae.estimators.start._SAMPLE_ROWS", n_sample)
        fit = quick(SVAEGaussianMixture, n_components=2, max_iter=1, prune=False).fit(X)
        model = fit._rebuild()
        concentrations.append(float(model.graphical.posterior.weights.concentration.sum()))
    assert concentrations == pytest.approx([len(X) + 1.0] * 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_strongly_curved_arms_keep_a_component_each(seed):
    """Where the mixture that starts with five has been seen to let two arms share one."""
    X, y = make_pinwheel(100, rate=0.35, random_state=seed)
    estimator = SVAEGaussianMixture(5, n_starting_components=10, max_iter=100, random_state=seed)
    labels = estimator.fit_predict(X)
    table = np.zeros((5, 5))
    np.add.at(table, (y, labels), 1)
    assert (table.max(1) > 80).all()
    assert sorted(table.argmax(1)) == [0, 1, 2, 3, 4]
