"""One run, from its recipe to its ``result.json``: decided and built (assemble.py), then the loop (loop.py)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console
import rich.padding
import torch
from torch import nn

from largebatch import checkpoint
from largebatch.checkpoint.manifest import read as read_manifest
from largebatch.errors import UserError
from largebatch.machine import distributed, watchdog
from largebatch.machine.determinism import deterministic
from largebatch.machine.watchdog import watched
from largebatch.plan.batch import BatchPlan
from largebatch.recipes import config, longer, refusals
from largebatch.recipes.decide import decide, precision_of
from largebatch.records import names
from largebatch.records.mllog import MlperfLog
from largebatch.records.run import MicroBatchTrial
from largebatch.run import micro_batch, record, weights
from largebatch.run.account import Result
from largebatch.run.assemble import Job, assemble, data_facts, sizes_of
from largebatch.run.beforehand import decisions, table_of_tensors
from largebatch.run.loggers.scalars import check_installed
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
    refusals.check_device(run, device.type)
    console = console or Console()
    if run.engine.name != "ddp" and not distributed.joined():
        raise UserError(f"engine.name = {run.engine.name} needs a process group; call train inside distributed.group")
    with watched(run.timeout_minutes), distributed.losses_told():
        watchdog.now("the model and the data set")
        checkpoint.seed_rank(run.seed)
        directory = run.directory
        record.on_first_rank(lambda: check_installed(run.record.to), "record.to")
        mllog = MlperfLog(directory / names.MLPERF_LOG) if run.record.mllog and distributed.is_first() else None
        begun = distributed.from_first(bool(checkpoint.existing(directory / names.CHECKPOINTS)))
        memory = micro_batch.memory_of(device) if run.batch.tries_micro_batches else None
        known = None if memory is None else known_trial(run, device, memory)
        job = assemble(run, device, begun=begun, quiet=quiet, trial=known)
        record.open_directory(
            directory, run.as_written(), run.science(), science_of_file, run.resume, functools.partial(why_not_on, job)
        )
        finished = distributed.gather(record.read_result(directory))[0]
        if finished is not None and finished.status == "finished":
            if distributed.is_first() and not quiet:
                tell(console, f"{directory} is finished already: nothing to train")
            if into is not None:
                weights.give(weights.of_newest_checkpoint(directory), into)
            return Result("finished", made_otherwise(job, parts), directory, finished, score=job.task.score)
        if problem := no_place_for_checkpoints(job.decided):
            return Result("stopped", problem, directory, None)
        if memory is not None and known is None:
            build = functools.partial(assemble, run, device, job.dataset, begun=begun, quiet=True)
            del job  # whose memory the trials need
            job = with_tried_micro_batches(run, device, memory, build)
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


def known_trial(run: config.Run, device: torch.device, memory: micro_batch.DeviceMemory) -> MicroBatchTrial | None:
    """The trial of micro-batches that the run directory holds, if it was made in these circumstances. Collective."""
    plan = distributed.from_first(record.read_plan(run.directory))
    return micro_batch.still_holds(plan and plan.micro_batch_trial, circumstances_of(run, device, memory))


def with_tried_micro_batches(
    run: config.Run, device: torch.device, memory: micro_batch.DeviceMemory, build: Callable[..., Job]
) -> Job:
    """The job with the micro-batches that all devices were found to hold. Collective."""
    with micro_batch.unnoticed():
        with deterministic(run.deterministic):
            trial = micro_batch.tried(build, memory, circumstances_of(run, device, memory))
        return build(trial=trial)


def circumstances_of(run: config.Run, device: torch.device, memory: micro_batch.DeviceMemory) -> dict[str, Any]:
    """What decides the memory of a step beside what decides its result."""
    settings = {
        "precision": precision_of(run.precision, device.type),
        "compile": run.compile,
        "deterministic": run.deterministic,
        "channels_last": run.channels_last,
        "reserve": run.batch.memory_reserve,
        "engine": run.engine.model_dump(mode="json"),
    }
    return micro_batch.circumstances_of(device, memory, settings)


def made_otherwise(job: Job, parts: Added | None) -> str | None:
    """Whose code is another one than that which the finished run was made with. Collective."""
    plan = record.read_plan(job.decided.directory)
    before = (plan.code if plan is not None else None) or {}
    changed = distributed.gather(changed_code(before, told_code(job, parts)))[0]
    return "; ".join([*changed, "nothing is trained anew, unless in another record.dir"]) if changed else None


def why_not_on(job: Job, file: Path, science: dict[str, Any]) -> str | None:
    """Why the run of ``file`` cannot go on as this job, for a sentence; None: it can."""
    if not longer.may_go_on(science, job.run.science()):
        return ""
    steps = steps_of_checkpoints(file.parent / names.CHECKPOINTS)
    if not steps:
        return ": it kept no checkpoint that it could go on from"
    before = config.from_dict(config.read(file), str(file))
    if before.batch.ramp is not None and before.batch.ramp.rule == "adaptive":
        return ": where its batch grows is known for its own steps alone"
    if any(method.ALONE == "at the end" for method in before.methods.values()):
        return ": its workers went on from where its steps ended"
    decided = decide(before, data_facts(job.dataset), distributed.world_size(), job.device.type)
    sides = side_at(before, decided.plan), side_at(job.run, job.decided.plan)
    why = longer.first_difference(decided, job.decided, max(steps), sides)
    return why and f": {why}"


def side_at(run: config.Run, plan: BatchPlan) -> longer.SideAt:
    """The side of a step's training images, where the recipe says it."""
    sizes = sizes_of(run)
    return lambda step: None if sizes is None else sizes.at(step, plan)


def steps_of_checkpoints(folder: Path) -> list[int]:
    """Steps of the plan that were done at each that says it."""
    steps = []
    for path in checkpoint.existing(folder):
        with contextlib.suppress(checkpoint.Damaged):
            steps.append(int(read_manifest(path)["step_of_loop"]))
    return steps


def science_of_file(file: Path) -> dict[str, Any]:
    return config.from_dict(config.read(file), str(file)).science()
