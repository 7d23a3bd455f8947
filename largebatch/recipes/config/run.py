"""What the user wrote: a frozen :class:`Run`, read strictly from YAML and ``key=value`` overrides.

Imports neither torch nor anything of the project's machinery, so a recipe is checked in milliseconds.
A key that nobody knows, a key given twice, a value out of range: each is one sentence with the path of
the key. Nothing derived is ever written back here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from largebatch.errors import UserError
from largebatch.recipes import kinds, methods, optimizers, strict_yaml
from largebatch.recipes.config import recorded, sections
from largebatch.recipes.config.dotted import is_key, place
from largebatch.recipes.config.engines import DdpEngine, Engine
from largebatch.recipes.config.learning_rate import LearningRate
from largebatch.recipes.config.mistakes import sentence, shown
from largebatch.recipes.config.model import Model
from largebatch.recipes.config.phases import PhaseKeys, check_overrides, check_phases, listed
from largebatch.recipes.config.search import Search
from largebatch.recipes.config.sections import (
    Batch,
    BatchNorm,
    Checkpoint,
    Data,
    Expect,
    Loss,
    NonfiniteGradients,
    RegimeAdaptation,
    TaskSection,
    WeightDecay,
)
from largebatch.recipes.config.start import Beginning
from largebatch.recipes.keys import Minutes, Number, PositiveFloat, PositiveInt, Section, Switch
from largebatch.recipes.strict_yaml import LONGEST_TEXT, parse, unfit

if TYPE_CHECKING:
    from largebatch.recipes.config.recorded import Record
    from largebatch.recipes.config.sections import Evaluate
    from largebatch.recipes.methods import Method
    from largebatch.recipes.optimizers import Optimizer
else:
    Evaluate = methods.holding(sections.Evaluate, "evaluate")
    Record = methods.holding(recorded.Record, "record")
    Optimizer = kinds.one_of(optimizers.table())


class Run(Section):
    """One run, as the scientist wrote it."""

    name: str
    title: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32), Number] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp64", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 on cuda, else fp32
    channels_last: Switch | None = None  # else wherever the model has convolutions
    compile: Switch = False
    deterministic: Switch = False  # same seed and world: the same bits; refuses operations that have no such form
    timeout_minutes: Minutes = 10  # a rank that stands still so long is named; all end
    resume: Literal["auto", "never"] = "auto"
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    phases: Annotated[tuple[PhaseKeys, ...], BeforeValidator(listed)] | None = None  # keys laid over the rest, in turn
    start: Beginning = None  # another run, whose weights this one begins with; RUN@120 or its keys
    model: Model
    data: Data
    batch: Batch
    optimizer: Optimizer
    weight_decay: WeightDecay = WeightDecay()
    task: TaskSection | None = None  # else what the data set says of itself
    loss: Loss = Loss()
    max_grad_norm: PositiveFloat | None = None
    nonfinite_gradients: NonfiniteGradients = NonfiniteGradients()
    lr: LearningRate
    regime_adaptation: RegimeAdaptation | None = None
    batch_norm: BatchNorm = BatchNorm()
    engine: Engine = DdpEngine()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    record: Record = Record()
    expect: Expect | None = None
    search: Search = None  # keys, and the values that --tune search may give them

    @pydantic.field_validator("name")
    @classmethod
    def below_runs(cls, name: str) -> str:
        """Unless record.dir says so, a recipe writes nowhere else."""
        path = Path(name)
        if path.is_absolute() or not path.name or ".." in path.parts or len(name.encode(errors="replace")) > 200:
            raise ValueError(f"name = {shown(name)} names no folder in runs; record.dir may be any folder")
        if problem := unfit(name):  # of a file's name; what is written in one was looked at
            raise ValueError(f"name = {shown(name)}: {problem}; write another name into the recipe")
        return name

    @pydantic.field_validator("engine", mode="before")
    @classmethod
    def ddp_unless_named(cls, written: Any) -> Any:
        all_ddp = isinstance(written, dict) and written and set(written) <= set(DdpEngine.model_fields)
        return {"name": "ddp", **written} if all_ddp else written

    @pydantic.model_validator(mode="after")
    def one_budget(self) -> Run:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps as the budget of the run")
        return self

    @pydantic.model_validator(mode="after")
    def phases_of_this_run(self) -> Run:
        check_phases(self, Run)
        return self

    @property
    def methods(self) -> Mapping[str, Method]:
        """Those that the recipe asks for, by name, in the order of their parts."""
        return methods.of(self)

    @property
    def stretch(self) -> int:
        """κ of the regime adaptation; 1 without."""
        if self.regime_adaptation is None:
            return 1
        return math.ceil(self.batch.global_batch_size / self.regime_adaptation.reference_batch_size)

    @property
    def recomputes_statistics(self) -> bool:
        """Whether batch norm's statistics of the weights that are judged are recomputed for every evaluation."""
        of_methods = any(method.STALE_STATISTICS for method in self.methods.values())
        return self.batch_norm.statistics == "precise" or of_methods

    @property
    def directory(self) -> Path:
        return Path(self.record.dir or Path("runs") / self.name)

    def as_written(self) -> dict[str, Any]:
        """Plain data that :func:`from_dict` reads back to an equal Run; what ``run.yaml`` holds."""
        return self.model_dump(mode="json", by_alias=True)

    def as_set(self) -> dict[str, Any]:
        """The same without what was left out, so that overrides may choose another kind of what stands there."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def science(self) -> dict[str, Any]:
        """The part that decides the result: two runs that share it may continue one another."""
        everything = self.as_written()
        everything["weights"] = everything["engine"].get("weights", "fp32")
        evaluate = everything["evaluate"]
        everything["median_of"] = evaluate["median_of"]
        everything["all_reduce"] = everything["engine"].get("all_reduce", "fp32")
        everything["nonfinite_gradients"].pop("at_most")
        everything["batch"].pop("memory_reserve")
        if self.batch.ramp is not None and self.batch.ramp.rule == "adaptive":  # what it follows
            everything["noise_scale"] = self.methods["noise_scale"].model_dump(mode="json")
        for machine in (
            "name", "title", "device", "compile", "deterministic", "timeout_minutes", "channels_last", "resume",
            "engine", "evaluate", "checkpoint", "record", "expect", "search",
        ):  # fmt: skip
            everything.pop(machine)
        for reading in ("root", "decode", "workers", "unreadable_share", "if_changed"):
            everything["data"].pop(reading)
        marks = ("every_epochs", "stop_at") if evaluate["stop_at"] is not None else ()  # it ends the run at one of them
        everything["evaluate"] = {key: evaluate[key] for key in (*marks, "flips", "shift")}
        return everything


if not TYPE_CHECKING:
    Run = methods.holding(Run)


_of_methods = {key: set(methods.fields_at(key)) for key in ("evaluate", "record", "")}  # keys of methods


def made_anew() -> None:
    """The keys of a recipe, where kinds were registered after they were made of them, or are gone again."""
    beside = {
        "evaluate": (Evaluate, Evaluate()),
        "record": (Record, Record()),
        "optimizer": (kinds.one_of(optimizers.table()), ...),
    }
    for section, key, others in ((Evaluate, "evaluate", {}), (Record, "record", {}), (Run, "", beside)):
        fields = methods.fields_at(key)
        for gone in _of_methods[key] - fields.keys():
            del section.__pydantic_fields__[gone]
        _of_methods[key] = set(fields)
        kinds.take_fields(section, {**others, **fields})


for registry in (methods.REGISTRY, optimizers.REGISTRY):
    registry.listeners.append(made_anew)


def load(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """The Run in a YAML file, with ``a.b=value`` overrides laid over it."""
    return from_dict(overlay(read(path), overrides), f"{path}{' with its overrides' if overrides else ''}")


def read(path: Path | str) -> dict[str, Any]:
    """What a recipe file says, unchecked but for its form; ``name`` is the file's where it gives none."""
    path = Path(path)
    try:
        with path.open("rb") as file:  # a device or a huge file is not read to its end
            raw = file.read(LONGEST_TEXT + 1)
        if len(raw) > LONGEST_TEXT:
            raise UserError(f"{path} holds more than {LONGEST_TEXT:,} bytes, which no recipe needs")
        text = raw.decode("utf-8-sig")
    except OSError as error:
        candidates = [Path(f"{path}.yaml"), Path("configs") / path, Path("configs") / f"{path}.yaml"]
        meant = next((f"; did you mean {other}?" for other in candidates if other.is_file()), "")
        raise UserError(f"cannot read the recipe {path}: {error.strerror}{meant}") from None
    except UnicodeDecodeError:
        raise UserError(f"the recipe {path} is not UTF-8 text") from None
    written = parse(text, str(path))
    if not isinstance(written, dict):
        raise UserError(f"{path} is not a recipe: expected keys such as model, data, batch, lr")
    written.setdefault("name", path.stem)
    return written


