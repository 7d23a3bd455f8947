"""shape(t) = (1 + cos πt)/2."""

from __future__ import annotations

import math
from typing import Literal

from largebatch.recipes.decays._to_an_end import ToAnEnd


class CosineDecay(ToAnEnd):
    name: Literal["cosine"]

    def shape(self, progress: float) -> float:
        return (1.0 + math.cos(math.pi * progress)) / 2.0
