"""The optimizers a recipe can name, each with the keys it takes."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from largebatch.config.sections import Fraction, ParameterKind, Section


class Sgd(Section):
    name: Literal["sgd"]
    momentum: Fraction = 0.9
    nesterov: bool = False


class HeavyBall(Section):
    name: Literal["heavy_ball"]
    momentum: Fraction = 0.9
    nesterov: bool = False
    momentum_correction: bool = False


class Lars(Section):
    name: Literal["lars"]
    variant: Literal["you2017", "timm", "nus", "vissl", "optax"] = "you2017"
    momentum: Fraction = 0.9
    nesterov: bool = False
    trust_coefficient: PositiveFloat = 0.001
    eps: NonNegativeFloat = 0.0
    max_trust_ratio: PositiveFloat | None = None
    momentum_correction: bool = False
    skip_adaptation: tuple[ParameterKind, ...] = ("norm", "bias")


class Lamb(Section):
    name: Literal["lamb"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    variant: Literal["you2019", "apex", "nus"] = "you2019"
    eps: PositiveFloat = 1e-6
    bias_correction: bool | None = None  # unset: the variant's own
    max_weight_norm: PositiveFloat | None = None  # the upper bound of phi; the paper gives no value
    skip_adaptation: tuple[ParameterKind, ...] = ("norm", "bias")


class AdamW(Section):
    name: Literal["adamw"]
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat = 1e-8


class Adam(Section):
    """torch's Adam, or RMSprop with momentum as the lecture writes it (no bias correction, no eps)."""

    name: Literal["adam"]
    variant: Literal["torch", "lecture"] = "torch"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: PositiveFloat | None = None  # of the variant torch alone; unset: 1e-8

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> Adam:
        return without_eps(self)


class Adagrad(Section):
    """torch's Adagrad (the sum of squares), or the lecture's (their mean)."""

    name: Literal["adagrad"]
    variant: Literal["torch", "lecture"] = "torch"
    eps: PositiveFloat | None = None  # of the variant torch alone; unset: 1e-10

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> Adagrad:
        return without_eps(self)


class Rmsprop(Section):
    name: Literal["rmsprop"]
    variant: Literal["torch", "lecture"] = "torch"
    alpha: Fraction = 0.99
    eps: PositiveFloat | None = None  # of the variant torch alone; unset: 1e-8

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> Rmsprop:
        return without_eps(self)


AnySection = TypeVar("AnySection", bound=Section)


def without_eps(section: AnySection) -> AnySection:
    if getattr(section, "variant", "") == "lecture" and getattr(section, "eps", None) is not None:
        raise ValueError("optimizer.eps belongs to optimizer.variant = torch; the lecture's formulas have none")
    return section


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
    nesterov: bool = True
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
