"""The section of the learning rate: its peak at a batch, its warm-up, its decay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from largebatch.recipes import decays, kinds, paths
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
    Skipped,
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


class NoiseExamples(Section):
    """A noise scale in examples; from a run's or a ``noise.json`` of ``diagnose noise``, which is read once: what a run
    keeps is the number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    examples: PositiveFloat
    source: str | None = Field(default=None, alias="from")

    @property
    def words(self) -> str:
        return f"{self.examples:g}{f' ({self.source})' if self.source else ''}"


def a_noise_scale(written: Any) -> Any:
    if isinstance(written, str):
        return measured_noise_scale(written)
    return {"examples": written} if isinstance(written, int | float) and not isinstance(written, bool) else written


def measured_noise_scale(written: str) -> dict[str, Any]:
    """Of a run directory, or of the file that ``diagnose noise`` leaves in it."""
    key = "lr.noise_scale"
    file = Path(paths.local(key, written))
    try:
        if file.is_dir():
            file = next(file.glob("*/noise.json"), file / "noise.json")  # where diagnose noise has left it
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise ValueError(
            f"{key} = {shown(written)} cannot be read ({shown(str(file))}: {reason}); valid: a number of examples, "
            "or a run that `largebatch diagnose noise` has looked at"
        ) from None
    examples = facts.get("noise_scale") if isinstance(facts, dict) and facts.get("kind") == "noise" else None
    if isinstance(examples, bool) or not isinstance(examples, int | float) or not 0 < examples < LARGEST:
        bounded = "is not bounded there" if isinstance(facts, dict) and facts.get("kind") == "noise" else "is not there"
        raise ValueError(f"{key} = {shown(written)}: the noise scale {bounded}; valid: a number of examples")
    return {"examples": examples, "from": written}


class Scale(Section):
    """A number is its factor."""

    factor: PositiveFloat = 1.0
    until_epoch: PositiveFloat | None = None  # the lr is 0 from there on; unset: to the end

    @property
    def words(self) -> str:
        return f"× {self.factor:g}" + ("" if self.until_epoch is None else f" to epoch {self.until_epoch:g}")


def a_scale(written: Any) -> Any:
    if isinstance(written, (int, float)) and not isinstance(written, bool):
        return {"factor": written}
    return written


OneScale = Annotated[Scale, pydantic.BeforeValidator(a_scale, json_schema_input_type=float | Scale)]


class LearningRate(Section):
    """A rule of the batch size (``base`` at ``reference_batch_size``), or a ``table`` of it."""

    base: PositiveFloat | None = None
    reference_batch_size: PositiveInt | None = None
    scaling: Literal["linear", "sqrt", "adam_sqrt", "surge", "adascale", "none"] = "none"
    noise_scale: NoiseExamples | None = None  # [examples] of surge; or a run whose noise.json says it
    table: Annotated[dict[Size, PositiveFloat], Field(min_length=1)] | None = None
    interpolate: Switch = False
    warmup: Warmup = Warmup()
    decay: Decay = ConstantDecay()
    layer_decay: Annotated[float, Field(gt=0, lt=1), Number] | None = None  # times this for each layer below the head
    scales: dict[Skipped, OneScale] = Field(default_factory=dict)  # by norm, bias or a pattern: what the lr is times

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if self.scales and run.lr is not self:
            yield "lr.scales holds for a whole run, and stands in another section here"
        for pattern, one in self.scales.items():
            late = [method.where for method in run.methods.values() if method.ALONE == "at the end"]
            if late and one.until_epoch is not None:
                yield f"lr.scales.{pattern}.until_epoch does not go with {late[0]}, whose workers count steps anew"
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

    @pydantic.field_validator("noise_scale", mode="before", json_schema_input_type=float | str | NoiseExamples | None)
    @classmethod
    def number_or_run(cls, written: Any) -> Any:
        return a_noise_scale(written)

    @pydantic.field_serializer("noise_scale")
    def as_a_number(self, noise_scale: NoiseExamples | None) -> Any:
        if noise_scale is None or noise_scale.source is None:
            return noise_scale and noise_scale.examples
        return noise_scale.model_dump(mode="json", by_alias=True)

    def misfits(self, optimizer: Any, key: str = "lr") -> Iterator[str]:
        """Why its rule is not one of this optimizer: a sentence."""
        if self.scaling == "surge" and not optimizer.SIGN_LIKE:
            yield (
                f"{key}.scaling = surge is the curve of steps as long as a gradient's sign, of adam and adamw, and "
                f"optimizer.name = {optimizer.name} is another; valid: linear, sqrt, none"
            )

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
        if (self.scaling == "surge") != (self.noise_scale is not None):
            raise ValueError(
                "lr.scaling = surge needs lr.noise_scale, the batch of its peak: examples, or a run whose noise.json "
                "says them"
                if self.noise_scale is None
                else "lr.noise_scale has no effect without lr.scaling = surge"
            )
        if self.warmup.scaling != "none" and self.reference_batch_size is None:
            raise ValueError("lr.warmup.scaling = linear needs lr.reference_batch_size, where its length holds")
        if self.scaling == self.warmup.scaling == "none" and self.reference_batch_size is not None:
            raise ValueError(
                "lr.reference_batch_size has no effect without lr.scaling = linear, sqrt, adam_sqrt, surge or adascale"
            )
        if self.interpolate and self.table is None:
            raise ValueError("lr.interpolate = true needs lr.table")
        if self.scaling == "adascale" and (self.warmup.steps or self.decay.in_steps):
            raise ValueError("lr.scaling = adascale counts its own steps; state lr.warmup and lr.decay in epochs")
        if self.table is not None and self.warmup.start == "base":
            raise ValueError("lr.warmup.from = base needs lr.base; a table warms up from zero")
        return self
