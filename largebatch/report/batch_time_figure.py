"""Seconds per update and per epoch against the batch size, beside the lecture's V100 (facts of kind ``batch_time``)."""

from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.numerals import count, listing, plain
from largebatch.report.scales import log

WIDTH, HEIGHT = 826, 330
PANEL, FIRST, GAP, FOOT = 340, 52, 78, 72  # points: of a panel its width, then what lies left of them and below
OURS, LECTURE = svg.ACCENT, svg.INK
_DASHES = {OURS: (None, None), LECTURE: (7, 2.5)}
_MARKERS = {OURS: "o", LECTURE: "^"}


def draw(facts: Mapping[str, Any]) -> Drawn:
    rows = sorted(facts["sizes"], key=lambda row: row["global_batch_size"])
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    machine = facts["machine"].get("gpu") or facts["machine"].get("host_cpu") or facts["device"]
    panels = [_panel(figure, number) for number in range(2)]
    for axes, what in zip(panels, ("update", "epoch"), strict=True):
        lecture = [(row, *_of_lecture(row, what)) for row in rows if row["lecture_seconds_per_epoch"]]
        _line(axes, [(row["global_batch_size"], value, hollow, False) for row, value, hollow in lecture], LECTURE)
        _line(axes, [_of_ours(row, what) for row in rows], OURS)
        if what == "update":
            _spread(axes, rows)
        sizes = [row["global_batch_size"] for row in rows]
        shown = [row[f"seconds_per_{what}"] for row in rows] + [value for _, value, _ in lecture]
        if what == "update":
            shown += [row[f"seconds_per_update_{end}"] for row in rows for end in ("low", "high")]
        log(axes, "x", sizes, count, margin=1.6)
        log(axes, "y", shown, margin=1.6)
        axes.set_xlabel("global batch size, examples (log scale)", color=svg.MUTED, labelpad=6)
        unit = f"seconds per {what} (log scale)"
        axes.annotate(unit, (0, 1), (-46, 12), xycoords="axes fraction", textcoords="offset points", color=svg.MUTED)
    figure.legend(
        handles=list(_key(rows, machine)),
        loc="lower left",
        bbox_to_anchor=(4 / WIDTH, 0),
        ncols=5,
        frameon=False,
        fontsize=10.5,
        handletextpad=0.4,
        columnspacing=1.6,
        borderaxespad=0,
    )
    described = "; ".join(
        f"batch {count(row['global_batch_size'])}: {plain(row['seconds_per_update'])} s per update, "
        f"{plain(row['seconds_per_epoch'])} s per epoch"
        + (f" (V100 {plain(row['lecture_seconds_per_epoch'])} s)" if row["lecture_seconds_per_epoch"] else "")
        for row in rows
    )
    title = f"Time against batch size: {facts['model']} on {facts['data']}"
    return Drawn(figure, title, _caption(facts, rows), f"{described}.")


def _panel(figure: Figure, number: int) -> Axes:
    left = FIRST + number * (PANEL + GAP)
    return figure.add_axes((left / WIDTH, FOOT / HEIGHT, PANEL / WIDTH, 1 - (FOOT + 34) / HEIGHT))


Point = tuple[float, float, bool, bool]  # batch, seconds, hollow, accumulated


def _of_ours(row: Mapping[str, Any], what: str) -> Point:
    hollow = what == "epoch" and row["extrapolated"]
    return row["global_batch_size"], row[f"seconds_per_{what}"], hollow, row["accumulation_steps"] > 1


def _of_lecture(row: Mapping[str, Any], what: str) -> tuple[float, bool]:
    """Where its plot of updates shows nothing, what its plot of epochs implies."""
    seen = row[f"lecture_seconds_per_{what}"]
    return (seen, False) if seen else (row["lecture_seconds_per_epoch"] / row["updates_per_epoch"], True)


def _line(axes: Axes, points: list[Point], colour: str) -> None:
    x, y = [point[0] for point in points], [point[1] for point in points]
    axes.plot(x, y, color=colour, dashes=_DASHES[colour], linewidth=1.4)
    for x, y, hollow, accumulated in points:
        axes.plot([x], [y], linestyle="none", **_mark(colour, hollow, accumulated))


def _mark(colour: str, hollow: bool, accumulated: bool) -> dict[str, Any]:
    return {
        "color": colour,
        "marker": "s" if accumulated else _MARKERS[colour],
        "markersize": 6.5,
        "markerfacecolor": svg.PAGE if hollow else colour,
        "markeredgewidth": 1.4,
    }


def _spread(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    """From the fastest window to the slowest."""
    for row in rows:
        ends = [row["seconds_per_update_low"], row["seconds_per_update_high"]]
        axes.plot([row["global_batch_size"]] * 2, ends, color=OURS, linewidth=1)


def _key(rows: list[Mapping[str, Any]], machine: str) -> Iterator[Line2D]:
    def handle(label: str, colour: str, hollow: bool = False, accumulated: bool = False, line: bool = False) -> Line2D:
        style = "-" if line else "none"
        made = Line2D([], [], label=label, linestyle=style, linewidth=1.4, **_mark(colour, hollow, accumulated))
        if line:
            made.set_dashes(_DASHES[colour])
        return made

    yield handle(machine, OURS, line=True)
    if any(row["lecture_seconds_per_epoch"] for row in rows):
        yield handle("Tesla V100 (lecture)", LECTURE, line=True)
    if any(row["accumulation_steps"] > 1 for row in rows):
        yield handle("accumulated", OURS, accumulated=True)
    if any(row["extrapolated"] for row in rows):
        yield handle("extrapolated", OURS, hollow=True)


def _caption(facts: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> str:
    said = [f"{facts['precision']}, {count(facts['dataset_size'])} examples, data on the device."]
    said.append("Bars reach from the fastest to the slowest of the windows that were timed.")
    if graphs := [count(row["global_batch_size"]) for row in rows if row["how"] == "cuda graph"]:
        said.append(f"Replayed as CUDA graphs: batch {listing(graphs)}.")
    if any(row["extrapolated"] for row in rows):
        said.append("Hollow epochs follow from fewer updates than they have.")
    if any(row["lecture_seconds_per_epoch"] for row in rows):
        said.append(
            "The lecture's times are read off its slides 21 and 22 (H. Lee, NTU ML 2021; MNIST, another network); "
            "hollow ones per update follow from its epochs."
        )
    return " ".join(said)
