"""Comparison -> one self-contained HTML page, and the same tables and sentences as Markdown.

Nothing on the page is fetched: style sheet, pictures and text are in the one file. The same runs give the
same bytes: nothing is stamped with the time of writing.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from largebatch.plan.score import Score
from largebatch.report import diagnostics, table
from largebatch.report.fairness import fairness, machine, names, setting
from largebatch.report.figures import pictures
from largebatch.report.frame import Picture
from largebatch.report.looks import Look, looks
from largebatch.report.numerals import capital, plural
from largebatch.report.run import RecordedRun
from largebatch.report.summary import Comparison
from largebatch.report.table import TextTable
from largebatch.report.verdict import verdict

HERE = Path(__file__).parent


def html(comparison: Comparison) -> str:
    """The whole page."""
    sections = _sections(pictures(comparison))
    shown = [section.name for section in sections]
    style = looks(comparison)
    return template("page.html.j2").render(
        comparison=comparison,
        setting=setting(comparison),
        verdict=verdict(comparison),
        results=table.results(comparison),
        looks=style,
        notes=notes(comparison),
        sections=sections,
        reading=_reading(comparison),
        diagnostics=diagnostics.tables(comparison),
        findings=diagnostics.findings(comparison),
        searches=table.searches(comparison),
        searches_shown="Tuning" in shown,
        diagnostics_shown="Diagnostics" in shown,
        fairness=[*fairness(comparison), *comparison.notes],
        published=table.published(comparison),
        every_run=table.every_run(comparison),
        commands=commands(comparison),
        facts=facts(comparison),
        configs=[(row.label, row.runs[0].recipe_text) for row in comparison.rows],
    )


@dataclass(frozen=True)
class PageSection:
    """Pictures under one heading; ``shared_key`` stands above them where more than one has a key."""

    id: str
    name: str
    pictures: tuple[Picture, ...]
    shared_key: tuple[tuple[Look, str], ...]


def _sections(drawn: Sequence[Picture]) -> list[PageSection]:
    by_name: dict[str, list[Picture]] = {}
    for picture in drawn:
        by_name.setdefault(picture.section, []).append(picture)
    sections, ids = [], set()
    for name, own in by_name.items():
        id = re.sub(r"[^a-z0-9]+", "-", name.lower())
        id = f"{id}-{len(ids)}" if id in ids else id
        ids.add(id)
        fullest_first = sorted((picture.key for picture in own if picture.key), key=len, reverse=True)
        entries = dict.fromkeys(entry for one in fullest_first for entry in one)
        sections.append(PageSection(id, name, tuple(own), tuple(entries) if len(fullest_first) > 1 else ()))
    return sections


def markdown(comparison: Comparison) -> str:
    """The same sentences and tables without the pictures."""
    parts = [
        f"# {escaped(comparison.name)}",
        escaped(setting(comparison)),
        f"**{escaped(verdict(comparison))}**",
        "## Results",
    ]
    parts += [markdown_table(table.results(comparison)), bullets(notes(comparison))]
    if searches := table.searches(comparison):
        parts += ["## Tuning", markdown_table(searches)]
    parts += _markdown_diagnostics(comparison)
    parts += ["## How fair it was", bullets([*fairness(comparison), *comparison.notes])]
    if published := table.published(comparison):
        parts += ["## What the papers report", markdown_table(published)]
    parts += ["## Every run", markdown_table(table.every_run(comparison)), "## To repeat this"]
    parts += ["\n".join(f"    {line}" for line in command.splitlines()) for command in commands(comparison)]
    parts += [bullets([f"{term}: {value}" for term, value in facts(comparison)])]
    return "\n\n".join(parts) + "\n"


def _markdown_diagnostics(comparison: Comparison) -> list[str]:
    parts = [markdown_table(data) for data in diagnostics.tables(comparison)]
    for finding in diagnostics.findings(comparison):
        parts += [f"**Plateau: {escaped(finding.run)}.** {escaped(finding.sentence)}"]
        parts += [bullets([*finding.evidence, *finding.advice])] * bool(finding.evidence or finding.advice)
    return ["## Diagnostics", *parts] if parts else []


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the main table has to know."""
    said = []
    held_out = {row.id for row in comparison.rows if row.evaluated_on == "held_out"}
    if len(held_out) == len(comparison.rows):
        names_of = "scores" if not comparison.one_score else plural(comparison.score.name)
        said.append(f"{capital(names_of)} are of a held-out part of the training set, not of the test set.")
    elif held_out:
        said.append(
            f"{names(comparison, held_out)}: evaluated on a held-out part of the training set, the others on the"
            " test set; no difference is taken between the two."
        )
    if not comparison.one_score:
        said.append("Rows are judged by different scores, each in its own unit; no difference is taken between them.")
    elif len(comparison.rows) == 1:
        pass
    elif any(row.difference and row.difference.low is not None for row in comparison.rows):
        said.append("Differences are from the baseline’s mean, with Welch’s 95 % interval over seeds.")
    else:
        said.append(f"Differences are from the baseline’s mean{_in_words(comparison.score)}.")
    if not comparison.score.more_is_better and comparison.one_score:
        better = ": a difference below zero is an improvement" if len(comparison.rows) > 1 else ""
        said.append(f"Less is better{better}.")
    if alone := {row.id for row in comparison.rows if len(row.finished) == 1}:
        said.append(
            "One seed: no interval."
            if len(alone) == len(comparison.rows)
            else f"One finished seed, so no interval: {names(comparison, alone)}."
        )
    broken = [run for run in comparison.runs if not run.finished]
    said.append(
        f"{len(broken)} of {len(comparison.runs)} runs did not finish; they are counted and enter no mean."
        if broken
        else f"All {len(comparison.runs)} runs finished."
        if len(comparison.runs) > 1
        else "The run finished."
    )
    return said


