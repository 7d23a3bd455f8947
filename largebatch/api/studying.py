"""``lb.study``: what the command ``largebatch study`` does, with parts of one's own where there are any."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from largebatch.api.handed_over import Handed, standing_in
from largebatch.api.recipes import plain
from largebatch.api.training import at_home, command, one_at_a_time
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.records.curves import TargetsRecord
from largebatch.report import study as report
from largebatch.studies.compare import Interrupted
from largebatch.studies.rows import slug
from largebatch.studies.study import file as files
from largebatch.studies.study.findings import findings
from largebatch.studies.study.folder import StudyFolder
from largebatch.studies.study.work import work
from largebatch.terminal.console import Console


def study(
    keys: Mapping[str, Any],
    out: str | Path | None = None,
    *,
    model: Any = None,
    dataset: Any = None,
    task: Any = None,
    optimizer: Any = None,
    verbose: bool = False,
) -> TargetsRecord:
    """Steps to a target against the batch, of recipes that are searched with the same effort at every batch.

    The same call goes on after any interruption; processes that make it at once share its runs through the folder.

    Args:
        keys: those of a study's file: ``name``, ``recipes``, ``batches``, ``target``, ``epochs``, ``every_epochs``,
            ``trials``, ``seeds``, ``search``, ... ``recipes`` may hold what :func:`largebatch.recipe` takes or makes;
            ``{"recipe": one, "id": "row", "search": {...}}`` says more of a row. A recipe's keys need neither
            ``batch`` nor ``epochs``: they are the study's.
        out: the folder; else ``studies/NAME``.
        model, dataset, task, optimizer: of every row, as in :func:`largebatch.train`.
        verbose: print a line for each run.

    Returns:
        What stands in ``curves.json``: ``record.curves`` has for each row its points, the law, its search and the rules
        of its best values, ``record.pairs`` the rows in pairs. ``report.html`` in the folder shows it.

    Raises:
        UserError: a mistake, in one sentence; or the study was stopped before any trial ended.
    """
    handed = Handed(model, dataset, task, optimizer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        rows, runs = [], []
        for row in (_row(one, keys) for one in keys.get("recipes") or ()):
            run = stack.enter_context(standing_in(row["recipe"], handed))
            rows.append({**row, "recipe": run.name, "id": row.get("id") or run.name})
            runs.append(run)
        checked = files.checked(plain("study", {**keys, "recipes": rows}), "lb.study")
        folder = StudyFolder(Path(out or Path("studies") / checked.name))
        stack.enter_context(at_home(runs[0], alone=True))
        folder.begin(checked, {slug(row["id"]): run.as_set() for row, run in zip(rows, runs, strict=True)})
        return _made(folder, Console(quiet=not (verbose and distributed.is_first())))


def _row(one: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Batch and budget that a recipe's own keys leave out are the study's."""
    row = dict(one) if isinstance(one, Mapping) and "recipe" in one else {"recipe": one}
    batches = keys.get("batches")
    if isinstance(recipe := row["recipe"], Mapping) and batches:
        budget = {} if "steps" in recipe or "epochs" not in keys else {"epochs": keys["epochs"]}
        row["recipe"] = {"batch": {"global_batch_size": batches[0]}, **budget, **recipe}
    return row


def _made(folder: StudyFolder, console: Any) -> TargetsRecord:
    with contextlib.suppress(Interrupted):  # what was finished is kept
        work(folder, command(), console)
    with folder.claimed("findings", wait=True):
        if (facts := findings(folder, command())) is None:
            raise UserError(f"the study in {folder.out} was stopped before a trial ended; the same call goes on")
        report.write(facts, folder.out)
    return facts
