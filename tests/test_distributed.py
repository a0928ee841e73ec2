# SPDX-License-Identifier: BSD-3-Clause
"""Two processes train as one does: they run this file, and leave what they have seen."""

import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.distributed import Process, current_process, data_parallel
from sksvae.objective import Rows, StructuredVAE
from sksvae.sequence_objective import SequenceRows

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(not dist.is_available(), reason="torch comes without torch.distributed"),
]

QUICK = {"hidden_layer_sizes": (5,), "tol": 0.0, "random_state": 0}


def rows(n_rows=42):
    rng = np.random.default_rng(0)
    centers = 3 * rng.normal(size=(3, 3))
    return centers[np.arange(n_rows) % 3] + rng.normal(size=(n_rows, 3))


def sequences(lengths=(25, 12, 20, 7)):
    rng = np.random.default_rng(1)
    steps = np.arange(sum(lengths))
    waves = np.stack([np.sin(steps / 3), np.cos(steps / 3), np.sin(steps / 3 + 1)], 1)
    waves[steps % 24 > 12] *= 0.3
    stacked = waves + 0.1 * rng.normal(size=waves.shape)
    stacked[5, 1] = np.nan
    return np.split(stacked, np.cumsum(lengths)[:-1])


def mixture(n_rows=42, **parameters):
    quick = {"n_starts": 1, "pretraining_iter": 2, "max_iter": 3, "batch_size": 15}
    return SVAEGaussianMixture(3, **QUICK | quick | parameters).fit(rows(n_rows))


def linear(**parameters):
    quick = {"max_iter": 3, "sequence_length": 10, "batch_size": 30}
    return SVAELinearDynamics(2, **QUICK | quick | parameters)


def in_parts():
    model = VAE(2, batch_size=6, **QUICK)
    return model.partial_fit(rows(20)).partial_fit(rows())


def long_chains():
    # Few long chains: the order of elimination is that of the whole minibatch.
    return linear(sequence_length=130, batch_size=400, max_iter=2).fit(sequences((130, 130, 122)))


def switching():
    quick = {"latent_dim": 2, "n_starts": 1, "max_iter": 3, "sequence_length": 8, "batch_size": 24}
    return SVAESwitchingLDS(2, **QUICK | quick).fit(sequences())


FITS = {
    "mixture": mixture,
    "biased, of one row each": lambda: mixture(
        9, beta=2.0, capacity=0.5, batch_size=1, pretraining_iter=1, max_iter=1
    ),
    "early stopping, two runs": lambda: mixture(
        early_stopping=True, n_init=2, pretraining_iter=1, max_iter=2, n_draws=2
    ),
    "float32": lambda: VAE(2, max_iter=2, **QUICK).fit(rows().astype(np.float32)),
    "in parts": in_parts,
    "linear dynamics": lambda: linear().fit(sequences()),
    "one sequence each": lambda: linear(batch_size=1, max_iter=1).fit(sequences()),
    "long chains": long_chains,
    "switching": switching,
}


def learned(model):
    fitted = {f"history.{name}": values for name, values in model.history_.items()}
    return fitted | model.model_state_ | {"lower_bound_": np.array(model.lower_bound_)}


class StopsOnOneProcess:
    """A callback that only the last process listens to."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        last = current_process().rank == current_process().size - 1
        return last and context.task_name == "epoch" and context.task_id == 1

    def teardown(self, estimator, context):
        pass


# What the processes do ---------------------------------------------------------------------------


def message(function):
    """Error of a fit, which the others must have too."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return "no error"


def spoiled(patch, rank):
    """Message of a fit whose objective fails in one process only."""
    elbo = StructuredVAE.elbo

    def spoiled_elbo(self, *args):
        return patch(elbo(self, *args)) if rank == 1 else elbo(self, *args)

    StructuredVAE.elbo = spoiled_elbo
    try:
        return message(lambda: VAE(2, max_iter=2, **QUICK).fit(rows()))
    finally:
        StructuredVAE.elbo = elbo


def not_finite(terms):
    terms.reconstruction.data[2:5] = torch.nan
    return terms


def no_inference(terms):
    raise torch.linalg.LinAlgError("nothing is positive definite")


def no_inference_at_the_end(terms):
    return terms if terms.reconstruction.requires_grad else no_inference(terms)


def observe(rank):
    seen = {"fits": {name: learned(fit()) for name, fit in FITS.items()}}
    seen["no seed"] = learned(VAE(2, max_iter=2, **QUICK | {"random_state": None}).fit(rows()))
    stopping = VAE(2, max_iter=5, **QUICK).set_callbacks(StopsOnOneProcess())
    seen["epochs"] = stopping.fit(rows()).n_iter_
    seen["X"] = message(lambda: VAE(2, **QUICK).fit(rows() + rank))
    seen["groups"] = message(lambda: linear().fit(sequences((25, 12 + rank, 20 - rank, 7))))
    seen["parameters"] = message(
        lambda: VAE(2 + rank, **QUICK | {"random_state": rank}).fit(rows())
    )
    seen["not finite"] = spoiled(not_finite, rank)
    seen["no inference"] = spoiled(no_inference, rank)
    seen["no inference at the end"] = spoiled(no_inference_at_the_end, rank)
    return seen


