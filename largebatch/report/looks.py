"""One look per row, the same in every picture and table: a colour, dashes and a marker.

Any two of up to 40 rows differ in at least two of the three, so that they can be told apart without colour.
The baseline is drawn in the ink of the text.
"""

from dataclasses import dataclass

from largebatch.report import svg
from largebatch.report.summary import Comparison

DASHES: tuple[tuple[float, ...], ...] = ((), (7, 2.5), (2, 2), (9, 2.5, 2, 2.5), (4, 2))
MARKERS = {
    "o": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "s": "M-3.2-3.2h6.4v6.4h-6.4z",
    "^": "M0-4.2 4 3.2H-4z",
    "D": "M0-4.4 4.4 0 0 4.4-4.4 0z",
    "v": "M0 4.2 4-3.2H-4z",
    "X": "M-4-2-2-4 0-2 2-4 4-2 2 0 4 2 2 4 0 2-2 4-4 2-2 0z",
    "P": "M-1.4-4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8z",
    "<": "M-4.2 0 3.2-4V4z",
    ">": "M4.2 0-3.2-4V4z",
}


@dataclass(frozen=True)
class Look:
    """How one row is drawn. ``variable`` is its colour in the style sheet."""

    index: int
    colour: str
    variable: str
    dashes: tuple[float, ...]
    marker: str

    @property
    def shape(self) -> str:
        """The marker as an SVG path around the origin."""
        return MARKERS[self.marker]


def looks(comparison: Comparison) -> dict[str, Look]:
    """Row id -> look; the baseline in ink with a plain line, whichever row it is."""
    return {row.id: look(row.place) for row in comparison.rows}


def look(index: int) -> Look:
    """The look of that place in the order."""
    colour = svg.COLOURS[(index - 1) % len(svg.COLOURS)] if index else svg.INK
    return Look(
        index,
        colour,
        svg.VARIABLES[colour],
        DASHES[index % len(DASHES)],
        list(MARKERS)[index % len(MARKERS)],
    )
