"""What decays share that fall from the peak to ``end_lr``: η(t) = end + (peak − end)·shape(t)."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.errors import UserError
from largebatch.recipes.decays import Decay
from largebatch.recipes.keys import NonNegativeFloat


class ToAnEnd(Decay):
    end_lr: NonNegativeFloat = 0.0

    def shape(self, progress: float) -> float:
        """1 at 0, 0 at 1."""
        raise NotImplementedError

    def lr(self, peak: float, progress: float, passed: int) -> float:
        return self.end_lr + (peak - self.end_lr) * self.shape(progress)

    def check(self, peak: float) -> None:
        if self.end_lr > peak:
            raise UserError(f"lr.decay.end_lr = {self.end_lr:g} is above the peak {peak:g}; a decay ends lower")

    @property
    def end(self) -> float:
        return self.end_lr

    def words(self, epochs: Sequence[float]) -> str:
        return f"{self.name} to {self.end_lr:g}"
