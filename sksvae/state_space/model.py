# SPDX-License-Identifier: BSD-3-Clause
"""The linear-Gaussian state space model: likelihood, smoothed states, canonical coordinates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg

from sksvae.state_space.expectation import ObservedRows, each_chain


class StateSpace(NamedTuple):
    """Linear-Gaussian state space model, as float64 NumPy arrays.

    ``z_1 ~ N(mu_0, Sigma_0)``, ``z_t = A z_{t-1} + b + w_t``, ``x_t = C z_t + d + e_t``, with
    ``w_t ~ N(0, Q)`` and ``e_t ~ N(0, diag(psi))``.

    Parameters
    ----------
    loading : ndarray of shape (n_features, latent_dim)
        ``C``.
    mean : ndarray of shape (n_features,)
        ``d``.
    noise_variances : ndarray of shape (n_features,)
        ``psi``.
    transition : ndarray of shape (latent_dim, latent_dim)
        ``A``.
    offset : ndarray of shape (latent_dim,)
        ``b``.
    transition_noise : ndarray of shape (latent_dim, latent_dim)
        ``Q``.
    initial_mean : ndarray of shape (latent_dim,)
        ``mu_0``.
    initial_covariance : ndarray of shape (latent_dim, latent_dim)
        ``Sigma_0``.

    Examples
    --------
    A random walk from zero with innovations of variance 1, seen with noise of variance 1:

    >>> import numpy as np
    >>> from sksvae.state_space import StateSpace
    >>> one, zero = np.ones((1, 1)), np.zeros(1)
    >>> model = StateSpace(one, zero, np.ones(1), one, zero, one, zero, one)
    >>> model.smoothed_means(np.array([[1.0], [np.nan], [3.0]]), [3]).round(2)
    array([[0.86],
           [1.57],
           [2.29]])
    """

    loading: np.ndarray
    mean: np.ndarray
    noise_variances: np.ndarray
    transition: np.ndarray
    offset: np.ndarray
    transition_noise: np.ndarray
    initial_mean: np.ndarray
    initial_covariance: np.ndarray

    def log_likelihood(self, X: np.ndarray, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
        """Exact log density of sequences, in nats.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Sequences, one stacked after the other. NaN is a missing value.
        lengths : sequence of int of shape (n_sequences,)
            Number of rows of each, at least one.

        Returns
        -------
        ndarray of shape (n_sequences,)
            Log densities of what is observed of each sequence.

        Raises
        ------
        ValueError
            If the lengths do not add up to the rows.
        torch.linalg.LinAlgError
            If the model is not a proper one.

        Examples
        --------
        >>> import numpy as np
        >>> from sksvae.state_space import StateSpace
        >>> one, zero = np.ones((1, 1)), np.zeros(1)
        >>> model = StateSpace(one, zero, np.ones(1), one, zero, one, zero, one)
        >>> model.log_likelihood(np.array([[0.0], [np.nan]]), [1, 1]).round(3)
        array([-1.266,  0.   ])
        """
        result = np.empty(len(lengths))
        for part in each_chain(self, ObservedRows.from_arrays(X, lengths)):
            result[part.sequence] = part.log_likelihood.numpy()
        return result

    def smoothed_means(self, X: np.ndarray, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
        """Posterior means of the states, given the whole sequence of each.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            As in `log_likelihood`.
        lengths : sequence of int of shape (n_sequences,)
            As in `log_likelihood`.

        Returns
        -------
        ndarray of shape (n_rows, latent_dim)
            One mean per row.
        """
        result = np.empty((len(X), len(self.offset)))
        for part in each_chain(self, ObservedRows.from_arrays(X, lengths)):
            result[part.row[part.mask].numpy()] = part.mean[part.mask].numpy()
        return result

    def state_moments(
        self, X: np.ndarray, lengths: Sequence[int] | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the states under the posterior, pooled over all rows.

        They are defined, as those of the stationary distribution are not, for transitions that
        are unstable or that forget nothing.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            As in `log_likelihood`.
        lengths : sequence of int of shape (n_sequences,)
            As in `log_likelihood`.

        Returns
        -------
        mean : ndarray of shape (latent_dim,)
            Mean of the posterior means.
        covariance : ndarray of shape (latent_dim, latent_dim)
            Mean posterior covariance plus covariance of the posterior means.
        """
        total, second = np.zeros(()), np.zeros(())
        for part in each_chain(self, ObservedRows.from_arrays(X, lengths)):
            total = total + part.mean.sum((0, 1)).numpy()
            flat = part.mean.flatten(0, 1)
            second = second + (part.covariance.sum((0, 1)) + flat.mT @ flat).numpy()
        mean = total / len(X)
        return mean, second / len(X) - np.outer(mean, mean)

    def canonical(self, state_mean: np.ndarray, state_covariance: np.ndarray) -> "StateSpace":
        """The same distribution of X, in coordinates of the state that an encoder can express.

        Given moments of the states become zero and identity, and ``C' diag(1/psi) C`` becomes
        diagonal, with decreasing entries ``R``: what one row tells of its state is then the
        diagonal Gaussian potential with ``r = C' diag(1/psi) (x - d)`` and precision ``R``. The
        last entries of ``R`` are zero, up to rounding, for directions that a single row tells
        nothing of; so are all beyond the number of features.

        Parameters
        ----------
        state_mean : ndarray of shape (latent_dim,)
            Mean of the states, for instance from `state_moments`.
        state_covariance : ndarray of shape (latent_dim, latent_dim)
            Their covariance, positive definite.

        Returns
        -------
        StateSpace
            The model of ``U' L^-1 (z - state_mean)`` with ``L L' = state_covariance`` and ``U``
            orthogonal. The largest loading of each direction is positive.

        Examples
        --------
        >>> import numpy as np
        >>> from sksvae.state_space import StateSpace
        >>> eye, zero = np.eye(2), np.zeros(2)
        >>> C = np.array([[1.0, -2.0], [0.0, -1.0]])
        >>> model = StateSpace(C, zero, np.ones(2), 0.5 * eye, zero, eye, zero, eye)
        >>> C = model.canonical(zero, eye).loading
        >>> (C.T @ C).round(3) + 0.0
        array([[5.828, 0.   ],
               [0.   , 0.172]])
        """
        root = linalg.cholesky(state_covariance, lower=True)
        C = self.loading @ root
        eigenvalues, axes = linalg.eigh(C.T @ (C / self.noise_variances[:, None]))
        axes = axes[:, np.argsort(-eigenvalues, kind="stable")]
        C = C @ axes
        largest = C[np.abs(C).argmax(0), np.arange(C.shape[1])]
        signs = np.where(largest < 0, -1.0, 1.0)
        back = root @ (axes * signs)

        def coordinates(vectors: np.ndarray) -> np.ndarray:
            solved = linalg.solve_triangular(root, vectors, lower=True)
            return (axes * signs).T @ solved

        def covariance(matrix: np.ndarray) -> np.ndarray:
            moved = coordinates(coordinates(matrix).T)
            return 0.5 * (moved + moved.T)

        return StateSpace(
            C * signs,
            self.mean + self.loading @ state_mean,
            self.noise_variances,
            coordinates(self.transition @ back),
            coordinates(self.transition @ state_mean + self.offset - state_mean),
            covariance(self.transition_noise),
            coordinates(self.initial_mean - state_mean),
            covariance(self.initial_covariance),
        )
