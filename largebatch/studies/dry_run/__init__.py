"""What a run would be on a cluster, before an hour of it is spent: decided, refused, traced and counted on a laptop.

One step of the real update is run with fake tensors (they have shapes and types, and no memory) in a process group of
which only rank zero exists. Not in the totals: the CUDA context, NCCL's and cuDNN's own memory, and what the allocator
cannot use for gaps, together mostly one to three GiB.

    job.py      the run, assembled without its data and its devices
    engines.py  the engines, where their own machinery cannot hold fake tensors
    trace.py    memory and collectives, watched
    step.py     the step
    autocast.py CUDA's precision on the CPU
    show.py     the tables
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from largebatch.checkpoint import Loaded, existing
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.recipes.phases_read_aloud import facts_of
from largebatch.records import names
from largebatch.records.circumstances import circumstances_of
from largebatch.run.assemble import Job
from largebatch.run.beforehand import decisions
from largebatch.run.start import opened
from largebatch.studies.dry_run.job import (
    Cluster,
    job_of,
    pretended,
    smaller_micro_batches,
    usual_device,
    with_micro_batch,
)
from largebatch.studies.dry_run.step import Traced, traced

MIB, GIB = 2**20, 2**30

__all__ = ["Cluster", "dry_run", "usual_device"]


def dry_run(run: config.Run, cluster: Cluster, command: str = "", memory_gib: float | None = None) -> dict[str, Any]:
    """The facts; raises UserError where ``train`` would, and where a rank would need more than ``memory_gib``."""
    if distributed.joined():
        raise UserError("--dry-run pretends its ranks; start it without a launcher")
    loaded = checkpoint_to_begin_with(run)  # by this process: those that are pretended read none
    with pretended(cluster.world_size):
        job, found = of_step(run, cluster, loaded)
        if memory_gib is not None and job.decided.trying is not None:
            job, found = with_memory(run, cluster, job, found, memory_gib)
        if memory_gib is not None and found.total_bytes > memory_gib * GIB:
            raise UserError(too_much(run, cluster, job, found, memory_gib))
        return facts(job, found, cluster, command)


def checkpoint_to_begin_with(run: config.Run) -> Loaded | None:
    """Of another run; None where this one has checkpoints of its own, from which it goes on."""
    if run.start is None or existing(run.directory / names.CHECKPOINTS):
        return None
    return opened(run.start)


def of_step(run: config.Run, cluster: Cluster, loaded: Loaded | None = None) -> tuple[Job, Traced]:
    """``loaded``: what it begins with, where that is to be checked; to what is traced it is no matter."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    job = job_of(run, cluster, mode, loaded)
    return job, traced(job, mode, cluster.device == "cuda")


def with_memory(run: config.Run, cluster: Cluster, job: Job, trace: Traced, memory_gib: float) -> tuple[Job, Traced]:
    """With the micro-batch that ``batch.micro_batch_size = auto`` would take on a device of so much, by what is traced.

    Where phases have examples of several sizes, or none fits, as it was.
    """
    assert job.decided.trying is not None
    reserve, sizes = job.decided.trying
    tried = reversed(sizes[0].allowed) if len(sizes) == 1 and run.phases is None else ()
    limit = (1 - reserve) * memory_gib * GIB
    found = first_that_fits(run, cluster, trace, tried, limit, limit)
    return (job, trace) if found is None else found[1:]


def first_that_fits(
    run: config.Run, cluster: Cluster, trace: Traced, sizes: Iterable[int], room: float, limit: float
) -> tuple[int, Job, Traced] | None:
    """Of micro-batches: guessed in proportion to ``trace``, whose activations then have ``room``, and traced.

    Both in bytes; ``limit`` is that of all.
    """
    for micro in sizes:
        if passing(trace) * micro / trace.micro_batch_size > 1.1 * room:
            continue  # activations are nearly proportional to the micro-batch
        job, found = of_step(with_micro_batch(run, micro), cluster)
        if found.total_bytes <= limit:
            return micro, job, found
    return None


def passing(trace: Traced) -> float:
    """Bytes of what is there for a while."""
    return trace.bytes_by_part["activations"] + trace.bytes_by_part["gathered blocks"]


