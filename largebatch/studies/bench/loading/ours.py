"""Our own ways to batches, for ``bench data``: what worker processes, packs and devices do, in this process.

Everything on the host gives uint8, as the peers do: on a GPU machine colours and normalisation are the device's. There
the host's part of a pixel pack is gathering alone; its crops are made on the CPU only where the CPU trains.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from largebatch.data import views as viewing
from largebatch.data.augment import step_views
from largebatch.data.dataset import Placement, Split
from largebatch.data.folder import scan
from largebatch.data.packs.origins import origins
from largebatch.data.packs.pack import JpegPack, PixelPack, open_pack
from largebatch.data.packs.packing import pack
from largebatch.data.packs.split import cropped
from largebatch.data.processes import answered
from largebatch.data.sizes import CENTRE, constant
from largebatch.data.sources import ImageSource
from largebatch.data.workers import Decoded, Reader, Request
from largebatch.errors import UserError
from largebatch.plan import batch
from largebatch.studies.bench.loading.ways import Candidate, PhotoFolder, Way

AUGMENT = "resized_crop_flip"
SEED = 0
WANTED_PACKED, WANTED_JPEG = 8.0, 1.4  # × timm's, at least
_ENDLESS = 10**6  # steps


def ours(sample: PhotoFolder) -> list[Candidate]:
    """Makes nothing yet: a pack is written when the first way that reads it is opened."""
    return [
        Candidate("workers, pillow", lambda: _pillow(sample)),
        Candidate("workers, turbo", lambda: _turbo(sample)),
        Candidate("JPEG pack, turbo", lambda: _jpeg_pack(sample)),
        Candidate("pixel pack, CPU crops", lambda: _cropped(sample)),
        Candidate("pixel pack, gathering", lambda: _gathered(sample)),
        Candidate("workers, nvjpeg", lambda: _on_device(sample, "nvjpeg")),
        Candidate("workers, dali", lambda: _on_device(sample, "dali")),
    ]


def with_workers(sample: PhotoFolder, workers: int) -> list[Candidate]:
    return [Candidate("workers, turbo", lambda: _turbo(sample, workers))]


def files(sample: PhotoFolder) -> ImageSource:
    return scan(sample.folder / "train")


def _pillow(sample: PhotoFolder) -> Way:
    return _reading(sample, files(sample), "pillow", "data.decode = pillow on an image folder")


def _turbo(sample: PhotoFolder, workers: int = 0) -> Way:
    return _reading(
        sample, files(sample), "turbo", "data.decode = turbo on an image folder, the default", workers, WANTED_JPEG
    )


def _jpeg_pack(sample: PhotoFolder) -> Way:
    source = open_pack(_packed(sample, "jpeg", None)).splits["train"]
    assert isinstance(source, JpegPack)
    return _reading(sample, source, "turbo", "data.decode = turbo on what data pack --jpeg made", 0, WANTED_JPEG)


def _reading(
    sample: PhotoFolder, source: ImageSource, decode: str, how: str, workers: int = 0, wanted: float | None = None
) -> Way:
    """What a worker does, here (or ``workers`` of them), given the trainer's own requests."""
    name = f"{'JPEG pack' if isinstance(source, JpegPack) else 'workers'}, {decode}"
    reader = Reader(source, functools.partial(Decoded, decode=decode), AUGMENT, 0.0, SEED, None)

    def batches() -> Iterator[int]:
        requests = (Request(indices, positions, sample.size) for positions, indices in _drawn(sample, len(source)))
        for answer in answered(reader, requests, workers, pin_memory=False):
            yield len(answer.images)

    return Way(name, "ours", "uint8", how, batches, wanted)


def _cropped(sample: PhotoFolder) -> Way:
    pixels = _pixel_pack(sample)
    centre = viewing.centre_box(pixels.size)

    def batches() -> Iterator[int]:
        for step, (_, indices) in enumerate(_drawn(sample, len(pixels))):
            views = step_views(AUGMENT, 0.0, SEED, step, len(indices), pixels.size, centre)
            yield len(cropped(pixels, indices, views, sample.size))

    return Way("pixel pack, CPU crops", "ours", "uint8", f"from {pixels.size} x {pixels.size}", batches, WANTED_PACKED)


def _gathered(sample: PhotoFolder) -> Way:
    pixels = _pixel_pack(sample)
    pinned = torch.cuda.is_available()  # where the trainer gathers into pinned memory

    def batches() -> Iterator[int]:
        shape = (sample.batch, pixels.size, pixels.size, 3)
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
        for _, indices in _drawn(sample, len(pixels)):
            yield len(pixels.gather(indices, out))

    how = f"the host's part where a GPU crops: {pixels.size} x {pixels.size} into {'pinned ' * pinned}memory"
    return Way("pixel pack, gathering", "ours", "uint8", how, batches, WANTED_PACKED)


def _on_device(sample: PhotoFolder, decode: str) -> Way:
    """The whole way to normalised batches; the CUDA device does most of it, the processor's seconds are the host's."""
    if decode == "nvjpeg" and not torch.cuda.is_available():
        raise UserError("it needs a CUDA device")
    from largebatch.data.dali import DaliSplit
    from largebatch.data.nvjpeg import NvjpegSplit

    made: Any = {"nvjpeg": NvjpegSplit, "dali": DaliSplit}[decode]
    split: Split = made(files(sample), constant(sample.size), AUGMENT, 0.0, decode, 0)
    placement = Placement(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    how = f"data.decode = {decode} on {placement.device.type}, to normalised batches"
    return Way(f"workers, {decode}", "ours", "float32", how, _steps(split, sample, placement))


def _steps(split: Split, sample: PhotoFolder, placement: Placement) -> Callable[[], Iterator[int]]:
    plan = _plan(sample, len(split))

    def batches() -> Iterator[int]:
        for micro_batches in split.steps(plan, 0, 0, placement, SEED):
            for images, _ in micro_batches:
                yield len(images)

    return batches


def _plan(sample: PhotoFolder, images: int) -> batch.BatchPlan:
    return batch.resolve(
        dataset_size=images, global_batch_size=sample.batch, micro_batch_size=sample.batch, steps=_ENDLESS, seed=SEED
    )


def _drawn(sample: PhotoFolder, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and indices of one step after another, as a run takes them."""
    plan = _plan(sample, images)
    for step in itertools.count():
        examples = plan.examples_of(step)
        yield examples.positions, examples.indices


def _pixel_pack(sample: PhotoFolder) -> PixelPack:
    side = round(sample.size / CENTRE)
    pixels = open_pack(_packed(sample, "pixels", side)).splits["train"]
    assert isinstance(pixels, PixelPack)
    return pixels


def _packed(sample: PhotoFolder, form: str, side: int | None) -> Path:
    """The sample as a pack, made at the first call."""
    dest = sample.folder.parent / f"pack-{form}"
    pack(origins(str(sample.folder)), dest, size=side)
    return dest
