"""What is asked of every set of images before it is trained on or packed, whatever its form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from largebatch.errors import UserError

_NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>[0-9]+)(?:-of-(?P<total>[0-9]+).*)?(?P<ending>\.tar|\.parquet)")


class Labelled(Protocol):
    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray: ...


def same_classes(where: object, splits: Mapping[str, Labelled]) -> None:
    """Refused unless every class has images to train on and, where there is a ``test`` split, to test on."""
    train, test = splits["train"], splits.get("test")
    if test is not None and test.classes != train.classes:
        odd = sorted({*train.classes} ^ {*test.classes}) or [train.classes[0]]
        raise UserError(f"{where}: training and test images differ in class {odd[0]!r}; both need the same classes")
    for split, images in splits.items():
        lacking = np.flatnonzero(np.bincount(images.labels, minlength=len(images.classes)) == 0)
        if not len(lacking):
            continue
        first = images.classes[lacking[0]]
        told = f"no {split} image has class {first!r}"
        if len(lacking) > 1:
            told = f"{len(lacking):,} of {len(images.classes):,} classes have no {split} image, such as {first!r}"
        rule = "both need the same classes"
        if first.isdecimal() and split == "train":
            low, high = images.labels.min(), images.labels.max()
            rule = f"the labels are {low} to {high}, and classes are numbered from 0 and none left out"
        raise UserError(f"{where}: {told}; {rule}")


def whole_set(where: object, names: Iterable[str]) -> None:
    """Refused where a file of a numbered set is missing: between ``train-0000.tar`` and the last, or of ``-of-00003``.

    ``names`` are those of all splits, which may share one numbering.
    """
    sets: dict[tuple[str, str, int, int], set[int]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            total = match["total"]
            after = f"-of-{total}{match['ending']}" if total else match["ending"]
            alike = match["before"], after, len(match["number"]), int(total or 0)
            sets.setdefault(alike, set()).add(int(match["number"]))
    for (before, after, digits, total), there in sets.items():
        begin = min(*there, 1) if not total else int(0 not in there and total in there)
        count = total or (max(there) + 1 - begin if len(there) > 1 else 0)
        if missing := sorted({*range(begin, begin + count)} - there):
            others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            first = f"{str(where).rstrip('/')}/{before}{missing[0]:0{digits}d}{after}"
            raise UserError(f"{first} is missing{others}; there are {len(there):,} of {count:,} numbered files")
