"""What ``bench data`` measures on: one sample of photographs, and a way to get batches of it.

Every way sees the same photographs, as many of them and in batches of the same size, from a folder train/<class>/.
A sample that is smaller than asked for is repeated, so that its pixels do not stay in the processor's cache.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from largebatch.errors import UserError

SUFFIXES = (".jpg", ".jpeg")
BATCH = 128


@dataclass(frozen=True)
class PhotoFolder:
    folder: Path  # train/<class>/*.jpg; what is made of them lies beside it
    source: Path
    distinct: list[Path]  # the photographs, each once
    images: int  # in train
    size: int  # of the side of a training image
    megabytes: float  # of all files in train

    @property
    def batch(self) -> int:
        return min(BATCH, self.images)

    def encoded(self) -> list[bytes]:
        return [file.read_bytes() for file in self.distinct]


@dataclass(frozen=True)
class Way:
    """One way from files to batches. ``batches()`` opens it: an endless iterator over the number of images in each."""

    name: str
    kind: str  # decoding, ours, peer
    gives: str
    how: str  # a line below the table
    batches: Callable[[], Iterator[int]]
    wanted: float | None = None  # times the images per second of one core of ``over``, at least
    over: str = "timm"


class Candidate(NamedTuple):
    """A way that may be impossible here: ``opened`` raises where a package, a device or a file is missing."""

    name: str
    opened: Callable[[], Way]


def sample_of(source: Path, into: Path, images: int, size: int) -> PhotoFolder:
    """``images`` photographs of ``source`` in ``into``/sample; of a larger source evenly spread ones.

    One that is taken again is a hard link to its first copy: those are files of their own to who reads a folder.
    """
    files = _photographs(source)
    if not files:
        raise UserError(f"{source} holds no images ({', '.join(SUFFIXES)}) in train/<class>/ or directly")
    spread = len(files) // images if len(files) > images else 1
    chosen = [files[(number * spread) % len(files)] for number in range(images)]
    copies: dict[Path, Path] = {}
    for number, (label, file) in enumerate(chosen):
        name = into / "sample" / "train" / label / f"{number:06d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        if file in copies:
            os.link(copies[file], name)
        else:
            copies[file] = Path(shutil.copyfile(file, name))
    sizes = [file.stat().st_size for _, file in chosen]
    return PhotoFolder(into / "sample", source, list(copies), images, size, sum(sizes) / 1e6)


def _photographs(source: Path) -> list[tuple[str, Path]]:
    """(class, file) in order: of train/<class>/, or of a plain folder, whose files are one class."""
    if not source.is_dir():
        raise UserError(f"{source} is not a folder of images")
    if (source / "train").is_dir():
        found = [
            (label.name, Path(place) / file)
            for label in sorted((source / "train").iterdir())
            if label.is_dir()
            for place, _, files in os.walk(label, followlinks=True)
            for file in sorted(files)
        ]
    else:
        found = [("photographs", file) for file in sorted(source.iterdir())]
    return [(label, file) for label, file in found if file.suffix.lower() in SUFFIXES]


def decoders(sample: PhotoFolder) -> list[Candidate]:
    """Decoding alone, from memory and whole."""
    return [
        Candidate("simplejpeg", lambda: _decoding(sample, "simplejpeg", "", _simplejpeg())),
        Candidate("Pillow", lambda: _decoding(sample, "Pillow", "", _pillow())),
        Candidate("torchvision.io", lambda: _decoding(sample, "torchvision.io", "decode_jpeg, ", _torchvision())),
    ]


def _decoding(sample: PhotoFolder, name: str, how: str, decode: Callable[[bytes], Any]) -> Way:
    encoded = sample.encoded()

    def batches() -> Iterator[int]:
        place = 0
        while True:
            for _ in range(sample.batch):
                decode(encoded[place])
                place = (place + 1) % len(encoded)
            yield sample.batch

    return Way(name, "decoding", "uint8", f"{how}whole images from memory", batches)


def _simplejpeg() -> Callable[[bytes], Any]:
    import simplejpeg

    return lambda encoded: simplejpeg.decode_jpeg(encoded, "RGB")


def _pillow() -> Callable[[bytes], Any]:
    from PIL import Image

    return lambda encoded: np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _torchvision() -> Callable[[bytes], Any]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda encoded: decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)
