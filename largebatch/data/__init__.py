"""Data sets by name, each read from its public format.

Small sets (``mnist``, ``fashion_mnist``, ``cifar10``, ``cifar100``, ``digits``, ``synthetic``) live on the
device as uint8 and are augmented there; image sets (``folder``, ``imagenet``) are packs, folders or shards
(:mod:`largebatch.data.images`). :func:`build` takes plain arguments; ``data.<argument>`` in messages is the
recipe's key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from largebatch.data import augment as augmentation
from largebatch.data import places
from largebatch.data.contents import Listing
from largebatch.data.dataset import Dataset, Placement, Split, Statistics
from largebatch.data.facts import FACTS, Facts, uniform
from largebatch.data.formats import Arrays
from largebatch.data.images import DEFAULT_SIDE, USUAL_DECODER, image_set
from largebatch.data.resident import ResidentSplit, TensorSplit, held_out
from largebatch.data.sizes import Sizes, constant
from largebatch.errors import UserError, suggestion

__all__ = ["NAMES", "Dataset", "Placement", "Sizes", "Split", "build"]


@dataclasses.dataclass(frozen=True)
class _Wish:
    """The arguments of :func:`build`, on their way to a builder."""

    name: str
    root: str | None
    sizes: Sizes | None
    augment: str
    color_jitter: float
    hold_out: int
    decode: str
    workers: int | None
    shuffle_shards: int
    unreadable_share: float
    num_classes: int | None
    image_shape: tuple[int, int, int] | None
    examples: int | None
    seed: int
    report: Callable[[str], object] | None


def build(
    name: str,
    *,
    root: str | None = None,
    image_size: Sizes | int | None = None,
    augment: str = "auto",
    color_jitter: float = 0.0,
    hold_out: int = 0,
    decode: str = "turbo",
    workers: int | None = None,
    shuffle_shards: int = 16,
    unreadable_share: float = 0.0,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    examples: int | None = None,
    seed: int = 0,
    report: Callable[[str], object] | None = None,
) -> Dataset:
    """The data set called ``name``, ready to be read.

    ``root`` is the only place looked at when given; an address such as ``s3://bucket/shards`` for images in an
    object store. ``image_size`` is the side of what an image set gives (default 224), or how it grows.
    ``augment`` is one of :mod:`largebatch.data.augment`; ``auto`` is the set's standard. ``color_jitter`` s
    changes brightness, contrast and saturation each by a factor in 1 ± s.
    ``hold_out`` training examples, stratified by class where the set is small (at random in image folders),
    become ``test`` and leave ``train``; the choice never depends on a run's seed, and the test set is not
    read. ``decode`` says who makes pixels of JPEG: ``turbo``, ``pillow``, ``nvjpeg``, ``dali``. ``workers`` are
    the processes per rank that read images (default: one per processor, at most 8; 0 reads in the trainer's
    own process); small sets and packs of pixels need none. ``shuffle_shards`` of an object store's shards are
    shuffled together. ``unreadable_share`` of the training images may be unreadable: the next readable one
    stands in for each. ``num_classes``, ``image_shape`` (C, H, W), ``examples`` and ``seed`` describe
    ``synthetic`` alone. ``report`` hears of what takes long.
    """
    if name not in _BUILDERS:
        raise UserError(f"data.name = {name!r} is not a data set{suggestion(name, NAMES)}")
    wish = _Wish(
        name=name,
        root=root,
        sizes=constant(image_size) if isinstance(image_size, int) else image_size,
        augment=augment,
        color_jitter=color_jitter,
        hold_out=hold_out,
        decode=decode,
        workers=workers,
        shuffle_shards=shuffle_shards,
        unreadable_share=unreadable_share,
        num_classes=num_classes,
        image_shape=image_shape,
        examples=examples,
        seed=seed,
        report=report,
    )
    _check(wish)
    return _BUILDERS[name](wish)


def _check(wish: _Wish) -> None:
    if wish.sizes is not None and wish.sizes.first < 1:
        raise UserError(f"data.image_size = {wish.sizes.first} is out of range; at least 1")
    least = {"hold_out": 0, "workers": 0, "num_classes": 1, "examples": 1}
    for key, bound in least.items():
        value = getattr(wish, key)
        if value is not None and value < bound:
            raise UserError(f"data.{key} = {value} is out of range; at least {bound}")
    if not 0 <= wish.unreadable_share < 1:
        raise UserError(f"data.unreadable_share = {wish.unreadable_share} is out of range; at least 0 and below 1")
    if wish.name not in ("folder", "imagenet"):
        of_images = {
            "unreadable_share": wish.unreadable_share > 0,
            "color_jitter": wish.color_jitter > 0,
            "decode": wish.decode != USUAL_DECODER,
        }
        for key in (key for key, asked in of_images.items() if asked):
            raise UserError(f"data.{key} is for folder and imagenet only; data set {wish.name} is read as a whole")
    if wish.image_shape is not None and (len(wish.image_shape) != 3 or min(wish.image_shape) < 1):
        raise UserError(
            f"data.image_shape = {list(wish.image_shape)} should be three positive sizes: channels, height, width"
        )
    if wish.name != "synthetic":
        for key in ("num_classes", "image_shape", "examples"):
            if getattr(wish, key) is not None:
                raise UserError(f"data.{key} is for synthetic only; data set {wish.name} has its own")
    if wish.name in ("diabetes", "digit_pairs", "digits", "synthetic") and wish.root is not None:
        raise UserError(f"data.root = {wish.root!r} is not used: data set {wish.name} has no files")


def _from_files(wish: _Wish) -> Dataset:
    facts = FACTS[wish.name]
    found = places.located(wish.name, wish.root)
    assert found.form is not None
    title = f"{facts.title} (JPEG)" if "JPEG" in found.form.title else facts.title

    def load(part: str) -> Arrays:
        images, labels = found.arrays(part)
        _check_contents(found.path, part, facts, images, labels)
        return images, labels

    return _resident(wish, facts, load, f"{title}, {found.form.title}, {found.path}")


def _check_contents(path: Path, part: str, facts: Facts, images: np.ndarray, labels: np.ndarray) -> None:
    channels, height, width = facts.shape
    if images.shape[1:] != (height, width, channels):
        found = "x".join(map(str, images.shape[1:]))
        raise UserError(f"{path}: {part} images should be {height}x{width}x{channels}, found {found}")
    if not len(labels):
        raise UserError(f"{path}: the {part} files hold no images")
    if labels.max() >= len(facts.classes):
        raise UserError(f"{path}: {part} labels should be below {len(facts.classes)}, found {labels.max()}")


def _digits_by_part() -> Callable[[str], Arrays]:
    """scikit-learn's 1,797 digits of 8×8 (0..16 scaled to 0..255): 1,500 to train, 297 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data set digits comes with scikit-learn, which is not installed") from None
    raw, labels = load_digits(return_X_y=True)
    images = np.rint(np.asarray(raw) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.Generator(np.random.PCG64(1797)).permutation(len(images))
    parts = {"train": order[:1500], "test": order[1500:]}
    return lambda part: (images[parts[part]], np.asarray(labels)[parts[part]])


def _digits(wish: _Wish) -> Dataset:
    return _resident(wish, FACTS["digits"], _digits_by_part(), "digits, scikit-learn's load_digits")


def _digit_pairs(wish: _Wish) -> Dataset:
    """Two of the digits side by side, 8×16; labels say which of the ten are there. Each digit stands once on the left
    and, beside another one of its part, once on the right."""
    load_one = _digits_by_part()

    def load(part: str) -> Arrays:
        images, digits = load_one(part)
        other = np.roll(np.arange(len(images)), 1)
        labels = np.zeros((len(images), 10), dtype=np.uint8)
        for of in (digits, digits[other]):
            labels[np.arange(len(images)), of] = 1
        return np.concatenate((images, images[other]), axis=2), labels

    made = _resident(wish, FACTS["digit_pairs"], load, "digit_pairs, scikit-learn's load_digits two by two")
    return dataclasses.replace(made, task="multilabel")


def _diabetes(wish: _Wish) -> Dataset:
    """scikit-learn's 442 patients: ten measurements, and how far the disease went a year later; 342 to train.

    Inputs and targets are standardised by the mean and the standard deviation of the 342, so that a squared error of 1
    is that of always answering their mean.
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError:
        raise UserError("data set diabetes comes with scikit-learn, which is not installed") from None
    _no_images(wish)
    inputs, targets = (np.asarray(part, dtype=np.float64) for part in load_diabetes(return_X_y=True, scaled=False))
    order = np.random.Generator(np.random.PCG64(442)).permutation(len(inputs))
    train, test = order[:342], order[342:]
    columns = np.column_stack((inputs, targets))
    columns = torch.from_numpy((columns - columns[train].mean(0)) / columns[train].std(0)).float()
    if wish.hold_out:
        if wish.hold_out >= len(train):
            raise UserError(f"data.hold_out = {wish.hold_out} leaves nothing to train on; at most {len(train) - 1}")
        mask = held_out(columns[train, -1:].numpy(), wish.hold_out)
        train, test = train[~mask], train[mask]
    parts = {name: (columns[rows, :-1], columns[rows, -1:]) for name, rows in (("train", train), ("test", test))}
    return Dataset(
        name=wish.name,
        example=(torch.zeros(1, 10), torch.zeros(1, 1)),
        outputs=1,
        train=TensorSplit(parts["train"]),
        test=TensorSplit(parts["test"]),
        source="diabetes, scikit-learn's load_diabetes",
        task="regression",
        classes=["progression"],
        facts={"evaluated on": _evaluated_on(wish.hold_out)},
    )


def _no_images(wish: _Wish) -> None:
    asked = {"augment": wish.augment not in ("auto", "none"), "image_size": wish.sizes is not None}
    for key in (key for key, is_asked in asked.items() if is_asked):
        raise UserError(f"data.{key} is for images; data set {wish.name} has none")


def _synthetic(wish: _Wish) -> Dataset:
    """Uniform random pixels and labels: nothing to learn, any shape, for measuring throughput."""
    size = wish.sizes.last if wish.sizes else 32
    shape, count = wish.image_shape or (3, size, size), wish.examples or 10_000
    classes = wish.num_classes or 10
    facts = Facts("synthetic", tuple(str(label) for label in range(classes)), shape, uniform(shape[0]))
    counts = {"train": count, "test": max(1, count // 10)}

    def load(part: str) -> Arrays:
        rng = np.random.Generator(np.random.PCG64([wish.seed, len(part)]))
        images = np.frombuffer(rng.bytes(counts[part] * int(np.prod(shape))), np.uint8)
        channels, height, width = shape
        labels = rng.integers(0, classes, size=counts[part])
        return images.reshape(-1, height, width, channels).copy(), labels

    return _resident(wish, facts, load, f"synthetic, seed {wish.seed}")


def _resident(wish: _Wish, facts: Facts, load: Callable[[str], Arrays], source: str) -> Dataset:
    _, height, width = facts.shape
    sides = set() if wish.sizes is None else {*wish.sizes.all, wish.sizes.evaluate}
    if sides - {height} or (sides and height != width):
        raise UserError(
            f"data.image_size = {max(sides)} does not fit data set {wish.name}; its images are {height}x{width}"
        )
    augment = augmentation.resolved(wish.augment, facts.augment, augmentation.RESIDENT, wish.name)
    train = load("train")
    loaded = {"train": train}
    if wish.hold_out:
        if wish.hold_out >= len(train[1]):
            raise UserError(f"data.hold_out = {wish.hold_out} leaves nothing to train on; at most {len(train[1]) - 1}")
        mask = held_out(train[1], wish.hold_out)
        train, test = (train[0][~mask], train[1][~mask]), (train[0][mask], train[1][mask])
    else:
        loaded["test"] = test = load("test")
    split = _split(train, facts.statistics, augment)
    return Dataset(
        name=wish.name,
        example=(torch.zeros(1, *facts.shape), torch.zeros_like(split.tensors[1][:1])),
        outputs=len(facts.classes),
        train=split,
        test=_split(test, facts.statistics, augment),
        classes=list(facts.classes),
        source=source,
        facts={"augment": augment, "evaluated on": _evaluated_on(wish.hold_out)},
        contents=lambda: {split: Listing(facts.classes, labels) for split, (_, labels) in loaded.items()},
    )


def _split(arrays: Arrays, statistics: Statistics, augment: str) -> ResidentSplit:
    return ResidentSplit(arrays[0], arrays[1], statistics, augment)


def _evaluated_on(hold_out: int) -> str:
    return f"{hold_out} held-out training examples" if hold_out else "the test set"


def _images(wish: _Wish) -> Dataset:
    dataset = image_set(
        wish.name,
        wish.root,
        sizes=wish.sizes or constant(DEFAULT_SIDE),
        augment=wish.augment,
        color_jitter=wish.color_jitter,
        hold_out=wish.hold_out,
        decode=wish.decode,
        workers=wish.workers,
        shuffle_shards=wish.shuffle_shards,
        unreadable_share=wish.unreadable_share,
        classes_expected=1000 if wish.name == "imagenet" else None,
        report=wish.report,
    )
    return dataclasses.replace(dataset, facts={"evaluated on": _evaluated_on(wish.hold_out), **dataset.facts})


_BUILDERS: dict[str, Callable[[_Wish], Dataset]] = {
    "fashion_mnist": _from_files,
    "mnist": _from_files,
    "cifar10": _from_files,
    "cifar100": _from_files,
    "diabetes": _diabetes,
    "digit_pairs": _digit_pairs,
    "digits": _digits,
    "folder": _images,
    "imagenet": _images,
    "synthetic": _synthetic,
}
NAMES: list[str] = list(_BUILDERS)
