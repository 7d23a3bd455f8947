"""What the optimizers ask of a parameter group: numbers in their range, tensors whose norms are those of layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from largebatch.errors import UserError
from largebatch.optim.loading import Group

AT_LEAST_ZERO = ("lr", "weight_decay", "eps", "momentum")
BELOW_ONE = ("momentum",)
ABOVE_ZERO = ("trust_coefficient", "min_trust_ratio", "max_trust_ratio", "max_weight_norm")
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def check_numbers(number: int, group: Group) -> None:
    """Numbers on a device are not looked at."""
    settings = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
    for key in (*AT_LEAST_ZERO, "beta1", "beta2", *ABOVE_ZERO):
        value = settings.get(key)
        if value is None or isinstance(value, Tensor):
            continue
        if not value >= 0 or (key in ABOVE_ZERO and value == 0):
            wanted = "above 0" if key in ABOVE_ZERO else "at least 0"
            raise UserError(f"{key} = {value} in parameter group {number}; it must be {wanted}")
        if key in (*BELOW_ONE, "beta1", "beta2") and value >= 1:
            raise UserError(f"{key} = {value} in parameter group {number}; it must be below 1")


def check_wrappers(name: str, parameters: Iterable[Tensor], measures: bool, max_grad_norm: float | None) -> None:
    """Refuses what a wrapper has flattened or stepped alone, where norms matter, and what cannot be stepped."""
    for parameter in parameters:
        if measures and getattr(parameter, "_fsdp_flattened", False):
            raise UserError(
                f"{name} needs whole layers; FullyShardedDataParallel (FSDP1) shows it flattened shards: "
                "wrap the model with torch.distributed.fsdp.fully_shard (FSDP2)"
            )
        if max_grad_norm is not None and hasattr(parameter, "_in_backward_optimizers"):
            raise UserError(
                f"max_grad_norm = {max_grad_norm} bounds the norm of all gradients; an optimizer applied in the "
                "backward pass sees one tensor at a time: leave it out there"
            )
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise UserError(f"{name} takes dense gradients; this model has sparse ones")
        if parameter.is_meta:
            raise UserError(f"{name} cannot step parameters on the meta device: give the model memory (to_empty) first")
        if parameter.dtype not in TYPES:
            raise UserError(
                f"{name} takes parameters of {', '.join(str(t).removeprefix('torch.') for t in TYPES)}; one is of "
                f"{str(parameter.dtype).removeprefix('torch.')}"
            )
