# SPDX-License-Identifier: BSD-3-Clause
"""Rows in their order: whether it carries information."""

from sksvae.sequences.serial_dependence import SerialDependence, serial_dependence

__all__ = ["SerialDependence", "serial_dependence"]
