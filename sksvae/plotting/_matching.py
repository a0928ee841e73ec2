# SPDX-License-Identifier: BSD-3-Clause
"""True states in the numbers, and so the colours, of the states that they match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sksvae.metrics import match_labels


def match_truth(
    states: Sequence[np.ndarray], true_states: Sequence[np.ndarray], n_states: int
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Rename true states by the best one-to-one matching over all sequences.

    Parameters
    ----------
    states : sequence of ndarray of int of shape (n_timesteps,)
        States of each sequence.
    true_states : sequence of ndarray of shape (n_timesteps,)
        True states of each, of any kind.
    n_states : int
        Number of states. True states that match none are numbered from there.

    Returns
    -------
    matched : list of ndarray of int
        True states of each sequence, renamed.
    names : dict of int to str
        What the true states of each number were called.
    """
    predicted, truth = np.concatenate(states), np.concatenate(true_states)
    classes, codes = np.unique(truth, return_inverse=True)
    renamed = match_labels(predicted, codes).astype(np.int64)
    # Those left over follow the largest number in use; states that are not in use come before.
    renamed = np.where(renamed > predicted.max(), renamed + n_states - 1 - predicted.max(), renamed)
    first = {int(number): str(classes[code]) for number, code in zip(renamed, codes, strict=True)}
    return np.split(renamed, np.cumsum([len(part) for part in states])[:-1]), first
