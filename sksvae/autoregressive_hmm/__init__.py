# SPDX-License-Identifier: BSD-3-Clause
"""Bayesian autoregressive hidden Markov models on latents, the start of switching dynamics.

Latents are points, or known by their moments; there are no networks and no observations here. That
is what switching linear dynamics are once the latents are given, and fast to fit from many starts:
`fit_autoregressive_hmm`.
"""

from sksvae.autoregressive_hmm.fit import (
    AutoregressiveHMM,
    fit_autoregressive_hmm,
    prune_states,
)
from sksvae.autoregressive_hmm.sequences import PointSequences, point_sequences
from sksvae.autoregressive_hmm.starts import choose_prior

__all__ = [
    "AutoregressiveHMM",
    "PointSequences",
    "choose_prior",
    "fit_autoregressive_hmm",
    "point_sequences",
    "prune_states",
]
