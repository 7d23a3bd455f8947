"""Sharpness as bars: of one run by setting, of a comparison's rows one picture a setting."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from largebatch.records.diagnoses import SharpnessRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.diagnostics import (
    Setting,
    measured_rows,
    published_sharpness,
    published_words,
    settings,
    sharpness,
    spread,
)
from largebatch.report.frame import Picture
from largebatch.report.numerals import count, plain, short
from largebatch.report.strips import Strip, strip_figure
from largebatch.report.summary import Comparison


def draw(facts: SharpnessRecord) -> Drawn:
    """One run: a bar for each box that was searched."""
    strips = [_strip(setting.words.capitalize(), [facts], setting) for setting in settings([facts])]
    rises = [f"{plain(one.increase)} within a radius of {plain(one.rho)}" for one in facts.sam or ()]
    caption = _how(facts) + (f" SAM’s rise of the loss: {', '.join(rises)}." if rises else "")
    return Drawn(
        _figure(strips),
        f"Sharpness: {facts.title or facts.run or facts.model or 'a run'}",
        caption,
        _said(strips),
    )


def pictures(comparison: Comparison) -> list[Picture]:
    """The rows beside each other, for each box that was searched."""
    rows = measured_rows(comparison, SharpnessRecord)
    made = []
    for place, setting in enumerate(settings(one for _, facts in rows for one in facts)):
        strips = [
            _strip(short(row.label), facts, setting, svg.INK if row.is_baseline else svg.ACCENT) for row, facts in rows
        ]
        name, title = f"sharpness-{place}", f"Sharpness, {setting.words}"
        figure = _figure(strips)
        element = svg.inline(figure, name, title, _said(strips))
        caption = "" if made else _how(rows[0][1][0])
        made.append(Picture(name, "Diagnostics", title, caption, element, ()))
    return made


def _figure(strips: list[Strip]) -> Figure:
    """On a log scale where they differ tenfold."""
    above = [value for strip in strips for value in (strip.value, strip.reference) if value is not None and value > 0]
    log = bool(above) and max(above) > 10 * min(above)
    return strip_figure(f"sharpness, % of 1 + loss{' (log scale)' * log}", strips, log=log)


def _strip(name: str, facts: Sequence[SharpnessRecord], setting: Setting, colour: str = svg.ACCENT) -> Strip:
    found, published = sharpness(facts, setting), published_sharpness(facts, setting)
    return Strip(
        name,
        found and found.mean,
        spread(found),
        low=found.mean - found.std if found and found.std else None,
        high=found.mean + found.std if found and found.std else None,
        colour=colour,
        reference=published and published.sharpness,
        reference_text=f"published: {published_words(published)}" if published else "",
    )


def _how(facts: SharpnessRecord) -> str:
    words = {"batch": "the batch’s", "running": "running"}.get(str(facts.batch_norm))
    batch_norm = f", batch norm with {words} statistics" if words else ""
    cited = " Triangles mark what was published." if facts.published else ""
    return (
        f"The highest loss found in a box around the weights, over {count(facts.examples)} examples{batch_norm}.{cited}"
    )


def _said(strips: list[Strip]) -> str:
    said = (
        f"{strip.name}: {strip.text}{f' ({strip.reference_text})' * bool(strip.reference_text)}" for strip in strips
    )
    return "; ".join(said)
