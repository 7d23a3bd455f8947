"""A token pack: text as numbers in few large files, mapped into memory; nothing is read whole.

    pack.json             what the others hold, with size and SHA-256 of each and, last, that of the text before it
    vocabulary.txt        WordPiece, a token a line
    <part>.tokens.bin     uint16 or uint32: the documents end to end, each closed by [SEP]
    <part>.documents.bin  int64: where each document begins, and where the last ends
    <part>.segments.bin   int64: where each segment begins, a line or a sentence; a document begins one

``part``: train and test, which are the held-out documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from largebatch.data.packs.manifest import MANIFEST, read_record
from largebatch.errors import UserError
from largebatch.records.facts import checked_text
from largebatch.records.files import write_text

FORMAT, VERSION = "largebatch token pack", 1
VOCABULARY = "vocabulary.txt"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OFFSETS = np.dtype("<i8")
ARRAYS = ("tokens", "documents", "segments")


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
    files: dict[Literal["tokens", "documents", "segments"], PackedFile]


class TextOrigin(_StrictRecord):
    given: str  # as it was written on the command line
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
    special: dict[str, NonNegativeInt]
    cased: bool
    held_out_share: float
    parts: dict[Literal["train", "test"], PackedText]
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

    def digest(self, part: Literal["train", "test"]) -> str:
        """What its tokens are known by."""
        return self.facts.parts[part].files["tokens"].sha256


def write_facts(folder: Path, facts: TextPackRecord) -> None:
    write_text(folder / MANIFEST, checked_text(facts.model_dump()), on_disk=True)


def read_facts(folder: Path) -> TextPackRecord:
    """``pack.json`` alone, with its checksum and its form looked at."""
    facts = read_record(folder, TextPackRecord, FORMAT, VERSION, "data tokenize")
    for name in SPECIAL:
        if not 0 <= facts.special.get(name, -1) < facts.vocabulary_size:
            raise UserError(f"{folder / MANIFEST} does not say which token {name} is; its vocabulary needs it")
    return facts


def open_pack(folder: Path) -> TextPack:
    """Its files have the sizes that they were written with; :func:`verify` reads every byte."""
    facts = read_facts(folder)
    return TextPack(folder, facts, *(_mapped(folder, facts, part) for part in ("train", "test")))


def _mapped(folder: Path, facts: TextPackRecord, part: Literal["train", "test"]) -> TokenPart:
    packed = facts.parts[part]
    lengths = {"tokens": packed.tokens, "documents": packed.documents + 1, "segments": packed.segments}
    found = {}
    for name, length in lengths.items():
        kind = np.dtype(facts.dtype).newbyteorder("<") if name == "tokens" else OFFSETS
        path = folder / f"{part}.{name}.bin"
        try:
            there = path.stat().st_size
        except OSError:
            raise UserError(f"{path} is missing; the pack is not whole") from None
        if there != length * kind.itemsize:
            raise UserError(f"{path} has {there:,} bytes, and {length * kind.itemsize:,} were written; it is damaged")
        found[name] = np.memmap(path, kind, mode="r") if length else np.zeros(0, kind)
    return TokenPart(**found)
