# SPDX-License-Identifier: BSD-3-Clause
"""Measures of how well clusters match classes, and samples match data.

They take arrays only, so that they serve any estimator. The measures that scikit-learn has
(`sklearn.metrics.adjusted_rand_score` and its neighbours) are not repeated here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils._param_validation import validate_params

__all__ = ["frechet_distance", "match_labels", "matched_accuracy"]


@validate_params(
    {"y_true": ["array-like"], "y_pred": ["array-like"]}, prefer_skip_nested_validation=True
)
def matched_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Compute the accuracy under the best one-to-one matching of clusters to classes.

    The names of the clusters do not matter. Where there are more clusters than classes the rows of
    the unmatched clusters count as wrong, so splitting a class costs accuracy.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_pred : array-like of shape (n_samples,)
        Predicted clusters.

    Returns
    -------
    accuracy : float
        Fraction of rows whose cluster is matched to their class, between 0 and 1.

    Raises
    ------
    ValueError
        If the inputs are empty, not one-dimensional, not of equal length, or not labels.

    See Also
    --------
    match_labels : The predictions, renamed by the same matching.

    References
    ----------
    .. [1] Kuhn, H. W. (1955). The Hungarian method for the assignment problem. Naval Research
       Logistics Quarterly 2, 83-97.

    Examples
    --------
    >>> from sksvae.metrics import matched_accuracy
    >>> matched_accuracy(["a", "a", "b", "b"], [1, 1, 0, 0])
    1.0
    >>> matched_accuracy([0, 0, 0, 0], [0, 0, 1, 2])
    0.5
    """
    y_true, y_pred = _check_labels(y_true, y_pred)
    counts, class_index, cluster_index = _match(y_true, y_pred)
    return float(counts[class_index, cluster_index].sum() / y_true.shape[0])


@validate_params(
    {"y_true": ["array-like"], "y_pred": ["array-like"]}, prefer_skip_nested_validation=True
)
def match_labels(y_true: ArrayLike, y_pred: ArrayLike) -> np.ndarray:
    """Rename clusters to the classes that they match best, one to one.

    Use it to lay predictions beside the truth, in a confusion matrix or with the same colours.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        True classes.
    y_pred : array-like of shape (n_samples,)
        Predicted clusters.

    Returns
    -------
    y_matched : ndarray of shape (n_samples,)
        For each row the class matched to its cluster. Clusters left without a class, where there
        are more clusters than classes, keep apart: they are numbered from the largest class
        upwards.

    Raises
    ------
    ValueError
        If the inputs are empty, not one-dimensional, not of equal length, or not labels; or if
        clusters are left over and the classes are not numbers.

    See Also
    --------
    matched_accuracy : The fraction of rows where the result equals ``y_true``.

    Examples
    --------
    >>> from sksvae.metrics import match_labels
    >>> match_labels(["a", "a", "b", "b"], [1, 1, 0, 1]).tolist()
    ['a', 'a', 'b', 'a']
    >>> match_labels([3, 3, 3, 5], [0, 0, 1, 2]).tolist()
    [3, 3, 6, 5]
    """
    y_true, y_pred = _check_labels(y_true, y_pred)
    classes = np.unique(y_true)
    clusters, cluster_of_row = np.unique(y_pred, return_inverse=True)
    _, class_index, cluster_index = _match(y_true, y_pred)

    unmatched = np.setdiff1d(np.arange(clusters.size), cluster_index)
    if not unmatched.size:
        names = np.empty(clusters.size, dtype=classes.dtype)
    elif classes.dtype.kind in "biuf":
        names = np.empty(clusters.size, dtype=np.result_type(classes, np.int64))
        names[unmatched] = classes[-1] + 1.0 + np.arange(unmatched.size)
    else:
        raise ValueError(
            f"y_pred has {clusters.size} clusters and y_true {classes.size} classes: the clusters "
            "left over can be numbered only if the classes are numbers. Encode y_true, for "
            "instance with sklearn.preprocessing.LabelEncoder."
        )
    names[cluster_index] = classes[class_index]
    return names[cluster_of_row]


