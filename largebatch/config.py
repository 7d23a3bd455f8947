"""What the user wrote: a frozen :class:`Run`, read strictly from YAML and ``key=value`` overrides.

Imports neither torch nor anything of the project's machinery, so a recipe is checked in milliseconds.
A key that nobody knows, a key given twice, a value out of range: each is one sentence with the path of
the key. Nothing derived is ever written back here.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from largebatch.errors import UserError, suggestion
from largebatch.strict_yaml import parse

Fraction = Annotated[float, Field(ge=0, lt=1)]
ParameterKind = Literal["norm", "bias"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(BaseModel):
    """``name`` and whatever arguments that model's builder takes."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Data(Section):
    name: str
    root: str | None = None  # folder of the files; else $LARGEBATCH_DATA, else the cache folder
    image_size: PositiveInt | None = None
    augment: Literal["auto", "none", "flip", "crop", "crop_flip", "resized_crop_flip"] = "auto"
    hold_out: NonNegativeInt = 0  # training examples set aside and evaluated in place of the test set
    workers: NonNegativeInt | None = None  # processes that read image folders
    num_classes: PositiveInt | None = None  # synthetic only, like the next two
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    examples: PositiveInt | None = None


class Batch(Section):
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt | None = None  # else the largest divisor that fits the device


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


Optimizer = Annotated[Sgd | HeavyBall | Lars | Lamb | AdamW, Field(discriminator="name")]


class WeightDecay(Section):
    value: NonNegativeFloat = 0.0
    skip: tuple[ParameterKind, ...] = ("norm", "bias")


class Loss(Section):
    label_smoothing: Fraction = 0.0


class Warmup(Section):
    """Linear from zero, or from ``lr.base``, to the peak; ``epochs`` long."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    epochs: NonNegativeFloat = 0.0
    start: Literal["zero", "base"] = Field(default="zero", alias="from")


class ConstantDecay(Section):
    name: Literal["constant"] = "constant"


class StepsDecay(Section):
    name: Literal["steps"]
    at_epochs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1


class PolynomialDecay(Section):
    name: Literal["polynomial"]
    power: PositiveFloat = 2.0
    end_lr: NonNegativeFloat = 0.0


class LinearDecay(Section):
    name: Literal["linear"]
    end_lr: NonNegativeFloat = 0.0


class CosineDecay(Section):
    name: Literal["cosine"]
    end_lr: NonNegativeFloat = 0.0


Decay = Annotated[ConstantDecay | StepsDecay | PolynomialDecay | LinearDecay | CosineDecay, Field(discriminator="name")]


class LearningRate(Section):
    """A rule of the batch size (``base`` at ``reference_batch_size``), or a ``table`` of it."""

    base: PositiveFloat | None = None
    reference_batch_size: PositiveInt | None = None
    scaling: Literal["linear", "sqrt", "none"] = "none"
    table: Annotated[dict[PositiveInt, PositiveFloat], Field(min_length=1)] | None = None
    interpolate: bool = False
    warmup: Warmup = Warmup()
    decay: Decay = ConstantDecay()

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
        if self.scaling == "none" and self.reference_batch_size is not None:
            raise ValueError("lr.reference_batch_size has no effect without lr.scaling = linear or sqrt")
        if self.interpolate and self.table is None:
            raise ValueError("lr.interpolate = true needs lr.table")
        if self.table is not None and self.warmup.start == "base":
            raise ValueError("lr.warmup.from = base needs lr.base; a table warms up from zero")
        return self


class DdpEngine(Section):
    name: Literal["ddp"] = "ddp"


class FsdpEngine(Section):
    name: Literal["fsdp"]


class DeepSpeedEngine(Section):
    name: Literal["deepspeed"]
    zero: Literal[0, 1, 2] = 1  # the ZeRO stage: what is divided among the ranks
    weights: Literal["fp32", "bf16"] = "fp32"  # bf16: those of the model, with fp32 masters in the optimizer


Engine = Annotated[DdpEngine | FsdpEngine | DeepSpeedEngine, Field(discriminator="name")]


class Evaluate(Section):
    every_epochs: PositiveFloat = 1.0  # and always at the end
    batch_size: PositiveInt = 1000  # examples per rank and forward
    train: bool | None = None  # at the end also the training set, unaugmented; unset: if it is a small one


class Checkpoint(Section):
    every_epochs: NonNegativeFloat = 1.0  # 0: never, not even at the end
    keep: PositiveInt = 2


class Record(Section):
    dir: str | None = None  # the run directory; else runs/<name>
    every_steps: PositiveInt = 10
    layers_every_steps: NonNegativeInt = 0  # trust ratio, weight norm and update norm of every layer; 0: never
    tensorboard: bool = True


class Expect(Section):
    """The published result, printed beside what was measured."""

    top1: Annotated[float, Field(ge=0, le=100)] | None = None
    steps: PositiveInt | None = None
    source: str


class Run(Section):
    """One run, as the scientist wrote it."""

    name: str
    title: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 on cuda, else fp32
    channels_last: bool | None = None  # else wherever the model has convolutions
    compile: bool = False
    resume: Literal["auto", "never"] = "auto"
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    model: Model
    data: Data
    batch: Batch
    optimizer: Optimizer
    weight_decay: WeightDecay = WeightDecay()
    loss: Loss = Loss()
    max_grad_norm: PositiveFloat | None = None
    lr: LearningRate
    engine: Engine = DdpEngine()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    record: Record = Record()
    expect: Expect | None = None

    @pydantic.model_validator(mode="after")
    def one_budget(self) -> Run:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps as the budget of the run")
        return self

    @property
    def directory(self) -> Path:
        return Path(self.record.dir or Path("runs") / self.name)

    def as_written(self) -> dict[str, Any]:
        """Plain data that :func:`from_dict` reads back to an equal Run; what ``run.yaml`` holds."""
        return self.model_dump(mode="json", by_alias=True)

    def science(self) -> dict[str, Any]:
        """The part that decides the result: two runs that share it may continue one another."""
        everything = self.as_written()
        everything["weights"] = everything["engine"].get("weights", "fp32")
        for machine in (
            "name", "title", "device", "compile", "channels_last", "resume", "engine", "evaluate",
            "checkpoint", "record", "expect",
        ):  # fmt: skip
            everything.pop(machine)
        for reading in ("root", "workers"):
            everything["data"].pop(reading)
        return everything


def load(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """The Run in a YAML file, with ``a.b=value`` overrides laid over it."""
    return from_dict(overlay(read(path), overrides), f"{path}{' with its overrides' if overrides else ''}")


def read(path: Path | str) -> dict[str, Any]:
    """What a recipe file says, unchecked but for its form; ``name`` is the file's where it gives none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the recipe {path} is not UTF-8 text") from None
    written = parse(text, str(path))
    if not isinstance(written, dict):
        raise UserError(f"{path} is not a recipe: expected keys such as model, data, batch, lr")
    written.setdefault("name", path.stem)
    return written


