"""ImageNet: 1,331,167 photographs of a thousand classes, ILSVRC 2012 (Russakovsky et al. 2015, arXiv:1409.0575)."""

from __future__ import annotations

from largebatch.data.published import ByHand
from largebatch.data.sets._photographs import Photographs


class Imagenet(Photographs):
    name = "imagenet"
    number_of_classes = 1000
    examples = 1_281_167
    test_examples = 50_000
    origin = ByHand(
        "its licence is agreed to at https://image-net.org; lay it out as "
        "train/<class>/*.JPEG and val/<class>/*.JPEG and set data.root",
        folders=("imagenet", "ImageNet", "ILSVRC2012"),
    )
