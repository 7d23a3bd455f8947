"""Token packs for tests, of random numbers for tokens."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

from largebatch.data.text import pack
from largebatch.records.files import sha256_of

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
SEP, FIRST = 3, 5


def shared_pack() -> Path:
    """One that recipes of tests name, made once on a machine: its numbers are always the same."""
    folder = Path(tempfile.gettempdir()) / f"largebatch-tests-text-{os.getuid()}"
    if not (folder / pack.MANIFEST).is_file():
        made = pack_of_numbers(Path(tempfile.mkdtemp()) / "pack")
        with contextlib.suppress(OSError):  # another process was first
            made.rename(folder)
    return folder


def pack_of_numbers(folder: Path, vocabulary: int = 100, documents: tuple[int, int] = (300, 60), seed: int = 0) -> Path:
    """Documents of 1 to 5 segments, each of 3 to 29 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    parts = {}
    for part, count in zip(("train", "test"), documents, strict=True):
        tokens, offsets, segments = [], [0], []
        for _ in range(count):
            for _ in range(int(rng.integers(1, 6))):
                segments.append(len(tokens))
                tokens += rng.integers(FIRST, vocabulary, int(rng.integers(3, 30))).tolist()
            tokens.append(SEP)
            offsets.append(len(tokens))
        arrays = {"tokens": np.array(tokens, np.uint16), "documents": np.array(offsets), "segments": np.array(segments)}
        for name, array in arrays.items():
            array.tofile(folder / f"{part}.{name}.bin")
        files = {name: _promised(folder / f"{part}.{name}.bin") for name in arrays}
        parts[part] = pack.PackedText(documents=count, tokens=len(tokens), segments=len(segments), files=files)
    words = [*SPECIAL, *(f"word{number}" for number in range(FIRST, vocabulary))]
    (folder / pack.VOCABULARY).write_text("".join(f"{word}\n" for word in words))
    facts = pack.TextPackRecord(
        format=pack.FORMAT, version=pack.VERSION, dtype="uint16", vocabulary_size=vocabulary,
        vocabulary=_promised(folder / pack.VOCABULARY), special=SPECIAL, cased=False, held_out_share=0.2, parts=parts,
        source=pack.TextOrigin(given="numbers", kind="random", bytes=0, sha256="0" * 64), largebatch="tests",
    )  # fmt: skip
    pack.write_facts(folder, facts)
    return folder


def _promised(path: Path) -> pack.PackedFile:
    return pack.PackedFile(bytes=path.stat().st_size, sha256=sha256_of(path))
