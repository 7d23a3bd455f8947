"""JSON and text on disk -> checked values; whatever cannot be read is a ``UserError`` that names the file."""

import json
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.records import names

LONGEST = 1 << 28  # bytes; a line of metrics has some 200


def text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(LONGEST + 1)
        if len(raw) > LONGEST:
            raise UserError(f"{file} holds more than {LONGEST:,} bytes, which no run writes")
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; a run folder holds {names.RECIPE}, {names.PLAN} and {names.METRICS}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {str(error)[:200]}") from None


def json_of(file: Path) -> Any:
    try:
        return loaded(text_of(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error.msg} at line {error.lineno}") from None


def loaded(text: str) -> Any:
    """JSON without its infinities; what cannot be written again is a ``JSONDecodeError`` like what cannot be read."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):  # a number too long, halves of a character, nesting without end
        raise json.JSONDecodeError("no value that a run writes", "", 0) from None
    return value
