"""The data sets a recipe can name: one file for each, with its facts, what it takes, where it comes from, its builder.

A file that is added to this folder, or to another on the ``__path__`` of this package, is a data set; others may be
registered. Until one is built nothing here loads torch, so a recipe is read aloud, a set is fetched, and a dry run is
sized from the same facts.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from largebatch.data.published import ByHand, NoFiles, Origin
from largebatch.data.sizes import CENTRE, Sizes, constant
from largebatch.errors import UserError, suggestion
from largebatch.recipes import kinds
from largebatch.recipes.registry import Registry

if TYPE_CHECKING:
    from largebatch.data.dataset import Split, Splits
    from largebatch.recipes.config import Data
    from largebatch.recipes.config.mixing import CropWindow, Erase, Mix

USUAL_DECODER = "turbo"
WORKED_OUT = {"image_size", "length", "evaluate_length", "max_predictions", "if_changed"}
OWN_SECTIONS = {"mix", "erase", "window"}
"""Keys of a recipe's ``data`` that are no plain values."""


@dataclass(frozen=True)
class Asked:
    """What a recipe's ``data:`` asks of a set."""

    name: str
    root: str | None = None  # the only place looked at; an address such as s3://bucket/shards for images in a store
    image_size: Sizes | None = None  # the side of what an image set gives, and how it grows; unset: 224
    crop: float = CENTRE  # of the short side of an image that is seen where nothing is drawn
    augment: str = "auto"  # one of largebatch.data.augment; auto: the set's standard
    window: CropWindow | None = None  # how small images are cropped and mirrored; unset: 4 black pixels, at random
    policy: str | None = None  # of largebatch.data.policies, after the window
    color_jitter: float = 0.0  # s changes brightness, contrast and saturation each by a factor in 1 ± s
    mix: Mix | None = None  # mixup and cutmix of training batches
    erase: Erase | None = None  # a rectangle of training images
    repeats: int = 1  # of an image within a global batch
    hold_out: int = 0  # training examples that become ``test`` and leave ``train``; the test set is not read
    decode: str = USUAL_DECODER  # who makes pixels of JPEG: turbo, pillow, nvjpeg, dali
    workers: int | None = None  # processes of a rank that read images; unset: one per processor, at most 8
    shuffle_shards: int = 16  # of an object store's shards: so many are shuffled together
    unreadable_share: float = 0.0  # of the training images; the next readable one stands in for each
    length: Sizes | None = None  # tokens of a sequence, in each phase and in an evaluation; unset: 128
    mask_share: float = 0.15  # of the tokens are to be predicted
    max_predictions: tuple[int | None, ...] = ()  # in a sequence, in each phase; None, (): what mask_share makes of it
    next_sentence: bool = False  # pairs of segments
    num_classes: int | None = None  # of a set that is made up, like the next three
    image_shape: tuple[int, int, int] | None = None  # C, H, W
    examples: int | None = None
    seed: int = 0
    report: Callable[[str], object] | None = None  # hears of what takes long

    @classmethod
    def of(cls, section: Data, **worked_out: Any) -> Asked:
        """The keys of a recipe's section as they stand, and what was ``worked_out`` of the others."""
        keys = section.model_dump(exclude=WORKED_OUT | OWN_SECTIONS)
        return cls(**keys, **{key: getattr(section, key) for key in OWN_SECTIONS}, **worked_out)


class DataSet(abc.ABC):
    """One that a recipe can name; ``name`` is its file's."""

    name: ClassVar[str]
    task: ClassVar[str] = "classification"  # what it is for, where the recipe does not say
    takes: ClassVar[frozenset[str]] = frozenset()  # keys of OF_SOME
    origin: Origin = NoFiles("its file makes it")
    examples: ClassVar[int | None] = None  # to train on, as published
    test_examples: ClassVar[int | None] = None
    holds: ClassVar[str] = "examples that its file does not count"  # where ``examples`` are not known
    photographs: ClassVar[bool] = False  # whether processes read it, file by file

    @abc.abstractmethod
    def build(self, asked: Asked) -> Splits:
        """Ready to be read. What all sets take was looked at, and keys that this one does not take are refused."""

    def counts(self, asked: Asked) -> tuple[int | None, int | None]:
        """Examples to train and to test on, before any is held out; None where only the files say."""
        return self.examples, self.test_examples

    def outputs(self, asked: Asked) -> int | None:
        """The numbers a model is to give for each example; None where only the files say."""
        return None

    def shape(self, asked: Asked) -> tuple[int, ...]:
        """Of one input as an evaluation meets it: channels, height, width of an image; () where it is not known."""
        return ()

    def resident_bytes(self, asked: Asked) -> int:
        """Of one example, where all of them lie on the device."""
        return 0

    def is_outlined(self, asked: Asked, stated: bool) -> bool:
        """Whether a dry run takes the outline, and not what lies here. ``stated``: how many there are was said."""
        return False

    def outline(self, asked: Asked, splits: tuple[Split, Split], source: str, outputs: int) -> Splits:
        """The data set around these splits, of which nothing was read."""
        raise NotImplementedError


