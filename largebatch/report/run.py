"""One run directory -> a frozen record; nothing is judged here.

A run is ``run.yaml`` (what was asked), ``plan.json`` (what was decided), ``metrics.jsonl`` (what happened),
``result.json`` (how it ended) and ``diagnostics/`` (what was measured on its weights afterwards). After a
resume a step may be recorded twice: the last line counts. A run without ``result.json`` was killed or is
still going: it is kept, as "unfinished".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.plan.score import Score, score_of
from largebatch.recipes.strict_yaml import parse
from largebatch.records import names
from largebatch.report.files import finite, json_of, loaded, mapping, need, text_of
from largebatch.report.shapes import FACTS, Line, Plan, Recipe, shaped

SPLITS = ("test", "held_out")
EVENTS = ("train", "evaluate", "noise_scale", "directions")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run as it lies on disk."""

    path: Path
    name: str
    """The folder as the reader of the report will know it: relative to what was reported on."""
    config: Mapping[str, Any]
    config_text: str
    plan: Mapping[str, Any]
    result: Mapping[str, Any]
    events: Mapping[str, tuple[Record, ...]]
    """Each of ``EVENTS`` -> its records in the order of their steps."""
    diagnostics: Mapping[str, Record]
    """Kind -> the facts measured on the run's weights."""

    @property
    def train(self) -> tuple[Record, ...]:
        return self.events["train"]

    @property
    def evaluations(self) -> tuple[Record, ...]:
        return self.events["evaluate"]

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped`` or ``unfinished``."""
        return str(self.result["status"])

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def reason(self) -> str:
        return str(self.result.get("reason") or self.status)

    @property
    def seed(self) -> int:
        return int(self.plan["seed"])

    @property
    def score(self) -> Score:
        """What it is judged by."""
        return score_of(self.plan)

    @property
    def evaluated_on(self) -> str:
        """The split the final accuracy was measured on: ``test`` or ``held_out``."""
        return str(self.result.get("evaluated_on") or "test")

    @property
    def steps(self) -> float:
        """Those taken, where the run is finished: some methods stop early, or add some; else those planned."""
        taken = self.measured("steps") if self.finished else None
        return taken if taken is not None else self.plan["steps"]

    @property
    def examples(self) -> float | None:
        """Those trained on; the budget where it was merely filled up to a whole batch."""
        budget = finite(self.plan.get("budget_examples"))
        seen = self.measured("examples_seen") if self.finished else None
        if seen is None or budget is None:
            return budget
        largest = max([self.plan["global_batch_size"], *(size for _, size in self.plan.get("ramp") or [])])
        return budget if abs(seen - budget) < min(largest, 0.05 * budget) else seen

    @property
    def edges(self) -> tuple[float, ...]:
        """The epochs at which another phase begins."""
        return tuple(phase["epoch"] for phase in (self.plan.get("phases") or [])[1:])

    @property
    def epochs(self) -> float | None:
        planned, budget = finite(self.plan.get("epochs")), finite(self.plan.get("budget_examples"))
        if planned is None or not budget or self.examples == budget:
            return planned
        return round(planned * (self.examples or budget) / budget, 1)

    def measured(self, key: str) -> float | None:
        """A number of ``result.json``, or None where the run has none."""
        return finite(self.result.get(key))

    def reached(self, split: str = "test") -> float | None:
        """Its score at the end; ``test`` stands for the split that it was judged on."""
        return self.measured(f"{split}_{self.score.key}")


def read_run(path: Path, name: str) -> Run:
    """One run directory; ``name`` is what the report will call it."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run folder, which holds {names.PLAN}, or a comparison folder")
    if not (path / names.PLAN).is_file():
        raise UserError(f"{path} is no run: it has no {names.PLAN} (nor a {names.COMPARISON})")
    plan = mapping(json_of(path / names.PLAN), path / names.PLAN)
    for key in ("global_batch_size", "steps", "seed"):
        need(plan, key, int, path / names.PLAN)
    shaped(plan, Plan, path / names.PLAN)
    config_text = text_of(path / names.RECIPE)
    config = mapping(parse(config_text, f"{path / names.RECIPE} is not valid YAML"), path / names.RECIPE)
    shaped(config, Recipe, path / names.RECIPE)
    result = _result(path / names.RESULT)
    events = _metrics(path / names.METRICS, required=result["status"] == "finished")
    diagnostics = _diagnostics(path / names.DIAGNOSTICS)
    return Run(path, name, config, config_text, plan, result, events, diagnostics)


def _result(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        return {"status": "unfinished", "reason": f"no {names.RESULT}: the run was killed or is still going"}
    result = mapping(json_of(file), file)
    status = need(result, "status", str, file)
    if status not in ("finished", "failed", "stopped"):
        raise UserError(f"{file}: status is {status[:60]!r}; valid: finished, failed, stopped")
    if str(result.get("evaluated_on")) not in ("None", *SPLITS):
        raise UserError(f"{file}: evaluated_on is {str(result['evaluated_on'])[:60]!r}; valid: {', '.join(SPLITS)}")
    return result


def _metrics(file: Path, *, required: bool) -> dict[str, tuple[Record, ...]]:
    """Records by event and step; a torn last line (a run killed while writing) is left out."""
    if not file.exists() and not required:
        return dict.fromkeys(EVENTS, ())
    last: dict[tuple[str, str, int], Record] = {}
    lines = text_of(file).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = loaded(line)
        except json.JSONDecodeError:
            if number == len(lines):
                continue
            raise UserError(f"{file}: line {number} is not valid JSON") from None
        record = mapping(record, f"{file}: line {number}")
        if str(record.get("event")) in EVENTS:
            step = need(record, "step", int, f"{file}: line {number}")
            shaped(record, Line, f"{file}: line {number}")
            last[record["event"], str(record.get("split", "")), step] = record
    ordered = [last[key] for key in sorted(last, key=lambda key: key[2])]
    return {event: tuple(record for record in ordered if record["event"] == event) for event in EVENTS}


def _diagnostics(folder: Path) -> dict[str, Record]:
    found = {}
    for file in sorted(folder.glob("*.json")):
        facts = mapping(json_of(file), file)
        kind = need(facts, "kind", str, file)
        found[kind] = shaped(facts, FACTS[kind], file) if kind in FACTS else facts
    return found
