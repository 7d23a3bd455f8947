"""The section of mixup and cutmix."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from largebatch.recipes.keys import NonNegativeFloat, Number, Section

Probability = Annotated[float, Field(ge=0, le=1), Number]


class Mix(Section):
    """Each training example is mixed with its neighbour in the global batch; ``mixup`` and ``cutmix`` are α of
    Beta(α, α)."""

    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0  # a box of the neighbour's pixels
    probability: Annotated[float, Field(gt=0, le=1), Number] = 1.0  # that a batch, pair or example is mixed
    switch: Probability | None = None  # where both are given: the share of cutmix; unset: 0.5
    per: Literal["batch", "pair", "example"] = "batch"  # what one weight is drawn for: the global batch, two, each

    @pydantic.model_validator(mode="after")
    def of_something(self) -> Mix:
        if not self.mixup and not self.cutmix:
            raise ValueError("data.mix mixes nothing; valid: {mixup: 0.2}, {cutmix: 1.0}, or both")
        if self.switch is not None and not (self.mixup and self.cutmix):
            raise ValueError(
                f"data.mix.switch = {self.switch:g} has no effect without both of data.mix.mixup and data.mix.cutmix"
            )
        return self

    @property
    def share_of_cutmix(self) -> float:
        """Of what is mixed."""
        if not (self.mixup and self.cutmix):
            return float(self.cutmix > 0)
        return 0.5 if self.switch is None else self.switch

    @property
    def words(self) -> str:
        kinds = [f"{name} {alpha:g}" for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)) if alpha]
        shared = f", {100 * self.share_of_cutmix:g} % cutmix" if len(kinds) > 1 else ""
        rarely = f", mixed with probability {self.probability:g}" if self.probability < 1 else ""
        return f"{' or '.join(kinds)}{shared}{rarely}, drawn for each {self.per}"
