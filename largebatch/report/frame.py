"""What a picture is on the page, and the empty axes that all but the bars start from."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from largebatch.report import svg
from largebatch.report.looks import Look

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT = 60, 24  # of a panel


@dataclass(frozen=True)
class Picture:
    """``key`` lists the looks and labels that need explaining; it is empty where the picture does so."""

    id: str
    section: str
    title: str
    caption: str
    svg: str
    key: tuple[tuple[Look, str], ...]


def panel(figure: Figure, bottom: float, tall: float, height: float) -> Axes:
    """One of several upon one another in a picture of this ``height``, in points."""
    return figure.add_axes((LEFT / WIDTH, bottom / height, 1 - (LEFT + RIGHT) / WIDTH, tall / height))


def empty_axes(y_label: str, x_label: str) -> tuple[Figure, Axes]:
    """One empty picture; the y label stands level above its axis, to be read without turning the head."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((46 / WIDTH, 44 / HEIGHT, 1 - 70 / WIDTH, 1 - 76 / HEIGHT))
    axes.annotate(y_label, (0, 1), (-42, 14), xycoords="axes fraction", textcoords="offset points", color=svg.MUTED)
    axes.set_xlabel(x_label, color=svg.MUTED, labelpad=6)
    return figure, axes
