"""A matplotlib figure -> SVG that lives inside the page, in the page's own colours and font.

Figures are drawn in the stand-in colours below; here they become the page's CSS variables, so that one
picture serves light, dark and paper. Whatever would reach out of the element goes: metadata, the global
style sheet, font families, namespaces (HTML knows them), ids that nothing refers to; the others get the
picture's name before them.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, PAGE, ACCENT = "#0000a0", "#0000a1", "#0000a2", "#0000a3", "#0000a4"
COLOURS = tuple(f"#0000b{index}" for index in range(8))
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", RULE: "--rule", PAGE: "--page", ACCENT: "--accent"},
    **{colour: f"--c{index}" for index, colour in enumerate(COLOURS)},
}

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "largebatch",
    "text.parse_math": False,
    "path.simplify": True,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.scale_dashes": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}

_XLINK = "{http://www.w3.org/1999/xlink}href"


def inline(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as one ``<svg>`` element, readable aloud by its title and description."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    # What is parsed was written by matplotlib two lines above.
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    referred = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", buffer.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        _rewrite(element, name, referred)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
    }
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def drawing() -> AbstractContextManager[None]:
    """The settings to draw in, for a ``with``, so that nobody else's matplotlib is touched."""
    return matplotlib.rc_context(SETTINGS)


def _rewrite(element: ElementTree.Element, name: str, referred: set[str]) -> None:
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            if value not in referred:
                continue
            value = f"{name}-{value}"
        elif key == _XLINK:
            key, value = "href", f"#{name}-{value[1:]}"
        elif key == "clip-path":
            value = value.replace("url(#", f"url(#{name}-")
        elif key == "style":
            value = _style(value)
        elif key in ("d", "x", "y", "width", "height", "transform", "viewBox"):
            value = re.sub(r"-?\d+\.\d+", _shorter, " ".join(value.split()))
        attributes[key] = value
    element.attrib = attributes


def _style(style: str) -> str:
    """Variables for stand-in colours; of a font only its size (old matplotlib: ``font: 11px 'Name'``)."""
    parts = [part.strip() for part in style.split(";") if part.strip()]
    kept = [
        re.sub(r"^font:\s*([\d.]+px).*", r"font-size: \1", part) for part in parts if not part.startswith("font-family")
    ]
    text = ";".join(re.sub(r":\s+", ":", part) for part in kept)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _shorter(number: re.Match[str]) -> str:
    return f"{round(float(number.group()), 1) + 0.0:g}"
