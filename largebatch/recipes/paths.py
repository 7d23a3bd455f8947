"""A path as the shell would take it: ``~`` is a home folder, nothing is no path, an address is no folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from largebatch.errors import UserError
from largebatch.terminal.escapes import escaped

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of Linux and macOS: looking for more is an error, not an absence


def local(key: str, text: str) -> str:
    """``text``, which the user wrote for ``key``, as a path of this machine."""
    if ADDRESS.match(text):
        raise UserError(f"{key} = {text[:100]} is an address; it should be a path of this machine")
    return expanded(key, text)


def expanded(key: str, text: str) -> str:
    """``~`` and ``~name`` at the beginning, as the shell would; an address stays as it is."""
    if not text.strip():
        raise UserError(f"{key} is empty, as an unset variable leaves it; it should be a path")
    if "\0" in text:
        raise UserError(f"{key} = {escaped(text[:100])} is no path")
    found = os.path.expanduser(text) if text.startswith("~") else text
    if found.startswith("~"):
        whose = text.split("/")[0]
        raise UserError(
            f"{key} = {text[:100]}: no home folder {whose} is known here; write the whole path, or set HOME"
        )
    if not ADDRESS.match(found):
        _short_enough(key, found)
    return found


def _short_enough(key: str, path: str) -> None:
    whole = path.encode("utf-8", "surrogatepass")
    if len(whole) > LONGEST_PATH or any(len(name) > LONGEST_NAME for name in whole.split(b"/")):
        raise UserError(
            f"{key} = {escaped(path[:60])}... is too long for a path; a name in it may have {LONGEST_NAME} bytes, "
            f"the whole {LONGEST_PATH}"
        )


def run_named(text: str) -> tuple[str, str]:
    """``RUN@120``: the run directory, and which of its checkpoints; ``last`` where none is named.

    A folder whose own name has an ``@`` is taken as it is.
    """
    if "@" not in text or os.path.exists(os.path.expanduser(text)):
        return text, "last"
    directory, _, checkpoint = text.rpartition("@")
    return directory, checkpoint or "last"


def named_by(variable: str) -> Path | None:
    """The path in a variable of the environment; one that is set to nothing counts as not set."""
    text = os.environ.get(variable, "").strip()
    return Path(local(variable, text)) if text else None


def home(instead: str) -> Path:
    """The user's folder; a container may know neither HOME nor the user, and the variable ``instead`` helps."""
    try:
        return Path.home()
    except RuntimeError:
        raise UserError(f"this user has no home folder here; set {instead}, or HOME, to a folder") from None
