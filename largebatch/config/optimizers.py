"""The optimizers a recipe can name, each with the keys it takes."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from largebatch.config.sections import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Skipped,
    Switch,
)


class Sgd(Section):
    name: Literal["sgd"]
    momentum: Fraction = 0.9
    nesterov: Switch = False


class HeavyBall(Section):
    name: Literal["heavy_ball"]
    momentum: Fraction = 0.9
    nesterov: Switch = False
    momentum_correction: Switch = False


class Lars(Section):
    name: Literal["lars"]
    variant: Literal["you2017", "timm", "larc", "nus", "vissl", "optax"] = "you2017"
    momentum: Fraction = 0.9
    nesterov: Switch = False
    trust_coefficient: PositiveFloat = 0.001
    eps: NonNegativeFloat = 0.0
    max_trust_ratio: PositiveFloat | None = None
    momentum_correction: Switch = False
    skip_adaptation: tuple[Skipped, ...] = ("norm", "bias")


class Lamb(Section):
    name: Literal["lamb"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    variant: Literal["you2019", "apex", "nus"] = "you2019"
    eps: PositiveFloat = 1e-6
    bias_correction: Switch | None = None  # unset: the variant's own
    max_weight_norm: PositiveFloat | None = None  # the upper bound of phi; the paper gives no value
    skip_adaptation: tuple[Skipped, ...] = ("norm", "bias")


class AdamW(Section):
    name: Literal["adamw"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8


class TorchOrLecture(Section):
    """torch's optimizer, or the lecture's formula: no bias correction and no eps."""

    variant: Literal["torch", "lecture"] = "torch"
    eps: PositiveFloat | None = None  # of the variant torch alone; unset: torch's own

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> TorchOrLecture:
        if self.variant == "lecture" and self.eps is not None:
            raise ValueError("optimizer.eps belongs to optimizer.variant = torch; the lecture's formulas have none")
        return self


class Adam(TorchOrLecture):
    name: Literal["adam"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999


class Adagrad(TorchOrLecture):
    """The sum of the squares, or with the lecture their mean."""

    name: Literal["adagrad"]


class Rmsprop(TorchOrLecture):
    name: Literal["rmsprop"]
    alpha: Fraction = 0.99


class RmspropSgd(Section):
    """From RMSprop to SGD over the first epochs (Akiba et al. 2017)."""

    name: Literal["rmsprop_sgd"]
    momentum: Fraction = 0.9
    decay: Fraction = 0.99
    eps: PositiveFloat = 1e-8
    rmsprop_lr: PositiveFloat = 3e-4
    center_epoch: NonNegativeFloat = 10.0  # where half of the step is SGD's
    period_epochs: PositiveFloat = 5.0
    ramp: Literal["smooth", "printed"] = "smooth"  # printed: the paper's middle branch as it is printed


class Muon(Section):
    """Orthogonalised momentum for hidden weights; SGD or AdamW for the stem, the head, norms and biases."""

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


Optimizer = Annotated[
    Sgd | HeavyBall | Lars | Lamb | AdamW | Adam | Adagrad | Rmsprop | RmspropSgd | Muon, Field(discriminator="name")
]
