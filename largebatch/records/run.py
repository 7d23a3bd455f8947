"""What the files of a run directory hold: ``plan.json``, the lines of ``metrics.jsonl``, ``result.json``.

``docs/run_directory.md`` is made from this file: behind a field stands what it means, its unit in brackets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from largebatch.plan.score import ACCURACY, Score
from largebatch.records.target import TargetRecord
from largebatch.records.typed import (
    Amount,
    Cited,
    Count,
    FileRecord,
    Flag,
    Judged,
    Name,
    Number,
    Numbers,
    Size,
    Table,
    Text,
    Whole,
    lenient_part,
    part,
    read,
)

Ramp = Sequence[Annotated[Sequence[Number], Field(min_length=2, max_length=2)]]


@dataclass(frozen=True, kw_only=True)
class PlannedRate:
    """The learning rate as it was planned."""

    peak: Amount  # as the optimizer gets it
    rule: Text  # how it follows from the batch, in words
    warmup: Text  # in words
    decay: Text  # in words


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """A stretch of a run; a run without phases is one."""

    epoch: Number  # where it begins, in passes over the data
    until_epoch: Amount  # where it is to end
    step: Whole  # steps before it
    steps: Whole
    global_batch_size: Whole  # [examples] of its first step
    micro_batch_size: Whole  # [examples] that a rank computes at once
    accumulation_steps: Whole  # micro-batches of a rank in a step
    image_size: Whole  # [pixels] a side; null: the data set's own, or one that grows
    length: Whole  # [tokens] of a sequence; null: examples are no text, or the recipe has no phases
    lr: Text  # rule, warm-up and decay, in words; or that it goes on
    peak_lr: Amount  # as the optimizer gets it
    weight_decay: Amount
    optimizer: Table | None  # settings that are not the recipe's own, be it by a rule of the batch


@dataclass(frozen=True, kw_only=True)
class TriedMicroBatch:
    """A micro-batch that was tried before the first step."""

    pixels: Count  # of an example; 392 for each token of a sequence
    micro_batch_size: Size  # [examples]
    fits: Flag  # on every rank
    free_share: Amount  # of the device's memory, free afterwards on the rank with the least; null: it ran out of memory
    ranks_without: Sequence[Count]  # those that ran out of memory, or kept less free than the reserve


@dataclass(frozen=True, kw_only=True)
class MicroBatchTrial:
    """What `batch.micro_batch_size = auto` found; a resume takes it where the circumstances are the same."""

    largest: Mapping[str, Size]  # [examples] that fit, by the pixels of an example
    reserve: Amount  # share of the device's memory that stays free
    circumstances: Table  # ranks, device, its memory, and what else the memory of a step depends on
    tried: Sequence[Annotated[TriedMicroBatch, part(TriedMicroBatch)]]

    @property
    def by_pixels(self) -> dict[int, int]:
        return {int(pixels): size for pixels, size in self.largest.items() if pixels.isdecimal()}

    @property
    def words(self) -> str:
        """What was found and what did not fit."""
        largest = ", ".join(f"{size:,}" for size in dict.fromkeys(self.largest.values()))
        failed = sorted({one.micro_batch_size or 0 for one in self.tried if not one.fits})
        beyond = f"; {failed[0]:,} did not fit" if failed else ""
        return f"micro-batches of up to {largest} fit, with {self.reserve or 0:.0%} of the memory free{beyond}"


@dataclass(frozen=True, kw_only=True)
class PlanRecord(FileRecord):
    """``plan.json``: what was decided before time was spent; written anew when a run goes on."""

    name: Text  # of the recipe
    title: Text  # of the recipe, for people
    task: Text  # what is learned
    score: Judged | None = None  # the number the run is judged by; none: its accuracy in percent
    dataset: Text
    dataset_source: Text  # where its examples lie
    dataset_size: Whole  # [examples] to train on
    test_size: Whole  # [examples] to evaluate on
    global_batch_size: Size  # [examples] of the first step, over all ranks and micro-batches
    micro_batch_size: Whole  # [examples] that a rank computes at once
    accumulation_steps: Whole  # micro-batches of a rank in a step
    micro_batch_trial: Annotated[MicroBatchTrial | None, lenient_part(MicroBatchTrial)] = None  # where it is tried
    bn_batch_size: Whole  # [examples] that a batch norm sees together; null: the micro-batch
    methods: Text  # what else the recipe asks for, in words
    ramp: Ramp | None  # pairs of an epoch and the batch from then on
    phases: Sequence[Annotated[PhaseRecord, part(PhaseRecord)]] | None = None
    world_size: Count | None  # ranks
    steps: Count  # to be made
    budget_examples: Amount  # [examples] to be trained on
    epochs: Amount  # the same, in passes over the data
    lr: Annotated[PlannedRate | None, lenient_part(PlannedRate)]
    parameters: Whole
    device: Text
    precision: Text
    engine: Text
    engine_settings: Text  # in words
    activation_checkpointing: Text = None  # of which modules the inside is computed again, in words
    seed: Count
    command: Text  # that the run was started with
    machine: Table | None  # processor, cores, threads, GPU, system
    versions: Table | None  # of Python and of packages
    commit: Text  # of largebatch; with + where files were changed
    code: Table | None = None  # of parts that are not largebatch's, by their key: name, file and SHA-256
    started: Text  # when, in UTC

    @property
    def judged_by(self) -> Score:
        """Runs of before scores were data were all judged by their accuracy."""
        return self.score or ACCURACY


class LineRecord(FileRecord):
    """A line of ``metrics.jsonl``; the kind of each stands under ``event``."""

    EVENT: ClassVar[str]
    step: Count  # steps done


@dataclass(frozen=True, kw_only=True)
class TrainLine(LineRecord):
    """Each ``record.every_steps``: of the steps since the last such line. ``numbers`` are those of further methods."""

    EVENT = "train"
    BY_KEY = "numbers"

    step: Count  # steps done
    examples_seen: Whole  # [examples] up to here
    epoch: Amount  # the same, in passes over the data
    seconds: Amount  # [s] of training up to here, without evaluations and saving
    lr: Amount  # of the last step
    loss: Amount  # mean over their examples; null where none is finite
    grad_norm: Amount  # of the last step's gradient, before it is clipped; null where it is not known
    examples_per_second: Amount  # [examples/s]
    gain: Amount = None  # of the last step, where the schedule follows gains
    progress: Amount = None  # of such a schedule, in steps of the small batch
    global_batch_size: Whole = None  # [examples] of the last step, where a ramp changes it
    orthogonalised: Amount = None  # matrices a step, counted in the iteration itself over all ranks
    numbers: Numbers


@dataclass(frozen=True, kw_only=True)
class EvaluateLine(LineRecord):
    """An evaluation; ``numbers`` are the task's: its loss, its score and what else it tells."""

    EVENT = "evaluate"
    BY_KEY = "numbers"

    step: Count  # steps done
    examples_seen: Whole  # [examples] up to here
    epoch: Amount  # the same, in passes over the data
    seconds: Amount  # [s] of training up to here
    split: Text  # test, held_out or train; else the test set, by an average of weights
    numbers: Numbers
    examples: Whole  # [examples] evaluated, each once


