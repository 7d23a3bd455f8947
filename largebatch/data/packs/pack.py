"""Packs: a data set as a few large files, any image of it at any time, one page cache for all ranks of a host.

    DEST/pack.json          what is in it; size and SHA-256 of every file, then the SHA-256 of the text before it
    DEST/train-00000.npy    pixels: uint8 (n, size, size, 3), memory-mapped; 00001, 00002, ... follow
    DEST/train-00000.jpegs  or jpeg: encoded images one after another, their bytes as they were
    DEST/train-index.npy    jpeg: int64 (N, 3): number of the file, offset and length in it
    DEST/train-labels.npy   int64 (N,)
    DEST/train-names.npy    bytes (N,): what each image was called where it came from
    DEST/test-...           the same, where there is a test set

numpy alone reads it. Images stand in the order of the source. :func:`open_pack` compares everything with ``pack.json``
but the images' bytes, which :func:`verify` does; no file is ever unpickled. :mod:`.packing` makes packs.
"""

from __future__ import annotations

import copy
import errno
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from largebatch.data.contents import FOLDER, SHARDS, Listing
from largebatch.data.packs.manifest import MANIFEST, PROGRESS, PackedSplitRecord, PackRecord, Promised, read_facts
from largebatch.errors import UserError
from largebatch.records.files import sha256_of

_NAME_OF: dict[str, Callable[[bytes], bytes]] = {  # what a pack keeps of a name -> what the source itself lists
    FOLDER: lambda name: name.split(b"/", 2)[-1],
    SHARDS: lambda name: name.partition(b": ")[0].rpartition(b"/")[2] + b": " + name.partition(b": ")[2],
}


class PackedImages:
    """Images of a split, or of a part of it. Files are opened where they are read, so it crosses processes as paths."""

    kind = ""  # of what it was packed from

    def __init__(self, root: Path, split: PackedSplitRecord, classes: tuple[str, ...], labels: np.ndarray) -> None:
        self.classes = classes
        self.labels = labels
        self._files = tuple(str(root / file.name) for file in split.files)
        self._first = np.array([file.first for file in split.files])
        self._names = str(root / split.names.name)
        self._chosen: np.ndarray | None = None  # None: all of the split
        self._opened: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, chosen: np.ndarray) -> Self:
        """The images at the indices (or where the mask is true), in that order."""
        part = copy.copy(self)
        part._chosen = (np.arange(len(self)) if self._chosen is None else self._chosen)[chosen]
        part.labels = self.labels[chosen]
        return part

    def name(self, index: int) -> str:
        """The file of the pack, and what the image was called where it came from."""
        (place,) = self._places([index])
        name = os.fsdecode(bytes(self._array(self._names)[place]))
        return f"{self._files[int(self._file_of(place))]}: {name}"

    def listing(self) -> Listing:
        """Of the images by the names that they had where they came from."""
        chosen = slice(None) if self._chosen is None else self._chosen
        kept = self._array(self._names)[chosen].tolist()
        names = np.array(list(map(_NAME_OF.get(self.kind, bytes), kept)), np.bytes_)
        return Listing(self.classes, self.labels, self.kind, names, self._sizes(chosen))

    def _sizes(self, chosen: slice | np.ndarray) -> np.ndarray | None:
        return None

    def _places(self, indices: Any) -> np.ndarray:
        """Indices of this part -> examples of the split."""
        asked = np.asarray(indices)
        if len(asked) and not 0 <= asked.min() <= asked.max() < len(self):
            raise IndexError(f"images {asked.min()} to {asked.max()} of {len(self)}")
        return asked if self._chosen is None else self._chosen[asked]

    def _file_of(self, places: Any) -> np.ndarray:
        return np.searchsorted(self._first, places, side="right") - 1

    def _array(self, file: str) -> np.ndarray:
        if file not in self._opened:
            self._opened[file] = mapped(Path(file))
        return self._opened[file]


