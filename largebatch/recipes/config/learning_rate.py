"""The section of the learning rate: its peak at a batch, its warm-up, its decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from largebatch.recipes import decays, kinds
from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.decays.constant import ConstantDecay
from largebatch.recipes.keys import (
    LARGEST,
    MOST,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
    Size,
    Switch,
)

if TYPE_CHECKING:
    from largebatch.recipes.decays import Decay
else:
    Decay = kinds.one_of(decays.table())


def a_start(written: Any) -> Any:
    """Where a warm-up begins."""
    is_rate = isinstance(written, (int, float)) and not isinstance(written, bool) and 0 < written <= LARGEST
    if written not in ("zero", "base") and not is_rate:
        raise ValueError(f"lr.warmup.from = {shown(written)} is not known; valid: zero or base or a rate above 0")
    return written


WarmupStart = Annotated[Literal["zero", "base"] | float, pydantic.BeforeValidator(a_start)]


class Warmup(Section):
    """From zero, from ``lr.base`` or from a rate, to the peak; as long as one of the first three says, with
    ``scaling: linear`` times B/reference."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    epochs: NonNegativeFloat = 0.0
    steps: NonNegativeInt | None = None
    share: Fraction | None = None  # of the budget of the run or phase
    start: WarmupStart = Field(default="zero", alias="from")
    scaling: Literal["none", "linear"] = "none"
    power: PositiveFloat = 1.0  # the share of the way is (t/W)^power
    start_step: Annotated[int, Field(le=0, ge=-MOST), Number] = 0  # −76: the first 76 steps of it are left out

    @pydantic.model_validator(mode="after")
    def one_length(self) -> Warmup:
        given = [key for key in ("epochs", "steps", "share") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"lr.warmup.{given[0]} and lr.warmup.{given[1]} both say how long it is; leave one out")
        if self.start_step and -self.start_step >= (self.steps or 0):
            raise ValueError(
                f"lr.warmup.start_step = {self.start_step} leaves out all of the warm-up; it should be less than "
                "lr.warmup.steps"
            )
        return self


class LearningRate(Section):
    """A rule of the batch size (``base`` at ``reference_batch_size``), or a ``table`` of it."""

    base: PositiveFloat | None = None
    reference_batch_size: PositiveInt | None = None
    scaling: Literal["linear", "sqrt", "adam_sqrt", "adascale", "none"] = "none"
    table: Annotated[dict[Size, PositiveFloat], Field(min_length=1)] | None = None
    interpolate: Switch = False
    warmup: Warmup = Warmup()
    decay: Decay = ConstantDecay()
    layer_decay: Annotated[float, Field(gt=0, lt=1), Number] | None = None  # times this for each layer below the head

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if self.layer_decay is None:
            return
        if run.lr is not self:
            yield f"lr.layer_decay = {self.layer_decay:g} holds for a whole run, and stands in another section here"
        if run.optimizer.name == "muon":
            yield (
                f"lr.layer_decay = {self.layer_decay:g} does not go with optimizer.name = muon, whose matrices have "
                "steps of one length; leave it out"
            )

    @pydantic.field_validator("warmup", mode="before")
    @classmethod
    def null_is_none(cls, written: Any) -> Any:
        return {} if written is None else written

    @pydantic.model_validator(mode="after")
    def one_rule(self) -> LearningRate:
        if (self.base is None) == (self.table is None):
            raise ValueError("give exactly one of lr.base and lr.table")
        if self.table is not None and self.scaling != "none":
            raise ValueError("lr.scaling belongs to lr.base; a table already says the lr of each batch size")
        if self.scaling != "none" and self.reference_batch_size is None:
            raise ValueError(
                f"lr.scaling = {self.scaling} needs lr.reference_batch_size, the batch where lr.base holds"
            )
        if self.warmup.scaling != "none" and self.reference_batch_size is None:
            raise ValueError("lr.warmup.scaling = linear needs lr.reference_batch_size, where its length holds")
        if self.scaling == self.warmup.scaling == "none" and self.reference_batch_size is not None:
            raise ValueError(
                "lr.reference_batch_size has no effect without lr.scaling = linear, sqrt, adam_sqrt or adascale"
            )
        if self.interpolate and self.table is None:
            raise ValueError("lr.interpolate = true needs lr.table")
        if self.scaling == "adascale" and (self.warmup.steps or self.decay.in_steps):
            raise ValueError("lr.scaling = adascale counts its own steps; state lr.warmup and lr.decay in epochs")
        if self.table is not None and self.warmup.start == "base":
            raise ValueError("lr.warmup.from = base needs lr.base; a table warms up from zero")
        return self
