"""The critical batch over a training, as branches found it, beside the noise scale at the same weights.

Merrill et al. 2025, arXiv:2505.23971, draw B times the geometric mean of k* and the next k above; k* is the largest
multiple of the batch B that loses nothing.
"""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from largebatch.records.diagnoses import CriticalPoint, CriticalRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.diagnostics import critical_words
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.looks import Look, look
from largebatch.report.numerals import count, plain
from largebatch.report.scales import log
from largebatch.report.summary import Comparison

BATCH, BRANCHES, NOISE = look(0), look(1), look(2)
KEY = ((BRANCHES, "critical batch, by branches"), (NOISE, "noise scale"), (BATCH, "the run’s batch"))


def draw(facts: CriticalRecord) -> Drawn:
    """With the names of the lines in the caption, since no key stands beside it."""
    how = "Squares: the critical batch; triangles: the noise scale; dots: the run’s batch."
    return Drawn(_figure(facts), _title(facts), f"{how} {_caption(facts)}", _said(facts))


def pictures(comparison: Comparison) -> list[Picture]:
    """One of every run that was measured."""
    made = []
    for place, facts in enumerate(one for run in comparison.runs if (one := run.diagnosis(CriticalRecord))):
        name, title = f"critical-{place}", _title(facts)
        element = svg.inline(_figure(facts), name, title, _said(facts))
        made.append(Picture(name, "Diagnostics", title, _caption(facts), element, KEY))
    return made


def _figure(facts: CriticalRecord) -> Figure:
    figure, axes = empty_axes("examples (log scale)", "examples seen")
    points = [point for point in facts.points if point.examples_seen is not None and point.global_batch_size]
    heights: list[float] = []
    _line(axes, points, lambda point: point.global_batch_size, BATCH)
    _line(axes, points, lambda point: point.drawn, BRANCHES)
    _line(axes, points, lambda point: point.noise_scale, NOISE)
    for point in points:
        heights += [*_branches(axes, point), *_noise(axes, point), float(point.global_batch_size or 1)]
    log(axes, "y", heights or [1, 10], count, margin=1.6)
    _examples_axis(axes, [point.examples_seen or 0 for point in points])
    return figure


def _line(
    axes: Axes, points: Sequence[CriticalPoint], value: Callable[[CriticalPoint], float | None], look: Look
) -> None:
    """Through those that are known; a dot or square at each."""
    known = [(point.examples_seen, height) for point in points if (height := value(point))]
    if known:
        axes.plot(
            *zip(*known, strict=True), color=look.colour, dashes=look.dashes or (None, None), linewidth=1.4,
            marker=look.marker, markersize=7, markeredgecolor=svg.PAGE, markeredgewidth=0.8,
        )  # fmt: skip


def _branches(axes: Axes, point: CriticalPoint) -> list[float]:
    """From k* to the next k above, or over what is not decided; an arrow where the grid ends. The heights of it."""
    size, at = float(point.global_batch_size or 1), point.examples_seen or 0
    if point.drawn is None or point.critical_batch_size is None:
        low, high = (size * (factor or 1.0) for factor in (point.factor_low, point.factor_high))
        axes.plot([at, at], [low, high], color=BRANCHES.colour, linewidth=5, alpha=0.25, solid_capstyle="butt")
        return [low, high]
    low, high = point.critical_batch_size, point.drawn**2 / point.critical_batch_size
    axes.plot([at, at], [low, high], color=BRANCHES.colour, linewidth=1)
    ends = {"at least": (low, 1.0), "at most": (low, -1.0)}
    if str(point.verdict) in ends:
        end, way = ends[str(point.verdict)]
        axes.annotate(
            "", (at, end), (0, 20 * way), textcoords="offset points", annotation_clip=False,
            arrowprops={"arrowstyle": "<-", "color": BRANCHES.colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    return [low, high]


def _noise(axes: Axes, point: CriticalPoint) -> list[float]:
    """Its interval, without an upper end up to where the picture ends. The heights that are known."""
    low, high, at = point.noise_scale_low, point.noise_scale_high, point.examples_seen or 0
    if point.noise_scale is None:
        return []
    if low and high:
        axes.plot([at, at], [low, high], color=NOISE.colour, linewidth=1)
    return [height for height in (low, point.noise_scale, high) if height]


def _examples_axis(axes: Axes, places: Sequence[int]) -> None:
    low, high = min(places, default=0), max(places, default=1)
    room = 0.06 * (high - low) or 0.5 * high or 1.0
    axes.set_xlim(max(0.0, low - room), high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))


def _title(facts: CriticalRecord) -> str:
    return f"Critical batch: {facts.title or facts.run or 'a run'}"


def _caption(facts: CriticalRecord) -> str:
    rule = {"linear": "lr ∝ batch", "sqrt": "lr ∝ √batch", "none": "the same lr"}.get(str(facts.lr_rule), "")
    allowed = f", {plain(facts.tolerance)} of the loss allowed" if facts.tolerance else ""
    return (
        f"Branches of {count(facts.window)} examples in {facts.orders} orders of the data, {rule}{allowed} (Merrill et "
        "al. 2025). Bars reach from the largest batch that loses nothing to the next that was tried, pale ones over "
        "what is not decided; arrows lead beyond what was tried. The noise scale has its 95 % interval."
    )


def _said(facts: CriticalRecord) -> str:
    return "; ".join(f"step {count(point.step)}: {critical_words(point)}" for point in facts.points)
