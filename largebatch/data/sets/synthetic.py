"""Uniform random pixels and labels: nothing to learn, any shape, for measuring throughput."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from largebatch.data.formats import Arrays
from largebatch.data.published import NoFiles
from largebatch.data.sets import Asked
from largebatch.data.sets._small_images import SmallImages
from largebatch.data.statistics import Statistics, uniform

SIDE, EXAMPLES, CLASSES = 32, 10_000, 10  # where a recipe does not say


class Synthetic(SmallImages):
    name = "synthetic"
    title = "synthetic"
    takes = SmallImages.takes | {"num_classes", "image_shape", "examples"}
    origin = NoFiles("it is made when it is used")

    def counts(self, asked: Asked) -> tuple[int, int]:
        examples = asked.examples or EXAMPLES
        return examples, max(1, examples // 10)

    def classes_of(self, asked: Asked) -> tuple[str, ...]:
        return tuple(str(label) for label in range(asked.num_classes or CLASSES))

    def statistics_of(self, asked: Asked) -> Statistics:
        return uniform(self.shape(asked)[0])

    def shape(self, asked: Asked) -> tuple[int, ...]:
        side = asked.image_size.last if asked.image_size else SIDE
        return asked.image_shape or (3, side, side)

    def load(self, asked: Asked) -> tuple[Callable[[str], Arrays], str]:
        channels, height, width = self.shape(asked)
        train, test = self.counts(asked)

        def load(part: str) -> Arrays:
            count = train if part == "train" else test
            rng = np.random.Generator(np.random.PCG64([asked.seed, len(part)]))
            images = np.frombuffer(rng.bytes(count * channels * height * width), np.uint8)
            labels = rng.integers(0, self.outputs(asked), size=count)
            return images.reshape(-1, height, width, channels).copy(), labels

        return load, f"synthetic, seed {asked.seed}"