OF_SOME = {  # keys that only the sets take which say so: what they are for, and what is said of the others
    "unreadable_share": ("{takers} only", "is read as a whole"),
    "color_jitter": ("{takers} only", "is read as a whole"),
    "decode": ("{takers} only", "is read as a whole"),
    "num_classes": ("{takers} only", "has its own"),
    "image_shape": ("{takers} only", "has its own"),
    "examples": ("{takers} only", "has its own"),
    "augment": ("images", "has none"),
    "window": ("{takers} only", "has none"),
    "policy": ("images", "has none"),
    "crop": ("{takers} only", "is seen as a whole"),
    "image_size": ("images", "has none"),
    "length": ("text", "has no sequences"),
    "mask_share": ("text", "has no sequences"),
    "max_predictions": ("text", "has no sequences"),
    "next_sentence": ("text", "has no sequences"),
}
IDLE: dict[str, tuple[Any, ...]] = {
    "unreadable_share": (0.0,), "color_jitter": (0.0,), "decode": (USUAL_DECODER,), "augment": ("auto", "none"),
    "crop": (CENTRE,), "mask_share": (0.15,), "max_predictions": ((),), "next_sentence": (False,),
}  # fmt: skip
LEAST = {"hold_out": 0, "workers": 0, "num_classes": 1, "examples": 1}


class RegisteredSet(DataSet):
    """What a registered function makes: it is given the keys of ``data:`` that it has parameters for."""

    holds = "examples that the code behind it counts"

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function  # type: ignore[misc]
        self.keys = tuple(key for key in inspect.signature(function).parameters if key in Asked.__dataclass_fields__)
        self.takes = frozenset(self.keys)  # type: ignore[misc]
        if "root" in self.keys:
            self.origin = ByHand("its code says where they come from")

    def build(self, asked: Asked) -> Splits:
        from largebatch.data.own import Dataset

        made = self.function(**{key: getattr(asked, key) for key in self.keys})
        if not isinstance(made, Dataset):
            raise UserError(
                f"data.name = {self.name} is made a {type(made).__name__}; it should be a largebatch.Dataset"
            )
        return made.opened(asked)


def _a_set(name: str, thing: Any) -> RegisteredSet:
    return RegisteredSet(name, thing if callable(thing) else lambda: thing)


def of_package() -> list[str]:
    return list(kinds.modules(__name__, __path__))


REGISTRY: Registry[RegisteredSet] = Registry("data.name", _a_set, of_package)
register = REGISTRY.register


def names() -> list[str]:
    return sorted([*of_package(), *REGISTRY.names()])


def table() -> dict[str, DataSet]:
    """Every data set by its name."""
    return {name: known(name) for name in names()}


def known(name: str) -> DataSet:
    """The data set called ``name``."""
    if (registered := REGISTRY.get(name)) is not None:
        return registered
    modules = kinds.modules(__name__, __path__)
    if name not in modules:
        raise UserError(f"data.name = {name[:60]!r} is not a data set{suggestion(name, names())}")
    module = modules[name]()
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, DataSet) and kind.__dict__.get("name") == name:
            return kind()
    raise UserError(f'{module.__file__} holds no DataSet with name = "{name}", as the file is called')


def read_by_workers(name: str) -> bool:
    """Whether it is there, and processes read it file by file."""
    return name in names() and known(name).photographs


def build(name: str, *, image_size: Sizes | int | None = None, **keys: Any) -> Splits:
    """The data set called ``name``, ready to be read; the keys are those of :class:`Asked`."""
    sizes = constant(image_size) if isinstance(image_size, int) else image_size
    return built(Asked(name, image_size=sizes, **keys))


def built(asked: Asked) -> Splits:
    found = known(asked.name)
    check(found, asked)
    return finished(found.build(asked), asked)


def finished(splits: Splits, asked: Asked) -> Splits:
    """The data set with what is done to whole training batches."""
    if asked.mix is None and asked.erase is None:
        return splits
    from largebatch.data.finishing import with_finish

    return with_finish(splits, asked)


def check(known: DataSet, asked: Asked) -> None:
    """Refuse numbers out of their range, and keys that the set does not take."""
    if asked.image_size is not None and asked.image_size.first < 1:
        raise UserError(f"data.image_size = {asked.image_size.first} is out of range; at least 1")
    for key, bound in LEAST.items():
        value = getattr(asked, key)
        if value is not None and value < bound:
            raise UserError(f"data.{key} = {value} is out of range; at least {bound}")
    if not 0 <= asked.unreadable_share < 1:
        raise UserError(f"data.unreadable_share = {asked.unreadable_share} is out of range; at least 0 and below 1")
    if asked.image_shape is not None and (len(asked.image_shape) != 3 or min(asked.image_shape) < 1):
        raise UserError(
            f"data.image_shape = {list(asked.image_shape)} should be three positive sizes: channels, height, width"
        )
    for key in (key for key in OF_SOME if key not in known.takes and getattr(asked, key) not in IDLE.get(key, (None,))):
        whom, why = OF_SOME[key]
        takers = " and ".join(name for name, other in table().items() if key in other.takes)
        raise UserError(f"data.{key} is for {whom.format(takers=takers)}; data set {known.name} {why}")
    if asked.root is not None and isinstance(known.origin, NoFiles):
        raise UserError(f"data.root = {asked.root!r} is not used: data set {known.name} has no files")


def leaves_some(hold_out: int, examples: int) -> None:
    """Refuse to hold out all there is to train on."""
    if hold_out >= examples:
        raise UserError(f"data.hold_out = {hold_out} leaves nothing to train on; at most {examples - 1}")


def evaluated_on(asked: Asked) -> str:
    return f"{asked.hold_out} held-out training examples" if asked.hold_out else "the test set"
