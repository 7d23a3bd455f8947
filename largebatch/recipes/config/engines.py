"""The sections of the engines: how a step is carried out, and what of it is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.keys import Number, Pattern, PositiveInt, Section, Switch


class ActivationCheckpointing(Section):
    """What a forward pass does not keep, but computes again in the backward pass: the inside of the model's blocks, or
    of ``modules`` by the patterns of their names; of all these one in ``every``."""

    modules: Annotated[tuple[Pattern, ...], Field(min_length=1)] | None = None  # unset: the blocks
    every: PositiveInt = 1


class EngineSection(Section):
    """What all engines take."""

    activation_checkpointing: ActivationCheckpointing | None = None  # blocks, names of modules; unset: none

    @pydantic.field_validator(
        "activation_checkpointing",
        mode="before",
        json_schema_input_type=str | list[str] | ActivationCheckpointing | None,
    )
    @classmethod
    def in_short(cls, written: Any) -> Any:
        if written in ("none", None):
            return None
        if written == "blocks":
            return {}
        if isinstance(written, (list, tuple)):
            return {"modules": written}
        if not isinstance(written, (dict, ActivationCheckpointing)):
            raise ValueError(
                f"engine.activation_checkpointing = {shown(written)} is not known; valid: none, blocks, a list of "
                "patterns of modules' names, or {every: 2}"
            )
        return written

    @pydantic.field_serializer("activation_checkpointing")
    def in_short_again(self, section: ActivationCheckpointing | None) -> Any:
        if section is None or section.every > 1:
            return section and section.model_dump(mode="json", exclude_none=True)
        return "blocks" if section.modules is None else list(section.modules)


class DdpEngine(EngineSection):
    name: Literal["ddp"] = "ddp"
    all_reduce: Literal["fp32", "fp16", "bf16"] = "fp32"  # the number format in which gradients travel
    cuda_graphs: Switch = False  # forward and backward replayed: where the micro-batch is small and the host too slow

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        sizes = run.data.image_size
        changing = [method.where for method in run.methods.values() if not method.REPLAYED]
        for asked, name in (
            *((True, where) for where in changing),
            (run.batch.bn_batch_size is not None, "batch.bn_batch_size"),
            (run.batch_norm.statistics == "last", "batch_norm.statistics = last"),
            (run.batch.ramp is not None, "batch.ramp"),
            (
                sizes is not None and sizes.first != sizes.last and not run.compile,
                "data.image_size that grows, without compile = true",
            ),
            (bool(run.model.frozen), "model.frozen"),
            (self.activation_checkpointing is not None, "engine.activation_checkpointing"),
            (run.batch.tries_micro_batches, "batch.micro_batch_size = auto"),
        ):
            if self.cuda_graphs and asked:
                yield f"engine.cuda_graphs = true does not go with {name}; leave engine.cuda_graphs out"


class FsdpEngine(EngineSection):
    name: Literal["fsdp"]


class DeepSpeedEngine(EngineSection):
    name: Literal["deepspeed"]
    zero: Annotated[Literal[0, 1, 2], Number] = 1  # the ZeRO stage: what is divided among the ranks
    weights: Literal["fp32", "bf16"] = "fp32"  # bf16: those of the model, with fp32 masters in the optimizer

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if self.weights == "bf16" and run.model.frozen:
            yield (
                "model.frozen does not go with engine.weights = bf16, which has fp32 masters of trained weights alone; "
                "valid: engine.weights = fp32"
            )


Engine = Annotated[DdpEngine | FsdpEngine | DeepSpeedEngine, Field(discriminator="name")]
