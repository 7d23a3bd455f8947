"""Which views of a test image its outputs are the mean of, as data: a recipe states them, evaluations look at them."""

from __future__ import annotations

from typing import NamedTuple


class ImageViews(NamedTuple):
    """``flips``: the image and its mirror image. ``shift``: half of the image's, and a quarter of each of two views
    that are moved by so many pixels down and to the right, up and to the left; what comes in at an edge is the image,
    mirrored there (Jordan 2024, arXiv:2404.00498: multi-crop evaluation, with mirror images of each).
    """

    flips: bool = False
    shift: int = 0


AS_THEY_ARE = ImageViews()
