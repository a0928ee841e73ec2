# SPDX-License-Identifier: BSD-3-Clause
"""Fitted models as dictionaries of NumPy arrays, which pickle, joblib and skops can all store.

The torch modules are rebuilt around the arrays when they are needed, without copying them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sksvae.coordinates import Coordinates
from sksvae.graphical import GRAPHICAL_MODELS, SEQUENCE_MODELS
from sksvae.inference import FixedPointSettings
from sksvae.likelihoods.base import Likelihood
from sksvae.objective import StructuredVAE
from sksvae.sequence_objective import SequenceVAE

ArrayState = dict[str, np.ndarray]


@dataclass(frozen=True)
class Architecture:
    """Hyperparameters that fix the shape of a `StructuredVAE`.

    Parameters
    ----------
    n_features, latent_dim : int
        Sizes.
    hidden_layer_sizes : sequence of int
        Hidden layers of the encoder.
    activation : str
        Key of `sksvae.networks.ACTIVATIONS`.
    likelihood : Likelihood
        Observation model.
    graphical : str
        Key of `sksvae.graphical.GRAPHICAL_MODELS` or `SEQUENCE_MODELS`.
    settings : FixedPointSettings
        Of local inference.
    device : str
        Where the tensors live.
    """

    n_features: int
    latent_dim: int
    hidden_layer_sizes: Sequence[int]
    activation: str
    likelihood: Likelihood
    graphical: str
    settings: FixedPointSettings
    device: str


def model_to_arrays(model: StructuredVAE) -> ArrayState:
    """Copy a model's tensors to arrays.

    Parameters
    ----------
    model : StructuredVAE
        A model.

    Returns
    -------
    dict of str to ndarray
        Keys start with ``networks.`` or ``graphical.``.
    """
    state = {f"networks.{name}": value for name, value in model.state_dict().items()}
    state |= {f"graphical.{name}": value for name, value in model.graphical.state().items()}
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


def model_from_arrays(state: ArrayState, architecture: Architecture) -> StructuredVAE:
    """Rebuild a model from `model_to_arrays`.

    Parameters
    ----------
    state : dict of str to ndarray
        Arrays.
    architecture : Architecture
        Shape of the model.

    Returns
    -------
    StructuredVAE
        A `SequenceVAE` for sequences. Its tensors share memory with the arrays where the device
        allows.
    """

    def read(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): _as_tensor(value, architecture.device)
            for name, value in state.items()
            if name.startswith(prefix)
        }

    networks = read("networks.")
    over_sequences = architecture.graphical in SEQUENCE_MODELS
    models = SEQUENCE_MODELS if over_sequences else GRAPHICAL_MODELS
    graphical = models[architecture.graphical].from_state(read("graphical."))
    model = (SequenceVAE if over_sequences else StructuredVAE)(
        architecture.n_features,
        architecture.latent_dim,
        architecture.hidden_layer_sizes,
        architecture.activation,
        architecture.likelihood,
        graphical,
        networks["link_location"],
        networks["link_scale"],
        architecture.settings,
    )
    if coordinates := read("networks.coordinates."):
        model.coordinates = Coordinates(**coordinates)
    model.load_state_dict(networks, assign=True)
    return model


def optimizer_to_arrays(optimizer: torch.optim.Optimizer) -> ArrayState:
    """Moments and step counts of an optimiser as arrays.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        An optimiser.

    Returns
    -------
    dict of str to ndarray
        Keys ``<parameter index>.<name>``.
    """
    return {
        f"{index}.{name}": np.array(value.detach().cpu().numpy())
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: ArrayState) -> None:
    """Put back what `optimizer_to_arrays` took.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        An optimiser over parameters of the same shapes.
    state : dict of str to ndarray
        Arrays.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split(".")
        slots.setdefault(int(index), {})[name] = torch.from_numpy(np.array(value))
    full = optimizer.state_dict()
    optimizer.load_state_dict({**full, "state": slots})


def _as_tensor(array: np.ndarray, device: str) -> Tensor:
    # joblib may hand out read-only memory maps, which torch would warn about.
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array).to(device)
