"""What a checkpoint's folder says of itself, and whether it is true.

    RUN/checkpoints/step-00000120/
        manifest.json           step, examples, plan, versions, ...; the tree of the state; each file's size and SHA-256
        rank-00000.safetensors  the tensors, or the pieces of tensors, that a rank held
        ranks.safetensors       what each rank keeps to itself: random states, running statistics

The folder is written under another name and renamed when everything in it is on the disk: a folder of this name is
whole. The manifest ends with its own checksum (:mod:`largebatch.records.facts`), which says nothing of who wrote: what
is read is checked for its form, too, and names no file outside its folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from largebatch.records.facts import Unsound, checked_facts, checked_text
from largebatch.records.files import UNFINISHED, flush, sha256_of

FORMAT = 5  # of what is written: the states of parts stand under their names
READABLE = (4, 5)
MANIFEST = "manifest.json"
NAME = re.compile(r"step-[0-9]{8,}")
FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
REMOVED = ".removed"


class Damaged(Exception):
    """A checkpoint is not what it was when it was written."""


def path_of(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.partition("-")[2])


def existing(directory: Path) -> list[Path]:
    """Newest first; a folder of another name is somebody's own."""
    found = [path for path in directory.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def left_over(directory: Path) -> list[Path]:
    """What a save or a removal that did not end has left."""
    return [
        path for path in directory.glob("step-*") if path.suffix in (UNFINISHED, REMOVED) and NAME.fullmatch(path.stem)
    ]


def write(path: Path, facts: dict[str, Any]) -> None:
    """On the disk; whole when the folder ``path`` gets its name."""
    file = path / MANIFEST
    file.write_text(checked_text({"format": FORMAT, **facts}), encoding="utf-8")
    flush(file)


def read(path: Path) -> dict[str, Any]:
    """The facts of the checkpoint in ``path``; Damaged if they are not those that were written."""
    try:
        content = (path / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise Damaged(f"it has no {MANIFEST}") from None
    except OSError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror}") from None
    try:
        facts = checked_facts(content, MANIFEST)
    except Unsound as problem:
        raise Damaged(str(problem)) from None
    _check_form(facts)
    return facts


def _check_form(facts: Any) -> None:
    if not isinstance(facts, dict) or not isinstance(facts.get("format"), int):
        raise Damaged(f"{MANIFEST} names no format")
    if facts["format"] not in READABLE:
        raise Damaged(f"its format is {facts['format']}, this version reads {READABLE[0]} to {READABLE[-1]}")
    if not isinstance(facts.get("step"), int) or not isinstance(facts.get("files"), dict) or "tree" not in facts:
        raise Damaged(f"{MANIFEST} does not say what a checkpoint holds")
    for name, promised in facts["files"].items():
        if not FILE.fullmatch(name):
            raise Damaged(f"{MANIFEST} names {name!r}, which is no file of a checkpoint")
        match promised:
            case {"bytes": int(), "sha256": str()}:
                continue
        raise Damaged(f"{MANIFEST} does not say what {name} holds")


def check_size(path: Path, name: str, promised: dict[str, Any]) -> None:
    """Damaged unless the file has the size that the manifest says."""
    try:
        size = (path / name).stat().st_size
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from None
    if size != promised["bytes"]:
        raise Damaged(f"{name} has {size:,} bytes, not {promised['bytes']:,}")


def check_file(path: Path, name: str, promised: dict[str, Any]) -> None:
    """Damaged unless the file has the size and the SHA-256 that the manifest says."""
    check_size(path, name, promised)
    try:
        found = sha256_of(path / name)
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from None
    if found != promised["sha256"]:
        raise Damaged(f"the checksum of {name} does not fit")
