"""What was equal between the rows and what was not, read off the runs: budget, seeds, data, machine."""

from collections.abc import Callable
from typing import Any

from largebatch.report.numerals import count, duration, listing, plain
from largebatch.report.run import RecordedRun
from largebatch.report.summary import Comparison, MeasuredRow

SPLIT_NAMES = {"test": "the test set", "held_out": "a held-out part of the training set"}


def fairness(comparison: Comparison) -> list[str]:
    """One sentence for each thing that a fair comparison keeps equal; what differs is listed by row."""
    return [
        _same(comparison, "number of training examples", _of_runs(lambda run: count(run.examples))),
        _same(comparison, "epochs", _of_runs(lambda run: plain(run.epochs))),
        _same(comparison, "seeds", lambda row: ", ".join(map(str, sorted(run.seed for run in row.runs)))),
        _same(comparison, "data", _of_runs(lambda run: run.plan.dataset)),
        _same(comparison, "model", _of_runs(model)),
        _same(comparison, "evaluation", _of_runs(lambda run: SPLIT_NAMES[run.evaluated_on])),
        _same(comparison, "device", _of_runs(lambda run: run.plan.device)),
        _same(comparison, "precision", _of_runs(lambda run: run.plan.precision)),
        _same(comparison, "machine", _of_runs(machine)),
        _same(comparison, "tuning", _tuning),
        *([_same(comparison, "target", _of_runs(target))] if any(run.result.target for run in comparison.runs) else []),
    ]


def setting(comparison: Comparison) -> str:
    """Data, model, seeds and what it all took, in a line; from the baseline's first run."""
    run = comparison.baseline.runs[0]
    sizes = [
        f"{count(size)} {what}"
        for size, what in ((run.plan.dataset_size, "training"), (run.plan.test_size, "test"))
        if size
    ]
    seeds = sorted({run.seed for run in comparison.runs})
    seconds = sum(run.result.seconds_total or 0 for run in comparison.runs)
    parts = [
        (run.plan.dataset or "unnamed data") + (f" ({' and '.join(sizes)} examples)" if sizes else ""),
        model(run),
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        f"{len(comparison.runs)} run{'s' * (len(comparison.runs) > 1)} in {duration(seconds)}",
    ]
    return " · ".join(parts)


def machine(run: RecordedRun) -> str:
    """The machine in one line, without what it lacks."""
    parts = run.plan.machine or {}
    units = {"cores": "cores", "torch_threads": "threads"}
    words = [f"{value} {units[key]}" if key in units else str(value) for key, value in parts.items() if value]
    return ", ".join(words) or "not recorded"


def target(run: RecordedRun) -> str | None:
    """The score that ends the run when it is reached."""
    return run.result.target and run.score.of(run.result.target.score)


def model(run: RecordedRun) -> str:
    """Its name and size: ``tiny_cnn with 93,322 parameters``."""
    name = run.recipe.model.name if run.recipe.model else None
    parameters = run.plan.parameters
    return (name or "unnamed model") + (f" with {count(parameters)} parameters" if parameters else "")


def names(comparison: Comparison, ids: set[str]) -> str:
    """Labels of rows; a comparison whose rows are all meant stands for them."""
    said = []
    for name in dict.fromkeys(row.comparison for row in comparison.rows):
        own = [row for row in comparison.rows if row.comparison == name]
        meant = [row for row in own if row.id in ids]
        said += [f"all of {name}"] if name and len(meant) == len(own) > 1 else [row.label for row in meant]
    return listing(said)


def _same(comparison: Comparison, what: str, value: Callable[[MeasuredRow], str]) -> str:
    values = {row.id: value(row) for row in comparison.rows}
    kinds = list(dict.fromkeys(values.values()))
    if len(comparison.rows) == 1:
        return f"{what.capitalize()}: {kinds[0]}."
    if len(kinds) == 1:
        return f"Same {what} for every row: {kinds[0]}."
    listed = (f"{kind} ({names(comparison, {id for id, own in values.items() if own == kind})})" for kind in kinds)
    return f"Not the same {what}: {'; '.join(listed)}."


def _of_runs(value: Callable[[RecordedRun], Any]) -> Callable[[MeasuredRow], str]:
    return lambda row: listing(dict.fromkeys(str(value(run) or "not recorded") for run in row.runs))


def _tuning(row: MeasuredRow) -> str:
    if not row.search:
        return "the recipe’s values, none searched here"
    trials = row.search.budget or len(row.search.trials or ())
    finals = {final.trial for final in row.search.finals or ()}
    seeds = 1 + len({final.seed for final in row.search.finals or ()})
    again = f", the best {len(finals)} over {seeds} seeds" if finals else ""
    return f"{trials} trials of {listing(row.search.space)} on held-out training examples{again}"
