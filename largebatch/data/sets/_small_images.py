"""Images that live on the device as uint8 and are augmented there."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from largebatch.data import places
from largebatch.data.published import PublishedFiles
from largebatch.data.sets import Asked, DataSet, evaluated_on
from largebatch.data.statistics import Statistics
from largebatch.errors import UserError

if TYPE_CHECKING:
    from largebatch.data.dataset import Split, Splits
    from largebatch.data.formats import Arrays


class SmallImages(DataSet):
    """``statistics`` are those of the training images in [0, 1], as commonly published."""

    title: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    image: ClassVar[tuple[int, int, int]]  # C, H, W
    statistics: ClassVar[Statistics]
    standard: ClassVar[str] = "none"  # the augmentation that "auto" means
    several: ClassVar[bool] = False  # whether a label is a row of 0 and 1, and not one of the classes
    takes = frozenset({"augment", "window", "policy", "image_size"})

    @abc.abstractmethod
    def load(self, asked: Asked) -> tuple[Callable[[str], Arrays], str]:
        """What reads a part, ``train`` or ``test``, and where it comes from, for the log."""

    def classes_of(self, asked: Asked) -> tuple[str, ...]:
        return self.classes

    def statistics_of(self, asked: Asked) -> Statistics:
        return self.statistics

    def outputs(self, asked: Asked) -> int:
        return len(self.classes_of(asked))

    def shape(self, asked: Asked) -> tuple[int, ...]:
        return self.image

    def resident_bytes(self, asked: Asked) -> int:
        label = 4 * self.outputs(asked) if self.several else 8
        return math.prod(self.shape(asked)) + label

    def augmentation(self, asked: Asked) -> str:
        from largebatch.data import augment

        found = augment.resolved(asked.augment, self.standard, augment.RESIDENT, self.name)
        augment.check_window(asked.window, found, self.shape(asked)[1:])
        return found

    def is_outlined(self, asked: Asked, stated: bool) -> bool:
        return True

    def outline(self, asked: Asked, splits: tuple[Split, Split], source: str, outputs: int) -> Splits:
        import torch

        from largebatch.data.dataset import Splits

        shape = self.shape(asked)
        self.check_side(asked, shape)
        label = torch.zeros(1, outputs) if self.several else torch.zeros(1, dtype=torch.int64)
        return Splits(
            name=self.name,
            example=(torch.zeros(1, *shape), label),
            outputs=outputs,
            train=splits[0],
            test=splits[1],
            source=source,
            task=self.task,
            classes=list(self.classes_of(asked)),
            facts={"augment": self.augmentation(asked), "evaluated on": evaluated_on(asked)},
        )

    def build(self, asked: Asked) -> Splits:
        from largebatch.data.contents import Listing
        from largebatch.data.resident import ResidentSplit, divided

        self.check_side(asked, self.shape(asked))
        statistics, classes = self.statistics_of(asked), self.classes_of(asked)
        how: dict[str, Any] = {"augment": self.augmentation(asked), "window": asked.window}
        load, source = self.load(asked)
        train, test, loaded = divided(load, asked.hold_out)
        splits = (
            ResidentSplit(*train, statistics=statistics, policy=asked.policy, **how),
            ResidentSplit(*test, statistics=statistics, **how),
        )
        made = self.outline(asked, splits, source, len(classes))
        listed = {part: Listing(classes, labels) for part, (_, labels) in loaded.items()}
        return dataclasses.replace(made, contents=lambda: listed)

    def check_side(self, asked: Asked, shape: tuple[int, ...]) -> None:
        _, height, width = shape
        sides = set() if asked.image_size is None else {*asked.image_size.all, asked.image_size.evaluate}
        if sides - {height} or (sides and height != width):
            raise UserError(
                f"data.image_size = {max(sides)} does not fit data set {self.name}; its images are {height}x{width}"
            )


class FromFiles(SmallImages):
    """Read from its published files, in whichever form they lie here."""

    origin: PublishedFiles

    def load(self, asked: Asked) -> tuple[Callable[[str], Arrays], str]:
        found = places.located(self.name, asked.root)
        assert found.form is not None
        title = f"{self.title} (JPEG)" if "JPEG" in found.form.title else self.title

        def load(part: str) -> Arrays:
            images, labels = found.arrays(part)
            self.check_contents(found.path, part, images, labels)
            return images, labels

        return load, f"{title}, {found.form.title}, {found.path}"

    def check_contents(self, path: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
        channels, height, width = self.image
        if images.shape[1:] != (height, width, channels):
            found = "x".join(map(str, images.shape[1:]))
            raise UserError(f"{path}: {part} images should be {height}x{width}x{channels}, found {found}")
        if not len(labels):
            raise UserError(f"{path}: the {part} files hold no images")
        if labels.max() >= len(self.classes):
            raise UserError(f"{path}: {part} labels should be below {len(self.classes)}, found {labels.max()}")
