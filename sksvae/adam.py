# SPDX-License-Identifier: BSD-3-Clause
"""Adam without what the class of torch brings along."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam as `torch.optim.Adam` takes its steps, for groups of tensors.

    The class of torch imports the whole compiler of torch when it is first used, which takes longer
    than to fit a small model, and each of its steps costs more than the computation.

    Parameters
    ----------
    groups : sequence of pair of sequence of Tensor and float
        Tensors that are moved along their ``grad``, and their learning rate.

    Examples
    --------
    >>> import torch
    >>> from sksvae.adam import Adam
    >>> value = torch.zeros(1, requires_grad=True)
    >>> adam = Adam([([value], 0.5)])
    >>> value.grad = torch.tensor([3.0])
    >>> adam.step()
    >>> value.detach()
    tensor([-0.5000])
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]]) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(params), "lr": rate, "initial_lr": rate} for params, rate in groups
        ]
        # By the number of the tensor, from its first step on.
        self.state: dict[int, dict[str, Tensor]] = {}

    def _numbers(self) -> Iterator[tuple[dict[str, Any], range]]:
        first = 0
        for group in self.param_groups:
            yield group, range(first, first := first + len(group["params"]))

    @torch.no_grad()
    def step(self) -> None:
        """Move all tensors."""
        for group, numbers in self._numbers():
            params = group["params"]
            for number, param in zip(numbers, params, strict=True):
                if number not in self.state:
                    self.state[number] = {
                        "step": torch.zeros((), dtype=torch.float32, device=param.device),
                        "exp_avg": torch.zeros_like(param),
                        "exp_avg_sq": torch.zeros_like(param),
                    }
            slots = [self.state[number] for number in numbers]
            adam(
                params,
                [param.grad for param in params],
                [slot["exp_avg"] for slot in slots],
                [slot["exp_avg_sq"] for slot in slots],
                max_exp_avg_sqs=[],
                state_steps=[slot["step"] for slot in slots],
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group["lr"],
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
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
        """Go back to a `state_dict`, which stays as it is."""
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({name: saved[name] for name in ("lr", "initial_lr")})
        params = [param for group in self.param_groups for param in group["params"]]
        self.state = {
            number: {
                name: value.to(params[number].device, copy=True) for name, value in slot.items()
            }
            for number, slot in state["state"].items()
        }
