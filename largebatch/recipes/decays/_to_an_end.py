"""What decays share that fall from the peak to ``end_lr``: η(t) = end + (peak − end)·shape(t)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import ConfigDict, Field

from largebatch.errors import UserError
from largebatch.recipes.decays import Decay
from largebatch.recipes.keys import NonNegativeFloat, PositiveInt


class Towards(Decay):
    """``end_lr``: what the lr falls to, or comes ever nearer to."""

    end_lr: NonNegativeFloat = 0.0

    def check(self, peak: float) -> None:
        if self.end_lr > peak:
            raise UserError(f"lr.decay.end_lr = {self.end_lr:g} is above the peak {peak:g}; a decay ends lower")

    @property
    def end(self) -> float:
        return self.end_lr


class ToAnEnd(Towards):
    """From the end of the warm-up, or from the start of the run or phase, as if there were none; to the end of the
    budget, or to a step that is counted from that start."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    begin: Literal["warmup", "start"] = Field(default="warmup", alias="from")
    end_step: PositiveInt | None = None

    def shape(self, progress: float) -> float:
        """1 at 0, 0 at 1."""
        raise NotImplementedError

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return self.end_lr + (peak - self.end_lr) * self.shape(min(1.0, progress))

    def span(self, warmup: float, total: float, examples_of: Callable[[int], float]) -> tuple[float, float]:
        begin = 0.0 if self.begin == "start" else warmup
        return begin, total if self.end_step is None else examples_of(self.end_step)

    @property
    def in_steps(self) -> bool:
        return self.end_step is not None

    @property
    def what(self) -> str:
        """The shape, in words."""
        return self.name

    def words(self, epochs: Sequence[float]) -> str:
        begin = ", counted from the start" if self.begin == "start" else ""
        end = "" if self.end_step is None else f" at step {self.end_step:,}"
        return f"{self.what} to {self.end_lr:g}{end}{begin}"
