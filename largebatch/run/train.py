"""One run, from its recipe to its ``result.json``: decided and built (assemble.py), then the loop (loop.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich.console
import rich.padding
from torch import nn

from largebatch import checkpoint
from largebatch.errors import UserError
from largebatch.machine import distributed, watchdog
from largebatch.machine.determinism import deterministic
from largebatch.machine.watchdog import watched
from largebatch.recipes import config
from largebatch.records import names
from largebatch.records.mllog import MlperfLog
from largebatch.run import record, weights
from largebatch.run.account import Result
from largebatch.run.assemble import Job, assemble
from largebatch.run.beforehand import decisions, table_of_tensors
from largebatch.run.loop import Loop
from largebatch.run.parts import Added, told_code
from largebatch.run.saving import changed_code, no_place_for_checkpoints
from largebatch.terminal.console import Console, tell


def train(
    run: config.Run,
    *,
    command: str = "",
    console: rich.console.Console | None = None,
    quiet: bool = False,
    parts: Added | None = None,
    into: nn.Module | None = None,
) -> Result:
    """One run, from its recipe to its ``result.json``. Collective: every rank of the group calls it.

    A run directory that holds an unfinished run of the same recipe is continued; a finished one is read. The module
    ``into`` gets the weights of the run's end, unless it failed.
    """
    device = distributed.choose_device(run.device)
    console = console or Console()
    if run.engine.name != "ddp" and not distributed.joined():
        raise UserError(f"engine.name = {run.engine.name} needs a process group; call train inside distributed.group")
    with watched(run.timeout_minutes), distributed.losses_told():
        watchdog.now("the model and the data set")
        checkpoint.seed_rank(run.seed)
        directory = run.directory
        mllog = MlperfLog(directory / names.MLPERF_LOG) if run.record.mllog and distributed.is_first() else None
        begun = distributed.from_first(bool(checkpoint.existing(directory / names.CHECKPOINTS)))
        job = assemble(run, device, begun=begun, quiet=quiet)
        record.open_directory(directory, run.as_written(), run.science(), science_of_file, run.resume)
        finished = distributed.gather(record.read_result(directory))[0]
        if finished is not None and finished.status == "finished":
            if distributed.is_first() and not quiet:
                tell(console, f"{directory} is finished already: nothing to train")
            if into is not None:
                weights.give(weights.of_newest_checkpoint(directory), into)
            return Result("finished", made_otherwise(job, parts), directory, finished, score=job.task.score)
        if problem := no_place_for_checkpoints(job.decided):
            return Result("stopped", problem, directory, None)
        if distributed.is_first() and not quiet:
            for key, text in decisions(job, directory).items():
                tell(console, f"{key:>10}  {text}")
            console.print(rich.padding.Padding(table_of_tensors(job.treatments), (0, 0, 0, 2)))
        with (
            record.locked(directory),
            deterministic(run.deterministic),
            Loop(job, directory, console, quiet, command, mllog, parts) as loop,
        ):
            result = loop.run_to_the_end()
            if into is not None and result.status != "failed":
                weights.give(weights.of_run(loop), into)
            return result


def made_otherwise(job: Job, parts: Added | None) -> str | None:
    """Whose code is another one than that which the finished run was made with. Collective."""
    plan = record.read_plan(job.decided.directory)
    before = (plan.code if plan is not None else None) or {}
    changed = distributed.gather(changed_code(before, told_code(job, parts)))[0]
    return "; ".join([*changed, "nothing is trained anew, unless in another record.dir"]) if changed else None


def science_of_file(file: Path) -> dict[str, Any]:
    return config.from_dict(config.read(file), str(file)).science()
