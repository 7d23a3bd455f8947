"""A plan in the terminal: a row for each batch on each number of devices, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator

import rich.table

from largebatch.records.plan import ClusterPlanRecord, PlannedPoint
from largebatch.report.numerals import ABSENT, TimeUnit, common_time_unit, count, decimals, listing, rounded, time_unit
from largebatch.studies.cluster.failures import ENDLESS
from largebatch.studies.planning.choice import fastest_by_devices

MOST_LEFT_OUT = 8  # sentences


def table(facts: ClusterPlanRecord, wide: bool) -> rich.table.Table:
    """``wide``: with what a narrow terminal has no room for."""
    priced = facts.price is not None
    unit = common_time_unit(point.hours for point in facts.points)
    columns = ["devices", "batch", "share", "GiB", "ms/step", "eff.", *["strong", "weak"] * wide, "epochs", unit.sign]
    columns += [*["95 %"] * wide, "dev-h", *["cost"] * priced, ""]
    made = rich.table.Table(*columns, box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False)
    digits = ColumnDecimals(facts, unit)
    for column in made.columns:
        column.justify, column.no_wrap = "right", True
    made.columns[-1].justify = "left"
    best = set(fastest_by_devices(facts.points).values())
    before = None
    for place, point in enumerate(facts.points):
        if before not in (None, point.devices):
            made.add_section()
        marks = ", ".join(marks_of(facts, place)) or ("·" if place in best else "")
        made.add_row(*cells(point, digits, wide, first=before != point.devices), marks)
        before = point.devices
    return made


class ColumnDecimals:
    """How the numbers of a column are written: all with as many decimals."""

    def __init__(self, facts: ClusterPlanRecord, unit: TimeUnit) -> None:
        self.unit = unit
        self.time = decimals(point.hours / unit.hours for point in facts.points)
        self.device_hours = decimals(point.device_hours for point in facts.points)
        self.cost = decimals(point.cost for point in facts.points)
        self.epochs = max(1, decimals(point.epochs for point in facts.points))

    def between(self, low: float | None, high: float | None) -> str:
        ends = [ABSENT if end is None else f"{end / self.unit.hours:,.{self.time}f}" for end in (low, high)]
        return " to ".join(ends)


def cells(point: PlannedPoint, digits: ColumnDecimals, wide: bool, first: bool) -> list[str]:
    """A line of each for a phase."""
    phases = point.phases
    return [
        count(point.devices) if first else "",
        "\n".join(count(phase.global_batch_size) for phase in phases),
        "\n".join(share_words(phase.micro_batch_size, phase.accumulation_steps) for phase in phases),
        "\n".join(f"{phase.memory_gib:.1f}" for phase in phases),
        "\n".join(milliseconds(phase.step_seconds) for phase in phases),
        percent(point.efficiency),
        *([percent(point.strong), percent(point.weak)] if wide else []),
        f"{point.epochs:,.{digits.epochs}f}",
        f"{point.hours / digits.unit.hours:,.{digits.time}f}",
        *([digits.between(point.hours_low, point.hours_high)] if wide else []),
        f"{point.device_hours:,.{digits.device_hours}f}",
        *([] if point.cost is None else [f"{point.cost:,.{digits.cost}f}"]),
    ]


def share_words(micro: int, accumulation: int) -> str:
    return count(micro) if accumulation == 1 else f"{micro:,}×{accumulation:,}"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.0f} %"


def marks_of(facts: ClusterPlanRecord, place: int) -> list[str]:
    named = [name for name in ("fastest", "cheapest", "knee") if getattr(facts, name) == place]
    return [*named, *[facts.chosen_as] * (place == facts.chosen and facts.chosen_as not in named)]


def headline(facts: ClusterPlanRecord) -> list[str]:
    machine = facts.machine_title or facts.machine
    return [
        f"{facts.title or facts.recipe} on {machine}, engine {facts.engine}, pace of {facts.workload}",
        f"examples to the target: {facts.target}",
    ]


def sentences(facts: ClusterPlanRecord) -> Iterator[str]:
    """After the table: the points with a name, what is left out, how sure it is, what to type."""
    for place in dict.fromkeys([facts.fastest, facts.cheapest, facts.knee, facts.chosen]):
        yield f"{', '.join(marks_of(facts, place))}: {described(facts, facts.points[place])}"
    yield from of_failures(facts.points[facts.chosen])
    yield from left_out(facts)
    yield from facts.sure


def described(facts: ClusterPlanRecord, point: PlannedPoint) -> str:
    batch = "/".join(count(phase.global_batch_size) for phase in point.phases)
    unit, between = time_unit(point.hours), ""
    if point.hours_low is not None or point.hours_high is not None:
        between = f" ({unit.between(point.hours_low, point.hours_high)})"
    cost = f", cost {rounded(point.cost)}" if point.cost is not None else ""
    return (
        f"batch {batch} on {count(point.devices)} devices: {unit.of(point.hours)} {unit.sign}{between}, "
        f"{rounded(point.device_hours)} device-hours{cost}"
    )


def of_failures(point: PlannedPoint) -> Iterator[str]:
    if point.lost_share is None or point.checkpoint_minutes is None:
        return
    if (1 - point.lost_share) * ENDLESS < 1:
        yield (
            f"failures on {count(point.devices)} devices: they come so often that a run with such saves and restarts "
            "comes to no end"
        )
        return
    every, whole = point.checkpoint_minutes / 60, point.hours / (1 - point.lost_share)
    unit, total = time_unit(every), time_unit(whole)
    yield (
        f"failures on {count(point.devices)} devices: best saved every {unit.of(every)} {unit.sign} (Young, Daly), "
        f"{100 * point.lost_share:.2g} % of the time is lost to saves, repeated work and restarts: "
        f"{total.of(whole)} {total.sign} with them"
    )


def left_out(facts: ClusterPlanRecord) -> list[str]:
    """By batch, the devices that lack it, and their reason, or that of the fewest where each has its own."""
    by_batch: dict[int, list[int]] = {}
    reasons: dict[int, list[str]] = {}
    for one in facts.left_out:
        by_batch.setdefault(one.global_batch_size, []).append(one.devices)
        reasons.setdefault(one.global_batch_size, []).append(one.reason)
    said = [
        f"left out: batch {count(batch)} on {listing(map(count, devices))}: "
        + (f"on {count(devices[0])}, " if len(set(reasons[batch])) > 1 else "")
        + reasons[batch][0]
        for batch, devices in by_batch.items()
    ]
    more = len(said) - MOST_LEFT_OUT
    return [*said[:MOST_LEFT_OUT], *[f"left out: {more} more batches; --json has them"] * (more > 0)]
