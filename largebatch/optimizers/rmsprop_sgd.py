"""From RMSprop to SGD over the first epochs: :mod:`largebatch.optim.rmsprop_sgd`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import Optimizer, Surroundings
from largebatch.recipes.keys import Fraction, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    import torch


class RmspropSgdSection(Optimizer):
    """From RMSprop to SGD over the first epochs (Akiba et al. 2017)."""

    SHARD_SAFE: ClassVar[bool] = True

    name: Literal["rmsprop_sgd"]
    momentum: Fraction = 0.9
    decay: Fraction = 0.99
    eps: PositiveFloat = 1e-8
    rmsprop_lr: PositiveFloat = 3e-4
    center_epoch: NonNegativeFloat = 10.0  # where half of the step is SGD's
    period_epochs: PositiveFloat = 5.0
    ramp: Literal["smooth", "printed"] = "smooth"  # printed: the paper's middle branch as it is printed

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.RmspropSgd(
            groups, lr=lr, momentum=self.momentum, decay=self.decay, eps=self.eps, rmsprop_lr=self.rmsprop_lr
        )

    def settings_at(self, epoch: float) -> dict[str, Any]:
        from largebatch.optim import sgd_share

        return {"sgd_share": sgd_share(epoch, self.center_epoch, self.period_epochs, self.ramp == "printed")}
