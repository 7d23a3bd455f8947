"""Packed pixels: gathered from memory maps by a thread, viewed in whole micro-batches, always some ahead.

On CUDA the thread fills pinned memory. From there a micro-batch is copied, cropped, coloured and normalised on the side
stream of :mod:`largebatch.data.streams`. torch's allocators keep every buffer, pinned or on the device, until the
streams that use it are done with it. On the CPU the thread makes the views too, and colours and normalisation are
left to the trainer's own threads.

A page that can no longer be read from a memory map (a file cut short, a file server that went) is no exception but
SIGBUS, which ends the process; the launcher tells of it. What can be told before, an OSError, is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from largebatch.data import augment as augmentation
from largebatch.data import views as viewing
from largebatch.data.ahead import begun
from largebatch.data.augment import Views
from largebatch.data.dataset import Placement, normalised, share
from largebatch.data.nested import Batch
from largebatch.data.sizes import CENTRE, Sizes
from largebatch.data.statistics import IMAGENET
from largebatch.data.streams import in_steps, one_ahead
from largebatch.errors import LocalError
from largebatch.plan.batch import BatchPlan

AHEAD = 3  # micro-batches that the thread may be before the trainer
_AT_ONCE = 16  # images that the CPU gathers before it cuts them: what is 3 MB at 256 pixels is in the cache then


class Pixels(Protocol):
    """What is asked of a pack: equal square images in files, any of them at any time."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def size(self) -> int: ...

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray: ...


class _Request(NamedTuple):
    """One micro-batch: which images, and what is seen of each at which side."""

    indices: np.ndarray
    views: Views
    size: int


class _Gathered(NamedTuple):
    """``images`` are raw (m, P, P, 3) for a device, views (m, 3, S, S) on the CPU."""

    request: _Request
    images: Tensor


class PackedSplit:
    """The images of a pack, normalised with ImageNet's statistics; ``augment`` as in :mod:`largebatch.data.augment`."""

    def __init__(
        self, pack: Pixels, sizes: Sizes, augment: str = "none", color_jitter: float = 0.0, crop: float = CENTRE
    ) -> None:
        assert augment in augmentation.FOLDER
        self.pack, self.sizes, self.augment, self.color_jitter = pack, sizes, augment, color_jitter
        self.crop, self.centre = crop, viewing.centre_box(pack.size, crop)

    def __len__(self) -> int:
        return len(self.pack)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        assert plan.dataset_size == len(self), "the plan was made for another split"
        return in_steps(self._read(self._training_requests(plan, rank, first_step, seed), placement), plan, first_step)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        mine = share(len(self), rank, world)
        parts = (np.arange(at, min(at + batch_size, mine.stop)) for at in range(mine.start, mine.stop, batch_size))
        requests = (
            _Request(indices, augmentation.plain_views(self.centre, len(indices)), self.sizes.evaluate)
            for indices in parts
        )
        return self._read(requests, placement)

    def _training_requests(self, plan: BatchPlan, rank: int, first_step: int, seed: int) -> Iterator[_Request]:
        for step in range(first_step, plan.steps):
            stage, size = plan.at(step), self.sizes.at(step, plan)
            indices = plan.examples_of(step, rank).indices
            views = augmentation.step_views(
                self.augment, self.color_jitter, seed, step, stage.global_batch_size, self.pack.size, self.centre
            )
            views = views.part(slice(rank * len(indices), (rank + 1) * len(indices)))
            for start in range(0, len(indices), stage.micro_batch_size):
                part = slice(start, start + stage.micro_batch_size)
                yield _Request(indices[part], views.part(part), size)

    def _read(self, requests: Iterator[_Request], placement: Placement) -> Generator[Batch, None, None]:
        """The micro-batches asked for. Closing it (or dropping it) ends its thread."""
        return one_ahead(self._batches(requests, placement), placement.device)

    def _batches(self, requests: Iterator[_Request], placement: Placement) -> Generator[Batch, None, None]:
        on_cuda = placement.device.type == "cuda"
        gather, finish = (self._pinned, self._on_cuda) if on_cuda else (self._viewed, self._on_cpu)
        jobs: Iterator[Callable[[], _Gathered]] = map(gather, requests)
        with closing(begun(jobs, AHEAD)) as results:
            for future in results:
                try:
                    gathered = future.result()
                except OSError as reason:
                    raise LocalError(f"the packed images cannot be read: {reason}") from reason
                yield finish(gathered, placement)

    def _viewed(self, request: _Request) -> Callable[[], _Gathered]:
        return lambda: _Gathered(request, cropped(self.pack, *request))

    def _on_cpu(self, gathered: _Gathered, placement: Placement) -> Batch:
        request, images = gathered
        factors, orders = torch.from_numpy(request.views.factors), torch.from_numpy(request.views.orders)
        return _finished(images, factors, orders, placement), torch.from_numpy(self._labels(request))

    def _pinned(self, request: _Request) -> Callable[[], _Gathered]:
        side = self.pack.size
        raw = torch.empty((len(request.indices), side, side, 3), dtype=torch.uint8, pin_memory=True)

        def job() -> _Gathered:
            self.pack.gather(request.indices, raw.numpy())
            return _Gathered(request, raw)

        return job

    def _on_cuda(self, gathered: _Gathered, placement: Placement) -> Batch:
        request, raw = gathered
        boxes, flip, factors, orders = request.views
        rows = np.column_stack((self._labels(request), flip, boxes, orders, factors)).astype(np.float64)  # one copy
        numbers = torch.from_numpy(rows).pin_memory().to(placement.device, non_blocking=True)
        images = raw.to(placement.device, non_blocking=True)
        views = viewing.by_matmul(images, numbers[:, 2:6], numbers[:, 1], request.size)
        turns, blends = numbers[:, 6:].chunk(2, dim=1)
        return _finished(views, blends, turns.long(), placement), numbers[:, 0].long()

    def _labels(self, request: _Request) -> np.ndarray:
        return self.pack.labels[request.indices].astype(np.int64, copy=False)


def _finished(views: Tensor, factors: Tensor, orders: Tensor, placement: Placement) -> Tensor:
    if orders.shape[1]:
        views = viewing.coloured(views, factors, orders, torch.promote_types(placement.dtype, torch.float32))
    return normalised(views, IMAGENET, placement)


def cropped(pack: Pixels, indices: np.ndarray, views: Views, size: int) -> Tensor:
    """Views uint8 (m, 3, S, S) of the images at ``indices``, made on the CPU."""
    raw = np.empty((min(len(indices), _AT_ONCE), pack.size, pack.size, 3), np.uint8)
    images = torch.empty((len(indices), size, size, 3), dtype=torch.uint8)
    boxes, flip = views.boxes.tolist(), views.flip.tolist()
    for start in range(0, len(indices), _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, len(indices)))
        gathered = torch.from_numpy(pack.gather(indices[part], raw[: part.stop - start]))
        viewing.by_interpolation(gathered, boxes[part], flip[part], size, images[part])
    return images.permute(0, 3, 1, 2)
