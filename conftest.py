# SPDX-License-Identifier: BSD-3-Clause
"""Settings that have to be in place before the tests import NumPy, torch or matplotlib."""

import os

# One thread each: the workers of pytest-xdist use the cores, and sums are in a fixed order.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings  # noqa: E402

# The same examples in every run, and no failure because a machine is slow.
settings.register_profile("sksvae", deadline=None, derandomize=True)
settings.load_profile("sksvae")
