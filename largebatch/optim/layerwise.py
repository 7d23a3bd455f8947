"""What LARS and LAMB share: the walk over groups, and the choice between the plain and the foreach form.

The plain form, one tensor after another, is the specification; the foreach form is the same algebra on
lists. Both see for each group the parameters that have a gradient, and never write to ``p.grad``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from largebatch.errors import UserError


class LayerwiseOptimizer(Optimizer, abc.ABC):
    """An optimizer whose step on a group is ``one_layer`` per tensor, or ``all_layers`` at once.

    Groups carry ``adapt``: whether their tensors take the trust ratio (default True). Both forms get the
    group with ``buffer_scale`` added: momentum, times the momentum correction of this step.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], foreach: bool) -> None:
        for key in ("lr", "weight_decay", "eps", "trust_coefficient", "momentum", "beta1", "beta2"):
            if defaults.get(key, 0.0) < 0:
                raise UserError(f"{key} = {defaults[key]} is negative; it must be at least 0")
        for key in ("momentum", "beta1", "beta2"):
            if defaults.get(key, 0.0) >= 1:
                raise UserError(f"{key} = {defaults[key]} must be below 1")
        self.foreach = foreach
        super().__init__(params, {"adapt": True, "momentum": 0.0, "momentum_correction": False, **defaults})

    @abc.abstractmethod
    def one_layer(self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One tensor's step: the specification."""

    @abc.abstractmethod
    def all_layers(
        self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        """The same algebra on lists."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            if not weights:
                continue
            grads = [p.grad for p in weights]
            if any(g.is_sparse for g in grads):
                raise UserError(f"{type(self).__name__} takes dense gradients; this model has sparse ones")
            states = [self.state[p] for p in weights]
            settings = {**group, "buffer_scale": group["momentum"] * momentum_correction(group)}
            if self.foreach:
                self.all_layers(weights, grads, states, settings)
            else:
                for weight, grad, state in zip(weights, grads, states, strict=True):
                    self.one_layer(weight, grad, state, settings)
        return loss


def buffers(states: list[dict[str, Any]], name: str, like: list[Tensor]) -> list[Tensor]:
    """The state tensors called ``name``, zeros at first."""
    for state, tensor in zip(states, like, strict=True):
        if name not in state:
            state[name] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
    return [state[name] for state in states]


def momentum_correction(group: dict[str, Any]) -> float:
    """Goyal et al. 2017, eq. 10: η_new/η_old for a buffer that has absorbed the lr; 1 when not asked for.

    Where η_old is 0 the buffer holds nothing of that step, and the factor is 1.
    """
    previous, group["previous_lr"] = group.get("previous_lr", group["lr"]), group["lr"]
    return group["lr"] / previous if group["momentum_correction"] and previous > 0 else 1.0
