"""shape(t) = 1 − t."""

from __future__ import annotations

from typing import Literal

from largebatch.recipes.decays._to_an_end import ToAnEnd


class LinearDecay(ToAnEnd):
    name: Literal["linear"]

    def shape(self, progress: float) -> float:
        return 1.0 - progress
