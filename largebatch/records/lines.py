"""A file that grows by whole lines and outlives a full disk: what finds no room waits, and follows when there is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class Lines:
    """Appends to ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None  # why nothing can be written at the moment
        self._waiting = b""
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def fileno(self) -> int:
        return self._file.fileno()

    def drop_torn_line(self) -> None:
        """A line that a power cut left without its end would swallow the next one."""
        whole = self.path.read_bytes()
        if whole and not whole.endswith(b"\n"):
            os.truncate(self.path, whole.rfind(b"\n") + 1)

    def append(self, text: str) -> None:
        """``text`` and what waits before it, all or nothing."""
        self._waiting += text.encode() + b"\n"
        self._write()

    def _write(self) -> None:
        size = os.fstat(self.fileno()).st_size
        try:
            rest = self._waiting
            while rest:  # a disk that fills up takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
            self._waiting, self.problem = b"", None
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.fileno(), size)
            self.problem = error.strerror or str(error)

    def flush(self) -> None:
        """Another try for what waits."""
        if self._waiting:
            self._write()

    def close(self) -> None:
        self.flush()
        self._file.close()
