"""Documents of a piece of the sources, one after the other, each as the lines that hold something.

A piece of plain text begins behind the first empty line that begins in it (the first piece: where the file does) and
ends behind the first that begins after it; one of JSON lines likewise with any line. So no document is lost or
met twice, wherever the cuts fall, and a document that is longer than a piece belongs to the one that it begins in.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NoReturn

from largebatch.data.packs.parquet import pyarrow
from largebatch.data.text.sources import TextFile, TextPiece
from largebatch.errors import UserError, first_words

Advance = Callable[[int], object]
_HALF = re.compile("[\ud800-\udfff]")
_ROWS = 256  # of a table, at once
_BUFFER = 2**18


def documents(piece: TextPiece, key: str, advance: Advance = lambda count: None) -> Iterator[list[str]]:
    """``advance`` hears of bytes of the file that were read, in sum as many as the piece has."""
    account = _Account(piece.bytes, advance)
    of_kind = _of_table if piece.file.kind in ("parquet", "arrow") else _of_lines
    for text in of_kind(piece, key, account):
        if document := [line for line in map(str.strip, text) if line]:
            yield document
    account.of(piece.bytes)


class _Account:
    """What was told of so many bytes, never more than there are."""

    def __init__(self, most: int, advance: Advance) -> None:
        self.most, self.advance, self.so_far = most, advance, 0

    def of(self, count: int) -> None:
        """That many in all."""
        if (new := min(count, self.most) - self.so_far) > 0:
            self.so_far += new
            self.advance(new)


class _Counted(io.RawIOBase):
    """A file whose reader tells how much of it was read."""

    def __init__(self, file: IO[bytes], account: _Account) -> None:
        self.file, self.account, self.count = file, account, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer)  # type: ignore[attr-defined]
        self.count += count
        self.account.of(self.count)
        return count


def _of_lines(piece: TextPiece, key: str, account: _Account) -> Iterator[Iterable[str]]:
    with _opened(piece, account) as file:
        lines = _PieceLines(file, piece)
        yield from _plain(lines) if piece.file.kind == "plain" else _json(lines, key)


class _PieceLines:
    """Lines of a file as bytes, beginning behind ``first``, with the place of the last one."""

    def __init__(self, file: IO[bytes], piece: TextPiece) -> None:
        self.file, self.piece = file, piece
        self.begin = self.end = 0  # of the line read last, in the text
        self.last = piece.last if not piece.file.packing else None
        if piece.first:
            self.end = piece.first - 1 + len(file.readline())

    def read(self) -> bytes:
        line = self.file.readline()
        self.begin, self.end = self.end, self.end + len(line)
        return line

    def is_over(self, begin: int) -> bool:
        """Whether what begins there belongs to the next piece."""
        return self.last is not None and begin >= self.last

    def text(self, line: bytes) -> str:
        try:
            return line.decode().removeprefix("\ufeff") if self.begin == 0 else line.decode()
        except UnicodeDecodeError as problem:
            self.refuse_encoding(problem.start)

    def refuse_encoding(self, at: int) -> NoReturn:
        packed = " of its unpacked text" if self.piece.file.packing else ""
        raise UserError(f"{self.piece.file.path} is no UTF-8: byte {self.begin + at:,}{packed}")

    def number(self) -> int:
        """Of the line read last, from 1; counted only where it is to be told."""
        whole = self.piece._replace(first=0)
        with _opened(whole, _Account(0, lambda count: None)) as file:
            left, count = self.begin, 1
            while left and (block := file.read(min(left, 2**20))):
                count, left = count + block.count(b"\n"), left - len(block)
        return count


def _plain(lines: _PieceLines) -> Iterator[Iterable[str]]:
    if lines.piece.first:  # a document that began before is another piece's
        while line := lines.read():
            if lines.is_over(lines.begin):
                return
            if not lines.text(line).strip():
                break
        else:
            return
    document: list[str] = []
    while line := lines.read():
        text = lines.text(line)
        if text.strip():
            document.append(text)
            continue
        if document:
            yield document
            document = []
        if lines.is_over(lines.begin):
            return
    yield document


def _json(lines: _PieceLines, key: str) -> Iterator[Iterable[str]]:
    while not lines.is_over(lines.end) and (line := lines.read()):
        text = lines.text(line)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"{lines.piece.file.path}, line {lines.number():,} is no JSON") from None
        if not isinstance(row, dict) or key not in row:
            keys = f"its keys are {', '.join(map(str, row))}" if isinstance(row, dict) and row else "it has no keys"
            where = f"{lines.piece.file.path}, line {lines.number():,}"
            raise UserError(f"{where} has no text under {key!r}; {keys}: --text-key names the one of the text")
        if not isinstance(value := row[key], str | None):
            where = f"{lines.piece.file.path}, line {lines.number():,}"
            raise UserError(f"{where}: {key} is {json.dumps(value)[:40]}, which is no text")
        yield _lines_of(value)


def _lines_of(text: str | None) -> list[str]:
    """Of a document's text; half a character in JSON's escapes is none."""
    return _HALF.sub("\ufffd", text or "").split("\n")


def _of_table(piece: TextPiece, key: str, account: _Account) -> Iterator[Iterable[str]]:
    arrow = pyarrow()
    read = _parquet_columns if piece.file.kind == "parquet" else _arrow_columns
    try:
        for column, share in read(piece, key):
            yield from (_lines_of(value.as_py()) for value in column)
            account.of(int(share * piece.bytes))
    except (arrow.ArrowException, OSError) as reason:
        raise UserError(f"{piece.file.path} cannot be read: {first_words(reason)}") from None


def _parquet_columns(piece: TextPiece, key: str) -> Iterator[tuple[Any, float]]:
    """Rows of the column, and the share of the piece that was read with them."""
    with pyarrow().parquet.ParquetFile(piece.file.path) as file:
        _check_column(piece.file, file.schema_arrow, key)
        groups = range(piece.first, piece.last)
        rows, read = sum(file.metadata.row_group(group).num_rows for group in groups), 0
        for batch in file.iter_batches(_ROWS, list(groups), [key]):
            read += batch.num_rows
            yield batch.column(0), read / rows


def _arrow_columns(piece: TextPiece, key: str) -> Iterator[tuple[Any, float]]:
    arrow = pyarrow()
    with arrow.memory_map(str(piece.file.path)) as mapped, arrow.ipc.open_stream(mapped) as stream:
        _check_column(piece.file, stream.schema, key)
        at = stream.schema.get_field_index(key)
        for batch in stream:
            yield batch.column(at), mapped.tell() / max(1, piece.bytes)


def _check_column(file: TextFile, schema: Any, key: str) -> None:
    types = pyarrow().types
    if key not in schema.names:
        names = ", ".join(schema.names) or "none"
        raise UserError(f"{file.path} has no column {key!r}; its columns are {names}: --text-key names the text's")
    kind = schema.field(key).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise UserError(f"{file.path}: column {key} holds {kind}, which is no text")


@contextlib.contextmanager
def _opened(piece: TextPiece, account: _Account) -> Iterator[IO[bytes]]:
    """The text of a file, unpacked, from where the piece begins; what goes wrong below is told with the file's name."""
    file = piece.file
    try:
        with open(file.path, "rb", buffering=0) as raw:
            raw.seek(max(0, piece.first - 1))
            counted = io.BufferedReader(_Counted(raw, account), _BUFFER)
            if file.packing == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=counted), _BUFFER)  # type: ignore[arg-type]
            elif file.packing == ".zst":
                yield io.BufferedReader(pyarrow().CompressedInputStream(counted, "zstd"), _BUFFER)
            else:
                yield counted
    except (EOFError, zlib.error, OSError) as reason:
        raise UserError(f"{file.path} cannot be read: {first_words(reason)}") from None
