"""The second rule of Muon's groups: what is no hidden matrix takes torch's SGD with Nesterov momentum or its AdamW."""

from __future__ import annotations

from typing import Any

from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards


def step_others(shards: Shards, group: Group) -> None:
    lr = float(group["lr"]) * group["others_lr_scale"]
    if group["others"] == "adamw":
        adamw(
            shards.weights, shards.grads, shards.buffers["exp_avg"], shards.buffers["exp_avg_sq"], [], shards.steps,
            has_complex=False, amsgrad=False, beta1=group["beta1"], beta2=group["beta2"], lr=lr,
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        return
    momentum = group["others_momentum"]
    buffers: list[Any] = shards.buffers["momentum_buffer"] if momentum > 0 else [None] * len(shards)
    sgd(
        shards.weights, shards.grads, buffers, weight_decay=group["weight_decay"], momentum=momentum, lr=lr,
        dampening=0.0, nesterov=momentum > 0, maximize=False,
    )  # fmt: skip
