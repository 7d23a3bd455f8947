"""How a test image becomes what the model sees, as plain facts: enough to use the weights without the data set.

    resized so that its short side has ``resize`` pixels, by ``interpolation``, antialiased; its central height × width
    of ``input_size``; levels / 255, minus ``mean``, over ``std``, per channel

``input_size``, ``crop_pct``, ``interpolation``, ``mean`` and ``std`` are timm's words: ``timm.data.create_transform``
takes them as they are.
"""

from __future__ import annotations

from typing import Any

from largebatch.data.dataset import Splits
from largebatch.data.decode import evaluation_window
from largebatch.data.resident import ResidentSplit
from largebatch.data.sizes import CENTRE
from largebatch.data.statistics import IMAGENET


def prepared(dataset: Splits) -> dict[str, Any]:
    """The classes in the order of the outputs, and what is done to an image before the model sees it."""
    shape = dataset.input_shape
    if len(shape) != 3 or dataset.preparation:
        return {"classes": list(dataset.classes), "input_size": list(shape), **dataset.preparation}
    height = shape[1]
    whole = isinstance(dataset.test, ResidentSplit)  # images come as they are, all of one size
    statistics = dataset.test.statistics if isinstance(dataset.test, ResidentSplit) else IMAGENET
    crop = getattr(dataset.test, "crop", CENTRE)
    short = min(evaluation_window(height, height, height, crop).resized)
    return {
        "classes": list(dataset.classes),
        "input_size": list(shape),
        "resize": None if whole else short,
        "crop_pct": 1.0 if whole else height / short,
        "interpolation": None if whole else "bilinear",
        "mean": list(statistics.mean),
        "std": list(statistics.std),
    }
