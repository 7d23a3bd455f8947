"""``pack.json``: what a pack holds, with size and SHA-256 of each of its files and, last, that of the text before it.

A checksum says nothing of who wrote: what is read is checked for its form, too, and names no file outside its folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from largebatch.errors import UserError

FORMAT, VERSION = "largebatch pack", 1
MANIFEST = "pack.json"
PROGRESS = "packing.jsonl"  # beside an unfinished pack
_CHECKSUM = ',\n "sha256": "'


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


class SplitFacts(_Strict):
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


class Facts(_Strict):
    """``pack.json`` without its checksum."""

    format: str
    version: int
    form: Literal["pixels", "jpeg"]
    size: PositiveInt | None  # None: jpeg, every image has its own
    classes: list[str]
    splits: dict[Literal["train", "test"], SplitFacts]
    source: Origin
    largebatch: str


def text_of(facts: Facts) -> str:
    """What stands in ``pack.json``: ``facts``, and the checksum of all that stands before it."""
    before = json.dumps(facts.model_dump(), indent=1).removesuffix("\n}")
    return f'{before}{_CHECKSUM}{hashlib.sha256(before.encode()).hexdigest()}"\n}}\n'


def read_facts(root: Path) -> Facts:
    """``pack.json`` alone, with its checksum and its form looked at."""
    path = root / MANIFEST
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        if (root / PROGRESS).is_file():
            raise UserError(f"{root} is a pack that is not finished; run its `largebatch data pack` again") from None
        raise UserError(f"{root} is not a pack: it has no {MANIFEST}") from None
    except OSError as reason:
        raise UserError(f"{path} cannot be read: {reason.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text") from None
    before, found, checksum = text.rpartition(_CHECKSUM)
    if not found or checksum != hashlib.sha256(before.encode()).hexdigest() + '"\n}\n':
        raise UserError(f"the checksum of {path} does not fit: it was changed after it was written")
    try:
        facts = json.loads(before + "\n}")
    except (ValueError, RecursionError):
        raise UserError(f"{path} is no JSON") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{path} is of another program")
    if facts.get("version") != VERSION:
        raise UserError(f"{path} has version {facts.get('version')!r}; this largebatch reads version {VERSION}")
    try:
        read = Facts.model_validate(facts)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} does not say what a pack holds: {where}: {first['msg']}") from None
    if (read.size is None) != (read.form == "jpeg"):
        raise UserError(f"{path} does not say what a pack holds: size is {read.size} and form is {read.form}")
    return read


def sha256_of(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
