"""The adaptive optimizers as the lecture writes them: H. Lee, NTU ML 2021, optimizer_v4, slides 6, 9 and 11.

    θ_{t+1} = θ_t − (η/σ_t)·g_t            t counted from 0, element by element
    LectureAdagrad   σ_t = √(mean of g_0², …, g_t²)                     after Duchi et al. 2011
    LectureRmsprop   σ_t = √(α·σ_{t−1}² + (1−α)·g_t²),  σ_0 = |g_0|     after Hinton and Tieleman 2012
    LectureAdam      σ_t of RMSprop, with momentum: m_t = λ·m_{t−1} − η·g_t, θ_{t+1} = θ_t + m_t/σ_t
                                                                        after Kingma and Ba 2014 (1412.6980)

g_t includes β·θ (L2). The lecture has no ε and no bias correction. Where σ is 0 there has been no gradient yet, and the
step 0/0 is 0. The learning rate is inside Adam's buffer, as in :class:`~largebatch.optim.HeavyBall`.

torch's differ. Its Adagrad divides by √Σg² + ε, not by the mean's root, so its steps shrink by a further √(t+1). Its
RMSprop starts at σ = 0, so that its first step is 1/√(1−α) times as long, adds ε, and has the lr outside the buffer.
Its Adam averages g as (1−β1)·g, divides both averages by 1 − β^t, adds ε, and has the lr outside, too.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from largebatch.errors import UserError
from largebatch.optim.layerwise import Layer, LayerwiseOptimizer
from largebatch.optim.loading import Group
from largebatch.optim.shards import Shards


class LectureOptimizer(LayerwiseOptimizer):
    """θ −= (η/σ)·g, or with momentum θ += m/σ; each says how much of σ² the newest gradient is.

    Element by element, so it needs no layer's norm; the fused form is the foreach form.
    """

    BUFFERS = ("mean_square",)
    COUNTED = True

    @abc.abstractmethod
    def newest(self, step: int, group: Group) -> float:
        """The weight of g² of this update in σ²; the first update is 1."""

    def _check_group(self, number: int, group: Group) -> None:
        super()._check_group(number, group)
        if "alpha" in group and not 0 <= group["alpha"] < 1:
            raise UserError(f"alpha = {group['alpha']} in parameter group {number}; it must be at least 0 and below 1")

    def adapts(self, group: Group) -> bool:
        return False

    def propose(self, layer: Layer, group: Group) -> Tensor:
        return layer.grad

    def advance(self, layer: Layer, proposal: Tensor, ratio: Tensor | float, group: Group) -> None:
        g = layer.grad.add(layer.weight, alpha=group["weight_decay"])
        mean = layer.buffers["mean_square"].lerp_(g * g, self.newest(layer.step, group))
        step = g.mul_(-group["lr"])
        m = layer.buffers.get("momentum_buffer")
        if m is not None:
            step = m.mul_(group["buffer_scale"]).add_(step)
        layer.weight.add_(step.div(root(mean)))

    def propose_all(self, shards: Shards, group: Group) -> list[Tensor]:
        return shards.grads

    def advance_all(self, shards: Shards, proposals: list[Tensor], ratios: list[Tensor] | None, group: Group) -> None:
        means = shards.buffers["mean_square"]
        g = list(torch._foreach_add(shards.grads, shards.weights, alpha=group["weight_decay"]))
        squares = torch._foreach_mul(g, g)
        torch._foreach_lerp_(means, squares, [self.newest(int(step), group) for step in shards.steps])
        torch._foreach_mul_(g, -group["lr"])
        steps = g
        if m := shards.buffers.get("momentum_buffer"):
            torch._foreach_mul_(m, group["buffer_scale"])
            torch._foreach_add_(m, g)
            steps = m
        torch._foreach_add_(shards.weights, torch._foreach_div(steps, [root(mean) for mean in means]))


def root(mean_square: Tensor) -> Tensor:
    """σ; infinite where it is 0, for there the step is to be 0."""
    sigma = mean_square.sqrt()
    return sigma.masked_fill_(sigma == 0, torch.inf)


def share_of_rmsprop(step: int, group: Group) -> float:
    """1 at first, for σ_0 = |g_0|; then 1 − α."""
    return 1.0 if step == 1 else 1 - group["alpha"]


class LectureAdagrad(LectureOptimizer):
    """The RMS form: η over the root of the mean of all squares so far."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, form: str = "auto") -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, form)

    def newest(self, step: int, group: Group) -> float:
        return 1 / step


class LectureRmsprop(LectureOptimizer):
    """``alpha`` is what is kept of σ² at each update."""

    def __init__(
        self, params: Iterable[Any], lr: float, alpha: float = 0.9, weight_decay: float = 0.0, form: str = "auto"
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "weight_decay": weight_decay}, form)

    def newest(self, step: int, group: Group) -> float:
        return share_of_rmsprop(step, group)


class LectureAdam(LectureOptimizer):
    """RMSprop with momentum λ."""

    BUFFERS = ("mean_square", "momentum_buffer")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        alpha: float = 0.9,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        form: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, form)

    def newest(self, step: int, group: Group) -> float:
        return share_of_rmsprop(step, group)
