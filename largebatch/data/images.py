"""Image sets: what lies at ``data.root``, what of it is trained on, what is judged by, and who makes pixels of it.

    pack of pixels      memory-mapped uint8             packs/split.py: nothing to decode
    pack of JPEG        one indexed file                \\
    image folder        train/<class>/*.jpg              workers.WorkerSplit, or the same with ``data.decode`` on a
    WebDataset shards   train-*.tar, here or in a store /  device (nvjpeg) or by DALI (dali)

A folder and its packs have one order of examples, so the steps of a run hold the same ones (unless a pack left some
out); shards have the order in which they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from largebatch.data import augment as augmentation
from largebatch.data import places
from largebatch.data.contents import FOLDER, SHARDS
from largebatch.data.dali import DaliSplit
from largebatch.data.dataset import Dataset, Split, blank_image
from largebatch.data.folder import scan
from largebatch.data.nvjpeg import NvjpegSplit
from largebatch.data.packs.pack import PixelPack, is_pack, open_pack
from largebatch.data.packs.split import PackedSplit
from largebatch.data.passed_over import told_of
from largebatch.data.processes import Helpers, processors
from largebatch.data.questions import same_classes, whole_set
from largebatch.data.resident import HOLD_OUT_SEED
from largebatch.data.shards.source import Shards, files_of, is_shards, open_shards
from largebatch.data.sizes import Sizes
from largebatch.data.unreadable import Unreadable
from largebatch.data.views import centre_box
from largebatch.data.workers import WorkerSplit
from largebatch.errors import UserError, suggestion

DEFAULT_SIDE = 224
MOST_WORKERS = 8  # unless more are asked for
USUAL_DECODER = "turbo"
SPLITS: dict[str, type[WorkerSplit]] = {
    USUAL_DECODER: WorkerSplit,
    "pillow": WorkerSplit,
    "nvjpeg": NvjpegSplit,
    "dali": DaliSplit,
}


@dataclass(frozen=True)
class Reading:
    """How a set's images are to be seen and read."""

    sizes: Sizes
    augment: str
    color_jitter: float
    decode: str
    workers: int
    unreadable_share: float
    helpers: Helpers


class Found(NamedTuple):
    """``parts``: train and, where there is one, test."""

    form: str
    parts: Mapping[str, Any]


def image_set(
    name: str,
    root: str | None,
    *,
    sizes: Sizes,
    augment: str,
    color_jitter: float,
    hold_out: int,
    decode: str,
    workers: int | None,
    shuffle_shards: int,
    unreadable_share: float,
    classes_expected: int | None = None,
    report: Callable[[str], object] | None = None,
) -> Dataset:
    """The data set under ``root``; ``hold_out`` training images, drawn at random, replace its test set.

    Of the training images ``unreadable_share`` may be unreadable. ``report`` hears of what takes long.
    """
    if decode not in SPLITS:
        raise UserError(f"data.decode = {decode!r} is not a decoder{suggestion(decode, list(SPLITS))}")
    augment = augmentation.resolved(augment, "resized_crop_flip", augmentation.FOLDER, name)
    if name == "folder" and root is None:
        raise UserError(
            "data.root is missing: data set folder needs a folder with train/<class>/*.jpg, a pack, or shards"
        )
    for here in ("file://", "local://"):
        root = root.removeprefix(here) if root is not None else None
    where = root if root is not None and "://" in root else str(places.located(name, root).path)
    found = _found(where, hold_out, shuffle_shards, classes_expected, report)
    train = found.parts["train"]
    if classes_expected is not None and len(train.classes) != classes_expected:
        raise UserError(f"{where} has {len(train.classes)} classes; {name} needs {classes_expected}")
    same_classes(where, {"train": train} if hold_out else found.parts)
    if hold_out >= len(train):
        raise UserError(f"data.hold_out = {hold_out} leaves nothing to train on; at most {len(train) - 1}")
    if hold_out:
        chosen = np.zeros(len(train), dtype=bool)
        order = np.random.Generator(np.random.PCG64(HOLD_OUT_SEED)).permutation(len(train))
        chosen[order[:hold_out]] = True
        train, test = train.part(~chosen), train.part(chosen)
    else:
        test = found.parts["test"]
    reading = Reading(
        sizes,
        augment,
        color_jitter,
        decode,
        min(MOST_WORKERS, processors()) if workers is None else workers,
        unreadable_share,
        Helpers(),
    )
    pixels, reading_facts = f"decoded by {decode}", {"workers": str(reading.workers)}
    if isinstance(train, PixelPack):
        _check_pixels(where, train, reading)
        pixels, reading_facts = f"packed at {train.size} a side", {}
        left, _, right, _ = centre_box(train.size)
        if sizes.evaluate > right - left:
            reading_facts = {"tests": f"enlarged from {right - left}"}
    return Dataset(
        name=name,
        example=blank_image((3, sizes.evaluate, sizes.evaluate)),
        outputs=len(train.classes),
        train=_split(train, reading, training=True),
        test=_split(test, reading, training=False),
        classes=list(train.classes),
        source=f"{found.form}, {where}",
        facts={
            "augment": augment,
            **({"color_jitter": f"{color_jitter:g}"} if color_jitter else {}),
            "pixels": pixels,
            **reading_facts,
            **({"passed over": told} if (told := told_of(found.parts)) else {}),
        },
        pixels=pixels,
        contents=lambda: {split: source.listing() for split, source in found.parts.items()},
        helpers=reading.helpers,
        sizes=sizes,
    )


