"""What ``largebatch evaluate`` found of a run's weights: its ``--json`` file.

``docs/run_directory.md`` is made from this file, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from largebatch.records.diagnoses import WeightsRecord
from largebatch.records.typed import Amount, Count, Judged, Name, Number, Numbers, Text, Whole, lenient_part, part


@dataclass(frozen=True, kw_only=True)
class EvaluatedClass:
    """The answers that concern one class; a share is null where nothing is counted."""

    name: Name
    examples: Count  # that are of it
    predicted: Count  # that were taken for it
    right: Count  # both
    recall_percent: Amount  # [%] right of those that are of it: its accuracy
    precision_percent: Amount  # [%] right of those that were taken for it
    f1_percent: Amount  # [%] harmonic mean of both


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Answers whose confidence lies above ``above`` and up to the next bin's."""

    above: Number
    examples: Count
    confidence: Amount  # mean probability of the answer
    accuracy: Amount  # share of right answers


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether probabilities mean what they say (Guo et al. 2017, arXiv:1706.04599, §2)."""

    expected_error_percent: Number  # [%] Σ n_b/n · |accuracy_b − confidence_b| over the bins
    largest_error_percent: Number  # [%] the largest |accuracy_b − confidence_b|
    brier: Number  # mean of Σ_c (p_c − [c is right])²
    bins: Sequence[Annotated[CalibrationBin, part(CalibrationBin)]]  # of equal width


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(WeightsRecord):
    """The numbers of an evaluation by key, and what classes were taken for one another. Every example counts once."""

    BY_KEY = "numbers"

    kind: Name = "evaluation"
    split: Name  # test, held_out or train; other: a data set that the run did not have
    source: Text  # where its examples lie
    examples: Whole  # [examples] evaluated
    score: Judged  # the number the run is judged by
    answers: Text  # what the task gives by example: classes, labels, numbers; null: nothing
    recorded: Amount  # that number as the run wrote it down, of these weights and examples; null where it did not
    numbers: Numbers
    notes: Sequence[str]  # what the reader should know, a sentence each
    classes: Sequence[Annotated[EvaluatedClass, part(EvaluatedClass)]] | None = None  # of a classification
    confusion: Sequence[Sequence[int]] | None = None  # [examples] a row for each class, a column for each answer
    calibration: Annotated[Calibration | None, lenient_part(Calibration)] = None  # of a classification
