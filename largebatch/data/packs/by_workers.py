"""Packed pixels that worker processes view: where a policy takes longer than a thread beside the trainer has.

A pack is then what a folder of equal images is, but for decoding: windows are drawn by the place of an example in the
run, as they are for folders, and not for whole batches, as they are for packs without a policy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from largebatch.data.decode import Draw, resized_view
from largebatch.data.packs.pack import PixelPack
from largebatch.data.workers import CollectedImages, Decoded, WorkerSplit


class PixelSource:
    """A pack as a source of images, whose bytes are their pixels."""

    def __init__(self, pack: PixelPack) -> None:
        self.pack, self.classes, self.labels = pack, pack.classes, pack.labels

    def __len__(self) -> int:
        return len(self.pack)

    def name(self, index: int) -> str:
        return self.pack.name(index)

    def read(self, index: int) -> bytes:
        return self.pack.gather(np.array([index])).tobytes()

    def part(self, chosen: np.ndarray) -> PixelSource:
        return PixelSource(self.pack.part(chosen))


class Viewed(Decoded):
    """Views of raw pixels."""

    def take(self, row: int, data: bytes, draw: Draw) -> None:
        pixels = np.frombuffer(bytearray(data), np.uint8)  # a copy, which torch may write to
        side = round((len(pixels) / 3) ** 0.5)
        self.views[row] = resized_view(pixels.reshape(side, side, 3), draw(side, side), self.side)


class PixelsByWorkers(WorkerSplit):
    def _form(self) -> Callable[[int, int], CollectedImages]:
        return Viewed
