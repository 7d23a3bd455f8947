"""What Adam's kind shares: averages of gradients and of their squares, which may follow the batch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from largebatch.optimizers import HalfLife, Moments, Optimizer
from largebatch.recipes.keys import Fraction


class MomentsSection(Optimizer):
    """``beta2_half_life``: β2 holds at a batch, and forgets as much in as many examples at any other."""

    LR_RULE: ClassVar[Literal["sqrt"]] = "sqrt"

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    beta2_half_life: HalfLife | None = None

    @property
    def epsilon(self) -> float | None:
        return getattr(self, "eps", None)

    @property
    def moments(self) -> Moments:
        return Moments(self.beta1, self.beta2, self.epsilon)

    @property
    def half_life(self) -> HalfLife | None:
        return self.beta2_half_life

    @property
    def settings(self) -> dict[str, Any]:
        """What its builder takes."""
        return self.model_dump(exclude={"name", "skip_adaptation", "beta2_half_life"})
