# SPDX-License-Identifier: BSD-3-Clause
"""Times, stretches of states, and fewer points that look the same."""

import datetime
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.dates import date2num
from numpy.testing import assert_allclose, assert_array_equal

from sksvae.plotting._timeline import bin_edges, bin_means, envelope, runs, timeline, visible_runs


@given(hnp.arrays(int, st.integers(1, 60), elements=st.integers(0, 3)))
def test_runs_make_up_the_labels(labels):
    found = runs(labels)
    assert_array_equal(np.repeat(found.labels, found.stops - found.starts), labels)
    assert np.all(found.labels[1:] != found.labels[:-1])


@given(hnp.arrays(int, st.integers(1, 60), elements=st.integers(0, 3)), st.integers(1, 10))
def test_visible_runs_are_exact_or_of_the_most_frequent_in_bins(labels, n_bins):
    found = visible_runs(labels, n_bins)
    drawn = np.repeat(found.labels, found.stops - found.starts)
    assert drawn.size == labels.size
    if runs(labels).starts.size <= n_bins:
        assert_array_equal(drawn, labels)
        return
    edges = bin_edges(labels.size, n_bins)
    for start, stop in itertools.pairwise(edges):
        counts = np.bincount(labels[start:stop], minlength=4)
        assert np.all(drawn[start:stop] == drawn[start])
        assert counts[drawn[start]] == counts.max()


def test_the_envelope_keeps_every_extreme(rng):
    values = rng.normal(size=(10_000, 2))
    values[7000:7100] = np.nan
    times, ends = envelope(np.arange(10_000.0), values, n_bins=50)
    assert ends.shape == (100, 2)
    blocks = values.reshape(50, 200, 2)
    assert_array_equal(ends[0::2], np.nanmin(blocks, axis=1))
    assert_array_equal(ends[1::2], np.nanmax(blocks, axis=1))
    assert_allclose(times[::2], np.arange(50) * 200 + 99.5)
    assert_array_equal(times[::2], times[1::2])


def test_few_steps_and_missing_bins_are_kept():
    values = np.arange(6.0)[:, None]
    assert envelope(np.arange(6.0), values, n_bins=3)[1] is values
    values = np.array([[1.0], [3.0], [np.nan], [np.nan], [4.0], [np.nan]])
    assert_array_equal(bin_means(values, n_bins=3), [[2.0], [np.nan], [4.0]])
    assert bin_means(values, n_bins=6) is values


def test_steps_meet_halfway():
    line = timeline([0.0, 1.0, 3.0], 3)
    assert_array_equal(line.edges, [-0.5, 0.5, 2.0, 4.0])
    assert_array_equal(line.part(1, 3).edges, [0.5, 2.0, 4.0])
    assert_array_equal(timeline(None, 1).edges, [-0.5, 0.5])


@pytest.mark.parametrize(
    "times",
    [
        np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"),
        [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2)],
        [datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)],
    ],
)
def test_dates_are_matplotlibs_days(times):
    line = timeline(times, 2)
    assert line.are_dates
    assert_allclose(line.points, date2num(times))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 1.0], r"times must have shape \(3,\), got \(2,\)"),
        ([0.0, 2.0, 1.0], "times must increase from step to step"),
        ([0.0, np.nan, 1.0], "times must increase from step to step"),
    ],
)
def test_times_that_cannot_be(times, message):
    with pytest.raises(ValueError, match=message):
        timeline(times, 3)
