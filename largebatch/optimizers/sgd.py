"""torch's SGD: the learning rate outside the momentum buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from largebatch.optimizers import Surroundings
from largebatch.optimizers._momentum import MomentumSection

if TYPE_CHECKING:
    import torch


class SgdSection(MomentumSection):
    REFERENCE: ClassVar[dict[str, Any]] = {"nesterov": False}

    name: Literal["sgd"]

    @pydantic.model_validator(mode="after")
    def something_to_look_ahead_with(self) -> SgdSection:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov = true needs optimizer.momentum above 0")
        return self

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        import torch

        fused = None if around.engine == "fsdp" else around.fused  # torch's has no rule for DTensors
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)
