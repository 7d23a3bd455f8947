"""Curves: the score against epochs, steps and time; learning rate, loss and gradient norm against epochs.

Scales of a score are chosen for where the rows end; logarithmic ones for what finished runs recorded.
"""

from matplotlib.ticker import MaxNLocator

from largebatch.records.run import EvaluateLine
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.numerals import axis, capital, count, slug
from largebatch.report.row_lines import draw_edges, draw_lines, drawn_lines, from_zero, line_picture, positive
from largebatch.report.scales import focus, log
from largebatch.report.summary import Comparison


def score(
    comparison: Comparison, x: str, name: str, x_label: str, *, log_x: bool = False, scale: float = 1.0
) -> Picture | None:
    reached = comparison.reached
    drawn = drawn_lines(comparison, x, reached.key, "evaluate", 1 / scale) if comparison.one_score else ()
    if not drawn:
        return None
    figure, axes = empty_axes(axis(reached), x_label)
    draw_lines(axes, comparison, drawn)
    finished = {row.label: [line for line in own if not line.broken] or own for row, own in drawn}
    sentences = focus(axes, finished, reached) + (draw_edges(axes, comparison, drawn) if x == "epoch" else [])
    if log_x:
        log(axes, "x", [value for _, own in drawn for line in own for value in line.x if value > 0], count)
    else:
        from_zero(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "epoch"))
    what = x_label.removesuffix(" (log scale)").split(",")[0]
    name = f"{slug(comparison.score)}-{name}"
    title = f"{capital(reached.name)} against {what}"
    return line_picture(comparison, figure, name, "Curves", title, drawn, sentences, reached.unit)


def score_in_time(comparison: Comparison) -> Picture | None:
    longest = max(
        (line.seconds or 0 for run in comparison.runs for line in run.lines_of(EvaluateLine)),
        default=0,
    )
    unit, scale = ("s", 1) if longest < 300 else ("min", 60) if longest < 3 * 3600 else ("h", 3600)
    return score(comparison, "seconds", "time", f"time spent training, {unit}", scale=scale)


def learning_rate(comparison: Comparison) -> Picture | None:
    drawn = positive(drawn_lines(comparison, "epoch", "lr"))
    if not drawn:
        return None
    figure, axes = empty_axes("learning rate (log scale)", "epochs")
    draw_lines(axes, comparison, drawn)
    edges = draw_edges(axes, comparison, drawn)
    peaks = [max(value for value in line.y if value > 0) for _, own in drawn for line in own]
    floor = min(peaks) / 100
    log(axes, "y", [floor, *peaks])
    cut = (
        ["The last fall towards zero leaves the scale."]
        if any(line.y[-1] < floor for _, own in drawn for line in own)
        else []
    )
    from_zero(axes)
    return line_picture(
        comparison, figure, "learning-rate", "Curves", "Learning rate against epochs", drawn, cut + edges, ""
    )


def training(comparison: Comparison, key: str, name: str, title: str, y_label: str) -> Picture | None:
    drawn = positive(drawn_lines(comparison, "epoch", key))
    if not drawn:
        return None
    figure, axes = empty_axes(f"{y_label} (log scale)", "epochs")
    draw_lines(axes, comparison, drawn)
    steady = [value for _, own in drawn for line in own if not line.broken for value in line.y]
    log(axes, "y", steady or [value for _, own in drawn for line in own for value in line.y])
    from_zero(axes)
    return line_picture(comparison, figure, name, "Curves", f"{title} against epochs", drawn, [], "")
