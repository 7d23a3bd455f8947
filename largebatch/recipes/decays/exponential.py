"""η = end + (peak − end)·factor^(t/every), t in steps after the warm-up: not a staircase, and without an end.

DeepSpeed's BERT decays so, with its ``lr_offset`` as the end (``warmup_exp_decay_exp``, whose warm-up is a square).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from largebatch.recipes.decays._to_an_end import Towards
from largebatch.recipes.keys import Number, PositiveInt


class ExponentialDecay(Towards):
    name: Literal["exponential"]
    factor: Annotated[float, Field(gt=0, lt=1), Number] = 0.9
    every_steps: PositiveInt  # of the batch that the schedule begins with

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return self.end_lr + (peak - self.end_lr) * self.factor**progress

    def span(self, warmup: float, total: float, examples_of: Callable[[int], float]) -> tuple[float, float]:
        return warmup, warmup + examples_of(self.every_steps)

    @property
    def in_steps(self) -> bool:
        return True

    def words(self, epochs: Sequence[float]) -> str:
        return f"exponential, ×{self.factor:g} every {self.every_steps:,} steps, towards {self.end_lr:g}"
