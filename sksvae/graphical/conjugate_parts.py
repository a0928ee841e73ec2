# SPDX-License-Identifier: BSD-3-Clause
"""Learning of a q(theta) that is a product of exponential families."""

from collections.abc import Sequence
from functools import cached_property
from operator import add
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sksvae.expfam import MNIW, NIW, Dirichlet, TiedMNIW, natural_step, step_towards
from sksvae.graphical.api import ConjugateModel, PosteriorT


class ConjugateParts(ConjugateModel[PosteriorT]):
    """What of a `ConjugateModel` follows from the families of its parameters alone.

    Subclasses name the families and add inference.

    Parameters
    ----------
    prior : parameters_type
        Prior over the parameters.
    posterior : parameters_type or None, default=None
        ``q(theta)``; starts at the prior.

    Attributes
    ----------
    parameters_type : type
        Named tuple of the standard parameters of the parts, such as `SwitchingPrior`.
    families : tuple of {Dirichlet, NIW, MNIW, TiedMNIW}
        That of each part. A part may be a batch of independent distributions.

    Examples
    --------
    >>> from sksvae.graphical import DynamicsPrior, SwitchingDynamicsModel, SwitchingPrior
    >>> model = SwitchingDynamicsModel(SwitchingPrior.sticky(3, DynamicsPrior.isotropic(2)))
    >>> [type(family).__name__ for family in model.families]
    ['NIW', 'MNIW', 'Dirichlet', 'Dirichlet']
    """

    parameters_type: ClassVar[Any]
    families: tuple[Dirichlet | NIW | MNIW | TiedMNIW, ...]

    def __init__(self, prior: Any, posterior: Any = None) -> None:
        self.prior = prior
        self.posterior = prior if posterior is None else posterior

    @cached_property
    def _natural_prior(self) -> tuple[tuple[Tensor, ...], ...]:
        pairs = zip(self.families, self.prior, strict=True)
        return tuple(family.to_natural(part) for family, part in pairs)

    def expected_params(self) -> tuple[Tensor, ...]:
        """Return expected statistics of q(theta), part by part, as leaves."""
        return tuple(
            field.detach().requires_grad_()
            for family, part in zip(self.families, self.posterior, strict=True)
            for field in family.standard_expected_stats(part)
        )

    def prior_kl(self) -> Tensor:
        """``KL(q(theta) || p(theta))``, in nats."""
        parts = zip(self.families, self.posterior, self.prior, strict=True)
        return torch.stack([family.standard_kl(q, p).sum() for family, q, p in parts]).sum()

    def natural_step(self, gradient: Sequence[Tensor], step_size: float) -> None:
        """Step along ``gradient + eta_0 - eta``; size 1 is a coordinate update of [J]."""
        parts = zip(
            self.families, self.posterior, self._natural_prior, self._split(gradient), strict=True
        )
        self.posterior = self.parameters_type(
            *(
                step_towards(family, q, family.natural_type(*map(add, prior, grad)), step_size)
                for family, q, prior, grad in parts
            )
        )

    def coordinate_update(self, total_stats: Sequence[Tensor]) -> None:
        """Posterior of theta given the statistics of all rows, exactly."""
        parts = zip(self.families, self.prior, self._split(total_stats), strict=True)
        self.posterior = self.parameters_type(
            *(
                natural_step(family, prior, family.natural_type(*stats), 1.0)
                for family, prior, stats in parts
            )
        )

    def _split(self, stats: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Divide among the parts."""
        groups, first = [], 0
        for family in self.families:
            size = len(family.natural_type._fields)
            groups.append(stats[first : first + size])
            first += size
        return groups

    def state(self) -> dict[str, Tensor]:
        """Prior and posterior parameters by name."""
        return {
            f"{name}.{part}.{field}": value
            for name, params in (("prior", self.prior), ("posterior", self.posterior))
            for part, fields in params._asdict().items()
            for field, value in fields._asdict().items()
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild from `state`."""
        types = cls._types_of(state)

        def read(name: str) -> Any:
            parts = []
            for part, standard in zip(cls.parameters_type._fields, types, strict=True):
                fields = (state[f"{name}.{part}.{field}"] for field in standard._fields)
                parts.append(standard(*fields))
            return cls.parameters_type(*parts)

        return cls(read("prior"), read("posterior"))

    @classmethod
    def _types_of(cls, state: dict[str, Tensor]) -> tuple[Any, ...]:
        """Types of the standard parameters of the parts that a state holds."""
        return tuple(family.standard_type for family in cls.families)
