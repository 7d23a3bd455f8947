"""One run directory -> a frozen record; nothing is judged here.

A run is ``run.yaml`` (what was asked), ``plan.json`` (what was decided), ``metrics.jsonl`` (what happened),
``result.json`` (how it ended) and ``diagnostics/`` (what was measured on its weights afterwards). After a
resume a step may be recorded twice: the last line counts. A run without ``result.json`` was killed or is
still going: it is kept, as "unfinished".
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from largebatch.errors import UserError
from largebatch.plan.score import Score
from largebatch.recipes.strict_yaml import parse
from largebatch.records import names
from largebatch.records.diagnoses import DIAGNOSES, DiagnosisRecord
from largebatch.records.looking import PicturesRecord
from largebatch.records.run import (
    DirectionsLine,
    EvaluateLine,
    LineRecord,
    NoiseScaleLine,
    PlanRecord,
    Ramp,
    RecipeRecord,
    ResultRecord,
    TrainLine,
)
from largebatch.records.typed import mapping, read
from largebatch.report.files import json_of, loaded, text_of

SPLITS = ("test", "held_out")
Kind = TypeVar("Kind", bound=LineRecord)
Measured = TypeVar("Measured", bound=DiagnosisRecord)
SHOWN: dict[str, type[LineRecord]] = {
    kind.EVENT: kind for kind in (TrainLine, EvaluateLine, NoiseScaleLine, DirectionsLine)
}


@dataclass(frozen=True)
class RecordedRun:
    """One run as it lies on disk."""

    path: Path
    name: str
    """The folder as the reader of the report will know it: relative to what was reported on."""
    recipe: RecipeRecord
    recipe_text: str
    plan: PlanRecord
    result: ResultRecord
    lines: tuple[LineRecord, ...]
    """Those of the kinds in ``SHOWN``, in the order of their steps."""
    diagnoses: tuple[DiagnosisRecord, ...]
    """What was measured on the run's weights, one of a kind."""
    pictures: PicturesRecord | None = None
    """Of a training batch; the first where there are several."""

    def lines_of(self, kind: type[Kind]) -> tuple[Kind, ...]:
        return tuple(line for line in self.lines if isinstance(line, kind))

    def diagnosis(self, kind: type[Measured]) -> Measured | None:
        return next((one for one in self.diagnoses if isinstance(one, kind)), None)

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped`` or ``unfinished``."""
        return self.result.status

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def reason(self) -> str:
        return self.result.reason or self.status

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def score(self) -> Score:
        """What it is judged by."""
        return self.plan.judged_by

    @property
    def evaluated_on(self) -> str:
        """The split that it is judged on: ``test`` or ``held_out``."""
        return self.known_split or "test"

    @property
    def known_split(self) -> str | None:
        """The same; None of one without a result that was not evaluated yet."""
        of_lines = (line.split for line in self.lines_of(EvaluateLine) if line.split in SPLITS)
        return self.result.evaluated_on or next(of_lines, None)

    @property
    def steps(self) -> float:
        """Those taken, where the run is finished: some methods stop early, or add some; else those planned."""
        taken = self.result.steps if self.finished else None
        return taken if taken is not None else self.plan.steps

    @property
    def examples(self) -> float | None:
        """Those trained on; the budget where it was merely filled up to a whole batch."""
        budget = self.plan.budget_examples
        seen = self.result.examples_seen if self.finished else None
        if seen is None or budget is None:
            return budget
        largest = max([self.plan.global_batch_size, *(size for _, size in self.ramp)])
        return budget if abs(seen - budget) < min(largest, 0.05 * budget) else seen

    @property
    def ramp(self) -> Ramp:
        """Where the batch grew: as planned, or as its noise scale had it."""
        return self.result.ramp or self.plan.ramp or ()

    @property
    def edges(self) -> tuple[float, ...]:
        """The epochs at which another phase begins."""
        return tuple(phase.epoch for phase in (self.plan.phases or ())[1:])

    @property
    def epochs(self) -> float | None:
        planned, budget = self.plan.epochs, self.plan.budget_examples
        if planned is None or not budget or self.examples == budget:
            return planned
        return round(planned * (self.examples or budget) / budget, 1)

    def reached(self, split: str = "test") -> float | None:
        """Its score at the end; ``test`` stands for the split that it was judged on."""
        return self.result.number(f"{split}_{self.score.key}")


def read_run(path: Path, name: str) -> RecordedRun:
    """One run directory; ``name`` is what the report will call it."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run folder, which holds {names.PLAN}, or a comparison folder")
    if not (path / names.PLAN).is_file():
        raise UserError(f"{path} is no run: it has no {names.PLAN} (nor a {names.COMPARISON})")
    plan = read(PlanRecord, json_of(path / names.PLAN), path / names.PLAN)
    text = text_of(path / names.RECIPE)
    recipe = read(RecipeRecord, parse(text, f"{path / names.RECIPE} is not valid YAML"), path / names.RECIPE)
    result = _result(path / names.RESULT)
    lines = _metrics(path / names.METRICS, required=result.status == "finished")
    diagnoses, pictures = _diagnoses(path / names.DIAGNOSTICS), _pictures(path / names.PICTURES)
    return RecordedRun(path, name, recipe, text, plan, result, lines, diagnoses, pictures)


def _pictures(folder: Path) -> PicturesRecord | None:
    found = [read(PicturesRecord, json_of(file), file) for file in folder.glob("*.json")]
    return min(found, key=lambda record: record.step, default=None)


def _result(file: Path) -> ResultRecord:
    if not file.exists():
        reason = f"no {names.RESULT}: the run was killed or is still going"
        return read(ResultRecord, {"status": "unfinished", "reason": reason}, file)
    result = read(ResultRecord, json_of(file), file)
    if result.status not in ("finished", "failed", "stopped"):
        raise UserError(f"{file}: status is {result.status[:60]!r}; valid: finished, failed, stopped")
    if result.evaluated_on not in (None, *SPLITS):
        raise UserError(f"{file}: evaluated_on is {result.evaluated_on[:60]!r}; valid: {', '.join(SPLITS)}")
    return result


def _metrics(file: Path, *, required: bool) -> tuple[LineRecord, ...]:
    """In the order of steps, the last of each; a torn last line (a run killed while writing) is left out."""
    if not file.exists() and not required:
        return ()
    last: dict[tuple[str, str, int], LineRecord] = {}
    lines = text_of(file).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            written = loaded(line)
        except json.JSONDecodeError:
            if number == len(lines):
                continue
            raise UserError(f"{file}: line {number} is not valid JSON") from None
        kind = SHOWN.get(str(mapping(written, f"{file}: line {number}").get("event")))
        if kind is not None:
            record = read(kind, written, f"{file}: line {number}")
            last[kind.EVENT, str(getattr(record, "split", "")), record.step] = record
    return tuple(last[key] for key in sorted(last, key=lambda key: key[2]))


def _diagnoses(folder: Path) -> tuple[DiagnosisRecord, ...]:
    """Of the kinds that are shown."""
    found: dict[str, DiagnosisRecord] = {}
    for file in sorted(folder.glob("*.json")):
        facts = json_of(file)
        if (kind := read(DiagnosisRecord, facts, file).kind) in DIAGNOSES:
            found[kind] = read(DIAGNOSES[kind], facts, file)
    return tuple(found.values())
