"""Loss and score on the way from one run's weights to another's, as Keskar et al. 2017 (arXiv:1609.04836) draw it.

The straight line is (1 − α)·a + α·b, the curve cos(απ/2)·a + sin(απ/2)·b; α = 0 is a, α = 1 is b.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from largebatch.plan.score import ACCURACY, Score
from largebatch.records.diagnoses import PathPoint, PathRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.frame import HEIGHT, WIDTH, Picture
from largebatch.report.numerals import axis, count, plain
from largebatch.report.scales import log
from largebatch.report.summary import Comparison

LOSS, SCORE = svg.COLOURS[0], svg.COLOURS[1]
WAYS = {"line": "on the straight line", "curve": "on the curve"}


def draw(facts: PathRecord) -> Drawn:
    """The straight line, and below it the curve where it was measured."""
    ways = facts.ways
    height = (HEIGHT + 16) * len(ways)
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    for place, way in enumerate(ways):
        _panel(
            figure, (len(ways) - 1 - place) * (HEIGHT + 16) / height, HEIGHT / height, facts, way, named=len(ways) > 1
        )
    said = "; ".join(f"{WAYS[way]} {_said(points)}" for way, points in ways.items())
    return Drawn(figure, _title(facts), _caption(facts), said)


def pictures(comparison: Comparison) -> list[Picture]:
    """Line and curve of every run that was measured on its way to another."""
    measured: list[PathRecord] = []
    for run in comparison.runs:
        facts = run.diagnosis(PathRecord)
        if facts and facts not in measured:  # both ends keep them
            measured.append(facts)
    made = []
    for place, facts in enumerate(measured):
        for way, points in facts.ways.items():
            figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
            _panel(figure, 0, 1, facts, way)
            name, title = f"path-{place}-{way}", f"{_title(facts)}, {WAYS[way]}"
            element = svg.inline(figure, name, title, _said(points))
            made.append(Picture(name, "Diagnostics", title, _caption(facts), element, ()))
    return made


def _panel(figure: Figure, bottom: float, share: float, facts: PathRecord, way: str, *, named: bool = False) -> None:
    """Loss on the left in one colour, the score on the right in another; train solid, test dashed.

    A score that is a loss itself, as of a regression, has one line for both.
    """
    points, score = facts.ways[way], facts.judged_by
    axes = figure.add_axes((46 / WIDTH, bottom + 44 / HEIGHT * share, 1 - 92 / WIDTH, share * (1 - 92 / HEIGHT)))
    right = axes.twinx()
    right.grid(False)
    losses = _series(axes, points, "loss", LOSS)
    log(axes, "y", losses or [0.1, 1])
    axes.tick_params(axis="y", labelcolor=LOSS)
    texts = [(f"{_loss_name(points, score)} (log scale)", 0, -42, "left", LOSS)]
    if _is_loss(points, score):
        right.axis("off")
    else:
        _scale(right, _series(right, points, score.key, SCORE), score)
        right.spines["right"].set_visible(True)
        right.tick_params(axis="y", labelcolor=SCORE, size=0)
        texts.append((axis(score), 1, 42, "right", SCORE))
    alphas = [point.alpha for point in points]
    axes.set_xlim(min(alphas), max(alphas))
    axes.set_xlabel(f"α, {WAYS[way]}" if named else "α", color=svg.MUTED, labelpad=6)
    for text, corner, right_by, side, colour in texts:
        axes.annotate(
            text, (corner, 1), (right_by, 24), xycoords="axes fraction", textcoords="offset points", ha=side,
            color=colour,
        )  # fmt: skip
    for alpha, (side, end) in enumerate(facts.ends.items()):
        _mark(axes, alpha, _name(facts, side), end.global_batch_size)


def _is_loss(points: Sequence[PathPoint], score: Score) -> bool:
    return all(
        point.number(f"{split}_{score.key}") in (None, point.number(f"{split}_loss"))
        for point in points
        for split in ("train", "test")
    )


def _loss_name(points: Sequence[PathPoint], score: Score) -> str:
    if score.same_measure(ACCURACY):
        return "cross-entropy"
    return score.name if _is_loss(points, score) else "loss"


def _scale(axes: Axes, values: Sequence[float], score: Score) -> None:
    """Up to 100 %; what is no percent over whatever there is, logarithmic where less is better."""
    if not score.more_is_better and any(value > 0 for value in values):
        return log(axes, "y", values)
    low, high = min(values, default=0.0), 100.0 if score.unit == "%" else max(values, default=1.0)
    bottom = low - 0.06 * (high - low)
    axes.set_ylim(max(0, bottom) if low >= 0 else bottom, high + 0.02 * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return None


def _series(axes: Axes, points: Sequence[PathPoint], quantity: str, colour: str) -> list[float]:
    """Draw it for both sets; the numbers that were drawn."""
    drawn = []
    for split, dashes in (("train", (None, None)), ("test", (6, 2.5))):
        key = f"{split}_{quantity}"
        known = [(point.alpha, number) for point in points if (number := point.number(key)) is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True), color=colour, dashes=dashes, linewidth=1.6,
                marker="" if quantity == "loss" else "o", markersize=3.5,
            )  # fmt: skip
        drawn += [number for _, number in known]
    return drawn


def _mark(axes: Axes, alpha: float, name: str, batch: float | None) -> None:
    left, right = axes.get_xlim()
    if not left - 1e-9 <= alpha <= right + 1e-9:
        return
    axes.axvline(alpha, color=svg.MUTED, linewidth=1, dashes=(1, 2.5))
    place = (alpha - left) / (right - left)
    side = "left" if place < 0.1 else "right" if place > 0.9 else "center"
    axes.annotate(
        f"batch {count(batch)}" if batch else name, (alpha, 1), (0, 5), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", ha=side, fontsize=9.5, color=svg.INK,
    )  # fmt: skip


def _title(facts: PathRecord) -> str:
    return f"From {_name(facts, 'a')} to {_name(facts, 'b')}"


def _name(facts: PathRecord, side: str) -> str:
    """The run's title, with its batch where the other's is the same."""
    titles = {which: end.title or end.run or which for which, end in facts.ends.items()}
    batch = facts.ends[side].global_batch_size
    return f"{titles[side]} at {count(batch)}" if titles["a"] == titles["b"] and batch else titles[side]


def _caption(facts: PathRecord) -> str:
    ends = []
    for alpha, (side, end) in enumerate(facts.ends.items()):
        seed = f", seed {end.seed}" if end.seed is not None else ""
        ends.append(f"α = {alpha} is {_name(facts, side)}{seed}")
    words = {"recomputed": "recomputed at every point", "batch": "the batch’s"}.get(str(facts.batch_norm))
    norm = f" Batch-norm statistics are {words}." if words else ""
    score = facts.judged_by
    dots = "" if _is_loss(facts.line, score) else f"; dots: {score.name}"
    solid = f"Solid: {count(facts.examples)} training examples"
    return f"{solid}; dashed: the test set{dots}. {'; '.join(ends)}.{norm}"


def _said(points: Sequence[PathPoint]) -> str:
    """The loss at both ends and at its highest between."""
    known = [(point.alpha, loss) for point in points if (loss := point.number("train_loss")) is not None]
    between = [(loss, alpha) for alpha, loss in known if 0 <= alpha <= 1]
    if not between:
        return "no training loss between the two"
    top, at = max(between)
    ends = [f"{plain(loss)} at α = {plain(alpha)}" for loss, alpha in (between[0], between[-1])]
    return f"the training loss is {' and '.join(ends)}, and at most {plain(top)} between, at α = {plain(at)}"
