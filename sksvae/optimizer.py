# SPDX-License-Identifier: BSD-3-Clause
"""Adam and Muon without what the classes of torch bring along."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink
from torch.optim.adam import adam

_MOMENTUM = 0.95
_RMS = 0.2  # of the entries of a step of Muon, in learning rates: about that of Adam
# Of a x + b x^3 + c x^5, iterated: small singular values grow fastest, and end in [0.7, 1.2].
_QUINTIC, _QUINTIC_STEPS = (3.4445, -4.7750, 2.0315), 5
_FADED = 1e-25  # size of entries of averages that are zero
_NEGLIGIBLE = 1e-6  # entries relative to the norm: their sixth powers are normal numbers yet

Slots = dict[str, Tensor]


class _Rule(NamedTuple):
    """How tensors of a group move: what is kept of each between steps, and the step."""

    begin: Callable[[Tensor], Slots]
    move: Callable[[list[Tensor], list[Tensor], list[Slots], float], None]


class Optimizer:
    """Steps of Adam and Muon, for groups of tensors.

    The classes of torch import the whole compiler of torch when they are first used, which takes
    longer than to fit a small model, and each of their steps costs more than the computation.

    Adam takes the steps of `torch.optim.Adam`. Muon is for weight matrices: averages of their
    gradients, made orthogonal, so that all directions of the input and the output of a layer learn
    at the same speed, however little of the loss they make up. Its steps are those of
    `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"`` and without weight decay, in the
    type of the weights: entries have a root mean square of a fifth of the learning rate.

    Parameters
    ----------
    groups : sequence of tuple of sequence of Tensor, float and {"adam", "muon"}
        Tensors that are moved along their ``grad``, their learning rate, and by which rule.

    References
    ----------
    .. [1] Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    .. [2] Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    .. [3] Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, equation 4.

    Examples
    --------
    >>> import torch
    >>> from sksvae.optimizer import Optimizer
    >>> value = torch.zeros(1, requires_grad=True)
    >>> optimizer = Optimizer([([value], 0.5, "adam")])
    >>> value.grad = torch.tensor([3.0])
    >>> optimizer.step()
    >>> value.detach()
    tensor([-0.5000])
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float, str]]) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(params), "lr": rate, "initial_lr": rate, "rule": rule}
            for params, rate, rule in groups
        ]
        # By the number of the tensor, from its first step on.
        self.state: dict[int, Slots] = {}

    def _numbers(self) -> Iterator[tuple[dict[str, Any], range]]:
        first = 0
        for group in self.param_groups:
            yield group, range(first, first := first + len(group["params"]))

    @torch.no_grad()
    def step(self) -> None:
        """Move all tensors."""
        for group, numbers in self._numbers():
            rule, params = _RULES[group["rule"]], group["params"]
            for number, param in zip(numbers, params, strict=True):
                if number not in self.state:
                    self.state[number] = rule.begin(param)
            slots = [self.state[number] for number in numbers]
            rule.move(
                params, [_laid_out(param.grad, param) for param in params], slots, group["lr"]
            )

    def state_dict(self) -> dict[str, Any]:
        """Copy moments, step counts and learning rates, in the layout of torch."""
        groups = [{**group, "params": list(numbers)} for group, numbers in self._numbers()]
        state = {
            number: {name: value.clone() for name, value in slot.items()}
            for number, slot in self.state.items()
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a `state_dict`, which stays as it is.

        What other rules kept is left behind, and all moments begin afresh.
        """
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({name: saved[name] for name in ("lr", "initial_lr")})
        rules = [_RULES[group["rule"]] for group in self.param_groups for _ in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        slots = state["state"]
        fits = all(
            slots[number].keys() == rules[number].begin(params[number]).keys() for number in slots
        )
        self.state = {
            number: {
                name: value.to(params[number].device, copy=True) for name, value in slot.items()
            }
            for number, slot in (slots.items() if fits else ())
        }


def _laid_out(gradient: Tensor, param: Tensor) -> Tensor:
    """Gradient of a tensor, in the order in memory that the tensor has.

    The fused step of torch reads both as they lie there, and is wrong where they differ.
    """
    if gradient.stride() == param.stride():
        return gradient
    return torch.empty_like(param).copy_(gradient)


def _begin_adam(param: Tensor) -> Slots:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=param.device),
        "exp_avg": torch.zeros_like(param),
        "exp_avg_sq": torch.zeros_like(param),
    }


def _move_by_adam(
    params: list[Tensor], gradients: list[Tensor], slots: list[Slots], rate: float
) -> None:
    adam(
        params,
        gradients,
        [slot["exp_avg"] for slot in slots],
        [slot["exp_avg_sq"] for slot in slots],
        max_exp_avg_sqs=[],
        state_steps=[slot["step"] for slot in slots],
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )


def _begin_muon(param: Tensor) -> Slots:
    return {"momentum_buffer": torch.zeros_like(param)}


def _move_by_muon(
    params: list[Tensor], gradients: list[Tensor], slots: list[Slots], rate: float
) -> None:
    for param, gradient, slot in zip(params, gradients, slots, strict=True):
        average = slot["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        # What fades away behind units that died becomes subnormal, and a hundred times as slow.
        average.copy_(hardshrink(average, _FADED))
        update = _orthogonal(gradient.lerp(average, _MOMENTUM))
        param.add_(update, alpha=-rate * _RMS * math.sqrt(max(param.shape)))


def _orthogonal(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors, with singular values near one."""
    a, b, c = _QUINTIC
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = hardshrink(x / x.norm().clamp(min=_FADED), _NEGLIGIBLE)
    for _ in range(_QUINTIC_STEPS):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


_RULES = {"adam": _Rule(_begin_adam, _move_by_adam), "muon": _Rule(_begin_muon, _move_by_muon)}
