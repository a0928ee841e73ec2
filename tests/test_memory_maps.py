# SPDX-License-Identifier: BSD-3-Clause
"""Fits and predictions on memory maps: those of arrays, in memory that does not grow with rows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics
from sksvae.estimators import scaling as scaling_module
from sksvae.estimators.scaling import Scaling
from sksvae.likelihoods import base as likelihood_module
from sksvae.likelihoods import get_likelihood
from sksvae.sequence_objective import SequenceRows
from sksvae.stored_rows import StoredRows, StoredSequenceRows, is_memory_map

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
COMMON = {"latent_dim": 2, "hidden_layer_sizes": (5,), "max_iter": 2, "random_state": 0}
MIXTURE = SVAEGaussianMixture(2, pretraining_iter=1, n_starts=1, **COMMON)
LINEAR = SVAELinearDynamics(rows="consecutive", sequence_length=50, **COMMON)


def table(n_rows=600, n_features=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, n_features)) @ rng.standard_normal((n_features, n_features))
    return X + 4.0 * rng.integers(0, 2, (n_rows, 1))


@pytest.fixture
def stored(tmp_path):
    """Function that writes an array to a file and maps it, as users do."""

    def store(X):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, X)
        return np.load(path, mmap_mode="r")

    return store


@pytest.fixture
def small_pieces(monkeypatch):
    """What is computed of all rows takes many pieces."""
    monkeypatch.setattr(scaling_module, "PIECE", 300)
    monkeypatch.setattr(likelihood_module, "_AT_ONCE", 300)


def assert_same_fit(estimator, X, X_stored, **groups):
    """Fits are equal to the bit, but where matrix products of the same numbers are not.

    Those may differ in the last bit with the place in memory at which an array begins.
    """
    one = clone(estimator).fit(X, **groups)
    other = clone(estimator).fit(X_stored, **groups)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if X.dtype == np.float32 else {"rtol": 1e-10}
    np.testing.assert_array_equal(other.location_, one.location_, strict=True)
    np.testing.assert_array_equal(other.scale_, one.scale_, strict=True)
    np.testing.assert_allclose(other.lower_bounds_, one.lower_bounds_, **tolerance)
    for name, value in one.model_state_.items():
        limits = {"atol": 1e-12} | tolerance
        np.testing.assert_allclose(other.model_state_[name], value, **limits, err_msg=name)
    return one, other


# Fits equal those of arrays ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "dtype"),
    [
        (MIXTURE, np.float64),
        (clone(MIXTURE).set_params(early_stopping=True), np.float32),
        (VAE(**COMMON), np.float32),
        (VAE(early_stopping=True, **COMMON), np.float64),
    ],
    ids=str,
)
def test_rows_from_a_file_give_the_fit_of_the_array(estimator, dtype, stored, small_pieces):
    X = table().astype(dtype)
    assert_same_fit(estimator, X, stored(X))
    assert_same_fit(estimator, X[100:], stored(X)[100:])


def test_counts_from_a_file_stay_in_their_units(stored, small_pieces):
    X = np.random.default_rng(0).poisson(np.exp(table().clip(-2, 2))).astype(float)
    assert_same_fit(VAE(likelihood="poisson", **COMMON), X, stored(X))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_recording_from_a_file_gives_the_fit_of_the_array(early_stopping, stored, small_pieces):
    X = table(500)
    X[7], X[100:120, 2] = np.nan, np.nan
    estimator = clone(LINEAR).set_params(early_stopping=early_stopping)
    one, other = assert_same_fit(estimator, X, stored(X))
    groups = np.repeat(np.arange(10), 50)
    assert_same_fit(estimator, X, stored(X), groups=groups)
    np.testing.assert_allclose(other.transform(stored(X)), one.transform(X), atol=1e-8)
    refitted = [fitted.refit_dynamics(part) for fitted, part in ((one, X), (other, stored(X)))]
    matrices = [fitted.transition_matrix_ for fitted in refitted]
    np.testing.assert_allclose(*matrices, atol=1e-8)


def test_fits_on_files_begin_warm_and_take_parts(stored):
    X = table()
    estimators = [VAE(warm_start=True, **COMMON).fit(part).fit(part) for part in (X, stored(X))]
    assert estimators[1].lower_bound_ == pytest.approx(estimators[0].lower_bound_, rel=1e-10)
    for estimator, part in zip(estimators, (X, stored(X)), strict=True):
        estimator.partial_fit(part[:200])
    one, other = (estimator.lower_bound_ for estimator in estimators)
    assert other == pytest.approx(one, rel=1e-10)


def test_outputs_of_files_are_those_of_arrays(stored):
    X = table()
    estimator = clone(MIXTURE).fit(X)
    for name in ("predict", "predict_proba", "transform", "score_samples"):
        method = getattr(estimator, name)
        np.testing.assert_allclose(method(stored(X)), method(X), rtol=1e-10)


# Checks say the same -----------------------------------------------------------------------------


def test_errors_are_those_of_arrays(stored):
    X = table(80_000, 2)
    X[70_000, 1] = np.nan
    for given in (X, stored(X)):
        with pytest.raises(ValueError, match="Input X contains NaN"):
            VAE(**COMMON).fit(given)
    counts = np.zeros((80_000, 2))
    counts[70_000, 1], counts[75_000, 0] = 0.5, -1.0
    messages = []
    for given in (counts, stored(counts)):
        with pytest.raises(ValueError, match="in row 70000, column 1") as error:
            VAE(likelihood="poisson", **COMMON).fit(given)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_domain_is_checked_in_pieces(small_pieces):
    X = np.ones((500, 3))
    X[[400, 499], [2, 0]] = -1.0
    with pytest.raises(ValueError, match=r"2 value\(s\).*-1.0 in row 400, column 2.*gaussian"):
        get_likelihood("poisson").validate(X)


# Pieces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_scaling_in_pieces_is_that_of_the_whole(n_features, missing, monkeypatch):
    X = 1e5 + table(1000, n_features)
    if missing:
        X[50:400:3, 0], X[:, -1] = np.nan, np.where(X[:, -1] > 1e5, X[:, -1], np.nan)
    whole = Scaling.of(X, True)
    monkeypatch.setattr(scaling_module, "PIECE", 64)
    # NumPy adds up a single column pairwise.
    rtol = 1e-14 if n_features == 1 else 0
    for got, want in zip(Scaling.of(X, True), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol)


def read(values):
    tensor = torch.as_tensor(np.array(values))
    return tensor, tensor.nan_to_num(nan=0.0)


def test_rows_come_in_the_order_asked_for(stored):
    X = table(30)
    rows = StoredRows(stored(X), lambda values: SequenceRows(*read(values), None)[:2])
    some = rows.subset(torch.tensor([9, 3, 20, 4]))
    assert (len(rows), len(some), len(rows.encoded)) == (30, 4, 0)
    assert some.latent_shape == (4,)
    np.testing.assert_array_equal(some.take(torch.tensor([2, 0]))[0], X[[20, 9]])
    np.testing.assert_array_equal(torch.cat([part[0] for part in some.parts(3)]), X[[9, 3, 20, 4]])


def test_stored_sequences_are_those_in_memory(stored):
    X = table(60)
    X[5] = np.nan
    lengths = torch.tensor([20, 30, 10])
    in_memory = SequenceRows(*read(X), lengths)
    from_file = StoredSequenceRows(stored(X), read, lengths.cumsum(0) - lengths, lengths)
    windows = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 7, 1, 3]), torch.tensor([7, 13, 9, 27])
    uncut = torch.tensor([20, 9, 27])
    for rows in (in_memory, from_file):
        assert len(rows.windows(*windows)) == 56
    pairs = [[rows.windows(*windows).with_memory(uncut) for rows in (in_memory, from_file)]]
    pairs.append([rows.rejoined() for rows in pairs[0]])
    for one, other in pairs:
        assert one.latent_shape == other.latent_shape
        every = torch.arange(len(one.lengths)).flip(0)
        parts = [(one.take(every), other.take(every))]
        parts += zip(one.parts(30), other.parts(30), strict=True)
        for want, got in parts:
            for name in ("observed", "encoded", "lengths", "places"):
                np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        numbers = np.array([3, 55, 20, 19])
        for got, want in zip(other.steps(numbers), one.steps(numbers), strict=True):
            np.testing.assert_array_equal(got, want)


def test_only_what_a_file_holds_is_a_memory_map(stored):
    mapped = stored(table(10))
    assert is_memory_map(mapped)
    assert is_memory_map(np.asarray(mapped[2:5])[1:])
    for computed in (mapped[[1, 2]], mapped + 1.0, np.array(mapped), mapped.take([1], axis=0)):
        assert not is_memory_map(computed)


# Memory ------------------------------------------------------------------------------------------

MEASURED = """
import json, sys, threading, warnings
import numpy as np
from sksvae import SVAEGaussianMixture
warnings.simplefilter("ignore")

