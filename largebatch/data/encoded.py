"""Micro-batches that are decoded where they are trained on: workers read the files and draw the windows.

JPEG files in colour (YCbCr) or grey travel as they are. Everything else (PNG, CMYK, JPEG without its end marker, ...)
is decoded by the worker and travels as a view, so that what is no image is found there, by the same rule as ever. What
only the decoder on the device can find wrong is read again on the CPU, which names it, or takes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from largebatch.data.decode import Draw, Window, jpeg_size, view
from largebatch.data.workers import Answer, CollectedImages, Decoded, Reader, Request, WorkerSplit

_END = b"\xff\xd9"


class Encoded(NamedTuple):
    """``m`` images, each a file or a view."""

    data: Tensor  # uint8, the files end to end
    ends: np.ndarray  # (m,), where each ends; a view's file is empty
    windows: np.ndarray  # int64 (m, 9), what is seen of each file
    views: Tensor  # uint8 (v, S, S, 3)
    rows: np.ndarray  # (v,), where they belong

    def files(self) -> Iterator[tuple[int, Tensor, Window]]:
        """Row, bytes and window of the images that are files."""
        starts = np.concatenate(([0], self.ends[:-1]))
        for row in np.flatnonzero(self.ends > starts):
            left, upper, right, lower, wide, tall, x, y, flip = self.windows[row].tolist()
            window = Window((left, upper, right, lower), (wide, tall), (x, y), bool(flip))
            yield int(row), self.data[starts[row] : self.ends[row]], window


class Undecoded(CollectedImages):
    """The files as they are, where a decoder on the device takes them."""

    def __init__(self, count: int, side: int) -> None:
        self.side = side
        self.read = [b""] * count
        self.windows = np.zeros((count, 9), np.int64)
        self.views: dict[int, Tensor] = {}

    def take(self, row: int, data: bytes, draw: Draw) -> None:
        size = jpeg_size(data) if data.endswith(_END) else None
        if size is None:
            self.views[row] = view(data, self.side, draw, "pillow")  # in full, as the device does
            return
        region, resized, corner, flip = draw(*size)
        self.windows[row] = *region, *resized, *corner, flip
        self.read[row] = data

    def whole(self) -> Encoded:
        ends = np.cumsum([len(data) for data in self.read])
        data = torch.from_numpy(np.frombuffer(bytearray().join(self.read), np.uint8))
        shape = (-1, self.side, self.side, 3)
        views = torch.cat([view.reshape(-1) for view in self.views.values()] or [data[:0]]).view(shape)
        return Encoded(data, ends, self.windows, views, np.array(list(self.views), np.int64))


class DeviceDecodedSplit(WorkerSplit):
    """What splits share whose workers read and whose device decodes."""

    def _form(self) -> Callable[[int, int], CollectedImages]:
        return Undecoded

    def _read_again(self, answer: Answer, row: int, reader: Reader) -> tuple[Answer, Tensor]:
        """The view of the image that the device could not decode, by the CPU; ``answer`` tells what stands in."""
        indices, positions, side = answer.request
        part = slice(row, row + 1)
        request = Request(indices[part], None if positions is None else positions[part], side)
        form = functools.partial(Decoded, decode="pillow")
        again = Reader(
            reader.source, form, reader.augment, reader.color_jitter, reader.seed, reader.at_most, crop=reader.crop
        )
        found = self._accepted(again[request])
        for mine, new in (
            (answer.labels, found.labels),
            (answer.factors, found.factors),
            (answer.orders, found.orders),
        ):
            mine[part] = new
        return answer, found.images[0]
