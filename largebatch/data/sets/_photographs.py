"""Sets of images that are read file by file: what lies at ``data.root``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from largebatch.data import places
from largebatch.data.sets import Asked, DataSet, evaluated_on
from largebatch.data.sizes import Sizes, constant

if TYPE_CHECKING:
    from largebatch.data.dataset import Split, Splits

SIDE = 224  # where a recipe does not say


def sizes_of(asked: Asked) -> Sizes:
    return asked.image_size or constant(SIDE)


class Photographs(DataSet):
    takes = frozenset({"augment", "policy", "crop", "image_size", "color_jitter", "decode", "unreadable_share"})
    photographs = True
    number_of_classes: ClassVar[int | None] = None

    def outputs(self, asked: Asked) -> int | None:
        return self.number_of_classes

    def shape(self, asked: Asked) -> tuple[int, ...]:
        side = sizes_of(asked).evaluate
        return (3, side, side)

    def augmentation(self, asked: Asked) -> str:
        from largebatch.data import augment

        return augment.resolved(asked.augment, "resized_crop_flip", augment.FOLDER, self.name)

    def is_outlined(self, asked: Asked, stated: bool) -> bool:
        return stated or places.find(self.name, asked.root) is None

    def outline(self, asked: Asked, splits: tuple[Split, Split], source: str, outputs: int) -> Splits:
        from largebatch.data.dataset import Splits, blank_image

        return Splits(
            name=self.name,
            example=blank_image(self.shape(asked)),
            outputs=outputs,
            train=splits[0],
            test=splits[1],
            source=source,
            task=self.task,
            facts={"evaluated on": evaluated_on(asked), "augment": self.augmentation(asked)},
            sizes=sizes_of(asked),
        )

    def build(self, asked: Asked) -> Splits:
        from largebatch.data.images import image_set

        return image_set(self, asked)
