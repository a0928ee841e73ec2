# SPDX-License-Identifier: BSD-3-Clause
"""The protocol that every exponential family implements.

A family with natural parameters ``eta``, sufficient statistics ``t(x)`` and base measure ``h(x)``
has the density ::

    p(x) = h(x) exp(<eta, t(x)> - log Z(eta)),

with respect to Lebesgue measure (counting measure if x is discrete). ``h`` is stated by each
family and no constant is dropped, so `log_normalizer` is comparable with any other density.

A distribution is written in four ways. *Standard* parameters are those of the textbooks;
*natural* parameters multiply the statistics, so conjugate updates are additions; *expected
statistics* ``mu = E[t(x)]`` have the structure of the natural parameters, so that ``<eta, mu>``
is a plain sum over all entries; *unconstrained* parameters may be moved freely by an optimiser.
All are tuples of tensors whose fields share the leading batch shape.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from sksvae.expfam.numerics import sum_event, symmetrize

StandardT = TypeVar("StandardT", bound=tuple[Tensor, ...])
NaturalT = TypeVar("NaturalT", bound=tuple[Tensor, ...])
StatsT = TypeVar("StatsT", bound=tuple[Tensor, ...])
Unconstrained = tuple[Tensor, ...]


class ExponentialFamily(ABC, Generic[StandardT, NaturalT, StatsT]):
    """Base class of the families: stateless, so one instance serves everyone.

    A subclass states the class attributes and implements the abstract methods. Everything else,
    the natural gradient included, then works, and closed forms may override the defaults where
    speed or precision ask for it.

    Attributes
    ----------
    standard_type, natural_type, stats_type : type
        Named tuples of the three parameter forms.
    event_dims : tuple of int
        Number of trailing event dimensions of each field of ``natural_type``.
    symmetric : tuple of bool
        Which fields of ``natural_type`` are symmetric matrices.
    size_names : tuple of str
        Meaning of the integers that fix the size of an event, such as ``("n_features",)``.

    Examples
    --------
    >>> import torch
    >>> from sksvae.expfam import EXPONENTIAL_FAMILIES
    >>> family = EXPONENTIAL_FAMILIES["dirichlet"]
    >>> natural = family.to_natural(family.standard_type(torch.tensor([1.0, 1.0])))
    >>> family.expected_stats(natural).log_probabilities.round(decimals=3)
    tensor([-1., -1.])
    """

    standard_type: ClassVar[type]
    natural_type: ClassVar[type]
    stats_type: ClassVar[type]
    event_dims: ClassVar[tuple[int, ...]]
    symmetric: ClassVar[tuple[bool, ...]]
    size_names: ClassVar[tuple[str, ...]] = ("n_features",)

    @abstractmethod
    def to_natural(self, standard: StandardT) -> NaturalT:
        """Convert standard to natural parameters.

        Parameters
        ----------
        standard : StandardT
            Textbook parameters.

        Returns
        -------
        NaturalT
            Coefficients of the sufficient statistics.
        """

    @abstractmethod
    def from_natural(self, natural: NaturalT) -> StandardT:
        """Convert natural to standard parameters.

        Parameters
        ----------
        natural : NaturalT
            Coefficients of the sufficient statistics.

        Returns
        -------
        StandardT
            Textbook parameters.

        Raises
        ------
        torch.linalg.LinAlgError, ValueError
            If the natural parameters are outside their domain.
        """

    @abstractmethod
    def to_unconstrained(self, standard: StandardT) -> Unconstrained:
        """Convert standard to unconstrained parameters.

        Parameters
        ----------
        standard : StandardT
            Textbook parameters.

        Returns
        -------
        tuple of Tensor
            Coordinates that may take any real value.

        Raises
        ------
        torch.linalg.LinAlgError, ValueError
            If the standard parameters are outside their domain.
        """

    @abstractmethod
    def from_unconstrained(self, unconstrained: Unconstrained) -> StandardT:
        """Convert unconstrained to standard parameters.

        Parameters
        ----------
        unconstrained : tuple of Tensor
            Coordinates as given by `to_unconstrained`.

        Returns
        -------
        StandardT
            Textbook parameters.
        """

    @abstractmethod
    def unconstrained_shapes(self, *sizes: int) -> tuple[tuple[int, ...], ...]:
        """Event shapes of the unconstrained parameters.

        Parameters
        ----------
        *sizes : int
            One integer for each entry of ``size_names``.

        Returns
        -------
        tuple of tuple of int
            One shape per unconstrained tensor, without the batch shape.
        """

    @abstractmethod
    def log_normalizer(self, natural: NaturalT) -> Tensor:
        """Log normaliser ``log Z(eta)`` with all constants.

        Parameters
        ----------
        natural : NaturalT
            Natural parameters.

        Returns
        -------
        Tensor of shape (...)
            One number per batch entry.
        """

    @abstractmethod
    def expected_stats(self, natural: NaturalT) -> StatsT:
        """Compute the expected sufficient statistics ``E[t(x)]``, the gradient of ``log Z``.

        Parameters
        ----------
        natural : NaturalT
            Natural parameters.

        Returns
        -------
        StatsT
            Same structure and shapes as ``natural``.
        """

    @abstractmethod
    def sample(
        self, standard: StandardT, sample_shape: tuple[int, ...], generator: torch.Generator
    ) -> Any:
        """Draw from the distribution.

        Parameters
        ----------
        standard : StandardT
            Textbook parameters.
        sample_shape : tuple of int
            Leading shape of independent draws, before the batch shape.
        generator : torch.Generator
            The only source of randomness used.

        Returns
        -------
        Tensor or named tuple of Tensor
            Draws of shape ``(*sample_shape, *batch_shape, *event_shape)``.
        """

    @abstractmethod
    def stats_of(self, sample: Any) -> StatsT:
        """Sufficient statistics ``t(x)`` of draws.

        Parameters
        ----------
        sample : Tensor or named tuple of Tensor
            Draws as returned by `sample`.

        Returns
        -------
        StatsT
            The statistics of each draw.
        """

    def log_base_measure(self, stats: StatsT) -> Tensor:
        """Log base measure as a function of the statistics; zero unless overridden.

        It must be linear in the statistics, so that its expectation is its value at the
        expected statistics. That is what `entropy` uses.

        Parameters
        ----------
        stats : StatsT
            Statistics of a draw, or expected statistics.

        Returns
        -------
        Tensor of shape (...)
            ``log h(x)``, or its expectation.
        """
        last, n_dims = stats[-1], self.event_dims[-1]
        return last.new_zeros(last.shape[: last.ndim - n_dims])

    def log_prob(self, natural: NaturalT, sample: Any) -> Tensor:
        """Log density of draws.

        Parameters
        ----------
        natural : NaturalT
            Natural parameters.
        sample : Tensor or named tuple of Tensor
            Points as returned by `sample`.

        Returns
        -------
        Tensor
            Log densities, of the broadcast batch shape.
        """
        stats = self.stats_of(sample)
        exponent = self.inner(natural, stats) - self.log_normalizer(natural)
        return exponent + self.log_base_measure(stats)

    def inner(self, natural: tuple[Tensor, ...], stats: tuple[Tensor, ...]) -> Tensor:
        """Inner product ``<natural, stats>``: a plain sum over all entries of all fields.

        Parameters
        ----------
        natural, stats : tuple of Tensor
            Natural parameters and statistics, batch shapes broadcasting.

        Returns
        -------
        Tensor of shape (...)
            One number per batch entry.
        """
        fields = zip(natural, stats, self.event_dims, strict=True)
        terms = [sum_event(eta * mu, n_dims) for eta, mu, n_dims in fields]
        return sum(terms[1:], terms[0])

    def symmetrize(self, natural: tuple[Tensor, ...]) -> NaturalT:
        """Project a tangent onto natural parameters: symmetric fields become symmetric.

        Statistics such as ``z z'`` are symmetric, so only the symmetric part of their
        coefficient, or of a gradient with respect to them, means anything.

        Parameters
        ----------
        natural : tuple of Tensor
            Natural parameters, or a gradient with respect to expected statistics.

        Returns
        -------
        NaturalT
            The same with its matrix fields symmetrised where the family says so.
        """
        fields = zip(natural, self.symmetric, strict=True)
        return cast(
            NaturalT,
            self.natural_type(*(symmetrize(eta) if flag else eta for eta, flag in fields)),
        )

    def kl(self, natural_q: NaturalT, natural_p: NaturalT) -> Tensor:
        """Kullback-Leibler divergence ``KL(q || p)``.

        The default is the Bregman form ``<eta_q - eta_p, mu_q> - log Z_q + log Z_p``.

        Parameters
        ----------
        natural_q, natural_p : NaturalT
            Natural parameters, batch shapes broadcasting.

        Returns
        -------
        Tensor of shape (...)
            Divergences in nats.
        """
        difference = tuple(q - p for q, p in zip(natural_q, natural_p, strict=True))
        normalizers = self.log_normalizer(natural_p) - self.log_normalizer(natural_q)
        return self.inner(difference, self.expected_stats(natural_q)) + normalizers

    def entropy(self, natural: NaturalT) -> Tensor:
        """Differential (for discrete x: Shannon) entropy.

        Parameters
        ----------
        natural : NaturalT
            Natural parameters.

        Returns
        -------
        Tensor of shape (...)
            Entropies in nats.
        """
        stats = self.expected_stats(natural)
        exponent = self.inner(natural, stats) - self.log_normalizer(natural)
        return -exponent - self.log_base_measure(stats)

    def standard_expected_stats(self, standard: StandardT) -> StatsT:
        """Compute the expected statistics from the standard parameters.

        Parameters
        ----------
        standard : StandardT
            Textbook parameters.

        Returns
        -------
        StatsT
            Expected sufficient statistics.
        """
        return self.expected_stats(self.to_natural(standard))

    def standard_kl(self, standard_q: StandardT, standard_p: StandardT) -> Tensor:
        """Divergence ``KL(q || p)`` from standard parameters.

        Parameters
        ----------
        standard_q, standard_p : StandardT
            Textbook parameters, batch shapes broadcasting.

        Returns
        -------
        Tensor of shape (...)
            Divergences in nats.
        """
        return self.kl(self.to_natural(standard_q), self.to_natural(standard_p))

    def unconstrained_expected_stats(self, unconstrained: Unconstrained) -> StatsT:
        """Compute the expected statistics from the unconstrained parameters.

        Parameters
        ----------
        unconstrained : tuple of Tensor
            Coordinates as given by `to_unconstrained`.

        Returns
        -------
        StatsT
            Expected sufficient statistics.
        """
        return self.expected_stats(self.to_natural(self.from_unconstrained(unconstrained)))

    def unconstrained_kl(self, unconstrained_q: Unconstrained, natural_p: NaturalT) -> Tensor:
        """Divergence ``KL(q || p)`` of a ``q`` in unconstrained from a ``p`` in natural form.

        Parameters
        ----------
        unconstrained_q : tuple of Tensor
            Unconstrained parameters of ``q``.
        natural_p : NaturalT
            Natural parameters of ``p``.

        Returns
        -------
        Tensor of shape (...)
            Divergences in nats.
        """
        return self.kl(self.to_natural(self.from_unconstrained(unconstrained_q)), natural_p)

    def tangent_to_unconstrained(
        self, unconstrained: Unconstrained, tangent: NaturalT
    ) -> Unconstrained:
        """Push a natural-parameter tangent to unconstrained coordinates.

        With ``eta = f(u)`` this is the Jacobian-vector product of the inverse of ``f`` at
        ``f(u)``. The default differentiates `to_unconstrained` after `from_natural` in forward
        mode; overrides are closed forms, tested against it.

        Parameters
        ----------
        unconstrained : tuple of Tensor
            The point ``u``.
        tangent : NaturalT
            Velocity of ``eta``; its symmetric fields must be symmetric.

        Returns
        -------
        tuple of Tensor
            Velocity of ``u``.
        """

        def inverse(*natural: Tensor) -> Unconstrained:
            typed = cast(NaturalT, self.natural_type(*natural))
            return self.to_unconstrained(self.from_natural(typed))

        point = self.to_natural(self.from_unconstrained(unconstrained))
        velocity = torch.func.jvp(inverse, tuple(point), tuple(tangent))[1]
        return cast(Unconstrained, velocity)

    def random_standard(
        self,
        *sizes: int,
        batch_shape: tuple[int, ...] = (),
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        spread: float = 0.5,
    ) -> StandardT:
        """Draw valid parameters: Gaussian noise in the unconstrained coordinates.

        Parameters
        ----------
        *sizes : int
            One integer for each entry of ``size_names``.
        batch_shape : tuple of int, default=()
            Leading batch shape.
        generator : torch.Generator
            The only source of randomness used.
        dtype : torch.dtype, default=None
            Precision; None means torch's default.
        spread : float, default=0.5
            Standard deviation of the noise.

        Returns
        -------
        StandardT
            Textbook parameters, moderately conditioned.
        """
        noise = tuple(
            torch.randn(
                (*batch_shape, *shape), generator=generator, dtype=dtype, device=generator.device
            )
            for shape in self.unconstrained_shapes(*sizes)
        )
        return self.from_unconstrained(tuple(spread * tensor for tensor in noise))
