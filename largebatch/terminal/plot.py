"""A curve in a terminal: braille dots, 2 × 4 of them to a character, with numbers at both axes.

Points are (x, y) in ascending x, dense enough to be joined by upright strokes. On a logarithmic axis what lies below
``lowest`` is drawn at the bottom, which is where a warm-up from zero begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column


def plot(
    points: Sequence[tuple[float, float]], *, title: str, x_label: str, width: int = 60, height: int = 12,
    lowest: float = 0.0, levels: Sequence[float] = (),
) -> str:  # fmt: skip
    """``lowest`` above zero: the y axis is logarithmic from there. ``levels``: what y is marked with; else evenly."""
    scale = (lambda y: math.log10(max(y, lowest))) if lowest > 0 else (lambda y: y)
    left, right = points[0][0], points[-1][0]
    bottom, top = scale(lowest), scale(max(y for _, y in points))
    rows = 4 * height - 1

    def row_of(y: float) -> int:
        return round((top - scale(y)) / ((top - bottom) or 1.0) * rows)

    cells = [[0] * width for _ in range(height)]
    before = row_of(points[0][1])
    for x, y in points:
        column, row = round((x - left) / ((right - left) or 1.0) * (2 * width - 1)), row_of(y)
        for between in range(min(before, row), max(before, row) + 1):
            cells[between // 4][column // 2] |= DOTS[between % 4][column % 2]
        before = row
    evenly = [top - part / 3 * (top - bottom) for part in range(4)]
    ticks = {row_of(y) // 4: number(y) for y in sorted(levels or [10**y if lowest > 0 else y for y in evenly])}
    margin = max(map(len, ticks.values()))
    lines = [title]
    for row, line in enumerate(cells):
        curve = "".join(chr(0x2800 + cell) if cell else " " for cell in line).rstrip()
        lines.append(f"{ticks.get(row, ''):>{margin}} {'┤' if row in ticks else '│'}{curve}")
    lines.append(f"{'':>{margin}} └{'─' * width}")
    lines.append(f"{'':>{margin}}  {x_axis(left, right, width)}")
    lines.append(f"{'':>{margin}}  {x_label:^{width}}".rstrip())
    return "\n".join(lines)


def number(y: float) -> str:
    return f"{y:,.0f}" if y >= 1000 else f"{y:.3g}"


def x_axis(left: float, right: float, width: int) -> str:
    """Five numbers, as far as they fit, under their places."""
    axis = [" "] * width
    for part in (0.0, 1.0, 0.5, 0.25, 0.75):
        text = f"{left + part * (right - left):.4g}"
        at = min(max(0, round(part * (width - 1)) - len(text) // 2), width - len(text))
        if all(character == " " for character in axis[max(0, at - 1) : at + len(text) + 1]):
            axis[at : at + len(text)] = text
    return "".join(axis).rstrip()
