"""A token pack: text as numbers in few large files, mapped into memory; nothing is read whole.

    pack.json             what the others hold, with size and SHA-256 of each and, last, that of the text before it
    vocabulary.txt        WordPiece, a token a line
    <part>.tokens.bin     uint16 or uint32: the documents end to end, each closed by [SEP]
    <part>.documents.bin  int64: where each document begins, and where the last ends
    <part>.segments.bin   int64: where each segment begins, a line or a sentence; a document begins one

``part``: train and test, which are the held-out documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from largebatch.data.packs.manifest import MANIFEST, read_record
from largebatch.errors import UserError
from largebatch.records.facts import checked_text
from largebatch.records.files import sha256_of, write_text

FORMAT, VERSION = "largebatch token pack", 1
VOCABULARY = "vocabulary.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OFFSETS = np.dtype("<i8")
Array = Literal["tokens", "documents", "segments"]
Part = Literal["train", "test"]
ARRAYS: tuple[Array, ...] = ("tokens", "documents", "segments")
PARTS: tuple[Part, ...] = ("train", "test")
UNFINISHED = ".unfinished"  # a folder beside that of the pack, until it is whole


class _StrictRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PackedFile(_StrictRecord):
    """One file, as it was written."""

    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PackedText(_StrictRecord):
    documents: NonNegativeInt
    tokens: NonNegativeInt
    segments: NonNegativeInt
    files: dict[Array, PackedFile]


class TextOrigin(_StrictRecord):
    given: str  # its name, without the folders above
    kind: str
    bytes: NonNegativeInt  # of text
    sha256: str  # of what the sources were: names and sizes


class TextPackRecord(_StrictRecord):
    """``pack.json`` without its checksum."""

    format: str
    version: int
    dtype: Literal["uint16", "uint32"]
    vocabulary_size: PositiveInt
    vocabulary: PackedFile
    trained: PositiveInt | None = None  # so many tokens were asked for; None: the vocabulary was given
    special: dict[str, NonNegativeInt]
    cased: bool
    held_out_share: float
    parts: dict[Part, PackedText]
    source: TextOrigin
    largebatch: str


@dataclass(frozen=True)
class TokenPart:
    """Mapped from the files of a part, read-only."""

    tokens: np.ndarray
    documents: np.ndarray
    segments: np.ndarray


@dataclass(frozen=True)
class TextPack:
    folder: Path
    facts: TextPackRecord
    train: TokenPart
    test: TokenPart

    @property
    def vocabulary_size(self) -> int:
        return self.facts.vocabulary_size

    @property
    def special(self) -> Mapping[str, int]:
        """The numbers of the special tokens."""
        return self.facts.special

    @property
    def vocabulary_sha256(self) -> str:
        return self.facts.vocabulary.sha256

    def digest(self, part: Part) -> str:
        """What its tokens are known by."""
        return self.facts.parts[part].files["tokens"].sha256


def write_facts(folder: Path, facts: TextPackRecord) -> None:
    write_text(folder / MANIFEST, checked_text(facts.model_dump()), on_disk=True)


def file_name(part: str, array: str) -> str:
    return f"{part}.{array}.bin"


def work_folder(folder: Path) -> Path:
    """Where a pack is made."""
    return folder.with_name(folder.name + UNFINISHED)


def read_facts(folder: Path) -> TextPackRecord:
    """``pack.json`` alone, with its checksum and its form looked at."""
    if not folder.exists() and work_folder(folder).is_dir():
        raise UserError(f"{folder} is a pack that is not finished; run its `largebatch data tokenize` again")
    facts = read_record(folder, TextPackRecord, FORMAT, VERSION, "data tokenize")
    for name in SPECIAL:
        if not 0 <= facts.special.get(name, -1) < facts.vocabulary_size:
            raise UserError(f"{folder / MANIFEST} does not say which token {name} is; its vocabulary needs it")
    return facts


def is_pack(folder: Path) -> bool:
    """Whether ``pack.json`` says so, or text is being tokenized for it; nothing else is looked at."""
    try:
        return f'"format": "{FORMAT}"' in (folder / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return not folder.exists() and work_folder(folder).is_dir()


def open_pack(folder: Path) -> TextPack:
    """Its files have the sizes that they were written with; :func:`verify` reads every byte."""
    facts = read_facts(folder)
    return TextPack(folder, facts, *(_mapped(folder, facts, part) for part in PARTS))


def verify(folder: Path, report: Callable[[int, int], object] = lambda done, total: None) -> TextPackRecord:
    """Every byte against the checksums it was written with; ``report`` hears of bytes."""
    facts = open_pack(folder).facts
    promised = {folder / VOCABULARY: facts.vocabulary} | {
        folder / file_name(part, array): file for part, of in facts.parts.items() for array, file in of.files.items()
    }
    done, total = 0, sum(file.bytes for file in promised.values())
    for path, file in promised.items():
        try:
            found = sha256_of(path)
        except OSError as reason:
            raise UserError(f"{path} cannot be read: {reason.strerror}") from None
        if found != file.sha256:
            raise UserError(f"the checksum of {path} does not fit: its bytes changed; tokenize again, or copy it anew")
        report(done := done + file.bytes, total)
    return facts


def _mapped(folder: Path, facts: TextPackRecord, part: Part) -> TokenPart:
    packed = facts.parts[part]
    lengths = {"tokens": packed.tokens, "documents": packed.documents + 1, "segments": packed.segments}
    found = {}
    for name, length in lengths.items():
        kind = np.dtype(facts.dtype).newbyteorder("<") if name == "tokens" else OFFSETS
        path = folder / file_name(part, name)
        try:
            there = path.stat().st_size
        except OSError:
            raise UserError(f"{path} is missing; the pack is not whole") from None
        if there != length * kind.itemsize:
            raise UserError(f"{path} has {there:,} bytes, and {length * kind.itemsize:,} were written; it is damaged")
        found[name] = np.memmap(path, kind, mode="r") if length else np.zeros(0, kind)
    return TokenPart(**found)
