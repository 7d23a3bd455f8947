"""LAMB, layer-wise adaptive moments: You et al. 2019 (1904.00962), Algorithm 2.

    m ← β1·m + (1−β1)·g            v ← β2·v + (1−β2)·g²
    r = (m / (1−β1^t)) / (√(v / (1−β2^t)) + ε)           without bias correction: r = m / (√v + ε)
    u = r + λ·w                                           the decay is inside the normalised update
    w ← w − η · φ(‖w‖)/‖u‖ · u                            per layer; ratio 1 for tensors not adapted

φ(z) = min(z, max_weight_norm), the identity by default: the paper leaves its bounds open. Unlike apex's and
timm's, this LAMB clips nothing by itself; the gradient norm is clipped by ``max_grad_norm`` of the run or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch.optim.layerwise import LayerwiseOptimizer, buffers
from largebatch.optim.trust_ratio import trust_ratio


class Lamb(LayerwiseOptimizer):
    """``p.grad`` is read, never written."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        max_weight_norm: float | None = None,
        foreach: bool = True,
    ) -> None:
        defaults = {
            "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay,
            "bias_correction": bias_correction, "max_weight_norm": max_weight_norm,
        }  # fmt: skip
        super().__init__(params, defaults, foreach)

    def one_layer(self, weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        [m] = buffers([state], "first_moment", [weight])
        [v] = buffers([state], "second_moment", [weight])
        beta1, beta2 = group["beta1"], group["beta2"]
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction1, correction2 = bias_corrections(state, group)
        denominator = v.sqrt().div_(correction2**0.5).add_(group["eps"])
        update = m.div(denominator).div_(correction1)
        update.add_(weight, alpha=group["weight_decay"])
        if group["adapt"]:
            norm = torch.linalg.vector_norm
            update.mul_(ratios(norm(weight), norm(update), group))
        weight.add_(update, alpha=-group["lr"])

    def all_layers(
        self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        m = buffers(states, "first_moment", weights)
        v = buffers(states, "second_moment", weights)
        beta1, beta2 = group["beta1"], group["beta2"]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        corrections = [bias_corrections(state, group) for state in states]
        denominators = torch._foreach_sqrt(v)
        torch._foreach_div_(denominators, [second**0.5 for _, second in corrections])
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(m, denominators)
        torch._foreach_div_(updates, [first for first, _ in corrections])
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            weight_norms = torch.stack(torch._foreach_norm(weights))
            update_norms = torch.stack(torch._foreach_norm(updates))
            torch._foreach_mul_(updates, ratios(weight_norms, update_norms, group).unbind())
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def ratios(weight_norm: Tensor, update_norm: Tensor, group: dict[str, Any]) -> Tensor:
    return trust_ratio(weight_norm.clamp(max=group["max_weight_norm"] or float("inf")), update_norm)


def bias_corrections(state: dict[str, Any], group: dict[str, Any]) -> tuple[float, float]:
    """``(1−β1^t, 1−β2^t)`` with t counted per tensor from its first gradient."""
    state["step"] = state.get("step", 0) + 1
    if not group["bias_correction"]:
        return 1.0, 1.0
    return 1 - group["beta1"] ** state["step"], 1 - group["beta2"] ** state["step"]
