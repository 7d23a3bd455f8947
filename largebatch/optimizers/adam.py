"""torch's Adam, or the lecture's without bias correction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import AtTimm, Surroundings
from largebatch.optimizers._moments import MomentsSection
from largebatch.optimizers._torch_or_lecture import TorchOrLectureSection

if TYPE_CHECKING:
    import torch


EPS = 1e-8  # torch's own


class AdamSection(MomentsSection, TorchOrLectureSection):
    SIGN_LIKE: ClassVar[bool] = True

    name: Literal["adam"]

    @property
    def epsilon(self) -> float | None:
        return None if self.variant == "lecture" else self.eps or EPS

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        import torch

        from largebatch import optim

        if self.variant == "lecture":
            return optim.LectureAdam(groups, lr=lr, momentum=self.beta1, alpha=self.beta2)
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(groups, lr=lr, betas=betas, eps=self.eps or EPS, fused=around.fused)

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("adam", {})
