# SPDX-License-Identifier: BSD-3-Clause
"""Observation likelihoods p(x | z), one per file, and the dictionary that registers them."""

from .base import Likelihood
from .bernoulli import BernoulliLikelihood
from .gamma import GammaLikelihood
from .gaussian import GaussianLikelihood
from .gaussian_network import GaussianNetworkLikelihood
from .poisson import PoissonLikelihood
from .student_t import StudentTLikelihood

__all__ = [
    "LIKELIHOODS",
    "BernoulliLikelihood",
    "GammaLikelihood",
    "GaussianLikelihood",
    "GaussianNetworkLikelihood",
    "Likelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "get_likelihood",
]

# Name -> class. A new likelihood needs its file, and a line here.
LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind
    for kind in (
        GaussianLikelihood,
        GaussianNetworkLikelihood,
        StudentTLikelihood,
        BernoulliLikelihood,
        PoissonLikelihood,
        GammaLikelihood,
    )
}


def get_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """Return the likelihood that an estimator's argument `likelihood` stands for.

    Parameters
    ----------
    likelihood : str or Likelihood
        A key of `LIKELIHOODS`, which gives that likelihood with its default parameters, or an
        instance, which is returned as it is.

    Returns
    -------
    likelihood : Likelihood

    Raises
    ------
    ValueError
        If the name is not registered.
    TypeError
        If the argument is neither a string nor an instance.

    Examples
    --------
    >>> from sksvae.likelihoods import get_likelihood
    >>> get_likelihood("gamma")
    GammaLikelihood(concentration=1.0, offset=1e-10)
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    valid = f"one of {', '.join(map(repr, LIKELIHOODS))}, or an instance such as "
    valid += "GaussianLikelihood(noise_variance=0.1)"
    if not isinstance(likelihood, str):
        raise TypeError(f"likelihood must be {valid}, got {likelihood!r}.")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be {valid}, got {likelihood!r}.")
    return LIKELIHOODS[likelihood]()
