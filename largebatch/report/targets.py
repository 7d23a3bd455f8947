"""Steps to a target against the batch, as tables and sentences: of a study, or of published points."""

from collections.abc import Iterator, Sequence

from largebatch.records.curves import (
    PERFECT,
    CurveToTarget,
    FittedLaw,
    ReachedPoint,
    RegionOfKey,
    RowsInPairs,
    RuleOfKey,
    SearchedBatch,
    TargetsRecord,
)
from largebatch.records.typed import finite
from largebatch.report.numerals import ABSENT, count, listing, plain, rounded, short
from largebatch.report.table import Column, TableLine, TextTable

FEWEST = 6  # runs of a point, with fewer of which no interval holds a median with 95 %
FEW_TRIALS = 8  # of a search, with fewer of which its best is luck


def points(facts: TargetsRecord, curve: CurveToTarget) -> TextTable:
    """A line for each batch."""
    keys = list(dict.fromkeys(key for point in curve.points for key in point.settings))
    timed = any(point.seconds is not None for point in curve.points)
    columns = [
        Column("batch"),
        *(Column(key, rank=2) for key in keys),
        Column("runs", rank=1),
        Column(unit_of(facts)),
        _interval_column(curve),
    ]
    columns += [Column("steps"), Column("fit", rank=3), Column("error", "%", rank=4)]
    columns += [Column("training", "s", rank=5)] * timed
    lines = (TableLine(curve.label, _point(facts, point, keys, timed)) for point in curve.points)
    return TextTable(f"{_titled(facts, curve)}: to {facts.target or 'the target'}", tuple(columns), tuple(lines))


def _interval_column(curve: CurveToTarget) -> Column:
    """Named for what such intervals can hold."""
    levels = {point.level for point in curve.points if point.level is not None}
    if levels and min(levels) >= 0.95:
        return Column("95\u00a0%", rank=1)
    return Column("interval", f"at\u00a0most {100 * levels.pop():.0f}\u00a0%" if len(levels) == 1 else "", rank=1)


def _titled(facts: TargetsRecord, curve: CurveToTarget) -> str:
    return curve.label if len(facts.curves) > 1 else facts.title


def _point(facts: TargetsRecord, point: ReachedPoint, keys: Sequence[str], timed: bool) -> tuple[str, ...]:
    bound, scale = "" if point.exact else "> ", facts.epoch or 1
    seconds = ABSENT if point.seconds is None else ("" if point.seconds_exact else "> ") + rounded(point.seconds)
    return (
        count(point.global_batch_size),
        *(plain(point.settings.get(key)) for key in keys),
        str(point.runs) if point.reached == point.runs else f"{point.reached} of {point.runs}",
        bound + amount(point.examples / scale),
        between(point.examples_low, point.examples_high, scale),
        bound + count(point.steps),
        amount(point.fitted_examples / scale) if point.fitted_examples else ABSENT,
        f"{100 * point.error:+.1f}".replace("-", "−") if point.error is not None else ABSENT,
        *[seconds] * timed,
    )


def unit_of(facts: TargetsRecord) -> str:
    return "epochs" if facts.epoch else facts.unit


def rows(facts: TargetsRecord) -> TextTable:
    """A line for each row: what it needs at its best batch, up to which batch as few, and what a step costs there."""
    columns = (
        Column("row", number=False), Column(f"fewest {unit_of(facts)}"), Column("at batch"),
        Column("as few up to"), Column("steps there", rank=1), Column("a step there", "s", rank=3),
        Column("B_crit", rank=2), Column("95\u00a0% of B_crit", rank=5), Column("fewest steps", rank=4),
        Column("at batch", rank=4),
    )  # fmt: skip
    lines = tuple(TableLine(curve.label, _row(facts, curve)) for curve in facts.curves)
    caption = f"As few: at most {PERFECT:g} times the fewest {facts.unit} of any row, {_fewest_in_words(facts)}."
    return TextTable(caption, columns, lines)


def _row(facts: TargetsRecord, curve: CurveToTarget) -> tuple[str, ...]:
    reached = [point for point in curve.points if point.exact]
    if not reached:
        return (short(curve.label), *["not reached"], *[ABSENT] * 8)
    best = min(reached, key=lambda point: point.examples)
    fastest = min(reached, key=lambda point: point.steps)
    place, law = as_few(facts, curve), curve.law
    return (
        short(curve.label),
        amount(best.examples / (facts.epoch or 1)),
        count(best.global_batch_size),
        count(place.global_batch_size) if place else ABSENT,
        count(place.steps) if place else ABSENT,
        rounded(place.seconds / place.steps) if place and place.seconds else ABSENT,
        critical_words(law) if law else ABSENT,
        between(law.critical_batch_size_low, law.critical_batch_size_high) if law else ABSENT,
        count(fastest.steps),
        count(fastest.global_batch_size),
    )


