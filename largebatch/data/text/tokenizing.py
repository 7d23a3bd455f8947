"""``largebatch data tokenize``: makes a token pack (:mod:`largebatch.data.text.pack`) of whatever text there is.

Beside the pack's folder lies one where it is made: worker processes write a shard each, a line in ``packing.jsonl``
says that it is whole, and at the end shards are laid end to end. The same command after a kill makes what is missing,
and ends with the same bytes as one that nobody disturbed. The pack has its name when it is whole.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import largebatch
from largebatch.data.packs import making
from largebatch.data.packs.manifest import MANIFEST
from largebatch.data.packs.progress import MakingProgress, begun_in
from largebatch.data.processes import in_words as processes_in_words
from largebatch.data.processes import processors
from largebatch.data.text import reading, shards, wordpiece
from largebatch.data.text.pack import (
    ARRAYS,
    FORMAT,
    OFFSETS,
    PARTS,
    VERSION,
    VOCABULARY,
    Array,
    PackedFile,
    PackedText,
    Part,
    TextOrigin,
    TextPackRecord,
    file_name,
    read_facts,
    work_folder,
    write_facts,
)  # fmt: skip
from largebatch.data.text.shards import PlannedShard, WrittenShard
from largebatch.data.text.sources import TextSource
from largebatch.errors import UserError
from largebatch.records.files import flush, write_text

_COPIED = 2**20  # numbers at once
BEGUN = {"source", "vocabulary", "cased", "hold_out", "shard_bytes"}

Say = Callable[[str], object]
Report = Callable[[int, int], object]


@dataclass(frozen=True)
class Wanted:
    """What text is made into. ``vocabulary``: so many tokens are trained, or it is given."""

    vocabulary: int | list[str]
    cased: bool = False
    hold_out: float = 0.01

    @property
    def known_by(self) -> int | str:
        given = self.vocabulary
        return given if isinstance(given, int) else wordpiece.sha256_of(given)


def tokenize(
    source: TextSource,
    dest: Path,
    wanted: Wanted,
    *,
    workers: int | None = None,
    shard_bytes: int | None = None,
    say: Say = lambda text: None,
    report: Report = lambda done, total: None,
) -> TextPackRecord | None:
    """Make the pack in ``dest``, or what is missing of it; None if it is there already.

    ``workers``: processes; 0: this one. ``say`` hears what was decided, ``report`` how many bytes of the sources were
    read. An interrupt leaves what is whole.
    """
    asked = {
        "source": source.fingerprint, "vocabulary": wanted.known_by, "cased": wanted.cased, "hold_out": wanted.hold_out,
    }  # fmt: skip
    folder = work_folder(dest)
    if (dest / MANIFEST).is_file():
        _check_same(_asked_of(read_facts(dest)), asked, source, dest)
        shutil.rmtree(folder, ignore_errors=True)  # a kill came when the pack had its name
        return None
    _check_free(dest)
    begun = begun_in(folder, dest, BEGUN, WrittenShard) or asked | {"shard_bytes": shard_bytes or source.shard_bytes}
    _check_same(begun, asked, source, folder)
    planned = [
        PlannedShard(f"{number:06d}", pieces) for number, pieces in enumerate(source.shards(begun["shard_bytes"]))
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with MakingProgress(folder, begun, WrittenShard) as progress:
            try:
                vocabulary = _vocabulary(source, folder, wanted, planned, say)
                missing = [shard for shard in planned if shard.name not in progress.written]
                count = processors() if workers is None else workers
                count = min(count, max(1, len(missing)))
                say(_decision(source, planned, missing, count, dest))
                _make(source, folder, wanted, vocabulary, missing, count, progress, lambda n: report(n, source.bytes))
                facts = _joined(source, folder, wanted, vocabulary, [progress.written[shard.name] for shard in planned])
            except (OSError, KeyboardInterrupt) as reason:
                state = f"{len(progress.written)} of {len(planned)} shards are whole, and the same command goes on"
                if isinstance(reason, KeyboardInterrupt):
                    raise KeyboardInterrupt(state) from None
                raise UserError(f"{folder} cannot be written: {reason.strerror or reason}; {state}") from None
            os.rename(folder / _PACK, dest)
            flush(dest.parent)
            shutil.rmtree(folder)
            return facts
    except OSError as reason:
        raise UserError(f"{dest} cannot be written: {reason.strerror or reason}") from None


_PACK = "pack"  # what becomes the pack, in the folder where it is made


def _asked_of(facts: TextPackRecord) -> dict[str, Any]:
    """What a finished pack was asked for."""
    return {
        "source": facts.source.sha256,
        "vocabulary": facts.trained or facts.vocabulary.sha256,
        "cased": facts.cased,
        "hold_out": facts.held_out_share,
    }


def _check_same(begun: Mapping[str, Any], asked: Mapping[str, Any], source: TextSource, there: Path) -> None:
    if begun["source"] != asked["source"]:
        raise UserError(
            f"{there} is a pack of other text than {source.given} holds; choose another folder, or delete it"
        )
    if begun["vocabulary"] != asked["vocabulary"]:
        were, are = (
            f"{this:,} tokens" if isinstance(this, int) else "a file"
            for this in (begun["vocabulary"], asked["vocabulary"])
        )
        other = f"{were}, not of {are}" if were != are else "another file"
        raise UserError(f"{there} is a pack with a vocabulary of {other}; choose another folder, or delete it")
    for key, word in (("cased", "--cased"), ("hold_out", "--hold-out")):
        if begun[key] != asked[key]:
            raise UserError(
                f"{there} is a pack with {word} {begun[key]}, not {asked[key]}; choose another folder, or delete it"
            )


def _check_free(dest: Path) -> None:
    """An empty folder may lie there: a rename takes its place."""
    if dest.is_dir() and (names := sorted(path.name for path in dest.iterdir())):
        raise UserError(f"{dest} holds other files ({names[0]}); a pack needs a folder of its own")
    if dest.exists() and not dest.is_dir():
        raise UserError(f"{dest} is there and no folder; choose another one")


def _vocabulary(source: TextSource, folder: Path, wanted: Wanted, planned: list[PlannedShard], say: Say) -> list[str]:
    """Given, trained, or found in the folder, where an earlier command wrote it."""
    path = folder / VOCABULARY
    if path.is_file():
        return wordpiece.read_vocabulary(path)
    vocabulary = wanted.vocabulary
    if isinstance(vocabulary, int):
        share = min(1.0, wordpiece.SAMPLE_BYTES / source.bytes)
        whole = "all of it" if share == 1 else f"the first {100 * share:.2g} % of each of its {len(planned):,} shards"
        say(f"training a vocabulary of {vocabulary:,} tokens on {whole}, without what is held out")
        asked, sample = vocabulary, functools.partial(_sample, source, planned, wanted.hold_out)
        vocabulary = wordpiece.train_vocabulary(sample, asked, wanted.cased)
        if len(vocabulary) < asked:
            say(f"it has {len(vocabulary):,} tokens: no more of them stand side by side twice")
    write_text(path, wordpiece.vocabulary_text(vocabulary), on_disk=True)
    return vocabulary


def _sample(source: TextSource, planned: list[PlannedShard], hold_out: float) -> Iterator[str]:
    """Documents from the begin of every shard, in sum of about as many bytes as a vocabulary is trained on."""
    for shard in planned:
        left = math.ceil(wordpiece.SAMPLE_BYTES * shard.bytes / source.bytes)
        for document in (document for piece in shard.pieces for document in reading.documents(piece, source.key)):
            if left <= 0:
                break
            left -= sum(map(len, document))
            if not shards.is_held_out(document, hold_out):
                yield "\n".join(document)


def _decision(
    source: TextSource, planned: list[PlannedShard], missing: list[PlannedShard], count: int, dest: Path
) -> str:
    files = f"{len(source.files):,} files" if len(source.files) > 1 else "1 file"
    there = f" ({len(planned) - len(missing)} are there)" if len(missing) < len(planned) else ""
    passed = f"; passed over {source.passed_over}" if source.passed_over else ""
    return (
        f"{source.given} ({source.kind}): {files}, {source.bytes / 1e6:,.1f} MB -> {dest}: "
        f"{len(planned):,} {'shard' if len(planned) == 1 else 'shards'}{there}, "
        f"{processes_in_words(count)}{passed}"
    )


def _make(
    source: TextSource, folder: Path, wanted: Wanted, vocabulary: list[str], missing: list[PlannedShard], count: int,
    progress: MakingProgress[WrittenShard], report: Callable[[int], object],
) -> None:  # fmt: skip
    """The shards that are missing."""
    before = sum(shard.source_bytes for shard in progress.written.values())
    work = functools.partial(shards.TextWork, folder, vocabulary, wanted.cased, wanted.hold_out, source.key)
    begin = shards.begin_process if count else shards.begin
    making.make(missing, shards.write, begin, work, count, progress, lambda done: report(before + done))


# --- end to end -------------------------------------------------------------------------------------------------------


def _joined(
    source: TextSource, folder: Path, wanted: Wanted, vocabulary: list[str], written: list[WrittenShard]
) -> TextPackRecord:
    if not any(packed.documents for shard in written for packed in shard.parts.values()):
        raise UserError(f"{source.given} holds no document with a word in it")
    shutil.rmtree(folder / _PACK, ignore_errors=True)
    (folder / _PACK).mkdir()
    text = wordpiece.vocabulary_text(vocabulary)
    write_text(folder / _PACK / VOCABULARY, text, on_disk=True)
    facts = TextPackRecord(
        format=FORMAT,
        version=VERSION,
        dtype=wordpiece.dtype_of(len(vocabulary)),
        vocabulary_size=len(vocabulary),
        vocabulary=PackedFile(bytes=len(text.encode()), sha256=wordpiece.sha256_of(vocabulary)),
        trained=wanted.vocabulary if isinstance(wanted.vocabulary, int) else None,
        special=wordpiece.special_numbers(vocabulary),
        cased=wanted.cased,
        held_out_share=wanted.hold_out,
        parts={part: _part(folder, part, written) for part in PARTS},
        source=TextOrigin(given=source.name, kind=source.kind, bytes=source.bytes, sha256=source.fingerprint),
        largebatch=largebatch.__version__,
    )
    write_facts(folder / _PACK, facts)
    return facts


def _part(folder: Path, part: Part, written: list[WrittenShard]) -> PackedText:
    counts = {array: sum(getattr(shard.parts[part], array) for shard in written) for array in ARRAYS}
    files: dict[Array, PackedFile] = {array: _laid(folder, part, array, written) for array in ARRAYS}
    return PackedText(**counts, files=files)


def _laid(folder: Path, part: Part, array: Array, written: list[WrittenShard]) -> PackedFile:
    """Shards end to end; what are places among tokens is moved on by the tokens before."""
    digest, size, before = hashlib.sha256(), 0, 0
    with shards.written(folder / _PACK / file_name(part, array)) as file:

        def add(content: bytes) -> None:
            nonlocal size
            file.write(content)
            digest.update(content)
            size += len(content)

        if array == "documents":
            add(np.zeros(1, OFFSETS).tobytes())
        for shard in written:
            for content in _checked(
                folder / shards.shard_file(shard.name, part, array), shard.parts[part].files[array]
            ):
                moved = content if array == "tokens" else (np.frombuffer(content, OFFSETS) + before).tobytes()
                add(moved)
            before += shard.parts[part].tokens
    return PackedFile(bytes=size, sha256=digest.hexdigest())


def _checked(path: Path, file: PackedFile) -> Iterator[bytes]:
    """The content of a shard's file, which is what was written."""
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while content := opened.read(OFFSETS.itemsize * _COPIED):
            digest.update(content)
            yield content
    if digest.hexdigest() != file.sha256:
        raise UserError(
            f"the checksum of {path} does not fit: its bytes changed; delete {path.parent} and tokenize again"
        )
