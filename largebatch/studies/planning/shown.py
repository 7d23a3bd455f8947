"""A plan in the terminal: a row for each batch on each number of devices, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from largebatch.plan.score import words_of
from largebatch.records.plan import ClusterPlanRecord, PlannedPoint
from largebatch.report.numerals import ABSENT, TimeUnit, common_time_unit, count, decimals, listing, rounded, time_unit
from largebatch.studies.planning.agreement import of_reported, optimizers
from largebatch.studies.planning.choice import fastest_by_devices
from largebatch.terminal.columns import RankedColumn, RankedTable

MOST_LEFT_OUT = 8  # sentences


def table(facts: ClusterPlanRecord) -> RankedTable:
    """What has no room is left out: first what follows from other columns."""
    unit = common_time_unit(_shown_hours(facts))
    columns = columns_of(facts, unit)
    digits = ColumnDecimals(facts, unit)
    best = set(fastest_by_devices(facts.points).values())
    rows: list[list[str] | None] = []
    before = None
    for place, point in enumerate(facts.points):
        if before not in (None, point.devices):
            rows.append(None)
        marks = ", ".join([*marks_of(facts, place), *["short"] * bool(point.short)])
        rows.append([*cells(point, digits, first=before != point.devices), marks or "·" * (place in best)])
        before = point.devices
    return RankedTable(columns, rows, more="a wider terminal or --json FILE has them")


def _shown_hours(facts: ClusterPlanRecord) -> list[float]:
    """Failures included where they were told; without them where a run comes to no end."""
    return [point.expected_hours if math.isfinite(point.expected_hours) else point.hours for point in facts.points]


def columns_of(facts: ClusterPlanRecord, unit: TimeUnit) -> list[RankedColumn]:
    """In the order of the table, each with how early it goes."""
    ranks = {"devices": 0, "batch": 0, "share": 4, "GiB": 5, "ms/step": 3, "eff.": 6, "strong": 8, "weak": 9}
    ranks |= {"epochs": 2, unit.sign: 0, "95 %": 7}
    if any(point.interrupted for point in facts.points):
        ranks["lost"] = 2
    ranks |= {"dev-h": 1, **({} if facts.price is None else {"cost": 1})}
    return [*(RankedColumn(title, rank) for title, rank in ranks.items()), RankedColumn("", left=True)]


class ColumnDecimals:
    """How the numbers of a column are written: all with as many decimals."""

    def __init__(self, facts: ClusterPlanRecord, unit: TimeUnit) -> None:
        self.unit = unit
        self.time = decimals(hours / unit.hours for hours in _shown_hours(facts))
        self.device_hours = decimals(_finite(point.expected_device_hours) for point in facts.points)
        self.cost = 0 if facts.price is None else decimals(_finite(point.expected_cost) for point in facts.points)
        self.lost = min(2, decimals(100 * one.lost for point in facts.points if (one := point.interrupted)))
        self.epochs = max(1, decimals(point.epochs for point in facts.points))

    def between(self, low: float | None, high: float | None) -> str:
        ends = [ABSENT if end is None else f"{end / self.unit.hours:,.{self.time}f}" for end in (low, high)]
        return ABSENT if ends == [ABSENT, ABSENT] else " to ".join(ends)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def cells(point: PlannedPoint, digits: ColumnDecimals, first: bool) -> list[str]:
    """A line of each for a phase."""
    phases = point.phases
    return [
        count(point.devices) if first else "",
        "\n".join(count(phase.global_batch_size) for phase in phases),
        "\n".join(share_words(phase.micro_batch_size, phase.accumulation_steps) for phase in phases),
        "\n".join(f"{phase.memory_gib:.1f}" for phase in phases),
        "\n".join(milliseconds(phase.step_seconds) for phase in phases),
        percent(point.efficiency),
        percent(point.strong),
        percent(point.weak),
        f"{point.epochs:,.{digits.epochs}f}",
        _number(point.expected_hours / digits.unit.hours, digits.time),
        digits.between(*point.expected_between),
        *([] if point.interrupted is None else [f"{100 * point.interrupted.lost:.{digits.lost}f} %"]),
        _number(point.expected_device_hours, digits.device_hours),
        *([] if point.cost is None else [_number(point.expected_cost, digits.cost)]),
    ]


def _number(value: float, places: int) -> str:
    return f"{value:,.{places}f}" if math.isfinite(value) else "no end"


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
    named = list(dict.fromkeys([facts.fastest, facts.cheapest, facts.knee, facts.chosen]))
    for place in named:
        yield f"{', '.join(marks_of(facts, place))}: {described(facts, facts.points[place])}"
    yield from of_failures(facts)
    if differing := optimizers(facts.optimizer, facts.target_optimizer):
        yield differing
    yield from of_reported(facts)
    yield from facts.unchecked
    yield from left_out(facts)
    yield from facts.sure


def described(facts: ClusterPlanRecord, point: PlannedPoint) -> str:
    batch = "/".join(count(phase.global_batch_size) for phase in point.phases)
    where = f"batch {batch} on {count(point.devices)} devices"
    unit, between = time_unit(point.expected_hours), ""
    low, high = point.expected_between
    if low is not None or high is not None:
        between = f" ({unit.between(low, high)})"
    cost = f", cost {rounded(point.expected_cost)}" if point.cost is not None else ""
    steps = count(sum(phase.steps for phase in point.phases))
    return (
        f"{where}: {unit.of(point.expected_hours)} {unit.sign}{between}, {steps} steps, "
        f"{rounded(point.expected_device_hours)} device-hours{cost}{_saved(point)}{_short(facts, point)}"
    )


def _saved(point: PlannedPoint) -> str:
    """What failures cost it, and how it is saved."""
    if (one := point.interrupted) is None:
        return ""
    lost = f"; {100 * one.lost:.2g} % of it lost to failures"
    if one.minutes_between_saves is None:
        return f"{lost}, and over before a save would pay"
    unit = time_unit(one.minutes_between_saves / 60)
    times = "once" if one.saves == 1 else f"{count(one.saves)} times"
    return f"{lost} and saves, best {times}, every {unit.of(one.minutes_between_saves / 60)} {unit.sign}"


def _short(facts: ClusterPlanRecord, point: PlannedPoint) -> str:
    if not point.short or facts.reported_number is None:
        return ""
    unit = words_of(facts.reported_number)[1]
    return f"; at this batch the recipe's source itself ends at {point.reported:g} {unit}".rstrip()


def of_failures(facts: ClusterPlanRecord) -> Iterator[str]:
    """What the columns hold then."""
    if any(point.interrupted for point in facts.points):
        unit = common_time_unit(_shown_hours(facts)).sign
        yield (
            f"with failures: {unit}, device-hours and cost hold them, on average; lost is the share of saves, repeated "
            "work and restarts in them (Daly's closed form, each row saved as is best for its length)"
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