def _fewest(facts: TargetsRecord) -> tuple[CurveToTarget, ReachedPoint] | None:
    """Of all rows and batches."""
    reached = [(curve, point) for curve in facts.curves for point in curve.points if point.exact]
    return min(reached, key=lambda one: one[1].examples) if reached else None


def _fewest_in_words(facts: TargetsRecord) -> str:
    if (fewest := _fewest(facts)) is None:
        return "which none reached"
    curve, point = fewest
    return f"{count(point.examples)} by {curve.label} at {count(point.global_batch_size)}"


def as_few(facts: TargetsRecord, curve: CurveToTarget) -> ReachedPoint | None:
    """The largest batch of the row at which it needs as few examples as the best of any row."""
    if (fewest := _fewest(facts)) is None:
        return None
    limit = PERFECT * fewest[1].examples
    few = [point for point in curve.points if point.exact and point.examples <= limit]
    return max(few, key=lambda point: point.global_batch_size, default=None)


def largest_with_as_few(facts: TargetsRecord) -> tuple[CurveToTarget, ReachedPoint] | None:
    """The row that needs as few examples as the best of any at the largest batch; of several the one with fewest."""
    places = [(curve, point) for curve in facts.curves if (point := as_few(facts, curve)) is not None]
    return max(places, key=lambda one: (one[1].global_batch_size, -one[1].examples), default=None)


def verdict(facts: TargetsRecord) -> str:
    """Up to which batch nothing is lost, with which row, and what a step costs there."""
    if (named := largest_with_as_few(facts)) is None:
        return f"No row reached {facts.target or 'the target'}."
    curve, point = named
    size = point.global_batch_size
    cost = f", {rounded(point.seconds / point.steps)} s each" if point.seconds else ""
    said = (
        f"Up to batch {count(size)} no more than {PERFECT:g} times the fewest {facts.unit} of any row "
        f"({_fewest_in_words(facts)}) are needed: with {curve.label}, in {count(point.steps)} steps{cost}."
    )
    if any(row.points and row.points[-1].global_batch_size > size for row in facts.curves):
        return said
    return f"{said} It is the largest batch that was measured."


def answers(facts: TargetsRecord) -> str | None:
    """What the verdict rests on, and the two other answers to where nothing is lost, of the row that it names."""
    named = largest_with_as_few(facts)
    if named is None or len({curve.label for curve in facts.curves}) < 2:
        return None
    curve, _ = named
    points, law = curve.perfect_until, curve.law
    if points is None or law is None:
        return None
    until = f"{count(points.low)} at least"
    if points.high is not None:
        until = f"somewhere between {count(points.low)} and {count(points.high)}"
    fitted = "whatever the batch" if law.perfect_until is None else f"up to {rounded(law.perfect_until)}"
    return (
        f"That rests on measured points, against the best of all rows. Against its own smaller batches {curve.label} "
        f"needs at most {PERFECT:g} times as many up to {until} by its points, and {fitted} by the fitted law, a line "
        "through all of them that no single one has to lie on."
    )


def few_trials(facts: TargetsRecord) -> str | None:
    """A warning where a search had too few of them."""
    if facts.trials is None or facts.trials >= FEW_TRIALS:
        return None
    keys = max((len(one.chosen or {}) for curve in facts.curves for one in curve.searched or ()), default=0)
    return few_trials_in_words(facts.trials, keys) if keys else None


def few_trials_in_words(trials: int, keys: int) -> str:
    return (
        f"{trials} trials for {keys} key{'s' * (keys != 1)} are few: with fewer than {FEW_TRIALS} the best of a search "
        "is luck, and so is a row's place among the others"
    )


