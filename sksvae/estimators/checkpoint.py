# SPDX-License-Identifier: BSD-3-Clause
"""What a fit needs to go on from the end of an epoch: kept in memory, and in a file."""

import hashlib
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sksvae import __version__
from sksvae.distributed import current_process
from sksvae.estimators.moves import Moves
from sksvae.estimators.scaling import Scaling
from sksvae.objective import Rows
from sksvae.persistence import ArrayState
from sksvae.training import EpochRecord, Progress, Trainer

_SECONDS = 30.0  # least time between two files
_NOT_THE_FIT = {"checkpoint", "verbose"}  # parameters that do not change what is fitted


class Keeper:
    """Keeps the state of one run of a fit at the end of its last epoch.

    An interrupt may come at any line: in the middle of an epoch, of a step, or of a call of `keep`.

    Parameters
    ----------
    trainer : Trainer
        Holds the model.
    rows : Rows
        Training rows, perhaps with a memory of states.
    progress : Progress
        Of the loop over epochs.
    history : list of EpochRecord
        What was told to the user, the initialisation included.
    scaling : Scaling
        Of the features.
    random_state : RandomState
        As it is before the moves are prepared.
    file : Checkpoint
        Where the state goes.
    """

    def __init__(
        self,
        trainer: Trainer,
        rows: Rows,
        progress: Progress,
        history: list[EpochRecord],
        scaling: Scaling,
        random_state: np.random.RandomState,
        file: "Checkpoint",
    ) -> None:
        self.trainer, self.progress, self.history = trainer, progress, history
        self.memory = getattr(rows, "memory", None)
        self.random_state, self.file = random_state, file
        self.moves = Moves()
        self._scaling = as_tensors(scaling._asdict())
        self.state: dict[str, Any] = {}

    def begin(self, saved: dict[str, Any] | None, prepare: Callable[[], Moves]) -> Moves:
        """Prepare the moves, of a run that goes on from a saved state, or begins.

        ``prepare`` finds the random state and the memory as they were when the run began.
        """
        if saved is not None:
            self._restore(saved)
        self._random_state = _random_state_as_list(self.random_state)
        self.moves = prepare()
        if saved is not None:
            self.moves.restore(saved["moves"])
        self.keep(at_once=True)
        return self.moves

    def keep(self, at_once: bool = False) -> None:
        """Keep everything as it is now, and write it if it is time."""
        trainer, states = self.trainer, getattr(self.memory, "states", None)
        self.state = {
            "scaling": self._scaling,
            "random_state": self._random_state,
            # Steps replace tensors of q(theta), and change all others.
            "graphical": trainer.model.graphical.state(),
            "networks": trainer.copied_networks(),
            "optimizer": trainer.optimizer.state_dict(),
            "generator": trainer.generator.get_state(),
            "memory": None if states is None else states.clone(),
            "moves": self.moves.state(),
            "progress": self.progress.state(),
            "history": list(self.history),
        }
        self.file.write(self.state, at_once)

    def _restore(self, state: dict[str, Any]) -> None:
        """Go back to a state, of this process or of a file, but for the moves."""
        trainer = self.trainer
        moved = _to(state, trainer.model.link_location.device)
        trainer.model.load_state_dict(moved["networks"])
        trainer.model.graphical = type(trainer.model.graphical).from_state(moved["graphical"])
        trainer.optimizer.load_state_dict(moved["optimizer"])
        trainer.generator.set_state(state["generator"])
        if self.memory is not None:
            self.memory.states = moved["memory"]
        self.progress.restore(moved["progress"])
        self.history[:] = state["history"]
        kind, keys, *rest = state["random_state"]
        self.random_state.set_state((kind, np.array(keys, np.uint32), *rest))

    def end(self) -> None:
        """End an interrupted run with the best model that it has reached, and write its state."""
        self._restore(self.state)
        self.file.write(self.state, at_once=True)
        self.progress.end(self.trainer)


