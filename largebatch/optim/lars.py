"""LARS, layer-wise adaptive rate scaling: You, Gitman, Ginsburg 2017 (1708.03888), and what others call so.

With g the gradient, β the weight decay, γ the learning rate, μ the momentum, λ the trust ratio of the layer
(:mod:`largebatch.optim.trust_ratio`; 1 for tensors that are not adapted):

    variant     buffer                        update           denominator of λ     whose
    you2017     v ← μ·v + γ·λ·(g + β·w)       w ← w − v        ‖g‖ + β·‖w‖ + ε      paper, MLPerf reference, mmpretrain
    timm        v ← μ·v + λ·(g + β·w)         w ← w − γ·v      ‖g‖ + β·‖w‖ + ε      timm
    larc        the same                                                            apex LARC(clip=False)
    nus         v ← μ·v + clip(g + β·w)       w ← w − γ·λ·v    ‖g‖ + β·‖w‖ + ε      NUS LARS-ImageNet, ColossalAI
    vissl       v ← μ·v + λ·(g + β·w)         w ← w − γ·v      ‖g + β·w‖ + ε        VISSL, Barlow Twins
    optax       v ← μ·v + γ·λ·(g + β·w)       w ← w − v        ‖g + β·w‖ + ε        optax

They are different optimizers: a learning rate published for one does not fit another. ``nus`` also bounds λ by 50 and
every element of g + β·w by ±10, as its code does. ``timm`` adapts no group without weight decay, as timm does unless it
is told always_adapt; ``larc`` adapts those, too. apex LARC's default, clip=True, is λ ← min(λ/γ, 1), which none of
these has. Nesterov replaces v in the update by μ·v + (what was just added to
v). Where the lr is inside the buffer, ``momentum_correction`` (Goyal et al. 2017, eq. 10) rescales v by γ_new/γ_old.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.errors import UserError, suggestion
from largebatch.optim import cpu
from largebatch.optim.layerwise import Layer, LayerwiseOptimizer
from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards
from largebatch.optim.tables import GroupSettings
from largebatch.optim.trust_ratio import trust_ratio


class LarsVariant(NamedTuple):
    lr_inside: bool  # the learning rate multiplies what enters the buffer, not what leaves it
    ratio_inside: bool
    sum_of_norms: bool  # the denominator is ‖g‖ + β‖w‖, not ‖g + βw‖
    largest_ratio: float | None = None
    largest_element: float | None = None  # of g + βw, in magnitude
    adapts_undecayed: bool = True  # tensors without weight decay take a ratio too


VARIANTS = {
    "you2017": LarsVariant(lr_inside=True, ratio_inside=True, sum_of_norms=True),
    "timm": LarsVariant(lr_inside=False, ratio_inside=True, sum_of_norms=True, adapts_undecayed=False),
    "larc": LarsVariant(lr_inside=False, ratio_inside=True, sum_of_norms=True),
    "nus": LarsVariant(
        lr_inside=False, ratio_inside=False, sum_of_norms=True, largest_ratio=50.0, largest_element=10.0
    ),
    "vissl": LarsVariant(lr_inside=False, ratio_inside=True, sum_of_norms=False),
    "optax": LarsVariant(lr_inside=True, ratio_inside=True, sum_of_norms=False),
}


class Lars(LayerwiseOptimizer):
    """``p.grad`` is read, never written. ``eps`` may be 0; a zero norm gives ratio 1.

    ``max_trust_ratio`` bounds λ (and, for ``nus``, takes the place of its 50). ``form`` is how it is computed, not
    what: see :mod:`largebatch.optim.layerwise`.
    """

    BUFFERS = ("momentum_buffer",)
    KERNELS = "lars"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        variant: str = "you2017",
        momentum_correction: bool = False,
        max_trust_ratio: float | None = None,
        form: str = "auto",
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"LARS variant {variant!r} is not known{suggestion(variant, list(VARIANTS))}")
        if momentum_correction and not VARIANTS[variant].lr_inside:
            raise UserError(
                f"momentum correction needs the lr inside the buffer; LARS variant {variant} has it outside"
            )
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps,
            "trust_coefficient": trust_coefficient, "nesterov": nesterov, "variant": variant,
            "momentum_correction": momentum_correction, "max_trust_ratio": max_trust_ratio,
        }  # fmt: skip
        super().__init__(params, defaults, form)

    def adapts(self, group: Group) -> bool:
        return group["adapt"] and (group["weight_decay"] > 0 or VARIANTS[group["variant"]].adapts_undecayed)

    def ratios(self, weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
        """λ of layers; ``proposal_norms`` are ‖g‖ where the denominator is a sum of norms, else ‖g + β·w‖."""
        below = denominators(weight_norms, proposal_norms, group)
        return trust_ratio(weight_norms, below, group["trust_coefficient"], largest_ratio(group))

    def bounded(self, weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
        largest = largest_ratio(group)
        if largest is None:
            return super().bounded(weight_norms, proposal_norms, group)
        below = denominators(weight_norms, proposal_norms, group)
        return group["trust_coefficient"] * weight_norms > largest * below

    def kernel_row(self, settings: Group) -> GroupSettings:
        variant, decay = VARIANTS[settings["variant"]], settings["weight_decay"]
        return GroupSettings(
            lr=settings["lr"],
            decay=decay,
            trust_coefficient=settings["trust_coefficient"],
            ratio_eps=settings["eps"],
            ratio_decay=decay if variant.sum_of_norms else 0.0,
            largest_ratio=largest_ratio(settings) or math.inf,
            buffer_scale=settings["buffer_scale"],
            proposal_decay=0.0 if variant.sum_of_norms else decay,
            largest_element=variant.largest_element or math.inf,
            lr_inside=float(variant.lr_inside),
            ratio_inside=float(variant.ratio_inside),
            share_of_update=float(settings["nesterov"]),
            share_of_buffer=settings["momentum"] if settings["nesterov"] else 1.0,
        )

    def propose(self, layer: Layer, group: Group) -> Tensor:
        if VARIANTS[group["variant"]].sum_of_norms:
            return layer.grad
        return layer.grad.add(layer.weight, alpha=group["weight_decay"])

    def advance(self, layer: Layer, proposal: Tensor, ratio: Tensor | float, group: Group) -> None:
        variant = VARIANTS[group["variant"]]
        v = layer.buffers["momentum_buffer"]
        update = layer.grad.add(layer.weight, alpha=group["weight_decay"])
        if variant.largest_element is not None:
            update.clamp_(-variant.largest_element, variant.largest_element)
        if variant.ratio_inside:
            update.mul_(ratio)
        if variant.lr_inside:
            update.mul_(group["lr"])
        v.mul_(group["buffer_scale"]).add_(update)
        step = update.add_(v, alpha=group["momentum"]) if group["nesterov"] else v
        if not variant.ratio_inside:
            step = step.mul(ratio)
        layer.weight.add_(step, alpha=-1.0 if variant.lr_inside else -group["lr"])

    def propose_all(self, shards: Shards, group: Group) -> list[Tensor]:
        if VARIANTS[group["variant"]].sum_of_norms:
            return shards.grads
        return list(torch._foreach_add(shards.grads, shards.weights, alpha=group["weight_decay"]))

    def advance_all(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        variant = VARIANTS[group["variant"]]
        v = shards.buffers["momentum_buffer"]
        updates = proposals
        if proposals is shards.grads:
            updates = list(torch._foreach_add(shards.grads, shards.weights, alpha=group["weight_decay"]))
        if variant.largest_element is not None:
            torch._foreach_clamp_max_(updates, variant.largest_element)
            torch._foreach_clamp_min_(updates, -variant.largest_element)
        if variant.ratio_inside and ratios is not None:
            torch._foreach_mul_(updates, ratios)
        if variant.lr_inside:
            torch._foreach_mul_(updates, group["lr"])
        torch._foreach_mul_(v, group["buffer_scale"])
        torch._foreach_add_(v, updates)
        if group["nesterov"]:
            torch._foreach_add_(updates, v, alpha=group["momentum"])
        steps = updates if group["nesterov"] else v
        if not variant.ratio_inside and ratios is not None:
            steps = torch._foreach_mul(steps, ratios)
        torch._foreach_add_(shards.weights, steps, alpha=-1.0 if variant.lr_inside else -group["lr"])

    def advance_fused(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        """v and w in one pass each: with a dampening of 1 − γ·λ, torch's SGD adds γ·λ·(g + β·w) to its buffer."""
        variant = VARIANTS[group["variant"]]
        beyond_it = variant.largest_element is not None or not variant.ratio_inside or group["nesterov"]
        if beyond_it or group["buffer_scale"] == 0 or not cpu.fits(shards):
            self.advance_all(shards, proposals, ratios, group)
            return
        v = shards.buffers["momentum_buffer"]
        takes = [slice(i, i + 1) for i in range(len(v))] if ratios is not None else [slice(None)]
        values = torch.stack(ratios).tolist() if ratios else [1.0]
        for take, ratio in zip(takes, values, strict=True):
            inside, outside = (ratio * group["lr"], 1.0) if variant.lr_inside else (ratio, group["lr"])
            cpu.sgd(
                shards.weights[take], shards.grads[take], v[take],
                group["weight_decay"], group["buffer_scale"], outside, 1.0 - inside,
            )  # fmt: skip


def denominators(weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
    """What stands below λ; 0 where the layer has no direction."""
    below = proposal_norms
    if VARIANTS[group["variant"]].sum_of_norms:
        below = below + group["weight_decay"] * weight_norms
    return (below + group["eps"]).where(proposal_norms > 0, 0.0)


def largest_ratio(group: Group) -> float | None:
    """The bound on λ: the group's own, else the variant's."""
    return group["max_trust_ratio"] or VARIANTS[group["variant"]].largest_ratio
