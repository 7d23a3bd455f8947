"""Orthogonalised momentum: :mod:`largebatch.optim.muon`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from largebatch.optimizers import Optimizer, Surroundings
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
    eps: PositiveFloat = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float, around: Surroundings) -> torch.optim.Optimizer:
        from largebatch import optim

        return optim.Muon(optim.muon_groups(groups, around.model), lr=lr, **self.model_dump(exclude={"name"}))
