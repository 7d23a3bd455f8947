"""English without an account: a dictionary's prose and the kernel's documentation, out of Debian's packages.

    dict-gcide     the Collaborative International Dictionary of English: a document is an entry
    linux-doc-*    the documentation of the release's kernel: a document is an .rst file, translations left out

What is kept is prose, a paragraph on a line: pronunciations, origins in brackets, tags, directives, code and tables go.
A file is called as its package with its version, so that the names say what the text is.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from largebatch.data import debian
from largebatch.records.files import whole

NAME = "english"
DICTIONARY, MANUAL = "dict-gcide", "linux-doc"  # the latter is a package that needs the one of the kernel's version
BY_HAND = "any text will do: largebatch data tokenize takes plain text, JSON lines and tables"


def found_in(folder: Path) -> bool:
    """Whether both texts lie there."""
    return all(any(folder.glob(f"{package}*.txt")) for package in (DICTIONARY, MANUAL))


def fetch_into(folder: Path, work: Path, report: Callable[[str], object]) -> Path:
    """Both packages downloaded, verified by apt and unpacked in ``work``, their prose written in ``folder``."""
    apt = debian.Apt(work)
    folder.mkdir(parents=True, exist_ok=True)
    for wanted, documents_of in ((DICTIONARY, dictionary), (MANUAL, manual)):
        package = wanted if wanted == DICTIONARY else apt.needed_by(wanted)
        report(f"{NAME}: downloading Debian's package {package}")
        unpacked = apt.unpacked(package)
        path = folder / f"{unpacked.title}.txt"
        documents, size = write(path, documents_of(unpacked.tree))
        if not documents:
            path.unlink()
            raise debian.Failed(f"Debian's package {unpacked.title} holds no text that is known here")
        report(f"{NAME}: {path}, {documents:,} documents, {size / 1e6:,.1f} MB")
    return folder


def write(path: Path, documents: Iterable[list[str]]) -> tuple[int, int]:
    """Documents parted by an empty line; how many there are, and bytes."""
    count = 0
    with whole(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        for lines in documents:
            file.write("\n" * (count > 0) + "".join(f"{line}\n" for line in lines))
            count += 1
    return count, path.stat().st_size


# --- the dictionary ---------------------------------------------------------------------------------------------------


def dictionary(tree: Path) -> Iterator[list[str]]:
    """Its entries; what the database says of itself is none."""
    for path in sorted(tree.glob("usr/share/dictd/*.dict.dz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
            for entry in entries(file):
                if not entry[0].startswith("00-database") and (lines := entry_lines(entry)):
                    yield lines


def entries(lines: Iterable[str]) -> Iterator[list[str]]:
    """An entry begins with a line that is not indented after an empty one."""
    entry: list[str] = []
    after_empty = True
    for line in lines:
        if after_empty and line[:1].strip() and entry:
            yield entry
            entry = []
        after_empty = not line.strip()
        if entry or not after_empty:
            entry.append(line)
    if entry:
        yield entry


_PRONOUNCED = re.compile(r"\s*(\\[^\\]*\\|\([^\s()]*[*`\"\[][^\s()]*\))")
_TAG = re.compile(r"\[(?:[^\][]*\b(?:Webster|PJC|WordNet|Century Dict|Worcester|Soule|AS|GCIDE|MW)\b[^\][]*)\]")
_BRACKETS = re.compile(r"\s*\[[^\][]*\]")


def entry_lines(entry: list[str]) -> list[str]:
    lines = []
    for number, paragraph in enumerate(_paragraphs(entry)):
        text = _TAG.sub("", paragraph)
        if number == 0:  # the word itself
            text = _BRACKETS.sub("", _BRACKETS.sub("", _PRONOUNCED.sub("", text)))
        text = text.replace("{", "").replace("}", "").replace("--", "-- ")
        lines.append(text)
    return prose(lines)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Their lines joined."""
    parts: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            parts.append(line.strip())
        elif parts:
            yield " ".join(parts)
            parts = []


def prose(paragraphs: Iterable[str]) -> list[str]:
    """With one space between words; without those that hold no word."""
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return [line for line in joined if re.search(r"[^\W\d_]{2}", line)]


# --- the documentation ------------------------------------------------------------------------------------------------


def manual(tree: Path) -> Iterator[list[str]]:
    root = next(iter(sorted(tree.glob("usr/share/doc/linux-doc-*/Documentation"))), None)
    for path in sorted(root.rglob("*.rst*"), key=lambda path: path.parts) if root else ():
        if "translations" in path.parts or not path.is_file():
            continue
        if path.name.endswith((".rst", ".rst.gz")):
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", "replace")
            if lines := rst_lines(text):
                yield lines


_DIRECTIVE = re.compile(r"\.\.(\s|$)")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_<>!$%&])\1{2,}")
_TABLE = re.compile(r"(\+[-=+]+\+|=+( +=+)+|\|.*)")
_FIELD = re.compile(r":[\w \-]+:(\s|$)")
_ITEM = re.compile(r"([-*+•]|\(?(\d+|[a-z]|#)[.)])\s+")
_INLINE = (
    (re.compile(r":[\w:+-]+:`([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),  # :doc:`this <there>`
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*])"), r"\1"),
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"\[[#*\w]*\]_"), ""),
    (re.compile(r"::(?=\s|$)"), ":"),
)


def rst_lines(text: str) -> list[str]:
    """The paragraphs, titles and items of a text in reStructuredText; directives, code, tables and fields left out."""
    paragraphs, parts = [], []
    skipped_below: int | None = None  # what is indented further belongs to what is left out

    def close() -> None:
        nonlocal skipped_below
        if parts:
            joined = " ".join(parts)
            if joined.endswith("::"):
                skipped_below = indent
            paragraphs.append(joined)
            parts.clear()

    indent = 0
    for line in [*text.expandtabs().split("\n"), ""]:
        bare = line.strip()
        if not bare:
            close()
            continue
        deep = len(line) - len(line.lstrip())
        if skipped_below is not None:
            if deep > skipped_below:
                continue
            skipped_below = None
        if _DIRECTIVE.match(bare) or _FIELD.match(bare):
            close()
            skipped_below = deep
        elif _UNDERLINE.fullmatch(bare) or _TABLE.fullmatch(bare):
            close()
        else:
            if _ITEM.match(bare):
                close()
                bare = _ITEM.sub("", bare, count=1)
            indent = deep if not parts else indent
            parts.append(bare)
    for pattern, kept in _INLINE:
        paragraphs = [pattern.sub(kept, paragraph) for paragraph in paragraphs]
    return prose(paragraphs)
