"""JSON and text on disk -> checked values; whatever cannot be read is a ``UserError`` that names the file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largebatch.errors import UserError


def finite(value: Any) -> float | None:
    """The number, or None for what is absent, no number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a run folder holds run.yaml, plan.json and metrics.jsonl") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def json_of(file: Path) -> Any:
    try:
        return json.loads(text_of(file), parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error.msg} at line {error.lineno}") from None


def mapping(value: Any, where: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} holds {type(value).__name__}; valid: a mapping of names to values")
    return value


def need(data: Mapping[str, Any], key: str, kind: type, where: object) -> Any:
    if key not in data:
        raise UserError(f"{where} has no {key!r}")
    if not isinstance(data[key], kind) or isinstance(data[key], bool):
        raise UserError(f"{where}: {key} is {data[key]!r}; valid: {kind.__name__}")
    return data[key]
