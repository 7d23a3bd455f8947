"""The phases of a recipe: keys laid over it, each list of them for a stretch of the run.

    phases:
      - {data.image_size: 128, until_epoch: 6}
      - {data.image_size: 192, batch.global_batch_size: 512, until_share: 0.8}
      - {data.image_size: 224, lr.base: 0.05}

All but the last say where they end; :mod:`largebatch.plan.phases` says where that is. Each, laid over the recipe, is a
recipe of its own, with the ranges and sentences of its keys.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from largebatch.errors import UserError
from largebatch.recipes.config.dotted import is_key, place, touches
from largebatch.recipes.config.mistakes import sentence, shown
from largebatch.recipes.keys import Number, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from largebatch.recipes.config.run import Run

ENDS = ("until_epoch", "until_share", "steps")
CHANGES = (
    "batch.global_batch_size", "batch.micro_batch_size", "data.image_size", "data.length", "data.max_predictions", "lr",
    "optimizer", "weight_decay.value",
)  # fmt: skip
VALID = f"a phase may change {', '.join(CHANGES[:5])}, {CHANGES[-1]}, and keys of lr and of optimizer"


class PhaseKeys(BaseModel):
    """Where a phase ends, whose clock its learning rate follows, and the dotted keys that it sets."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    __pydantic_extra__: dict[str, pydantic.JsonValue] = {}
    until_epoch: PositiveFloat | None = None
    until_share: Annotated[float, Field(gt=0, lt=1), Number] | None = None  # of the run's budget
    steps: PositiveInt | None = None  # of its own
    clock: Literal["own", "goes_on"] = "own"  # goes_on: the lr follows the schedule of the phase before

    @property
    def keys(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def ends(self) -> dict[str, Any]:
        """What it says of its end: one of ``ENDS``, in the last phase none."""
        return {key: value for key in ENDS if (value := getattr(self, key)) is not None}

    @pydantic.model_serializer(mode="wrap")
    def as_written(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        whole = handler(self)
        return {key: value for key, value in whole.items() if key in self.keys or key in self.model_fields_set}


def listed(written: Any) -> Any:
    """A list of mappings, or None."""
    if written is None or (isinstance(written, (list, tuple)) and written):
        for number, phase in enumerate(written or (), start=1):
            if not isinstance(phase, (dict, PhaseKeys)):
                raise ValueError(
                    f"phases.{number} = {shown(phase)} should hold keys, as in {{lr.base: 0.1, steps: 200}}"
                )
        return written
    raise ValueError(f"phases = {shown(written)} should be a list, each with keys as in {{lr.base: 0.1, steps: 200}}")


def check_phases(run: Run, kind: type[Run]) -> None:
    """Refuse ends that are missing or too many, keys that cannot change in a run, and values that they cannot have."""
    phases = run.phases or ()
    for number, phase in enumerate(phases, start=1):
        at = f"phases.{number}"
        last = number == len(phases)
        if last and phase.ends:
            raise ValueError(f"{at}.{next(iter(phase.ends))}: the last phase ends with the run; leave it out")
        if not last and len(phase.ends) != 1:
            given = f"not {' and '.join(phase.ends)}" if phase.ends else "it has none"
            raise ValueError(f"{at} needs one of until_epoch, until_share and steps to end; {given}")
        if number == 1 and phase.clock == "goes_on":
            raise ValueError(f"{at}.clock = goes_on has no phase before it to follow; leave it out")
        _check_keys(at, phase)
    try:
        whole = of_phases(run, kind) if phases else ()
        for number, laid in enumerate(whole, start=1):
            for key in ("image_size", "length"):
                if getattr(laid.data, key) is None and any(getattr(other.data, key) for other in whole):
                    raise UserError(f"phases.{number} has no data.{key}, and others have; set it for the recipe, too")
            for key in sorted(run.optimizer.FIXED):
                if getattr(laid.optimizer, key, None) != getattr(run.optimizer, key, None):
                    raise UserError(_cannot(f"phases.{number}", f"optimizer.{key}"))
    except UserError as error:
        raise ValueError(str(error)) from None


def _check_keys(at: str, phase: PhaseKeys) -> None:
    for key, value in phase.keys.items():
        if not is_key(key):
            raise ValueError(f"{at}: {shown(key)} is no key of a recipe; write it with dots, such as lr.base")
        if not any(f"{key}.".startswith(f"{change}.") for change in CHANGES):
            raise ValueError(_cannot(at, key))
        if key == "batch.micro_batch_size" and value == "auto":
            raise ValueError(f"{at}.{key} = auto: it is for the whole run; write it outside of the phases")
        if key.startswith("data.image_size") and (key != "data.image_size" or not isinstance(value, int)):
            raise ValueError(f"{at}.{key} = {shown(value)} should be one side, such as data.image_size: 160")
        if touches(key, "lr") and phase.clock == "goes_on":
            raise ValueError(
                f"{at}.{key} makes another schedule, and clock = goes_on keeps that of the phase before; leave one out"
            )


def _cannot(at: str, key: str) -> str:
    ends = f"; a phase ends with {', '.join(ENDS)}" if key == "epochs" else ""
    return f"{at}.{key} cannot change during a run; {VALID}{ends}"


def of_phases(run: Run, kind: type[Run] | None = None) -> tuple[Run, ...]:
    """The run as it is in each of its phases; itself where it has none."""
    if run.phases is None:
        return (run,)
    return tuple(_laid_over(run, kind or type(run)))


def _laid_over(run: Run, kind: type[Run]) -> Iterator[Run]:
    for number, phase in enumerate(run.phases or (), start=1):
        written = {**run.as_written(), "phases": None}
        try:
            for key, value in phase.keys.items():
                place(written, key, copy.deepcopy(value))
                if key == "batch.micro_batch_size":
                    place(written, "batch.memory_reserve", None)  # of the phases in which it is tried
            laid = kind.model_validate(written)
        except pydantic.ValidationError as error:
            raise UserError(f"phases.{number}: {sentence(error, kind)}") from None
        except UserError as error:
            raise UserError(f"phases.{number}: {error}") from None
        yield laid


def check_overrides(written: dict[str, Any], by_hand: list[str]) -> None:
    """Refuse an override that a phase would hide, unless that phase's key is set by hand as well."""
    phases = written.get("phases")
    if not isinstance(phases, list) or "phases" in by_hand:
        return
    for key in by_hand:
        hiding = [
            f"phases.{number}.{own}"
            for number, phase in enumerate(phases, start=1)
            for own in (phase if isinstance(phase, dict) else ())
            if isinstance(own, str) and own not in ENDS and touches(key, own)
            and not {f"phases.{number}.{own}", f"phases.{number}.{key}"} & set(by_hand)
        ]  # fmt: skip
        if hiding:
            raise UserError(f"{key} would not hold where the recipe says {', '.join(hiding)}; set that by hand as well")
