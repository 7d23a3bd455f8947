"""One mark a row or a trial: time per step and epoch, accuracy by batch, the learning-rate search."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from largebatch.report import svg
from largebatch.report.curves import Line
from largebatch.report.frame import WIDTH, Picture, empty_axes
from largebatch.report.looks import Look, looks
from largebatch.report.numerals import count, decimals
from largebatch.report.read import finite
from largebatch.report.scales import focus, log
from largebatch.report.summary import Comparison, Row


def bars(comparison: Comparison, key: str, name: str, title: str) -> Picture | None:
    values = [(row, estimate.mean) for row in comparison.rows if (estimate := getattr(row, key))]
    if not values:
        return None
    slot = 38
    height = slot * len(values) + 30
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((2 / WIDTH, 6 / height, 1 - 76 / WIDTH, 1 - 32 / height))
    axes.set_title(f"{title.lower()}, s", loc="left", x=0, fontsize=11.5, color=svg.MUTED, pad=10)
    axes.axis("off")
    axes.set_ylim(len(values), 0)
    axes.set_xlim(0, max(value for _, value in values) or 1)
    digits = decimals(value for _, value in values)
    for place, (row, value) in enumerate(values):
        axes.text(0, place + 0.36, _short(row.label), va="center")
        axes.barh(place + 0.72, value, height=0.2, color=svg.INK if row.is_baseline else svg.ACCENT, linewidth=0)
        axes.annotate(
            f"{value:,.{digits}f} s",
            (value, place + 0.72),
            (5, 0),
            textcoords="offset points",
            va="center_baseline",
        )
    described = "; ".join(f"{row.label}: {value:,.{digits}f} s" for row, value in values)
    return Picture(name, "Time", title, "Mean over the finished seeds.", svg.inline(figure, name, title, described), ())


def accuracy_by_batch(comparison: Comparison) -> Picture | None:
    """Final accuracy against batch size: rows of one recipe file and the same other overrides are joined."""
    measured = [row for row in comparison.rows if row.test_accuracy]
    batches = sorted({row.global_batch_size for row in measured})
    if len(batches) < 3:
        return None
    series: dict[tuple[object, ...], list[Row]] = {}
    for row in measured:
        others = tuple(word for word in row.overrides if not word.startswith("batch."))
        series.setdefault((row.config or row.id, others), []).append(row)
    style = looks(comparison)
    figure, axes = empty_axes(f"{comparison.accuracy_name}, %", "global batch size, examples (log scale)")
    shown: dict[str, list[Line]] = {}
    key: list[tuple[Look, str]] = []
    for rows in series.values():
        rows = sorted(rows, key=lambda row: row.global_batch_size)
        name = rows[0].label if len(rows) == 1 else str(rows[0].runs[0].plan.get("name") or rows[0].label)
        estimates = [row.test_accuracy for row in rows if row.test_accuracy]
        x = tuple(float(row.global_batch_size) for row in rows)
        y = tuple(estimate.mean for estimate in estimates)
        look = style[rows[0].id]
        if name in shown:
            name = rows[0].label
        axes.errorbar(
            x,
            y,
            [estimate.std or 0 for estimate in estimates],
            color=look.colour,
            elinewidth=1,
            dashes=look.dashes or (None, None),
            marker=look.marker,
            markersize=7,
            markeredgecolor=svg.PAGE,
            markeredgewidth=0.8,
        )
        key.append((look, name))
        shown[name] = [Line(x, y)]
    sentences = ["Bars are ± one standard deviation over seeds.", *focus(axes, shown, room=0.6)]
    axes.set_xscale("log", base=2)
    axes.set_xlim(batches[0] / 1.4, batches[-1] * 1.4)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    title = f"{comparison.accuracy_name.capitalize()} against batch size"
    described = "; ".join(
        f"{name}: " + ", ".join(f"{y:.2f} % at {count(x)}" for x, y in zip(own[0].x, own[0].y, strict=True))
        for name, own in shown.items()
    )
    return Picture(
        "accuracy-batch",
        "Batch size",
        title,
        " ".join(sentences),
        svg.inline(figure, "accuracy-batch", title, described),
        tuple(key),
    )


def learning_rate_search(comparison: Comparison) -> Picture | None:
    style = looks(comparison)
    tuned = [(row, sorted(trials, key=lambda trial: trial[0])) for row in comparison.rows if (trials := _trials(row))]
    if not tuned:
        return None
    figure, axes = empty_axes("held-out accuracy, %", "peak learning rate (log scale)")
    shown = {
        row.label: [Line(tuple(x for x, _ in good), tuple(y for _, y in good))]
        for row, trials in tuned
        if (good := [(x, y) for x, y in trials if y is not None])
    }
    sentences = ["A ring marks the learning rate that was chosen."] + (
        focus(axes, shown, ends=False, room=0.6) if shown else []
    )
    failed = 0
    for place, (row, trials) in enumerate(tuned):
        look = style[row.id]
        for line in shown.get(row.label, []):
            axes.plot(
                line.x,
                line.y,
                color=look.colour,
                dashes=look.dashes or (None, None),
                marker=look.marker,
                markersize=6.5,
                markeredgecolor=svg.PAGE,
                markeredgewidth=0.8,
            )
        chosen = finite((row.search or {}).get("chosen"))
        axes.plot(
            *zip(
                *[(x, y) for x, y in trials if y is not None and x == chosen] or [(math.nan, math.nan)],
                strict=True,
            ),
            color=look.colour,
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgewidth=1.3,
            linestyle="none",
        )
        lost = [x for x, y in trials if y is None]
        failed += len(lost)
        axes.plot(
            lost,
            [0.03 + place * min(0.04, 0.25 / len(tuned))] * len(lost),
            color=look.colour,
            marker="x",
            markersize=6,
            markeredgewidth=1.5,
            linestyle="none",
            transform=axes.get_xaxis_transform(),
        )
    log(axes, "x", [x for _, trials in tuned for x, _ in trials], margin=1.3)
    if failed:
        sentences.append(f"Crosses at the foot are trials that failed ({failed}), from below in the order of the rows.")
    title = "Learning-rate search"
    described = "; ".join(
        f"{row.label}: chosen {(row.search or {}).get('chosen')} of {len(trials)} trials" for row, trials in tuned
    )
    key = tuple((style[row.id], row.label) for row, _ in tuned)
    return Picture("search", "Tuning", title, " ".join(sentences), svg.inline(figure, "search", title, described), key)


def _trials(row: Row) -> list[tuple[float, float | None]]:
    trials = (row.search or {}).get("trials") or []
    return [
        (lr, finite(trial.get("accuracy_percent")))
        for trial in trials
        if (lr := finite(trial.get("peak_lr"))) and lr > 0
    ]


def _short(label: str) -> str:
    return label if len(label) <= 56 else label[:55] + "…"
