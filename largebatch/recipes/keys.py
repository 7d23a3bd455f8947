"""What a key of a recipe may hold, and the section that holds keys: strict, frozen, each range stated once."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from largebatch.recipes import paths

MOST = 10**12  # and LARGEST: what follows from numbers of this size is a number still
LARGEST = 1e30


def a_number(written: Any) -> Any:
    """Neither true, which Python takes for 1, nor text, be it of digits."""
    if isinstance(written, bool):
        raise PydanticCustomError("number", "should be a number; true, yes and on are none, nor are their opposites")
    if isinstance(written, str):
        raise PydanticCustomError("number", "should be a valid number")
    return written


def a_size(written: Any) -> Any:
    """JSON and ``run.yaml`` keep keys as text."""
    of_digits = isinstance(written, str) and re.fullmatch("[1-9][0-9]*", written) and len(written) < 20
    return int(written) if of_digits else a_number(written)


def path_of(key: str, *, or_address: bool = False) -> AfterValidator:
    """A path of this machine, or with ``or_address`` one of a store; ``~`` expanded, empty refused."""
    return AfterValidator(functools.partial(paths.expanded if or_address else paths.local, key))


Number = BeforeValidator(a_number)
PositiveInt = Annotated[int, Field(gt=0, le=MOST), Number]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST), Number]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST), Number]
NonNegativeFloat = Annotated[float, Field(ge=0, le=LARGEST), Number]
Several = Annotated[int, Field(ge=2, le=MOST), Number]
Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST), Number]
Fraction = Annotated[float, Field(ge=0, lt=1), Number]
Minutes = Annotated[float, Field(gt=0, le=10_080), Number]
Percent = Annotated[float, Field(ge=0, le=100), Number]
Folder = Annotated[str, path_of("record.dir")]
Place = Annotated[str, path_of("data.root", or_address=True)]
WeightsFile = Annotated[str, path_of("model.weights")]
Size = Annotated[int, Field(gt=0, le=MOST), BeforeValidator(a_size)]  # as a key
Switch = Annotated[bool, Field(strict=True)]
Pattern = Annotated[str, Field(min_length=1)]  # of tensors' names, or of a module above them
Skipped = Pattern  # or norm, bias


class Section(BaseModel):
    """Keys of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        """What of the whole recipe does not go with what stands here: a sentence for each, with the keys."""
        yield from ()


def ascending(key: str, epochs: tuple[float, ...]) -> None:
    if list(epochs) != sorted(set(epochs)):
        raise ValueError(f"{key} = {list(epochs)} must ascend")
