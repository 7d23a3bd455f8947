"""Gradient descent with momentum as the lecture writes it: the learning rate is inside the buffer.

    m_t = λ·m_{t−1} − η·g_t          θ_t = θ_{t−1} + m_t                     (Polyak 1964; H. Lee, NTU ML 2021)
    Nesterov:                        θ_t = θ_{t−1} + λ·m_t − η·g_t

torch's SGD keeps η outside instead (u = λ·u + g, θ −= η·u). At a constant η the two are the same; when η
changes this buffer still holds steps of the old size. ``momentum_correction`` (Goyal et al. 2017,
1706.02677, eq. 10) multiplies it by η_new/η_old, which makes the two equal at every η > 0. Weight decay is
L2: g_t includes β·θ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch.optim.layerwise import Layer, LayerwiseOptimizer
from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards


class HeavyBall(LayerwiseOptimizer):
    """Element by element, so it needs no layer's norm; the fused form is the foreach form."""

    BUFFERS = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        momentum_correction: bool = False,
        form: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
            "nesterov": nesterov, "momentum_correction": momentum_correction,
        }  # fmt: skip
        super().__init__(params, defaults, form)

    def adapts(self, group: Group) -> bool:
        return False

    def propose(self, layer: Layer, group: Group) -> Tensor:
        return layer.grad

    def advance(self, layer: Layer, proposal: Tensor, ratio: Tensor | float, group: Group) -> None:
        m = layer.buffers["momentum_buffer"]
        step = layer.grad.add(layer.weight, alpha=group["weight_decay"]).mul_(-group["lr"])
        m.mul_(group["buffer_scale"]).add_(step)
        layer.weight.add_(step.add_(m, alpha=group["momentum"]) if group["nesterov"] else m)

    def propose_all(self, shards: Shards, group: Group) -> list[Tensor]:
        return shards.grads

    def advance_all(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        m = shards.buffers["momentum_buffer"]
        steps = list(torch._foreach_add(shards.grads, shards.weights, alpha=group["weight_decay"]))
        torch._foreach_mul_(steps, -group["lr"])
        torch._foreach_mul_(m, group["buffer_scale"])
        torch._foreach_add_(m, steps)
        if group["nesterov"]:
            torch._foreach_add_(steps, m, alpha=group["momentum"])
        torch._foreach_add_(shards.weights, steps if group["nesterov"] else m)
