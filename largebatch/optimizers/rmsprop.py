"""torch's RMSprop, or the lecture's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import Surroundings
from largebatch.optimizers._torch_or_lecture import TorchOrLectureSection
from largebatch.recipes.keys import Fraction

if TYPE_CHECKING:
    import torch


class RmspropSection(TorchOrLectureSection):
    STATES: ClassVar[int] = 1

    name: Literal["rmsprop"]
    alpha: Fraction = 0.99

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        import torch

        from largebatch import optim

        if self.variant == "lecture":
            return optim.LectureRmsprop(groups, lr=lr, alpha=self.alpha)
        return torch.optim.RMSprop(groups, lr=lr, alpha=self.alpha, eps=self.eps or 1e-8)
