"""RMSprop that turns into SGD, so that a large batch survives its first epochs: Akiba et al. 2017 (1711.04325).

    s ← μ2·s + (1−μ2)·g²
    Δ ← μ1·Δ − (α_SGD + α_RMS/(√s + ε))·g
    θ ← θ + η·Δ                                  α_RMS = (1 − α_SGD)·η_RMSprop/η, with η of this very step

g_t includes β·θ (L2). α_SGD is the group's ``sgd_share``: whoever trains sets it at every step, mostly from
:func:`sgd_share`. At α_SGD = 1 this is torch's SGD; at 0 and a constant η it is torch's RMSprop with
η_RMSprop, which like this one starts s at 0 and corrects no bias.

The learning rate is outside the buffer, as in torch's SGD, not inside as in :class:`~largebatch.optim.HeavyBall`. But
the buffer holds α_RMS of earlier steps, and so 1/η of those: an η that rises steeply while the share is small, as in a
warm-up from near 0, multiplies RMSprop's part of the buffer. The paper's own warm-up is the share, at a constant η.
Where η is 0, nothing moves: α_RMS is then 0, s and SGD's part of Δ go on, as torch's SGD does at lr 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch.errors import UserError
from largebatch.optim.layerwise import Layer, LayerwiseOptimizer
from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards


def sgd_share(epoch: float, center: float = 10.0, period: float = 5.0, printed: bool = False) -> float:
    """α_SGD at a fractional epoch e, of centre c and period p: exponential to ½ at c, linear to 1 at c + p/2, then 1.

        ½·exp(2(e−c)/p)  for e < c        ½ + (e−c)/p  for c ≤ e < c + p/2        1  after

    The paper prints ½ + 2(e−c)/p in the middle. That cannot be meant: it climbs to 1.5 before it falls back to 1, and
    α_RMS is negative on the way. ``printed`` takes it nevertheless.
    """
    if not period > 0:
        raise UserError(f"period = {period} of the SGD share must be above 0")
    since = (epoch - center) / period
    if since < 0:
        return 0.5 * math.exp(2 * since)
    if since < 0.5:
        return 0.5 + (2 * since if printed else since)
    return 1.0


class RmspropSgd(LayerwiseOptimizer):
    """Element by element, so it needs no layer's norm; the fused form is the foreach form. ``decay`` is μ2."""

    BUFFERS = ("momentum_buffer", "square_average")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        decay: float = 0.99,
        eps: float = 1e-8,
        rmsprop_lr: float = 3e-4,
        weight_decay: float = 0.0,
        sgd_share: float = 1.0,
        form: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "decay": decay, "eps": eps, "rmsprop_lr": rmsprop_lr,
            "weight_decay": weight_decay, "sgd_share": sgd_share,
        }  # fmt: skip
        super().__init__(params, defaults, form)

    def _check_group(self, number: int, group: Group) -> None:
        super()._check_group(number, group)
        for key, fits, wanted in (
            ("decay", 0 <= group["decay"] < 1, "at least 0 and below 1"),
            ("eps", group["eps"] > 0, "above 0: an element that never had a gradient would be 0/0"),
            ("rmsprop_lr", group["rmsprop_lr"] >= 0, "at least 0"),
            ("sgd_share", group["sgd_share"] >= 0, "at least 0"),
        ):
            if not fits:
                raise UserError(f"{key} = {group[key]} in parameter group {number}; it must be {wanted}")
        if group.get("momentum_correction"):
            raise UserError("momentum_correction needs the lr inside the buffer; RmspropSgd has it outside")

    def adapts(self, group: Group) -> bool:
        return False

    def settled(self, group: Group) -> Group:
        settings = super().settled(group)
        lr = settings["lr"]
        rms_share = (1 - group["sgd_share"]) * group["rmsprop_lr"] / lr if lr > 0 else 0.0
        return {**settings, "rms_share": rms_share}

    def propose(self, layer: Layer, group: Group) -> Tensor:
        return layer.grad

    def advance(self, layer: Layer, proposal: Tensor, ratio: Tensor | float, group: Group) -> None:
        delta, s = layer.buffers["momentum_buffer"], layer.buffers["square_average"]
        g = layer.grad.add(layer.weight, alpha=group["weight_decay"])
        s.mul_(group["decay"]).addcmul_(g, g, value=1 - group["decay"])
        of_rmsprop = g.div(s.sqrt().add_(group["eps"]))
        delta.mul_(group["momentum"]).sub_(g, alpha=group["sgd_share"]).sub_(of_rmsprop, alpha=group["rms_share"])
        layer.weight.add_(delta, alpha=group["lr"])

    def propose_all(self, shards: Shards, group: Group) -> list[Tensor]:
        return shards.grads

    def advance_all(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        deltas, s = shards.buffers["momentum_buffer"], shards.buffers["square_average"]
        g = list(torch._foreach_add(shards.grads, shards.weights, alpha=group["weight_decay"]))
        torch._foreach_mul_(s, group["decay"])
        torch._foreach_addcmul_(s, g, g, value=1 - group["decay"])
        below = list(torch._foreach_sqrt(s))
        torch._foreach_add_(below, group["eps"])
        torch._foreach_mul_(deltas, group["momentum"])
        torch._foreach_sub_(deltas, g, alpha=group["sgd_share"])
        torch._foreach_div_(g, below)
        torch._foreach_sub_(deltas, g, alpha=group["rms_share"])
        torch._foreach_add_(shards.weights, deltas, alpha=group["lr"])
