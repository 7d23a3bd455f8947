"""The density of the Hessian's eigenvalues, on a log scale, where one eigenvalue of a million still shows."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from largebatch.records.diagnoses import SpectrumRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.diagnostics import first, measured_rows
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.looks import looks
from largebatch.report.numerals import count, measured
from largebatch.report.scales import log
from largebatch.report.summary import Comparison

X_LABEL, Y_LABEL = "eigenvalue of the Hessian", "density (log scale)"


def draw(facts: SpectrumRecord) -> Drawn:
    """One run, with its computed eigenvalues as ticks at the foot; those alone where no density was estimated."""
    figure, axes = empty_axes(Y_LABEL, X_LABEL)
    x, y = _density(facts)
    if x:
        axes.plot(x, y, color=svg.ACCENT)
        axes.fill_between(x, y, _floor([facts]), color=svg.ACCENT, alpha=0.14, linewidth=0)
    _frame(axes, [facts])
    for eigenvalue in _ends(facts):
        axes.plot([eigenvalue] * 2, [0, 0.05], color=svg.INK, linewidth=1.2, transform=axes.get_xaxis_transform())
    ends = ", ".join(
        f"{name} {measured(value)}"
        for name, end in (("largest", facts.largest), ("smallest", facts.smallest))
        if (value := first(end)) is not None
    )
    shares = [
        f"{100 * share:.1f} % {sign}"
        for sign in ("positive", "zero", "negative")
        if (share := facts.number(f"{sign}_share")) is not None
    ]
    trace = f"; trace {measured(facts.trace, facts.trace_std_error)}" if facts.trace else ""
    said = f"Eigenvalue {ends}{trace}"
    sentences = [f"{said}.", f"{', '.join(shares)}." * bool(shares), "Ticks at the foot are single eigenvalues."]
    sizes = f"{count(facts.parameters)} parameters, {count(facts.examples)} examples."
    caption = " ".join(sentence for sentence in (*sentences, sizes) if sentence)
    title = f"Hessian spectrum: {facts.title or facts.run or facts.model or 'a run'}"
    return Drawn(figure, title, caption, said)


def picture(comparison: Comparison) -> Picture | None:
    """The first measured seed of every row, on one pair of axes."""
    drawn = [
        (row, [one for one in several if _density(one)[0]])
        for row, several in measured_rows(comparison, SpectrumRecord)
    ]
    rows = [(row, several[0]) for row, several in drawn if several]
    if not rows:
        return None
    style = looks(comparison)
    figure, axes = empty_axes(Y_LABEL, X_LABEL)
    for row, facts in sorted(rows, key=lambda pair: pair[0].is_baseline):
        look = style[row.id]
        x, y = _density(facts)
        axes.plot(x, y, color=look.colour, dashes=look.dashes or (None, None), linewidth=1.3)
    _frame(axes, [facts for _, facts in rows])
    title = "Spectrum of the Hessian"
    described = "; ".join(
        f"{row.label}: largest eigenvalue {measured(value)}"
        for row, facts in rows
        if (value := first(facts.largest)) is not None
    )
    caption = (
        "One seed of each row. The bulk at zero is what the loss does not feel; what stands apart, to the right, are"
    )
    caption += " the few directions that limit the learning rate."
    key = tuple((style[row.id], row.label) for row, _ in rows)
    return Picture("spectrum", "Diagnostics", title, caption, svg.inline(figure, "spectrum", title, described), key)


def _density(facts: SpectrumRecord) -> tuple[list[float], list[float]]:
    if facts.density is None:
        return [], []
    floor = _floor([facts])
    grid, heights = facts.density.eigenvalue or (), facts.density.density or ()
    drawn = min(len(grid), len(heights))
    return list(grid[:drawn]), [max(y, floor / 10) for y in heights[:drawn]]


def _floor(several: Sequence[SpectrumRecord]) -> float:
    """Below the height of a single eigenvalue: with P of them, one is 1/P of the peak at most."""
    floors = []
    for facts in several:
        peak = max((facts.density and facts.density.density) or (), default=0)
        if peak > 0:
            floors.append(peak / (10 * (facts.parameters or 1e6)))
    return min(floors, default=1e-8)


def _ends(facts: SpectrumRecord) -> list[float]:
    return [one.value for one in (*facts.largest, *facts.smallest) if one.value is not None]


def _frame(axes: Axes, several: Sequence[SpectrumRecord]) -> None:
    """Axes over everything that was computed, with the zero between falling and rising curvature."""
    drawn = [_density(facts) for facts in several]
    floor = _floor(several)
    xs = [x for own, heights in drawn for x, y in zip(own, heights, strict=True) if y > floor]
    xs += [value for facts in several for value in _ends(facts)] + [0.0]
    margin = 0.04 * ((max(xs) - min(xs)) or 1)
    axes.set_xlim(min(xs) - margin, max(xs) + margin)
    heights = [y for _, own in drawn for y in own if y > floor]
    log(axes, "y", [floor, *heights] if heights else [0.1, 1], margin=1.0 if heights else 1.12)
    if heights:
        axes.set_ylim(floor, 10 ** (0.3 + math.log10(max(heights))))
    else:
        axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.axvline(0, color=svg.MUTED, linewidth=1, dashes=(4, 2))
