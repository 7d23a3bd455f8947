"""The section ``search``: keys of the recipe, and the values that a search may give each.

    search:
      lr.base: {log: [0.01, 10]}
      optimizer.momentum: {one_minus_log: [0.8, 0.99]}
      loss.label_smoothing: {choice: [0, 0.1]}

It changes nothing of a run: :mod:`largebatch.studies.search` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator

from largebatch.recipes.config.dotted import is_key
from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.keys import Number, Section

SCALES = ("log", "linear", "one_minus_log", "choice")
VALID = "{log: [LOW, HIGH]}, {linear: [LOW, HIGH]}, {one_minus_log: [LOW, HIGH]} or {choice: [A, B, ...]}"

Ends = tuple[Annotated[float, Number], Annotated[float, Number]]


class Searched(Section):
    """The values of one key: exactly one of these."""

    log: Ends | None = None  # [lowest, highest], evenly in the logarithm
    linear: Ends | None = None
    one_minus_log: Ends | None = None  # evenly in the logarithm of one minus the value
    choice: tuple[pydantic.JsonValue, ...] | None = None

    @property
    def scale(self) -> str:
        return next(scale for scale in SCALES if getattr(self, scale) is not None)


def flat(written: Any) -> Any:
    """``{lr: {base: {log: ...}}}``, as overrides set it, is ``{lr.base: {log: ...}}``."""
    if written is None:
        return None
    if not isinstance(written, Mapping) or not written:
        raise ValueError(f"search = {shown(written)} should hold keys, as in {{lr.base: {{log: [0.01, 10]}}}}")
    keys: dict[str, Any] = {}
    for key, value in _flat("", written):
        if key in keys:
            raise ValueError(f"search.{key} is there twice, with dots and as a section")
        keys[key] = value
    return keys


def _flat(above: str, written: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in written.items():
        key = f"{above}.{name}" if above else name
        if not is_key(key):
            raise ValueError(f"search: {shown(name)} is no key of a recipe; write it with dots, such as lr.base")
        if isinstance(value, Searched) or (isinstance(value, Mapping) and set(value) & set(SCALES)):
            yield key, value
        elif isinstance(value, Mapping) and value:
            yield from _flat(key, value)
        else:
            raise ValueError(f"search.{key} = {shown(value)} should be {VALID}")


def checked(search: Mapping[str, Searched] | None) -> Mapping[str, Searched] | None:
    for key, searched in (search or {}).items():
        stated = {scale: value for scale in SCALES if (value := getattr(searched, scale)) is not None}
        if len(stated) != 1:
            raise ValueError(f"search.{key} should say one of {VALID}")
        ((scale, values),) = stated.items()
        if scale == "choice":
            if len(values) < 2:
                raise ValueError(f"search.{key}.choice = {shown(list(values))} should hold at least two values")
            if any(one in values[:place] for place, one in enumerate(values)):
                raise ValueError(f"search.{key}.choice = {shown(list(values))} should hold each value once")
            continue
        low, high = values
        wanted = {"log": "0 < LOW < HIGH", "linear": "LOW < HIGH", "one_minus_log": "LOW < HIGH < 1"}[scale]
        if not low < high or (scale == "log" and low <= 0) or (scale == "one_minus_log" and high >= 1):
            raise ValueError(f"search.{key}.{scale} = {shown(list(values))} should be [LOW, HIGH] with {wanted}")
    return search


Search = Annotated[Mapping[str, Searched] | None, BeforeValidator(flat), AfterValidator(checked)]