def _found(
    where: str,
    hold_out: int,
    shuffle_shards: int,
    classes_expected: int | None,
    report: Callable[[str], object] | None,
) -> Found:
    path = Path(where)
    if "://" not in where and is_pack(path):
        pack = open_pack(path)
        if "test" not in pack.splits and not hold_out:
            raise UserError(f"{where} is a pack without a test set; set data.hold_out, or pack a folder that has one")
        return Found(f"pack of {pack.form}", pack.splits)
    if is_shards(where):
        whole_set(where, files_of(where))
        splits = ("train",) if hold_out else ("train", "test")
        shards = open_shards(where, report=report, shuffle_shards=shuffle_shards, splits=splits)
        return Found(SHARDS, shards)
    train = scan(path / "train", classes_expected)
    if hold_out:
        return Found(FOLDER, {"train": train})
    return Found(FOLDER, {"train": train, "test": scan(_test_folder(path))})


def _split(source: Any, how: Reading, training: bool) -> Split:
    if isinstance(source, PixelPack):
        return PackedSplit(source, how.sizes, how.augment, how.color_jitter)
    in_store = isinstance(source, Shards) and source.remote
    return SPLITS[how.decode](
        source,
        how.sizes,
        how.augment,
        how.color_jitter,
        how.decode,
        how.workers,
        unreadable=Unreadable(len(source), how.unreadable_share) if training else None,
        epoch_order=source.epoch_order if in_store and training else None,
        ahead=source.ahead if in_store else None,
        at_the_end=source.end_ahead if in_store else None,
        helpers=how.helpers,
    )


def _check_pixels(where: str, pack: PixelPack, how: Reading) -> None:
    largest = max(how.sizes.last, how.sizes.evaluate)
    if largest > pack.size:
        raise UserError(
            f"data.image_size = {largest} is larger than the images of {where}, which have {pack.size} pixels a side; "
            f"take at most that, or pack again with --size {largest}"
        )
    for key, idle in (
        (f"data.decode = {how.decode}", how.decode != USUAL_DECODER),
        (f"data.unreadable_share = {how.unreadable_share:g}", how.unreadable_share > 0),
    ):
        if idle:
            raise UserError(f"{key} has no effect: {where} is a pack of pixels, with nothing to decode; leave it out")


def _test_folder(root: Path) -> Path:
    for name in ("val", "test"):
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} has no val or test folder; evaluation needs {root}/val/<class>/")
