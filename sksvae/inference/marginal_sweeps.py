# SPDX-License-Identifier: BSD-3-Clause
"""Marginals of discrete Markov chains, again and again under the same transition probabilities.

For the rounds of block updates, which need marginals only: the sweeps of
`sksvae.inference.markov_messages.ProbabilityMessages` without what log normalisers, pairs of states
and derivatives need, in the same memory every time.
"""

import numpy as np
import torch
from torch import Tensor

from sksvae.inference.markov_messages import Transition
from sksvae.inference.markov_sweeps import reverse_steps, steps_exist


class MarginalSweeps:
    """Memory for ``B`` chains of ``T`` steps with ``K`` states, on a CPU.

    Parameters
    ----------
    log_initial : Tensor of shape (K,)
        Log weights of the first state.
    transition : Transition
        Transition matrix, the same for all chains.
    lengths : Tensor of shape (B,)
        Steps of each chain.
    n_steps : int
        ``T``.

    Attributes
    ----------
    energies : ndarray of shape (T, B, K)
        Log weights of the states at each step, to be filled before each run. What stands at steps
        that do not exist has to be finite and is lost.

    Examples
    --------
    A state that lasts, seen through noise:

    >>> import torch
    >>> from sksvae.inference.marginal_sweeps import MarginalSweeps
    >>> from sksvae.inference.markov_messages import Transition
    >>> transition = Transition.build(torch.tensor([[[0.9, 0.1], [0.1, 0.9]]]).log())
    >>> sweeps = MarginalSweeps(torch.zeros(2), transition, torch.tensor([3]), 3)
    >>> sweeps.energies[:, 0] = [[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]
    >>> sweeps.run()[:, 0, 0].round(4)
    array([0.9114, 0.8619, 0.9114], dtype=float32)
    """

    def __init__(
        self, log_initial: Tensor, transition: Transition, lengths: Tensor, n_steps: int
    ) -> None:
        n_chains, n_states = len(lengths), len(log_initial)
        like = transition.matrix
        shape = n_steps, n_chains, n_states
        self.energies = like.new_zeros(shape).numpy()
        self._log_initial = log_initial.numpy()
        self._period, finfo = transition.period, torch.finfo(like.dtype)
        # Arithmetic with subnormal numbers takes many times as long. With ``p`` the smallest entry,
        # a state's marginal is no more than ``l / p^2`` times that of the state with ``l = 1``.
        self._smallest = max(finfo.tiny, (finfo.eps * float(like.min())) ** 2)
        self._matrices = torch.cat((like, like.mT)).numpy()
        # Forward and in the reversed order side by side.
        self._both, self._vectors, self._images = (
            like.new_ones(n_steps, 2, n_chains, n_states).numpy() for _ in range(3)
        )
        # Products with ones put the sum over states beside every state.
        self._ones = like.new_ones(n_states, n_states).numpy()
        numbers = torch.arange(n_steps * n_chains).view(n_steps, n_chains, 1)
        self._reversed = reverse_steps(numbers, lengths).flatten().numpy()
        present = steps_exist(lengths, n_steps)
        self._absent = None if present is None or present.all() else ~present.numpy()

    def run(self) -> np.ndarray:
        """Compute the marginals, overwriting the energies.

        Returns
        -------
        ndarray of shape (T, B, K)
            Zero at steps that do not exist; not finite where no path is possible.
        """
        energies, both = self.energies, self._both
        energies[0] += self._log_initial
        energies -= energies.max(-1, keepdims=True)
        likelihood = np.exp(energies, out=energies)
        likelihood *= likelihood >= self._smallest
        both[:, 0], both[:, 1] = likelihood, self._reverse(likelihood)
        self._sweep()
        marginals = self._vectors[:, 0] * self._reverse(self._normalized(self._images[:, 1]))
        marginals = self._normalized(marginals)
        if self._absent is not None:
            marginals[self._absent[..., 0]] = 0.0
        return marginals

    def _sweep(self) -> None:
        """Run both recursions; the first image, before any step, is one."""
        vectors, images, both, matrices = self._vectors, self._images, self._both, self._matrices
        period = self._period
        x = vectors[0]
        x[:] = both[0]
        for t in range(1, len(both)):
            image = np.matmul(x, matrices, out=images[t])
            x = np.multiply(image, both[t], out=vectors[t])
            if t % period == 0:
                x /= x.sum(-1, keepdims=True)
        vectors[:, 0] = self._normalized(vectors[:, 0])

    def _reverse(self, steps: np.ndarray) -> np.ndarray:
        return steps.reshape(-1, steps.shape[-1]).take(self._reversed, 0).reshape(steps.shape)

    def _normalized(self, steps: np.ndarray) -> np.ndarray:
        return steps / (steps @ self._ones)
