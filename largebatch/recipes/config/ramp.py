"""The section of a growing batch: when it grows, by how much, and what the lr does then."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from largebatch.recipes.keys import LARGEST, Number, PositiveFloat, PositiveInt, Section, Several, ascending

KEYS = {  # of one rule alone
    "at_epochs": ("epochs",),
    "sizes": ("epochs",),
    "lr": ("epochs", "adaptive"),
    "lr_factor": ("seesaw",),
    "above": ("adaptive",),
    "every_epochs": ("adaptive",),
    "least_steps": ("adaptive",),
}


class Ramp(Section):
    """The global batch grows: at epochs by ``factor`` or to the next of ``sizes``; by ``rule: seesaw`` wherever the
    decay would have cut the lr, by ``factor``, with the lr divided by ``lr_factor``; or by ``rule: adaptive`` wherever
    the run's noise scale is larger than ``above`` times the batch."""

    rule: Literal["epochs", "seesaw", "adaptive"] = "epochs"
    at_epochs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    factor: Several | None = None
    largest: PositiveInt | None = (
        None  # at epochs, where the factor would go beyond it, the lr is divided by it instead
    )
    sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    lr: Literal["stays", "sqrt", "linear"] = "stays"  # what it does where the batch grows: times √, times
    lr_factor: Annotated[float, Field(gt=1, le=LARGEST), Number] | None = None  # of seesaw; unset: √factor, the least
    above: PositiveFloat | None = None  # of adaptive, like the next two; unset: the factor
    every_epochs: PositiveFloat | None = None  # how often it is asked; unset: 1
    least_steps: PositiveInt | None = None  # that the noise scale is averaged over before it counts; unset: 10

    @property
    def cut(self) -> float:
        """What seesaw divides the lr by."""
        return self.lr_factor or math.sqrt(self.factor or 1)

    @pydantic.model_validator(mode="after")
    def one_rule(self) -> Ramp:
        for key, rules in KEYS.items():
            if self.rule not in rules and getattr(self, key) != type(self).model_fields[key].default:
                only = f" without batch.ramp.rule = {rules[-1]}" if self.rule == "epochs" else ""
                raise ValueError(f"batch.ramp.{key} has no effect{only or f' with batch.ramp.rule = {self.rule}'}")
        match self.rule:
            case "epochs":
                self.whole_epochs()
            case "seesaw":
                self.whole_seesaw()
            case "adaptive":
                self.whole_adaptive()
        return self

    def whole_epochs(self) -> None:
        if self.at_epochs is None:
            raise ValueError("batch.ramp.at_epochs is missing")
        if (self.factor is None) == (self.sizes is None):
            raise ValueError("give exactly one of batch.ramp.factor and batch.ramp.sizes")
        if self.sizes is not None and len(self.sizes) != len(self.at_epochs):
            raise ValueError(
                f"batch.ramp.sizes has {len(self.sizes)} sizes for the {len(self.at_epochs)} epochs of "
                "batch.ramp.at_epochs; give one for each"
            )
        if self.largest is not None and self.factor is None:
            raise ValueError("batch.ramp.largest needs batch.ramp.factor; batch.ramp.sizes says every size itself")
        if self.largest is not None and self.lr != "stays":
            raise ValueError(
                f"batch.ramp.largest lowers the lr where the batch cannot grow, batch.ramp.lr = {self.lr} raises it "
                "where it does; leave one out"
            )
        ascending("batch.ramp.at_epochs", self.at_epochs)

    def whole_seesaw(self) -> None:
        if self.factor is None or self.largest is None:
            raise ValueError(
                "batch.ramp.rule = seesaw needs batch.ramp.factor, and batch.ramp.largest below the critical batch"
            )
        if self.cut < (least := math.sqrt(self.factor)) * (1 - 1e-9):
            raise ValueError(
                f"batch.ramp.lr_factor = {self.lr_factor:g} is below √{self.factor} = {least:.6g}, where the loss "
                "leaves that of the decay; at least that"
            )

    def whole_adaptive(self) -> None:
        if self.factor is None or self.largest is None:
            raise ValueError(
                "batch.ramp.rule = adaptive needs batch.ramp.factor, and batch.ramp.largest, beyond which no noise "
                "scale lets the batch grow"
            )

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if self.rule == "seesaw":
            yield from self.of_seesaw(run)
        if self.rule == "adaptive":
            yield from self.of_adaptive(run)
        if self.rule != "epochs" and (run.lr.decay.in_steps or run.lr.warmup.steps):
            yield (
                f"batch.ramp.rule = {self.rule} changes what a step is; state lr.warmup and lr.decay in epochs or "
                "shares"
            )

    def of_seesaw(self, run: Any) -> Iterator[str]:
        if run.optimizer.LR_RULE != "sqrt":
            yield (
                f"batch.ramp.rule = seesaw is of Adam's kind, and optimizer.name = {run.optimizer.name} has another "
                "measure of steps; valid: batch.ramp.at_epochs and factor, with the lr as it is (Smith et al. 2018)"
            )
        if not run.lr.decay.CHANGES:
            yield f"batch.ramp.rule = seesaw follows a decay, and lr.decay.name = {run.lr.decay.name} has none"

    def of_adaptive(self, run: Any) -> Iterator[str]:
        assert self.factor is not None
        assert self.largest is not None
        size = run.batch.global_batch_size
        if self.largest < size * self.factor:
            yield (
                f"batch.ramp.largest = {self.largest} leaves no place to grow: batch.global_batch_size = {size} by "
                f"batch.ramp.factor = {self.factor} is {size * self.factor}; at least that"
            )
        if run.epochs is None:
            yield "batch.ramp needs the budget in epochs; with steps it would depend on the batch"
        for method in run.methods.values():
            if method.ALONE:
                yield f"batch.ramp.rule = adaptive asks for the noise of one set of weights; {method.where} has many"
            if method.counts_on_steps:
                yield (
                    f"batch.ramp.rule = adaptive does not say beforehand how many steps there are, and {method.where} "
                    "is planned over them; choose one"
                )
        noise = run.methods["noise_scale"]
        if self.least >= (most := noise.remembers):
            yield (
                f"batch.ramp.least_steps = {self.least} is never reached: record.noise_scale.smoothing = "
                f"{noise.smoothing:g} averages over {most:.4g} steps; fewer, or another smoothing"
            )

    @property
    def least(self) -> int:
        """Steps that the noise scale is averaged over before it counts."""
        return self.least_steps or 10

    @property
    def asked_every(self) -> float:
        """Epochs, as the recipe states them."""
        return self.every_epochs or 1.0

    @property
    def threshold(self) -> float:
        """So many times the batch the noise scale must be larger than: Merrill's is the batch that would come."""
        return self.above or float(self.factor or 1)

    @property
    def words(self) -> str:
        """Of an adaptive one."""
        often = "epoch" if self.asked_every == 1 else f"{self.asked_every:g} epochs"
        rate = {"stays": "lr as it is", "sqrt": f"lr × √{self.factor}", "linear": f"lr × {self.factor}"}[self.lr]
        return (
            f"batch × {self.factor} up to {self.largest:,}, {rate}, where the noise scale is above {self.threshold:g} "
            f"× the batch, asked every {often}"
        )
