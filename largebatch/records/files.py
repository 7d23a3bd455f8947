"""A file that is there whole or not at all: written under another name, renamed when nothing is missing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def whole(path: Path, *, on_disk: bool = False) -> Iterator[Path]:
    """The name to write ``path`` under; it is this writer's alone, whatever other process, thread or host writes, too.

    At the end the file takes the place of the one that was there; after any exception that one stays and nothing else
    is left. ``on_disk``: it has its name only when a power cut cannot take its content any more.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        if on_disk:
            flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    if on_disk:
        flush(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    with whole(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: Path, text: str, *, on_disk: bool = False) -> None:
    """In UTF-8."""
    with whole(path, on_disk=on_disk) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """A file's content, or a folder's names, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
