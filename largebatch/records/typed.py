"""Records as types: what is written goes through one, and so does what is read.

A record is a frozen dataclass, and its fields are the keys of a JSON object; a field that is None by default is written
only where it is something. Numbers that have keys of their own, a task's for one,
are the mapping in the field :attr:`FileRecord.BY_KEY`, and stand beside the other keys in the file.

What is read may be older, damaged, or a stranger's. Only what readers rely on is refused, in a sentence with its key:
the strict types (``Count``, ``Number``, ``Name``, ``Table``). Under the lenient ones (``Amount``, ``Whole``, ``Text``,
``Flag``) stands None for what is absent or of another kind. Keys that a type does not know are passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from largebatch.errors import UserError
from largebatch.plan.score import Score

LARGEST = 1e100  # whose square is a number still
MOST = 10**15


def finite(value: object) -> float | None:
    """The number, or None for what is absent, no number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST <= value <= LARGEST:
        return None
    return float(value)


def _whole(value: object) -> int | None:
    number = finite(value)
    return None if number is None or not number.is_integer() else int(number)


def _words(value: object) -> str | None:
    return None if value is None else str(value)


Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Size = Annotated[int, Field(strict=True, gt=0, le=MOST)]
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
Name = Annotated[str, Field(strict=True)]
Amount = Annotated[float | None, BeforeValidator(finite)]
Whole = Annotated[int | None, BeforeValidator(_whole)]
Text = Annotated[str | None, BeforeValidator(_words)]
Flag = Annotated[bool | None, BeforeValidator(lambda value: value if isinstance(value, bool) else None)]
Table = Mapping[str, object]


def _sound(score: Score) -> Score:
    if not (0 < len(score.key) <= 80 and 0 < len(score.name) <= 80 and len(score.unit) <= 20):
        raise ValueError("its words are of no score")
    if not 0 <= score.tolerance <= LARGEST:
        raise ValueError("its tolerance is of no score")
    return score


Judged = Annotated[Score, AfterValidator(_sound)]


def _cited(published: Table) -> Table:
    rows = published.get("by_batch_size")
    if rows is not None and not (isinstance(rows, Mapping) and all(map(_is_row, rows, rows.values()))):
        raise ValueError("by_batch_size is no mapping of batch sizes to numbers")
    return published


def _is_row(size: object, row: object) -> bool:
    return bool(re.fullmatch("[0-9]{1,15}", str(size))) and (row is None or isinstance(row, Mapping))


Cited = Annotated[Table, AfterValidator(_cited)]  # a recipe's ``expect``


def _numbers(value: object) -> dict[str, float | None]:
    return {key: finite(number) for key, number in value.items()} if isinstance(value, Mapping) else {}


Numbers = Annotated[Mapping[str, float | None], BeforeValidator(_numbers)]


BESIDE = ("event", "version")  # what a file holds that is no field


class FileRecord:
    """A record that a file holds."""

    VERSION: ClassVar[int] = 1  # 0: from before versions were written
    BY_KEY: ClassVar[str | None] = None  # its field of numbers by key

    def number(self, key: str) -> float | None:
        """Of the field ``key``, or of the number with this key; None where there is none."""
        own = finite(getattr(self, key, None))
        return own if own is not None or self.BY_KEY is None else finite(getattr(self, self.BY_KEY).get(key))


Kind = TypeVar("Kind")


def content(record: FileRecord, **before: object) -> dict[str, object]:
    """What a file holds of it, ``before`` and its version first."""
    return {**before, "version": record.VERSION, **_plain(record)}


def _plain(value: Any) -> Any:
    if isinstance(value, Score):
        return value._asdict()
    if dataclasses.is_dataclass(value):
        return dict(_keys(value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _keys(record: Any) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name == getattr(record, "BY_KEY", None):
            yield from value.items()
        elif value is not None or field.default is not None:
            yield field.name, _plain(value)


def read(kind: type[Kind], value: object, where: object) -> Kind:
    """``value``, as JSON or YAML gave it, as a record; UserError says in a sentence what ``where`` lacks."""
    data = mapping(value, where)
    check_version(kind, data, where)
    try:
        return _adapter(kind).validate_python(_filled(kind, data))
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise UserError(_sentence(problem["loc"], problem["type"], problem["msg"], data, where)) from None


def made(kind: type[Kind], facts: Mapping[str, Any]) -> Kind:
    """The record of these keys, to be written: TypeError for one that it does not know, or for one that is missing."""
    by_key = getattr(kind, "BY_KEY", None)
    known = inspect.signature(kind).parameters.keys() - {by_key}
    if by_key is None:
        return kind(**facts)
    numbers = {key: value for key, value in facts.items() if key not in known}
    if wrong := [key for key, value in numbers.items() if not isinstance(value, (int, float, type(None)))]:
        raise TypeError(f"{kind.__name__} knows no {wrong[0]}, which is no number")
    return kind(**{key: value for key, value in facts.items() if key in known}, **{by_key: numbers})


def keys_of(kind: type[FileRecord]) -> set[str]:
    """What stands in its file beside its numbers by key."""
    return {*BESIDE, *inspect.signature(kind).parameters} - {kind.BY_KEY}


def mapping(value: object, where: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {type(value).__name__}; valid: a mapping of names to values")
    return value


def part(kind: type) -> BeforeValidator:
    """For ``Annotated``: an object within a record; what is no mapping is refused."""
    return BeforeValidator(functools.partial(_filled, kind))


def lenient_part(kind: type) -> BeforeValidator:
    """The same; what is no mapping is None."""
    return BeforeValidator(lambda value: _filled(kind, value) if isinstance(value, (Mapping, kind)) else None)


def _filled(kind: type, value: object) -> object:
    """The keys that the type knows, None for those that are absent, and what it keeps by key."""
    if not isinstance(value, Mapping):
        return value
    by_key = getattr(kind, "BY_KEY", None)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != by_key}
    known = {name: value.get(name) for name, field in fields.items() if _required(field) or name in value}
    if by_key is not None:
        known[by_key] = {key: number for key, number in value.items() if key not in fields and key not in BESIDE}
    return known


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def check_version(kind: type, data: Mapping[str, Any], where: object) -> None:
    version, newest = data.get("version", 0), getattr(kind, "VERSION", 0)
    if type(version) is not int or not 0 <= version <= newest:
        raise UserError(f"{where}: version is {str(version)[:60]!r}; this largebatch reads versions up to {newest}")


@functools.cache
def _adapter(kind: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


PLAIN = {"int_type": "int", "float_type": "float", "string_type": "str", "list_type": "list"}


def _sentence(place: tuple[int | str, ...], kind: str, message: str, data: Mapping[str, Any], where: object) -> str:
    key = str(place[0]) if place else ""
    if len(place) == 1 and key not in data:
        return f"{where} has no {key!r}"
    if len(place) == 1 and kind in PLAIN:
        return f"{where}: {key} is {str(data[key])[:60]!r}; valid: {PLAIN[kind]}"
    message = "Field required" if kind.startswith("missing") else message  # in the words of one version of pydantic
    inside = ".".join(str(one)[:40] for one in place)[:120]
    return f"{where}: {inside or 'the whole'}: {message[:120]}"
