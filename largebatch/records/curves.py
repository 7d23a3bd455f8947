"""What rows needed to a target at each batch size, with the law that was fitted: facts behind table and picture.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from largebatch.records.typed import Amount, Count, FileRecord, Flag, Name, Number, Size, Table, Text, Whole, part

Line = Sequence[Sequence[Number]]

PERFECT = 1.2
"""Examples against the least ones, up to which scaling is called perfect (Zhang et al. 2024, arXiv:2410.21676)."""


@dataclass(frozen=True, kw_only=True)
class ReachedPoint:
    """One batch size over its runs. Intervals hold at most ``level``, which is below 95 % for fewer than six runs."""

    global_batch_size: Size  # [examples]
    settings: Mapping[str, float]  # of the runs, by key: lr, ...
    runs: Count
    reached: Count  # of the runs
    examples: Number  # [examples] median or mean to the target; a lower bound unless exact
    exact: Flag  # whether examples are known
    examples_low: Amount  # [examples] of its interval; null: one run
    examples_high: Amount  # [examples] null: one run, or not bounded
    level: Amount  # [share] null: one run
    steps: Number  # examples / global_batch_size; where the batch grows from that, what the runs took
    fitted_examples: Amount  # [examples] null: nothing was fitted
    error: Amount  # fitted_examples / examples − 1; null: a lower bound, or nothing was fitted
    seconds: Amount = None  # [s] to the target, of the same runs
    seconds_low: Amount = None  # [s]
    seconds_high: Amount = None  # [s]
    seconds_exact: Flag = None  # else seconds are a lower bound


@dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """E(B) = least_examples·(1 + B / critical_batch_size). Ends of intervals are null where nothing bounds them."""

    least_examples: Number  # [examples] E_min
    least_examples_low: Amount
    least_examples_high: Amount
    least_steps: Number  # [steps] S_min
    least_steps_low: Amount
    least_steps_high: Amount
    critical_batch_size: Amount  # [examples] null: not bounded, no batch costs examples
    critical_batch_size_low: Amount
    critical_batch_size_high: Amount
    rms_error: Number  # of fitted / measured − 1
    largest_error: Number
    points: Count  # that reached the target
    lower_bounds: Count  # points that did not
    unknown: Text  # why there are no intervals; null: there are
    nothing_lost_until: Amount  # [examples] the batch up to which at most 1.05 times least_examples are needed
    perfect_until: Amount  # [examples] 1.2 times
    helps_until: Amount  # [examples] the batch from which on a doubling saves less than a tenth of the steps
    line: Line  # batch, fitted examples


@dataclass(frozen=True, kw_only=True)
class MeasuredRange:
    """Where something ends by the points alone: at ``low`` it holds, at ``high`` no more (null: that was not seen)."""

    low: Size  # [examples]
    high: Amount  # [examples]
    batch: Amount  # [examples] between the two, interpolated in ln B; null: not known


@dataclass(frozen=True, kw_only=True)
class RegionOfKey:
    """The values of a key whose trials needed at most a tenth more examples than the best."""

    key: Name
    low: Number
    high: Number
    open_below: Flag  # no trial below was worse
    open_above: Flag  # no trial above was worse


@dataclass(frozen=True, kw_only=True)
class SearchedBatch:
    """The search of a row at one batch size."""

    global_batch_size: Size  # [examples]
    trials: Count
    refused: Count  # of them, with values that the recipe does not take
    reached: Count  # of them, to the target
    chosen: Table | None  # the values of the best; null: every one failed
    at_edge: Sequence[Name]  # keys whose best value lies at an edge of what was tried
    outside: Sequence[Name] | None = None  # keys whose best value lies outside of the range that was stated
    good: Sequence[Annotated[RegionOfKey, part(RegionOfKey)]]  # empty: none reached the target


@dataclass(frozen=True, kw_only=True)
class RuleCandidate:
    """A rule through the best values: ln of the value is ``deviation`` away from it."""

    name: Name  # none, linear, square root, power, surge
    constants: Mapping[str, float]
    deviation: Number
    aicc: Amount  # null: too few batches to compare it


@dataclass(frozen=True, kw_only=True)
class RuleOfKey:
    """How the best value of a key, or 1 − it, follows the batch."""

    key: Name
    complement: Flag  # of 1 − value
    decided: Text  # the rule that fits best; null: others are as good
    power_low: Amount  # of a free power, its 95 % interval; null: not bounded
    power_high: Amount
    candidates: Sequence[Annotated[RuleCandidate, part(RuleCandidate)]]  # the best first


@dataclass(frozen=True, kw_only=True)
class RowsInPairs:
    """``first`` needs ``ratio`` times the examples of ``second``, by an exact test of sign flips over pairs of runs."""

    first: Name
    second: Name
    global_batch_size: Whole  # [examples] null: over the batches that both have, which are the pairs
    pairs: Count
    ratio: Amount  # null: nothing to pair
    ratio_low: Amount  # null: so few pairs have no interval
    ratio_high: Amount
    p: Amount
    corrected: Amount  # p by Holm's method, for all statements of the file
    decided: Flag
    least_p: Amount  # that so many pairs can have


@dataclass(frozen=True, kw_only=True)
class CurveToTarget:
    """A row."""

    label: Name
    points: Sequence[Annotated[ReachedPoint, part(ReachedPoint)]]  # ascending; empty: no run ended yet
    law: Annotated[FittedLaw | None, part(FittedLaw)]  # null: fewer than two batches reached the target
    perfect_until: Annotated[MeasuredRange | None, part(MeasuredRange)]  # of the points
    helps_until: Annotated[MeasuredRange | None, part(MeasuredRange)]  # of the points
    model: Table | None = None  # the recipe's section: name, and what shapes it; null: not said
    data: Text = None  # the data set's name
    optimizer: Text = None  # its name
    searched: Sequence[Annotated[SearchedBatch, part(SearchedBatch)]] | None = None  # of a study
    rules: Sequence[Annotated[RuleOfKey, part(RuleOfKey)]] | None = None  # of a study


@dataclass(frozen=True, kw_only=True)
class TargetsRecord(FileRecord):
    """What a study comes to, or ``study show`` writes: rows of one target."""

    kind: Name = "targets"
    name: Name
    title: Name
    source: Text
    target: Text  # in words
    score: Text = None  # its key among an evaluation's numbers; null: not said
    score_target: Amount = None  # the value that was to be reached
    unit: Name  # the plural of an example
    epoch: Amount  # [examples] of an epoch; null: not known
    middle: Name  # median or mean, of the runs of a point
    command: Text
    curves: Annotated[Sequence[Annotated[CurveToTarget, part(CurveToTarget)]], Field(min_length=1)]
    pairs: Sequence[Annotated[RowsInPairs, part(RowsInPairs)]] | None = None  # of a study's rows
    seeds: Whole = None  # of a study, at each batch
    trials: Whole = None  # of a study, for each row at each batch
