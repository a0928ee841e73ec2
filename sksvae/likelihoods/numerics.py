# SPDX-License-Identifier: BSD-3-Clause
"""Numerical helpers that the likelihoods share."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Logarithms that leave a network (log-rates, log-means, log-variances) are used as they are up to
# +-LOG_BOUND and approach +-(LOG_BOUND + LOG_MARGIN) beyond. exp(40) = 2e17 is below 2**63, above
# which `torch.poisson` wraps around, and its square fits in float32; exp(-35) = 6e-16 is below
# the quietest bins of a 16-bit power spectrogram.
LOG_BOUND = 35.0
LOG_MARGIN = 5.0


def saturate(value: Tensor, bound: float = LOG_BOUND, margin: float = LOG_MARGIN) -> Tensor:
    """Limit a logarithm smoothly, so that its exponential cannot overflow.

    The identity on [-bound, bound]; beyond, it bends towards +-(bound + margin) with a continuous
    derivative that never vanishes, unlike a clamp's: an output that strayed can find its way back.

    Parameters
    ----------
    value : tensor
        Finite logarithms.
    bound : float
        Up to where values stay as they are.
    margin : float
        How far beyond the bound the result can get.

    Returns
    -------
    limited : tensor
        Of the same shape and dtype.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods.numerics import saturate
    >>> saturate(torch.tensor([-1e30, -2.0, 35.0, 40.0]))
    tensor([-40.0000,  -2.0000,  35.0000,  37.5000])
    """
    if not value.numel():
        return value
    least, largest = torch.aminmax(value.detach())
    if -bound <= least and largest <= bound:
        return value
    inside = value.clamp(-bound, bound)
    excess = value - inside
    # excess / (1 + |excess| / margin), in the form whose derivative has no cancellation.
    return inside + excess.sign() * (margin - margin / (1 + excess.abs() / margin))


def log_factorial(counts: Tensor) -> Tensor:
    """Return log(x!) of each entry, by way of a table where the counts are small.

    Parameters
    ----------
    counts : tensor
        Non-negative integers, of a floating type.

    Returns
    -------
    log_factorials : tensor
        Of the same shape and dtype.

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods.numerics import log_factorial
    >>> log_factorial(torch.tensor([0.0, 1.0, 3.0])).exp()
    tensor([1., 1., 6.])
    """
    size = counts.numel()
    largest = float(counts.max()) if size else 0.0
    if largest >= size:
        return torch.lgamma(counts + 1)
    table = torch.arange(1, int(largest) + 2, dtype=counts.dtype, device=counts.device).lgamma()
    return table.take(counts.long())


def feature_variances(working: Tensor | None, n_features: int, dtype: torch.dtype) -> Tensor:
    """Return the variance of each column, ignoring NaN; one where nothing is observed.

    Parameters
    ----------
    working : tensor of shape (n_samples, n_features) or None
        Values on the link scale.
    n_features : int
        Number of columns.
    dtype : torch.dtype
        Type of the result.

    Returns
    -------
    variances : tensor of shape (n_features,)

    Examples
    --------
    >>> import torch
    >>> from sksvae.likelihoods.numerics import feature_variances
    >>> working = torch.tensor([[0.0, 1.0], [4.0, 1.0], [float("nan"), 1.0]])
    >>> feature_variances(working, 2, torch.float32)
    tensor([4., 0.])
    """
    if working is None:
        return torch.ones(n_features, dtype=dtype)
    working = working.detach().to(dtype)
    centered = working - working.nanmean(dim=0)
    return torch.nan_to_num(centered.square().nanmean(dim=0), nan=1.0)


def as_floating(X: np.ndarray) -> np.ndarray:
    """Return X itself if its dtype is floating, else as float64.

    Parameters
    ----------
    X : ndarray
        Numbers or booleans.

    Returns
    -------
    X : ndarray
    """
    X = np.asarray(X)
    return X if np.issubdtype(X.dtype, np.floating) else X.astype(np.float64)


def check_number(owner: object, field: str, *, above: float = 0.0) -> None:
    """Check a field of a likelihood and store it as a plain Python float.

    Parameters
    ----------
    owner : object
        The frozen dataclass under construction.
    field : str
        Name of the field.
    above : float
        The value has to be greater.

    Raises
    ------
    ValueError
        If the value is not a finite real number greater than `above`.
    """
    value: Any = getattr(owner, field)
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not (is_number and math.isfinite(value) and value > above):
        raise ValueError(
            f"{field} of {type(owner).__name__} must be a finite number greater than {above:g}, "
            f"got {value!r}."
        )
    object.__setattr__(owner, field, float(value))  # the dataclass is frozen
