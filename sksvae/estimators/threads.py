# SPDX-License-Identifier: BSD-3-Clause
"""How many threads of torch training uses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch

# Multiplications of one product of matrices, below which a second thread costs more than it gives:
# a fit of 13,000 x 12 rows took 92 s with one thread and 152 s with two.
_WORTH_SHARING = 10**8


@contextmanager
def threads_that_pay(device: str, n_rows: int, widths: Sequence[int]) -> Iterator[None]:
    """Leave torch one thread while single operations are small.

    Training is thousands of operations on minibatches, one after the other; each that is shared
    among threads waits for all of them. Where that does not pay, other cores are free for other
    fits, of a grid search for instance.

    Parameters
    ----------
    device : str
        Where the model is; nothing changes on accelerators.
    n_rows : int
        Rows of a minibatch.
    widths : sequence of int
        Widths of the layers in their order.

    Examples
    --------
    >>> import torch
    >>> from sksvae.estimators.threads import threads_that_pay
    >>> with threads_that_pay("cpu", n_rows=200, widths=(64, 100, 10)):
    ...     torch.get_num_threads()
    1
    """
    n_threads = torch.get_num_threads()
    work = n_rows * max(a * b for a, b in pairwise(widths))
    if device != "cpu" or work >= _WORTH_SHARING or n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
