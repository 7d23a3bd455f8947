"""How far a study is."""

from __future__ import annotations

import rich.table

from largebatch.report.numerals import ABSENT, count
from largebatch.studies.search.trial import best
from largebatch.studies.study.folder import StudyFolder
from largebatch.studies.study.jobs import chosen, left, tried


def table(folder: StudyFolder) -> rich.table.Table:
    """A line for each recipe at each batch."""
    cells = folder.cells()
    outcomes = folder.outcomes(cells)
    made = rich.table.Table("row", "batch", "trials", "reached", "best", "seeds", title=folder.study.name)
    for cell in cells:
        trials = tried(cell, outcomes)
        top, number = best(list(trials.values())), chosen(cell, outcomes)
        reached = sum(trial.worth is not None and trial.worth[0] > 0 for trial in trials.values())
        examples = f"{count(-top.worth[1])} examples" if top and top.worth and top.worth[0] > 0 else ABSENT
        seeds = 0 if number is None else sum(cell.seed_folder(number, seed) in outcomes for seed in range(cell.seeds))
        made.add_row(
            cell.row, count(cell.batch), f"{len(trials)} of {cell.trials}", str(reached), examples,
            f"{seeds} of {cell.seeds}",
        )  # fmt: skip
    return made


def sentences(folder: StudyFolder) -> list[str]:
    """What is made, by how many, what is left and for how long, and what giving up early saved."""
    cells = folder.cells()
    outcomes = folder.outcomes(cells)
    running = folder.running()
    to_do = sum(left(cell, outcomes) for cell in cells)
    seconds = [result.seconds_total for result in outcomes.values() if result.seconds_total]
    told = [f"{len(outcomes):,} runs are done, {running} running, {to_do:,} left with those"]
    if seconds and to_do:
        hours = to_do * sum(seconds) / len(seconds) / 3600 / max(1, running)
        told.append(f"about {hours:.2g} hours left at {max(1, running)} workers, if runs go on as they did")
    budgets = [cell.recipe.run().epochs or 0.0 for cell in cells]
    used = asked = 0.0
    for cell, epochs in zip(cells, budgets, strict=True):
        for number in range(cell.trials):
            result = outcomes.get(cell.trial_folder(number))
            target = result.target if result is not None and result.status == "finished" else None
            if target is not None and not target.reached and target.last:
                used, asked = used + target.last.epochs, asked + epochs
    if asked > used:
        told.append(
            f"giving up hopeless trials early saved {100 * (1 - used / asked):.0f} % of what they would have cost"
        )
    return told