def from_dict(written: dict[str, Any], source: str = "the recipe") -> Run:
    try:
        return Run.model_validate(written)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {sentence(error)}") from None


def overlay(written: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A copy of ``written`` with every ``a.b=value`` set; ``epochs`` and ``steps`` take each other's place."""
    written = copy.deepcopy(written)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise UserError(f"'{override}' is not an override; write key=value, such as lr.base=0.1")
        *above, last = key.split(".")
        section = written
        for name in above:
            if section.get(name) is None:
                section[name] = {}
            section = section[name]
            if not isinstance(section, dict):
                raise UserError(f"{key} cannot be set: {name} holds a value, not a section")
        section[last] = parse(text, f"the override {override}")
        if key in ("epochs", "steps"):
            written.pop("steps" if key == "epochs" else "epochs", None)
    return written


def sentence(error: pydantic.ValidationError) -> str:
    """The first thing wrong, as one sentence with the key's path, the value and what would be valid."""
    problem = error.errors(include_url=False)[0]
    path, section = [], Run
    for part in problem["loc"]:
        fields = _fields(section)
        if isinstance(part, str) and section is not None and part not in fields and part in _tags(section):
            section = _tags(section)[part]  # the tag of a union names a choice, not a key
            continue
        path.append(str(part))
        section = fields.get(part) if isinstance(part, str) else None
    key, value = ".".join(path), problem["input"]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            siblings = _fields(_section_at(problem["loc"][:-1]))
            return f"unknown key {key}{suggestion(path[-1], list(siblings))}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key} = {value!r} is a value where keys are expected; write {key}.KEY=..., or {key}: {{KEY: ...}}"
        case "missing":
            return f"{key} is missing"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            return f"{key}.name = {context['tag']} is not known{suggestion(context['tag'], tags)}"
        case "union_tag_not_found":
            return _nameless(key, value, _tags(section))
        case "literal_error":
            known = f"{key} = {value!r} is not known; valid: {context['expected'].replace(chr(39), '')}"
            switch = "; to switch the optimizer, replace the section: 'optimizer={name: lamb}'"
            return known + (switch if key == "optimizer.variant" else "")
        case "value_error":
            return str(context["error"])
        case _:
            message = problem["msg"].removeprefix("Input ").removeprefix("Value ")
            return f"{key} = {value!r} {message[0].lower()}{message[1:]}"


def _nameless(key: str, value: Any, choices: dict[str, Any]) -> str:
    """A section that does not say which it is: a slip in the word, or a key that belongs to one of them."""
    for given in value if isinstance(value, dict) else ():
        owners = [name for name, choice in choices.items() if given in _fields(choice)]
        if not owners:
            return f"unknown key {key}.{given}{suggestion(given, ['name', *sorted(_all_fields(choices))])}"
        return f"{key}.name is missing; {key}.{given} belongs to {key}.name = {' or '.join(owners)}"
    return f"{key}.name is missing"


def _all_fields(choices: dict[str, Any]) -> set[str]:
    return {field for choice in choices.values() for field in _fields(choice)} - {"name"}


def _section_at(loc: tuple[Any, ...]) -> Any:
    section: Any = Run
    for part in loc:
        fields = _fields(section)
        section = fields[part] if part in fields else _tags(section).get(part)
    return section


def _fields(section: Any) -> dict[str, Any]:
    """Key -> the model below it, or the tuple of models it may be, or None for a plain value."""
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return {}
    below: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = tuple(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
        below[field.alias or name] = None if not models else models[0] if len(models) == 1 else models
    return below


def _tags(section: Any) -> dict[str, Any]:
    choices = section if isinstance(section, tuple) else ()
    return {c.model_fields["name"].annotation.__args__[0]: c for c in choices}


def json_schema() -> dict[str, Any]:
    """For editors: completes and checks recipe files (``largebatch recipe schema``)."""
    return Run.model_json_schema(by_alias=True)
