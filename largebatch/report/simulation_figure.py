"""A workload on clusters of rising size: the step in closed form and simulated, and below what failures cost a run.

The closed form of a step (studies/cluster/step.py) is drawn for devices that are all alike, and for devices that all
take as long as the slowest of so many does on average (David & Nagaraja 2003, Order Statistics). What is lost to saves
and failures is Daly's model at the best interval (2006, Future Gener. Comput. Syst. 22(3), 303).
"""

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from largebatch.records.simulation import SimulatedCluster, SimulatedFailures, SimulationRecord
from largebatch.report import svg
from largebatch.report.alone import Drawn
from largebatch.report.frame import HEIGHT, LEFT, WIDTH, panel
from largebatch.report.numerals import count, plain, rounded
from largebatch.report.scales import log

LOWER, FOOT, HEAD, LINE = 200, 44, 32, 17
ALIKE: dict[str, Any] = {"color": svg.MUTED, "linewidth": 1.1, "dashes": (5, 2)}
SLOWED: dict[str, Any] = {"color": svg.ACCENT, "linewidth": 1.6}
POINT: dict[str, Any] = {"color": svg.INK, "marker": "o", "markersize": 5.5, "markeredgecolor": svg.PAGE}
LOST = (("saving", "saves", svg.COLOURS[0]), ("repeating", "work undone", svg.COLOURS[1]),
        ("restarting", "restarts", svg.COLOURS[2]))  # fmt: skip


def draw(facts: SimulationRecord) -> Drawn:
    failing = [(one, one.failures) for one in facts.clusters if one.failures is not None]
    room, low = LINE * (3 if failing else 2), LOWER if failing else 0
    height = HEIGHT + low + room
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    upper = panel(figure, room + FOOT + low, HEIGHT - FOOT - HEAD, height)
    _steps(upper, facts)
    panels = [upper]
    if failing:
        panels.append(panel(figure, room + FOOT, LOWER - HEAD, height))
        _losses(panels[1], failing)
        upper.tick_params(axis="x", labelbottom=False)
    for axes in panels:
        log(axes, "x", [one.devices for one in facts.clusters], _devices, margin=1.6)
    panels[-1].set_xlabel("devices (log scale)", color=svg.MUTED, labelpad=6)
    figure.legend(
        handles=list(_key(bool(failing))), loc="lower left", bbox_to_anchor=(4 / WIDTH, 0), ncols=2, frameon=False,
        fontsize=10.5, handletextpad=0.5, columnspacing=1.6, borderaxespad=0,
    )  # fmt: skip
    title = f"{facts.workload} on {facts.machine}: steps{' and failures' if failing else ''}, simulated"
    return Drawn(figure, title, _caption(facts), _described(facts))


def _devices(number: float) -> str:
    """``1k``: what stands below an axis has little room."""
    return f"{number / 1000:g}k" if number >= 1000 else count(number)


def _steps(axes: Axes, facts: SimulationRecord) -> None:
    devices = [one.devices for one in facts.clusters]
    axes.plot(devices, [1000 * one.step_seconds for one in facts.clusters], **ALIKE)
    axes.plot(devices, [1000 * one.slowed_step_seconds for one in facts.clusters], **SLOWED)
    for one in facts.clusters:
        ends = [1000 * one.simulated_step_low, 1000 * one.simulated_step_high]
        axes.plot([one.devices] * 2, ends, color=svg.INK, linewidth=1.2, solid_capstyle="butt")
        axes.plot([one.devices], [1000 * one.simulated_step_seconds], linestyle="none", **POINT)
    _from_zero(axes, "step, ms", 1000 * max(one.simulated_step_high for one in facts.clusters))


def _losses(axes: Axes, failing: list[tuple[SimulatedCluster, SimulatedFailures]]) -> None:
    """Shares in closed form upon one another, and the simulated runs' loss as points."""
    devices, below = [one.devices for one, _ in failing], [0.0] * len(failing)
    for name, _, colour in LOST:
        above = [low + 100 * getattr(failures, name) for low, (_, failures) in zip(below, failing, strict=True)]
        axes.fill_between(devices, below, above, color=colour, alpha=0.55, linewidth=0)
        below = above
    most = below[:]
    for one, failures in failing:
        ends = [
            100 * (1 - 1 / slowdown) for slowdown in (failures.simulated_slowdown_low, failures.simulated_slowdown_high)
        ]
        axes.plot([one.devices] * 2, ends, color=svg.INK, linewidth=1.2, solid_capstyle="butt")
        lost = 100 * (1 - 1 / failures.simulated_slowdown)
        axes.plot([one.devices], [lost], linestyle="none", clip_on=False, zorder=3, **POINT)
        most.append(ends[1])
    _from_zero(axes, "lost to saves and failures, % of the run", max(most))


def _from_zero(axes: Axes, what: str, most: float) -> None:
    axes.set_ylim(0, 1.08 * most)
    axes.annotate(what, (0, 1), (8 - LEFT, 12), xycoords="axes fraction", textcoords="offset points", color=svg.MUTED)


def _key(failing: bool) -> Iterator[Line2D | Patch]:
    def line(label: str, style: dict[str, Any]) -> Line2D:
        made = Line2D([], [], label=label, color=style["color"], linewidth=style["linewidth"])
        if dashes := style.get("dashes"):
            made.set_dashes(dashes)
        return made

    yield line("closed form, devices alike", ALIKE)
    yield line("closed form, slowest device", SLOWED)
    yield Line2D([], [], label="simulated", linewidth=1.2, **POINT)
    if failing:
        yield from (Patch(label=label, color=colour, alpha=0.55, linewidth=0) for _, label, colour in LOST)


def _caption(facts: SimulationRecord) -> str:
    said = [
        f"Seconds of a device are lognormal, deviation {plain(facts.step_deviation)} from step to step, "
        f"{plain(facts.device_deviation)} from device to device, beyond the slowest of "
        f"{count(facts.measured_on_devices)}; bars above hold 90 % of the steps."
    ]
    length = f"{count(facts.run_steps)} steps" if facts.run_steps else f"{plain(facts.run_hours)} h of work"
    if facts.device_hours is not None:
        said.append(
            f"A device fails once in {count(facts.device_hours)} hours; a save halts the run for "
            f"{rounded(facts.standing_seconds)} s and can be read {rounded(facts.lag_seconds)} s later, a restart "
            f"takes {rounded(facts.restart_seconds)} s; saves at the best interval. Points below are means of "
            f"{count(facts.runs)} runs of {length}, bars hold 90 % of the runs."
        )
    if facts.sources:
        said.append(facts.sources)
    return " ".join(said)


def _described(facts: SimulationRecord) -> str:
    rows = []
    for one in facts.clusters:
        row = (
            f"{count(one.devices)} devices: {1000 * one.step_seconds:.2f} ms alike, "
            f"{1000 * one.slowed_step_seconds:.2f} ms by the slowest, {1000 * one.simulated_step_seconds:.2f} simulated"
        )
        if one.failures is not None:
            lost = 100 * (1 - one.failures.working)
            row += f", {lost:.1f} % lost, {100 * (1 - 1 / one.failures.simulated_slowdown):.1f} % simulated"
        rows.append(row)
    return f"{'; '.join(rows)}."
