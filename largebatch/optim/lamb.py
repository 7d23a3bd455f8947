"""LAMB, layer-wise adaptive moments: You et al. 2019 (1904.00962), Algorithm 2.

    m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²
    r = (m / (1−β1^t)) / (√(v / (1−β2^t)) + ε)           without bias correction: r = m / (√v + ε)
    u = r + λ·w                                           the decay is inside the normalised update
    w ← w − η · φ(‖w‖)/‖u‖ · u                            per layer; ratio 1 for tensors not adapted

φ(z) = min(z, max_weight_norm), the identity by default: the paper leaves its bounds open.

    variant     bias correction   ratio of tensors without decay   bounds of the ratio   whose
    you2019     on                φ(‖w‖)/‖u‖                       none                  paper; timm with always_adapt;
                                                                                         apex with use_nvlamb
    apex        on                1                                none                  NVIDIA apex FusedLAMB, timm's
    nus         off               1                                none                  NUS pytorch-lamb
    deepspeed   off               φ(‖w‖)/‖u‖                       0.01 to 0.3           DeepSpeed FusedLamb, as its
                                                                                         BERT recipe calls it

``min_trust_ratio`` and ``max_trust_ratio`` take the place of the variant's bounds; FusedLamb's own are 0.01 and 10. A
tensor with a zero norm keeps the ratio 1, as there, whatever the bounds. FusedLamb has a bias correction, too, but
outside of the ratio, where it only scales the lr by √(1−β2^t)/(1−β1^t): that is not offered.

``apex``, ``nus`` and ``deepspeed`` also clip the global gradient norm at 1 wherever they are used. A clip is nothing to
hide: ask for it with ``max_grad_norm``, which scales what the moments see and leaves ``p.grad`` as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from largebatch.errors import UserError, suggestion
from largebatch.optim import cpu
from largebatch.optim.layerwise import CACHED_ELEMENTS, Layer, LayerwiseOptimizer
from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards
from largebatch.optim.tables import GroupSettings
from largebatch.optim.trust_ratio import trust_ratio


class LambVariant(NamedTuple):
    bias_correction: bool
    adapts_undecayed: bool  # tensors without weight decay take a ratio too
    smallest_ratio: float | None = None
    largest_ratio: float | None = None
    may_correct: bool = True  # whether it has the bias correction of the equations


VARIANTS = {
    "you2019": LambVariant(bias_correction=True, adapts_undecayed=True),
    "apex": LambVariant(bias_correction=True, adapts_undecayed=False),
    "nus": LambVariant(bias_correction=False, adapts_undecayed=False),
    "deepspeed": LambVariant(
        bias_correction=False, adapts_undecayed=True, smallest_ratio=0.01, largest_ratio=0.3, may_correct=False
    ),
}


class Lamb(LayerwiseOptimizer):
    """``p.grad`` is read, never written. ``bias_correction`` and bounds of the ratio that are None are the variant's.

    ``max_weight_norm`` is the upper bound of φ, ``max_grad_norm`` the bound of the global gradient norm.
    """

    BUFFERS = ("first_moment", "second_moment")
    COUNTED = True
    USES_SCRATCH = True
    LATER: Mapping[str, Any] = {"min_trust_ratio": None, "max_trust_ratio": None}
    KERNELS = "lamb"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool | None = None,
        max_weight_norm: float | None = None,
        min_trust_ratio: float | None = None,
        max_trust_ratio: float | None = None,
        variant: str = "you2019",
        max_grad_norm: float | None = None,
        form: str = "auto",
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"LAMB variant {variant!r} is not known{suggestion(variant, list(VARIANTS))}")
        if bias_correction is None:
            bias_correction = VARIANTS[variant].bias_correction
        defaults = {
            "lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay,
            "bias_correction": bias_correction, "max_weight_norm": max_weight_norm,
            "min_trust_ratio": min_trust_ratio, "max_trust_ratio": max_trust_ratio, "variant": variant,
        }  # fmt: skip
        super().__init__(params, defaults, form, max_grad_norm)

    def settings_of(self, group: Group) -> Group:
        """beta1 and beta2 as torch's optimizers keep them, so that its schedulers turn them."""
        if not {"beta1", "beta2"} & set(group):
            return group
        kept = {key: value for key, value in group.items() if key not in ("beta1", "beta2")}
        default = group.get("betas", self.defaults["betas"])
        return {**kept, "betas": (group.get("beta1", default[0]), group.get("beta2", default[1]))}

    def adapts(self, group: Group) -> bool:
        return group["adapt"] and (group["weight_decay"] > 0 or VARIANTS[group["variant"]].adapts_undecayed)

    def _check_group(self, number: int, group: Group) -> None:
        super()._check_group(number, group)
        if group["bias_correction"] and not VARIANTS[group["variant"]].may_correct:
            raise UserError(
                f"bias_correction = True in parameter group {number}: LAMB variant {group['variant']} has none inside "
                "of the ratio; leave it out"
            )
        smallest, largest = bounds(group)
        if smallest is not None and largest is not None and smallest > largest:
            raise UserError(
                f"min_trust_ratio = {smallest:g} in parameter group {number} is above max_trust_ratio = {largest:g}"
            )

    def ratios(self, weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
        smallest, largest = bounds(group)
        return trust_ratio(lengths(weight_norms, group), proposal_norms, largest=largest, smallest=smallest)

    def bounded(self, weight_norms: Tensor, proposal_norms: Tensor, group: Group) -> Tensor:
        counted = lengths(weight_norms, group)
        free = trust_ratio(counted, proposal_norms)
        return (counted < weight_norms) | (self.ratios(weight_norms, proposal_norms, group) != free)

    def kernel_row(self, settings: Group) -> GroupSettings:
        beta1, beta2 = settings["betas"]
        smallest, largest = bounds(settings)
        logs = [math.log(b) if b > 0 and settings["bias_correction"] else -math.inf for b in (beta1, beta2)]
        return GroupSettings(
            lr=settings["lr"],
            decay=settings["weight_decay"],
            smallest_ratio=smallest or 0.0,
            largest_ratio=largest or math.inf,
            largest_norm=settings["max_weight_norm"] or math.inf,
            beta1=beta1,
            beta2=beta2,
            log_beta1=logs[0],
            log_beta2=logs[1],
            eps=settings["eps"],
        )

    def propose(self, layer: Layer, group: Group) -> Tensor:
        m, v = layer.buffers["first_moment"], layer.buffers["second_moment"]
        beta1, beta2 = group["betas"]
        m.lerp_(layer.grad, 1 - beta1)
        v.mul_(beta2).addcmul_(layer.grad, layer.grad, value=1 - beta2)
        correction1, correction2 = bias_corrections(layer.step, group)
        denominator = v.sqrt().div_(correction2**0.5).add_(group["eps"])
        update = m.div(denominator).div_(correction1)
        return update.add_(layer.weight, alpha=group["weight_decay"])

    def advance(self, layer: Layer, proposal: Tensor, ratio: Tensor | float, group: Group) -> None:
        layer.weight.add_(proposal.mul_(ratio), alpha=-group["lr"])

    def propose_all(self, shards: Shards, group: Group) -> list[Tensor]:
        m, v = shards.buffers["first_moment"], shards.buffers["second_moment"]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(m, shards.grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, shards.grads, shards.grads, value=1 - beta2)
        corrections = [bias_corrections(int(step), group) for step in shards.steps]
        denominators = list(torch._foreach_sqrt(v))
        torch._foreach_div_(denominators, [second**0.5 for _, second in corrections])
        torch._foreach_add_(denominators, group["eps"])
        updates = list(torch._foreach_div(m, denominators))
        torch._foreach_div_(updates, [first for first, _ in corrections])
        torch._foreach_add_(updates, shards.weights, alpha=group["weight_decay"])
        return updates

    def advance_all(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        if ratios is not None:
            torch._foreach_mul_(proposals, ratios)
        torch._foreach_add_(shards.weights, proposals, alpha=-group["lr"])

    def propose_fused(self, shards: Shards, group: Group) -> list[Tensor]:
        """m, v and u in one pass: torch's AdamW with lr −1 and a decay of λ − 1 turns a copy of w into r + λ·w."""
        if self._scratch is None:
            sizes = [parameter.numel() for g in self.param_groups for parameter in g["params"]]
            elements = min(sum(sizes), max(*sizes, CACHED_ELEMENTS))
            self._scratch = cpu.Scratch(2 * elements, shards.weights[0].dtype)  # for the gradients and the directions
        if group["clip"] is not None:
            shards.grads = [self._scratch.copy_of(grad).mul_(group["clip"]) for grad in shards.grads]
        if not group["bias_correction"] or not cpu.fits(shards):
            return self.propose_all(shards, group)
        return cpu.adamw_direction(shards, self._scratch, group["betas"], group["eps"], group["weight_decay"])

    def advance_fused(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        if ratios is None:
            torch._foreach_add_(shards.weights, proposals, alpha=-group["lr"])
            return
        for weight, update, ratio in zip(shards.weights, proposals, torch.stack(ratios).tolist(), strict=True):
            weight.add_(update, alpha=-group["lr"] * ratio)


def lengths(weight_norms: Tensor, group: Group) -> Tensor:
    """φ(‖w‖)."""
    largest = group["max_weight_norm"]
    return weight_norms if largest is None else weight_norms.clamp(max=largest)


def bounds(group: Group) -> tuple[float | None, float | None]:
    """The smallest and the largest ratio: the group's own, else the variant's."""
    variant = VARIANTS[group["variant"]]
    return group["min_trust_ratio"] or variant.smallest_ratio, group["max_trust_ratio"] or variant.largest_ratio


def bias_corrections(step: int, group: Group) -> tuple[float, float]:
    """``(1−β1^t, 1−β2^t)`` with t counted per tensor from its first gradient."""
    if not group["bias_correction"]:
        return 1.0, 1.0
    beta1, beta2 = group["betas"]
    return 1 - beta1**step, 1 - beta2**step
