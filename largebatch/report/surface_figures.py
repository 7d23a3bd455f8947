"""The lecture's small surfaces with the ways of its optimizers across them (facts of kind ``surface``).

Two parameters: a panel for each run, lines of equal loss below its path. One parameter: the loss above, and below it
every run's parameter on the same axis, downwards as its updates go on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.looks import DASHES, MARKERS
from largebatch.report.numerals import count, plain
from largebatch.report.scales import log

WIDTH = 720
LEVELS = 9
DARKEST = 0.3  # opacity of the highest loss
FEW = 350  # updates up to which each one is dotted
LEFT, RIGHT, TOP, FOOT, GAP, HEADS = 46, 18, 48, 66, 38, 64  # points around and between panels
TALLEST = 360
LAND, TIME = 190, 300  # heights of the two panels of one parameter


def draw(facts: Mapping[str, Any]) -> Drawn:
    figure, caption = _across(facts) if facts["contours"] else _along(facts)
    ends = (f"{path['label']}: {_outcome(facts, path)}" for path in facts["paths"])
    title = f"{facts['name'].replace('_', ' ').capitalize()}: {facts['formula']}"
    return Drawn(figure, title, caption, f"{'; '.join(ends)}.")


def _across(facts: Mapping[str, Any]) -> tuple[Figure, str]:
    """A panel for each path."""
    paths = facts["paths"]
    columns = min(len(paths), 2 if len(paths) == 4 else 3)
    rows = math.ceil(len(paths) / columns)
    wide = (WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    high = min(wide, TALLEST)
    height = TOP + rows * high + (rows - 1) * HEADS + FOOT
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    levels = _levels(facts)
    for place, path in enumerate(paths):
        row, column = divmod(place, columns)
        left, bottom = LEFT + column * (wide + GAP), height - TOP - (row + 1) * high - row * HEADS
        axes = figure.add_axes((left / WIDTH, bottom / height, wide / WIDTH, high / height))
        _terrain(axes, facts, levels)
        _way(axes, path, svg.COLOURS[place % len(svg.COLOURS)])
        _landmarks(axes, facts)
        _heading(axes, path["title"], _settings(path), _outcome(facts, path))
        if column == 0:
            axes.set_ylabel(facts["parameters"][1], color=svg.MUTED, rotation=0, labelpad=8)
        else:
            axes.tick_params(labelleft=False)
        if place + columns >= len(paths):
            axes.set_xlabel(facts["parameters"][0], color=svg.MUTED, labelpad=4)
        else:
            axes.tick_params(labelbottom=False)
    _key(figure, facts, height)
    said = [
        f"{_updates(facts['updates'])} each. Darker is a higher loss; from one line to the next it grows "
        f"{plain(round(levels[1] / levels[0], 1))}-fold."
    ]
    if any(path["updates"] <= FEW and not path["diverged"] for path in paths):
        said.append("Dots are single updates.")
    if any(path["updates"] > FEW for path in paths):
        said.append("Of many updates each stretch’s extremes are drawn.")
    return figure, " ".join([*said, _settled(facts)])


def _settled(facts: Mapping[str, Any]) -> str:
    if not any(path["settled_after_updates"] is not None for path in facts["paths"]):
        return ""
    names = " and ".join(facts["parameters"])
    near = f"{names} within 0.001 of the optimum" if facts["optimum"] else "the loss below 0.001"
    return f"Settled: from then on {near}."


def _levels(facts: Mapping[str, Any]) -> list[float]:
    """Losses in even ratios, from the lowest twentieth of the window to its highest."""
    losses = sorted(value for row in facts["contours"]["loss"] for value in row)
    low, high = max(losses[len(losses) // 20], losses[-1] * 1e-4), losses[-1]
    return [low * (high / low) ** (step / LEVELS) for step in range(LEVELS + 1)]


def _terrain(axes: Axes, facts: Mapping[str, Any], levels: Sequence[float]) -> None:
    grid = facts["contours"]
    shades = [to_rgba(svg.INK, DARKEST * step / LEVELS) for step in range(1, LEVELS + 1)]
    axes.contourf(grid["x"], grid["y"], grid["loss"], levels=levels, colors=shades)
    axes.contour(grid["x"], grid["y"], grid["loss"], levels=levels[:-1], colors=[svg.MUTED], linewidths=0.4, alpha=0.6)
    (left, right), (low, high) = facts["window"]
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _way(axes: Axes, path: Mapping[str, Any], colour: str) -> None:
    x, y = zip(*path["points"], strict=True)
    dotted = path["updates"] <= FEW and not path["diverged"]
    axes.plot(x, y, color=colour, linewidth=1.3, marker="." if dotted else None, markersize=3.5, zorder=4)
    _start(axes, x[0], y[0], colour)
    if not path["diverged"]:
        _end(axes, x[-1], y[-1], colour)


def _start(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot([x], [y], marker="o", markersize=7, markerfacecolor=svg.PAGE, markeredgecolor=colour, markeredgewidth=1.6,
              linestyle="none", zorder=6, scalex=False, scaley=False)  # fmt: skip


def _end(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot([x], [y], marker="o", markersize=7, color=colour, markeredgecolor=svg.PAGE, markeredgewidth=0.9,
              linestyle="none", zorder=7, scalex=False, scaley=False)  # fmt: skip


def _landmarks(axes: Axes, facts: Mapping[str, Any]) -> None:
    for critical in facts["critical_points"]:
        if critical["name"] == "minimum" or critical["escape_direction"]:
            marker = "+" if critical["name"] == "minimum" else "x"
            axes.plot(*critical["point"], marker=marker, markersize=9, color=svg.INK, markeredgewidth=1.4,
                      linestyle="none", zorder=5)  # fmt: skip


def _heading(axes: Axes, *lines: str) -> None:
    for place, line in enumerate(reversed(lines)):
        last = place == len(lines) - 1
        axes.annotate(line, (0, 1), (0, 6 + 13.5 * place), xycoords="axes fraction", textcoords="offset points",
                      fontsize=11.5 if last else 10, color=svg.INK if last else svg.MUTED)  # fmt: skip


def _settings(path: Mapping[str, Any]) -> str:
    return path["label"].removeprefix(f"{path['title']}, ")


def _outcome(facts: Mapping[str, Any], path: Mapping[str, Any]) -> str:
    if path["diverged"]:
        return f"diverges after {_updates(path['updates'])}"
    if path["settled_after_updates"] is not None:
        return f"settled after {_updates(path['settled_after_updates'])}"
    if path["swings_around_optimum"]:
        return "swings around the optimum"
    if path["ends_in"]:
        return f"ends in the {path['ends_in']}"
    at = ", ".join(f"{name} = {_plain(value)}" for name, value in zip(facts["parameters"], path["end"], strict=True))
    return f"ends at {at}"


def _updates(number: int) -> str:
    return f"{count(number)} update{'' if number == 1 else 's'}"


def _plain(value: float) -> str:
    return plain(value).replace("-", "−") if value < 0 else plain(value)


def _key(figure: Figure, facts: Mapping[str, Any], height: float) -> None:
    def handle(label: str, marker: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, marker=marker, linestyle="none", color=svg.INK, **look)

    handles = [
        handle("start", "o", markersize=7, markerfacecolor=svg.PAGE, markeredgewidth=1.6),
        handle("end", "o", markersize=7, markeredgecolor=svg.PAGE),
    ]
    if facts["optimum"]:
        handles.append(handle("optimum", "+", markersize=9, markeredgewidth=1.4))
    handles += [
        handle(critical["name"], "x", markersize=9, markeredgewidth=1.4)
        for critical in facts["critical_points"]
        if critical["escape_direction"]
    ]
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(LEFT / WIDTH, 4 / height), ncols=len(handles), frameon=False,
        fontsize=10.5, handletextpad=0.3, columnspacing=1.6, borderaxespad=0,
    )  # fmt: skip


def _along(facts: Mapping[str, Any]) -> tuple[Figure, str]:
    """The landscape with where each run ends, and under it the ways there, time downwards."""
    paths, wide = facts["paths"], WIDTH - LEFT - RIGHT
    foot = 54 + 17 * math.ceil(len(paths) / 2)
    height = 30 + LAND + HEADS + TIME + foot
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    land = figure.add_axes((LEFT / WIDTH, (foot + TIME + HEADS) / height, wide / WIDTH, LAND / height))
    time = figure.add_axes((LEFT / WIDTH, foot / height, wide / WIDTH, TIME / height), sharex=land)
    _landscape(land, time, facts)
    handles = []
    for place, path in enumerate(paths):
        look = _look(place)
        w, when = [at[0] for at in path["points"][1:]], path["update_numbers"][1:]
        time.plot(w, when, markevery=_sparse(when, place), linewidth=1.5, zorder=3, **look)
        handles.append(Line2D([], [], label=f"{path['label']}: {_outcome(facts, path)}", linewidth=1.5, **look))
        if not path["diverged"]:
            below = sum(abs(other["end"][0] - path["end"][0]) < 0.5 for other in paths[:place])
            above = offset_copy(land.transData, figure, y=11 * below, units="points")
            land.plot(path["end"], [path["end_loss"]], linestyle="none", transform=above, zorder=4, **look)
    log(time, "y", [1, max(2, *(path["updates"] for path in paths))], count)
    time.invert_yaxis()
    for axes, what in ((land, "loss"), (time, "updates (log scale)")):
        axes.annotate(what, (0, 1), (8 - LEFT, 10), xycoords="axes fraction", textcoords="offset points",
                      color=svg.MUTED)  # fmt: skip
        axes.set_xlabel(facts["parameters"][0], color=svg.MUTED, labelpad=4)
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(LEFT / WIDTH, 4 / height), ncols=2, frameon=False,
        fontsize=10.5, handlelength=3, handletextpad=0.5, columnspacing=1, borderaxespad=0,
    )  # fmt: skip
    said = "Above, a ring is the start and the other marks are the ends. Below, time runs downwards."
    return figure, f"{said} {_settled(facts)}"


def _landscape(land: Axes, time: Axes, facts: Mapping[str, Any]) -> None:
    x, loss = facts["curve"]["x"], facts["curve"]["loss"]
    land.plot(x, loss, color=svg.INK, zorder=2)
    land.set_xlim(*facts["window"][0])
    land.set_ylim(min(loss) - 0.16 * (max(loss) - min(loss)), max(loss))
    land.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for critical in facts["critical_points"]:
        up = 14 if critical["escape_direction"] else -14
        land.annotate(critical["name"], (critical["point"][0], critical["loss"]), (0, up), ha="center", va="center",
                      textcoords="offset points", fontsize=10.5, color=svg.MUTED)  # fmt: skip
        time.axvline(critical["point"][0], color=svg.RULE, linewidth=0.8, zorder=1)
    start = facts["start"][0]
    _start(land, start, min(zip(x, loss, strict=True), key=lambda pair: abs(pair[0] - start))[1], svg.INK)


def _look(place: int) -> dict[str, Any]:
    return {
        "color": svg.COLOURS[place % len(svg.COLOURS)],
        "dashes": DASHES[place % len(DASHES)] or (None, None),
        "marker": list(MARKERS)[place % len(MARKERS)],
        "markersize": 6.5,
        "markeredgecolor": svg.PAGE,
        "markeredgewidth": 0.8,
    }


def _sparse(when: Sequence[int], place: int) -> list[int]:
    """Some seven a path, evenly on the log scale and staggered, so that those of paths that meet do not."""
    wanted = (when[-1] ** ((part + place % 5 / 5) / 7) for part in range(7)) if when else ()
    return sorted({min(range(len(when)), key=lambda index: abs(when[index] - number)) for number in wanted})
