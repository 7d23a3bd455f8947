"""Folders of images, train/<class>/*.jpg and val/<class>/*.jpg, read by worker processes.

Workers decode to RGB, crop, resize (bilinear, antialiased) and give whole micro-batches of uint8;
normalisation, with ImageNet's statistics, happens on the device. The evaluation view resizes the short
side to image_size / 0.875 and takes the centre. EXIF orientation is ignored, as ImageNet's convention is.

For a training image that cannot be read stands the next readable one in the folder's order, augmented as the missing
one would have been: the same in any world, with any number of workers and after a resume. How many may be missing is
counted in :mod:`largebatch.data.unreadable`. A test image that cannot be read is an error: an evaluation is exact.

Workers are started by a fork server, a clean process without threads: forking the trainer itself would
copy the locks of gloo's, CUDA's and OpenMP's threads in whatever state they are, and spawning would
import torch anew in every worker. Training keeps its workers over the whole run; an evaluation has its own.
A Ctrl-C or a SIGTERM to the process group reaches neither server nor workers, so that the trainer can
finish its step; they end with it however it ends.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from largebatch.batch import BatchPlan
from largebatch.data import augment as augmentation
from largebatch.data.dataset import Batch, Dataset, Placement, normalised, share
from largebatch.data.facts import IMAGENET
from largebatch.data.resident import HOLD_OUT_SEED
from largebatch.data.unreadable import Reasons, Unreadable
from largebatch.errors import LocalError, Lost, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_CENTRE_FRACTION = 0.875
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_MACHINE_S = {  # failures that say nothing about the image, and may pass
    errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The images of a split in order: class by class, names sorted within a class."""

    folder: str
    classes: tuple[str, ...]
    names: np.ndarray  # bytes, relative to the class folder; one array crosses to a worker in one piece
    labels: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.classes[self.labels[index]], os.fsdecode(self.names[index]))

    def part(self, chosen: np.ndarray) -> Files:
        return Files(self.folder, self.classes, self.names[chosen], self.labels[chosen])


class _Request(NamedTuple):
    """One micro-batch to read; ``positions`` in the stream of epochs where it is to be augmented."""

    indices: np.ndarray
    positions: np.ndarray | None


class _Answer(NamedTuple):
    """A micro-batch, and the files that others stand in for."""

    images: torch.Tensor  # uint8 (m, 3, S, S)
    labels: torch.Tensor
    unreadable: Reasons


class _Refusal(NamedTuple):
    """Carried back as a value, since an exception leaves a worker wrapped in its traceback."""

    unreadable: Reasons
    message: str
    may_pass: bool = False  # the machine's fault, not the image's


class _Reader(TorchDataset):
    """What a worker holds: request -> micro-batch. ``at_most`` files may be unreadable; None: nothing stands in."""

    def __init__(self, files: Files, image_size: int, augment: str, seed: int, at_most: int | None) -> None:
        self.files, self.image_size, self.augment, self.seed = files, image_size, augment, seed
        self.at_most = at_most

    def __getitem__(self, request: _Request) -> _Answer | _Refusal:
        size = self.image_size
        images = np.empty((len(request.indices), size, size, 3), np.uint8)
        read = request.indices.copy()
        unreadable: Reasons = {}
        for row, index in enumerate(request.indices):
            found = self._first_readable(int(index), unreadable)
            if isinstance(found, _Refusal):
                return found
            read[row], image = found
            if request.positions is None:
                images[row] = evaluation_view(image, size)
            else:
                rng = augmentation.example_generator(self.seed, int(request.positions[row]))
                images[row] = training_view(image, size, self.augment, rng)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return _Answer(pixels, torch.from_numpy(self.files.labels[read]), unreadable)

    def _first_readable(self, index: int, unreadable: Reasons) -> tuple[int, Image.Image] | _Refusal:
        """The image at ``index`` or the next after it that can be read; those that cannot join ``unreadable``."""
        while True:
            path = self.files.path(index)
            try:
                with Image.open(path) as file:
                    return index, file.convert("RGB")
            except Exception as reason:  # a broken image can raise nearly anything
                machine_s = isinstance(reason, MemoryError) or getattr(reason, "errno", None) in _MACHINE_S
                message = f"{path} cannot be read as an image: {_told(reason)}"
                if machine_s or self.at_most is None:
                    return _Refusal({}, message, machine_s)
                unreadable[path] = _told(reason)
                if len(unreadable) > self.at_most:
                    return _Refusal(unreadable, message)
            index = (index + 1) % len(self.files)


