"""A training batch as the network saw it: images in a grid, each with its label; and the same on the page."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from matplotlib.figure import Figure
from PIL import Image

from largebatch.records import names
from largebatch.report import svg
from largebatch.report.frame import Picture
from largebatch.report.numerals import count
from largebatch.report.summary import Comparison

COLUMNS = 8  # at most
SIDE, GAP, LINE = 108, 8, 11  # points: of an image, between two, of a line of its label
LONGEST = 20  # signs of a line
DOTS_PER_INCH = 144
MOST_BYTES = 16 << 20  # of a picture on a page


def grid(pixels: Any, labels: Sequence[str]) -> bytes:
    """A PNG file of images (n, H, W, 1 or 3) uint8, row by row."""
    many, high, wide, channels = pixels.shape
    columns = min(COLUMNS, math.ceil(math.sqrt(many)))
    rows = math.ceil(many / columns)
    written = [_lines(label) for label in labels]
    below = LINE * max(map(len, written)) + 3
    tall = SIDE * min(max(high / wide, 0.25), 4)
    width, height = columns * (SIDE + GAP) + GAP, rows * (tall + below + GAP) + GAP
    with svg.drawing():
        figure = Figure(figsize=(width / 72, height / 72))
        for number in range(many):
            left = GAP + (number % columns) * (SIDE + GAP)
            top = height - GAP - (number // columns) * (tall + below + GAP)
            axes = figure.add_axes((left / width, (top - tall) / height, SIDE / width, tall / height))
            axes.set_axis_off()
            image = pixels[number] if channels == 3 else pixels[number, :, :, 0]
            drawing = "nearest" if 2 * wide <= SIDE * DOTS_PER_INCH / 72 else "antialiased"
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation=drawing)
            text = "\n".join(written[number])
            figure.text((left + SIDE / 2) / width, (top - tall - 2) / height, text, ha="center", va="top", fontsize=8.5)
        return svg.raster(figure, (0, 0, width, height), DOTS_PER_INCH)


def _lines(label: str) -> list[str]:
    """One for each of several, none too long."""
    parts = label.split(", ") if label else []
    return [part if len(part) <= LONGEST else f"{part[: LONGEST - 1]}…" for part in parts]


def pictures(comparison: Comparison) -> list[Picture]:
    """Of each row the first run that has one."""
    found = []
    for place, row in enumerate(comparison.rows):
        run = next((run for run in row.runs if run.pictures is not None), None)
        if run is None or run.pictures is None:
            continue
        record = run.pictures
        content = _content(run.path / names.PICTURES / Path(record.file).name)
        if content is None:
            continue
        several = f" of {row.label}" if len(comparison.rows) > 1 else ""
        title = f"The first {count(record.examples)} examples of step {record.step}{several}"
        caption = (
            f"As the network saw them, after all augmentation; {record.levels}. Under each its label; of mixed ones "
            "with their shares."
        )
        element = _embedded(content, f"batch-{place}", title, "; ".join(record.labels))
        found.append(Picture(f"batch-{place}", "A training batch", title, caption, element, ()))
    return found


def _content(file: Path) -> tuple[bytes, int, int] | None:
    """The file with its width and height; None for what is no PNG of a size that a run writes."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return None
        content = file.read_bytes()
        with Image.open(file, formats=["PNG"]) as opened:
            return content, *opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _embedded(content: tuple[bytes, int, int], name: str, title: str, description: str) -> str:
    """The file within an ``<svg>``, so that it scales and is read aloud as all pictures of the page are."""
    raw, width, height = content
    data = base64.b64encode(raw).decode("ascii")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f'<image href="data:image/png;base64,{data}" width="{width}" height="{height}"></image></svg>'
    )
