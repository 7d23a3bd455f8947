"""Outer momentum: every H steps of any optimizer, a step of SGD on how far it went.

    δ ← θ_ref − θ                     what H inner steps made of the anchor θ_ref
    u ← μ·u + δ
    θ ← θ_ref − η·(δ + μ·u)           nesterov: DiLoCo (Douillard et al. 2023, 2311.08105), MuLoCo (Therien et al. 2025,
                                      2505.23725), with one worker MuLoCo-1, known as Snoo
    θ ← θ_ref − η·u                   without: BMUF (Chen & Huo 2016); SlowMo (Wang et al. 2019, 1910.00643) where the
                                      inner lr is constant, by which it divides δ and multiplies η
    θ_ref ← θ

The papers have η inside u, which is the same for a constant η. With μ = 0 it is Lookahead (Zhang et al. 2019,
1907.08610), whose α is η; with η = 1 besides, nothing. An η that changes stands where it stands here, outside of u.
Two buffers as large as the weights: θ_ref and u.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class OuterMomentum:
    """Of the tensors that ``live`` gives, from where they are; ``lr`` is η > 0, ``momentum`` μ in [0, 1).

    Each element steps by itself: a shard of a tensor, as it would in the whole.
    """

    def __init__(self, live: Callable[[], list[Tensor]], lr: float, momentum: float, nesterov: bool = True) -> None:
        if not lr > 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr = {lr} should be above 0, momentum = {momentum} at least 0 and below 1")
        self.live, self.lr, self.momentum, self.nesterov = live, lr, momentum, nesterov
        self.anchors = [tensor.detach().clone() for tensor in live()]
        self.buffers = [torch.zeros_like(tensor) for tensor in self.anchors]

    @torch.no_grad()
    def begin(self) -> None:
        """The anchor is where the tensors are now."""
        torch._foreach_copy_(self.anchors, self.live())

    @torch.no_grad()
    def step(self) -> None:
        for tensor, anchor, buffer in zip(self.live(), self.anchors, self.buffers, strict=True):
            moved = anchor - tensor
            buffer.mul_(self.momentum).add_(moved)
            anchor.sub_(moved.add_(buffer, alpha=self.momentum) if self.nesterov else buffer, alpha=self.lr)
            tensor.copy_(anchor)

    @torch.no_grad()
    def back(self) -> None:
        """The tensors are where the anchor is: what they did since the last step is dropped."""
        torch._foreach_copy_(self.live(), self.anchors)
