"""Where data sets lie on this machine.

Looked through in this order: the data folder (``$LARGEBATCH_DATA``, else the cache folder), the cache
folder (``$XDG_CACHE_HOME/largebatch`` or ``~/.cache/largebatch``), and the folder of a system package.
A ``root`` given by name is the only place that is looked at.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from largebatch.data import formats, sets
from largebatch.data.published import ByHand, NoFiles, PublishedFiles
from largebatch.errors import UserError
from largebatch.recipes import paths


class LocalCopy(NamedTuple):
    path: Path  # the folder of the files, or their archive
    form: formats.Form | None  # None: an image folder

    def arrays(self, part: str) -> formats.Arrays:
        """Images uint8 (N, H, W, C) and labels of ``train`` or ``test``."""
        assert self.form is not None
        files = [self.path] if self.path.is_file() else sorted(self.path.iterdir())
        return _arrays(self.path, self.form, part, max(file.stat().st_mtime_ns for file in files))


@functools.lru_cache(maxsize=4)  # a comparison builds the same set for each of its runs
def _arrays(path: Path, form: formats.Form, part: str, newest: int) -> formats.Arrays:
    read = formats.from_archive(path, form) if path.is_file() else formats.from_folder(path)
    return form.arrays(read, getattr(form, part))


def cache_folder() -> Path:
    base = paths.named_by("XDG_CACHE_HOME")
    return (base or paths.home("LARGEBATCH_DATA") / ".cache") / "largebatch"


def data_folder() -> Path:
    return paths.named_by("LARGEBATCH_DATA") or cache_folder()


def usual_folders() -> list[Path]:
    """Where data sets are kept: the data folder and, where there is a home, the cache folder."""
    try:
        return [data_folder(), cache_folder()]
    except UserError:
        return [data_folder()]


def bases(name: str, root: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that are searched for data set ``name``."""
    if root is not None:
        return [Path(paths.expanded("data.root", os.fspath(root)))]
    origin = sets.known(name).origin
    system = [origin.package.folder] if isinstance(origin, PublishedFiles) and origin.package else []
    return list(dict.fromkeys([*usual_folders(), *system]))


def find(name: str, root: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder (or archive) that holds a whole copy of data set ``name``, if there is one."""
    found = search(name, root)
    return found.path if found else None


def locate(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    return located(name, root).path


def located(name: str, root: str | os.PathLike[str] | None = None) -> LocalCopy:
    """Like :func:`search`, or a ``UserError`` that says where was looked and which files are missing."""
    found = search(name, root)
    if found:
        return found
    looked = " or ".join(str(base) for base in bases(name, root))
    origin = sets.known(name).origin
    if not isinstance(origin, PublishedFiles):
        raise UserError(
            f"data set {name} not found in {looked}; data.root should be a folder with "
            f"train/<class>/*.jpg and val/<class>/*.jpg, a pack, or WebDataset shards"
        )
    for folder, form in _folders(name, origin, root):
        missing = form.missing(folder)
        if len(missing) < len(form.files):
            raise UserError(
                f"data set {name} in {folder} is not complete: {', '.join(missing)} missing; "
                f"run `largebatch data fetch {name}`"
            )
    for base, pickled in _pickled(name, origin, root):
        raise UserError(
            f"data set {name} in {pickled} is the Python version, which is pickled and not read; run `largebatch data "
            f"fetch {name}`, or put {' '.join(origin.md5)} from {origin.page} into {base}"
        )
    raise UserError(f"data set {name} not found in {looked}; run `largebatch data fetch {name}`")


def _pickled(name: str, origin: PublishedFiles, root: str | os.PathLike[str] | None) -> Iterator[tuple[Path, Path]]:
    """Copies in a version that is not read, each after the folder that was searched."""
    for base in bases(name, root):
        homes = (base, *(base / alias for alias in origin.folders))
        for path in (base, *(home / pickled for home in homes for pickled in origin.pickled)):
            if path.name in origin.pickled and os.path.exists(path):
                yield base, path


def search(name: str, root: str | os.PathLike[str] | None = None) -> LocalCopy | None:
    match sets.known(name).origin:
        case NoFiles():
            raise UserError(f"data set {name!r} has no files to look for")
        case ByHand() as origin:
            return _image_folder(name, origin, root)
        case PublishedFiles() as origin:
            return _copy(name, origin, root)


def _copy(name: str, origin: PublishedFiles, root: str | os.PathLike[str] | None) -> LocalCopy | None:
    for folder, form in _folders(name, origin, root):
        if not form.missing(folder):
            return LocalCopy(folder, form)
        if form.archive and form.folder == folder.name and os.path.isfile(folder.parent / form.archive):
            return LocalCopy(folder.parent / form.archive, form)
    return None


def _image_folder(name: str, origin: ByHand, root: str | os.PathLike[str] | None) -> LocalCopy | None:
    if root is None and not origin.folders:
        return None
    for base in bases(name, root):
        for folder in (base, *(base / alias for alias in origin.folders)):
            if _holds_images(folder) and (root is not None or folder != base):
                return LocalCopy(folder, None)
    return None


def _holds_images(folder: Path) -> bool:
    """An image folder, a pack or shards: :mod:`largebatch.data.images` looks closer."""
    if os.path.isdir(folder / "train") or any(os.path.isfile(folder / name) for name in ("pack.json", "packing.jsonl")):
        return True
    return any(name.endswith(".tar") for name in os.listdir(folder)) if os.path.isdir(folder) else False


def _folders(
    name: str, origin: PublishedFiles, root: str | os.PathLike[str] | None
) -> Iterator[tuple[Path, formats.Form]]:
    """Every folder in which each form of ``name`` may lie, best place first."""
    for base in bases(name, root):
        homes = [base / alias for alias in origin.folders]
        for form in origin.forms:
            if form.folder:
                yield from ((home / form.folder, form) for home in (base, *homes))
            itself = root is not None or (origin.package is not None and base == origin.package.folder)
            for home in (base, *homes) if itself else homes:
                yield from ((home / "raw", form), (home, form))
