"""Loss and accuracy on the way from one run's weights to another's: Keskar et al. 2017 (arXiv:1609.04836), figures 3 and 4.

The straight line is (1 − α)·a + α·b, the curve cos(απ/2)·a + sin(απ/2)·b; α = 0 is a, α = 1 is b.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from largebatch.report import svg
from largebatch.report.alone import Drawn, Facts
from largebatch.report.files import finite
from largebatch.report.frame import HEIGHT, WIDTH, Picture
from largebatch.report.numerals import count, plain
from largebatch.report.run import Record
from largebatch.report.scales import log
from largebatch.report.summary import Comparison

LOSS, ACCURACY = svg.COLOURS[0], svg.COLOURS[1]
WAYS = {"line": "on the straight line", "curve": "on the curve"}


def draw(facts: Facts) -> Drawn:
    """The straight line, and below it the curve where it was measured."""
    ways = [way for way in WAYS if facts.get(way)]
    height = (HEIGHT + 16) * len(ways)
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    for place, way in enumerate(ways):
        _panel(
            figure, (len(ways) - 1 - place) * (HEIGHT + 16) / height, HEIGHT / height, facts, way, named=len(ways) > 1
        )
    said = "; ".join(f"{WAYS[way]} {_said(facts[way])}" for way in ways)
    return Drawn(figure, _title(facts), _caption(facts), said)


def pictures(comparison: Comparison) -> list[Picture]:
    """Line and curve of every run that was measured on its way to another."""
    measured = [run.diagnostics["path"] for run in comparison.runs if "path" in run.diagnostics]
    made = []
    for place, facts in enumerate(measured):
        for way in (way for way in WAYS if facts.get(way)):
            figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
            _panel(figure, 0, 1, facts, way)
            name, title = f"path-{place}-{way}", f"{_title(facts)}, {WAYS[way]}"
            element = svg.inline(figure, name, title, _said(facts[way]))
            made.append(Picture(name, "Diagnostics", title, _caption(facts), element, ()))
    return made


def _panel(figure: Figure, bottom: float, share: float, facts: Record, way: str, *, named: bool = False) -> None:
    """Loss on the left in one colour, accuracy on the right in another; train solid, test dashed."""
    points = facts[way]
    axes = figure.add_axes((46 / WIDTH, bottom + 44 / HEIGHT * share, 1 - 92 / WIDTH, share * (1 - 92 / HEIGHT)))
    right = axes.twinx()
    right.grid(False)
    losses = _series(axes, points, "loss", LOSS)
    accuracies = _series(right, points, "accuracy_percent", ACCURACY)
    log(axes, "y", losses or [0.1, 1])
    low = min(accuracies, default=0)
    right.set_ylim(max(0, low - 0.06 * (100 - low)), 100 + 0.02 * (100 - low))
    right.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.spines["right"].set_visible(True)
    axes.tick_params(axis="y", labelcolor=LOSS)
    right.tick_params(axis="y", labelcolor=ACCURACY, size=0)
    alphas = [point["alpha"] for point in points]
    axes.set_xlim(min(alphas), max(alphas))
    axes.set_xlabel(f"α, {WAYS[way]}" if named else "α", color=svg.MUTED, labelpad=6)
    at = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("cross-entropy (log scale)", (0, 1), (-42, 30), color=LOSS, **at)
    axes.annotate("accuracy, %", (1, 1), (42, 30), ha="right", color=ACCURACY, **at)
    axes.annotate(
        "solid: training set, dashed: test set", (0.5, 0), (0, 6), ha="center", fontsize=9.5, color=svg.MUTED, **at
    )
    for alpha, side in ((0, "a"), (1, "b")):
        _mark(axes, alpha, str(facts[side].get("title") or facts[side].get("run") or side), facts[side])


def _series(axes: Axes, points: Sequence[Record], quantity: str, colour: str) -> list[float]:
    """Draw it for both sets; the numbers that were drawn."""
    drawn = []
    for split, dashes in (("train", (None, None)), ("test", (6, 2.5))):
        known = [
            (point["alpha"], number)
            for point in points
            if (number := finite(point.get(f"{split}_{quantity}"))) is not None
        ]
        if known:
            axes.plot(*zip(*known, strict=True), color=colour, dashes=dashes, linewidth=1.6)
        drawn += [number for _, number in known]
    return drawn


def _mark(axes: Axes, alpha: float, title: str, end: Record) -> None:
    left, right = axes.get_xlim()
    if not left - 1e-9 <= alpha <= right + 1e-9:
        return
    axes.axvline(alpha, color=svg.MUTED, linewidth=1, dashes=(1, 2.5))
    place = (alpha - left) / (right - left)
    side = "left" if place < 0.1 else "right" if place > 0.9 else "center"
    batch = finite(end.get("global_batch_size"))
    axes.annotate(
        f"batch {count(batch)}" if batch else title, (alpha, 1), (0, 5), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", ha=side, fontsize=9.5, color=svg.INK,
    )  # fmt: skip


def _title(facts: Record) -> str:
    a, b = (str(facts[side].get("title") or facts[side].get("run") or side) for side in ("a", "b"))
    return f"From {a} to {b}"


def _caption(facts: Record) -> str:
    ends = " and ".join(
        f"α = {alpha} is {facts[side].get('run') or facts[side].get('title')}" for alpha, side in ((0, "a"), (1, "b"))
    )
    return f"{ends}; {count(finite(facts.get('examples')))} examples."


def _said(points: Sequence[Record]) -> str:
    """The loss at both ends and at its highest between."""
    known = [(point["alpha"], loss) for point in points if (loss := finite(point.get("train_loss"))) is not None]
    between = [(loss, alpha) for alpha, loss in known if 0 <= alpha <= 1]
    if not between:
        return "no training loss between the two"
    top, at = max(between)
    ends = [f"{plain(loss)} at α = {plain(alpha)}" for loss, alpha in (between[0], between[-1])]
    return f"the training loss is {' and '.join(ends)}, and at most {plain(top)} between, at α = {plain(at)}"
