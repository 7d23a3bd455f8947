"""scikit-learn's 1,797 handwritten digits of 8 × 8 (Alpaydin and Kaynak 1998): 1,500 to train, 297 to test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from largebatch.data.formats import Arrays
from largebatch.data.sets import Asked
from largebatch.data.sets._scikit_learn import COMES_WITH_IT, loaded
from largebatch.data.sets._small_images import SmallImages
from largebatch.data.statistics import Statistics


class Digits(SmallImages):
    name = "digits"
    title = "digits"
    classes = tuple("0123456789")
    image = (1, 8, 8)
    statistics = Statistics((0.3053,), (0.3759,))  # computed from the 1,500
    examples = 1_500
    test_examples = 297
    origin = COMES_WITH_IT

    def load(self, asked: Asked) -> tuple[Callable[[str], Arrays], str]:
        return digits_by_part(self.name), "digits, scikit-learn's load_digits"


def digits_by_part(name: str) -> Callable[[str], Arrays]:
    """Levels 0 to 16 become 0 to 255."""
    raw, labels = loaded("digits", name)
    images = np.rint(raw * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.Generator(np.random.PCG64(1797)).permutation(len(images))
    parts = {"train": order[: Digits.examples], "test": order[Digits.examples :]}
    return lambda part: (images[parts[part]], labels[parts[part]])
