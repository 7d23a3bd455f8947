"""Hugging Face's parquet folders: data/train-00000-of-00003.parquet, ...; columns image {bytes, path} and label.

A parquet file is read a row group at a time, thousands of images: good for going through it once in order, which
``data pack`` does, and useless for random access. So it is a source for packing alone.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from largebatch.data.questions import whole_set
from largebatch.errors import UserError

SPLITS = {"train": ("train",), "test": ("validation", "val", "test")}  # what Hugging Face calls them, best first
MOST_CLASSES = 1_000_000  # a larger number is an identifier, and no output of a model
LONGEST_NAME = 200
COLUMNS = "columns image (bytes, path) and label"


class Parquet:
    """The images of one split, in the order of its files. Keeps the row group that was read last."""

    def __init__(self, files: list[_File], classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.labels = np.concatenate([file.labels for file in files])
        self._names = np.concatenate([file.names for file in files])
        self._groups = [(file.path, group) for file in files for group in range(len(file.rows))]
        rows = np.concatenate([file.rows for file in files])
        self._first = np.cumsum(rows) - rows  # the image that each group begins with
        self._chosen = np.arange(len(self.labels))
        self._held: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self._names[index]))

    def read(self, index: int) -> bytes:
        """The encoded image, as it was written. Raises OSError."""
        place = self._chosen[index]
        group = int(np.searchsorted(self._first, place, side="right")) - 1
        if self._held is None or self._held[0] != group:
            self._held = None  # two at once would be twice the memory
            self._held = group, _images(*self._groups[group])
        image = self._held[1][int(place - self._first[group])].as_py()
        if not image or not image["bytes"]:
            raise OSError("the column image.bytes is empty here; images beside a parquet file are not followed")
        return image["bytes"]

    def part(self, chosen: np.ndarray) -> Parquet:
        part = object.__new__(Parquet)
        part.__dict__ = self.__dict__ | {
            "labels": self.labels[chosen],
            "_names": self._names[chosen],
            "_chosen": self._chosen[chosen],
            "_held": None,
        }
        return part


def is_parquet(root: Path) -> bool:
    return any(_files(root, "train"))


def open_parquet(root: Path, val: str | None = None) -> dict[str, Parquet]:
    """train and, where there is one, test: what ``val`` names, else validation, val or test."""
    pyarrow()
    names = SPLITS["test"] if val is None else (val,)
    found = {"train": _files(root, "train"), "test": next(filter(None, (_files(root, name) for name in names)), [])}
    if val is not None and not found["test"]:
        raise UserError(f"--val {val}: {root} has no {val}-*.parquet")
    opened = {split: [_opened(path) for path in paths] for split, paths in found.items() if paths}
    classes = _classes_of([file for files in opened.values() for file in files])
    for files in opened.values():
        if not any(len(file.labels) for file in files):
            raise UserError(f"{files[0].path} holds no images")
    return {split: Parquet(files, classes) for split, files in opened.items()}


def pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet, .arrow and .zst files need pyarrow: pip install 'largebatch[parquet]'") from None
    return pyarrow


class _File(NamedTuple):
    """What is known of a file before its images are read."""

    path: str
    rows: np.ndarray  # of each row group
    labels: np.ndarray
    names: np.ndarray
    classes: tuple[str, ...] | None


def _files(root: Path, split: str) -> list[Path]:
    """Of the split, in order; refused where one of them is missing."""
    pattern = re.compile(rf"{re.escape(split)}(-.*)?\.parquet")
    for folder in (root / "data", root):
        if not folder.is_dir():
            continue
        files = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file())
        whole_set(folder, (path.name for path in files))
        if files:
            return files
    return []


def _opened(path: Path) -> _File:
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(path, schema, arrow)
            paths = "path" in [field.name for field in schema.field("image").type]
            table = file.read(columns=["label", *(["image.path"] if paths else [])])
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            classes = _classes(path, schema)
    except (arrow.ArrowException, OSError) as reason:
        raise UserError(f"{path} cannot be read as parquet: {_first_line(reason)}") from None
    if table["label"].null_count:
        raise UserError(f"{path} has images without a label")
    labels = table["label"].to_numpy().astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(f"{path} holds label {labels.min()}: a split without labels? Choose another by --val")
    written = [(image or {}).get("path") for image in table["image"].to_pylist()] if paths else [None] * len(labels)
    names = [f"{path}: {(name or f'row {row}')[:LONGEST_NAME]}" for row, name in enumerate(written)]
    return _File(
        str(path), np.array(rows, np.int64), labels, np.array([os.fsencode(n) for n in names], np.bytes_), classes
    )


def _check_columns(path: Path, schema: Any, arrow: Any) -> None:
    found = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{path} has {found or 'no columns'}; data pack reads {COLUMNS}")
    image, label = schema.field("image").type, schema.field("label").type
    has_bytes = arrow.types.is_struct(image) and "bytes" in [field.name for field in image]
    if not has_bytes or not arrow.types.is_integer(label):
        raise UserError(f"{path} has {found}; data pack reads {COLUMNS}")


def _classes(path: Path, schema: Any) -> tuple[str, ...] | None:
    """As the ``huggingface`` metadata names them."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(written)["info"]["features"]["label"]["names"] if written else None
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _classes_of(files: list[_File]) -> tuple[str, ...]:
    """What all files call them; numbers where they do not say."""
    most = max((int(file.labels.max()) for file in files if len(file.labels)), default=-1)
    if most >= MOST_CLASSES:
        raise UserError(f"label {most:,} is no class of images; data pack takes labels below {MOST_CLASSES:,}")
    classes = files[0].classes or tuple(map(str, range(most + 1)))
    for file in files:
        if file.classes not in (None, classes):
            raise UserError(f"{file.path} and {files[0].path} name different classes")
        if len(file.labels) and file.labels.max() >= len(classes):
            raise UserError(f"{file.path} holds label {file.labels.max()} and names {len(classes)} classes")
    return classes


def _images(path: str, group: int) -> Any:
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            return file.read_row_group(group, columns=["image.bytes"])["image"]
    except arrow.ArrowException as reason:
        raise OSError(f"{path}, row group {group}: {_first_line(reason)}") from None


def _first_line(reason: Exception) -> str:
    return (str(reason) or type(reason).__name__).split("\n")[0]