@dataclass(frozen=True, kw_only=True)
class LayersLine(LineRecord):
    """One step's, where ``record.layers_every_steps`` asks: over the layers.

    ``numbers`` are min, quarter, median, three_quarters and max of the trust ratio (``trust_ratio_median``) and of the
    relative update, and of the adapted layers the shares whose ratio was bounded or the fallback.
    """

    EVENT = "layers"
    BY_KEY = "numbers"

    step: Count  # steps done, that one included
    examples_seen: Whole  # [examples] up to here
    numbers: Numbers


@dataclass(frozen=True, kw_only=True)
class DirectionsLine(LineRecord):
    """One step's, where ``record.directions_every_steps`` asks; null where there was nothing to compare with."""

    EVENT = "directions"

    step: Count  # steps done, that one included
    examples_seen: Whole  # [examples] up to here
    epoch: Amount  # the same, in passes over the data
    distance_from_start: Amount  # of the weights, ‖θ_t − θ_0‖
    weight_norm: Amount  # ‖θ_t‖
    update_norm: Amount  # ‖Δ_t‖
    relative_update: Amount  # ‖Δ_t‖ / ‖θ_t‖
    gradient_alignment: Amount  # cosine of the gradient and the one before
    update_alignment: Amount  # cosine of the step and the one before
    secant_curvature: Amount  # along the step before, from the difference of both gradients


