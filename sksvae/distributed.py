# SPDX-License-Identifier: BSD-3-Clause
"""Training by several processes, each with a share of every minibatch.

Every process holds all rows and the whole model, and does the same with them, from the same seeds.
Only the objective of a minibatch is divided: each process computes the gradients of its share, and
the sums over all processes come back from a single reduction per step. As noise is drawn for the
whole minibatch before it is divided, the sums are those of one process up to rounding, and as every
process takes the same step with the same sums, models stay equal to the bit.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, Self, TypeVar

import joblib
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Process", "current_process", "data_parallel"]


class Divisible(Protocol):
    """A minibatch that can be divided among processes, such as `sksvae.objective.Rows`."""

    def share(self, rank: int, size: int, noise: Tensor) -> tuple[Self | None, Tensor]:
        """Items of one process of several, None for none, and their part of the noise."""


Batch = TypeVar("Batch", bound=Divisible)


class Process:
    """The only process there is: its share is everything and its sums are its own.

    Attributes
    ----------
    rank : int
        Number of this process.
    size : int
        How many there are.

    Examples
    --------
    >>> from sksvae.distributed import Process
    >>> Process().size, Process().gather("alone")
    (1, ['alone'])
    """

    rank = 0
    size = 1

    def share(self, rows: Batch, noise: Tensor) -> tuple[Batch | None, Tensor]:
        """What this process computes of a minibatch.

        Parameters
        ----------
        rows : Rows or SequenceRows
            The minibatch.
        noise : Tensor of shape (n_draws, n_items, ...)
            Standard normal numbers for the whole of it.

        Returns
        -------
        rows : Rows or SequenceRows or None
            Its share; None if there are fewer items than processes and none is left for it.
        noise : Tensor of shape (n_draws, n_share, ...)
            The numbers for the share.
        """
        return rows, noise

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sums over all processes, in one reduction.

        Parameters
        ----------
        tensors : sequence of Tensor
            Of one type, on one device, and of the same shapes in every process.

        Returns
        -------
        list of Tensor
            The same in every process, to the bit.
        """
        return list(tensors)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in their order.

        Parameters
        ----------
        value : object
            Anything that can be pickled.

        Returns
        -------
        list of object
            One per process.
        """
        return [value]

    def check_equal(self, values: Callable[[], dict[str, Any]]) -> None:
        """Make sure that all processes have the same.

        Parameters
        ----------
        values : callable
            Says by name what is compared; not called if there is nothing to compare with.

        Raises
        ------
        ValueError
            In every process, if there is a difference.
        """

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let an error of inference in one process be one of all, so that none waits for others."""
        yield


class _MemberProcess(Process):
    """One of the processes of the default group of `torch.distributed`."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def share(self, rows: Batch, noise: Tensor) -> tuple[Batch | None, Tensor]:
        return rows.share(self.rank, self.size, noise)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def check_equal(self, values: Callable[[], dict[str, Any]]) -> None:
        mine = {name: joblib.hash(value) for name, value in values().items()}
        first, *others = self.gather(mine)
        names = [name for name in first if any(other[name] != first[name] for other in others)]
        if names:
            raise ValueError(
                f"{' and '.join(names)} of the {self.size} processes of data_parallel differ: give "
                "every process the same, on machines of one kind with the same packages."
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        failure = None
        try:
            yield
        except torch.linalg.LinAlgError as error:
            failure = error
        messages = [m for m in self.gather(None if failure is None else str(failure)) if m]
        if messages:
            raise torch.linalg.LinAlgError(messages[0]) from failure


_ALONE = Process()
_CURRENT: ContextVar[Process] = ContextVar("sksvae.distributed", default=_ALONE)


def current_process() -> Process:
    """The process as one of those of `data_parallel`.

    Returns
    -------
    Process
        Outside of the context, and in other threads than that which entered it, the only one.

    Examples
    --------
    >>> from sksvae.distributed import current_process
    >>> current_process().size
    1
    """
    return _CURRENT.get()


@contextmanager
def data_parallel(backend: str | None = None) -> Iterator[Process]:
    """Train with several processes, each with a share of every minibatch.

    ``fit`` and ``partial_fit`` inside the context have to be called by every process, with the same
    X and the same parameters. They give every process the same model, that of one process up to
    rounding. Everything else, such as ``predict``, each process does by itself.

    Parameters
    ----------
    backend : str or None, default=None
        As in `torch.distributed.init_process_group`: ``'gloo'`` for CPUs, ``'nccl'`` for GPUs;
        None lets torch choose. Not used where a process group exists already.

    Yields
    ------
    Process
        With ``rank`` and ``size``.

    Raises
    ------
    RuntimeError
        If `torch.distributed` is not part of this build of torch.

    Notes
    -----
    Processes are started by ``torchrun``, which names them in the environment, or have made a
    process group of their own, which is then used and left as it is. Without either there is one
    process, and nothing changes. A group that this function has made serves all later calls, and
    ends with the process, or with an error inside the context.

    With ``random_state=None`` all processes use the seed of the first. An error in training is
    raised in all of them. Machines should be of one kind, for the start of training is computed by
    every process and has to be the same.

    Examples
    --------
    >>> from sksvae.distributed import data_parallel
    >>> with data_parallel() as process:
    ...     print(f"process {process.rank} of {process.size}")
    process 0 of 1
    """
    exists = dist.is_available() and dist.is_initialized()
    if not exists and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield _ALONE
        return
    if not exists:
        if not dist.is_available():
            raise RuntimeError("This build of torch comes without torch.distributed.")
        dist.init_process_group(backend)
        _OWN.group = dist.group.WORLD
    process = _MemberProcess()
    token = _CURRENT.set(process)
    try:
        yield process
    except BaseException:
        # The others must not wait for this process.
        _leave()
        raise
    finally:
        _CURRENT.reset(token)


class _Own:
    """The group that `data_parallel` has made, if it has."""

    group: Any = None


_OWN = _Own()


@atexit.register
def _leave() -> None:
    """Leave that group for good: one made anew may meet what the first has left behind."""
    if _OWN.group is not None and dist.is_initialized() and dist.group.WORLD is _OWN.group:
        dist.destroy_process_group()
    _OWN.group = None