def too_much(run: config.Run, cluster: Cluster, job: Job, trace: Traced, memory_gib: float) -> str:
    """The sentence, with the largest micro-batch that would fit."""
    limit = memory_gib * GIB
    room = limit - (trace.total_bytes - passing(trace))
    smaller = smaller_micro_batches(run, job.plan, cluster) if room > 0 else []
    found = first_that_fits(run, cluster, trace, smaller, room, limit)
    advice = f"batch.micro_batch_size = {found[0]} would fit" if found else "no smaller micro-batch would fit"
    return (
        f"the run needs {trace.total_bytes / GIB:.2f} GiB per rank, of which activations "
        f"{trace.bytes_by_part['activations'] / GIB:.2f} GiB at micro-batch {trace.micro_batch_size}; --memory = "
        f"{memory_gib:g} GiB; {advice}"
    )


def facts(job: Job, trace: Traced, cluster: Cluster, command: str) -> dict[str, Any]:
    run, plan, decided = job.run, job.plan, job.decided
    size = plan.dataset_size
    return {
        "kind": "dry_run",
        "recipe": run.name,
        "title": run.title,
        "model": run.model.name,
        "data": run.data.name,
        "device": cluster.device,
        "precision": decided.precision,
        "engine": run.engine.name,
        "engine_settings": job.engine.description,
        "decisions": decisions(job, run.directory),
        "world_size": plan.world_size,
        "global_batch_size": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "steps": plan.steps,
        "dataset_size": size,
        "epochs": plan.budget_examples / size,
        "peak_lr": decided.peak_lr,
        "warmup_epochs": decided.lr.schedule.warmup / size,
        "clock": "scale-invariant" if decided.clock else "examples seen",
        "schedule": schedule(job),
        "phases": facts_of(decided),
        "stages": [
            {"epoch": s.first_example / size, "step": s.first_step, "global_batch_size": s.global_batch_size,
             "micro_batch_size": s.micro_batch_size, "accumulation_steps": s.accumulation_steps}
            for s in plan.stages
        ],
        "evaluated_after_steps": sorted(decided.evaluating.at.steps()),
        "saved_after_steps": sorted(decided.saving.at.steps()),
        "traced_micro_batch_size": trace.micro_batch_size,
        "traced_accumulation_steps": trace.accumulation_steps,
        "memory_per_rank_mib": {part: value / MIB for part, value in trace.bytes_by_part.items()},
        "memory_of_evaluation_mib": trace.evaluation_bytes / MIB,
        "memory_total_per_rank_mib": trace.total_bytes / MIB,
        "collectives_per_step": collectives(trace, decided.recording.every_steps, plan.world_size),
        "flops_per_step_and_rank": trace.flops,
        **circumstances_of(command),
    }  # fmt: skip


def schedule(job: Job, count: int = 480) -> list[list[float]]:
    """[epoch, lr] of real steps: evenly, and on both sides of every jump."""
    plan, decided = job.plan, job.decided
    steps = {round(n * (plan.steps - 1) / count) for n in range(count + 1)}
    for phase in decided.phases:
        lr, begun = phase.lr.schedule, phase.clock.first_example
        jumps = [plan.first_step_at(begun + at) for at in (lr.warmup, *lr.milestones)]
        near = {step + side for step in (phase.span.first_step, *jumps) for side in (-1, 0)}
        steps |= {step for step in near if 0 <= step < plan.steps}
    seen = [plan.examples_before(step) for step in sorted(steps)]
    return [[examples / plan.dataset_size, decided.lr_at(examples)] for examples in seen]


def collectives(trace: Traced, recorded_every: int, world_size: int) -> list[dict[str, Any]]:
    """By collective and purpose. A ring sends (w − 1)/w of the bytes twice in an all-reduce, else once."""
    calls: collections.Counter[tuple[str, str, int]] = collections.Counter()
    sizes: collections.Counter[tuple[str, str, int]] = collections.Counter()
    for call, times in trace.collectives:
        key = (call.name, call.what_for, call.ranks)
        calls[key] += times
        sizes[key] += times * call.bytes
    rows = []
    for key in calls:
        name, what_for, ranks = key
        every = recorded_every if what_for == "loss record" else 1
        sent = (2 if name == "all_reduce" else 1) * (ranks - 1) / ranks
        rows.append(
            {"collective": name, "what_for": what_for, "ranks": ranks, "calls": calls[key] / every,
             "bytes": sizes[key], "ring_bytes": sent * sizes[key], "traced": True}
        )  # fmt: skip
    if world_size > 1:
        ring = math.ceil(2 * 8 * (world_size - 1) / world_size)
        rows.append(
            {"collective": "all_reduce", "what_for": "stop flag (gloo)", "ranks": world_size, "calls": 1, "bytes": 8,
             "ring_bytes": ring, "traced": False}
        )  # fmt: skip
    return rows
