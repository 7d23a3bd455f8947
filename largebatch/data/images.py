"""Image sets: what lies at ``data.root``, what of it is trained on, what is judged by, and who makes pixels of it.

    pack of pixels      memory-mapped uint8             packs/split.py: nothing to decode
    pack of JPEG        one indexed file                \\
    image folder        train/<class>/*.jpg              workers.WorkerSplit, or the same with ``data.decode`` on a
    WebDataset shards   train-*.tar, here or in a store /  device (nvjpeg) or by DALI (dali)

A folder and its packs have one order of examples, so the steps of a run hold the same ones (unless a pack left some
out); shards have the order in which they were written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from largebatch.data import places
from largebatch.data.contents import FOLDER, SHARDS
from largebatch.data.dali import DaliSplit
from largebatch.data.dataset import Split, Splits
from largebatch.data.folder import scan
from largebatch.data.nvjpeg import NvjpegSplit
from largebatch.data.other_forms import refuse_other_forms
from largebatch.data.packs.by_workers import PixelsByWorkers, PixelSource
from largebatch.data.packs.pack import PixelPack, is_pack, open_pack
from largebatch.data.packs.split import PackedSplit
from largebatch.data.passed_over import told_of
from largebatch.data.processes import Helpers, processors
from largebatch.data.questions import same_classes, whole_set
from largebatch.data.resident import HOLD_OUT_SEED
from largebatch.data.sets import USUAL_DECODER, Asked, leaves_some
from largebatch.data.sets._photographs import Photographs, sizes_of
from largebatch.data.shards.source import ShardedImages, files_of, is_shards, open_shards
from largebatch.data.sizes import Sizes
from largebatch.data.unreadable import Unreadable
from largebatch.data.views import centre_box
from largebatch.data.workers import WorkerSplit
from largebatch.errors import UserError, suggestion

MOST_WORKERS = 8  # unless more are asked for
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
    crop: float
    augment: str
    color_jitter: float
    policy: str | None
    decode: str
    workers: int
    unreadable_share: float
    helpers: Helpers


class ImageSplits(NamedTuple):
    """``parts``: train and, where there is one, test."""

    form: str
    parts: Mapping[str, Any]


def image_set(known: Photographs, asked: Asked) -> Splits:
    """The data set under ``asked.root``; images held out of those to train on, at random, replace its test set."""
    if asked.policy is not None and asked.decode in ("nvjpeg", "dali"):
        raise UserError(
            f"data.policy = {asked.policy} changes images where workers have decoded them, and data.decode = "
            f"{asked.decode} decodes later; valid: turbo, pillow"
        )
    if asked.decode not in SPLITS:
        raise UserError(f"data.decode = {asked.decode!r} is not a decoder{suggestion(asked.decode, list(SPLITS))}")
    reading = Reading(
        sizes_of(asked),
        asked.crop,
        known.augmentation(asked),
        asked.color_jitter,
        asked.policy,
        asked.decode,
        min(MOST_WORKERS, processors()) if asked.workers is None else asked.workers,
        asked.unreadable_share,
        Helpers(),
    )
    where = _place(known, asked.root)
    found = _found(where, known.number_of_classes, asked)
    train, test = _divided(where, found, known, asked.hold_out)
    if asked.repeats > 1 and isinstance(train, ShardedImages) and train.remote:
        raise UserError(
            f"data.repeats = {asked.repeats} asks for the images of a batch again, and shards in a store are read in "
            "their own order; valid: shards on this host, a folder or a pack, or data.repeats = 1"
        )
    pixels, facts = _check_pixels(where, train, reading)
    splits = _split(train, reading, training=True), _split(test, reading, training=False)
    made = known.outline(asked, splits, f"{found.form}, {where}", len(train.classes))
    facts = {
        **made.facts,
        **({"color_jitter": f"{asked.color_jitter:g}"} if asked.color_jitter else {}),
        "pixels": pixels,
        **facts,
        **({"passed over": told} if (told := told_of(found.parts)) else {}),
    }
    return dataclasses.replace(
        made,
        classes=list(train.classes),
        facts=facts,
        pixels=pixels,
        contents=lambda: {split: source.listing() for split, source in found.parts.items()},
        helpers=reading.helpers,
    )


def _place(known: Photographs, root: str | None) -> str:
    """The folder, or the address in a store."""
    if root is None and not known.origin.folders:
        raise UserError(
            f"data.root is missing: data set {known.name} needs a folder with train/<class>/*.jpg, a pack, or shards"
        )
    for here in ("file://", "local://"):
        root = root.removeprefix(here) if root is not None else None
    if root is not None and "://" not in root and places.find(known.name, root) is None:
        refuse_other_forms(Path(root))
    return root if root is not None and "://" in root else str(places.located(known.name, root).path)


def _divided(where: str, images: ImageSplits, known: Photographs, hold_out: int) -> tuple[Any, Any]:
    """The sources that are trained on and judged by."""
    train = images.parts["train"]
    if known.number_of_classes is not None and len(train.classes) != known.number_of_classes:
        raise UserError(f"{where} has {len(train.classes)} classes; {known.name} needs {known.number_of_classes}")
    same_classes(where, {"train": train} if hold_out else images.parts)
    if not hold_out:
        return train, images.parts["test"]
    leaves_some(hold_out, len(train))
    chosen = np.zeros(len(train), dtype=bool)
    order = np.random.Generator(np.random.PCG64(HOLD_OUT_SEED)).permutation(len(train))
    chosen[order[:hold_out]] = True
    return train.part(~chosen), train.part(chosen)


def _found(where: str, classes_expected: int | None, asked: Asked) -> ImageSplits:
    hold_out = asked.hold_out
    path = Path(where)
    if "://" not in where and is_pack(path):
        pack = open_pack(path)
        if "test" not in pack.splits and not hold_out:
            raise UserError(f"{where} is a pack without a test set; set data.hold_out, or pack a folder that has one")
        return ImageSplits(f"pack of {pack.form}", pack.splits)
    if is_shards(where):
        whole_set(where, files_of(where))
        splits = ("train",) if hold_out else ("train", "test")
        shards = open_shards(where, report=asked.report, shuffle_shards=asked.shuffle_shards, splits=splits)
        return ImageSplits(SHARDS, shards)
    refuse_other_forms(path)
    train = scan(path / "train", classes_expected)
    if hold_out:
        return ImageSplits(FOLDER, {"train": train})
    return ImageSplits(FOLDER, {"train": train, "test": scan(_test_folder(path))})


def _split(source: Any, how: Reading, training: bool) -> Split:
    policy = how.policy if training else None
    if isinstance(source, PixelPack) and policy is not None:
        return PixelsByWorkers(
            PixelSource(source), how.sizes, how.augment, how.color_jitter, how.decode, how.workers, helpers=how.helpers,
            policy=policy, crop=how.crop,
        )  # fmt: skip
    if isinstance(source, PixelPack):
        return PackedSplit(source, how.sizes, how.augment, how.color_jitter, how.crop)
    in_store = isinstance(source, ShardedImages) and source.remote
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
        policy=policy,
        crop=how.crop,
    )


def _check_pixels(where: str, train: Any, how: Reading) -> tuple[str, dict[str, str]]:
    """Who made the pixels, and what else to tell of reading; refused where a pack of them does not serve."""
    if not isinstance(train, PixelPack):
        return f"decoded by {how.decode}", {"workers": str(how.workers)}
    largest = max(how.sizes.last, how.sizes.evaluate)
    if largest > train.size:
        raise UserError(
            f"data.image_size = {largest} is larger than the images of {where}, which have {train.size} pixels a side; "
            f"take at most that, or pack again with --size {largest}"
        )
    for key, idle in (
        (f"data.decode = {how.decode}", how.decode != USUAL_DECODER),
        (f"data.unreadable_share = {how.unreadable_share:g}", how.unreadable_share > 0),
    ):
        if idle:
            raise UserError(f"{key} has no effect: {where} is a pack of pixels, with nothing to decode; leave it out")
    left, _, right, _ = centre_box(train.size, how.crop)
    enlarged = {"tests": f"enlarged from {right - left}"} if how.sizes.evaluate > right - left else {}
    return f"packed at {train.size} a side", enlarged


def _test_folder(root: Path) -> Path:
    for name in ("val", "test"):
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} has no val or test folder; evaluation needs {root}/val/<class>/")