class Checkpoint:
    """The file of a fit, if it has one.

    Parameters
    ----------
    path : str, PathLike or None
        The file; None: there is none, and nothing is written.
    signature : dict of str to str
        What has to agree for a fit to go on from the file; see `signature_of`.
    seeds : sequence of int
        Of the runs of the fit. Those in a file, if there is one, take their place.

    Attributes
    ----------
    seeds : list of int
        Of the runs.
    run : int
        Number of the run to begin or to go on with.
    best : dict or None
        Fitted attributes that the best run so far has left.

    Raises
    ------
    ValueError
        If the file is that of another fit or of no fit at all, or cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike | None, signature: dict[str, str], seeds: Sequence[int]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.signature = signature
        self.seeds, self.run = list(seeds), 0
        self.best: dict[str, Any] | None = None
        self._training: dict[str, Any] | None = None
        self._written = -np.inf
        if self.path is None:
            return
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"checkpoint={str(path)!r} is in a folder that does not exist.")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        which = f"checkpoint={str(self.path)!r}"
        anew = "delete the file or name another one to begin anew"
        try:
            # Whatever is in the file, no code of it is run.
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            theirs = content["signature"]
        except (
            OSError,
            RuntimeError,
            EOFError,
            LookupError,
            TypeError,
            pickle.PickleError,
        ) as error:
            raise ValueError(f"{which} is no file that a fit has written; {anew}.") from error
        for name, ours in self.signature.items():
            if theirs.get(name) != ours:
                what = "on other data" if name == "X" else f"with {name}={theirs.get(name)}"
                back = "Pass the same data" if name == "X" else f"Set it back from {name}={ours}"
                raise ValueError(
                    f"{which} was begun by a fit {what}. {back} to resume it, or {anew}."
                )
        self.seeds, self.run = content["seeds"], content["run"]
        self.best = None if content["best"] is None else as_arrays(content["best"])
        if content["training"] is not None:
            self._training = _records_as(lambda values: EpochRecord(*values), content["training"])

    def take(self) -> dict[str, Any] | None:
        """State of the run to go on with, once; None if it has to begin."""
        state, self._training = self._training, None
        return state

    def add(self, found: dict[str, Any]) -> None:
        """Remember the fitted attributes of a run, if they are the best so far."""
        if self.best is None or found["lower_bound_"] > self.best["lower_bound_"]:
            self.best = found

    def end_run(self) -> None:
        """Take note that a run is over."""
        self.run += 1
        self.write(None, at_once=True)

    def write(self, training: dict[str, Any] | None, at_once: bool) -> None:
        """Write the file, unless that was done a moment ago.

        Parameters
        ----------
        training : dict or None
            State of the run; None between runs.
        at_once : bool
            Whether it has to be now.
        """
        # Under `data_parallel` all processes stand at the same place: the first one writes.
        if self.path is None or current_process().rank > 0:
            return
        if not at_once and time.monotonic() - self._written <= _SECONDS:
            return
        content = {
            "signature": self.signature,
            "seeds": self.seeds,
            "run": self.run,
            "best": None if self.best is None else as_tensors(_storable(self.best)),
            "training": None if training is None else _records_as(EpochRecord.values, training),
        }
        # There is a whole file under the name at any time.
        handle, name = tempfile.mkstemp(
            dir=self.path.absolute().parent, prefix=self.path.name, suffix=".part"
        )
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(content, file)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file of a fit that is over."""
        if self.path is not None and current_process().rank == 0:
            self.path.unlink(missing_ok=True)


def signature_of(estimator, arrays: Sequence[np.ndarray]) -> dict[str, str]:
    """Say what has to agree for a fit to go on where another was interrupted.

    Parameters
    ----------
    estimator : BaseSVAE
        With its parameters.
    arrays : sequence of ndarray
        The checked data.

    Returns
    -------
    dict of str to str
        Values of the parameters, the class, the version, and as ``X`` a hash of the data.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae import VAE
    >>> from sksvae.estimators.checkpoint import signature_of
    >>> signature = signature_of(VAE(latent_dim=np.int64(3)), [np.zeros((2, 3))])
    >>> signature["class"], signature["latent_dim"], len(signature["X"])
    ('VAE', '3', 32)
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    parameters = estimator.get_params(deep=False)
    # One of several of a kind is as good as another.
    parameters["device"] = str(parameters["device"]).partition(":")[0]
    seed = parameters.get("random_state")
    if not isinstance(seed, int | np.integer):
        # The seeds that were drawn are in the file.
        parameters["random_state"] = "no integer"
    return {
        "class": type(estimator).__name__,
        "version": __version__,
        **{
            name: _described(value)
            for name, value in parameters.items()
            if name not in _NOT_THE_FIT
        },
        "X": digest.hexdigest(),
    }


def _described(value: object) -> str:
    """Parameter as text, the same for equal numbers in whatever container."""
    if isinstance(value, np.generic | np.ndarray | list | tuple):
        return repr(np.asarray(value).tolist())
    return str(value)


def scaling_of(saved: dict[str, Any]) -> Scaling:
    """Scaling of a saved state."""
    return Scaling(**as_arrays(saved["scaling"]))


def model_arrays(saved: dict[str, Any]) -> ArrayState:
    """Model of a saved state, for `sksvae.persistence.model_from_arrays`."""
    return {
        f"{part}.{name}": value.numpy()
        for part in ("networks", "graphical")
        for name, value in saved[part].items()
    }


def _records_as(form: Callable[[Any], Any], state: dict[str, Any]) -> dict[str, Any]:
    """Put the records of a state in another form: a file can only hold their numbers."""
    progress = state["progress"]
    return {
        **state,
        "history": [form(record) for record in state["history"]],
        "progress": {**progress, "history": [form(record) for record in progress["history"]]},
    }


def _random_state_as_list(random_state: np.random.RandomState) -> list[Any]:
    kind, keys, *rest = random_state.get_state()
    return [kind, keys.tolist(), *rest]


def _storable(attributes: dict[str, Any]) -> dict[str, Any]:
    """Fitted attributes without the parameters, which may be of any type."""
    return {name: value for name, value in attributes.items() if name != "architecture_"}


def as_tensors(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace the arrays in dictionaries of dictionaries by tensors, for a file.

    Parameters
    ----------
    tree : dict
        Of arrays, numbers, text and such dictionaries.

    Returns
    -------
    dict
        Which `as_arrays` turns back. NumPy's scalars become numbers.
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found[name] = as_tensors(value)
        elif isinstance(value, np.ndarray):
            # A copy: it may be the read-only memory of a file.
            found[name] = torch.from_numpy(np.array(value))
        else:
            found[name] = value.item() if isinstance(value, np.generic) else value
    return found


def as_arrays(tree: dict[str, Any]) -> dict[str, Any]:
    """Turn back `as_tensors`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found[name] = as_arrays(value)
        else:
            found[name] = value.numpy() if isinstance(value, Tensor) else value
    return found


def _to(tree: Any, device: torch.device) -> Any:
    """Move all tensors in dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: _to(value, device) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_to(value, device) for value in tree)
    return tree
