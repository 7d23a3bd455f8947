"""A file of lines on a disk that fills up: no line is torn, none is lost, none comes twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from largebatch.records.lines import Lines


class Disk:
    """Takes so many bytes more, and then refuses; a write that does not fit is cut off, as the system does it."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(content[: self.room])
        self.room -= taken
        return taken

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


@pytest.mark.parametrize("room", range(0, 14))
def test_what_finds_no_room_waits_and_follows(path, room):
    lines = Lines(path)
    lines.append("first")
    disk = lines._file = Disk(lines._file, room)  # type: ignore[assignment]
    told = []
    for number in range(4):
        lines.append(f"more {number}")
        told.append(lines.problem)
        text = path.read_text()
        assert text.endswith("\n")
        assert text.splitlines() == ["first", *(f"more {i}" for i in range(4))][: len(text.splitlines())]
    assert told[-1] == "No space left on device"
    disk.room = 1000
    lines.append("last")
    assert lines.problem is None
    assert path.read_text() == "first\nmore 0\nmore 1\nmore 2\nmore 3\nlast\n"
    lines.close()


def test_room_that_comes_last_is_used_when_the_file_is_closed(path):
    lines = Lines(path)
    disk = lines._file = Disk(lines._file, 0)  # type: ignore[assignment]
    lines.append("waits")
    assert path.read_text() == ""
    disk.room = 100
    lines.close()
    assert path.read_text() == "waits\n"


def test_no_room_at_all_is_no_failure(path):
    lines = Lines(path)
    lines._file = Disk(lines._file, 0)  # type: ignore[assignment]
    lines.append("waits")
    lines.close()
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("a\n", "a\n"), ("a\nb", "a\n"), ("b", ""), ("a\n\n", "a\n\n")]
)
def test_a_torn_line_is_dropped(path, before, after):
    path.write_text(before)
    lines = Lines(path)
    lines.drop_torn_line()
    assert path.read_text() == after
    lines.append("ä")
    lines.close()
    assert path.read_text(encoding="utf-8") == f"{after}ä\n"
