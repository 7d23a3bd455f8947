"""timm's NAdamW, which is that of AlgoPerf: AdamW with Nesterov's momentum (Dozat 2016; Choi et al. 2019, 1910.05446).

    m ← β1·m + (1 − β1)·g        v ← β2·v + (1 − β2)·g²
    θ ← (1 − η·λ)·θ − η·[β1·m + (1 − β1)·g]/(1 − β1^t) / (√(v/(1 − β2^t)) + ε)

torch.optim.NAdam is another: its β1 changes with the step, and its look ahead has the next step's correction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import AtTimm, Surroundings
from largebatch.optimizers._moments import MomentsSection
from largebatch.recipes.keys import PositiveFloat

if TYPE_CHECKING:
    import torch


class NAdamWSection(MomentsSection):
    SHARD_SAFE: ClassVar[bool] = True
    SIGN_LIKE: ClassVar[bool] = True

    name: Literal["nadamw"]
    eps: PositiveFloat = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from timm.optim.nadamw import NAdamW

        return NAdamW(groups, lr=lr, betas=(self.beta1, self.beta2), eps=self.eps)

    @property
    def at_timm(self) -> AtTimm:
        return AtTimm("nadamw", {})
