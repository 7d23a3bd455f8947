"""What ``comparison.json`` holds: rows, seeds, searches.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

from largebatch.plan.score import ACCURACY, Score
from largebatch.records.typed import (
    Amount,
    Cited,
    FileRecord,
    Judged,
    Name,
    Number,
    Numbers,
    Text,
    Whole,
    lenient_part,
    part,
)


@dataclass(frozen=True)
class Tuning:
    """How every row's learning rate is searched."""

    trials: int = 7
    hold_out: int | None = None  # [examples] of the training set; else a sixth of it
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrialRecord(FileRecord):
    """One learning rate that was tried; ``numbers`` is the score under its key, null where the run failed."""

    BY_KEY = "numbers"

    peak_lr: Number | None  # as the optimizer gets it
    numbers: Numbers
    status: Text  # finished or failed


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """The search for a row's learning rate."""

    key: Text  # that is searched
    budget: Whole  # trials
    metric: Text  # what decides, in words
    score: Judged | None = None  # what decides; none: the accuracy in percent
    hold_out: Whole  # [examples] held out of the training set, on which trials are judged
    chosen: Amount  # the best peak
    chosen_base: Amount  # the key's value for it
    trials: Sequence[Annotated[TrialRecord, part(TrialRecord)]] | None  # in the order they were made

    @property
    def judged_by(self) -> Score:
        return self.score or ACCURACY


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A recipe with its overrides, run at several seeds."""

    id: Name
    label: Text  # for people
    config: Name | None  # the recipe's file
    overrides: Sequence[Name] | None  # key=value, over the file
    runs: Sequence[Name]  # run directories, a seed each, from the comparison's folder
    learning_rate_search: Annotated[SearchRecord | None, part(SearchRecord)]
    expect: Cited | None  # what the recipe cites


Seeds = Annotated[Sequence[int], BeforeValidator(lambda value: value if isinstance(value, list) else [])]


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(FileRecord):
    """``comparison.json``."""

    name: Text
    command: Text
    created: Name | None  # when, in UTC
    seeds: Seeds | None  # that every row is run at
    tuning: Annotated[Tuning | None, lenient_part(Tuning)]
    baseline: Text  # the id of the row that others are compared with
    rows: Sequence[Annotated[ComparedRow, part(ComparedRow)]]
    notes: Sequence[Name] | None  # what is fair here and what is not
