"""η = peak · factors[n] after the n-th epoch: Akiba et al. 2017's slow start (1711.04325)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from largebatch.recipes.decays import Decay, listed
from largebatch.recipes.keys import PositiveFloat, ascending


class PiecewiseDecay(Decay):
    """``factors[0]`` of the peak from the start, ``factors[i]`` from the i-th epoch on."""

    JUMPS: ClassVar[bool] = True

    name: Literal["piecewise"]
    at_epochs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    factors: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)]

    @pydantic.model_validator(mode="after")
    def one_more(self) -> PiecewiseDecay:
        if len(self.factors) != len(self.at_epochs) + 1:
            raise ValueError(
                f"lr.decay.factors has {len(self.factors)} numbers for {len(self.at_epochs)} epochs in "
                "lr.decay.at_epochs; give one more than epochs, the first from the start on"
            )
        ascending("lr.decay.at_epochs", self.at_epochs)
        return self

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return peak * self.factors[passed]

    def summit(self, peak: float) -> float:
        return peak * self.factors[0]

    @property
    def epochs(self) -> tuple[float, ...]:
        return self.at_epochs

    def words(self, epochs: Sequence[float]) -> str:
        return f"{listed(self.factors)} of the peak, changing at epochs {listed(epochs)}"