def main(folder):
    warnings.simplefilter("ignore", ConvergenceWarning)
    with data_parallel() as process:
        seen = observe(process.rank)
    seen["left"] = dist.is_initialized() and current_process().size == 1
    try:
        with data_parallel():
            if process.rank == 1:
                raise KeyError("only here")
            VAE(2, **QUICK).fit(rows())
    except (KeyError, RuntimeError) as error:
        seen["ended"] = type(error), dist.is_initialized()
    store = {"init_method": f"file://{folder}/store", "rank": process.rank, "world_size": 2}
    dist.init_process_group("gloo", **store)
    with data_parallel() as process:
        seen["again"] = learned(FITS["float32"]())
    seen["kept"] = dist.is_initialized()
    dist.destroy_process_group()
    joblib.dump(seen, Path(folder) / f"{process.rank}.joblib")


# What is expected of them ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # A free port on this machine is all the network that it needs.
    done = subprocess.run(
        [*command, __file__, folder], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [joblib.load(folder / f"{rank}.joblib") for rank in (0, 1)]


def check_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name], equal_nan=True), name


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_two_processes_fit_as_one_does(seen, name):
    first, second = (learned_by["fits"][name] for learned_by in seen)
    check_equal(first, second)
    alone = learned(FITS[name]())
    assert alone.keys() == first.keys()
    rtol = 1e-3 if name == "float32" else 1e-8
    for key, value in alone.items():
        largest = np.abs(value).max(initial=0.0, where=~np.isnan(value))
        assert_allclose(first[key], value, rtol=rtol, atol=rtol * largest, err_msg=key)


@pytest.mark.slow
def test_one_seed_for_all(seen):
    check_equal(seen[0]["no seed"], seen[1]["no seed"])


@pytest.mark.slow
def test_a_group_that_exists_is_used_and_kept(seen):
    for ours in seen:
        assert ours["left"]
        assert ours["kept"]
        check_equal(ours["again"], ours["fits"]["float32"])


@pytest.mark.slow
def test_a_callback_of_one_process_stops_all(seen):
    assert [ours["epochs"] for ours in seen] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("X", "X of the 2 processes of data_parallel differ"),
        ("groups", "X of the 2 processes of data_parallel differ"),
        ("parameters", "latent_dim and random_state of the 2 processes"),
        ("not finite", "not finite for 3 of 42 rows of a minibatch"),
        ("no inference", "local inference failed, since nothing is positive definite"),
        ("no inference at the end", "at its end local inference fails"),
    ],
)
def test_an_error_in_one_process_is_raised_in_both(seen, name, wanted):
    first, second = (ours[name] for ours in seen)
    if name == "no inference":
        assert "local inference failed, in another process" in first
    else:
        assert first == second
    assert wanted in second


@pytest.mark.slow
def test_a_process_that_leaves_with_an_error_ends_the_other(seen):
    assert [ours["ended"] for ours in seen] == [(RuntimeError, False), (KeyError, False)]


# One process -------------------------------------------------------------------------------------


def test_one_process_alone_changes_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = learned(FITS["float32"]())
    with data_parallel() as process:
        assert type(process) is Process
        assert (process.rank, process.size) == (0, 1)
        check_equal(learned(FITS["float32"]()), before)
    assert not dist.is_initialized()


@pytest.mark.parametrize("n_rows", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_make_up_the_rows(n_rows, size):
    x = torch.arange(float(n_rows)).unsqueeze(1)
    noise = x.expand(4, -1, -1)
    shares = [Rows(x, x).share(rank, size, noise) for rank in range(size)]
    sizes = [0 if share is None else len(share) for share, _ in shares]
    assert max(sizes) - min(sizes) <= 1
    for share, part in shares:
        if share is not None:
            assert torch.equal(part, share.observed.expand(4, -1, -1))
    assert torch.equal(torch.cat([share.observed for share, _ in shares if share is not None]), x)


def test_shares_of_sequences_have_about_as_many_steps():
    lengths = torch.tensor([3, 9, 2, 8, 7, 1])
    x = torch.arange(30.0).unsqueeze(1)
    batch = SequenceRows(x, x, lengths).with_memory()
    noise = torch.arange(6.0)[None, :, None, None].expand(1, 6, 9, 2)
    shares = [batch.share(rank, 2, noise) for rank in (0, 1)]
    assert [len(share) for share, _ in shares] == [18, 12]
    assert shares[0][0].lengths.tolist() == [9, 7, 2]
    assert shares[0][1][0, :, 0, 0].tolist() == [1, 4, 2]
    for share, _ in shares:
        assert share.latent_shape == (3, 9)  # padded as the whole
        assert share.mask.shape == (3, 9)
    assert sorted(torch.cat([share.places for share, _ in shares]).tolist()) == list(range(30))
    assert SequenceRows(x[:3], x[:3], lengths[:1]).share(1, 2, noise[:, :1])[0] is None


def test_what_one_process_remembers_is_told_to_the_others():
    x = torch.zeros(6, 1)
    batch = SequenceRows(x, x, torch.tensor([2, 4])).with_memory()
    assert batch.remembered(batch) == []
    noise = torch.zeros(1, 2, 4, 2)
    shares = [batch.share(rank, 2, noise)[0] for rank in (0, 1)]
    assert batch.remembered(shares[0]) == []  # nothing so far
    states = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    told = []
    for share in (*shares, None):
        batch.memory.states = states.clone()
        others = torch.ones(6, dtype=torch.bool)
        if share is not None:
            others[share.places] = False
        batch.memory.states[others] = torch.nan
        told += batch.remembered(share)
    batch.remind([sum(told)])
    assert torch.equal(batch.memory.states, states)


if __name__ == "__main__":
    main(sys.argv[1])
