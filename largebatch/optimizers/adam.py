"""torch's Adam, or the lecture's without bias correction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from largebatch.optimizers import AtTimm, Surroundings
from largebatch.optimizers._torch_or_lecture import TorchOrLectureSection
from largebatch.recipes.keys import Fraction

if TYPE_CHECKING:
    import torch


class AdamSection(TorchOrLectureSection):
    name: Literal["adam"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        import torch

        from largebatch import optim

        if self.variant == "lecture":
            return optim.LectureAdam(groups, lr=lr, momentum=self.beta1, alpha=self.beta2)
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(groups, lr=lr, betas=betas, eps=self.eps or 1e-8, fused=around.fused)

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("adam", {})
