"""Where in WebDataset's tar files each image lies, and its class: read from the headers once, then kept.

A sample is the members with one key, which is everything up to the first dot of the file name, its folder included: an
image, and its class in ``<key>.cls`` or in ``<key>.json``. Members are taken as webdataset takes them: links, devices,
names without a key and ``__meta__`` members are passed over, extensions are in lower case; hidden members are passed
over, too. Nothing is ever unpacked.

Reading the headers of a million images takes a minute or two, so the index is kept under the digest of the names, sizes
and versions of its shards: shards written anew have another index. It is arrays alone, and one that is broken is made
again. Of several processes that start together one reads the headers and the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from largebatch.data.passed_over import HIDDEN, LINK, SPECIAL, PassedOver, is_hidden
from largebatch.data.shards.cache import Handle, Shard, lock
from largebatch.errors import UserError
from largebatch.records.files import whole

IMAGES = ("jpg", "jpeg", "png", "webp")
_FORMAT = 2  # of the kept index
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_NUMBER = re.compile(r"[+-]?[0-9]+")
_CLASSES_AT_MOST = 1_000_000  # a larger number is an identifier, and no output of a model
_NAME_BYTES = 96  # of a member's name, for messages
_BLOCK = 512

Shards = Mapping[str, Sequence[Shard]]  # by split


class Index(NamedTuple):
    """The images of a split in order: shard by shard, as they come in it."""

    shard: np.ndarray  # int32, which of the split's shards
    offset: np.ndarray  # int64, the image's first byte in it
    length: np.ndarray  # int64
    label: np.ndarray  # int64
    name: np.ndarray  # bytes, the member's

    def part(self, chosen: np.ndarray) -> Index:
        return Index(*(array[chosen] for array in self))


class ShardSplits(NamedTuple):
    classes: tuple[str, ...]
    splits: dict[str, Index]
    passed_over: dict[str, str]  # by split


class _Image(NamedTuple):
    name: str
    offset: int
    length: int
    of_class: int | str


def kept_index(
    shards: Shards,
    opened: Callable[[Shard], Handle],
    folder: Path,
    report: Callable[[str], object],
    at_once: int = 1,
) -> ShardSplits:
    """The index in ``folder``; made and left there if there is none. ``at_once`` shards are opened together."""
    path = folder / f"{hashlib.sha256(repr((_FORMAT, shards)).encode()).hexdigest()[:32]}.npz"
    if (kept := _load(path, shards)) is not None:
        return kept
    with _alone(path):
        if (kept := _load(path, shards)) is None:
            kept = _made(shards, opened, report, at_once)
            with contextlib.suppress(OSError):  # the next start reads the headers again
                _save(path, kept)
    return kept


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # nowhere to keep an index: each for itself
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(path.with_suffix(".lock")))
        yield


def _made(
    shards: Shards, opened: Callable[[Shard], Handle], report: Callable[[str], object], at_once: int
) -> ShardSplits:
    wanted = [shard for split in shards.values() for shard in split]
    report(f"reading the headers of {len(wanted)} shards, {sum(shard.size for shard in wanted) / 1e9:.1f} GB")
    with ThreadPoolExecutor(at_once) as pool:
        scanned, passed_over = [], [PassedOver() for _ in wanted]
        for images in pool.map(lambda shard, over: scan(opened(shard), shard.address, over), wanted, passed_over):
            scanned.append(images)
            if 10 * len(scanned) // len(wanted) > 10 * (len(scanned) - 1) // len(wanted):
                report(f"read the headers of {len(scanned)} of {len(wanted)} shards")
    label_of = _labels([(shard, image) for shard, images in zip(wanted, scanned, strict=True) for image in images])
    splits, rest, told = {}, iter(zip(scanned, passed_over, strict=True)), {}
    for split, members in shards.items():
        of_split = PassedOver()
        per_shard = []
        for images, own in itertools.islice(rest, len(members)):
            per_shard.append(images)
            of_split.join(own)
        told[split] = str(of_split)
        images = [image for images in per_shard for image in images]
        if not images:
            raise UserError(f"the {split} shards hold no images: {members[0].address} and {len(members) - 1} others")
        splits[split] = Index(
            np.repeat(np.arange(len(members), dtype=np.int32), [len(images) for images in per_shard]),
            np.array([image.offset for image in images], dtype=np.int64),
            np.array([image.length for image in images], dtype=np.int64),
            np.array([label_of[image.of_class] for image in images], dtype=np.int64),
            np.array([_shortened(os.fsencode(image.name)) for image in images], dtype=np.bytes_),
        )
    return ShardSplits(tuple(str(of_class) for of_class in label_of), splits, told)


def _labels(images: list[tuple[Shard, _Image]]) -> dict[int | str, int]:
    """The label of each class, in order: numbers 0 to the highest, or names sorted."""
    of_kind: dict[type, tuple[Shard, _Image]] = {}
    for found in images:
        of_kind.setdefault(type(found[1].of_class), found)
    if len(of_kind) > 1:
        (shard, number), (other, name) = of_kind[int], of_kind[str]
        raise UserError(
            f"{shard.address}: {number.name} has the number {number.of_class} as its class, and {name.name} in "
            f"{other.address} the name {name.of_class!r}; all need numbers, or all names"
        )
    classes = {image.of_class for _, image in images}
    numbers = [of_class for of_class in classes if isinstance(of_class, int)]
    if numbers:
        return {number: number for number in range(max(numbers) + 1)}
    return {name: label for label, name in enumerate(sorted(map(str, classes)))}


def scan(handle: Handle, title: str, passed_over: PassedOver | None = None) -> list[_Image]:
    """The images of one shard, in the order of their samples' first members."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(handle, title):
        if (kind := _passed_over(member)) is not None and passed_over is not None:
            passed_over.add(kind, f"{title.rpartition('/')[2]}: {member.name}")
        found = _KEY.fullmatch(member.name)
        if kind is not None or not member.isreg() or _META.match(member.name) or found is None:
            continue
        sample, extension = samples.setdefault(found[1], {}), found[2].lower()
        kind = "image" if extension in IMAGES else extension
        if kind in sample:
            again = "is there twice" if sample[kind].name == member.name else f"is one more beside {sample[kind].name}"
            raise UserError(f"{title}: {member.name} {again}; a sample has one file of a kind, and one image")
        sample[kind] = member
    images = []
    for key, sample in samples.items():
        image = sample.get("image")
        if image is None:
            only = next(iter(sample.values())).name
            raise UserError(f"{title}: sample {key} has {only} but no image ({', '.join(IMAGES)})")
        images.append(_Image(image.name, image.offset_data, image.size, _class_of(handle, title, key, sample)))
    return images