def notes(facts: TargetsRecord, curve: CurveToTarget) -> Iterator[str]:
    """What the points and the law say, a sentence each."""
    if not curve.points:
        yield "no run over the seeds ended yet"
        return
    if few := [point for point in curve.points if point.runs < FEWEST]:
        level = max(100 * (point.level or 0) for point in few)
        yield f"fewer than {FEWEST} runs at {_sizes(few)}: intervals hold at most {level:.0f} %, one run has none"
    if any(not point.exact for point in curve.points):
        yield "> is a lower bound: so many runs did not reach the target that the middle is not known"
    if missed := [point for point in curve.points if not point.reached]:
        yield f"at {_sizes(missed)} no run reached the target: the row cannot be placed there"
    run_at = {point.global_batch_size for point in curve.points}
    if waiting := [one for one in curve.searched or () if one.global_batch_size not in run_at]:
        yield f"at {_sizes(waiting)} no run over the seeds ended yet"
    law = curve.law
    if law is None:
        yield "nothing is fitted: fewer than two batches reached the target"
        return
    scale, unit = (facts.epoch, "epochs") if facts.epoch else (1.0, facts.unit)
    critical = _interval(law.critical_batch_size_low, law.critical_batch_size_high, law)
    examples = _interval(law.least_examples_low, law.least_examples_high, law, scale)
    steps = _interval(law.least_steps_low, law.least_steps_high, law)
    yield (
        f"B_crit {critical_words(law)} {facts.unit}{critical}, E_min {rounded(law.least_examples / scale)} {unit}"
        f"{examples}, S_min {rounded(law.least_steps)} steps{steps}; error {100 * law.rms_error:.1f} % rms, "
        f"{100 * law.largest_error:.1f} % at most"
    )
    if law.unknown:
        yield law.unknown
    yield from _ends(curve, law)


def _sizes(some: Sequence[ReachedPoint] | Sequence[SearchedBatch]) -> str:
    return f"batch {listing(count(one.global_batch_size) for one in some)}"


def meaning(facts: TargetsRecord) -> str:
    """Of the columns, once for all rows."""
    return f"points: the {facts.middle} of their runs with a bootstrap interval; fit: E(B) = E_min·(1 + B/B_crit)"


def _ends(curve: CurveToTarget, law: FittedLaw) -> Iterator[str]:
    if law.critical_batch_size is None:
        yield "no batch of these costs examples: perfect scaling did not end"
    else:
        nothing, perfect, helps = (
            _placed(batch, curve) for batch in (law.nothing_lost_until, law.perfect_until, law.helps_until)
        )
        yield (
            f"by the fit nothing is lost (5 % more examples than E_min) up to batch {nothing}, perfect scaling "
            f"({100 * (PERFECT - 1):.0f} %) "
            f"ends at {perfect}, and from {helps} on a doubling saves less than a tenth of the steps"
        )
    perfect, helps = curve.perfect_until, curve.helps_until
    if perfect and perfect.high is None:
        yield f"by the points perfect scaling holds up to {count(perfect.low)} at least"
    elif perfect:
        where = f"ends near {count(perfect.batch)}, " if perfect.batch else "ends "
        yield (
            f"by the points perfect scaling {where}between {count(perfect.low)} and {count(perfect.high)}, "
            "against the best smaller batches"
        )
    if helps and helps.high is not None:
        yield f"by the points no batch beyond {count(helps.low)} saved a tenth of the steps per doubling"


def _placed(batch: float | None, curve: CurveToTarget) -> str:
    """``9,380``, and whether it lies outside of what was measured."""
    first, last = (curve.points[place].global_batch_size for place in (0, -1))
    outside = "" if batch is None or first <= batch <= last else " (below" if batch < first else " (beyond"
    return rounded(batch) + (f"{outside} what was measured)" if outside else "")


def searched(curve: CurveToTarget) -> TextTable:
    """The best values at each batch, and the region around them that is as good."""
    columns = (
        Column("batch"), Column("trials"), Column("reached"), Column("best values", number=False),
        Column("as good", number=False),
    )  # fmt: skip
    lines = (TableLine(curve.label, _search(one)) for one in curve.searched or ())
    return TextTable(f"{curve.label}: its search. As good: at most a tenth more examples", columns, tuple(lines))


def _search(one: SearchedBatch) -> tuple[str, ...]:
    values = ", ".join(
        f"{key} {value if (number := finite(value)) is None else plain(number)}{_edge(one, key)}"
        for key, value in (one.chosen or {}).items()
    )
    return (
        count(one.global_batch_size),
        f"{one.trials}{f', {one.refused} refused' * (one.refused > 0)}",
        str(one.reached),
        values or ABSENT,
        ", ".join(f"{region.key} {_region(region)}" for region in one.good) or ABSENT,
    )


def _edge(one: SearchedBatch, key: str) -> str:
    """Of which range it lies at an edge, or beyond it: the search moves on where its best lies at an end."""
    beyond = "beyond the stated range" * (key in (one.outside or ()))
    edge = "at an edge of what was tried" * (key in one.at_edge)
    said = ", ".join(word for word in (beyond, edge) if word)
    return f" ({said})" if said else ""


