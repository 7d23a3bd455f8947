"""The pages of ``docs/`` that are made from the code: ``make docs``. A test fails where one is not what this makes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.floors import picture
from largebatch.records import (
    comparison,
    curves,
    diagnoses,
    evaluation,
    looking,
    names,
    plan,
    run,
    saved,
    simulation,
    target,
)  # fmt: skip

DOCS = Path(__file__).parent
FIELD = re.compile(r"^    (\w+): ([A-Z]\w*.*?|int|float|int [|] None)(?: = \S+)?(?:  # (?:\[(.+?)\] ?)?(.*))?$", re.M)
KINDS = {
    "Count": "whole number", "Size": "whole number", "Whole": "whole number", "int": "whole number", "Amount": "number",
    "Number": "number", "float": "number", "Name": "text", "Text": "text", "Flag": "true or false",
    "Judged": "score: `key`, `name`, `unit`, `more_is_better`, `tolerance`", "Cited": "object, as in the recipe",
    "Table": "object", "Mapping": "object", "Numbers": "numbers by key", "Workers": "list of `WorkerResult`",
    "Point": "`AtScore`", "Ramp": "list of pairs", "Pairs": "list of pairs", "Seeds": "list of whole numbers",
    "Grid": "list of numbers", "Radius": "number", "Place": "number", "Line": "list of pairs",
}  # fmt: skip
DIAGNOSES = (  # each with the objects within it
    (diagnoses.NoiseRecord,),
    (diagnoses.SharpnessRecord, diagnoses.SearchedBox, diagnoses.Ascent, diagnoses.CitedSharpness),
    (diagnoses.SpectrumRecord, diagnoses.Eigenvalue, diagnoses.EigenvalueDensity),
    (diagnoses.PathRecord, diagnoses.PathEnd, diagnoses.PathPoint),
    (diagnoses.PlateauRecord,),
    (diagnoses.CriticalRecord, diagnoses.CriticalPoint, diagnoses.FactorOutcome),
    (diagnoses.BranchRecord,),
    (diagnoses.StepTimeRecord,),
)


def run_directory() -> str:
    """Every file of a run directory and of a comparison, key by key."""
    parts = [
        "# The run directory",
        "Made by `make docs` from `largebatch/records/`: the types that the writers and the report use.",
        "Every file and line carries `version`; where it is missing it is 0, from before versions were written.\n"
        "What is not finite stands as null. A key marked *where there is one* is left out where it says nothing.\n"
        "Readers pass over keys that they do not know, and refuse a version above their own.",
        f"## `{names.PLAN}`",
        *_record(run.PlanRecord, run.PlannedRate, run.MicroBatchTrial, run.TriedMicroBatch),
        f"## `{names.METRICS}`",
        "One JSON object a line; `event` is its kind. After a resume a step may be there twice: the last line counts.",
    ]
    for event, kind in run.LINES.items():
        parts += [f"### `{event}`", *_record(kind)]
    parts += [f"## `{names.RESULT}`", *_record(run.ResultRecord, run.WorkerResult, target.TargetRecord, target.AtScore)]
    parts += [f"## `{names.LOGGERS}`", *_record(run.LoggersRecord)]
    parts += [f"## `{names.CHECKPOINTS}/`", *_record(saved.SavedRecord)]
    parts += [f"## `{names.DIAGNOSTICS}/`", "What `diagnose` measured; `kind` is the name of the file."]
    for kind, *within in DIAGNOSES:
        parts += [f"### `{kind.kind}`", *_record(kind, *within)]
    parts += [
        f"## `{names.PROFILE}/`, `{names.PICTURES}/`, `{names.MEMORY}/`",
        "Where the recipe asks for them ([looking.md](looking.md)). The traces are Chrome's format, gzipped; memory "
        "snapshots are torch's own.",
        f"### `{looking.ProfileRecord.kind}`",
        *_record(looking.ProfileRecord, looking.ProfiledOperator, looking.ProfiledKernel),
        f"### `{looking.PicturesRecord.kind}`",
        *_record(looking.PicturesRecord),
    ]
    parts += [
        "## A model's layers",
        "The numbers of `largebatch recipe model` ([looking.md](looking.md#a-models-layers)).",
        *_record(looking.ModelRecord, looking.LayerRow),
    ]
    parts += ["## Evaluations", "The numbers of `largebatch evaluate` ([running.md](running.md#evaluate))."]
    parts += _record(
        evaluation.EvaluationRecord, evaluation.EvaluatedClass, evaluation.Calibration, evaluation.CalibrationBin
    )
    parts += ["## Comparisons", f"A comparison's folder holds `{names.COMPARISON}` and its run directories."]
    parts += _record(
        comparison.ComparisonRecord, comparison.Tuning, comparison.ComparedRow, comparison.SearchRecord,
        comparison.TrialRecord,
    )  # fmt: skip
    parts += [
        "## Steps to a target",
        "The numbers of `largebatch study`; [studies.md](studies.md) says what they mean.",
    ]
    parts += _record(
        curves.TargetsRecord, curves.CurveToTarget, curves.ReachedPoint, curves.FittedLaw, curves.MeasuredRange,
        curves.SearchedBatch, curves.RegionOfKey, curves.RuleOfKey, curves.RuleCandidate, curves.RowsInPairs,
    )  # fmt: skip
    parts += [
        "## Plans",
        "The numbers of `largebatch plan`; [planning.md](planning.md) says what they mean.",
    ]
    parts += _record(
        plan.ClusterPlanRecord, plan.PlannedPoint, plan.PlannedInterruptions, plan.PlannedPhase, plan.LeftOut
    )
    parts += [
        "## Simulated clusters",
        "The numbers of `largebatch plan simulate` ([planning_simulation.md](planning_simulation.md)).",
    ]
    parts += _record(simulation.SimulationRecord, simulation.SimulatedCluster, simulation.SimulatedFailures)
    return "\n\n".join(parts) + "\n"


def _record(kind: type, *within: type) -> Iterator[str]:
    """Its docstring and the table of its keys, and those of the objects within it."""
    yield inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
    yield _table(kind)
    for other in within:
        yield f"**`{other.__name__}`**: {inspect.cleandoc(other.__doc__ or '').replace('``', '`')}"
        yield _table(other)


def _table(kind: type) -> str:
    lines = ["| key | holds | unit | |", "|---|---|---|---|"]
    said = {key: rest for base in reversed(kind.__mro__[:-1]) for key, *rest in FIELD.findall(inspect.getsource(base))}
    for field in dataclasses.fields(kind):
        written, unit, meaning = said[field.name]
        optional = field.default is None
        key = "*by key*" if field.name == getattr(kind, "BY_KEY", None) else f"`{field.name}`"
        words = "; ".join([meaning] * bool(meaning) + ["where there is one"] * optional)
        lines.append(f"| {key} | {_holds(written)} | {unit} | {words} |")
    return "\n".join(lines)


def _holds(annotation: str) -> str:
    """``"Sequence[Annotated[ComparedRow, ...]]"`` -> ``"list of `ComparedRow`"``."""
    listed = re.match(r"(?:Annotated\[)?Sequence\[(?:Annotated\[)?(\w+)", annotation)
    name = listed[1] if listed else re.match(r"(?:Annotated\[)?(\w+)", annotation)[1]  # type: ignore[index]
    words = KINDS.get(name, f"`{name}`")
    return f"list of {words}" if listed else words


PAGES: list[tuple[str, Callable[[], str]]] = [("run_directory.md", run_directory), ("floors.svg", picture)]


if __name__ == "__main__":
    for page, made in PAGES:
        (DOCS / page).write_text(made(), encoding="utf-8")
