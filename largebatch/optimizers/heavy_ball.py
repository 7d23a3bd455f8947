"""Momentum with the learning rate inside the buffer: :mod:`largebatch.optim.heavy_ball`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import Surroundings
from largebatch.optimizers._momentum import MomentumSection
from largebatch.recipes.keys import Switch

if TYPE_CHECKING:
    import torch


class HeavyBallSection(MomentumSection):
    REFERENCE: ClassVar[dict[str, Any]] = {"nesterov": False, "momentum_correction": False}

    name: Literal["heavy_ball"]
    momentum_correction: Switch = False

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.HeavyBall(groups, lr=lr, **self.model_dump(exclude={"name"}))
