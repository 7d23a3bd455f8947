"""The sections of a recipe: what each key may hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WrapValidator
from pydantic_core import PydanticCustomError

from largebatch.plan.image_views import ImageViews
from largebatch.recipes.config.mistakes import shown
from largebatch.recipes.config.mixing import CropWindow, Erase, Mix
from largebatch.recipes.config.policies import PolicyName
from largebatch.recipes.config.ramp import Ramp
from largebatch.recipes.keys import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    Percent,
    Place,
    PositiveFloat,
    PositiveInt,
    Section,
    Size,
    Skipped,
    Switch,
)


class ImageSizes(Section):
    """The side of training images grows linearly between two epochs, in multiples; tests have a side of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    first: PositiveInt = Field(alias="from")
    last: PositiveInt = Field(alias="to")
    evaluate: PositiveInt | None = None  # unset: as ``to``
    from_epoch: NonNegativeFloat = 0.0
    until_epoch: PositiveFloat | None = None  # unset: to the end of the budget
    multiple_of: PositiveInt = 32  # so a run has few shapes, and each is compiled once

    @property
    def is_constant(self) -> bool:
        return self.first == self.last == (self.evaluate or self.last)

    @pydantic.model_validator(mode="after")
    def growing(self) -> ImageSizes:
        if self.last < self.first:
            raise ValueError(f"data.image_size.to = {self.last} is below data.image_size.from = {self.first}")
        if self.until_epoch is not None and self.until_epoch <= self.from_epoch:
            raise ValueError(
                f"data.image_size.until_epoch = {self.until_epoch:g} should be above data.image_size.from_epoch = "
                f"{self.from_epoch:g}"
            )
        return self


class Data(Section):
    name: str
    root: Place | None = None  # folder of the files; else $LARGEBATCH_DATA, else the cache folder
    image_size: ImageSizes | None = None  # a number is that side throughout; unset: 224
    crop: Annotated[float, Field(gt=0, le=1), Number] = 0.875  # of the short side is seen in a test
    augment: Literal["auto", "none", "flip", "crop", "crop_flip", "resized_crop_flip"] = "auto"
    window: CropWindow | None = None  # how ``augment`` crops and mirrors small images
    policy: PolicyName | None = None  # rand_augment, trivial_augment_wide, auto_augment, timm/rand-m9-mstd0.5-inc1
    color_jitter: Fraction = 0.0  # brightness, contrast and saturation each by a factor in 1 ± this; image sets only
    repeats: PositiveInt = 1  # of each image within a global batch, with draws of its own
    erase: Erase | None = None  # random erasing
    mix: Mix | None = None  # mixup, cutmix
    hold_out: NonNegativeInt = 0  # training examples set aside and evaluated in place of the test set
    decode: Literal["turbo", "pillow", "nvjpeg", "dali"] = "turbo"  # who makes pixels of JPEG
    workers: NonNegativeInt | None = None  # processes (threads of dali) that read and decode images
    shuffle_shards: PositiveInt = 16  # of an object store's shards: so many are shuffled together
    unreadable_share: Fraction = 0.0  # of the training images may be unreadable; another stands in for each
    length: PositiveInt | None = None  # tokens of a sequence; text only, like the next four; unset: 128
    evaluate_length: PositiveInt | None = None  # of the held-out sequences; unset: as in training, in phases the last's
    mask_share: Annotated[float, Field(gt=0, lt=1), Number] = 0.15  # of the tokens are to be predicted
    max_predictions: PositiveInt | None = None  # in a sequence, at most; unset: as many as mask_share makes of it
    next_sentence: Switch = False  # pairs of segments, of which the second follows the first or does not
    if_changed: Literal["refuse", "accept"] = "refuse"  # at a resume, where other images are there than before
    num_classes: PositiveInt | None = None  # synthetic only, like the next two
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    examples: PositiveInt | None = None

    @pydantic.field_validator("image_size", mode="before")
    @classmethod
    def one_side(cls, written: Any) -> Any:
        if isinstance(written, int) and not isinstance(written, bool):
            if written < 1:
                raise ValueError(f"data.image_size = {written} is out of range; at least 1")
            return {"from": written, "to": written}
        if written is not None and not isinstance(written, (dict, ImageSizes)):
            raise ValueError(f"data.image_size = {shown(written)} should be a whole number or {{from: 128, to: 192}}")
        return written

    @property
    def side(self) -> int | None:
        """Of the largest training image; None: the data set's own."""
        return None if self.image_size is None else self.image_size.last

    @property
    def size(self) -> int | None:
        """Of a training example: the side of an image, the tokens of a sequence; None: the data set's own."""
        return self.side or self.length

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        for method in run.methods.values():
            if method.ENDS_EARLY and self.image_size is not None and self.image_size.first != self.image_size.last:
                yield (
                    "data.image_size that grows follows the examples of one plan, which "
                    f"{method.where} need not run to its end; choose one"
                )

    @pydantic.field_serializer("image_size")
    def as_a_number(self, sizes: ImageSizes | None) -> Any:
        if sizes is None:
            return None
        return sizes.first if sizes.is_constant else sizes.model_dump(mode="json", by_alias=True)


