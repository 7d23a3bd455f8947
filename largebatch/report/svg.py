"""A matplotlib figure -> SVG that lives inside the page, in the page's own colours and font.

Figures are drawn in the stand-in colours below; here they become the page's CSS variables, so that one
picture serves light, dark and paper. Whatever would reach out of the element goes: metadata, the global
style sheet, font families, namespaces (HTML knows them), ids that nothing refers to; the others get the
picture's name before them.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import Collection
from matplotlib.colors import ListedColormap, to_hex, to_rgba, to_rgba_array
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

INK, MUTED, RULE, PAGE, ACCENT = "#0000a0", "#0000a1", "#0000a2", "#0000a3", "#0000a4"
COLOURS = tuple(f"#0000b{index}" for index in range(8))
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", RULE: "--rule", PAGE: "--page", ACCENT: "--accent"},
    **{colour: f"--c{index}" for index, colour in enumerate(COLOURS)},
}

LIGHT = {
    **{INK: "#1c1f23", MUTED: "#5d646c", RULE: "#dfe1dd", PAGE: "#ffffff", ACCENT: "#0b62a4"},
    **dict(
        zip(
            COLOURS,
            ("#0b6fb8", "#c9500a", "#00805c", "#ad3f87", "#8a6a00", "#5a55c4", "#1d8a96", "#8f4a32"),
            strict=True,
        )
    ),
}
"""The light theme of ``page.css`` on white, for pictures without a page."""

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
    variables = {colour: f"var({variable})" for colour, variable in VARIABLES.items()}
    root = _element(buffer.getvalue(), name, title, description, variables)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


Edges = tuple[float, float, float, float]
"""Left, bottom, right, top of what is kept, in points from the figure's lower left corner."""


def standalone(figure: Figure, edges: Edges, title: str, description: str) -> str:
    """A whole SVG file: namespaces, the light theme's colours on white, whatever sans serif there is."""
    buffer = io.StringIO()
    _save(figure, buffer, edges, format="svg", metadata={"Date": None})
    root = _element(buffer.getvalue(), "picture", title, description, LIGHT)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib |= {
        **{"xmlns": "http://www.w3.org/2000/svg", "xmlns:xlink": "http://www.w3.org/1999/xlink"},
        **{"width": width, "height": height, "font-family": "system-ui, Helvetica, Arial, sans-serif"},
    }
    for element in root.iter():
        if "href" in element.attrib:  # older readers know only the prefixed one
            element.attrib["xlink:href"] = element.attrib.pop("href")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def raster(figure: Figure, edges: Edges, dots_per_inch: int) -> bytes:
    """The same as a PNG file."""
    concrete(figure)
    buffer = io.BytesIO()
    _save(figure, buffer, edges, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()


def _save(figure: Figure, buffer: Any, edges: Edges, **settings: Any) -> None:
    left, bottom, right, top = (points / 72 for points in edges)
    figure.savefig(buffer, bbox_inches=Bbox([[left, bottom], [right, top]]), facecolor=LIGHT[PAGE], **settings)


def concrete(figure: Figure) -> None:
    """Give the figure's artists the light theme's colours, each at its own opacity."""
    figure.draw_without_rendering()  # so that all ticks are there
    for artist in figure.findobj():
        parts = (artist, getattr(artist, "arrow_patch", None), getattr(artist, "_bbox_patch", None))
        for part in parts:
            if part is not None:
                _colour(part)


def _colour(artist: Artist) -> None:
    for what in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
        get, put = (getattr(artist, f"{verb}_{what}", None) for verb in ("get", "set"))
        if get is not None and put is not None and (found := _light(get())) is not None:
            put(found if isinstance(artist, Collection) else found[0])
    if isinstance(artist, ContourSet) and (found := _light(artist.get_cmap()(range(artist.get_cmap().N)))) is not None:
        artist.set_cmap(ListedColormap(found))
    for effect in artist.get_path_effects() or ():
        own = getattr(effect, "_gc", {})
        if (found := _light(own.get("foreground", "none"))) is not None:
            own["foreground"] = found[0]


def _light(colours: Any) -> list[Any] | None:
    """Concrete colours for stand-ins; None where there is none to be replaced."""
    try:
        own = to_rgba_array(colours)
    except (TypeError, ValueError):  # such as "auto"
        return None
    hexes = [to_hex(colour) for colour in own]
    if not set(hexes) & set(LIGHT):
        return None
    return [to_rgba(LIGHT.get(word, word), colour[3]) for word, colour in zip(hexes, own, strict=True)]


def _element(written: str, name: str, title: str, description: str, colours: Mapping[str, str]) -> ElementTree.Element:
    """What matplotlib wrote, without what would reach out of the element, and with a title and a description."""
    root = ElementTree.fromstring(written)  # noqa: S314 (matplotlib wrote it)
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    referred = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", written))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        _rewrite(element, name, referred, colours)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
    }
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    return root


def drawing() -> AbstractContextManager[None]:
    """The settings to draw in, for a ``with``, so that nobody else's matplotlib is touched."""
    return matplotlib.rc_context(SETTINGS)


def _rewrite(element: ElementTree.Element, name: str, referred: set[str], colours: Mapping[str, str]) -> None:
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
            value = _style(value, colours)
        elif key in ("d", "x", "y", "width", "height", "transform", "viewBox"):
            value = re.sub(r"-?\d+\.\d+", _shorter, " ".join(value.split()))
        attributes[key] = value
    element.attrib = attributes


def _style(style: str, colours: Mapping[str, str]) -> str:
    """The given colours for stand-in colours; of a font only its size (old matplotlib: ``font: 11px 'Name'``)."""
    parts = [part.strip() for part in style.split(";") if part.strip()]
    kept = [
        re.sub(r"^font:\s*([\d.]+px).*", r"font-size: \1", part) for part in parts if not part.startswith("font-family")
    ]
    text = ";".join(re.sub(r":\s+", ":", part) for part in kept)
    for stand_in, colour in colours.items():
        text = text.replace(stand_in, colour)
    return text


def _shorter(number: re.Match[str]) -> str:
    return f"{round(float(number.group()), 1) + 0.0:g}"
