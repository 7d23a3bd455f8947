"""The final score against batch size: the rows of one recipe, joined.

A row belongs to the curve of its comparison, its recipe file and its overrides other than ``batch``; what was
tuned does not part rows. This is slide 24 of H. Lee, NTU Machine Learning 2021, where the fall is the message:
the axis holds every curve whole, and a batch at which no run finished is a cross at its foot.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from largebatch.plan.score import Score
from largebatch.report import svg
from largebatch.report.curves import CurveLine
from largebatch.report.frame import WIDTH, Picture, empty_axes
from largebatch.report.looks import MARKERS, Look, look, looks
from largebatch.report.numerals import axis, capital, count, listing, of_score, slug
from largebatch.report.scales import focus, limits, log, name_of_worst_end, worst_end
from largebatch.report.summary import Comparison, MeasuredRow, SeedMean

FAR = 20  # times the best: beyond it a score where less is better has a logarithmic scale
PUBLISHED = Look(-1, svg.MUTED, svg.VARIABLES[svg.MUTED], (1, 3), "o")


@dataclass(frozen=True)
class Curve:
    """One recipe over batch sizes, ascending."""

    name: str
    look: Look
    rows: tuple[MeasuredRow, ...]


def score_by_batch(comparison: Comparison) -> list[Picture]:
    """On the test set and, where it was measured, on the training set; nothing for fewer than three sizes."""
    sizes = sorted({row.global_batch_size for row in comparison.rows})
    if len(sizes) < 3 or not comparison.one_score or not any(row.reached for row in comparison.rows):
        return []
    drawn, name = curves(comparison), f"{slug(comparison.score)}-batch"
    pictures = [_picture(drawn, sizes, name, comparison.reached, lambda row: row.reached, cited=True)]
    if any(row.reached_in_training for row in comparison.rows):
        on_training = comparison.named("train")
        pictures.append(_picture(drawn, sizes, f"train-{name}", on_training, lambda row: row.reached_in_training))
    return pictures


def curves(comparison: Comparison) -> list[Curve]:
    """The rows by recipe; the baseline's first."""
    series: dict[tuple[object, ...], list[MeasuredRow]] = {}
    for row in sorted(comparison.rows, key=lambda row: row.comparison != comparison.baseline.comparison):
        series.setdefault((row.comparison, row.config or row.id, _others(row)), []).append(row)
    grouped = sorted(series.values(), key=lambda rows: not any(row.is_baseline for row in rows))
    names = _names(grouped)
    style = looks(comparison)
    alone = all(len(rows) == 1 for rows in grouped)
    return [
        Curve(
            name,
            style[rows[0].id] if alone else look(place),
            tuple(sorted(rows, key=lambda row: row.global_batch_size)),
        )
        for place, (name, rows) in enumerate(zip(names, grouped, strict=True))
    ]


def _others(row: MeasuredRow) -> tuple[str, ...]:
    return tuple(word for word in row.overrides if not word.startswith("batch."))


def _names(grouped: Sequence[Sequence[MeasuredRow]]) -> list[str]:
    """Comparison and recipe, as much of both as tells the curves apart."""
    recipes = [rows[0].label if len(rows) == 1 else rows[0].recipe for rows in grouped]
    names = []
    for rows, recipe in zip(grouped, recipes, strict=True):
        own = rows[0].comparison
        if own and sum(other[0].comparison == own for other in grouped) == 1:
            names.append(own)
        elif own and recipes.count(recipe) > 1 and not recipe.startswith(f"{own}: "):
            names.append(f"{own}: {recipe}")
        else:
            names.append(recipe)
    return [
        f"{name} ({', '.join(_others(rows[0])) or rows[0].id})" if names.count(name) > 1 else name
        for name, rows in zip(names, grouped, strict=True)
    ]


