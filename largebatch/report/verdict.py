"""What the comparison says in a sentence.

The verdict's batch is the largest, above the baseline's, at which some row's mean score is within the score's
tolerance of the baseline's mean, or better; its row is the best there. Where no batch qualifies, the row that comes
nearest is named and the sentence says that it is not near enough.
"""

from largebatch.plan.score import Score
from largebatch.report.numerals import (
    count,
    interval,
    listing,
    of_score,
    one,
    plain,
    scored,
    signed,
    unsigned,
)
from largebatch.report.summary import Comparison, Difference, MeasuredRow, SeedMean

LESS = " where less is better"


def best_large_batch(comparison: Comparison) -> MeasuredRow | None:
    """The row that the verdict is about; None where no larger batch than the baseline's was measured."""
    measured = [row for row in _larger(comparison) if row.difference]
    near = [row for row in measured if is_near(row)]
    largest = max((row.global_batch_size for row in near), default=None)
    return max(
        (row for row in near or measured if largest in (None, row.global_batch_size)),
        key=_gain,
        default=None,
    )


def is_near(row: MeasuredRow) -> bool:
    """Within the tolerance of the baseline, or better."""
    return row.difference is not None and _gain(row) >= -row.score.tolerance * (1 + 2e-9)


def verdict(comparison: Comparison) -> str:
    """One sentence, from the means and nothing else."""
    datasets = sorted({str(run.plan.dataset) for row in comparison.rows for run in row.runs})
    if len(datasets) > 1:
        return f"These runs cannot be compared: they were trained on different data ({', '.join(datasets)})."
    if not comparison.one_score:
        names = ", ".join(comparison.score_names)
        return f"These runs cannot be compared: they are judged by different scores ({names})."
    baseline, best = comparison.baseline, best_large_batch(comparison)
    if baseline.reached is None:
        return (
            f"The baseline, {named(baseline.label)}, has no finished run with {one(comparison.score.name)}, so nothing"
            f" can be compared with it ({baseline.trouble or 'it was not evaluated'})."
        )
    if best is None or best.difference is None or best.reached is None:
        return _nothing_to_judge(comparison, baseline.reached)
    return _judged(comparison, baseline.reached, best, best.reached, best.difference)


def named(label: str) -> str:
    """In quotation marks where the label's own commas or colons would run into the sentence."""
    return f"“{label}”" if "," in label or ":" in label else label


def _judged(comparison: Comparison, reference: SeedMean, best: MeasuredRow, reached: SeedMean, gap: Difference) -> str:
    baseline, score = comparison.baseline, comparison.score
    at = f"at batch {count(best.global_batch_size)}"
    measured = (
        f"{named(best.label)} ends at {_told(SeedMean(reached.mean, None, 1), comparison.reached)} against the"
        f" baseline’s {of_score(reference.mean, score)} at batch {count(baseline.global_batch_size)}"
        f" ({f'{signed(gap, score)} {score.differences_in}'.rstrip()}{'' if score.more_is_better else LESS},"
        f" {_evidence(gap, score, len(best.finished), len(baseline.finished))})"
    )
    saved = f"{_fewer(best)} and {_budgets(best, baseline)}"
    if is_near(best):
        sentence = f"{at.capitalize()}, {measured}: {_nothing_lost(score)} with {saved}"
    else:
        sentence = (
            f"No row at a larger batch ends {_near(score)} the baseline; the nearest, {at}: {measured}, with {saved}"
        )
    return f"{sentence}{_worst(comparison, best)}{_beyond(comparison, best)}."


