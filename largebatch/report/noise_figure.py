"""The gradient noise scale: of one run as what a batch size costs, of a comparison's rows beside their batches.

    S / S_min = 1 + B_noise / B,    E / E_min = 1 + B / B_noise

S steps and E examples reach the same loss with batches of B: McCandlish et al. 2018, arXiv:1812.06162, whose critical
batch size B_noise estimates.
"""

import math

from matplotlib.axes import Axes

from largebatch.records.diagnoses import NoiseRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.diagnostics import Noise, interval_words, measured_rows, noise, noise_words
from largebatch.report.frame import Picture, empty_axes
from largebatch.report.numerals import count, short
from largebatch.report.scales import log
from largebatch.report.strips import Strip, strip_figure
from largebatch.report.summary import Comparison

HEADING = "noise scale, examples (log scale)"


def draw(facts: NoiseRecord) -> Drawn:
    """One run: steps and examples against the batch; only the point where the scale is not known."""
    found = noise([facts])
    title = f"Noise scale: {facts.title or facts.run or 'a run'}"
    how = f"Measured between batches of {count(facts.small_batch_size)} and {count(facts.big_batch_size)} examples."
    if facts.hessian_noise_scale is not None:
        how += f" With the Hessian, tr(HΣ) / (GᵀHG): {count(facts.hessian_noise_scale)}."
    said = f"Noise scale {noise_words(found)} examples, 95 % interval {interval_words(found)}."
    if found.value is None or found.value <= 0:
        return Drawn(strip_figure(HEADING, [_strip("noise scale", found)], log=True, points=True), title, how, said)
    figure, axes = empty_axes("needed / the least possible (log scale)", "global batch size, examples (log scale)")
    sizes = [found.value * 10 ** (step / 20 - 2.5) for step in range(101)]
    _cost(axes, sizes, [1 + found.value / size for size in sizes], svg.COLOURS[0], "steps")
    _cost(axes, sizes, [1 + size / found.value for size in sizes], svg.COLOURS[1], "examples")
    log(axes, "x", sizes, count, margin=1)
    log(axes, "y", [0.9, 330], margin=1)
    if found.low is not None and found.high is not None:
        right = axes.get_xlim()[1]
        axes.axvspan(max(found.low, sizes[0]), min(found.high, right), color=svg.MUTED, alpha=0.14, linewidth=0)
    axes.axvline(found.value, color=svg.INK, linewidth=1.2, dashes=(4, 2))
    axes.annotate(
        f"noise scale {noise_words(found)}", (found.value, 1), (5, -2), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", va="top",
    )  # fmt: skip
    batch = facts.global_batch_size
    if batch and sizes[0] < batch < sizes[-1]:
        axes.axvline(batch, color=svg.MUTED, linewidth=1, dashes=(1, 2.5))
        fits = batch < 3 * found.value  # else there is no room at its right
        axes.annotate(
            f"this run’s batch, {count(batch)}", (batch, 1), (5 if fits else -5, -19), ha="left" if fits else "right",
            va="top", xycoords=axes.get_xaxis_transform(), textcoords="offset points", fontsize=9.5, color=svg.MUTED,
        )  # fmt: skip
    caption = (
        f"Left of the noise scale, larger batches save steps; right of it, they cost examples. The band is the 95 % "
        f"interval ({interval_words(found)}). {how} The curves are McCandlish et al. 2018’s."
    )
    return Drawn(figure, title, caption, said)


def picture(comparison: Comparison) -> Picture | None:
    """The rows' points and intervals, each with its own batch marked."""
    rows = [(row, noise(facts)) for row, facts in measured_rows(comparison, NoiseRecord)]
    if not rows:
        return None
    strips = [
        _strip(short(row.label), found, row.global_batch_size, svg.INK if row.is_baseline else svg.ACCENT)
        for row, found in rows
    ]
    title = "Noise scale at the end"
    described = "; ".join(f"{strip.name}: {strip.text}, {strip.reference_text}" for strip in strips)
    element = svg.inline(strip_figure(HEADING, strips, log=True, points=True), "noise-end", title, described)
    caption = "Points with their 95 % intervals; an arrow has no upper bound. Triangles mark the rows’ own batches."
    return Picture("noise-end", "Diagnostics", title, caption, element, ())


def _strip(name: str, found: Noise, batch: int | None = None, colour: str = svg.ACCENT) -> Strip:
    text = noise_words(found) if found.value is not None else interval_words(found)
    return Strip(
        name,
        found.value,
        text,
        low=found.low,
        high=found.high,
        colour=colour,
        reference=batch,
        reference_text=f"batch {count(batch)}" if batch else "",
    )


def _cost(axes: Axes, sizes: list[float], needed: list[float], colour: str, name: str) -> None:
    axes.plot(sizes, needed, color=colour, linewidth=1.8, dashes=(None, None) if name == "steps" else (7, 2.5))
    at = 12 if name == "steps" else -13
    side = "left" if name == "steps" else "right"
    axes.annotate(
        name, (sizes[at], needed[at]), (6 if side == "left" else -6, 4), textcoords="offset points", ha=side,
        color=colour,
    )  # fmt: skip
    assert math.isfinite(needed[at])