def _region(region: RegionOfKey) -> str:
    """``≤ 0.1 to 0.3``: open below, no trial there was worse."""
    below, high = "≤ " * bool(region.open_below), f"{plain(region.high)}{' ≤' * bool(region.open_above)}"
    return f"{below}{plain(region.low)} to {high}" if region.low < region.high else f"{below}{high}"


RULES = {
    "none": "it stays the same at every batch",
    "linear": "it rises in proportion to the batch",
    "square root": "it rises as the square root of the batch",
    "power": "it follows a power of the batch",
    "surge": "it rises with the batch up to a peak, and falls beyond it",
}


def rules(curve: CurveToTarget) -> Iterator[str]:
    """How each key's best value follows the batch."""
    for rule in curve.rules or ():
        shown = f"1 − {rule.key}" if rule.complement else rule.key
        fits = f"what fits best is that {RULES.get(rule.decided or '', rule.decided)}"
        if not rule.decided:
            fits = "these batches do not tell whether it follows the batch, or how: several rules fit equally well"
        yield f"best {shown} along the batch: {fits}; {_power(rule)}"


def _power(rule: RuleOfKey) -> str:
    if rule.power_low is None or rule.power_high is None:
        return "as batch^p, any p would do"
    return f"as batch^p, p lies between {rule.power_low:.2f} and {rule.power_high:.2f}".replace("-", "−")


def paired(facts: TargetsRecord) -> Iterator[str]:
    """Every two rows that the test tells apart, and how many it does not."""
    made = facts.pairs or ()
    if not made:
        return
    whole = all(one.global_batch_size is None for one in made)
    of = "a seed at a batch is a pair" if whole else "a seed is a pair"
    yield f"rows in pairs, as they were tuned ({of}; exact sign flips, Holm's correction for {len(made)} statements):"
    yield from (in_words(one) for one in made if one.decided)
    undecided = [one for one in made if not one.decided]
    if undecided:
        yield f"not decided ({len(undecided)}): {'; '.join(map(_undecided, undecided))}"


def _undecided(one: RowsInPairs) -> str:
    where = f" at batch {one.global_batch_size:,}" if one.global_batch_size is not None else ""
    ratio = f" ({one.ratio:.2f} times)" if one.ratio is not None else ""
    return f"{one.first} and {one.second}{where}{ratio}"


def in_words(one: RowsInPairs) -> str:
    """Of one that is decided."""
    where = f"at batch {one.global_batch_size:,}" if one.global_batch_size is not None else "over their batches"
    interval = f"{one.ratio_low:.2f} to {one.ratio_high:.2f}, " if one.ratio_low and one.ratio_high else ""
    return (
        f"{one.first} needs {one.ratio or 0:.2f} times the examples of {one.second} {where} "
        f"({interval}p {one.corrected or 0:.3f} of {one.pairs} pairs)"
    )


def published(listed: Sequence[TargetsRecord]) -> TextTable:
    """What there is, with its batches and its critical batch."""
    columns = (
        Column("name", number=False), Column("title", number=False), Column("batches", number=False),
        Column("B_crit"), Column("points of", number=False, wide=True),
    )  # fmt: skip
    lines = []
    for facts in listed:
        (curve,) = facts.curves
        ends = [count(curve.points[place].global_batch_size) for place in (0, -1)]
        critical = critical_words(curve.law) if curve.law else ABSENT
        cells = (facts.name, facts.title, " … ".join(ends), critical, facts.source or ABSENT)
        lines.append(TableLine(facts.name, cells))
    return TextTable("Published points", columns, tuple(lines))


def critical_words(law: FittedLaw) -> str:
    return "without bound" if law.critical_batch_size is None else rounded(law.critical_batch_size)


def amount(number: float) -> str:
    """``35.1``, ``161,590``, ``7,235,200``: all before the point, or three digits."""
    return count(number) if number >= 1000 else f"{number:#.3g}".rstrip(".")


def between(low: float | None, high: float | None, scale: float = 1.0) -> str:
    """``34.6 to 35.5``, ``from 34.6``, or a dash."""
    if low is None:
        return ABSENT if high is None else f"up to {amount(high / scale)}"
    return f"{amount(low / scale)} to {amount(high / scale)}" if high is not None else f"from {amount(low / scale)}"


def _interval(low: float | None, high: float | None, law: FittedLaw, scale: float = 1.0) -> str:
    """`` (39,237 to 53,764)``; that points bound it on neither side is said, that it was not asked for is not."""
    if law.unknown:
        return ""
    ends = [None if end is None else rounded(end / scale) for end in (low, high)]
    if ends == [None, None]:
        return " (not bounded)"
    return f" ({ends[0] or 'not bounded below'} to {ends[1] or 'without bound'})"
