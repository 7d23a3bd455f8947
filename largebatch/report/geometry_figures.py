"""What was recorded of the weights' way: the noise scale, and lengths and angles of steps, against epochs."""

import math
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from largebatch.records.run import NoiseScaleLine, NoiseScaleSection
from largebatch.report import svg
from largebatch.report.curves import CurveLine, interval_lines
from largebatch.report.frame import HEIGHT, WIDTH, Picture, empty_axes
from largebatch.report.numerals import count
from largebatch.report.row_lines import draw_lines, drawn_lines, line_picture, positive
from largebatch.report.scales import log
from largebatch.report.summary import Comparison

SECTION = "Geometry"


def noise_scale(comparison: Comparison) -> Picture | None:
    """Beside each row's own batch: near the noise scale, a batch twice as large begins to save little."""
    drawn = positive([(row, interval_lines(row, "epoch", "noise_scale")) for row in comparison.rows])
    if not drawn:
        return None
    batches = sorted({row.global_batch_size for row, _ in drawn})
    values = [value for _, own in drawn for line in own for value in line.y if math.isfinite(value)]
    bounds = [
        bound
        for _, own in drawn
        for line in own
        for bound in (*(line.low or ()), *(line.high or ()))
        if min(values) / 10 < bound < max(values) * 10
    ]
    figure, axes = empty_axes("noise scale, examples (log scale)", "epochs")
    names = 8 * len(count(batches[-1])) / WIDTH
    left, bottom, width, height = axes.get_position().bounds
    axes.set_position((left, bottom, width + 18 / WIDTH - names, height))
    axes.grid(False)
    log(axes, "y", [*values, *bounds, *batches], margin=1.4)
    low, high = axes.get_ylim()
    draw_lines(axes, comparison, [(row, [_within(line, low, high) for line in own]) for row, own in drawn])
    axes.set_ylim(low, high)
    _epochs(axes)
    _mark_batches(axes, batches)
    several = any(len(row.finished) > 1 for row, _ in drawn)
    sentences = [
        "Dotted: the rows’ global batches. Bands are 95 % intervals" + (", over all seeds." if several else "."),
    ]
    sentences += _how_measured(comparison)
    if any(math.isnan(value) for _, own in drawn for line in own for value in line.y):
        sentences.append("Where a line has a gap, the gradient could not be told from its noise.")
    return line_picture(comparison, figure, "noise-scale", SECTION, "Noise scale", drawn, sentences, "examples")


def _how_measured(comparison: Comparison) -> list[str]:
    """Which gradients were compared, and how far the averages reach back; where all rows agree on it."""
    found = set()
    for run in comparison.runs:
        rule = (run.recipe.record and run.recipe.record.noise_scale) or NoiseScaleSection()
        for line in run.lines_of(NoiseScaleLine)[-1:]:
            found.add((line.small_batch_size, round(1 / (1 - rule.smoothing)), rule.every_steps))
    if len(found) != 1:
        return ["Of running averages; small batches differ between the rows."] if found else []
    [(small, steps, every)] = found
    which = "steps" if every == 1 else "measured steps"
    return [
        f"From gradients of {count(small)} examples beside those of the global batch, averaged over some "
        f"{count(steps)} {which}."
    ]


def distance(comparison: Comparison) -> Picture | None:
    drawn = drawn_lines(comparison, "epoch", "distance_from_start", "directions")
    if not drawn:
        return None
    figure, axes = empty_axes("distance of the weights from the start", "epochs")
    draw_lines(axes, comparison, drawn)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    _epochs(axes)
    return line_picture(comparison, figure, "distance", SECTION, "Distance from the start", drawn, [], "")


def relative_update(comparison: Comparison) -> Picture | None:
    drawn = positive(drawn_lines(comparison, "epoch", "relative_update", "directions"))
    if not drawn:
        return None
    figure, axes = empty_axes("norm of the update / norm of the weights (log scale)", "epochs")
    draw_lines(axes, comparison, drawn)
    log(axes, "y", [value for _, own in drawn for line in own for value in line.y])
    _epochs(axes)
    return line_picture(comparison, figure, "relative-update", SECTION, "Update / weight", drawn, [], "")


def alignment(comparison: Comparison) -> Picture | None:
    """Near one: steps agree, and a longer one would do; below zero: they jump across a valley."""
    drawn = drawn_lines(comparison, "epoch", "gradient_alignment", "directions")
    if not drawn:
        return None
    figure, axes = empty_axes("cosine of the angle between successive gradients", "epochs")
    axes.axhline(0, color=svg.MUTED, linewidth=1)
    draw_lines(axes, comparison, drawn)
    axes.set_ylim(-1, 1)
    axes.yaxis.set_major_locator(FixedLocator([-1, -0.5, 0, 0.5, 1]))
    _epochs(axes)
    title = "Alignment of successive gradients"
    sentence = "Near 1 the gradients agree; at 0 they share nothing; below 0 each turns the one before around."
    return line_picture(comparison, figure, "alignment", SECTION, title, drawn, [sentence], "")


def _epochs(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _within(line: CurveLine, low: float, high: float) -> CurveLine:
    """Its band cut to the axis, whose end stands for a bound that is not known; none where the line has a gap."""
    known = [math.isfinite(value) for value in line.y]

    def cut(band: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            min(high, max(low, bound)) if there else math.nan for bound, there in zip(band, known, strict=True)
        )

    return replace(line, low=line.low and cut(line.low), high=line.high and cut(line.high))


def _mark_batches(axes: Axes, batches: list[int]) -> None:
    """A dotted line for each, named at the right where there is room for the name."""
    low, high = axes.get_ylim()
    height = HEIGHT * axes.get_position().height
    below = -math.inf
    for batch in batches:
        axes.axhline(batch, color=svg.MUTED, linewidth=1, dashes=(1, 2.5))
        place = height * math.log(batch / low) / math.log(high / low)
        if place - below > 14:
            axes.annotate(
                count(batch), (1, batch), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", fontsize=9.5, color=svg.MUTED, annotation_clip=False,
            )  # fmt: skip
            below = place
