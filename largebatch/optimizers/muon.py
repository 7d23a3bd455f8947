"""Orthogonalised momentum: :mod:`largebatch.optim.muon`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from largebatch.optimizers import HalfLife, Moments, Optimizer, Surroundings
from largebatch.recipes.keys import Fraction, PositiveFloat, PositiveInt, Switch

if TYPE_CHECKING:
    import torch


class MuonSection(Optimizer):
    """Orthogonalised momentum for hidden weights; SGD or AdamW for the stem, the head, norms and biases."""

    REFERENCE: ClassVar[dict[str, Any]] = {"nesterov": False}

    name: Literal["muon"]
    momentum: Fraction = 0.95
    nesterov: Switch = True
    ns_steps: PositiveInt = 5
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    others: Literal["sgd", "adamw"] = "sgd"
    others_lr_scale: PositiveFloat = 1.0  # the others' lr over Muon's
    others_momentum: Fraction = 0.9
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    beta2_half_life: HalfLife | None = None
    eps: PositiveFloat = 1e-8

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> MuonSection:
        if self.beta2_half_life is not None and self.others != "adamw":
            raise ValueError("optimizer.beta2_half_life belongs to optimizer.others = adamw; sgd has no beta2")
        return self

    @property
    def half_life(self) -> HalfLife | None:
        return self.beta2_half_life

    @property
    def moments(self) -> Moments:
        """Of the others; Muon's own momentum has no ε that a rule of Adam's could scale."""
        return Moments(self.beta1, self.beta2, None)

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.Muon(
            optim.muon_groups(groups, around.model), lr=lr, **self.model_dump(exclude={"name", "beta2_half_life"})
        )
