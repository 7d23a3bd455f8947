"""LARS, layer-wise adaptive rate scaling: You, Gitman, Ginsburg 2017 (1708.03888), and what others call so.

With g the gradient, β the weight decay, γ the learning rate, μ the momentum, λ the trust ratio of the layer
(:mod:`largebatch.optim.trust_ratio`; 1 for tensors that are not adapted):

    variant     buffer                        update           denominator of λ     whose
    you2017     v ← μ·v + γ·λ·(g + β·w)       w ← w − v        ‖g‖ + β·‖w‖ + ε      paper, MLPerf reference
    timm        v ← μ·v + λ·(g + β·w)         w ← w − γ·v      ‖g‖ + β·‖w‖ + ε      timm, apex LARC
    nus         v ← μ·v + g + β·w             w ← w − γ·λ·v    ‖g‖ + β·‖w‖ + ε      NUS LARS-ImageNet-PyTorch
    vissl       v ← μ·v + λ·(g + β·w)         w ← w − γ·v      ‖g + β·w‖ + ε        VISSL, Barlow Twins
    optax       v ← μ·v + γ·λ·(g + β·w)       w ← w − v        ‖g + β·w‖ + ε        optax

They are different optimizers: a learning rate published for one does not fit another. Nesterov replaces v in
the update by μ·v + (what was just added to v). Where the lr is inside the buffer, ``momentum_correction``
(Goyal et al. 2017, eq. 10) rescales v by γ_new/γ_old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.errors import UserError, suggestion
from largebatch.optim.layerwise import LayerwiseOptimizer, buffers
from largebatch.optim.trust_ratio import trust_ratio

TensorList = tuple[Tensor, ...] | list[Tensor]


class Variant(NamedTuple):
    lr_inside: bool  # the learning rate multiplies what enters the buffer, not what leaves it
    ratio_inside: bool
    sum_of_norms: bool  # the denominator is ‖g‖ + β‖w‖, not ‖g + βw‖


VARIANTS = {
    "you2017": Variant(lr_inside=True, ratio_inside=True, sum_of_norms=True),
    "timm": Variant(lr_inside=False, ratio_inside=True, sum_of_norms=True),
    "nus": Variant(lr_inside=False, ratio_inside=False, sum_of_norms=True),
    "vissl": Variant(lr_inside=False, ratio_inside=True, sum_of_norms=False),
    "optax": Variant(lr_inside=True, ratio_inside=True, sum_of_norms=False),
}


class Lars(LayerwiseOptimizer):
    """``p.grad`` is read, never written. ``eps`` may be 0; a zero norm gives ratio 1."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        variant: str = "you2017",
        momentum_correction: bool = False,
        max_trust_ratio: float | None = None,
        foreach: bool = True,
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
        super().__init__(params, defaults, foreach)

    def one_layer(self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        variant: Variant = VARIANTS[group["variant"]]
        [v] = buffers([state], "momentum_buffer", [weight])
        update = grad.add(weight, alpha=group["weight_decay"])
        if group["adapt"]:
            norm = torch.linalg.vector_norm
            ratio = ratios(norm(weight), norm(grad), norm(update), variant, group)
        else:
            ratio = weight.new_ones(())
        if variant.ratio_inside:
            update.mul_(ratio)
        if variant.lr_inside:
            update.mul_(group["lr"])
        v.mul_(group["buffer_scale"]).add_(update)
        step = update.add_(v, alpha=group["momentum"]) if group["nesterov"] else v
        if not variant.ratio_inside:
            step = step.mul(ratio)
        weight.add_(step, alpha=-1.0 if variant.lr_inside else -group["lr"])

    def all_layers(
        self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        variant: Variant = VARIANTS[group["variant"]]
        v = buffers(states, "momentum_buffer", weights)
        updates = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
        ratio = layer_ratios(weights, grads, updates, variant, group) if group["adapt"] else None
        if variant.ratio_inside and ratio is not None:
            torch._foreach_mul_(updates, ratio)
        if variant.lr_inside:
            torch._foreach_mul_(updates, group["lr"])
        torch._foreach_mul_(v, group["buffer_scale"])
        torch._foreach_add_(v, updates)
        if group["nesterov"]:
            torch._foreach_add_(updates, v, alpha=group["momentum"])
        steps = updates if group["nesterov"] else v
        if not variant.ratio_inside and ratio is not None:
            steps = torch._foreach_mul(steps, ratio)
        torch._foreach_add_(weights, steps, alpha=-1.0 if variant.lr_inside else -group["lr"])


def ratios(
    weight_norm: Tensor, grad_norm: Tensor, update_norm: Tensor, variant: Variant, group: dict[str, Any]
) -> Tensor:
    """λ of one layer (0-d tensors) or of many (1-d tensors)."""
    if variant.sum_of_norms:
        denominator = grad_norm + group["weight_decay"] * weight_norm
        deciding = grad_norm
    else:
        denominator = deciding = update_norm
    denominator = (denominator + group["eps"]).where(deciding > 0, 0.0)
    return trust_ratio(weight_norm, denominator, group["trust_coefficient"], group["max_trust_ratio"])


def layer_ratios(
    weights: TensorList,
    grads: TensorList,
    updates: TensorList,
    variant: Variant,
    group: dict[str, Any],
) -> tuple[Tensor, ...]:
    weight_norms = torch.stack(torch._foreach_norm(weights))
    measured = torch.stack(torch._foreach_norm(grads if variant.sum_of_norms else updates))
    return ratios(weight_norms, measured, measured, variant, group).unbind()
