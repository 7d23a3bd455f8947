"""What the two sets of CIFAR share: 60,000 photographs of 32 × 32 (Krizhevsky 2009)."""

from __future__ import annotations

from largebatch.data.sets._small_images import FromFiles

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class Cifar(FromFiles):
    image = (3, 32, 32)
    standard = "crop_flip"
    examples = 50_000
    test_examples = 10_000
