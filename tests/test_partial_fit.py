# SPDX-License-Identifier: BSD-3-Clause
"""Training in parts: how good it gets, how steps shrink, and what survives between calls."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.datasets import make_pinwheel, make_switching_oscillator
from sksvae.training import Trainer

from .estimators.cases import assert_same_attributes

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = make_pinwheel(560, n_arms=5, random_state=0)[0]
X = X[np.random.default_rng(0).permutation(len(X))]
TRAINING, HELD_OUT = X[:2400], X[2400:]
SEQUENCES = make_switching_oscillator(48, random_state=0)[0][:, :50]


def quick(n_components=6, **params):
    quickly = {"hidden_layer_sizes": (10,), "n_starts": 2, "pretraining_iter": 0, "random_state": 0}
    return SVAEGaussianMixture(n_components, **(quickly | {"batch_size": 100} | params))


def in_parts(estimator, parts, n_passes, seed=0):
    """Give parts to partial_fit, after the first pass in random order."""
    rng = np.random.default_rng(seed)
    for i in range(n_passes):
        for part in rng.permutation(len(parts)) if i else range(len(parts)):
            estimator.partial_fit(parts[part])
    return estimator


# ---- quality ----


def test_parts_of_a_memory_map_are_as_good_as_all_rows_at_once(tmp_path):
    """Within 0.05 nats per row, on rows that were held out."""
    np.save(tmp_path / "rows.npy", TRAINING)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    parts = [rows[start : start + 600] for start in range(0, 2400, 600)]
    assert all(isinstance(part, np.memmap) for part in parts)
    online = in_parts(quick(total_samples=len(rows)), parts, 7)
    at_once = quick(max_iter=7, tol=0).fit(TRAINING)
    assert online.score(HELD_OUT) > at_once.score(HELD_OUT) - 0.05


def test_parts_of_sequences_are_as_good_as_all_at_once():
    dynamics = SVAELinearDynamics(
        3,
        hidden_layer_sizes=(5,),
        batch_size=200,
        transition_precision_prior=0.1,
        noise_covariance_prior=0.01,
        random_state=0,
    )
    parts = np.split(SEQUENCES[:40], 4)
    online = in_parts(clone(dynamics).set_params(total_samples=2000), parts, 10)
    at_once = dynamics.set_params(max_iter=10, tol=0).fit(SEQUENCES[:40])
    assert online.score(SEQUENCES[40:]) > at_once.score(SEQUENCES[40:]) - 0.05


# ---- weights ----


def count(estimator):
    """Rows that q(theta) is about."""
    state = estimator.model_state_
    name = "graphical.{}.concentration"
    return (state[name.format("posterior")] - state[name.format("prior")]).sum()


def test_q_theta_is_about_all_rows_from_the_first_call_on():
    online = quick(total_samples=600).partial_fit(TRAINING[:150])
    assert count(online) == pytest.approx(600, rel=1e-6)
    for _ in range(3):
        online.partial_fit(TRAINING[150:300])
        assert count(online) == pytest.approx(600, rel=1e-6)
    assert online.n_samples_seen_ == 600
    # It can be no less than what there is.
    assert count(quick(total_samples=1).partial_fit(TRAINING[:150])) == pytest.approx(150, rel=1e-6)


def test_rows_that_come_again_are_no_more_rows():
    online = quick(total_samples=150)
    bounds = [online.partial_fit(TRAINING[:150]).history_["global_kl"][-1] for _ in range(8)]
    assert count(online) == pytest.approx(150, rel=1e-6)
    assert bounds[-1] > 0.5 * bounds[0]


# ---- steps ----


def recorded(monkeypatch):
    """Rates of Adam and of q(theta), relative to the number of rows, in each step."""
    plain, rates = Trainer.step, []

    def step(self, rows, step_size):
        adam = [group["lr"] for group in self.optimizer.param_groups]
        rates.append((adam[0], step_size * self.n_rows / len(rows)))
        return plain(self, rows, step_size)

    monkeypatch.setattr(Trainer, "step", step)
    return rates


def test_steps_shrink_with_the_passes_over_all_rows(monkeypatch):
    rates = recorded(monkeypatch)
    online = quick(total_samples=100, learning_rate_init=0.02, batch_size=100)
    seen = 0
    for size in (50, 100, 50, 100):
        online.partial_fit(TRAINING[:size])
        factor = 1 / (1 + seen / 100 / 10)
        assert rates[-1] == pytest.approx((0.02 * factor, 0.1 * factor))
        seen += size


def test_without_a_total_all_rows_are_new(monkeypatch):
    rates = recorded(monkeypatch)
    online = quick(learning_rate_init=0.02, batch_size=100)
    for calls in range(4):
        online.partial_fit(TRAINING[:100])
        factor = 1 / (1 + calls / (calls + 1) / 10)
        assert rates[-1] == pytest.approx((0.02 * factor, 0.1 * factor))


def test_long_sequences_are_cut(monkeypatch):
    seen = []
    plain = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, rows, size: seen.append(rows) or plain(self, rows, size)
    )
    dynamics = SVAELinearDynamics(2, hidden_layer_sizes=(), batch_size=50, sequence_length=20)
    dynamics.partial_fit(SEQUENCES[:3])
    assert len(seen) == 3
    assert max(int(rows.lengths.max()) for rows in seen) <= 20
    assert sum(len(rows) for rows in seen) == 150


# ---- persistence ----


@pytest.mark.parametrize(
    ("estimator", "parts"),
    [
        (VAE(2, hidden_layer_sizes=(5,), random_state=0), np.split(TRAINING[:600], 6)),
        (quick(), np.split(TRAINING[:600], 6)),
        (
            SVAELinearDynamics(2, hidden_layer_sizes=(5,), random_state=0),
            np.split(SEQUENCES[:20], 5),
        ),
        (
            SVAESwitchingLDS(
                2,
                latent_dim=2,
                n_starts=1,
                hidden_layer_sizes=(),
                total_samples=1000,
                random_state=0,
            ),
            np.split(SEQUENCES[:20], 5),
        ),
    ],
    ids=["VAE", "mixture", "linear dynamics", "switching dynamics"],
)
def test_an_estimator_may_be_pickled_between_calls(estimator, parts):
    stays, travels = clone(estimator), clone(estimator)
    for part in parts[:3]:
        stays.partial_fit(part)
        travels = pickle.loads(pickle.dumps(travels)).partial_fit(part)
    assert_same_attributes(stays, travels)
