"""``batch.micro_batch_size = auto``: the largest micro-batch that the devices hold, tried before the first step.

For each size of examples the allowed micro-batches (:mod:`largebatch.recipes.micro_batch`) are tried from the smallest
on, each at most twice the one before; from the first that does not fit on the gap to the last that did is halved. A
trial is two steps of the run on blank examples, of at most two micro-batches: forward, backward, the optimizer, what
methods hold beside them. It fits where no rank ran out of memory and every device kept the reserve free.

Nothing of a trial communicates, so a rank that runs out of memory leaves nobody waiting; after each the ranks tell each
other how it went, and all go on alike. The job that is tried on is thrown away, random states are put back, and the
run begins as one would in which the recipe had stated the number.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from largebatch.checkpoint import randomness
from largebatch.data import draws
from largebatch.data.finishing import as_read
from largebatch.data.resident import TensorSplit
from largebatch.errors import UserError
from largebatch.machine import distributed, watchdog
from largebatch.recipes.micro_batch import Trying
from largebatch.records.run import MicroBatchTrial, TriedMicroBatch
from largebatch.run.assemble import Job
from largebatch.run.loop import Steps
from largebatch.run.parts import Parts
from largebatch.steps.step import Step

NO_MEMORY = (
    "CUDA out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",
)
STEPS = 2  # the first makes the optimizer's states


class DeviceMemory(Protocol):
    """Of the device of a rank."""

    @property
    def bytes(self) -> int: ...
    def clear(self) -> None:
        """What nobody holds is given back."""
        ...

    def free_share(self) -> float:
        """Of all of it; what the allocator has once taken counts as taken."""
        ...


class CudaMemory:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).total_memory

    def clear(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def free_share(self) -> float:
        torch.cuda.synchronize(self.device)
        free, whole = torch.cuda.mem_get_info(self.device)
        return free / whole


def memory_of(device: torch.device) -> DeviceMemory | None:
    """None where a device has no memory of its own: there is nothing to try, and ``auto`` is what no word is."""
    return CudaMemory(device) if device.type == "cuda" else None


def circumstances_of(device: torch.device, memory: DeviceMemory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial depends on, beside the recipe's science; ``settings``: of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"world_size": distributed.world_size(), "device": name, "memory_bytes": memory.bytes, **settings}


def still_holds(trial: MicroBatchTrial | None, circumstances: Mapping[str, Any]) -> MicroBatchTrial | None:
    """A recorded trial, where it was made in the same circumstances on all ranks. Collective."""
    same = trial is not None and dict(trial.circumstances) == dict(circumstances)
    return trial if all(distributed.gather(same)) else None


class OnRank(NamedTuple):
    """Of a trial on one rank."""

    enough: bool
    free_share: float | None  # None: it ran out of memory


def tried(build: Callable[[], Job], memory: DeviceMemory, circumstances: Mapping[str, Any]) -> MicroBatchTrial:
    """The largest micro-batches that fit, and what was tried. Random states are afterwards what they were. Collective.

    ``build`` makes the job anew: after a trial that failed nothing of it is used again.
    """
    rooms, largest, attempts = Rooms(build, memory), dict[str, int](), list[TriedMicroBatch]()
    with unnoticed():
        try:
            trying = trying_of(rooms.enter().job)
            for number, sizes in enumerate(trying.sizes):
                of_size = [
                    recorded(sizes.pixels, micro, outcomes)
                    for micro, outcomes in search(sizes.allowed, functools.partial(rooms.try_, number))
                ]
                attempts += of_size
                fitting = [one.micro_batch_size for one in of_size if one.fits]
                if not fitting:
                    raise UserError(nothing_fits(of_size[-1], trying.reserve, memory))
                largest[str(sizes.pixels)] = max(fitting)
        finally:
            rooms.leave()
    return MicroBatchTrial(largest=largest, reserve=trying.reserve, circumstances=circumstances, tried=attempts)


def search(allowed: Sequence[int], attempt: Callable[[int], list[OnRank]]) -> Iterator[tuple[int, list[OnRank]]]:
    """Each that is tried, of ascending ones, and how it went on every rank: doubling, then halving the gap."""
    good, bad, at = -1, len(allowed), 0
    while good + 1 < bad:
        outcomes = attempt(allowed[at])
        yield allowed[at], outcomes
        if all(outcome.enough for outcome in outcomes):
            good = at
        else:
            bad = at
        if bad == len(allowed):  # none has failed
            at = max((n for n in range(good + 1, bad) if allowed[n] <= 2 * allowed[good]), default=good + 1)
        else:
            at = (good + bad + 1) // 2 if good + 1 < bad else bad


class Rooms:
    """The job that is tried on, until a trial fails."""

    def __init__(self, build: Callable[[], Job], memory: DeviceMemory) -> None:
        self.build, self.memory = build, memory
        self.steps: Steps | None = None

    def enter(self) -> Steps:
        if self.steps is None:
            job = self.build()
            self.steps = Steps(job, Parts(job, of_methods_alone=True))
            for split in (as_read(job.dataset.train), job.dataset.test):
                if isinstance(split, TensorSplit):
                    split.resident(job.device)  # where it will be during the run
        return self.steps

    def leave(self) -> None:
        self.steps = None
        gc.collect()  # wrapped models hold themselves in cycles
        self.memory.clear()

    def try_(self, number: int, micro: int) -> list[OnRank]:
        """How it goes on every rank, with examples of the ``number``-th size."""
        watchdog.now(f"the trial of micro-batches of {micro}")
        outcomes = distributed.gather(self._alone(self.enter(), number, micro))
        if not all(outcome.enough for outcome in outcomes):
            self.leave()
        return outcomes

    def _alone(self, steps: Steps, number: int, micro: int) -> OnRank:
        self.memory.clear()
        try:
            pass_over(steps, number, micro)
            free = self.memory.free_share()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not (isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)):
                raise
            return OnRank(False, None)
        return OnRank(free >= trying_of(steps.job).reserve, free)


def trying_of(job: Job) -> Trying:
    assert job.decided.trying is not None
    return job.decided.trying


def pass_over(steps: Steps, number: int, micro: int) -> None:
    """Steps as the run takes them, of blank examples, on this rank alone."""
    job = steps.job
    sizes = trying_of(job).sizes[number]
    stage, accumulation = job.plan.stages[sizes.stage], sizes.share // micro
    seen = stage.first_example
    batch = job.placement.placed(job.dataset.blank(micro, size_at(job, sizes.stage)))
    job.engine.model.train()
    job.engine.scaler.scale(torch.zeros((), device=job.device))  # which a step without a scaled loss would miss
    for _ in range(STEPS):
        (lr, settings), phase = job.decided.rates_at(seen), job.decided.phase_at(seen)
        batches = [batch] * min(2, max(1, accumulation))
        step = Step(stage.first_step, stage.global_batch_size, batches, None, lr, settings, phase=phase)
        for turn in steps.parts.turns(step):
            steps.take(turn)
            watchdog.alive()


def size_at(job: Job, stage: int) -> int | None:
    """The largest of a stage's examples; None where they have none, or one."""
    sizes = job.dataset.sizes
    if sizes is None:
        return None
    return sizes.at(job.plan.stages[stage].first_step, job.plan) if sizes.of_phases else sizes.last


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Afterwards random states are those of before."""
    states, own = draws.states(), randomness.state()
    try:
        yield
    finally:
        draws.put_back(states)
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])


def recorded(pixels: int, micro: int, outcomes: list[OnRank]) -> TriedMicroBatch:
    without = [rank for rank, outcome in enumerate(outcomes) if not outcome.enough]
    free = [math.inf if outcome.free_share is None else outcome.free_share for outcome in outcomes]
    least = None if math.inf in free else min(free)
    return TriedMicroBatch(
        pixels=pixels, micro_batch_size=micro, fits=not without, free_share=least, ranks_without=without
    )


def nothing_fits(smallest: TriedMicroBatch, reserve: float, memory: DeviceMemory) -> str:
    ranks = ", ".join(map(str, smallest.ranks_without))
    return (
        f"batch.micro_batch_size = auto: not even {smallest.micro_batch_size} examples fit the "
        f"{memory.bytes / 2**30:.1f} GiB of rank {ranks} with {reserve:.0%} of it kept free (batch.memory_reserve); "
        "valid: engine.activation_checkpointing = blocks, engine.name = fsdp with a number, or a smaller model"
    )
