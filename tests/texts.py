"""Token packs for tests: of random numbers for tokens, or made of words."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from largebatch.data.text import pack, tokenizing
from largebatch.data.text.shards import packed_file
from largebatch.data.text.sources import text_source

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
        files = {name: packed_file(folder / f"{part}.{name}.bin") for name in arrays}
        parts[part] = pack.PackedText(documents=count, tokens=len(tokens), segments=len(segments), files=files)
    words = [*SPECIAL, *(f"word{number}" for number in range(FIRST, vocabulary))]
    (folder / pack.VOCABULARY).write_text("".join(f"{word}\n" for word in words))
    facts = pack.TextPackRecord(
        format=pack.FORMAT, version=pack.VERSION, dtype="uint16", vocabulary_size=vocabulary,
        vocabulary=packed_file(folder / pack.VOCABULARY), special=SPECIAL, cased=False, held_out_share=0.2, parts=parts,
        source=pack.TextOrigin(given="numbers", kind="random", bytes=0, sha256="0" * 64), largebatch="tests",
    )  # fmt: skip
    pack.write_facts(folder, facts)
    return folder


WORDS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "large",
    "small",
    "batch",
    "of",
    "words",
    "is",
    "not",
    "here;",
    "it",
    "was,",
    "in",
    "truth,",
    "Élan",
    "vital",
    "and",
    "naïve",
    "漢字",
    "learned",
    "slowly",
    "(or",
    "not)",
    "by",
    "machines!",
    "who",
    "knows?",
    "perhaps",
    "3.14",
    "e.g.",
    "unbelievable",
]


def documents_of_words(count: int = 200, seed: int = 0) -> list[list[str]]:
    """Documents as their lines, of one to four sentences each."""
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(2, 12)))) + ". "

    def line() -> str:
        return "".join(sentence() for _ in range(rng.integers(1, 5))).strip()

    return [[line() for _ in range(rng.integers(1, 6))] for _ in range(count)]


def as_plain(path: Path, documents: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n", encoding="utf-8")
    return path


def tokenized(source: Path, dest: Path, vocabulary: int | list[str] = 300, key: str = "text", **options: Any) -> Any:
    """A pack made in this process, unless ``workers`` are asked for; ``cased`` and ``hold_out`` as the command has."""
    wanted = {name: options.pop(name) for name in ("cased", "hold_out") if name in options}
    settings: dict[str, Any] = {"workers": 0, **options}
    return tokenizing.tokenize(
        text_source(str(source), key), dest, tokenizing.Wanted(vocabulary, **({"hold_out": 0.2} | wanted)), **settings
    )


def pack_of_words(folder: Path, documents: int = 200, seed: int = 0) -> Path:
    """A pack made as the command makes it, quickly."""
    tokenized(as_plain(folder.with_name(f"{folder.name}.txt"), documents_of_words(documents, seed)), folder)
    return folder
