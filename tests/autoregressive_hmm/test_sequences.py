# SPDX-License-Identifier: BSD-3-Clause
"""Arrangements of sequences in parts, and samples of them."""

import pytest
import torch

from sksvae.autoregressive_hmm import point_sequences
from sksvae.autoregressive_hmm.sequences import Stacking, as_double

from . import cases

LENGTHS = [7, 1, 4, 4, 9, 1]


def numbered(lengths):
    return torch.arange(2.0 * sum(lengths), dtype=torch.float64).view(-1, 2)


@pytest.mark.parametrize("max_rows", [1, 8, 1000])
def test_points_are_found_again(max_rows):
    points = numbered(LENGTHS)
    sequences = point_sequences(points, LENGTHS, max_rows)
    assert torch.equal(sequences.stack([part.mean for part in sequences.parts]), points)
    for part, rows in zip(sequences.parts, sequences.rows, strict=True):
        assert torch.equal(part.mask, rows >= 0)
        assert not part.mean[~part.mask].any()
        assert part.mask.numel() <= max_rows or len(part.mask) == 1
        assert part.lag_covariance.shape == (len(rows), rows.shape[1] - 1, 2, 2)
        assert part.covariance.untyped_storage().nbytes() == 8


def test_lengths_have_to_fit():
    for lengths in ([3, 2], [4, 0], []):
        with pytest.raises(ValueError, match="sum to the number of points, 4"):
            point_sequences(torch.zeros(4, 2), lengths)


def test_the_stacking_does_not_depend_on_the_grouping():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(sum(LENGTHS), 2, generator=generator, dtype=torch.float64)
    ways = [point_sequences(points, LENGTHS, max_rows).parts for max_rows in (1, 8, 1000)]
    ways.append(ways[0][::-1])
    stackings = [Stacking.of(parts) for parts in ways]
    for stacking in stackings[1:]:
        assert torch.equal(stacking.means, stackings[0].means)
    first, last = stackings[0].bounds
    assert first.tolist() == [0, 1] + [2] * 4 + [6] * 4 + [10] * 7 + [17] * 9
    assert last.tolist() == [0, 1] + [5] * 4 + [9] * 4 + [16] * 7 + [25] * 9


def test_windows_are_cut_out_of_the_moments():
    parts = [as_double(cases.random_posteriors(n, seed=len(n))) for n in ([9, 4], [12])]
    generator = torch.Generator().manual_seed(0)
    windows = Stacking.of(parts).sample(parts, 25, 5, generator)
    assert sum(int(part.mask.sum()) for part in windows) == 25
    whole = {tuple(z.tolist()): (p, b, t) for p, b, t, z in each_step(parts)}
    for w, b, t, z in each_step(windows):
        p, chain, step = whole[tuple(z.tolist())]
        assert torch.equal(windows[w].covariance[b, t], parts[p].covariance[chain, step])
        if t + 1 < windows[w].mask[b].sum():
            lag = parts[p].lag_covariance[chain, step]
            assert torch.equal(windows[w].lag_covariance[b, t], lag)


def test_a_sample_respects_its_limits():
    parts = point_sequences(numbered([50, 30, 2]), [50, 30, 2]).parts
    windows = Stacking.of(parts).sample(parts, 33, 10, torch.Generator().manual_seed(1))
    assert 20 < sum(int(part.mask.sum()) for part in windows) <= 33
    assert max(part.mask.shape[1] for part in windows) <= 10
    assert all(part.covariance.untyped_storage().nbytes() == 8 for part in windows)


def each_step(parts):
    for p, part in enumerate(parts):
        for b, t in part.mask.nonzero().tolist():
            yield p, b, t, part.mean[b, t]