class FolderSplit:
    """``unreadable``: what a training split met of them, and how many it may; None: every image must be readable."""

    def __init__(
        self, files: Files, image_size: int, augment: str, workers: int, unreadable: Unreadable | None = None
    ) -> None:
        self.files, self.image_size, self.augment, self.workers = files, image_size, augment, workers
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.files)

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        assert plan.dataset_size == len(self), "the plan was made for another split"
        stream = self._read(_training_requests(plan, rank, first_step), placement, seed)
        try:
            for step in range(first_step, plan.steps):
                micro_batches = itertools.islice(stream, plan.at(step).accumulation_steps)
                yield micro_batches
                for _ in micro_batches:  # what the caller left would else open the next step
                    pass
        finally:
            stream.close()

    def batches(self, rank: int, world: int, batch_size: int, placement: Placement) -> Iterator[Batch]:
        mine = share(len(self), rank, world)
        requests = (
            _Request(np.arange(start, min(start + batch_size, mine.stop)), None)
            for start in range(mine.start, mine.stop, batch_size)
        )
        return self._read(requests, placement, seed=0)

    def _read(self, requests: Iterator[_Request], placement: Placement, seed: int) -> Generator[Batch, None, None]:
        """The batches asked for, on the device. Closing it (or dropping it) ends its workers."""
        on_cuda = placement.device.type == "cuda"
        at_most = self.unreadable.at_most if self.unreadable is not None else None
        loader = DataLoader(
            _Reader(self.files, self.image_size, self.augment, seed, at_most),
            sampler=requests,  # type: ignore[arg-type]  # with batch_size=None a request is one "example"
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.workers,
            pin_memory=on_cuda,
            worker_init_fn=_begin_worker,
            multiprocessing_context=_fork_server() if self.workers else None,
            generator=torch.Generator(),  # else every loader draws from the run's own generator
        )
        for answer in loader:
            if self.unreadable is not None:
                self.unreadable.add(answer.unreadable)
            if isinstance(answer, _Refusal):
                raise Lost(answer.message) if answer.may_pass else LocalError(answer.message)
            images, labels = (t.to(placement.device, non_blocking=on_cuda) for t in (answer.images, answer.labels))
            yield normalised(images, IMAGENET, placement), labels


def _training_requests(plan: BatchPlan, rank: int, first_step: int) -> Iterator[_Request]:
    for step in range(first_step, plan.steps):
        examples = plan.examples_of(step, rank)
        size = plan.at(step).micro_batch_size
        for start in range(0, len(examples.indices), size):
            part = slice(start, start + size)
            yield _Request(examples.indices[part], examples.positions[part])


def _unchanged(answer: Any) -> Any:
    return answer


