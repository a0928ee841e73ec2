# SPDX-License-Identifier: BSD-3-Clause
"""Threads of torch during a fit, and after it."""

import numpy as np
import pytest
import torch

from sksvae import SVAEGaussianMixture, SVAELinearDynamics
from sksvae.estimators.threads import threads_that_pay

X = np.random.default_rng(0).normal(size=(40, 3))


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Watch:
    """Callback that notes the number of threads."""

    def __init__(self):
        self.seen = set()

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, **kwargs):
        pass

    def on_fit_task_end(self, estimator, context, **kwargs):
        self.seen.add((context.task_name, torch.get_num_threads()))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "estimator",
    [SVAEGaussianMixture(2, max_iter=1), SVAELinearDynamics(2, max_iter=1, rows="consecutive")],
    ids=lambda estimator: type(estimator).__name__,
)
def test_small_batches_train_on_one_thread(four_threads, estimator):
    watch = Watch()
    estimator.set_callbacks(watch).fit(X)
    assert ("epoch", 1) in watch.seen
    assert ("epoch", 4) not in watch.seen
    assert torch.get_num_threads() == 4
    estimator.partial_fit(X)
    assert torch.get_num_threads() == 4


def test_threads_are_given_back_after_an_error(four_threads):
    with pytest.raises(ValueError, match="NaN"):
        SVAEGaussianMixture(2).fit(np.full((4, 2), np.nan))
    with pytest.raises(KeyError), threads_that_pay("cpu", 10, (2, 3)):
        raise KeyError
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("device", "n_rows", "n_threads"), [("cpu", 100, 1), ("cpu", 10**4, 4), ("cuda", 100, 4)]
)
def test_large_batches_and_accelerators_keep_all(four_threads, device, n_rows, n_threads):
    with threads_that_pay(device, n_rows, (200, 100, 5)):
        assert torch.get_num_threads() == n_threads