def anonymous():  # in MB; pages of files are not memory that is used up
    with open("/proc/self/status") as status:
        return int(status.read().split("RssAnon:")[1].split()[0]) / 1024

def watched(call):
    peak, over = [anonymous()], threading.Event()
    def watch():
        while not over.wait(0.01):
            peak.append(anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    call()
    over.set()
    thread.join()
    return max(peak)

rng, found = np.random.default_rng(0), []
for n_rows in (40_000, 400_000):
    path = f"{sys.argv[1]}/{n_rows}.npy"
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(n_rows, 32))
    for start in range(0, n_rows, 10_000):
        X[start : start + 10_000] = rng.standard_normal((10_000, 32))
    X = np.load(path, mmap_mode="r")
    model = SVAEGaussianMixture(
        1, latent_dim=2, hidden_layer_sizes=(), max_iter=1, batch_size=10_000, random_state=0)
    fit = watched(lambda: model.fit(X))
    found.append([fit, watched(lambda: model.predict(X))])
print(json.dumps(found))
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    status = Path("/proc/self/status")
    if not status.exists() or "RssAnon" not in status.read_text():
        pytest.skip("the system does not tell memory of the process from pages of files")
    command = [sys.executable, "-c", MEASURED, tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = np.array(json.loads(done.stdout))
    # Ten times the rows are 92 MB more in the file. What the allocator keeps varies by half that.
    assert (many - few < [75.0, 75.0]).all()
