"""How far the making of a pack is: a line for each file that is whole, so that the same command can go on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from largebatch.data.packs.manifest import PROGRESS
from largebatch.data.passed_over import is_hidden
from largebatch.errors import UserError
from largebatch.records.files import UNFINISHED


class MadePart(BaseModel):
    """What became of a job, as the progress file keeps it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str

    def is_whole(self, folder: Path) -> bool:
        """Whether what it made lies there. Raises FileNotFoundError, too."""
        raise NotImplementedError


Made = TypeVar("Made", bound=MadePart)


class MakingProgress(Generic[Made]):
    """``packing.jsonl``: what is made, then a line for each part that is whole. One process at a time holds it."""

    def __init__(self, dest: Path, begun: dict[str, Any], kind: type[Made]) -> None:
        self.dest, self.path = dest, dest / PROGRESS
        self.written: dict[str, Made] = {}
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            self._file.close()
            if isinstance(reason, BlockingIOError):
                raise UserError(f"another process is making a pack in {dest}") from None
            raise
        lines = whole_lines(self.path)
        self._file.truncate(sum(map(len, lines)))  # what a kill has torn
        for line in lines[1:]:
            part = kind.model_validate_json(line)
            with contextlib.suppress(FileNotFoundError):
                if part.is_whole(dest):
                    self.written[part.name] = part
        for left in dest.glob(f"*{UNFINISHED}"):
            left.unlink()
        if not lines:
            self._append(json.dumps(begun))

    def __enter__(self) -> MakingProgress[Made]:
        return self

    def __exit__(self, *problem: Any) -> None:
        self._file.close()

    def add(self, part: Made) -> None:
        if part.name not in self.written:
            self._append(part.model_dump_json())
            self.written[part.name] = part

    def _append(self, line: str) -> None:
        before = os.fstat(self._file.fileno()).st_size
        rest = line.encode() + b"\n"
        try:
            while rest:  # a disk that fills up takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise


def whole_lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []


def begun_in(folder: Path, dest: Path, keys: set[str], kind: type[MadePart]) -> dict[str, Any] | None:
    """What an earlier command began to make of pack ``dest`` in ``folder``; refused where there is something else."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))
    except FileNotFoundError:
        return None
    except OSError as reason:
        raise UserError(f"{folder} cannot be written: {reason.strerror}") from None
    if names and PROGRESS not in names:
        raise UserError(f"{folder} holds other files ({names[0]}); a pack needs a folder of its own")
    lines = whole_lines(folder / PROGRESS)
    try:
        begun = json.loads(lines[0]) if lines else None
        sound = begun is None or set(begun) == keys
        for line in lines[1:]:
            kind.model_validate_json(line)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{folder / PROGRESS} is damaged; delete {folder} and make {dest} again")
    return begun
