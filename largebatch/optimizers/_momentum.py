"""What the two kinds of momentum share: the learning rate outside the buffer (sgd), and inside (heavy_ball)."""

from __future__ import annotations

from typing import ClassVar, Literal

from largebatch.optimizers import AtTimm, Averaged, Optimizer
from largebatch.recipes.keys import Fraction, Switch


class MomentumSection(Optimizer):
    """A step that is lr times an average of gradients."""

    STATES: ClassVar[int] = 1
    SHARD_SAFE: ClassVar[bool] = True
    LR_RULE: ClassVar[Literal["linear"]] = "linear"

    momentum: Fraction = 0.9
    nesterov: Switch = False

    @property
    def averaged(self) -> Averaged:
        return Averaged(self.momentum, self.nesterov)

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("sgd" if self.nesterov else "momentum", {"momentum": self.momentum})  # timm's sgd is Nesterov's
