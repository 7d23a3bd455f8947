"""η = peak · factorⁿ after the n-th epoch, as in Goyal et al. 2017 (1706.02677)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from largebatch.recipes.decays import Decay, listed
from largebatch.recipes.keys import Number, PositiveFloat, ascending


class StepsDecay(Decay):
    JUMPS: ClassVar[bool] = True

    name: Literal["steps"]
    at_epochs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    factor: Annotated[float, Field(gt=0, lt=1), Number] = 0.1

    @pydantic.model_validator(mode="after")
    def in_order(self) -> StepsDecay:
        ascending("lr.decay.at_epochs", self.at_epochs)
        return self

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return peak * self.factor**passed

    @property
    def epochs(self) -> tuple[float, ...]:
        return self.at_epochs

    def words(self, epochs: Sequence[float]) -> str:
        return f"×{self.factor:g} at epochs {listed(epochs)}"
