"""The peak to the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from largebatch.recipes.decays import Decay


class ConstantDecay(Decay):
    CHANGES: ClassVar[bool] = False

    name: Literal["constant"] = "constant"

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return peak

    def words(self, epochs: Sequence[float]) -> str:
        return "constant"
