"""The trainer beside a bare PyTorch loop: what the framework costs. Or beside itself under other keys: what they cost.

Beside the bare loop both train the same model on the same resident data with the same optimizer and micro-batches. In
one process, alternating; who goes first alternates too. The figure is the median over pairs of trainer / other, in
examples per second.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import rich.console
import rich.table
import torch

from largebatch import config, distributed, record
from largebatch.assemble import Job, assemble
from largebatch.bench.bare_loop import bare_loop
from largebatch.data.resident import ResidentSplit
from largebatch.determinism import deterministic
from largebatch.errors import UserError
from largebatch.train import Loop, marks


def measure(run: config.Run, pairs: int, steps: int, command: str, beside: list[str] | None = None) -> dict[str, Any]:
    """Examples per second of both, and their ratio; every number with its unit in its name.

    ``beside`` are overrides laid over the recipe: with them the trainer takes the place of the bare loop.
    """
    if distributed.world_size() > 1:
        raise UserError("bench throughput measures one process; start it without a launcher")
    device = distributed.choose_device(run.device)
    job = assemble(_timed(run, steps), device)
    if rates := [text for text in beside or [] if text.partition("=")[0].partition(".")[0] == "lr"]:
        raise UserError(f"--beside {rates[0]} has no effect: bench throughput fixes the learning rate")
    if beside:
        changed = config.from_dict(config.overlay(run.as_written(), beside), f"{run.name} with --beside")
        name, other, seconds_of_other = "beside", assemble(_timed(changed, steps), device), _seconds_of_trainer
    else:
        _check_that_a_bare_loop_can(job)
        name, other, seconds_of_other = "bare_loop", job, _seconds_of_bare_loop
    halves = {"trainer": (job, _seconds_of_trainer), name: (other, seconds_of_other)}
    for of, seconds_of in halves.values():
        seconds_of(of)  # warm-up: allocator, kernels, threads
    speeds: dict[str, list[float]] = {half: [] for half in halves}
    for pair in range(pairs):
        for half in sorted(halves, reverse=bool(pair % 2)):
            of, seconds_of = halves[half]
            speeds[half].append(steps * of.plan.global_batch_size / seconds_of(of))
    ratios = [ours / theirs for ours, theirs in zip(speeds["trainer"], speeds[name], strict=True)]
    return {
        "recipe": run.name,
        "model": run.model.name,
        "global_batch_size": job.plan.global_batch_size,
        "micro_batch_size": job.plan.micro_batch_size,
        "steps_timed": steps,
        "pairs": pairs,
        **({"beside": beside} if beside else {}),
        "trainer_examples_per_second": speeds["trainer"],
        f"{name}_examples_per_second": speeds[name],
        f"trainer_over_{name}": ratios,
        f"trainer_over_{name}_median": statistics.median(ratios),
        "command": command,
        "machine": record.machine(device),
        "versions": record.versions(),
        "commit": record.commit(),
    }


def _timed(run: config.Run, steps: int) -> config.Run:
    return run.model_copy(
        update={
            "epochs": None,
            "steps": steps,
            "checkpoint": config.Checkpoint(every_epochs=0),
            "evaluate": run.evaluate.model_copy(update={"every_epochs": 1e9}),
            "lr": config.LearningRate(base=1e-4),  # the time of a step does not depend on it, divergence does
        }
    )


def _check_that_a_bare_loop_can(job: Job) -> None:
    if job.run.max_grad_norm is not None:
        raise UserError("bench throughput compares with a loop that does not clip; leave max_grad_norm out")
    if not isinstance(job.dataset.train, ResidentSplit):
        name = job.run.data.name
        raise UserError(f"bench throughput measures sets that live on the device; {name} is read from files")
    if job.dataset.train.augment != "none":
        raise UserError("bench throughput compares with a loop that does not augment; add data.augment=none")


def table(facts: dict[str, Any]) -> rich.table.Table:
    title = f"{facts['recipe']}: {facts['model']}, global batch {facts['global_batch_size']:,}, {facts['pairs']} pairs"
    shown = rich.table.Table(title=title)
    for heading in ("", "median", "least", "most"):
        shown.add_column(heading, justify="left" if not heading else "right")
    name, label = ("beside", f"with {' '.join(facts['beside'])}") if "beside" in facts else ("bare_loop", "bare loop")
    for row, key, form in (
        ("trainer, examples/s", "trainer_examples_per_second", "{:,.0f}"),
        (f"{label}, examples/s", f"{name}_examples_per_second", "{:,.0f}"),
        (f"trainer / {label}", f"trainer_over_{name}", "{:.3f}"),
    ):
        values = facts[key]
        cells = (statistics.median(values), min(values), max(values))
        shown.add_row(row, *(form.format(value) for value in cells))
    return shown


def _seconds_of_trainer(job: Job) -> float:
    """The real loop with its records, losses read and TensorBoard written; no evaluation falls into it."""
    with tempfile.TemporaryDirectory() as folder, deterministic(job.run.deterministic):
        silent = rich.console.Console(quiet=True)
        with Loop(job, Path(folder), silent, quiet=True) as loop:
            assert not marks(job.plan, job.run.evaluate.every_epochs) - {job.plan.steps}
            start = time.perf_counter()
            loop.train_steps(noticed=[])
            return time.perf_counter() - start


def _seconds_of_bare_loop(job: Job) -> float:
    split, engine = job.dataset.train, job.engine
    assert isinstance(split, ResidentSplit)
    images, labels = split.resident(job.device)
    layout = torch.channels_last if engine.channels_last else torch.contiguous_format
    mean, std = (255 * torch.tensor(values).view(-1, 1, 1).to(job.device, engine.dtype) for values in split.statistics)
    engine.model.train()
    start = time.perf_counter()
    bare_loop(
        engine.model,
        engine.optimizer,
        images.permute(0, 3, 1, 2),
        labels,
        mean,
        std,
        job.plan.global_batch_size,
        job.plan.micro_batch_size,
        job.plan.steps,
        engine.autocast,
        engine.dtype,
        layout,
    )
    return time.perf_counter() - start
