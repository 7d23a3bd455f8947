"""What ``bench scaling`` measures in one world: the trainer's steps at two batches, and the all-reduce alone."""

from __future__ import annotations

import platform
import statistics
from typing import Any

import torch

from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config, derive
from largebatch.records import circumstances
from largebatch.run.assemble import Job, assemble
from largebatch.studies.bench.throughput import turns

KINDS = ("weak", "strong")
ALL_REDUCES = 5  # timed, each by itself


def at(run: config.Run, kind: str, ranks: int, base: int, steps: int) -> config.Run:
    """The run as it is timed on ``ranks``. Strong: the recipe's batch. Weak: each rank has what it has in a world of
    ``base`` ranks with the recipe's batch."""
    timed, _ = turns.timed(run, steps)
    size = run.batch.global_batch_size
    if kind == "weak":
        if size % base:
            raise UserError(
                f"batch.global_batch_size = {size} does not divide among {base} ranks, the fewest of --ranks"
            )
        size = size // base * ranks
    return timed.model_copy(update={"batch": timed.batch.model_copy(update={"global_batch_size": size})})


def check(run: config.Run, worlds: list[int], steps: int, dataset_size: int, pixels: int, device: str) -> None:
    """Every world has a batch plan, or a sentence says which has none."""
    for ranks in worlds:
        for kind in KINDS:
            try:
                timed = at(run, kind, ranks, worlds[0], steps)
                derive.plan_of(timed, dataset_size, ranks, derive.largest_micro_batch(device, pixels))
            except UserError as error:
                raise UserError(f"--ranks {ranks}, {kind} scaling: {error}") from None


def measure(run: config.Run, base: int, steps: int) -> dict[str, Any]:
    """Of the world that this process is in. Collective."""
    device = distributed.choose_device(run.device)
    ranks = distributed.world_size()
    found: dict[str, Any] = {"ranks": ranks}
    for kind in KINDS:
        if kind == "strong" and ranks == base:
            found["strong"] = found["weak"]
            continue
        job = assemble(at(run, kind, ranks, base, steps), device)
        turns.trainer_seconds(job)  # to warm up
        seconds = turns.trainer_seconds(job)
        found[kind] = {
            "global_batch_size": job.plan.global_batch_size,
            "micro_batch_size": job.plan.micro_batch_size,
            "accumulation_steps": job.plan.accumulation_steps,
            "images_per_second": steps * job.plan.global_batch_size / seconds,
            "seconds_per_step": seconds / steps,
            "split": turns.split_of_step(job, steps),
        }
        found |= {"precision": job.decided.precision, "all_reduce": found.get("all_reduce") or all_reduce_alone(job)}
        del job  # the memory of one at a time
    return {**found, "machine": circumstances.machine(device), "hosts": len(set(distributed.gather(platform.node())))}


def all_reduce_alone(job: Job) -> dict[str, Any] | None:
    """One all-reduce of as many bytes as the gradients have, with nothing beside it; None for a rank alone.

    The algorithm bandwidth is these bytes over its seconds.
    """
    if distributed.world_size() == 1:
        return None
    travels = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(getattr(job.run.engine, "all_reduce", "fp32"))
    count = sum(p.numel() for p in job.engine.model.parameters() if p.requires_grad)
    gradients = torch.zeros(count, dtype=travels or job.engine.dtype, device=job.device)
    clock = turns.Clock(job.device)
    found = []
    for _ in range(1 + ALL_REDUCES):
        clock.start()
        distributed.sum_(gradients)
        found.append(clock.seconds())
    size, seconds = count * gradients.element_size(), statistics.median(found[1:])
    return {"bytes": size, "seconds": seconds, "algorithm_bytes_per_second": size / seconds}
