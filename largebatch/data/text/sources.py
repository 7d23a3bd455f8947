"""Where text comes from, and how the work is cut: the same pieces for any number of processes.

plain text         documents parted by empty lines                              *.txt, or one file of any name
JSON lines         a document a line, under a key                               *.jsonl, *.json, *.ndjson
either packed      the same, one piece each, since it is read from its begin    *.gz, *.zst
parquet            a document a row, in a column                                *.parquet
Hugging Face       what ``save_to_disk`` wrote, or a file of it                 *.arrow
folders            of all of these, in the order of their names
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from largebatch.data.packs.parquet import pyarrow
from largebatch.data.passed_over import HIDDEN, PassedOver, is_hidden
from largebatch.errors import UserError, first_words
from largebatch.recipes import paths

LEAST_SHARD_BYTES, MOST_SHARD_BYTES = 2**20, 2**26
Kind = Literal["plain", "json", "parquet", "arrow"]
SUFFIXES: dict[str, Kind] = {
    ".txt": "plain", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
NAMES = {"plain": "plain text", "json": "JSON lines", "parquet": "parquet", "arrow": "Hugging Face folder"}
PACKED = (".gz", ".zst")
_OF_SAVED = "state.json"  # in a folder that save_to_disk wrote
_OF_SEVERAL = "dataset_dict.json"  # in one with a folder for each split
OTHER = "other files"


class TextFile(NamedTuple):
    path: Path
    name: str  # below what was given
    kind: Kind
    packing: str  # ".gz", ".zst" or nothing
    bytes: int


class TextPiece(NamedTuple):
    """A part of a file: bytes ``first`` to ``last`` of text, row groups of parquet, else all of it."""

    file: TextFile
    first: int
    last: int
    bytes: int


@dataclass(frozen=True)
class TextSource:
    given: str  # as the user wrote it
    key: str  # of the text, where there are keys
    files: tuple[TextFile, ...]  # read in this order
    passed_over: str

    @property
    def name(self) -> str:
        """Without the folders above, which are the machine's."""
        return Path(self.given).name

    @property
    def kind(self) -> str:
        return " and ".join(dict.fromkeys(NAMES[file.kind] for file in self.files))

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and the key; where the folder lies does not matter."""
        listed = [[file.name, file.bytes] for file in self.files]
        return hashlib.sha256(json.dumps([self.key, listed]).encode()).hexdigest()

    @property
    def shard_bytes(self) -> int:
        """What makes 64 shards, within bounds; the number of processes has no part in it."""
        return min(MOST_SHARD_BYTES, max(LEAST_SHARD_BYTES, self.bytes // 64))

    def shards(self, shard_bytes: int) -> list[tuple[TextPiece, ...]]:
        """Pieces in order, as many together as make about ``shard_bytes``."""
        shards: list[tuple[TextPiece, ...]] = []
        together: list[TextPiece] = []
        size = 0
        for piece in (piece for file in self.files for piece in pieces(file, shard_bytes)):
            together.append(piece)
            size += piece.bytes
            if size >= shard_bytes:
                shards.append(tuple(together))
                together, size = [], 0
        return [*shards, tuple(together)] if together else shards


def text_source(given: str, key: str = "text") -> TextSource:
    """What lies at ``given``; nothing is read but names and sizes."""
    root = Path(paths.expanded("SRC", given))
    if not root.exists():
        raise UserError(f"{given} is not there; SRC is a file or a folder of text")
    passed = PassedOver()
    if root.is_dir():
        files = tuple(_in_folder(root, root, passed))
    else:
        kind, packing = _kind_of(root.name) or ("plain", root.suffix if root.suffix in PACKED else "")
        files = (_file(root, root.name, kind, packing),)
    if not files:
        known = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise UserError(f"{given} holds no text; {known} are looked for, plain or with {' or '.join(PACKED)}")
    if not any(file.bytes for file in files):
        raise UserError(f"{given} holds no text: {'it is' if len(files) == 1 else 'all files are'} empty")
    return TextSource(given, key, files, str(passed))


def _in_folder(root: Path, folder: Path, passed: PassedOver) -> Iterator[TextFile]:
    try:
        listed = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as reason:
        raise UserError(f"{folder} cannot be read: {reason.strerror}") from None
    names = {entry.name for entry in listed}
    if _OF_SEVERAL in names:
        splits = [entry.name for entry in listed if entry.is_dir() and not is_hidden(entry.name)]
        raise UserError(f"{folder} holds several splits ({', '.join(splits)}); give one of them: {folder / splits[0]}")
    saved = _saved(folder) if _OF_SAVED in names else None
    for entry in listed:
        name = str(Path(entry.path).relative_to(root))
        if is_hidden(entry.name):
            passed.add(HIDDEN, name)
        elif saved is not None:
            if entry.name in saved:
                yield _file(Path(entry.path), name, "arrow", "")
        elif entry.is_dir(follow_symlinks=False):
            yield from _in_folder(root, Path(entry.path), passed)
        elif entry.is_file() and (known := _kind_of(entry.name)):
            yield _file(Path(entry.path), name, *known)
        else:
            passed.add(OTHER, name)


def _saved(folder: Path) -> set[str]:
    """The files of a data set that ``save_to_disk`` wrote."""
    try:
        files = {str(file["filename"]) for file in json.loads((folder / _OF_SAVED).read_bytes())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / _OF_SAVED} does not say which files hold the data set") from None
    if missing := sorted(name for name in files if not (folder / name).is_file()):
        raise UserError(f"{folder / missing[0]} is missing, which {_OF_SAVED} names")
    return files


def _kind_of(name: str) -> tuple[Kind, str] | None:
    path = Path(name)
    packing = path.suffix if path.suffix in PACKED else ""
    kind = SUFFIXES.get(Path(path.stem).suffix if packing else path.suffix)
    return None if kind is None or (packing and kind in ("parquet", "arrow")) else (kind, packing)


def _file(path: Path, name: str, kind: Kind, packing: str) -> TextFile:
    try:
        return TextFile(path, name, kind, packing, path.stat().st_size)
    except OSError as reason:
        raise UserError(f"{path} cannot be read: {reason.strerror}") from None


def pieces(file: TextFile, piece_bytes: int) -> Iterator[TextPiece]:
    if file.kind == "parquet":
        yield from _row_groups(file, piece_bytes)
    elif file.kind == "arrow" or file.packing:
        yield TextPiece(file, 0, file.bytes, file.bytes)
    else:
        for first in range(0, file.bytes, piece_bytes):
            last = min(first + piece_bytes, file.bytes)
            yield TextPiece(file, first, last, last - first)


def _row_groups(file: TextFile, piece_bytes: int) -> Iterator[TextPiece]:
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(file.path) as opened:
            groups = opened.num_row_groups
    except (arrow.ArrowException, OSError) as reason:
        raise UserError(f"{file.path} cannot be read as parquet: {first_words(reason)}") from None
    each = file.bytes // max(1, groups)  # of a piece, what is told of how far it is
    together = max(1, piece_bytes // max(1, each))
    for first in range(0, groups, together):
        last = min(first + together, groups)
        yield TextPiece(file, first, last, file.bytes - first * each if last == groups else (last - first) * each)