@dataclass(frozen=True, kw_only=True)
class NoiseScaleLine(LineRecord):
    """The gradient noise scale, where ``record.noise_scale`` asks: averaged over the steps measured so far."""

    EVENT = "noise_scale"

    step: Count  # steps done, the newest that was measured included
    examples_seen: Whole  # [examples] up to here
    epoch: Amount  # the same, in passes over the data
    small_batch_size: Whole  # [examples] of a part whose gradient is measured alone
    big_batch_size: Whole  # [examples] of all parts
    noise_scale: Amount  # [examples] null: not bounded
    noise_scale_low: Amount  # [examples] of its 95 % interval
    noise_scale_high: Amount  # [examples] null: not bounded
    gradient_square: Amount  # estimate of ‖G‖²
    variance_trace: Amount  # estimate of the trace of one example's covariance


@dataclass(frozen=True, kw_only=True)
class RampLine(LineRecord):
    """At each mark of `batch.ramp.rule = adaptive`: what was asked, and what was decided for the steps to come."""

    EVENT = "ramp"

    step: Count  # steps done
    examples_seen: Whole  # [examples] up to here
    epoch: Amount  # the same, in passes over the data
    global_batch_size: Whole  # [examples] of the last step
    next_global_batch_size: Whole  # [examples] of the next
    noise_scale: Amount  # [examples] null: not bounded
    noise_scale_low: Amount  # [examples] of its 95 % interval
    measured_steps: Amount  # as many independent ones would be as certain
    why: Text  # what was decided, in words


@dataclass(frozen=True, kw_only=True)
class RanksLine(LineRecord):
    """One step's, where ``record.ranks_every_steps`` asks: what it was made of, and which rank the others waited for.

    ``seconds`` are those of data, compute, forward, backward, communication, optimizer and step, each of the median
    rank (``data_seconds_median``), of the slowest in it (``data_seconds_most``) and of the slowest of all
    (``slowest_data_seconds``); null where the engine does not tell them apart.
    """

    EVENT = "ranks"
    BY_KEY = "seconds"

    step: Count  # steps done, that one included
    examples_seen: Whole  # [examples] up to here
    epoch: Amount  # the same, in passes over the data
    seconds: Numbers
    slowest_rank: Count  # whose own seconds (data, compute, optimizer) are most
    slowest_host: Name
    slowest_part: Name  # of its own, the one furthest above the median
    own_seconds_median: Number  # [s]
    own_seconds_slowest: Number  # [s]
    slowest_over_median: Amount  # ratio of both


@dataclass(frozen=True, kw_only=True)
class CheckpointLine(LineRecord):
    """How a save ended."""

    EVENT = "checkpoint"

    step: Count  # steps done when it was begun
    written: Flag  # whether it is on the disk
    problem: Text  # why not
    megabytes: Amount  # [MB]
    seconds_saving: Amount  # [s] until it was on the disk, beside the training
    seconds_standing: Amount  # [s] that the training stood still for it


@dataclass(frozen=True, kw_only=True)
class ResumeLine(LineRecord):
    """The run goes on from a checkpoint; what the machine decides."""

    EVENT = "resume"

    step: Count  # steps done
    examples_seen: Whole  # [examples] up to here
    world_size: Whole  # ranks
    threads_per_rank: Whole
    micro_batch_size: Whole  # [examples]
    precision: Text
    device: Text
    engine: Text  # with its settings
    pixels: Text  # how images were decoded


@dataclass(frozen=True, kw_only=True)
class StopLine(LineRecord):
    """The run was asked to stop, or a process died that reads images for it."""

    EVENT = "stop"

    step: Count  # steps done
    reason: Text  # the signal's name, or a sentence


@dataclass(frozen=True, kw_only=True)
class SkippedLine(LineRecord):
    """A step that no rank made: its gradient was not finite."""

    EVENT = "skipped"

    step: Count  # the step's number, from 1
    skipped_so_far: Whole  # steps


@dataclass(frozen=True, kw_only=True)
class UnreadableLine(LineRecord):
    """Training images that could not be read since the last such line; others stood in for them."""

    EVENT = "unreadable"

    step: Count  # steps done
    examples_seen: Whole  # [examples] up to here
    count: Whole  # images so far
    share: Amount  # of the training set so far
    files: Mapping[str, str]  # the new ones, and why each could not be read


