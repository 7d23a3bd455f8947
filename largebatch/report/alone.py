"""Facts of one measurement -> a picture in a file of its own, ``.svg`` or ``.png``, in the page's light colours.

What is drawn is what the page shows; here its title stands above it and its caption below, since no page does.
"""

import textwrap
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from largebatch.errors import UserError
from largebatch.records.curves import TargetsRecord
from largebatch.records.diagnoses import DIAGNOSES
from largebatch.records.evaluation import EvaluationRecord
from largebatch.records.files import write_bytes
from largebatch.records.plan import ClusterPlanRecord
from largebatch.records.simulation import SimulationRecord
from largebatch.records.typed import read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
DOTS_PER_INCH = 150


class Drawn(NamedTuple):
    """A figure in stand-in colours; ``description`` says aloud what the picture shows."""

    figure: "Figure"
    title: str
    caption: str
    description: str


Draw = Callable[[Any], Drawn]


def write_picture(facts: Mapping[str, Any], file: Path) -> None:
    """Draw ``facts`` by their kind into ``file``, which is there whole or not at all."""
    from largebatch.report import svg

    if file.suffix not in SUFFIXES:
        raise UserError(f"picture {file} ends in {file.suffix!r}; valid: {', '.join(SUFFIXES)}")
    if not file.parent.is_dir():
        raise UserError(f"picture {file}: the folder {file.parent} does not exist; create it or name another")
    if (kind := facts.get("kind")) not in DRAWINGS:
        raise UserError(f"facts of kind {kind!r} have no picture; valid: {', '.join(DRAWINGS)}")
    with svg.drawing():
        drawn = DRAWINGS[kind](read(TYPED[kind], facts, f"facts of kind {kind!r}") if kind in TYPED else facts)
        edges = _titled(drawn)
        if file.suffix == ".svg":
            spoken = f"{drawn.description} {drawn.caption}".strip()
            content = svg.standalone(drawn.figure, edges, drawn.title, spoken).encode()
        else:
            content = svg.raster(drawn.figure, edges, DOTS_PER_INCH)
    try:
        write_bytes(file, content)
    except OSError as error:
        raise UserError(f"picture {file} cannot be written: {error.strerror}; name another file") from None


def _titled(drawn: Drawn) -> tuple[float, float, float, float]:
    """Write the title above the figure and the caption below; left, bottom, right and top of it all, in points."""
    from largebatch.report import svg

    figure = drawn.figure
    width, height = (72 * inches for inches in figure.get_size_inches())
    title, caption = textwrap.wrap(drawn.title, int(width / 7.6)), textwrap.wrap(drawn.caption, int(width / 5.4))
    for place, line in enumerate(reversed(title)):
        y = 1 + (10 + 18 * place) / height
        figure.text(4 / width, y, line, fontsize=13.5, weight="bold", color=svg.INK)
    for place, line in enumerate(caption):
        y = -(14 + 13.5 * place) / height
        figure.text(4 / width, y, line, fontsize=9.5, color=svg.MUTED)
    return -8, -10 - 13.5 * len(caption), width + 8, height + 14 + 18 * len(title)


def _from(module: str) -> Draw:
    """Its ``draw``, imported when it is called: matplotlib is slow to load."""
    return lambda facts: import_module(f"largebatch.report.{module}").draw(facts)


TYPED = {
    **DIAGNOSES,
    TargetsRecord.kind: TargetsRecord,
    ClusterPlanRecord.kind: ClusterPlanRecord,
    SimulationRecord.kind: SimulationRecord,
    EvaluationRecord.kind: EvaluationRecord,
}
"""Facts that are read as a record before they are drawn."""

DRAWINGS: dict[str, Draw] = {
    "noise": _from("noise_figure"),
    "sharpness": _from("sharpness_figure"),
    "spectrum": _from("spectrum_figure"),
    "path": _from("path_figure"),
    "plateau": _from("plateau_figure"),
    "critical": _from("critical_figure"),
    "batch_time": _from("batch_time_figure"),
    "surface": _from("surface_figures"),
    "evaluation": _from("confusion_figure"),
    "targets": _from("target_figure"),
    "machine_fit": _from("machine_fit_figure"),
    "cluster_plan": _from("plan_figure"),
    "cluster_simulation": _from("simulation_figure"),
}