def _in_words(score: Score) -> str:
    return ", in percentage points" if score.unit == "%" else f", in {score.unit}" if score.unit else ""


def commands(comparison: Comparison) -> list[str]:
    """What to type: the comparisons' commands, or each run's own."""
    if comparison.commands:
        return list(comparison.commands)
    return list(dict.fromkeys(run.plan.command for run in comparison.runs if run.plan.command))


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Seeds, versions, machine and commit; what differs between runs is listed with the number of runs."""
    runs = comparison.runs
    broken = sum(not run.finished for run in runs)
    seeds = sorted({run.seed for run in runs})
    said = [
        ("seeds", ", ".join(map(str, seeds))),
        (
            "runs",
            f"{len(runs)}, of which {broken} did not finish" if broken else f"{len(runs)}, all finished",
        ),
        ("started", _kinds(runs[:1], lambda run: run.plan.started)),
        ("machine", _kinds(runs, machine)),
        ("device", _kinds(runs, lambda run: run.plan.device)),
        ("precision", _kinds(runs, lambda run: run.plan.precision)),
        ("engine", _kinds(runs, lambda run: f"{run.plan.engine}, {_processes(run)}")),
        ("commit", _kinds(runs, lambda run: run.plan.commit)),
    ]
    names = list(dict.fromkeys(name for run in runs for name in run.plan.versions or {}))
    return said + [(name, _kinds(runs, lambda run, name=name: (run.plan.versions or {}).get(name))) for name in names]


def _processes(run: RecordedRun) -> str:
    world = run.plan.world_size or 1
    return "1 process" if world == 1 else f"{world} processes"


def _kinds(runs: tuple[RecordedRun, ...], value: Callable[[RecordedRun], Any]) -> str:
    values = [str(value(run) or "not recorded") for run in runs]
    kinds = list(dict.fromkeys(values))
    return kinds[0] if len(kinds) == 1 else "; ".join(f"{kind} ({values.count(kind)} runs)" for kind in kinds)


def _reading(comparison: Comparison) -> str:
    """How to read the pictures, said once."""
    said = ["Every row keeps its line and marker through all pictures; the baseline has the colour of the text."]
    if any(len(row.finished) > 1 for row in comparison.rows):
        said.append("Lines are means over the finished seeds; bands reach from the lowest to the highest of them.")
    if any(not run.finished for run in comparison.runs):
        said.append("A thin line that ends in a cross is a run that did not finish.")
    return " ".join(said)


@cache
def template(name: str) -> Template:
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters["whole"] = _whole
    return environment.get_template(name)


def _whole(text: str) -> str:
    """A number stays on one line with its unit."""
    return re.sub(r"(\d) (?=%|points|seeds?\b|epochs|steps|runs|min\b|s\b)", "\\1\u00a0", text)


def markdown_table(data: TextTable) -> str:
    lines = [
        "| " + " | ".join(escaped(column.heading) for column in data.columns) + " |",
        "|" + "|".join("---:" if column.number else ":---" for column in data.columns) + "|",
    ]
    for line in data.lines:
        remarks = [remark for remark in (line.mark, line.trouble) if remark]
        first = escaped(line.cells[0]) + "".join(f"<br>{escaped(remark)}" for remark in remarks)
        lines.append("| " + " | ".join([first, *map(escaped, line.cells[1:])]) + " |")
    return "\n".join(lines) + f"\n\n{escaped(data.caption)}"


def bullets(sentences: list[str]) -> str:
    return "\n".join(f"* {escaped(sentence)}" for sentence in sentences)


def escaped(text: str) -> str:
    """Text that no Markdown reader takes for markup or for the edge of a cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\|*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return text