def _fork_server() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "largebatch.data.folder"])
    resource_tracker.ensure_running()  # first, because starting it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()  # inherits the mask, and so do its workers
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _begin_worker(worker: int) -> None:
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # how the loader ends one that is stuck
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    """torch's worker watches its parent, which is the fork server, which waits for its workers: neither
    would notice that the trainer was killed."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _told(reason: Exception) -> str:
    if isinstance(reason, UnidentifiedImageError):
        return "not an image of a known format"  # its own words repeat the path
    return (getattr(reason, "strerror", None) or str(reason) or type(reason).__name__).split("\n")[0]


def evaluation_view(image: Image.Image, size: int) -> np.ndarray:
    """The central ``size`` × ``size`` of the image resized to a short side of size / 0.875; (S, S, 3)."""
    short = round(size / _CENTRE_FRACTION)
    scale = short / min(image.size)
    wide, tall = (max(short, round(side * scale)) for side in image.size)
    resized = image.resize((wide, tall), Image.Resampling.BILINEAR)
    left, upper = round((wide - size) / 2), round((tall - size) / 2)
    return np.asarray(resized.crop((left, upper, left + size, upper + size)))


def training_view(image: Image.Image, size: int, augment: str, rng: np.random.Generator) -> np.ndarray:
    """A random view (S, S, 3) as :mod:`largebatch.data.augment` defines ``augment``."""
    if augment.startswith("resized_crop"):
        window = image.crop(augmentation.resized_crop_box(*image.size, rng))
        view = np.asarray(window.resize((size, size), Image.Resampling.BILINEAR))
    else:
        view = evaluation_view(image, size)
    return view[:, ::-1] if augment.endswith("flip") and rng.integers(0, 2) else view


def image_folder(
    name: str,
    root: Path,
    *,
    image_size: int,
    augment: str,
    hold_out: int,
    workers: int | None,
    unreadable_share: float = 0.0,
    classes_expected: int | None = None,
) -> Dataset:
    """The data set under ``root``; ``hold_out`` training images, drawn at random, replace its test set.

    Of the training images ``unreadable_share`` may be unreadable.
    """
    train = scan(root / "train", classes_expected)
    if hold_out >= len(train):
        raise UserError(f"data.hold_out = {hold_out} leaves nothing to train on; at most {len(train) - 1}")
    if hold_out:
        chosen = np.zeros(len(train), dtype=bool)
        order = np.random.Generator(np.random.PCG64(HOLD_OUT_SEED)).permutation(len(train))
        chosen[order[:hold_out]] = True
        train, test = train.part(~chosen), train.part(chosen)
    else:
        test = scan(_test_folder(root))
        if test.classes != train.classes:
            odd = sorted(set(test.classes) ^ set(train.classes))[0]
            raise UserError(f"{test.folder} and {train.folder} differ in class {odd!r}; both need the same classes")
    count = _processors() if workers is None else workers
    missing = Unreadable(len(train), unreadable_share)
    return Dataset(
        name=name,
        num_classes=len(train.classes),
        image_shape=(3, image_size, image_size),
        train=FolderSplit(train, image_size, augment, count, missing),
        test=FolderSplit(test, image_size, augment, count),
        classes=list(train.classes),
        source=f"image folder, {root}",
        facts={"workers": str(count)},
    )


def scan(folder: Path, classes_expected: int | None = None) -> Files:
    """The images of the class folders of ``folder``, classes sorted; hidden folders are passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: an image folder needs train/<class>/ and val/<class>/")
    try:
        classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as reason:
        raise UserError(f"{folder} cannot be listed: {_told(reason)}") from None
    if not classes:
        raise UserError(f"{folder} has no class folders; put images into {folder}/<class>/")
    if classes_expected is not None and len(classes) != classes_expected:
        raise UserError(f"{folder} has {len(classes)} class folders; imagenet needs {classes_expected}")
    names: list[bytes] = []
    counts = []
    for label in classes:
        found = _images_below(folder / label)
        if not found:
            raise UserError(f"{folder / label} holds no images ({', '.join(SUFFIXES)})")
        names += found
        counts.append(len(found))
    labels = np.repeat(np.arange(len(classes)), counts)
    return Files(str(folder), tuple(classes), np.array(names, dtype=np.bytes_), labels)


def _images_below(folder: Path) -> list[bytes]:
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        inside = os.path.relpath(place, folder)
        found += [os.path.normpath(os.path.join(inside, file)) for file in files if file.lower().endswith(SUFFIXES)]
    return sorted(os.fsencode(name) for name in found)


def _test_folder(root: Path) -> Path:
    for name in ("val", "test"):
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} has no val or test folder; evaluation needs {root}/val/<class>/")


def _processors() -> int:
    """Processors this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)
