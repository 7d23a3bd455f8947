"""What a pack is made from: where images, labels and names come from, and whether the images suit the size."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from largebatch.data.contents import FOLDER, PARQUET, SHARDS
from largebatch.data.decode import why_unreadable
from largebatch.data.folder import Files, scan
from largebatch.data.other_forms import refuse_unpackable
from largebatch.data.packs.parquet import is_parquet, open_parquet
from largebatch.data.packs.writing import refuse_machine_failure
from largebatch.data.questions import same_classes, whole_set
from largebatch.data.shards.source import files_of, is_shards, open_shards
from largebatch.data.sources import ImageSource
from largebatch.errors import UserError
from largebatch.recipes import paths

LOOKED_AT = 1000
_RUN = 50  # images of an archive that are looked at together: it is read, or fetched, in long pieces


@dataclass(frozen=True)
class Origins:
    given: str  # as the user wrote it
    kind: str
    splits: Mapping[str, ImageSource]  # train and, where there is one, test
    names: Mapping[str, np.ndarray]  # bytes, relative to the folder given

    @property
    def classes(self) -> tuple[str, ...]:
        return self.splits["train"].classes

    @property
    def fingerprint(self) -> str:
        """Of classes, names and labels; where the folder lies does not matter."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for split, source in self.splits.items():
            digest.update(f"{split} {len(source)}\n".encode())
            digest.update(b"\n".join(self.names[split].tolist()))
            digest.update(source.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def origins(given: str, val: str | None = None) -> Origins:
    """The data set at ``given``, whatever it is; ``val`` names the folder or the split of its test images."""
    root = Path(paths.expanded("SRC", given))
    splits: Mapping[str, ImageSource]
    if is_shards(given):
        if val is not None:
            raise UserError(f"--val {val} is for image folders and parquet; test shards are called val-... or test-...")
        whole_set(given, files_of(given))
        kind, splits = SHARDS, open_shards(given, splits=None)
    elif not root.is_dir():
        raise UserError(f"{given} is no folder")
    elif is_parquet(root):
        kind, splits = PARQUET, open_parquet(root, val)
    else:
        refuse_unpackable(root)
        if not (root / "train").is_dir():
            raise UserError(
                f"{given} holds no data set: train/<class>/*.jpg, train-*.tar and train-*.parquet are looked for there"
            )
        kind, splits = FOLDER, _folders(root, val)
    same_classes(given, splits)
    prefixes = f"{root}/", f"{given.rstrip('/')}/"
    return Origins(given, kind, splits, {split: _names(source, prefixes) for split, source in splits.items()})


def _folders(root: Path, val: str | None) -> dict[str, Files]:
    found = {"train": scan(root / "train")}
    for name in ("val", "test") if val is None else (val,):
        if val is not None or (root / name).is_dir():
            return found | {"test": scan(root / name)}
    return found


def _names(source: ImageSource, prefixes: tuple[str, ...]) -> np.ndarray:
    names = []
    for index in range(len(source)):
        name = source.name(index)
        prefix = next(filter(name.startswith, prefixes), "")
        names.append(os.fsencode(name[len(prefix) :]))
    return np.array(names, np.bytes_)


def mean_bytes(source: ImageSource, size: int | None, skip_unreadable: bool) -> float:
    """Of up to 1,000 encoded images spread over ``source``, refused where most are shorter than ``size``."""
    lengths, shorts = [], []
    first: tuple[str, int, int] | None = None  # of those that are too small
    for index in _spread(len(source), 1 if isinstance(source, Files) else _RUN):
        name = source.name(index)
        try:
            encoded = source.read(index)
            with Image.open(io.BytesIO(encoded)) as file:
                width, height = file.size
        except Exception as reason:  # a broken image can raise nearly anything
            refuse_machine_failure(name, reason)
            if skip_unreadable:
                continue
            raise UserError(f"{name} cannot be read as an image: {why_unreadable(reason)}") from None
        lengths.append(len(encoded))
        shorts.append(min(width, height))
        if size is not None and min(width, height) < size:
            first = first or (name, width, height)
    if not lengths:
        raise UserError(f"none of the {min(len(source), LOOKED_AT):,} training images looked at can be read")
    small = sum(short < size for short in shorts) if size is not None else 0
    if first is not None and small > len(shorts) / 2:
        name, width, height = first
        raise UserError(
            f"--size {size} is larger than the short side of {small} of {len(shorts)} images looked at, as of {name}, "
            f"which is {width} × {height}; half of them have {sorted(shorts)[len(shorts) // 2]} or more"
        )
    return float(np.mean(lengths))


def _spread(count: int, run: int) -> Iterator[int]:
    """Up to 1,000 of ``count`` indices, ``run`` together, from the first to the last, ascending."""
    if count <= LOOKED_AT:
        yield from range(count)
        return
    for start in np.linspace(0, count - run, LOOKED_AT // run).astype(int).tolist():
        yield from range(start, start + run)
