"""LARS in the forms that papers and libraries gave it: :mod:`largebatch.optim.lars`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import AtTimm, Optimizer, Surroundings
from largebatch.recipes.keys import Fraction, NonNegativeFloat, PositiveFloat, Skipped, Switch

if TYPE_CHECKING:
    import torch


class LarsSection(Optimizer):
    STATES: ClassVar[int] = 1
    SHARD_SAFE: ClassVar[bool] = True
    LR_RULE: ClassVar[Literal["linear"]] = "linear"
    REFERENCE: ClassVar[dict[str, Any]] = {
        "variant": "you2017", "nesterov": False, "momentum_correction": False, "max_trust_ratio": None,
    }  # fmt: skip

    name: Literal["lars"]
    variant: Literal["you2017", "timm", "larc", "nus", "vissl", "optax"] = "you2017"
    momentum: Fraction = 0.9
    nesterov: Switch = False
    trust_coefficient: PositiveFloat = 0.001
    eps: NonNegativeFloat = 0.0
    max_trust_ratio: PositiveFloat | None = None
    momentum_correction: Switch = False
    skip_adaptation: tuple[Skipped, ...] = ("norm", "bias")

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.Lars(groups, lr=lr, **self.model_dump(exclude={"name", "skip_adaptation"}))

    @property
    def not_adapted(self) -> tuple[str, ...]:
        return self.skip_adaptation

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("nlars" if self.nesterov else "lars", {"momentum": self.momentum})
