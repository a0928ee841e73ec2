# SPDX-License-Identifier: BSD-3-Clause
"""What every observation likelihood p(x | z) provides.

A likelihood turns the outputs of the decoder into a distribution over one row of X, independently
per feature. It holds only numbers that the user chose; what is learned arrives as an argument. So
a likelihood can be copied, compared, pickled and printed like any scikit-learn parameter.

To add one: write a frozen dataclass derived from `Likelihood` in its own file, and register it in
``sksvae/likelihoods/__init__.py``. Everything except `mean` and `variance`, which fall back on
Monte Carlo, and the ``init_*`` methods has to be written.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 2**20  # numbers that are checked at a time


class Likelihood(ABC):
    """Base class of the observation likelihoods.

    Attributes
    ----------
    name : str
        Key in the registry, and the string that users pass as `likelihood`.
    n_outputs : int
        Decoder outputs per feature.
    domain : str
        In words, the values that a feature may take.
    standardizes : bool
        True for real-valued domains, whose X arrives standardised; the estimator accounts for the
        Jacobian. False where X has to arrive in its own units.

    Notes
    -----
    Throughout, `outputs` has shape (..., n_outputs, n_features) and is on the link scale, where
    any real number is allowed: location, logit, log-rate or log-mean first, then, where there is a
    second output, a log-variance. `params` is the dictionary made by `init_params`.
    """

    name: ClassVar[str]
    n_outputs: ClassVar[int]
    domain: ClassVar[str]
    standardizes: ClassVar[bool]
    n_monte_carlo: ClassVar[int] = 1000

    # ---- the data ----

    def validate(self, X: np.ndarray) -> None:
        """Check that every observed entry of X is in the domain.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Data in its own units. NaN marks a missing entry and is ignored.

        Raises
        ------
        ValueError
            If an entry lies outside the domain. The message says how many do, shows the first
            and lists the registered likelihoods that accept X.
        """
        X = np.asarray(X)
        n_offending, row, column = 0, 0, 0
        for start, part in _parts(X):
            offending = ~(np.isnan(part) | self._in_domain(part))
            if offending.any() and not n_offending:
                row, column = np.argwhere(offending)[0] + [start, 0]
            n_offending += offending.sum()
        if not n_offending:
            return
        raise ValueError(
            f"X has {n_offending} value(s) that likelihood={self.name!r} cannot model, such as "
            f"{X[row, column]} in row {row}, column {column}. {self!r} takes {self.domain}; "
            f"estimators of sequences take NaN for a missing value, too. {_who_accepts(X)}"
        )

    @abstractmethod
    def _in_domain(self, X: np.ndarray) -> np.ndarray:
        """Return True for each entry that the likelihood can model (NaN: either)."""

    @abstractmethod
    def working_features(self, X: np.ndarray) -> np.ndarray:
        """Map X to the link scale, for the encoder's input and a first, linear, reconstruction.

        Row-wise and without state, so that equal rows always give equal features.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Data that passed `validate`.

        Returns
        -------
        working : ndarray of shape (n_samples, n_features)
            In the dtype of X if that is floating, else float64. Finite, but NaN where X is NaN.
        """

    # ---- starting values ----

    def init_params(
        self, working: Tensor | None, n_features: int, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the starting values of the learned parameters.

        Parameters
        ----------
        working : tensor of shape (n_samples, n_features) or None
            Working features, or better their residuals after a first reconstruction: noise levels
            start at the variance found here, or at one for None. NaN entries are ignored.
        n_features : int
            Number of features.
        dtype : torch.dtype
            Type of the parameters.

        Returns
        -------
        params : dict of str to tensor of shape (n_features,)
            Unconstrained: any real number is allowed. Empty if there is nothing to learn.
        """
        return {}

    def init_outputs(
        self,
        n_features: int,
        working: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Return the starting bias of the decoder outputs after the first.

        Parameters
        ----------
        n_features : int
            Number of features.
        working : tensor of shape (n_samples, n_features) or None
            As in `init_params`.
        dtype : torch.dtype
            Type of the result.

        Returns
        -------
        bias : tensor of shape (n_outputs - 1, n_features)
            Values on the link scale.
        """
        return torch.zeros(self.n_outputs - 1, n_features, dtype=dtype)

    # ---- the distribution ----

    def log_prob(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return the log density or log mass of each entry, with all constants.

        Parameters
        ----------
        x : tensor of shape (n, n_features)
            Data; NaN marks a missing entry.
        outputs : tensor of shape (..., n, n_outputs, n_features)
            Decoder outputs.
        params : dict of str to tensor
            Learned parameters.

        Returns
        -------
        log_prob : tensor of shape (..., n, n_features)
            Exactly zero, with zero gradients, where x is missing.

        Raises
        ------
        ValueError
            If `outputs` lacks the axis of length n_outputs.
        """
        # A sum is a number only if all of it is, and cheaper than to look at each.
        if not torch.isnan(x.sum()):
            return self._log_density(x, outputs, params)
        missing = torch.isnan(x)
        # Masking after the fact alone would leave NaN in the gradients, so missing entries first
        # get a value that is in every domain.
        log_density = self._log_density(x.masked_fill(missing, 1.0), outputs, params)
        return log_density.masked_fill(missing, 0.0)

    @abstractmethod
    def _log_density(self, x: Tensor, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return `log_prob` for x without missing entries."""

    def sample(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """Draw one x per element of outputs. No gradients flow through the draw.

        Parameters
        ----------
        outputs : tensor of shape (..., n_outputs, n_features)
            Decoder outputs.
        params : dict of str to tensor
            Learned parameters.
        generator : torch.Generator
            Source of the random numbers, on the device of `outputs`.

        Returns
        -------
        x : tensor of shape (..., n_features)
            Draws, inside the domain.
        """
        with torch.no_grad():
            return self._draw(outputs, params, generator)

    @abstractmethod
    def _draw(
        self, outputs: Tensor, params: dict[str, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """Return `sample`."""

    def mean(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return E[x], by default a Monte Carlo estimate with a fixed seed and no gradient.

        Parameters
        ----------
        outputs : tensor of shape (..., n_outputs, n_features)
            Decoder outputs.
        params : dict of str to tensor
            Learned parameters.

        Returns
        -------
        mean : tensor of shape (..., n_features)
        """
        return self._monte_carlo_moments(outputs, params)[0]

    def variance(self, outputs: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Return Var[x], by default a Monte Carlo estimate with a fixed seed and no gradient.

        Parameters
        ----------
        outputs : tensor of shape (..., n_outputs, n_features)
            Decoder outputs.
        params : dict of str to tensor
            Learned parameters.

        Returns
        -------
        variance : tensor of shape (..., n_features)
        """
        return self._monte_carlo_moments(outputs, params)[1]

    @abstractmethod
    def noise_precision(self, params: dict[str, Tensor], outputs: Tensor) -> Tensor:
        """Return the Fisher information of the first output.

        It is the precision of a Gaussian that stands in for the likelihood near `outputs` on the
        link scale, which is how potentials of the encoder get a sensible start.

        Parameters
        ----------
        params : dict of str to tensor
            Learned parameters.
        outputs : tensor of shape (..., n_outputs, n_features)
            Decoder outputs.

        Returns
        -------
        precision : tensor of shape (..., n_features)
            Not negative; tiny where the data say nothing about the output, as for a logit of 50.
        """

    def _monte_carlo_moments(
        self, outputs: Tensor, params: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of `n_monte_carlo` draws, by Welford's update."""
        generator = torch.Generator(device=outputs.device).manual_seed(0)
        mean = torch.zeros_like(outputs[..., 0, :])
        sum_of_squares = torch.zeros_like(mean)
        for count in range(1, self.n_monte_carlo + 1):
            draw = self.sample(outputs, params, generator)
            deviation = draw - mean
            mean = mean + deviation / count
            sum_of_squares = sum_of_squares + deviation * (draw - mean)
        return mean.detach(), sum_of_squares.detach() / (self.n_monte_carlo - 1)

    def _unbind(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Split outputs into `n_outputs` tensors of shape (..., n_features)."""
        # Without this check a forgotten axis would broadcast to a wrong answer.
        if outputs.ndim < 2 or outputs.shape[-2] != self.n_outputs:
            raise ValueError(
                f"outputs must have shape (..., {self.n_outputs}, n_features) for "
                f"likelihood={self.name!r}, got {tuple(outputs.shape)}."
            )
        return outputs.unbind(-2)


def _parts(X: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and values of parts of X: what is computed of all may be too much for memory."""
    n_rows = max(1, _AT_ONCE // max(1, X[:1].size))
    for start in range(0, len(X), n_rows):
        yield start, X[start : start + n_rows]


def _who_accepts(X: np.ndarray) -> str:
    """Name the registered likelihoods whose domain covers X."""
    from sksvae.likelihoods import LIKELIHOODS  # the registry imports this file

    def accepts(likelihood: Likelihood) -> bool:
        return all((np.isnan(part) | likelihood._in_domain(part)).all() for _, part in _parts(X))

    names = [name for name, kind in LIKELIHOODS.items() if accepts(kind())]
    if not names:
        return "No likelihood accepts infinite values: remove them or replace them with NaN."
    return "Such data are accepted by likelihood=" + " or ".join(map(repr, names)) + "."