AUTO = "auto"


def _number_or_auto(written: Any, number: pydantic.ValidatorFunctionWrapHandler) -> Any:
    if written is None or written == AUTO:
        return written
    if isinstance(written, str):
        raise PydanticCustomError("number", "should be a whole number, or auto")
    return number(written)


if TYPE_CHECKING:
    MicroBatchSize = int | Literal["auto"] | None
else:
    MicroBatchSize = Annotated[
        PositiveInt,
        WrapValidator(_number_or_auto, json_schema_input_type=PositiveInt | Literal["auto"] | None),
        PlainSerializer(lambda written: written),
    ]


class Batch(Section):
    global_batch_size: PositiveInt
    micro_batch_size: MicroBatchSize = None  # auto: tried on the device; unset: the largest divisor up to a usual size
    memory_reserve: Fraction | None = None  # of a device's memory, that auto leaves free; unset: a tenth
    bn_batch_size: PositiveInt | None = None  # examples that one batch norm sees; else the micro-batch
    ramp: Ramp | None = None

    @property
    def tries_micro_batches(self) -> bool:
        return self.micro_batch_size == AUTO

    @property
    def stated_micro_batch_size(self) -> int | None:
        """None where the machine decides it."""
        return None if self.micro_batch_size == AUTO else self.micro_batch_size

    @pydantic.model_validator(mode="after")
    def no_idle_reserve(self) -> Batch:
        if self.memory_reserve is not None and not self.tries_micro_batches:
            raise ValueError(
                f"batch.memory_reserve = {self.memory_reserve:g} has no effect without batch.micro_batch_size = auto"
            )
        return self

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        """What a micro-batch that is tried does not go with: results that depend on it, and what communicates."""
        if not self.tries_micro_batches:
            return
        if run.engine.name != "ddp":
            yield (
                f"batch.micro_batch_size = auto needs engine.name = ddp: with {run.engine.name} ranks communicate "
                "inside of a pass, and one without memory would leave the others waiting; valid there: a number, and "
                "train --dry-run --memory GIB says which fits"
            )
        if run.batch_norm.statistics == "last" and self.bn_batch_size is None:
            yield (
                "batch.micro_batch_size = auto does not go with batch_norm.statistics = last, which are those of the "
                "micro-batch; state batch.bn_batch_size"
            )
        for method in run.methods.values():
            if method.ALONE == "by turns":
                yield (
                    f"batch.micro_batch_size = auto is tried without communication, and {method.where} averages its "
                    "workers within a step; state a number"
                )
            if method.MEASURES_MICRO_BATCHES:
                yield (
                    f"batch.micro_batch_size = auto would let the device decide what {method.where} measures; state a "
                    "number"
                )


class BatchNorm(Section):
    """Which statistics an evaluation uses, and how they are gathered."""

    statistics: Literal["running", "last", "precise"] = "running"  # last: of the last step; precise: recomputed
    momentum: Annotated[float, Field(gt=0, le=1), Number] | None = (
        None  # the weight of the newest (torch's: micro-batch); else the model's
    )
    examples: PositiveInt | None = None  # how many a recomputation sees; else the training set

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> BatchNorm:
        if self.momentum is not None and self.statistics == "last":
            raise ValueError(
                "batch_norm.momentum has no effect with batch_norm.statistics = last, which keeps no average"
            )
        return self

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        recomputed = self.statistics == "precise" or any(method.RECOMPUTES for method in run.methods.values())
        if self.examples is not None and not recomputed:
            yield (
                "batch_norm.examples has no effect without batch_norm.statistics = precise, lawa, schedule_free or SWAP"
            )
        varying = run.batch.ramp is not None or any(method.ALONE for method in run.methods.values())
        if self.statistics == "last" and run.batch.bn_batch_size is None and varying:
            yield (
                "batch_norm.statistics = last needs batch.bn_batch_size where the micro-batch changes during the run "
                "(batch.ramp, averaging)"
            )


