"""One file of a pack, written by a worker process: read, decoded, resized, under another name until it is whole.

Pixels: the image in RGB, its central square (EXIF orientation is ignored, as ImageNet's convention is), resized to
size × size, bilinear and antialiased, from all its pixels: no decoder's short cut. Jpeg: the bytes as they are, after a
look whether they decode.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from largebatch.data.decode import rgb, why_unreadable
from largebatch.data.packs.making import PackingStopped
from largebatch.data.packs.progress import MadePart
from largebatch.data.processes import begin_worker
from largebatch.data.sources import ImageSource
from largebatch.data.unreadable import is_machine_failure
from largebatch.errors import UserError
from largebatch.records.files import sha256_of, whole


class PlannedFile(NamedTuple):
    """The file that holds images ``first`` to ``last`` (excluded) of a split's source."""

    split: str
    name: str
    first: int
    last: int


class WrittenFile(MadePart):
    split: str
    examples: int  # none: then there is no file
    bytes: int
    sha256: str
    enlarged: int
    smallest: tuple[int, int, int] | None  # image, width, height
    left_out: dict[int, str]
    lengths: list[int]  # jpeg: of each image

    def is_whole(self, folder: Path) -> bool:
        return not self.examples or (folder / self.name).stat().st_size == self.bytes


@dataclass(frozen=True)
class Work:
    """What every job of a pack needs. ``at_most`` images of a split may be left out."""

    sources: Mapping[str, ImageSource]
    dest: Path
    size: int | None  # None: jpeg
    at_most: Mapping[str, int]
    counter: Any  # images made, by all workers
    stop: Any  # set when the others are to end


_work: Work


def begin(work: Work) -> None:
    """In a worker, before its first job."""
    global _work
    _work = work
    warnings.simplefilter("ignore")  # Pillow's, about tags and palettes
    begin_worker()


def write(job: PlannedFile) -> WrittenFile:
    """Make the file; what was left of an earlier attempt is written over."""
    path = _work.dest / job.name
    left_out: dict[int, str] = {}
    lengths: list[int] = []
    shorts: list[tuple[int, int, int, int]] = []  # short side, image, width, height
    with whole(path, on_disk=True) as unfinished, open(unfinished, "wb") as file:
        if _work.size is not None:
            file.write(npy_header(0, _work.size))
        for index in range(job.first, job.last):
            if _work.stop.is_set():
                raise PackingStopped
            source = _work.sources[job.split]
            try:
                packed, width, height = _kept(source.read(index))
            except Exception as reason:  # a broken image can raise nearly anything
                refuse_machine_failure(source.name(index), reason)
                _leave_out(job.split, index, reason, left_out)
            else:
                file.write(packed)
                lengths.append(len(packed))
                shorts.append((min(width, height), index, width, height))
            with _work.counter.get_lock():
                _work.counter.value += 1
        if _work.size is not None:
            file.seek(0)
            file.write(npy_header(len(lengths), _work.size))  # of the same length, whatever the number
    if not lengths:
        path.unlink()
    size = _work.size
    return WrittenFile(
        split=job.split,
        name=job.name,
        examples=len(lengths),
        bytes=path.stat().st_size if lengths else 0,
        sha256=sha256_of(path) if lengths else "",
        enlarged=sum(short < size for short, *_ in shorts) if size is not None else 0,
        smallest=min(shorts)[1:] if shorts else None,
        left_out=left_out,
        lengths=lengths if size is None else [],
    )


def npy_header(images: int, size: int) -> bytes:
    """numpy leaves room for the first number to grow, so its length depends on ``size`` alone."""
    header = io.BytesIO()
    shape = (images, size, size, 3)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def refuse_machine_failure(name: str, failure: Exception) -> None:
    """Raises where the machine failed, which says nothing of the image and leaves none out."""
    if isinstance(failure, MemoryError):
        raise failure
    if is_machine_failure(failure):
        raise UserError(f"{name} cannot be read: {why_unreadable(failure)}") from None


def _kept(encoded: bytes) -> tuple[bytes, int, int]:
    """What the pack keeps of the image, its width and its height."""
    with Image.open(io.BytesIO(encoded)) as file:
        width, height = file.size
        if _work.size is None:
            file.draft("RGB", (1, 1))  # an eighth of a JPEG: all bytes are read, little is computed
            rgb(file)
            return encoded, width, height
        return square(file, _work.size).tobytes(), width, height


def square(file: Image.Image, size: int) -> np.ndarray:
    """The central square at whole pixels, in RGB, resized; (size, size, 3)."""
    width, height = file.size
    short = min(width, height)
    left, upper = (width - short) // 2, (height - short) // 2
    box = (left, upper, left + short, upper + short)
    return np.asarray(rgb(file).resize((size, size), Image.Resampling.BILINEAR, box=box))


def _leave_out(split: str, index: int, reason: Exception, left_out: dict[int, str]) -> None:
    """Refused where this file alone has more than may be left out; the sum over files is the packing process's."""
    left_out[index] = why_unreadable(reason)
    at_most = _work.at_most[split]
    if len(left_out) > at_most:
        raise UserError(refusal(_work.sources[split].name(index), left_out[index], split, at_most))


def refusal(name: str, reason: str, split: str, at_most: int) -> str:
    sentence = f"{name} cannot be read as an image: {reason}"
    if split != "train":
        return f"{sentence}; of a test set all images are needed"
    if not at_most:
        return f"{sentence}; --skip-unreadable 0.001 would leave out one in a thousand"
    return f"{sentence}; --skip-unreadable allows {at_most}, and there are more"
