"""Keys written with dots: ``lr.base``, and ``phases.2.lr.base`` of the second phase."""

from __future__ import annotations

import re
from typing import Any

from largebatch.errors import UserError

LONGEST_KEY = 100
KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
LENGTHS = ("lr.warmup.epochs", "lr.warmup.steps", "lr.warmup.share")
INSTEAD = (("epochs", "steps"), LENGTHS)  # keys that take each other's place
IN_PHASE_INSTEAD = (("until_epoch", "until_share", "steps"), LENGTHS)


def is_key(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= LONGEST_KEY and KEY.fullmatch(key) is not None


def touches(key: str, other: str) -> bool:
    """Whether one of them is the other, or a section that holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def place(written: dict[str, Any], key: str, value: Any) -> None:
    first, _, in_phases = key.partition(".")
    if first == "phases" and in_phases:
        _place_in_phase(written.get("phases"), key, value)
        return
    *above, last = key.split(".")
    section = written
    for name in above:
        if section.get(name) is None or section[name] is True:  # true switches a section on as it is
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UserError(f"{key} cannot be set: {name} holds a value, not a section")
    section[last] = value
    for other in _others(key, INSTEAD):
        section.pop(other.rpartition(".")[2], None)


def _place_in_phase(phases: Any, key: str, value: Any) -> None:
    """Phases are counted from 1; what they hold are dotted keys."""
    count = len(phases) if isinstance(phases, list) else 0
    _, number, *rest = key.split(".")
    if not number.isdecimal() or not 1 <= int(number) <= count or not rest:
        there = f"phases.1.KEY to phases.{count}.KEY" if count else "the recipe has no phases"
        raise UserError(f"{key} cannot be set; valid: {there}" if count else f"{key} cannot be set: {there}")
    phase = phases[int(number) - 1]
    if not isinstance(phase, dict):
        raise UserError(f"{key} cannot be set: phases.{number} holds a value, not keys")
    own = ".".join(rest)
    phase[own] = value
    for other in _others(own, IN_PHASE_INSTEAD):
        phase.pop(other, None)


def _others(key: str, groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """Whose place it takes."""
    return [other for group in groups if key in group for other in group if other != key]