@dataclass(frozen=True, kw_only=True)
class TrainAccuracyLine(LineRecord):
    """At the end of each epoch, where workers go on alone from a train accuracy."""

    EVENT = "train_accuracy"

    step: Count  # steps done
    examples_seen: Whole  # [examples] up to here
    accuracy_percent: Amount  # [%] of right answers in the training of this epoch


@dataclass(frozen=True)
class WorkerResult:
    """What one of several workers reached before all are averaged."""

    worker: int  # from 0
    steps: int  # that it made
    train_loss: float  # mean of its last steps, those of a tenth of its training
    test_accuracy_percent: float  # [%] before averaging


def _workers(value: object) -> list[WorkerResult] | None:
    return [read(WorkerResult, one, "workers") for one in value] if isinstance(value, list) else None


Workers = Annotated[Sequence[WorkerResult] | None, BeforeValidator(_workers)]


@dataclass(frozen=True, kw_only=True)
class WorkerLine(WorkerResult, LineRecord):
    """The end of such a worker."""

    EVENT = "worker"

    step: Count  # steps done before the workers


@dataclass(frozen=True, kw_only=True)
class LoggerLine(LineRecord):
    """One of ``record.to`` failed, for the first time or for good."""

    EVENT = "logger"

    step: Count  # steps done
    logger: Name
    problem: Text
    given_up: Flag  # whether the run goes on without it


@dataclass(frozen=True, kw_only=True)
class AddedLine(LineRecord):
    """What a part of one's own tells, under an event of its own."""

    EVENT = "part"
    BY_KEY = "numbers"

    step: Count  # steps done
    numbers: Numbers


LINES: dict[str, type[LineRecord]] = {
    kind.EVENT: kind
    for kind in (
        TrainLine, EvaluateLine, LayersLine, DirectionsLine, NoiseScaleLine, RampLine, RanksLine, CheckpointLine,
        ResumeLine, StopLine, SkippedLine, UnreadableLine, TrainAccuracyLine, WorkerLine, LoggerLine, AddedLine,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResultRecord(FileRecord):
    """``result.json``: how the run ended, and what it reached.

    ``numbers`` are those of the last evaluations, with the split before their keys: ``test_loss``, ``test_`` and the
    score's key (the median of the last ``evaluate.median_of``), the same of ``train_``, and the score of an average of
    weights. ``test_`` stands for the split the run is judged on.
    """

    BY_KEY = "numbers"

    status: Name  # finished; failed; stopped: the same command goes on
    reason: Text  # why it did not finish
    steps: Whole  # made one after another, those of such workers included
    examples_seen: Whole  # [examples] by all
    evaluated_on: Text  # test or held_out
    numbers: Numbers
    workers: Workers = None  # that went on alone and were averaged
    ramp: Ramp | None = None  # pairs of an epoch and the batch from then on, where its noise scale had the batch grow
    reached_train_accuracy: Flag = None  # whether the training before them reached its target
    target: Annotated[TargetRecord | None, lenient_part(TargetRecord)] = None  # of a run with evaluate.stop_at
    peak_lr: Amount  # the highest that the optimizer got
    seconds_training: Amount  # [s] in steps
    seconds_total: Amount  # [s] evaluations and saving included, sessions summed
    seconds_per_step: Amount  # [s]
    seconds_per_epoch: Amount  # [s]
    examples_per_second: Amount  # [examples/s]
    parameters: Whole


@dataclass(frozen=True, kw_only=True)
class LoggersRecord(FileRecord):
    """``loggers.json``: by which name the services of ``record.to`` know the run, also when it goes on."""

    id: Name


@dataclass(frozen=True, kw_only=True)
class NoiseScaleSection:
    """``record.noise_scale`` of a recipe."""

    smoothing: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.99
    every_steps: Count = 5


@dataclass(frozen=True, kw_only=True)
class RecordSection:
    noise_scale: Annotated[NoiseScaleSection | None, part(NoiseScaleSection)] = None


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    name: Text


@dataclass(frozen=True, kw_only=True)
class BatchSection:
    global_batch_size: Whole


@dataclass(frozen=True, kw_only=True)
class RecipeRecord:
    """``run.yaml``, as far as who reads a run relies on it; :mod:`largebatch.recipes.config` knows all of its keys."""

    model: Annotated[ModelSection | None, lenient_part(ModelSection)]
    batch: Annotated[BatchSection | None, lenient_part(BatchSection)]
    record: Annotated[RecordSection | None, part(RecordSection)]
    expect: Cited | None
