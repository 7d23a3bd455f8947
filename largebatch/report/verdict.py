"""What the comparison says in a sentence.

The verdict's batch is the largest, above the baseline's, at which some row's mean accuracy is within
``TOLERANCE`` points of the baseline's mean; its row is the most accurate there. Where no batch qualifies,
the row that comes nearest is named and the sentence says that it is not near enough.
"""

from largebatch.report.numerals import count, interval, listing, percent, plain, signed
from largebatch.report.summary import Comparison, Difference, Estimate, Row

TOLERANCE = 0.5
"""Percentage points that count as nothing lost."""


def best_large_batch(comparison: Comparison) -> Row | None:
    """The row that the verdict is about; None where no larger batch than the baseline's was measured."""
    measured = [row for row in _larger(comparison) if row.difference]
    near = [row for row in measured if is_near(row)]
    largest = max((row.global_batch_size for row in near), default=None)
    return max(
        (row for row in near or measured if largest in (None, row.global_batch_size)),
        key=_points,
        default=None,
    )


def is_near(row: Row) -> bool:
    """Within the tolerance of the baseline, or above it."""
    return row.difference is not None and row.difference.points >= -TOLERANCE - 1e-9


def verdict(comparison: Comparison) -> str:
    """One sentence, from the means and nothing else."""
    datasets = sorted({str(run.plan.get("dataset")) for row in comparison.rows for run in row.runs})
    if len(datasets) > 1:
        return f"These runs cannot be compared: they were trained on different data ({', '.join(datasets)})."
    baseline, best = comparison.baseline, best_large_batch(comparison)
    if baseline.test_accuracy is None:
        return (
            f"The baseline, {named(baseline.label)}, has no finished run with an accuracy, so nothing can be"
            f" compared with it ({baseline.trouble or 'it was not evaluated'})."
        )
    if best is None or best.difference is None or best.test_accuracy is None:
        return _nothing_to_judge(comparison, baseline.test_accuracy)
    return _judged(comparison, baseline.test_accuracy, best, best.test_accuracy, best.difference)


def named(label: str) -> str:
    """In quotation marks where the label's own commas or colons would run into the sentence."""
    return f"“{label}”" if "," in label or ":" in label else label


def _judged(comparison: Comparison, reference: Estimate, best: Row, accuracy: Estimate, gap: Difference) -> str:
    baseline = comparison.baseline
    at = f"at batch {count(best.global_batch_size)}"
    measured = (
        f"{named(best.label)} ends at {accuracy.mean:.2f} % {comparison.accuracy_name} against the baseline’s"
        f" {reference.mean:.2f} % at batch {count(baseline.global_batch_size)} ({signed(gap.points)} points,"
        f" {_evidence(gap, len(best.finished), len(baseline.finished))})"
    )
    saved = f"{_fewer(best)} and {_budgets(best, baseline)}"
    if is_near(best):
        sentence = f"{at.capitalize()}, {measured}: within {TOLERANCE} points with {saved}"
    else:
        sentence = (
            f"No row at a larger batch ends within {TOLERANCE} points of the baseline; the nearest, {at}:"
            f" {measured}, with {saved}"
        )
    return f"{sentence}{_worst(comparison, best)}{_beyond(comparison, best)}."


def _nothing_to_judge(comparison: Comparison, reference: Estimate) -> str:
    baseline, name = comparison.baseline, comparison.accuracy_name
    batch = f"batch {count(baseline.global_batch_size)}"
    if len(comparison.rows) == 1:
        return (
            f"{named(baseline.label)} ends at {percent(reference)} % {name} at {batch} after"
            f" {count(baseline.steps)} steps ({_epochs(baseline)}); there is nothing to compare it with."
        )
    ends = f"{named(baseline.label)} ends at {percent(reference)} % {name}"
    tried = _larger(comparison)
    if not tried:
        return f"No row has a larger batch than the baseline’s {batch}, at which {ends}."
    if not any(row.finished for row in tried):
        return f"No row at a larger batch than the baseline’s {batch} has a finished run; at {batch}, {ends}."
    return f"No row at a larger batch than the baseline’s {batch} was evaluated as the baseline was; {ends}."


def _larger(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.rows if row.global_batch_size > comparison.baseline.global_batch_size]


def _points(row: Row) -> float:
    return row.difference.points if row.difference else float("-inf")


def _epochs(row: Row) -> str:
    return f"{plain(row.epochs)} epochs"


def _budgets(row: Row, baseline: Row) -> str:
    if row.epochs == baseline.epochs:
        return f"the same {_epochs(row)}"
    return f"{_epochs(row)} instead of {plain(baseline.epochs)}"


def _fewer(row: Row) -> str:
    if row.fewer_steps >= 1:
        return f"{row.fewer_steps:.1f} times fewer steps"
    return f"{1 / row.fewer_steps:.1f} times as many steps"


def _evidence(gap: Difference, n: int, n_baseline: int) -> str:
    if n == n_baseline == 1:
        return "one seed: no interval"
    seeds = f"{n} seeds" if n == n_baseline else f"{n} against {n_baseline} seeds"
    return f"95 % interval {interval(gap)}, {seeds}" if interval(gap) else f"{seeds}: no interval"


def _worst(comparison: Comparison, best: Row) -> str:
    """What goes wrong at that batch: the row that loses most, if it is not near, and those that never end."""
    others = [row for row in comparison.rows if row.global_batch_size == best.global_batch_size and row is not best]
    said = ""
    if lost := [row for row in others if row.difference and not is_near(row)]:
        worst = min(lost, key=_points)
        said = f"; {named(worst.label)} loses {abs(_points(worst)):.2f} points there"
    if failed := [named(row.label) for row in others if not row.finished]:
        said += f"; {listing(failed)} finish{'es' * (len(failed) == 1)} at no seed"
    return said


def _beyond(comparison: Comparison, best: Row) -> str:
    """The nearest row at a still larger batch, where the verdict stopped short of one."""
    beyond = [row for row in comparison.rows if row.global_batch_size > best.global_batch_size and row.difference]
    if not is_near(best) or not beyond:
        return ""
    nearest = max(beyond, key=_points)
    return (
        f"; at batch {count(nearest.global_batch_size)} the nearest, {named(nearest.label)}, falls"
        f" {abs(_points(nearest)):.2f} points short"
    )
