"""One's own images: train/<class>/*.jpg and val/<class>/*.jpg, a pack, or WebDataset shards."""

from __future__ import annotations

from largebatch.data.published import ByHand
from largebatch.data.sets._photographs import Photographs


class Folder(Photographs):
    name = "folder"
    holds = "as many examples as there are files"
    origin = ByHand("it is your own: train/<class>/*.jpg and val/<class>/*.jpg under data.root")
