"""shape(t) = (1 − t)^power."""

from __future__ import annotations

from typing import Literal

from largebatch.recipes.decays._to_an_end import ToAnEnd
from largebatch.recipes.keys import PositiveFloat


class PolynomialDecay(ToAnEnd):
    name: Literal["polynomial"]
    power: PositiveFloat = 2.0

    def shape(self, progress: float) -> float:
        return (1.0 - progress) ** self.power

    @property
    def polynomial(self) -> float | None:
        return self.power

    @property
    def what(self) -> str:
        return f"polynomial of power {self.power:g}"
