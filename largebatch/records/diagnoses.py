"""What ``diagnose`` measured on a run: ``diagnostics/<kind>.json``.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from largebatch.plan.score import ACCURACY, Score
from largebatch.records.typed import (
    LARGEST,
    Amount,
    Count,
    FileRecord,
    Flag,
    Judged,
    Name,
    Number,
    Numbers,
    Table,
    Text,
    Whole,
    part,
)

Radius = Annotated[float, Field(strict=True, gt=0, le=LARGEST)]
Place = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
Grid = Sequence[Number]
Pairs = Sequence[Sequence[Amount]]


@dataclass(frozen=True, kw_only=True)
class DiagnosisRecord(FileRecord):
    """What every measurement says of where it was made."""

    kind: Name
    directory: Text  # of the run
    ranks: Whole
    command: Text
    machine: Table | None  # processor, cores, threads, GPU, system
    versions: Table | None  # of Python and of packages
    commit: Text  # of largebatch; with + where files were changed


@dataclass(frozen=True, kw_only=True)
class WeightsRecord(DiagnosisRecord):
    """Of the weights of one checkpoint."""

    run: Text  # the recipe's name
    title: Text  # for people
    weights: Text  # which: trained, not an average; of an evaluation also ema, lawa
    step: Whole  # of the checkpoint
    model: Text
    data: Text
    precision: Text  # of weights and passes


@dataclass(frozen=True, kw_only=True)
class NoiseRecord(WeightsRecord):
    """The gradient noise scale, from global batches and the parts that they consist of."""

    kind: Name = "noise"
    small_batch_size: Whole  # [examples] of a part
    big_batch_size: Count  # [examples]
    batches: Whole  # big ones
    hessian: Flag  # whether the Hessian was asked for
    global_batch_size: Whole  # [examples] of the run's first step
    gradient_square: Amount  # estimate of ‖G‖²
    variance_trace: Amount  # estimate of the trace of one example's covariance
    noise_scale: Amount  # [examples] null: not bounded
    noise_scale_low: Amount  # [examples] of its 95 % interval
    noise_scale_high: Amount  # [examples] null: not bounded
    hessian_noise_scale: Amount  # [examples] tr(HΣ)/(GᵀHG); null: not measured, or not positive
    squares: Pairs | None  # of each big batch the mean ‖g‖² of its parts, and its own


@dataclass(frozen=True, kw_only=True)
class SearchedBox:
    """Keskar's metric in one box around the weights."""

    space: Text  # full or random
    dimensions: Count | None  # of a random space
    epsilon: Radius  # half its side, over 1 + the weight's size
    sharpness: Amount  # [%] rise of the loss, of 1 + loss
    max_loss: Amount  # the highest found
    iterations: Whole  # of L-BFGS-B
    evaluations: Whole  # of loss and gradient
    seconds: Amount  # [s]


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """SAM's step up the gradient."""

    rho: Number  # its length
    loss: Amount  # there
    increase: Amount  # of the loss


@dataclass(frozen=True, kw_only=True)
class CitedSharpness:
    """What a paper measured for this network, data set and side."""

    space: Text  # full or random
    epsilon: Amount
    sharpness: Amount  # [%] mean over its runs
    std: Amount  # [%] over its runs
    source: Text


@dataclass(frozen=True, kw_only=True)
class SharpnessRecord(WeightsRecord):
    """How far the training loss rises around the weights."""

    kind: Name = "sharpness"
    global_batch_size: Whole  # [examples] of the run's first step
    examples: Whole  # [examples] looked at
    batch_size: Whole  # [examples] of a pass
    batch_norm: Text  # batch: statistics of each batch; running: those kept; none: the model has none
    seed: Whole  # of the random space
    loss: Amount  # at the weights
    keskar: Sequence[Annotated[SearchedBox, part(SearchedBox)]]
    sam: Sequence[Annotated[Ascent, part(Ascent)]] | None
    published: Sequence[Annotated[CitedSharpness, part(CitedSharpness)]] | None


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """Of the Hessian."""

    value: Amount
    residual: Amount  # there is an eigenvalue no further than this


@dataclass(frozen=True, kw_only=True)
class EigenvalueDensity:
    """Over an even grid; integrates to 1."""

    eigenvalue: Grid | None  # the grid
    density: Grid | None  # at each of its points
    width: Amount  # standard deviation of the Gaussian that stands for one eigenvalue
    vectors: Whole  # random ones; null: of every eigenvalue
    iterations: Whole  # of Lanczos, for each of them


