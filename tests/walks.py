# SPDX-License-Identifier: BSD-3-Clause
"""Walks in even steps, and what they are in curved coordinates."""

import numpy as np
import torch


def walk(dim, seed=0, n_sequences=60, n_steps=101, persistence=0.9, noise=0.005):
    """Steps of one size along one axis, which now and then turn; within walls."""
    rng = np.random.RandomState(seed)
    place = rng.uniform(-1, 1, (n_sequences, dim))
    drift = np.zeros_like(place)
    places = [place]
    for _ in range(n_steps - 1):
        turns = (rng.uniform(size=n_sequences) > persistence) | ~drift.any(1)
        fresh = 0.1 * np.eye(dim)[rng.randint(dim, size=n_sequences)]
        fresh *= rng.choice([-1.0, 1.0], n_sequences)[:, None]
        drift = np.where(turns[:, None], fresh, drift)
        drift = np.where(np.abs(place + drift) > 1.5, -drift, drift)
        place = place + drift + noise * rng.randn(*place.shape)
        places.append(place)
    return torch.tensor(np.stack(places, 1))


def warped(straight):
    """Steps of the first axis are eight times longer at the ends; the second axis is bent."""
    bent = straight.clone()
    bent[..., 0] += straight[..., 0] ** 3
    bent[..., 1:] += 0.3 * straight[..., :1].square()
    return bent


def unevenness(sequences):
    """Spread of the sizes of steps along each axis, of those that are along it, by their mean."""
    steps = sequences.diff(dim=1).flatten(0, 1)
    steps = (steps / steps.square().mean(0).sqrt()).abs()
    along = steps.argmax(1)
    sizes = [steps[along == axis, axis] for axis in range(steps.shape[1])]
    return max(float(size.std() / size.mean()) for size in sizes)