def _passed_over(member: tarfile.TarInfo) -> str | None:
    """Why a member that could be taken for data is none."""
    if any(map(is_hidden, member.name.split("/"))):
        return HIDDEN
    if member.islnk() or member.issym():
        return LINK
    return None if member.isreg() or member.isdir() else SPECIAL


def _members(handle: Handle, title: str) -> Iterator[tarfile.TarInfo]:
    """Every member. tarfile takes a broken header for the end; here the end is where its mark is."""
    size = handle.size
    with os.fdopen(os.dup(handle.fd), "rb") as file:
        try:
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # the file is what needs closing
            last = None
            while (member := archive.next()) is not None:
                if member.isreg() and not 0 <= member.offset_data + member.size <= size:
                    break
                last = member
                yield member
        except Exception as reason:  # a broken header can raise nearly anything
            raise UserError(f"{title} is not a whole tar file: {reason}") from None
    if member is not None:
        raise UserError(f"{title} is cut off: {member.name} ends at byte {member.offset_data + member.size} of {size}")
    block = handle.read(archive.offset, _BLOCK)
    after = f"after {last.name}" if last is not None else "at its beginning"
    if len(block) < _BLOCK:
        raise UserError(f"{title} is cut off {after}: a tar file's end mark is missing")
    if any(block):
        raise UserError(f"{title} has a broken header {after}, at byte {archive.offset}")


def _class_of(handle: Handle, title: str, key: str, sample: Mapping[str, tarfile.TarInfo]) -> int | str:
    member = sample.get("cls") or sample.get("json")
    if member is None:
        raise UserError(f"{title}: {sample['image'].name} has no class; {key}.cls or {key}.json should hold it")
    try:
        text = handle.read(member.offset_data, member.size).decode().strip()
        if member is not sample.get("cls"):
            told = json.loads(text)
            text = told.get("label", told.get("cls")) if isinstance(told, dict) else None
    except (ValueError, RecursionError):
        text = None
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str) or not text:
        raise UserError(
            f"{title}: {member.name} holds no class; a .cls file is a number or a name, a .json file has it as "
            "label or cls"
        )
    if not _NUMBER.fullmatch(text):
        return text
    if len(text) > 9 or not 0 <= int(text) < _CLASSES_AT_MOST:
        raise UserError(f"{title}: class {text} in {member.name} is out of range; 0 to {_CLASSES_AT_MOST - 1}")
    return int(text)


def _shortened(name: bytes) -> bytes:
    return name if len(name) <= _NAME_BYTES else b"..." + name[3 - _NAME_BYTES :]


def _save(path: Path, made: ShardSplits) -> None:
    arrays: dict[str, Any] = {"classes": np.array(made.classes, dtype=np.str_)}
    for split, index in made.splits.items():
        arrays |= {f"{split}.{field}": array for field, array in index._asdict().items()}
        arrays[f"{split}.passed_over"] = np.array(made.passed_over[split])
    with whole(path) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)


def _load(path: Path, shards: Shards) -> ShardSplits | None:
    """None where there is none, or not a whole one: whatever is wrong with it, it is made again."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            classes = tuple(kept["classes"].tolist())
            splits = {split: Index(*(kept[f"{split}.{field}"] for field in Index._fields)) for split in shards}
            told = {split: str(kept[f"{split}.passed_over"]) for split in shards}
        fits = all(_fits(splits[split], shards[split], len(classes)) for split in shards)
        return ShardSplits(classes, splits, told) if fits else None
    except Exception:
        return None


def _fits(index: Index, shards: Sequence[Shard], classes: int) -> bool:
    """Whether every image lies inside its shard and has one of the classes."""
    sizes = np.array([shard.size for shard in shards])
    within = (index.shard >= 0) & (index.offset >= 0) & (index.length >= 0) & (index.label >= 0)
    return bool(
        {array.shape for array in index} == {(len(index.label),)}
        and (within & (index.offset + index.length <= sizes[index.shard]) & (index.label < classes)).all()
    )