@dataclass(frozen=True, kw_only=True)
class SpectrumRecord(WeightsRecord):
    """The Hessian of the training loss."""

    kind: Name = "spectrum"
    examples: Whole  # [examples] looked at
    batch_size: Whole  # [examples] of a pass
    batch_norm: Text  # batch: statistics of each batch; running: those kept; none: the model has none
    parameters: Whole
    loss: Amount  # at the weights
    gradient_norm: Amount  # there
    largest: Sequence[Annotated[Eigenvalue, part(Eigenvalue)]]  # descending
    smallest: Sequence[Annotated[Eigenvalue, part(Eigenvalue)]]  # ascending
    trace: Amount
    trace_std_error: Amount  # 0: it is exact; null: not known
    density: Annotated[EigenvalueDensity | None, part(EigenvalueDensity)]
    positive_share: Amount  # of all eigenvalues
    zero_share: Amount
    negative_share: Amount
    zero_below: Amount  # what counts as zero
    shares_exact: Flag  # whether every eigenvalue was computed
    products: Whole  # with the Hessian
    seconds: Amount  # [s]


@dataclass(frozen=True, kw_only=True)
class PathEnd:
    """One of the two runs."""

    run: Text  # the recipe's name
    title: Text  # for people
    directory: Text
    step: Whole  # of the checkpoint
    seed: Whole
    global_batch_size: Whole  # [examples] of its first step


@dataclass(frozen=True, kw_only=True)
class PathPoint(FileRecord):
    """``numbers`` are those of an evaluation with the split before their keys: ``train_loss``, ``test_loss``, ..."""

    BY_KEY = "numbers"

    alpha: Place  # 0: a; 1: b
    numbers: Numbers


@dataclass(frozen=True, kw_only=True)
class PathRecord(DiagnosisRecord):
    """Loss and score between the weights of two runs; both keep it."""

    kind: Name = "path"
    a: Annotated[PathEnd, part(PathEnd)]  # where alpha is 0
    b: Annotated[PathEnd, part(PathEnd)]  # where alpha is 1
    model: Text
    data: Text
    precision: Text  # of weights and passes
    score: Judged | None = None  # the number both are judged by; none: the accuracy in percent
    distance: Amount  # ‖a − b‖
    examples: Whole  # [examples] looked at
    batch_size: Whole  # [examples] of a pass
    batch_norm: Text  # recomputed: statistics anew at every point; batch: of each batch; none: the model has none
    line: Annotated[Sequence[Annotated[PathPoint, part(PathPoint)]], Field(min_length=1)]  # (1 − α)·a + α·b
    curve: Sequence[Annotated[PathPoint, part(PathPoint)]] | None  # cos(απ/2)·a + sin(απ/2)·b

    @property
    def judged_by(self) -> Score:
        return self.score or ACCURACY

    @property
    def ends(self) -> Mapping[str, PathEnd]:
        return {"a": self.a, "b": self.b}

    @property
    def ways(self) -> Mapping[str, Sequence[PathPoint]]:
        """Those that were measured."""
        return {way: points for way, points in (("line", self.line), ("curve", self.curve)) if points}


@dataclass(frozen=True, kw_only=True)
class PlateauRecord(DiagnosisRecord):
    """Why the loss does not fall, or whether it does."""

    kind: Name = "plateau"
    run: Text  # the recipe's name
    title: Text  # for people
    step: Whole  # of the last recorded loss
    verdict: Text  # in a word
    sentence: Name  # the same in a sentence
    evidence: Sequence[Name] | None
    advice: Sequence[Name] | None
    numbers: Table | None  # that the verdict follows from
    examples: Whole = None  # [examples] looked at
    batch_size: Whole = None  # [examples] of a pass
    checkpoint_step: Whole = None  # of the checkpoint that was looked at


