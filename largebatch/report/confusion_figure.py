"""A confusion matrix as a picture (facts of kind ``evaluation``): rows are classes, columns what they were taken for.

A cell is as dark as its share of the row's examples; where there is room it says how many.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from largebatch.errors import UserError
from largebatch.records.evaluation import EvaluationRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.numerals import count

WIDTH, FOOT, TOP, RIGHT = 720, 76, 8, 12
NAMED, COUNTED = 40, 20  # classes up to which they have names, and cells their counts
MOST = 200  # classes whose cells can be told apart
LONGEST = 18  # signs of a name


def draw(facts: EvaluationRecord) -> Drawn:
    if not facts.classes or facts.confusion is None:
        raise UserError("these facts have no confusion matrix: a picture is drawn of a classification")
    names = [one.name for one in facts.classes]
    if len(names) > MOST:
        raise UserError(f"a picture of {len(names):,} classes shows nothing; at most {MOST}, --json has the counts")
    counts = np.array(facts.confusion)
    title = f"What was taken for what: {facts.title or facts.run}"
    wrong = int(counts.sum() - counts.trace())
    said = f"{count(wrong)} of {count(int(counts.sum()))} examples were taken for another class"
    caption = (
        f"Rows are the classes, columns the answers; a cell is as dark as its share of the row. {said}. "
        f"{facts.split} of {facts.data}, {facts.weights} weights of step {facts.step}."
    )
    return Drawn(_figure(counts, names), title, caption, said)


def _figure(counts: Any, names: list[str]) -> Figure:
    named = len(names) <= NAMED
    longest = max(len(_short(name)) for name in names)
    left = 24 + 6.4 * longest * named
    side = WIDTH - left - RIGHT
    below = FOOT if not named else 24 + 6.4 * longest
    height = side + below + TOP
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((left / WIDTH, below / height, side / WIDTH, side / height))
    _cells(axes, counts)
    places = np.arange(len(names)) if named else []
    axes.set_xticks(places, [_short(name) for name in names] if named else [], rotation=90, fontsize=9.5)
    axes.set_yticks(places, [_short(name) for name in names] if named else [], fontsize=9.5)
    axes.set_xlabel("taken for", color=svg.MUTED)
    if not named:
        axes.set_ylabel("class", color=svg.MUTED)
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


def _cells(axes: Axes, counts: Any) -> None:
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = float(shares[row, column])
        colour = svg.ACCENT if row == column else svg.COLOURS[1]
        square = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=to_rgba(colour, max(share, 0.04)), linewidth=0)
        axes.add_patch(square)
        if classes <= COUNTED:
            ink = svg.PAGE if share > 0.5 else svg.INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
