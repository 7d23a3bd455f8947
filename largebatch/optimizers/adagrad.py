"""torch's Adagrad, or the lecture's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import Surroundings
from largebatch.optimizers._torch_or_lecture import TorchOrLectureSection

if TYPE_CHECKING:
    import torch


class AdagradSection(TorchOrLectureSection):
    """The sum of the squares, or with the lecture their mean."""

    STATES: ClassVar[int] = 1

    name: Literal["adagrad"]

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        import torch

        from largebatch import optim

        if self.variant == "lecture":
            return optim.LectureAdagrad(groups, lr=lr)
        return torch.optim.Adagrad(groups, lr=lr, eps=self.eps or 1e-10)