class WeightDecay(Section):
    value: NonNegativeFloat = 0.0
    skip: tuple[Skipped, ...] = ("norm", "bias")
    even: Switch = False  # value/factor of a tensor that lr.scales scales by a factor: a step shrinks all alike

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if not self.even:
            return
        if not run.lr.scales:
            yield "weight_decay.even = true has no effect without lr.scales; leave it out"
        if run.phases is not None:
            yield "weight_decay.even = true does not go with phases; choose one"


class TaskSection(BaseModel):
    """``name``, and whatever keys that task takes."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    __pydantic_extra__: dict[str, pydantic.JsonValue] = {}
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Loss(Section):
    """Of a classification; a task's own keys say the same."""

    name: Literal["cross_entropy", "bce"] = "cross_entropy"  # bce: each class for itself, yes or no
    label_smoothing: Fraction = 0.0
    threshold: Fraction | None = None  # bce only, like the next: labels above it are 1, the others 0
    classes: Literal["mean", "sum"] = "mean"  # of an example's losses over the classes

    @pydantic.model_validator(mode="after")
    def no_idle_key(self) -> Loss:
        if self.name != "bce" and (idle := [key for key in ("threshold", "classes") if key in self.changed()]):
            raise ValueError(f"loss.{idle[0]} = {getattr(self, idle[0])} has no effect without loss.name = bce")
        return self

    def changed(self) -> dict[str, Any]:
        """What is not as it is without a word, by the keys of a task."""
        fields = type(self).model_fields
        return {key: value for key in fields if (value := getattr(self, key)) != fields[key].default}


class RegimeAdaptation(Section):
    """Everything stated in epochs is stretched by ceil(B / reference): the number of steps stays (Hoffer 2017)."""

    reference_batch_size: PositiveInt

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        if run.epochs is None:
            yield "regime_adaptation stretches a budget in epochs; this run states steps"


class Evaluate(Section):
    every_epochs: PositiveFloat = 1.0  # and always at the end
    batch_size: PositiveInt = 1000  # examples per rank and forward
    train: Switch | None = None  # at the end also the training set, unaugmented; unset: if it is a small one
    flips: Switch = False  # outputs are the mean of those of an image and of its mirror image
    shift: NonNegativeInt = (
        0  # pixels by which two views are moved along a diagonal, whose outputs count a quarter each
    )
    median_of: PositiveInt = 1  # the result is the median accuracy of the last so many evaluations

    @property
    def views(self) -> ImageViews:
        return ImageViews(self.flips, self.shift)


class Keep(Section):
    """Which checkpoints stay; a number is that many of the last."""

    last: PositiveInt = 2
    every_epochs: PositiveFloat | None = None  # one for each, for good
    best: NonNegativeInt = 0  # so many of the highest accuracy, of those that were evaluated


class Checkpoint(Section):
    every_epochs: NonNegativeFloat = 1.0  # 0: never, not even at the end
    keep: Keep = Keep()
    asynchronous: Switch = True  # written beside the training, which waits for the copy alone

    @pydantic.field_validator("keep", mode="before")
    @classmethod
    def number_of_last(cls, written: Any) -> Any:
        return {"last": written} if isinstance(written, int) and not isinstance(written, bool) else written


class NonfiniteGradients(Section):
    """What happens to a step whose gradient is not finite."""

    action: Literal["stop", "skip"] = "stop"  # skip: no rank steps, and the run goes on with the next batch
    at_most: PositiveInt = 10  # steps skipped in a run; one more ends it

    def refusals(self, run: Any, precision: str) -> Iterator[str]:
        for asked, name in (
            (run.engine.name == "deepspeed", "engine.name = deepspeed"),
            (precision == "fp16", "precision = fp16, whose loss scaler skips such steps itself"),
            *((method.WHOLE, method.where) for method in run.methods.values()),
        ):
            if self.action == "skip" and asked:
                yield (
                    f"nonfinite_gradients.action = skip does not go with {name}; valid there: "
                    "nonfinite_gradients.action = stop"
                )


class Published(Section):
    """What a paper reports for one global batch; accuracies in percent, other ``numbers`` by their key."""

    numbers: dict[str, float] = Field({})
    downstream: dict[str, float] = Field({})
    top1: Percent | None = None
    top1_std: PositiveFloat | None = None
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None


class Expect(Section):
    """The published result, printed beside what was measured: ``top1``, or ``numbers`` of another task by their key.

    ``downstream`` are those of what comes after the run, such as a fine-tuning's F1: shown, and not asked of the task.
    """

    numbers: dict[str, float] = Field({})
    downstream: dict[str, float] = Field({})
    top1: Percent | None = None
    steps: PositiveInt | None = None
    source: str
    by_batch_size: dict[Size, Published] = Field({})
    note: str | None = None  # what the numbers are not: another data set, a secondary source
