"""Folders of images: train/<class>/*.jpg and val/<class>/*.jpg, classes and names sorted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from largebatch.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Files:
    """The images of a split in order: class by class, names sorted within a class. A Source."""

    folder: str
    classes: tuple[str, ...]
    names: np.ndarray  # bytes, relative to the class folder; one array crosses to a worker in one piece
    labels: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.classes[self.labels[index]], os.fsdecode(self.names[index]))

    def read(self, index: int) -> bytes:
        with open(self.name(index), "rb") as file:
            return file.read()

    def part(self, chosen: np.ndarray) -> Files:
        return Files(self.folder, self.classes, self.names[chosen], self.labels[chosen])


def scan(folder: Path, classes_expected: int | None = None) -> Files:
    """The images of the class folders of ``folder``, classes sorted; hidden folders are passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: an image folder needs train/<class>/ and val/<class>/")
    try:
        classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as reason:
        raise UserError(f"{folder} cannot be listed: {reason.strerror}") from None
    if not classes:
        raise UserError(f"{folder} has no class folders; put images into {folder}/<class>/")
    if classes_expected is not None and len(classes) != classes_expected:
        raise UserError(f"{folder} has {len(classes)} class folders; imagenet needs {classes_expected}")
    names: list[bytes] = []
    counts = []
    for label in classes:
        found = _images_below(folder / label)
        if not found:
            raise UserError(f"{folder / label} holds no images ({', '.join(SUFFIXES)})")
        names += found
        counts.append(len(found))
    labels = np.repeat(np.arange(len(classes)), counts)
    return Files(str(folder), tuple(classes), np.array(names, dtype=np.bytes_), labels)


def _images_below(folder: Path) -> list[bytes]:
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        inside = os.path.relpath(place, folder)
        found += [os.path.normpath(os.path.join(inside, file)) for file in files if file.lower().endswith(SUFFIXES)]
    return sorted(os.fsencode(name) for name in found)
