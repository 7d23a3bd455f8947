"""Folders of images: train/<class>/*.jpg and val/<class>/*.jpg, classes and names sorted.

Links are followed, and every file counts once: what is there by itself goes before what a link leads to, and a link
back to a folder that holds it is passed over. Two names of one file by hard links are two files.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from largebatch.data.contents import FOLDER, Listing
from largebatch.data.passed_over import AGAIN, HIDDEN, LOOP, SPECIAL, PassedOver, is_hidden
from largebatch.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Files:
    """The images of a split in order: class by class, names sorted within a class. A Source."""

    folder: str
    classes: tuple[str, ...]
    names: np.ndarray  # bytes, relative to the class folder; one array crosses to a worker in one piece
    labels: np.ndarray  # int64
    passed_over: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.classes[self.labels[index]], os.fsdecode(self.names[index]))

    def read(self, index: int) -> bytes:
        return read_regular(self.name(index))

    def listing(self) -> Listing:
        sizes = np.fromiter((_size(self.name(index)) for index in range(len(self))), np.int64, len(self))
        return Listing(self.classes, self.labels, FOLDER, self.names, sizes)

    def part(self, chosen: np.ndarray) -> Files:
        return Files(self.folder, self.classes, self.names[chosen], self.labels[chosen], self.passed_over)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a broken link
        return -1


def read_regular(path: str) -> bytes:
    """The bytes of a regular file. Raises OSError, for a pipe or a device too, which might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"it is a {SPECIAL}")
        return file.read()


def scan(folder: Path, classes_expected: int | None = None) -> Files:
    """The images of the class folders of ``folder``, classes sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: an image folder needs train/<class>/ and val/<class>/")
    walk = _Walk(str(folder))
    classes = walk.class_folders()
    if not classes:
        raise UserError(f"{folder} has no class folders; put images into {folder}/<class>/")
    if classes_expected is not None and len(classes) != classes_expected:
        raise UserError(f"{folder} has {len(classes)} class folders; imagenet needs {classes_expected}")
    found = walk.images(classes)
    for label in classes:
        if not found[label]:
            raise UserError(f"{folder / label} holds no images ({', '.join(SUFFIXES)})")
    names = [name for label in classes for name in found[label]]
    labels = np.repeat(np.arange(len(classes)), [len(found[label]) for label in classes])
    return Files(str(folder), tuple(classes), np.array(names, dtype=np.bytes_), labels, str(walk.passed_over))


class _Walk:
    """Through a split's folder, and through what its links lead to."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.passed_over = PassedOver()
        self._above = {_identity(os.stat(folder)) for folder in _upwards(top)}
        self._seen: set[Identity] = set()  # folders; files, too, once there are links to any
        self._links: deque[tuple[str, str]] = deque()  # class and place, to be followed when all else is known
        self._found: dict[str, list[str]] = {}

    def class_folders(self) -> list[str]:
        """Sorted; one that is a link to another, or back up, is none."""
        entries = [entry for entry in self._entries(self.top) if entry.is_dir()]
        own = [entry.name for entry in entries if not entry.is_symlink() and self._is_new(entry.path)]
        return sorted(own + [entry.name for entry in entries if entry.is_symlink() and self._is_new(entry.path)])

    def images(self, classes: list[str]) -> dict[str, list[bytes]]:
        """Of each class, sorted, relative to its folder."""
        self._found = {label: [] for label in classes}
        for label in classes:
            self._look_into(label, os.path.join(self.top, label))
        if self._links:
            places = (os.path.join(self.top, label, name) for label in classes for name in self._found[label])
            self._seen |= {_identity(os.stat(place)) for place in places}
        while self._links:
            self._follow(*self._links.popleft())
        return {label: sorted(map(os.fsencode, names)) for label, names in self._found.items()}

    def _look_into(self, label: str, place: str) -> None:
        """The images and links of a folder and of those in it."""
        folders = deque([place])
        while folders:
            for entry in self._entries(folders.popleft()):
                is_image = entry.name.lower().endswith(SUFFIXES)
                if entry.is_symlink():
                    if is_image or entry.is_dir():
                        self._links.append((label, entry.path))
                elif entry.is_dir():
                    if self._is_new(entry.path):
                        folders.append(entry.path)
                elif is_image and entry.is_file():
                    self._take(label, entry.path)
                elif is_image:
                    self._pass_over(SPECIAL, entry.path)

    def _follow(self, label: str, link: str) -> None:
        try:
            new = self._is_new(link)
        except OSError:
            self._take(label, link)  # a broken one is an image that cannot be read
            return
        if new and os.path.isdir(link):
            self._look_into(label, link)
        elif new:
            self._take(label, link)

    def _is_new(self, place: str) -> bool:
        """Whether ``place``, a folder or a link, leads to what is not known yet. Raises OSError for a broken link."""
        status = os.stat(place)
        identity, kind = _identity(status), None
        if stat.S_ISDIR(status.st_mode) and (identity in self._above or _leads_up(place, identity)):
            kind = LOOP
        elif identity in self._seen:
            kind = AGAIN
        elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            kind = SPECIAL
        if kind is not None:
            self._pass_over(kind, place)
        self._seen.add(identity)
        return kind is None

    def _entries(self, place: str) -> Iterator[os.DirEntry[str]]:
        """Sorted: which of two links to a file is the first depends on no file system."""
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as reason:
            raise UserError(f"{place} cannot be listed: {reason.strerror}") from None
        for entry in entries:
            if is_hidden(entry.name):
                self._pass_over(HIDDEN, entry.path)
            else:
                yield entry

    def _take(self, label: str, place: str) -> None:
        self._found[label].append(place[len(os.path.join(self.top, label, "")) :])

    def _pass_over(self, kind: str, place: str) -> None:
        self.passed_over.add(kind, place[len(os.path.join(self.top, "")) :])


def _leads_up(place: str, identity: Identity) -> bool:
    """Whether ``place`` is a link to a folder that it lies in."""
    return os.path.islink(place) and any(
        _identity(os.stat(folder)) == identity for folder in _upwards(os.path.dirname(place))
    )


def _upwards(place: str) -> list[Path]:
    """The folder and those above it."""
    whole = Path(place).resolve()
    return [whole, *whole.parents]


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
