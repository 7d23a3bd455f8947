"""What ``comparison.json`` holds: rows, seeds, searches.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from largebatch.plan.score import ACCURACY, Score
from largebatch.records.typed import (
    Cited,
    FileRecord,
    Judged,
    Name,
    Numbers,
    Table,
    Text,
    Whole,
    finite,
    lenient_part,
    part,
)

SPACES = ("lr", "search")
SAMPLERS = ("quasi_random", "tpe")
SEARCH_SEED = 10_000  # none that a row is run at


@dataclass(frozen=True)
class Tuning:
    """How every row is searched."""

    trials: int = 7
    hold_out: int | None = None  # [examples] of the training set; else a sixth of it
    seed: int = SEARCH_SEED  # of all trials
    space: Name = "lr"  # lr.base alone; search: what the recipe's section of this name says
    sampler: Name = "quasi_random"  # where the trials lie; or tpe
    finalists: int = 1  # best trials that are run under more seeds before one is chosen; 1: none


@dataclass(frozen=True, kw_only=True)
class TrialRecord(FileRecord):
    """Values that were tried; ``numbers`` is the score under its key, null where the run failed."""

    BY_KEY = "numbers"

    values: Table  # by key
    round: Whole = None  # counted from 0: a later one lies around the best of those before
    numbers: Numbers
    status: Text  # finished or failed


@dataclass(frozen=True, kw_only=True)
class FinalistRecord(FileRecord):
    """A trial under one more seed; ``numbers`` is the score under its key, null where the run failed."""

    BY_KEY = "numbers"

    trial: Whole  # its number
    seed: Whole
    numbers: Numbers
    status: Text  # finished or failed


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """The search of a row."""

    space: Table  # by key, as the recipe has it in its section search
    budget: Whole  # trials
    metric: Text  # what decides, in words
    score: Judged | None = None  # what decides; none: the accuracy in percent
    hold_out: Whole  # [examples] held out of the training set, on which trials are judged
    chosen: Table | None  # the values of the best trial, or finalist; null where every one failed
    at_edge: Sequence[Name] | None = None  # keys whose best value lies at an edge of what was tried
    trials: Sequence[Annotated[TrialRecord, part(TrialRecord)]] | None  # in the order of their numbers
    finals: Sequence[Annotated[FinalistRecord, part(FinalistRecord)]] | None = None  # more seeds of the best trials

    @property
    def judged_by(self) -> Score:
        return self.score or ACCURACY


def _row_of_before(row: object) -> object:
    """Version 1 searched ``lr.base`` alone, by its peaks."""
    before = row.get("learning_rate_search") if isinstance(row, Mapping) else None
    return {**row, "search": _of_peaks(before)} if isinstance(row, Mapping) and isinstance(before, Mapping) else row


def _of_peaks(written: Mapping[str, Any]) -> dict[str, Any]:
    chosen = finite(written.get("chosen"))
    base = finite(written.get("chosen_base")) or chosen
    scale = base / chosen if chosen and base else 1.0
    trials = [
        {**trial, "values": {"lr.base": float(f"{peak * scale:.12g}")}}
        for trial in written.get("trials") or ()
        if isinstance(trial, Mapping) and (peak := finite(trial.get("peak_lr"))) is not None
    ]
    tried = [trial["values"]["lr.base"] for trial in trials] or [1.0]
    return {
        **written,
        "space": {"lr.base": {"log": [min(tried), max(tried)]}},
        "chosen": None if base is None else {"lr.base": float(f"{base:.12g}")},
        "trials": [{key: value for key, value in trial.items() if key != "peak_lr"} for trial in trials],
    }


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A recipe with its overrides, run at several seeds."""

    id: Name
    label: Text  # for people
    config: Name | None  # the recipe's file
    overrides: Sequence[Name] | None  # key=value, over the file
    runs: Sequence[Name]  # run directories, a seed each, from the comparison's folder
    search: Annotated[SearchRecord | None, part(SearchRecord)]
    expect: Cited | None  # what the recipe cites


Seeds = Annotated[Sequence[int], BeforeValidator(lambda value: value if isinstance(value, list) else [])]


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(FileRecord):
    """``comparison.json``."""

    VERSION = 2  # 1: the search of a row was learning_rate_search, and its trials had a peak_lr

    name: Text
    command: Text
    created: Name | None  # when, in UTC
    seeds: Seeds | None  # that every row is run at
    tuning: Annotated[Tuning | None, lenient_part(Tuning)]
    baseline: Text  # the id of the row that others are compared with
    rows: Sequence[Annotated[ComparedRow, part(ComparedRow), BeforeValidator(_row_of_before)]]
    notes: Sequence[Name] | None  # what is fair here and what is not
