"""The sections of windows and flips, of random erasing, of mixup and cutmix."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from largebatch.recipes.keys import NonNegativeFloat, Number, PositiveFloat, PositiveInt, Section

Probability = Annotated[float, Field(ge=0, le=1), Number]


class CropWindow(Section):
    """How ``augment`` crops and mirrors small images."""

    padding: PositiveInt = 4  # pixels around the image, within which a crop's window lies
    fill: Literal["black", "reflect"] = "black"  # what the padding is: raw zero, or the image mirrored at its edge
    flips: Literal["random", "alternating"] = "random"  # alternating: each image is another way round in every epoch

    @property
    def words(self) -> str:
        flips = ", mirrored in every other epoch" if self.flips == "alternating" else ""
        return f"crops reach {self.padding} pixels beyond the edge ({self.fill}){flips}"


class Erase(Section):
    """A rectangle of some images is put out: a share of its area, sides in a ratio between two, anywhere."""

    probability: Annotated[float, Field(gt=0, le=1), Number] = 0.5
    mode: Literal["constant", "color", "pixel"] = "constant"  # the mean; or normal numbers for each channel, each pixel
    area: tuple[PositiveFloat, PositiveFloat] = (0.02, 1 / 3)  # of the image's
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.3, 1 / 0.3)  # of height to width

    @pydantic.model_validator(mode="after")
    def in_order(self) -> Erase:
        for key, (least, most) in (("area", self.area), ("ratio", self.ratio)):
            if least > most or (key == "area" and most > 1):
                bound = " and at most 1" if key == "area" else ""
                raise ValueError(f"data.erase.{key} = [{least:g}, {most:g}] should be two numbers in order{bound}")
        return self

    @property
    def words(self) -> str:
        area = " to ".join(f"{100 * share:.3g}" for share in self.area)
        return f"{area} % of an image erased ({self.mode}) with probability {self.probability:g}"


class Mix(Section):
    """Each training example is mixed with its neighbour in the global batch; ``mixup`` and ``cutmix`` are α of
    Beta(α, α)."""

    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0  # a box of the neighbour's pixels
    probability: Annotated[float, Field(gt=0, le=1), Number] = 1.0  # that a batch, pair or example is mixed
    switch: Probability | None = None  # where both are given: the share of cutmix; unset: 0.5
    per: Literal["batch", "pair", "example"] = "batch"  # what one weight is drawn for: the global batch, two, each

    @pydantic.model_validator(mode="after")
    def of_something(self) -> Mix:
        if not self.mixup and not self.cutmix:
            raise ValueError("data.mix mixes nothing; valid: {mixup: 0.2}, {cutmix: 1.0}, or both")
        if self.switch is not None and not (self.mixup and self.cutmix):
            raise ValueError(
                f"data.mix.switch = {self.switch:g} has no effect without both of data.mix.mixup and data.mix.cutmix"
            )
        return self

    @property
    def share_of_cutmix(self) -> float:
        """Of what is mixed."""
        if not (self.mixup and self.cutmix):
            return float(self.cutmix > 0)
        return 0.5 if self.switch is None else self.switch

    @property
    def words(self) -> str:
        kinds = [f"{name} {alpha:g}" for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)) if alpha]
        shared = f", {100 * self.share_of_cutmix:g} % cutmix" if len(kinds) > 1 else ""
        rarely = f", mixed with probability {self.probability:g}" if self.probability < 1 else ""
        return f"{' or '.join(kinds)}{shared}{rarely}, drawn for each {self.per}"
