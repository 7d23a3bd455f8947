"""Facts as JSON; with a checksum of their own where a change must be seen.

Checked facts end with the SHA-256 of the text before it, so that no byte can change unseen. It says nothing of who
wrote: whoever reads checks the form as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from largebatch.records.files import write_text
from largebatch.terminal.escapes import as_utf8

CHECKSUM = ',\n "sha256": "'


class Unsound(Exception):
    """A text is not what :func:`checked_text` made."""


class Altered(Unsound):
    """Its checksum does not fit."""


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(writable(facts), indent=2, ensure_ascii=False) + "\n")


def writable(value: Any) -> Any:
    """JSON knows no NaN, and its files are UTF-8: what is not finite becomes null, what is no text is escaped."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, dict):
        return {writable(key) if isinstance(key, str) else key: writable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [writable(item) for item in value]
    return value


def checked_text(facts: dict[str, Any]) -> str:
    """``facts``, and the checksum of all that stands before it."""
    before = json.dumps(facts, indent=1).removesuffix("\n}")
    return f'{before}{CHECKSUM}{_sha256(before)}"\n}}\n'


def checked_facts(content: bytes, name: str) -> Any:
    """What :func:`checked_text` was given, if ``content`` is what it made; Unsound says what is wrong with ``name``."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Unsound(f"{name} is no text") from None
    before, found, checksum = text.rpartition(CHECKSUM)
    if not found or checksum != f'{_sha256(before)}"\n}}\n':
        raise Altered(f"the checksum of {name} does not fit")
    try:
        return json.loads(before + "\n}")
    except (ValueError, RecursionError):
        raise Unsound(f"{name} is no JSON") from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
