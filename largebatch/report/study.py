"""What a study came to -> one self-contained HTML page, the same as Markdown, and what a terminal shows of it.

STUDY/curves.json    the facts (records/curves.py)
STUDY/curves.svg     the picture of them
STUDY/report.html    the page
STUDY/report.md      its tables and sentences
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.errors import UserError
from largebatch.records import names
from largebatch.records.curves import TargetsRecord
from largebatch.records.facts import write_json
from largebatch.records.files import write_text
from largebatch.records.typed import content, read
from largebatch.report import svg, targets
from largebatch.report.alone import write_picture
from largebatch.report.files import json_of
from largebatch.report.frame import Picture
from largebatch.report.numerals import count, listing
from largebatch.report.page import bullets, escaped, markdown_table, template
from largebatch.report.table import TextTable

CURVES, PICTURE = "curves.json", "curves.svg"


@dataclass(frozen=True)
class StudiedRow:
    """A row on the page."""

    label: str
    points: TextTable
    searched: TextTable
    sentences: tuple[str, ...]


def is_study(folder: Path) -> bool:
    return (folder / CURVES).is_file()


def read_facts(folder: Path) -> TargetsRecord:
    return read(TargetsRecord, json_of(folder / CURVES), folder / CURVES)


def write(facts: TargetsRecord, folder: Path) -> Path:
    """All files; the page's path."""
    page = folder / names.REPORT_PAGE
    try:
        write_json(folder / CURVES, content(facts))
        if _drawn(facts):
            write_picture(content(facts), folder / PICTURE)
        write_text(page, html(facts))
        write_text(folder / names.REPORT_TEXT, markdown(facts))
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}; name another folder") from None
    return page


def setting(facts: TargetsRecord) -> str:
    sizes = sorted({one.global_batch_size for curve in facts.curves for one in curve.searched or curve.points})
    said = (
        f"{listing(curve.label for curve in facts.curves)} at batches {listing(map(count, sizes))}, to {facts.target}"
    )
    if facts.trials is not None and facts.seeds is not None:
        said += f"; {facts.trials} trials for each row at each batch, {facts.seeds} seeds of the best"
    return said + "."


def rows_of(facts: TargetsRecord) -> Iterator[StudiedRow]:
    for curve in facts.curves:
        sentences = (*targets.notes(facts, curve), *targets.rules(curve))
        yield StudiedRow(curve.label, targets.points(facts, curve), targets.searched(curve), sentences)


def html(facts: TargetsRecord) -> str:
    return template("study.html.j2").render(
        facts=facts,
        setting=setting(facts),
        verdict=targets.verdict(facts),
        answers=targets.answers(facts),
        warning=targets.few_trials(facts),
        rows=targets.rows(facts),
        picture=_picture(facts),
        settings=_settings(facts),
        paired=list(targets.paired(facts)),
        meaning=targets.meaning(facts),
        each=list(rows_of(facts)),
    )


def _drawn(facts: TargetsRecord) -> bool:
    return any(curve.points for curve in facts.curves)


def _picture(facts: TargetsRecord) -> Picture | None:
    if not _drawn(facts):
        return None
    from largebatch.report.target_figure import draw

    with svg.drawing():
        drawn = draw(facts)
        inline = svg.inline(drawn.figure, "curves", drawn.title, drawn.description)
    return Picture("curves", "Curves", drawn.title, drawn.caption, inline, ())


def _settings(facts: TargetsRecord) -> list[Picture]:
    from largebatch.report.settings_figure import pictures

    with svg.drawing():
        return list(pictures(facts))


def markdown(facts: TargetsRecord) -> str:
    parts = [f"# {escaped(facts.title)}", escaped(setting(facts)), f"**{escaped(targets.verdict(facts))}**"]
    parts += [escaped(said) for said in (targets.answers(facts), targets.few_trials(facts)) if said]
    parts += [markdown_table(targets.rows(facts))]
    if paired := list(targets.paired(facts)):
        parts += ["## Rows in pairs", escaped(paired[0]), bullets(paired[1:])]
    parts += ["## Every row", escaped(targets.meaning(facts))]
    for row in rows_of(facts):
        parts += [f"### {escaped(row.label)}", markdown_table(row.points), bullets(list(row.sentences))]
        parts += [markdown_table(row.searched)] * bool(row.searched.lines)
    parts += ["## To repeat this", f"    {facts.command}"]
    return "\n\n".join(parts) + "\n"


def printed(facts: TargetsRecord) -> Iterator[Any]:
    """For a console: tables and sentences."""
    for row in rows_of(facts):
        yield row.points.caption
        yield row.points
        yield from row.sentences
        if row.searched.lines:
            yield row.searched.caption
            yield row.searched
        yield ""
    together = targets.rows(facts)
    yield together
    yield together.caption
    yield from targets.paired(facts)
    yield targets.verdict(facts)
    yield from (said for said in (targets.answers(facts), targets.few_trials(facts)) if said)
