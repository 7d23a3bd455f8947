"""JPEG decoded in batches by the GPU: nvJPEG by way of torchvision.

Workers read the files and draw the windows; the device decodes, crops and resizes (antialiased, rounded to whole
levels). Examples, windows and flips are those of every other decoder; pixels differ as decoders do. A file that nvJPEG
refuses is read again on the CPU. A damaged body that nvJPEG takes for an image is trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from largebatch.data.decode import Window
from largebatch.data.encoded import DeviceDecodedSplit, Encoded
from largebatch.data.workers import Answer, Reader
from largebatch.errors import UserError


class NvjpegSplit(DeviceDecodedSplit):
    """``decoder`` is where images are decoded and viewed if not where they are trained on."""

    def __init__(self, *given: Any, decoder: torch.device | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self.decoder = decoder
        if decoder is None and not torch.cuda.is_available():
            raise UserError("data.decode = nvjpeg needs a CUDA device, and torch finds none; turbo decodes on the CPU")

    def _viewed(
        self, answers: Iterator[Answer], reader: Reader, device: torch.device
    ) -> Iterator[tuple[Answer, Tensor]]:
        decoder = self.decoder or device
        if self.decoder is None and device.type != "cuda":
            raise UserError(f"data.decode = nvjpeg needs a CUDA device, and this run is on {device.type}")
        for answer in answers:
            yield self._decoded(answer, reader, decoder, device)

    def _decoded(
        self, answer: Answer, reader: Reader, decoder: torch.device, device: torch.device
    ) -> tuple[Answer, Tensor]:
        encoded: Encoded = answer.images
        side = answer.request.side
        views = torch.empty((len(encoded.ends), side, side, 3), dtype=torch.uint8, device=device)
        if len(encoded.rows):
            views[torch.from_numpy(encoded.rows).to(device)] = encoded.views.to(device, non_blocking=True)
        rows, files, windows = zip(*encoded.files(), strict=True) if encoded.ends[-1] else ((), (), ())
        for row, image, window in zip(rows, _each_decoded(list(files), decoder), windows, strict=True):
            if image is None:
                answer, view = self._read_again(answer, row, reader)
                views[row] = view.to(device)
            else:
                views[row] = _viewed(image, window, side).permute(1, 2, 0)
        return answer, views


def _each_decoded(files: list[Tensor], decoder: torch.device) -> list[Tensor | None]:
    """uint8 (3, H, W) on ``decoder``; None for a file that it refuses."""
    if not files:
        return []
    if decoder.type == "cuda":  # nvJPEG writes on a stream of its own, into memory that ours may still be reading
        torch.cuda.current_stream(decoder).synchronize()
    try:
        with warnings.catch_warnings():  # from 0.29 on torchvision tells that TorchCodec is to take over
            warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)
            return decode_jpeg(files, ImageReadMode.RGB, device=decoder)  # type: ignore[return-value]
    except RuntimeError as failure:
        if isinstance(failure, torch.OutOfMemoryError):
            raise
        if len(files) == 1:
            return [None]
    return [_each_decoded([file], decoder)[0] for file in files]


def _viewed(image: Tensor, window: Window, size: int) -> Tensor:
    """The window's view (3, S, S), uint8."""
    left, upper, right, lower = window.region
    wide, tall = window.resized
    levels = image[None, :, upper:lower, left:right].float()  # CUDA interpolates no integers
    levels = interpolate(levels, (tall, wide), mode="bilinear", antialias=True)
    left, upper = window.corner
    view = levels[0, :, upper : upper + size, left : left + size].round_().clamp_(0, 255).to(torch.uint8)
    return view.flip(2) if window.flip else view
