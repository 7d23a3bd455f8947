"""torch's AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import AtTimm, Surroundings
from largebatch.optimizers._moments import MomentsSection
from largebatch.recipes.keys import PositiveFloat

if TYPE_CHECKING:
    import torch


class AdamWSection(MomentsSection):
    SHARD_SAFE: ClassVar[bool] = True
    SIGN_LIKE: ClassVar[bool] = True

    name: Literal["adamw"]
    eps: PositiveFloat = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        import torch

        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=self.eps, fused=around.fused)

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("adamw", {})
