"""An evaluation for reading: sentences, and the classes as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rich.markup
import rich.table
import torch

from largebatch.diagnostics.confusion import most_confused
from largebatch.plan.score import words_of
from largebatch.recipes.config.start import WORDS
from largebatch.records.evaluation import EvaluatedClass, EvaluationRecord
from largebatch.studies.evaluation.answers import Answers

MOST_ROWS = 30  # classes; of more the worst are shown
MOST_PAIRS = 5


def sentences(record: EvaluationRecord) -> Iterator[str]:
    words = WORDS.get(str(record.weights), "")
    which = f"{words} weights" if record.weights == "trained" else words
    yield f"{record.title or record.run}, {which} of step {record.step:,}"
    yield f"{record.examples:,} examples, {record.split} of {record.data} ({record.source})"
    yield "  ".join(numbers_of(record))
    if record.recorded is not None:
        value = record.number(record.score.key)
        same = "the same" if value == record.recorded else f"{record.score.of(record.recorded)}"
        yield f"{record.score.name} as the run recorded it: {same}"
    if record.calibration is not None:
        found = record.calibration
        yield (
            f"calibration: expected error {found.expected_error_percent:.2f} %, largest "
            f"{found.largest_error_percent:.2f} %, Brier score {found.brier:.4f}"
        )
    if (pairs := confused(record)) and record.classes:
        told = (f"{record.classes[y].name} for {record.classes[taken].name} ({count:,})" for y, taken, count in pairs)
        yield f"most confused: {', '.join(told)}"
    yield from record.notes


def numbers_of(record: EvaluationRecord) -> Iterator[str]:
    for key, value in record.numbers.items():
        name, unit = words_of(key)
        if value is None:
            yield f"{name} not a number"
        else:
            yield f"{name} {value:.2f} %" if unit == "%" else f"{name} {value:.4f}"


def confused(record: EvaluationRecord) -> list[tuple[int, int, int]]:
    return [] if record.confusion is None else most_confused(torch.tensor(record.confusion), MOST_PAIRS)


def table(record: EvaluationRecord) -> rich.table.Table | None:
    """A row for each class, or for the worst of many; None where there are none."""
    if not record.classes:
        return None
    found = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    columns = ("class", "examples", "taken for it", "right", "recall %", "precision %", "F1 %")
    for place, column in enumerate(columns):
        found.add_column(column, justify="right" if place else "left", min_width=len(column))
    for one in shown(record.classes):
        shares = (one.recall_percent, one.precision_percent, one.f1_percent)
        found.add_row(
            rich.markup.escape(one.name), f"{one.examples:,}", f"{one.predicted:,}", f"{one.right:,}",
            *("" if share is None else f"{share:.2f}" for share in shares),
        )  # fmt: skip
    if len(record.classes) > MOST_ROWS:
        found.caption = f"the {MOST_ROWS} of {len(record.classes):,} classes with the lowest recall; --json has all"
    return found


def shown(classes: Sequence[EvaluatedClass]) -> list[EvaluatedClass]:
    if len(classes) <= MOST_ROWS:
        return list(classes)
    asked = [one for one in classes if one.recall_percent is not None]
    return sorted(asked, key=lambda one: one.recall_percent or 0.0)[:MOST_ROWS]


def predictions(images: Sequence[str], answers: Answers) -> rich.table.Table:
    """A row for each image: its likeliest classes."""
    found = rich.table.Table(box=None, padding=(0, 2), pad_edge=False)
    found.add_column("image", overflow="fold")
    for place in range(answers.columns["likeliest"].shape[1]):
        found.add_column("answer" if place == 0 else "")
    for row, image in enumerate(images):
        likely = zip(
            answers.columns["likeliest"][row].tolist(), answers.columns["probability"][row].tolist(), strict=True
        )
        words = (f"{rich.markup.escape(answers.name(one))} {100 * share:.1f} %" for one, share in likely)
        found.add_row(rich.markup.escape(image), *words)
    return found
