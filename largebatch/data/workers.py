"""Images read and decoded by worker processes, from any source.

Workers read, decode, crop, resize and give whole micro-batches of uint8 (:mod:`largebatch.data.decode`); colours and
normalisation, with ImageNet's statistics, happen on the device. EXIF orientation is ignored, as is ImageNet's
convention.

For a training image that cannot be read stands the next readable one in the source's order, augmented as the missing
one would have been: the same in any world, with any number of workers and after a resume. How many may be missing is
counted in :mod:`largebatch.data.unreadable`. A test image that cannot be read is an error: an evaluation is exact.

How the processes are started, and how they end, is told in :mod:`largebatch.data.processes`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from largebatch.data import augment as augmentation
from largebatch.data import views as viewing
from largebatch.data.dataset import Placement, normalised, share
from largebatch.data.decode import Draw, Window, evaluation_window, training_window, view, why_unreadable
from largebatch.data.draws import keys_of
from largebatch.data.nested import Batch
from largebatch.data.policies import policed
from largebatch.data.processes import Helpers, answered
from largebatch.data.sizes import CENTRE, Sizes
from largebatch.data.sources import ImageSource
from largebatch.data.statistics import IMAGENET
from largebatch.data.streams import in_steps, one_ahead
from largebatch.data.unreadable import Reasons, Unreadable, is_machine_failure
from largebatch.errors import LocalError, Lost
from largebatch.plan.batch import BatchPlan

EpochOrder = Callable[[int, int], np.ndarray]  # seed and epoch -> indices, where a source has an order of its own
Ahead = Callable[[int, "int | None"], None]  # position and seed; a seed of None: in the order of the examples


class Request(NamedTuple):
    """One micro-batch to read; ``positions`` in the stream of epochs where it is to be augmented."""

    indices: np.ndarray
    positions: np.ndarray | None
    side: int


class Answer(NamedTuple):
    """A micro-batch, and the files that others stand in for."""

    request: Request  # the indices are those of the images that were read
    images: Any  # what the form gave: uint8 views (m, S, S, 3)
    labels: Tensor
    factors: Tensor  # of the colours, (m, 3) or (m, 0)
    orders: Tensor
    unreadable: Reasons


class Refusal(NamedTuple):
    """Carried back as a value, since an exception leaves a worker wrapped in its traceback."""

    unreadable: Reasons
    message: str
    may_pass: bool = False  # the machine's fault, not the image's


class CollectedImages(Protocol):
    """What becomes of the encoded images of one micro-batch."""

    def __init__(self, count: int, side: int) -> None: ...

    def take(self, row: int, data: bytes, draw: Draw) -> None:
        """Image ``row``. Where ``data`` is no image it raises nearly anything, and is asked for another one."""
        ...

    def whole(self) -> Any: ...


class Decoded(CollectedImages):
    """The views, decoded here."""

    def __init__(self, count: int, side: int, decode: str = "turbo") -> None:
        self.views = torch.empty((count, side, side, 3), dtype=torch.uint8)
        if get_worker_info() is not None:
            self.views.share_memory_()  # now, while it is empty, rather than by a copy on the way to the trainer
        self.side, self.decode = side, decode

    def take(self, row: int, data: bytes, draw: Draw) -> None:
        self.views[row] = view(data, self.side, draw, self.decode)

    def whole(self) -> Tensor:
        return self.views


class Reader(Dataset):
    """What a worker holds: request -> micro-batch. ``at_most`` files may be unreadable; None: nothing stands in."""

    def __init__(
        self,
        source: ImageSource,
        form: Callable[[int, int], CollectedImages],
        augment: str,
        color_jitter: float,
        seed: int,
        at_most: int | None,
        policy: str | None = None,
        crop: float = CENTRE,
    ) -> None:
        self.crop = crop
        self.source, self.form, self.seed, self.at_most = source, form, seed, at_most
        self.augment, self.color_jitter, self.policy = augment, color_jitter, policy

    def __getitem__(self, request: Request) -> Answer | Refusal:
        count = len(request.indices)
        coloured = 3 if self.color_jitter and request.positions is not None else 0
        factors, orders = np.empty((count, coloured), np.float32), np.empty((count, coloured), np.int64)
        read, unreadable = request.indices.copy(), {}
        batch = self.form(count, request.side)

        def draw(width: int, height: int) -> Window:
            if request.positions is None:
                return evaluation_window(width, height, request.side, self.crop)
            rng = augmentation.example_generator(self.seed, int(request.positions[row]))
            window = training_window(width, height, request.side, self.augment, rng, self.crop)
            if coloured:  # drawn last: the window is the same without
                factors[row], orders[row] = (drawn[0] for drawn in augmentation.color_draws(self.color_jitter, 1, rng))
            return window

        for row, index in enumerate(request.indices):
            found = self._first_readable(int(index), unreadable, functools.partial(batch.take, row, draw=draw))
            if isinstance(found, Refusal):
                return found
            read[row] = found
        labels = torch.from_numpy(self.source.labels[read])
        colours = torch.from_numpy(factors), torch.from_numpy(orders)
        images = batch.whole()
        if self.policy is not None and request.positions is not None:
            images = policed(images, self.policy, keys_of(self.seed, request.positions, request.indices))
        return Answer(request._replace(indices=read), images, labels, *colours, unreadable)

    def _first_readable(self, index: int, unreadable: Reasons, take: Callable[[bytes], None]) -> int | Refusal:
        """The index of the image taken: ``index`` or the next that can be; those that cannot join ``unreadable``."""
        while True:
            try:
                take(self.source.read(index))
                return index
            except Exception as failure:  # a broken image can raise nearly anything
                name, reason = self.source.name(index), why_unreadable(failure)
                of_machine = is_machine_failure(failure)
                message = f"{name} cannot be read as an image: {reason}"
                if of_machine or self.at_most is None:
                    return Refusal({}, message, of_machine)
                unreadable[name] = reason
                if len(unreadable) > self.at_most:
                    return Refusal(unreadable, message)
            index = (index + 1) % len(self.source)


class WorkerSplit:
    """The images of ``source``; ``augment`` and ``color_jitter`` as in :mod:`largebatch.data.augment`.

    ``unreadable``: what a training split met of them, and how many it may; None: every image must be readable.
    ``epoch_order``: where the source, not the plan, says in which order an epoch goes through it. ``ahead`` is told, in
    the trainer's process, which position is asked for next, and ``at_the_end`` that nobody asks any more. ``helpers``
    hears of a worker that dies. ``policy``: one of :mod:`largebatch.data.policies`, of training images. ``crop`` of the
    short side is seen where no window is drawn.
    """

    def __init__(
        self,
        source: ImageSource,
        sizes: Sizes,
        augment: str,
        color_jitter: float,
        decode: str,
        workers: int,
        unreadable: Unreadable | None = None,
        epoch_order: EpochOrder | None = None,
        ahead: Ahead | None = None,
        at_the_end: Callable[[], object] | None = None,
        helpers: Helpers | None = None,
        policy: str | None = None,
        crop: float = CENTRE,
    ) -> None:
        self.policy, self.crop = policy, crop
        self.source, self.sizes, self.workers = source, sizes, workers
        self.augment, self.color_jitter, self.decode = augment, color_jitter, decode
        self.unreadable, self.epoch_order = unreadable, epoch_order
        self.ahead, self.at_the_end = ahead, at_the_end
        self.helpers = helpers or Helpers()

    def _form(self) -> Callable[[int, int], CollectedImages]:
        """What workers make of the files."""
        return functools.partial(Decoded, decode=self.decode)

    def __len__(self) -> int:
        return len(self.source)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        assert plan.dataset_size == len(self), "the plan was made for another split"
        return in_steps(self._read(self._training_requests(plan, rank, first_step), placement, seed), plan, first_step)

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        return self._read(self._evaluation_requests(share(len(self), rank, world), batch_size), placement, seed=0)

    def _training_requests(self, plan: BatchPlan, rank: int, first_step: int) -> Iterator[Request]:
        for step in range(first_step, plan.steps):
            positions, epochs, indices = plan.examples_of(step, rank)
            if self.epoch_order is not None:
                for epoch in np.unique(epochs):
                    here = epochs == epoch
                    indices[here] = self.epoch_order(plan.seed, int(epoch))[
                        positions[here] // plan.repeats - epoch * len(self)
                    ]
            size, side = plan.at(step).micro_batch_size, self.sizes.at(step, plan)
            for start in range(0, len(indices), size):
                part = slice(start, start + size)
                if self.ahead is not None:
                    self.ahead(int(positions[start]) // plan.repeats, plan.seed)
                yield Request(indices[part], positions[part], side)

    def _evaluation_requests(self, mine: range, batch_size: int) -> Iterator[Request]:
        for start in range(mine.start, mine.stop, batch_size):
            if self.ahead is not None:
                self.ahead(start, None)
            yield Request(np.arange(start, min(start + batch_size, mine.stop)), None, self.sizes.evaluate)

    def _read(self, requests: Iterator[Request], placement: Placement, seed: int) -> Generator[Batch, None, None]:
        """The batches asked for, on the device. Closing it (or dropping it) ends its workers."""
        at_most = None if self.unreadable is None else self.unreadable.at_most
        reader = Reader(
            self.source, self._form(), self.augment, self.color_jitter, seed, at_most, self.policy, self.crop
        )
        return one_ahead(self._batches(reader, requests, placement), placement.device)

    def _batches(
        self, reader: Reader, requests: Iterator[Request], placement: Placement
    ) -> Generator[Batch, None, None]:
        on_cuda = placement.device.type == "cuda"
        with contextlib.ExitStack() as stack:
            if self.at_the_end is not None:
                stack.callback(self.at_the_end)
            answers = stack.enter_context(
                contextlib.closing(answered(reader, requests, self.workers, on_cuda, self.helpers))
            )
            for answer, views in self._viewed(map(self._accepted, answers), reader, placement.device):
                labels, factors, orders = (
                    t.to(placement.device, non_blocking=True) for t in (answer.labels, answer.factors, answer.orders)
                )
                images = views.permute(0, 3, 1, 2)
                if factors.shape[1]:
                    exact = torch.promote_types(placement.dtype, torch.float32)
                    images = viewing.coloured(images, factors, orders, exact)
                yield normalised(images, IMAGENET, placement), labels

    def _accepted(self, answer: Answer | Refusal) -> Answer:
        """``answer``, its unreadable files counted."""
        if self.unreadable is not None:
            self.unreadable.add(answer.unreadable)
        if isinstance(answer, Refusal):
            raise Lost(answer.message) if answer.may_pass else LocalError(answer.message)
        return answer

    def _viewed(
        self, answers: Iterator[Answer], reader: Reader, device: torch.device
    ) -> Iterator[tuple[Answer, Tensor]]:
        """Every answer with its views (m, S, S, 3) on ``device``."""
        for answer in answers:
            yield answer, answer.images.to(device, non_blocking=True)
