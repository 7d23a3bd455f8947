"""``pack.json``: what a pack holds, with size and SHA-256 of each of its files and, last, that of the text before it.

A checksum says nothing of who wrote: what is read is checked for its form, too, and names no file outside its folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from largebatch.errors import UserError
from largebatch.records.facts import Altered, Unsound, checked_facts, checked_text
from largebatch.records.files import write_text

FORMAT, VERSION = "largebatch pack", 1
MANIFEST = "pack.json"
PROGRESS = "packing.jsonl"  # beside an unfinished pack
Kind = TypeVar("Kind", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Promised(_Strict):
    """One file, as it was written."""

    name: Annotated[str, Field(pattern=r"^(train|test)-[a-z0-9]+\.(npy|jpegs)$")]
    bytes: PositiveInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ImageFile(Promised):
    first: NonNegativeInt  # the example it begins with
    examples: PositiveInt


class Smallest(_Strict):
    name: str
    width: PositiveInt
    height: PositiveInt


class PackedSplitRecord(_Strict):
    examples: PositiveInt
    files: list[ImageFile]
    labels: Promised
    names: Promised
    index: Promised | None
    enlarged: NonNegativeInt  # images whose short side was below the pack's size
    smallest: Smallest
    left_out: dict[str, str]  # name -> why it could not be decoded

    @property
    def promised(self) -> list[Promised]:
        return [*self.files, self.labels, self.names, *([self.index] if self.index else [])]


class Origin(_Strict):
    given: str  # as it was written on the command line
    kind: str
    sha256: str  # of names, labels and classes


class PackRecord(_Strict):
    """``pack.json`` without its checksum."""

    format: str
    version: int
    form: Literal["pixels", "jpeg"]
    size: PositiveInt | None  # None: jpeg, every image has its own
    classes: list[str]
    splits: dict[Literal["train", "test"], PackedSplitRecord]
    source: Origin
    largebatch: str


def write_facts(root: Path, facts: PackRecord) -> None:
    write_text(root / MANIFEST, checked_text(facts.model_dump()), on_disk=True)


def read_facts(root: Path) -> PackRecord:
    """``pack.json`` alone, with its checksum and its form looked at."""
    read = read_record(root, PackRecord, FORMAT, VERSION, "data pack")
    if (read.size is None) != (read.form == "jpeg"):
        path = root / MANIFEST
        raise UserError(f"{path} does not say what a pack holds: size is {read.size} and form is {read.form}")
    return read


def read_record(root: Path, kind: type[Kind], form: str, version: int, command: str) -> Kind:
    """``pack.json`` of a pack that ``command`` makes, its checksum and its form looked at."""
    path = root / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if (root / PROGRESS).is_file():
            raise UserError(f"{root} is a pack that is not finished; run its `largebatch {command}` again") from None
        raise UserError(f"{root} is not a pack: it has no {MANIFEST}") from None
    except OSError as reason:
        if path.parent.is_file():
            raise UserError(f"{path.parent} is a file; valid: the folder of a pack") from None
        raise UserError(f"{path} cannot be read: {reason.strerror}") from None
    try:
        facts = checked_facts(content, str(path))
    except Altered as problem:
        raise UserError(f"{problem}: it was changed after it was written") from None
    except Unsound as problem:
        raise UserError(str(problem)) from None
    if not isinstance(facts, dict) or facts.get("format") != form:
        raise UserError(f"{path} is of another program")
    if facts.get("version") != version:
        raise UserError(f"{path} has version {facts.get('version')!r}; this largebatch reads version {version}")
    try:
        return kind.model_validate(facts)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} does not say what a pack holds: {where}: {first['msg']}") from None