def _nothing_to_judge(comparison: Comparison, reference: SeedMean) -> str:
    baseline, told = comparison.baseline, _told(reference, comparison.reached)
    batch = f"batch {count(baseline.global_batch_size)}"
    if len(comparison.rows) == 1:
        return (
            f"{named(baseline.label)} ends at {told} at {batch} after"
            f" {count(baseline.steps)} steps ({_epochs(baseline)}); there is nothing to compare it with."
        )
    ends = f"{named(baseline.label)} ends at {told}"
    tried = _larger(comparison)
    if not tried:
        return f"No row has a larger batch than the baseline’s {batch}, at which {ends}."
    if not any(row.finished for row in tried):
        return f"No row at a larger batch than the baseline’s {batch} has a finished run; at {batch}, {ends}."
    return f"No row at a larger batch than the baseline’s {batch} was evaluated as the baseline was; {ends}."


def _larger(comparison: Comparison) -> list[MeasuredRow]:
    return [row for row in comparison.rows if row.global_batch_size > comparison.baseline.global_batch_size]


def _gain(row: MeasuredRow) -> float:
    """How much better than the baseline."""
    return row.score.worth(row.difference.amount) if row.difference else float("-inf")


def _told(value: SeedMean, score: Score) -> str:
    """``91.20 ± 0.11 % test accuracy``, ``a test squared error of 0.499 ± 0.012``."""
    number = scored(value, score)
    return f"{number} % {score.name}" if score.unit == "%" else f"{one(score.name)} of {number} {score.unit}".rstrip()


def _margin(score: Score) -> str:
    return f"within {f'{score.tolerance:g} {score.differences_in}'.rstrip()}"


def _near(score: Score) -> str:
    return f"{_margin(score)} of" if score.tolerance else "as well as"


def _nothing_lost(score: Score) -> str:
    if not score.tolerance:
        return "no worse,"
    return _margin(score) if score.differences_in else f"{_margin(score)} in {score.name},"


def _short(row: MeasuredRow) -> str:
    """What a row that is not near is away from it: ``0.61 points``."""
    return unsigned(row.difference, row.score) if row.difference else ""


def _epochs(row: MeasuredRow) -> str:
    return f"{plain(row.epochs)} epochs"


def _budgets(row: MeasuredRow, baseline: MeasuredRow) -> str:
    if row.epochs == baseline.epochs:
        return f"the same {_epochs(row)}"
    return f"{_epochs(row)} instead of {plain(baseline.epochs)}"


def _fewer(row: MeasuredRow) -> str:
    if row.fewer_steps >= 1:
        return f"{row.fewer_steps:.1f} times fewer steps"
    return f"{1 / row.fewer_steps:.1f} times as many steps"


def _evidence(gap: Difference, score: Score, n: int, n_baseline: int) -> str:
    if n == n_baseline == 1:
        return "one seed: no interval"
    seeds = f"{n} seeds" if n == n_baseline else f"{n} against {n_baseline} seeds"
    return f"95 % interval {known}, {seeds}" if (known := interval(gap, score)) else f"{seeds}: no interval"


def _worst(comparison: Comparison, best: MeasuredRow) -> str:
    """What goes wrong at that batch: the row that loses most, if it is not near, and those that never end."""
    others = [row for row in comparison.rows if row.global_batch_size == best.global_batch_size and row is not best]
    said = ""
    if lost := [row for row in others if row.difference and not is_near(row)]:
        worst = min(lost, key=_gain)
        name, short = named(worst.label), _short(worst)
        said = f"; {name} loses {short} there" if worst.score.more_is_better else f"; {name} ends {short} higher there"
    if failed := [named(row.label) for row in others if not row.finished]:
        said += f"; {listing(failed)} finish{'es' * (len(failed) == 1)} at no seed"
    return said


def _beyond(comparison: Comparison, best: MeasuredRow) -> str:
    """The nearest row at a still larger batch, where the verdict stopped short of one."""
    beyond = [row for row in comparison.rows if row.global_batch_size > best.global_batch_size and row.difference]
    if not is_near(best) or not beyond:
        return ""
    nearest = max(beyond, key=_gain)
    falls = f"falls {_short(nearest)} short" if nearest.score.more_is_better else f"ends {_short(nearest)} higher"
    return f"; at batch {count(nearest.global_batch_size)} the nearest, {named(nearest.label)}, {falls}"
