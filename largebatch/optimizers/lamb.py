"""LAMB in the forms that its paper and libraries gave it: :mod:`largebatch.optim.lamb`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from largebatch.optimizers import AtTimm, Surroundings
from largebatch.optimizers._moments import MomentsSection
from largebatch.recipes.keys import PositiveFloat, Skipped, Switch

if TYPE_CHECKING:
    import torch


class LambSection(MomentsSection):
    SHARD_SAFE: ClassVar[bool] = True
    REFERENCE: ClassVar[dict[str, Any]] = {"variant": None}

    name: Literal["lamb"]
    variant: Literal["you2019", "apex", "nus", "deepspeed"] = "you2019"
    eps: PositiveFloat = 1e-6
    bias_correction: Switch | None = None  # unset: the variant's own
    max_weight_norm: PositiveFloat | None = None  # the upper bound of phi; the paper gives no value
    min_trust_ratio: PositiveFloat | None = None  # unset, like the next: the variant's own; deepspeed's 0.01 and 0.3
    max_trust_ratio: PositiveFloat | None = None
    skip_adaptation: tuple[Skipped, ...] = ("norm", "bias")

    @pydantic.model_validator(mode="after")
    def corrected_where_it_can_be(self) -> LambSection:
        if self.variant == "deepspeed" and self.bias_correction:
            raise ValueError(
                "optimizer.bias_correction = true is another one in optimizer.variant = deepspeed, outside of the "
                "ratio, where it only scales the lr; leave it out"
            )
        return self

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.Lamb(groups, lr=lr, **self.settings)

    @property
    def not_adapted(self) -> tuple[str, ...]:
        return self.skip_adaptation

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("lamb", {"max_grad_norm": None})  # by itself timm's would clip the gradient
