"""Momentum with the learning rate inside the buffer: :mod:`largebatch.optim.heavy_ball`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.keys import Fraction, Switch
from largebatch.optimizers import AtTimm, Averaged, Optimizer, Surroundings

if TYPE_CHECKING:
    import torch


class HeavyBall(Optimizer):
    STATES: ClassVar[int] = 1
    SHARD_SAFE: ClassVar[bool] = True
    REFERENCE: ClassVar[dict[str, Any]] = {"nesterov": False, "momentum_correction": False}

    name: Literal["heavy_ball"]
    momentum: Fraction = 0.9
    nesterov: Switch = False
    momentum_correction: Switch = False

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.HeavyBall(groups, lr=lr, **self.model_dump(exclude={"name"}))

    @property
    def averaged(self) -> Averaged:
        return Averaged(self.momentum, self.nesterov)

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("sgd" if self.nesterov else "momentum", {"momentum": self.momentum})  # timm's sgd is Nesterov's