@validate_params(
    {"X": ["array-like"], "Y": ["array-like"], "squared": ["boolean"]},
    prefer_skip_nested_validation=True,
)
def frechet_distance(X: ArrayLike, Y: ArrayLike, *, squared: bool = False) -> float:
    r"""Compute the Fréchet distance between Gaussians fitted to two samples.

    It compares generated rows with observed ones by their means :math:`m` and covariances
    :math:`C` (the unbiased estimates):

    .. math:: d^2 = |m_X - m_Y|^2
        + \mathrm{tr} \left( C_X + C_Y - 2 (C_X C_Y)^{1/2} \right)

    Zero means equal first and second moments, not equal distributions. Of samples of finite size
    it is biased upwards, by more in more dimensions: compare only values from equal sizes.

    Parameters
    ----------
    X : array-like of shape (n_samples_X, n_features)
        First sample, of at least two rows.
    Y : array-like of shape (n_samples_Y, n_features)
        Second sample, of at least two rows.
    squared : bool, default=False
        Whether to return :math:`d^2`, which is what the "Fréchet inception distance" reports.

    Returns
    -------
    distance : float
        The distance, in the units of ``X``; with ``squared`` its square.

    Raises
    ------
    ValueError
        If a sample has fewer than two rows or is not finite, or the features differ in number.

    Notes
    -----
    With :math:`C_X = A^\top A` and :math:`C_Y = B^\top B` from QR decompositions of the centred
    samples, :math:`d^2 = |m_X - m_Y|^2 + \min_Q |A - Q B|_F^2` over orthogonal :math:`Q`, a
    Procrustes problem that one singular value decomposition solves. This needs no matrix square
    root, which may fail on singular covariances, and is a sum of squares: never negative, and for
    equal samples zero to rounding, or to the square root of rounding in the features whose
    standard deviation is less than 1e-8 of the largest.

    References
    ----------
    .. [1] Dowson, D. C. and Landau, B. V. (1982). The Fréchet distance between multivariate normal
       distributions. Journal of Multivariate Analysis 12, 450-455, equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> from sksvae.metrics import frechet_distance
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> print(f"{frechet_distance(X, X + [3.0, 4.0]):.6f}")
    5.000000
    >>> print(f"{frechet_distance(X, X + [3.0, 4.0], squared=True):.6f}")
    25.000000
    """
    X = check_array(X, dtype=np.float64, ensure_min_samples=2, input_name="X")
    Y = check_array(Y, dtype=np.float64, ensure_min_samples=2, input_name="Y")
    if X.shape[1] != Y.shape[1]:
        raise ValueError(
            f"X and Y must have the same number of features, got {X.shape[1]} and {Y.shape[1]}."
        )
    mean_X, mean_Y = X.mean(axis=0), Y.mean(axis=0)
    A, B = _covariance_factor(X - mean_X), _covariance_factor(Y - mean_Y)
    left, _, right = np.linalg.svd(A @ B.T)
    squared_distance = np.sum((mean_X - mean_Y) ** 2) + np.sum((A - left @ right @ B) ** 2)
    return float(squared_distance if squared else np.sqrt(squared_distance))


def _covariance_factor(centred: np.ndarray) -> np.ndarray:
    """Factor the covariance as ``A.T @ A`` with a square ``A``, from the centred rows."""
    n_samples, n_features = centred.shape
    factor = np.zeros((n_features, n_features))
    triangle = np.linalg.qr(centred, mode="r") / np.sqrt(n_samples - 1)
    factor[: triangle.shape[0]] = triangle
    return factor


def _check_labels(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Validate two arrays of labels, one label per row."""
    checked = []
    for name, y in (("y_true", y_true), ("y_pred", y_pred)):
        y = check_array(
            y, ensure_2d=False, allow_nd=True, dtype=None, ensure_min_samples=0, input_name=name
        )
        if y.ndim != 1:
            raise ValueError(f"{name} must be one-dimensional, got an array of shape {y.shape}.")
        if y.shape[0] == 0:
            raise ValueError(f"{name} is empty; at least one label is needed.")
        if y.dtype.kind == "f" and np.any(y != np.floor(y)):
            raise ValueError(f"{name} must hold class labels, got numbers that are not integers.")
        checked.append(y)
    check_consistent_length(*checked)
    return checked[0], checked[1]


def _match(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match clusters to classes so that the matched counts sum to the largest total.

    Returns
    -------
    counts : ndarray of shape (n_classes, n_clusters)
        Contingency table, in the order of ``np.unique``.
    class_index, cluster_index : ndarray of shape (min(n_classes, n_clusters),)
        The matched pairs.
    """
    counts = contingency_matrix(y_true, y_pred)
    class_index, cluster_index = linear_sum_assignment(counts, maximize=True)
    return counts, class_index, cluster_index