def _picture(
    drawn: Sequence[Curve],
    sizes: Sequence[int],
    name: str,
    score: Score,
    value: Callable[[MeasuredRow], SeedMean | None],
    *,
    cited: bool = False,
) -> Picture:
    figure, axes = empty_axes(axis(score), "global batch size, examples (log scale)")
    shown: dict[str, list[CurveLine]] = {}
    key: list[tuple[Look, str]] = []
    lost: list[str] = []
    crosses: list[tuple[int, Look]] = []
    for curve in drawn:
        known = [(row.global_batch_size, found) for row in curve.rows if (found := value(row))]
        failed = [row.global_batch_size for row in curve.rows if not row.finished]
        crosses += [(size, curve.look) for size in failed]
        lost += [f"{curve.name} at {listing(map(count, failed))}"] if failed else []
        if known:
            x, y = tuple(float(size) for size, _ in known), tuple(found.mean for _, found in known)
            _draw(axes, curve.look, x, y, [found.std or 0 for _, found in known])
            shown[curve.name] = [CurveLine(x, y)]
        if known or failed:
            key.append((curve.look, curve.name))
    sentences = ["Bars are ± one standard deviation over seeds."] if _has_seeds(drawn, value) else []
    published = _published(drawn, sizes) if cited else {}
    for place, (source, tops) in enumerate(published.items()):
        own = replace(PUBLISHED, marker=list(MARKERS)[place % len(MARKERS)])
        label = "published" if len(published) == 1 else f"published: {source}"
        x, y = tuple(map(float, tops)), tuple(tops.values())
        axes.plot(x, y, color=own.colour, dashes=own.dashes, linewidth=1.4, marker=own.marker, markersize=4, zorder=1.5)
        shown[label] = [CurveLine(x, y)]
        key.append((own, label))
    if published:
        sentences.append(f"Published: {'; '.join(published)}.")
    sentences += _heights(axes, shown, score, 0.14 if crosses else 0.06)
    _sizes_axis(axes, sizes)
    for size, own in crosses:
        others = [other for other_size, other in crosses if other_size == size]
        _cross(axes, size, worst_end(score, 0.03 + 0.05 * others.index(own)), own)
    if lost:
        sentences.append(f"A cross at the {name_of_worst_end(score)}: no run finished ({'; '.join(lost)}).")
    title = f"{capital(score.name)} against batch size"
    described = "; ".join(
        f"{label}: " + ", ".join(f"{of_score(y, score)} at {count(x)}" for x, y in zip(own[0].x, own[0].y, strict=True))
        for label, own in shown.items()
    )
    return Picture(
        name, "Batch size", title, " ".join(sentences), svg.inline(figure, name, title, described), tuple(key)
    )


def _has_seeds(drawn: Sequence[Curve], value: Callable[[MeasuredRow], SeedMean | None]) -> bool:
    return any((found := value(row)) and found.std is not None for curve in drawn for row in curve.rows)


def _draw(axes: Axes, own: Look, x: Sequence[float], y: Sequence[float], errors: Sequence[float]) -> None:
    axes.errorbar(
        x,
        y,
        errors,
        color=own.colour,
        elinewidth=1,
        dashes=own.dashes or (None, None),
        marker=own.marker,
        markersize=7,
        markeredgecolor=svg.PAGE,
        markeredgewidth=0.8,
    )


def _published(drawn: Sequence[Curve], sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """Source -> the scores cited there by our recipes, between our smallest and our largest size."""
    found: dict[str, dict[int, float]] = {}
    for row in (row for curve in drawn for row in curve.rows):
        cited = {size: top for size, top in row.published.items() if sizes[0] <= size <= sizes[-1]}
        if len(cited) > 1:
            found.setdefault(str((row.expect or {}).get("source") or "no source named"), cited)
    return found


def _heights(axes: Axes, shown: dict[str, list[CurveLine]], score: Score, foot: float) -> list[str]:
    """Scale the score's axis: curves over several sizes are held whole, lone points may be beyond it."""
    said = focus(axes, shown, score, room=0.6)
    long = [value for own in shown.values() for line in own if len(line.x) > 1 for value in line.y]
    end = axes.get_ylim()[0 if score.more_is_better else 1]
    if not long or min(map(score.worth, long)) > score.worth(end):
        return said
    values = [value for own in shown.values() for line in own for value in line.y]
    best, worst = max(values, key=score.worth), min(long, key=score.worth)
    if not score.more_is_better and worst > FAR * best > 0:
        log(axes, "y", values, margin=1.6)
        return ["The scale is logarithmic."]
    end = worst - foot * (best - worst)
    if score.unit == "%" and score.more_is_better and end < 12:
        end = 0.0
    beyond = {label: own[0].y[-1] for label, own in shown.items() if max(map(score.worth, own[0].y)) < score.worth(end)}
    return limits(axes, score, end, best, values, beyond)


def _sizes_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Ticks are our sizes where their names have room, else powers of ten or two."""
    base = 10 if sum(math.log10(size) % 1 == 0 for size in sizes) * 2 > len(sizes) else 2
    axes.set_xscale("log", base=base)
    room = 1.4 if sizes[-1] < 1000 * sizes[0] else 2
    axes.set_xlim(sizes[0] / room, sizes[-1] * room)
    width = (WIDTH - 70) / math.log(sizes[-1] * room**2 / sizes[0])
    named: list[int] = []
    for size in [sizes[-1], *sizes[:-1]]:
        if all(abs(math.log(size / other)) * width > 3.6 * (len(count(size)) + len(count(other))) for other in named):
            named.append(size)
    axes.xaxis.set_major_locator(FixedLocator(sorted(named)))
    axes.xaxis.set_minor_locator(FixedLocator([size for size in sizes if size not in named]))
    axes.tick_params(axis="x", which="minor", bottom=True, length=2.5, color=svg.MUTED)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _cross(axes: Axes, size: int, height: float, own: Look) -> None:
    axes.plot(
        [size],
        [height],
        color=own.colour,
        marker="x",
        markersize=7,
        markeredgewidth=1.8,
        linestyle="none",
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        scalex=False,
        scaley=False,
    )
