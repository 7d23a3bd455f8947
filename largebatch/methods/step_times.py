"""What the step of every rank is made of, and which rank the others wait for (``record.ranks_every_steps``).

    data            until a micro-batch is there
    compute         forward and backward, up to this rank's last gradient; each also for itself
    communication   from then on until the gradients are summed: the network, and waiting for slower ranks
    optimizer       the step, clipping included

A slow rank makes all the others wait in their communication, so it is found by its own seconds: data, compute and
optimizer. On CUDA the parts are times between events of the device, read at the next recording mark: what the device
did meanwhile is no wait for data, and no step waits for the host. FSDP and DeepSpeed communicate inside forward,
backward and step: there only the wait for data and the whole step are known, and a rank's own seconds are the former.

Steps that are not measured are left alone. In a measured one, a hook on every parameter notes when its gradient is
there, during the last backward: DDP's own, which sums it over ranks, come after it.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

from largebatch.methods import Built, Part, PartRecorder, Recorded
from largebatch.plan.batch import due

if TYPE_CHECKING:
    import torch

    from largebatch.steps.step import Step

PARTS: tuple[str, ...] = ("data", "compute", "forward", "backward", "communication", "optimizer", "step")
DISJOINT: tuple[str, ...] = ("data", "forward", "backward", "communication", "optimizer")  # compute is two of them
OWN: tuple[str, ...] = ("data", "compute", "optimizer")
WORDS = {"data": "data wait", "compute": "compute", "optimizer": "optimizer step"}
SLOW = 1.5  # times the median rank's own seconds
NOTICEABLE = 0.1  # of a step: less is not worth a sentence, whatever the ratio
WARM_UP = 2  # first steps of a session, not measured: in the second forward DDP agrees with all ranks on its buckets
QUIET_RECORDS = 20  # measured steps before the same rank is named again

Mark = Any  # a moment: a time on the CPU, an event of the device on CUDA
Laps = list[tuple[str, Mark]]  # what began when


class StepTimes(Recorded):
    KEY = "record.ranks_every_steps"

    def part(self, job: Built) -> TimesOfRanks:
        return TimesOfRanks(self, job)


class TimesOfRanks(Part):
    """A measured step begins when its examples are asked for."""

    def __init__(self, method: StepTimes, job: Built) -> None:
        from largebatch.machine import distributed

        self.every, self.job, self.device, self.engine = method.every_steps, job, job.device, job.engine
        self.hosts: list[str] = distributed.gather(platform.node())
        self.laps: Laps | None = None  # of the measured step in progress
        self.complete: list[tuple[int, Laps]] = []  # steps done, and the laps of the last of them
        self.gradient_ready: Mark = None
        self.missing = 0  # gradients of the last backward that are not there yet
        self.hooks: list[Any] = []
        self.quiet_until: dict[int, int] = {}  # rank -> measured steps
        self.measured = 0
        self.passed = 0  # steps of this session

    def before(self, step: Step) -> None:
        self.laps = [] if due(step.number, self.every) and self.passed >= WARM_UP else None
        self.passed += 1
        if self.laps is not None:
            step.lap = self.lap
            self.lap("data")

    def lap(self, part: str) -> None:
        """From now on the step does ``part``: one of DISJOINT, ``last_backward`` (with hooks) or other."""
        assert self.laps is not None
        if self.hooks:
            self._take_gradient_ready()
        if part == "last_backward":
            self._watch_gradients()
            part = "backward"
        self.laps.append((part, self._now()))

    def _watch_gradients(self) -> None:
        from largebatch.machine import distributed

        if not self.engine.SEPARABLE or distributed.world_size() == 1:
            return
        parameters = [p for p in self.engine.model.parameters() if p.requires_grad]
        self.missing, self.gradient_ready = len(parameters), None
        self.hooks = [p.register_post_accumulate_grad_hook(self._gradient_is_there) for p in parameters]

    def _gradient_is_there(self, parameter: torch.Tensor) -> None:
        self.missing -= 1
        if self.missing <= 0:
            self.gradient_ready = self._now()

    def _take_gradient_ready(self) -> None:
        """The backward is over: what came after the last gradient was communication."""
        assert self.laps is not None
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        if self.gradient_ready is not None:
            self.laps.append(("communication", self.gradient_ready))

    def after(self, step: Step) -> None:
        if self.laps is not None:
            self.lap("end")
            self.complete.append((step.number + 1, self.laps))
            self.laps = None

    def _now(self) -> Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, laps: Laps) -> list[float]:
        """Of each of the PARTS; NaN where the engine does not tell them apart."""
        if self.device.type == "cuda":
            laps[-1][1].synchronize()
        sums = dict.fromkeys(PARTS, 0.0)
        for (part, begin), (_, end) in itertools.pairwise(laps):
            sums[part] = sums.get(part, 0.0) + seconds_between(begin, end)
        sums["compute"] = sums["forward"] + sums["backward"]
        sums["step"] = seconds_between(laps[0][1], laps[-1][1])
        if not self.engine.SEPARABLE:
            sums |= dict.fromkeys(("compute", "forward", "backward", "communication", "optimizer"), math.nan)
        return [sums[part] for part in PARTS]

    def read(self, recorder: PartRecorder) -> None:
        """Record the steps measured since the last time."""
        import torch

        from largebatch.machine import distributed

        if not self.complete:
            return
        own = torch.tensor([self._seconds(laps) for _, laps in self.complete], dtype=torch.float64)
        of_ranks = torch.zeros(distributed.world_size(), *own.shape, dtype=torch.float64, device=self.device)
        of_ranks[distributed.rank()] = own
        table = distributed.sum_(of_ranks).transpose(0, 1).tolist()  # step, rank, part
        for (step, _), seconds in zip(self.complete, table, strict=True):
            found = summary([dict(zip(PARTS, row, strict=True)) for row in seconds], self.hosts)
            recorder.event("ranks", **self.job.plan.when(step), **found)
            self.measured += 1
            rank = found["slowest_rank"]
            if is_slow(found) and self.measured >= self.quiet_until.get(rank, 0):
                self.quiet_until[rank] = self.measured + QUIET_RECORDS
                recorder.say(sentence(found, self.engine.NAME))
        self.complete = []


def seconds_between(begin: Mark, end: Mark) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def summary(of_ranks: list[dict[str, float]], hosts: list[str]) -> dict[str, Any]:
    """The median rank and the slowest in each part, and the rank whose own seconds are most.

    Of an even number of ranks the lower middle is the median: of two, the faster.
    """
    parts = [part for part in PARTS if not math.isnan(of_ranks[0][part])]
    own_parts = [part for part in OWN if part in parts]
    medians = {part: statistics.median_low(row[part] for row in of_ranks) for part in parts}
    own = [sum(row[part] for part in own_parts) for row in of_ranks]
    slowest = own.index(max(own))
    excess = {part: of_ranks[slowest][part] - medians[part] for part in own_parts}
    median = statistics.median_low(own)
    found: dict[str, Any] = {}
    for part in PARTS:
        found[f"{part}_seconds_median"] = medians.get(part)
        found[f"{part}_seconds_most"] = max(row[part] for row in of_ranks) if part in parts else None
    return {
        **found,
        "slowest_rank": slowest,
        "slowest_host": hosts[slowest],
        "slowest_part": max(excess, key=lambda part: excess[part]),  # which of its own is furthest above the median
        "own_seconds_median": median,
        "own_seconds_slowest": own[slowest],
        "slowest_over_median": own[slowest] / median if median else None,
        **{f"slowest_{part}_seconds": of_ranks[slowest][part] if part in parts else None for part in PARTS},
    }


def is_slow(times: dict[str, Any]) -> bool:
    own, median = times["own_seconds_slowest"], times["own_seconds_median"]
    return own > SLOW * median and own - median > NOTICEABLE * times["step_seconds_median"]


def sentence(times: dict[str, Any], engine: str) -> str:
    rank, host, part = times["slowest_rank"], times["slowest_host"], times["slowest_part"]
    if times["compute_seconds_median"] is None:
        return (
            f"rank {rank} (host {host}) is slow: it waits {times['own_seconds_slowest']:.3f} s a step for data, median "
            f"{times['own_seconds_median']:.3f} s ({engine} does not tell computing from communicating)"
        )
    return (
        f"rank {rank} (host {host}) is slow: {times['own_seconds_slowest']:.3f} s a step of its own, median "
        f"{times['own_seconds_median']:.3f} s; {WORDS[part]} {times[f'slowest_{part}_seconds']:.3f} s, median "
        f"{times[f'{part}_seconds_median']:.3f} s"
    )
