"""What a training loop takes of its machine: memory at its peak, and the time in which the device does anything."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from typing import Any

import torch

from largebatch.machine.determinism import deterministic
from largebatch.run.assemble import Job
from largebatch.run.loop import Steps
from largebatch.run.parts import Parts
from largebatch.studies.bench.throughput.ready import Ready

BUSY_STEPS = 5


class Memory:
    """Made before anything is built; asked when it has run."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = resident_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def facts(self) -> dict[str, Any]:
        """On CUDA what torch allocated at most; on a CPU how far this process has grown, without its workers."""
        if self.device.type == "cuda":
            return {"peak_allocated_bytes": torch.cuda.max_memory_allocated(self.device)}
        return {"peak_resident_growth_bytes": resident_peak() - self.before}


def resident_peak() -> int:
    """The most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def busy_share(job: Job, batches: Ready) -> float | None:
    """The part of some updates' time in which a CUDA device has a kernel or a copy to do; None where it cannot be
    traced. Only the device is traced, so that the host is slowed down little."""
    if job.device.type != "cuda":
        return None
    steps, first = Steps(job, Parts(job)), max(0, job.plan.steps - BUSY_STEPS)
    job.engine.model.train()

    def updates() -> None:
        for step, micro_batches in enumerate(batches.steps(job.plan, 0, first, job.placement, 0), start=first):
            steps.make(steps.begin(step), micro_batches)
        torch.cuda.synchronize(job.device)

    with deterministic(job.run.deterministic):  # and cuDNN's choices, as in a run
        updates()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            updates()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return covered(spans)


def covered(spans: Iterable[tuple[float, float]]) -> float | None:
    """The part of the time between the first begin and the last end that lies in at least one of the spans."""
    ordered = sorted(spans)
    if not ordered or max(end for _, end in ordered) <= ordered[0][0]:
        return None
    inside, reached = 0.0, ordered[0][0]
    for begin, end in ordered:
        inside += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return inside / (reached - ordered[0][0])
