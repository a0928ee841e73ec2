# SPDX-License-Identifier: BSD-3-Clause
"""Sequences in all their forms, windows of them, and whether the order of rows tells anything."""

from sksvae.sequences.axis_order import from_channels_first
from sksvae.sequences.forms import Sequences, SequenceWarning, read_sequences
from sksvae.sequences.serial_dependence import SerialDependence, serial_dependence
from sksvae.sequences.windows import Windows, split_sequences

__all__ = [
    "SequenceWarning",
    "Sequences",
    "SerialDependence",
    "Windows",
    "from_channels_first",
    "read_sequences",
    "serial_dependence",
    "split_sequences",
]