@dataclass(frozen=True, kw_only=True)
class BranchRecord(DiagnosisRecord):
    """One branch of a training, with the loss of every step: ``critical/step-N/WINDOW-RULE/kK-orderI.json``."""

    kind: Name = "branch"
    run: Text  # the recipe's name
    step: Whole  # of the checkpoint
    checkpoint: Text  # the SHA-256 of its manifest
    factor: Number  # k: its batch over the run's
    order: Whole  # of the data: 0 is the run's own
    global_batch_size: Whole  # [examples]
    micro_batch_size: Whole  # [examples]
    lr: Amount  # of all of its steps
    lr_rule: Text  # linear, sqrt or none
    window: Whole  # [examples] trained on
    losses: Sequence[Amount]  # of each step, before it; null: not finite
    held_out_loss: Amount = None  # at the end, on what the run is evaluated on
    seconds: Amount  # [s] of its steps

    @property
    def diverged(self) -> bool:
        return None in self.losses


@dataclass(frozen=True, kw_only=True)
class FactorOutcome:
    """All branches of one k at one checkpoint."""

    factor: Number  # k
    global_batch_size: Whole  # [examples]
    lr: Amount
    steps: Whole
    losses: Sequence[Amount]  # what each order is judged by; null: it diverged
    excess: Amount  # over the smaller k that it loses most against: the mean
    excess_high: Amount  # [loss] which it is below, at 95 %
    p: Amount  # that it is above the tolerance by chance, corrected for all pairs of the checkpoint


@dataclass(frozen=True, kw_only=True)
class CriticalPoint:
    """What was found at one checkpoint."""

    step: Whole
    examples_seen: Whole  # [examples] before it
    global_batch_size: Whole  # [examples] B, of the run there
    lr: Amount  # of the run there
    verdict: Text  # critical, at least, at most, not decided
    factor: Amount  # k*, the largest that loses nothing; null: not decided
    factor_low: Amount  # where it is not decided, between which it lies
    factor_high: Amount
    critical_batch_size: Amount  # [examples] k*·B
    drawn: Amount  # [examples] B times the geometric mean of k* and the next k above
    excluded: Amount  # [loss] k* is not seen to lose, and loses less than this, at 95 %
    gained: Amount  # [loss] what the window gains at the k next to 1
    noise_scale: Amount  # [examples] at the same weights; null: not bounded, or not measured
    noise_scale_low: Amount  # [examples] of its 95 % interval
    noise_scale_high: Amount  # [examples] null: not bounded
    branches: Sequence[Annotated[FactorOutcome, part(FactorOutcome)]]


@dataclass(frozen=True, kw_only=True)
class CriticalRecord(DiagnosisRecord):
    """The critical batch at checkpoints of one run, by branches at multiples of its batch."""

    kind: Name = "critical"
    run: Text  # the recipe's name
    title: Text  # for people
    model: Text
    data: Text
    optimizer: Text
    lr_rule: Text  # how the lr follows the batch: linear, sqrt or none
    window: Whole  # [examples] that every branch is trained on
    judged_by: Text  # last: the mean loss over the last part of the window; ema: the paper's average; held_out
    last_part: Whole  # [examples] of the window, for last
    tolerance: Number  # [loss] that is allowed
    orders: Whole  # of the data, in each of which every k has a branch
    points: Sequence[Annotated[CriticalPoint, part(CriticalPoint)]]


@dataclass(frozen=True, kw_only=True)
class StepTimeRecord(DiagnosisRecord):
    """A step of one run beside what the cluster model makes of it on a machine."""

    kind: Name = "step"
    run: Text  # the recipe's name
    title: Text  # for people
    model: Text
    global_batch_size: Whole  # [examples]
    micro_batch_size: Whole  # [examples] of a rank
    accumulation_steps: Whole
    cluster: Text  # the machine's name
    workload: Text  # its pace
    precision: Text  # of the run
    pace_precision: Text  # that the pace was measured in; null: not known
    seconds: Amount  # [s] of a step of the run, the mean
    model_seconds: Amount  # [s] compute + fixed + exposed + data
    model_seconds_low: Amount  # [s] of its 95 % interval; null: the machine was not fitted
    model_seconds_high: Amount  # [s]
    compute_seconds: Amount  # [s]
    fixed_seconds: Amount  # [s] once a step
    communication_seconds: Amount  # [s] all that is sent
    exposed_seconds: Amount  # [s] of it, what nothing hides


DIAGNOSES: dict[str, type[DiagnosisRecord]] = {
    record.kind: record
    for record in (
        NoiseRecord, SharpnessRecord, SpectrumRecord, PathRecord, PlateauRecord, CriticalRecord, StepTimeRecord
    )
}  # fmt: skip
