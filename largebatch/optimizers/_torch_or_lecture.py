"""What optimizers share that are torch's or the lecture's (:mod:`largebatch.optim.lecture`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic

from largebatch.optimizers import Optimizer
from largebatch.recipes.keys import PositiveFloat


class TorchOrLectureSection(Optimizer):
    """torch's optimizer, or the lecture's formula: no bias correction and no eps."""

    SHARD_SAFE: ClassVar[bool] = True
    LR_RULE: ClassVar[Literal["sqrt"]] = "sqrt"
    REFERENCE: ClassVar[dict[str, Any]] = {"variant": None}

    variant: Literal["torch", "lecture"] = "torch"
    eps: PositiveFloat | None = None  # of the variant torch alone; unset: torch's own

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> TorchOrLectureSection:
        if self.variant == "lecture" and self.eps is not None:
            raise ValueError("optimizer.eps belongs to optimizer.variant = torch; the lecture's formulas have none")
        return self