class _Mapped:
    """The pixels in one file."""

    def __init__(self, file: str) -> None:
        array = np.lib.format.open_memmap(file, mode="r")
        self.images = array.view(np.ndarray)
        self._map: Any = array.base
        self._begin, self._bytes = array.offset, array[0].nbytes

    def will_need(self, row: int) -> None:
        """Said of a whole batch before it is copied: what is not in memory is then read all at once, not page by page,
        which makes a cold batch several times as fast and costs a tenth of a copy from memory."""
        begin = self._begin + row * self._bytes
        into_page = begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, begin - into_page, self._bytes + into_page)


class PixelPack(PackedImages):
    """uint8 images of ``size`` × ``size``."""

    def __init__(
        self, root: Path, split: PackedSplitRecord, classes: tuple[str, ...], labels: np.ndarray, size: int
    ) -> None:
        super().__init__(root, split, classes, labels)
        self.size = size

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The images at ``indices``, uint8 (m, size, size, 3), in their order; into ``out`` where it is given."""
        places = self._places(indices)
        shape = (len(places), self.size, self.size, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        assert out.shape == shape
        assert out.dtype == np.uint8
        numbers = self._file_of(places)
        rows = (places - self._first[numbers]).tolist()
        files = [self._mapped(number) for number in numbers.tolist()]
        for file, row in zip(files, rows, strict=True):
            file.will_need(row)
        for place, (file, row) in enumerate(zip(files, rows, strict=True)):
            out[place] = file.images[row]
        return out

    def _mapped(self, number: int) -> _Mapped:
        if number not in self._opened:
            self._opened[number] = _Mapped(self._files[number])
        return self._opened[number]


class _Opened:
    """A file that is closed when nobody reads it any more. Not mapped: so a failing disk is an error and no signal."""

    def __init__(self, file: str) -> None:
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class JpegPack(PackedImages):
    """Encoded images, a :class:`largebatch.data.sources.ImageSource`."""

    def __init__(self, root: Path, split: PackedSplitRecord, classes: tuple[str, ...], labels: np.ndarray) -> None:
        super().__init__(root, split, classes, labels)
        assert split.index
        self._index = str(root / split.index.name)

    def _sizes(self, chosen: slice | np.ndarray) -> np.ndarray | None:
        return np.array(self._array(self._index)[chosen][:, 2])

    def read(self, index: int) -> bytes:
        """The encoded image, as it was written. Raises OSError."""
        (place,) = self._places([index])
        number, offset, length = self._array(self._index)[place].tolist()
        if number not in self._opened:
            self._opened[number] = _Opened(self._files[number])
        encoded = os.pread(self._opened[number].descriptor, length, offset)
        if len(encoded) != length:
            raise OSError(errno.EIO, f"{self._files[number]} ends before byte {offset + length:,}")
        return encoded


@dataclass(frozen=True)
class Pack:
    root: Path
    facts: PackRecord
    classes: tuple[str, ...]
    splits: Mapping[str, PixelPack | JpegPack]

    @property
    def form(self) -> str:
        return self.facts.form

    @property
    def size(self) -> int | None:
        """Of the images' sides; None where each has its own (jpeg)."""
        return self.facts.size


def is_pack(root: Path) -> bool:
    """Whether a pack, or the beginning of one, lies in ``root``."""
    return (root / MANIFEST).is_file() or (root / PROGRESS).is_file()