def from_dict(written: dict[str, Any], source: str = "the recipe") -> Run:
    written = overlay(written, ()) if "table" in written else written
    try:
        return Run.model_validate(written)
    except pydantic.ValidationError as error:
        raise UserError(f"{source}: {sentence(error, Run)}") from None


def overlay(written: dict[str, Any], overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """A copy of ``written`` with its table's row and every ``a.b=value`` set, the latter last.

    ``epochs`` and ``steps`` take each other's place.
    """
    written = copy.deepcopy(written)
    settings = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not is_key(key):
            raise UserError(f"'{override[:60]}' is not an override; write key=value, such as lr.base=0.1")
        if not text.strip():
            raise UserError(f"{key}= has no value, as an unset variable leaves it; for none write {key}=null")
        settings.append((key, parse(text, f"the override {override[:100]}")))
    if "table" in written:
        table = written.pop("table")
        for key, value in row_of(table, written, dict(settings)).items():
            place(written, key, copy.deepcopy(value))
    for key, value in settings:
        place(written, key, value)
    check_overrides(written, [key for key, _ in settings])
    return written


def setting(key: str, value: Any) -> str:
    """The override that sets ``key`` to ``value``, whatever signs are in it."""
    text = strict_yaml.written(value, key).removesuffix("...\n")
    return f"{key}={text.strip(YAML_SPACE)}"


def row_of(table: Any, written: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """``{"lr.base": 7.4, ...}``: what the table of the recipe sets at this global batch.

    A batch without a row is refused, unless every key that the rows set is set by hand.
    """
    rows = rows_of(table)
    batch = written.get("batch")
    size = batch.get("global_batch_size") if isinstance(batch, dict) else None
    if isinstance(in_section := settings.get("batch"), dict):
        size = in_section.get("global_batch_size", size)
    size = settings.get("batch.global_batch_size", size)
    if isinstance(size, float) and size.is_integer():  # 8.192e3
        size = int(size)
    if isinstance(size, int) and size in rows:
        return rows[size]
    wanted = {key for row in rows.values() for key in row}
    if not isinstance(size, int) or wanted <= set(settings):
        return {}  # what is wrong with the size is told with the other keys
    raise UserError(
        f"table has no row for batch.global_batch_size = {size}; rows: {', '.join(map(str, sorted(rows)))}; "
        f"for another batch set {', '.join(sorted(wanted))} by hand"
    )


def rows_of(table: Any) -> dict[int, dict[str, Any]]:
    """The rows of a recipe's ``table``, checked for their form: global batch size -> dotted keys -> values."""
    if not isinstance(table, dict) or not table:
        raise UserError("table should hold a row for each global batch size, as in 8192: {lr.base: 17}")
    for size, row in table.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"table: {shown(size)} is no global batch size; a row begins with a positive whole number")
        if not isinstance(row, dict) or not row:
            raise UserError(f"table.{size} should set keys, as in {size}: {{lr.base: 17}}")
        for key in row:
            if not is_key(key):
                raise UserError(
                    f"table.{size}: {shown(key)} is no key of a recipe; write it with dots, such as lr.base"
                )
            if key.partition(".")[0] == "table" or key in ("batch", "batch.global_batch_size"):
                raise UserError(f"table.{size} cannot set {key}, which chooses the row")
    return table


YAML_SPACE = " \n"  # what stands around a value and is none of it; signs that Unicode calls spaces are


def json_schema(
    known: Mapping[str, list[str]] | None = None, examples: Mapping[str, list[str]] | None = None
) -> dict[str, Any]:
    """For editors: completes and checks recipe files (``largebatch recipe schema``).

    ``known``: section -> all names that it may hold; ``examples``: some of them.
    """
    schema = Run.model_json_schema(by_alias=True)
    row = {"type": "object", "description": "dotted keys of this recipe and their values at this global batch size"}
    schema["properties"]["table"] = {"type": "object", "additionalProperties": row}
    for word, of_sections in (("enum", known), ("examples", examples)):
        for section, names in (of_sections or {}).items():
            schema["$defs"][section]["properties"]["name"][word] = names
    return schema
