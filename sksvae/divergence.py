# SPDX-License-Identifier: BSD-3-Clause
"""What can go wrong with a step of training, and what to say of it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sksvae.objective import ELBOTerms, StructuredVAE

RECONSTRUCTION_ADVICE = (
    "lower learning_rate_init, or check X for extreme values that the likelihood cannot explain "
    "(likelihood='student_t' tolerates them)"
)
KL_ADVICE = (
    "lower learning_rate_init, or raise degrees_of_freedom_prior or the prior covariance "
    "(covariance_prior of components, noise_covariance_prior of dynamics) so that no covariance "
    "can shrink to nothing"
)


def diverged(what: str, advice: str) -> ValueError:
    """Say which term failed and what to change.

    Parameters
    ----------
    what : str
        What went wrong.
    advice : str
        What may help.

    Returns
    -------
    ValueError
        To be raised.

    Examples
    --------
    >>> from sksvae.divergence import diverged
    >>> diverged("the bound is nan", "lower learning_rate_init")
    ValueError('Training diverged: the bound is nan. What may help: lower learning_rate_init.')
    """
    return ValueError(f"Training diverged: {what.rstrip('.')}. What may help: {advice}.")


@contextmanager
def inference_may_fail() -> Iterator[None]:
    """Turn an error of linear algebra into one that says what may help."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise diverged(f"local inference failed, since {error}", KL_ADVICE) from error


def count_faults(terms: ELBOTerms | None, failure: Exception | None, like: Tensor) -> Tensor:
    """Count what is wrong with a minibatch, as numbers that processes can add up.

    Parameters
    ----------
    terms : ELBOTerms or None
        Of the bound; None if there are none.
    failure : Exception or None
        Of inference.
    like : Tensor
        Says of what type and where the counts are to be.

    Returns
    -------
    Tensor of shape (5,)
        Failures, values of the reconstruction and of the local KL that are not finite, and how many
        values both have.
    """
    counts = [0.0 if failure is None else 1.0, 0.0, 0.0, 0.0, 0.0]
    if terms is not None:
        fields = terms.reconstruction.detach(), terms.posterior.local_kl.detach()
        # A sum is finite only if all of it is, and cheaper than to look at each.
        if not math.isfinite(sum(float(field.sum()) for field in fields)):
            counts[1:3] = [float((~torch.isfinite(field)).sum()) for field in fields]
        counts[3:] = [float(field.numel()) for field in fields]
    return like.new_tensor(counts)


def check_faults(faults: Tensor, failure: Exception | None) -> None:
    """Raise what `count_faults` has found, in any of the processes.

    Parameters
    ----------
    faults : Tensor of shape (5,)
        Summed over processes.
    failure : Exception or None
        Of this one.

    Raises
    ------
    ValueError
        That says which term, and what may help.
    """
    n_failures, bad_reconstruction, bad_kl, n_rows, n_items = faults.tolist()
    if n_failures:
        why = "in another process" if failure is None else f"since {failure}"
        raise diverged(f"local inference failed, {why}", KL_ADVICE) from failure
    for name, bad, n_values, advice in (
        (
            "reconstruction term E[log p(x|z)]",
            bad_reconstruction,
            n_rows,
            RECONSTRUCTION_ADVICE,
        ),
        ("local KL term", bad_kl, n_items, KL_ADVICE),
    ):
        if bad:
            raise diverged(
                f"the {name} of the objective is not finite for {bad:.0f} of {n_values:.0f} rows "
                "of a minibatch",
                advice,
            )


def check_networks(model: StructuredVAE) -> None:
    """Make sure that all weights are finite.

    The objective is that before a step; the last step of all may still spoil the weights.

    Parameters
    ----------
    model : StructuredVAE
        After a step.

    Raises
    ------
    ValueError
        That says which parameter is not.
    """
    norms = torch._foreach_norm([value.detach() for value in model.parameters()])
    if torch.isfinite(torch.stack(norms)).all():
        return
    for (name, value), norm in zip(model.named_parameters(), norms, strict=True):
        if not torch.isfinite(norm):
            largest = float(value.detach().abs().max())
            raise diverged(f"{name} grew to {largest:.3g}", RECONSTRUCTION_ADVICE)
