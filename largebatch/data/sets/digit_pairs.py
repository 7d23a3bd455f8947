"""Two of scikit-learn's digits side by side, 8 × 16; labels say which of the ten are there. For ``multilabel``.

Each digit stands once on the left and, beside another one of its part, once on the right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from largebatch.data.formats import Arrays
from largebatch.data.sets import Asked
from largebatch.data.sets._scikit_learn import COMES_WITH_IT
from largebatch.data.sets._small_images import SmallImages
from largebatch.data.sets.digits import Digits, digits_by_part


class DigitPairs(SmallImages):
    name = "digit_pairs"
    title = "digit pairs"
    task = "multilabel"
    classes = Digits.classes
    image = (1, 8, 16)
    statistics = Digits.statistics
    several = True
    examples = Digits.examples
    test_examples = Digits.test_examples
    origin = COMES_WITH_IT

    def load(self, asked: Asked) -> tuple[Callable[[str], Arrays], str]:
        load_one = digits_by_part(self.name)

        def load(part: str) -> Arrays:
            images, digits = load_one(part)
            other = np.roll(np.arange(len(images)), 1)
            labels = np.zeros((len(images), 10), dtype=np.uint8)
            for of in (digits, digits[other]):
                labels[np.arange(len(images)), of] = 1
            return np.concatenate((images, images[other]), axis=2), labels

        return load, "digit_pairs, scikit-learn's load_digits two by two"
