# SPDX-License-Identifier: BSD-3-Clause
"""What `set_output` makes of outputs that mirror the form of sequences."""

import functools
from collections.abc import Callable
from typing import TypeVar

from sklearn.utils._set_output import _wrap_data_with_container

ClassT = TypeVar("ClassT", bound=type)


def frames_of_tables_only(transformer: ClassT) -> ClassT:
    """Class decorator of a transformer of sequences: `set_output` applies to tables.

    A 3-D array or a list comes back as it is, whatever container is asked for: no frame could hold
    it, and scikit-learn by itself would try and fail.

    Parameters
    ----------
    transformer : type
        Class that defines ``transform`` and ``fit_transform``.

    Returns
    -------
    type
        The same class.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.base import BaseEstimator, TransformerMixin
    >>> from sksvae.estimators.containers import frames_of_tables_only
    >>> @frames_of_tables_only
    ... class Identity(TransformerMixin, BaseEstimator):
    ...     def transform(self, X):
    ...         return X
    ...
    ...     def fit_transform(self, X, y=None):
    ...         return X
    ...
    ...     def get_feature_names_out(self):
    ...         return ["a", "b"]
    >>> identity = Identity().set_output(transform="pandas")
    >>> type(identity.transform(np.zeros((3, 2)))).__name__
    'DataFrame'
    >>> type(identity.transform(np.zeros((1, 3, 2)))).__name__
    'ndarray'
    """
    for name in ("transform", "fit_transform"):
        setattr(transformer, name, _framed(vars(transformer)[name].__wrapped__))
    return transformer


def _framed(method: Callable) -> Callable:
    @functools.wraps(method)
    def framed(self, X, *args, **kwargs):
        Z = method(self, X, *args, **kwargs)
        if isinstance(Z, list) or len(Z.shape) != 2:
            return Z
        return _wrap_data_with_container("transform", Z, X, self)

    return framed
