"""One shard of a token pack, written by a worker process: documents of some pieces of the sources, as numbers.

Nothing is held but the documents of about a million characters, whatever the size of a shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from largebatch.data.packs.making import PackingStopped
from largebatch.data.packs.progress import MadePart
from largebatch.data.processes import begin_worker
from largebatch.data.text import reading
from largebatch.data.text.pack import ARRAYS, OFFSETS, PARTS, Array, PackedFile, PackedText, Part, file_name
from largebatch.data.text.sources import TextPiece
from largebatch.data.text.wordpiece import Encoder
from largebatch.records.files import sha256_of, whole

BLOCK_CHARACTERS = 2**20


class PlannedShard(NamedTuple):
    name: str
    pieces: tuple[TextPiece, ...]

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)


class WrittenShard(MadePart):
    source_bytes: int
    parts: dict[Part, PackedText]

    def is_whole(self, folder: Path) -> bool:
        return all(path.stat().st_size == file.bytes for path, file in self.files(folder))

    def files(self, folder: Path) -> Iterator[tuple[Path, PackedFile]]:
        for part, packed in self.parts.items():
            for array, file in packed.files.items():
                yield folder / shard_file(self.name, part, array), file


@dataclass(frozen=True)
class TextWork:
    """What every shard of a pack needs."""

    folder: Path
    vocabulary: list[str]
    cased: bool
    hold_out: float
    key: str
    counter: Any  # bytes of the sources that were read, by all workers
    stop: Any  # set when the others are to end


_work: TextWork
_encoder: Encoder


def begin_process(work: TextWork) -> None:
    """In a worker, before its first shard."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as were asked for
    begin(work)
    begin_worker()


def begin(work: TextWork) -> None:
    global _work, _encoder
    _work, _encoder = work, Encoder(work.vocabulary, work.cased)


def shard_file(name: str, part: str, array: str) -> str:
    return f"{name}.{file_name(part, array)}"


def write(shard: PlannedShard) -> WrittenShard:
    """Make its files; what was left of an earlier attempt is written over."""
    with contextlib.ExitStack() as stack:
        parts: dict[Part, _GrowingPart] = {part: _GrowingPart(shard.name, part, stack) for part in PARTS}
        for piece in shard.pieces:
            for document in reading.documents(piece, _work.key, _advance):
                parts["test" if is_held_out(document, _work.hold_out) else "train"].add(document)
        for part in parts.values():
            part.flush()
    packed: dict[Part, PackedText] = {part: growing.packed() for part, growing in parts.items()}
    return WrittenShard(name=shard.name, source_bytes=shard.bytes, parts=packed)


def _advance(count: int) -> None:
    if _work.stop.is_set():
        raise PackingStopped
    with _work.counter.get_lock():
        _work.counter.value += count


def is_held_out(document: Iterable[str], share: float) -> bool:
    """A function of its text alone: the same for any order and any number of processes, and for a copy of it."""
    digest = hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


class _GrowingPart:
    """The files of a part of a shard, to which documents are added."""

    def __init__(self, shard: str, part: str, stack: contextlib.ExitStack) -> None:
        self.paths: dict[Array, Path] = {array: _work.folder / shard_file(shard, part, array) for array in ARRAYS}
        self.files: dict[str, IO[bytes]] = {
            array: stack.enter_context(written(path)) for array, path in self.paths.items()
        }
        self.waiting: list[list[str]] = []
        self.characters = 0
        self.counts = dict.fromkeys(ARRAYS, 0)

    def add(self, document: list[str]) -> None:
        self.waiting.append(document)
        self.characters += sum(map(len, document))
        if self.characters > BLOCK_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        encoded = _encoder.encode(self.waiting)
        begin = self.counts["tokens"]
        for array, numbers in zip(
            ARRAYS, (encoded.tokens, encoded.ends + begin, encoded.segments + begin), strict=True
        ):
            self.files[array].write(numbers.astype(_encoder.dtype if array == "tokens" else OFFSETS).tobytes())
            self.counts[array] += len(numbers)
        self.waiting, self.characters = [], 0

    def packed(self) -> PackedText:
        files: dict[Array, PackedFile] = {array: packed_file(path) for array, path in self.paths.items()}
        return PackedText(
            documents=self.counts["documents"],
            tokens=self.counts["tokens"],
            segments=self.counts["segments"],
            files=files,
        )


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is there when it is whole."""
    with whole(path, on_disk=True) as unfinished, open(unfinished, "wb") as file:
        yield file


def packed_file(path: Path) -> PackedFile:
    return PackedFile(bytes=path.stat().st_size, sha256=sha256_of(path))