def open_pack(root: Path) -> Pack:
    """The pack in ``root``; a UserError names the file that is not what it should be."""
    facts = read_facts(root)
    if "train" not in facts.splits:
        raise UserError(f"{root / MANIFEST} names no training images")
    classes = tuple(facts.classes)
    splits: dict[str, PixelPack | JpegPack] = {}
    for name, split in facts.splits.items():
        for promised in split.promised:
            _check_size(root, promised)
        for promised in split.promised[len(split.files) :]:
            _check_contents(root, promised)
        labels = np.array(_array_of(root, split.labels, np.dtype(np.int64), (split.examples,)))
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(
                f"{root / split.labels.name} holds label {labels.max() if labels.min() >= 0 else labels.min()}; "
                f"the pack has {len(classes)} classes"
            )
        _array_of(root, split.names, None, (split.examples,))
        _check_order(root, split)
        if facts.size is not None:
            for file in split.files:
                _array_of(root, file, np.dtype(np.uint8), (file.examples, facts.size, facts.size, 3))
            splits[name] = PixelPack(root, split, classes, labels, facts.size)
        else:
            _check_index(root, split)
            splits[name] = JpegPack(root, split, classes, labels)
    for images in splits.values():
        images.kind = facts.source.kind
    return Pack(root, facts, classes, splits)


def verify(root: Path, report: Callable[[int, int], object] = lambda done, total: None) -> PackRecord:
    """Every byte of the pack in ``root``; ``report`` hears how many bytes of how many were read."""
    facts = open_pack(root).facts
    files = [file for split in facts.splits.values() for file in split.promised]
    done, total = 0, sum(file.bytes for file in files)
    for file in files:
        _check_contents(root, file)
        done += file.bytes
        report(done, total)
    return facts


def mapped(path: Path) -> np.ndarray:
    """The array in a ``.npy`` file, read-only. A plain view of the map: numpy's own subclass costs at every slice."""
    return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)  # knows neither pickles nor archives


def _check_size(root: Path, promised: Promised) -> None:
    path = root / promised.name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as reason:
        raise UserError(f"{path} cannot be read: {reason.strerror}") from None
    if size != promised.bytes:
        raise UserError(f"{path} has {size:,} bytes, not {promised.bytes:,}; pack again, or copy it anew")


def _check_contents(root: Path, promised: Promised) -> None:
    path = root / promised.name
    try:
        found = sha256_of(path)
    except OSError as reason:
        raise UserError(f"{path} cannot be read: {reason.strerror}") from None
    if found != promised.sha256:
        raise UserError(f"the checksum of {path} does not fit: its bytes changed; pack again, or copy it anew")


def _array_of(root: Path, promised: Promised, dtype: np.dtype | None, shape: tuple[int, ...]) -> np.ndarray:
    """The array in the file; refused unless it has this type (None: bytes of any width) and shape."""
    path = root / promised.name
    try:
        array = mapped(path)
    except Exception as reason:  # of numpy, about a header that may say anything
        raise UserError(f"{path} is no array of numbers: {reason}") from None
    right_type = array.dtype.kind == "S" if dtype is None else array.dtype == dtype
    if not right_type or array.shape != shape or not array.flags.c_contiguous:
        expected = f"{'bytes' if dtype is None else dtype} {shape}"
        raise UserError(f"{path} holds {array.dtype} {array.shape}, not {expected}")
    return array


def _check_order(root: Path, split: PackedSplitRecord) -> None:
    follows = 0
    for file in split.files:
        if file.first != follows:
            raise UserError(f"{root / MANIFEST}: {file.name} begins with example {file.first}, not {follows}")
        follows += file.examples
    if follows != split.examples:
        raise UserError(f"{root / MANIFEST}: the files hold {follows:,} examples, not {split.examples:,}")


def _check_index(root: Path, split: PackedSplitRecord) -> None:
    """Every image lies inside the file that holds its example."""
    if split.index is None:
        raise UserError(f"{root / MANIFEST} names no index")
    index = _array_of(root, split.index, np.dtype(np.int64), (split.examples, 3))
    numbers, offsets, lengths = index.T
    expected = np.repeat(np.arange(len(split.files)), [file.examples for file in split.files])
    room = np.array([file.bytes for file in split.files])[expected]
    wrong = (numbers != expected) | (offsets < 0) | (lengths < 0) | (lengths > room) | (offsets > room - lengths)
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise UserError(f"{root / split.index.name} points outside the images' files: example {bad}")
