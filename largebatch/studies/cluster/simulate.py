"""Steps on a cluster, event by event: what the closed form of step.py leaves out.

Every step draws how slow its slowest device is (stragglers.py), and computes so much longer. A forward pass is over
when it has computed and its transfers have arrived; a backward pass likewise, and the buckets of the gradients become
ready along it. All transfers share one channel: they start in the order in which they become ready (those that a pass
waits for before the gradients of the same pass), one after another, on all devices at once. The next micro-batch, and
after the last one the transfers that nothing hides and the fixed part, begin when all of this has come to its end.

So without stragglers, and where one transfer alone goes on beside a pass, a step takes what step.py says. Where
gradients and gathered weights compete for the channel it takes longer, and where the slowest device's longer pass hides
more it takes less than the closed form with the mean of the slowest. Loops run over micro-batches and buckets, never
over devices or steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from largebatch.studies.cluster.machine import Machine
from largebatch.studies.cluster.step import BACKWARD, collective_time, pieces_of
from largebatch.studies.cluster.stragglers import Stragglers
from largebatch.studies.cluster.workload import Transfer, Workload


@dataclass(frozen=True)
class SimulatedSteps:
    """An element for each step."""

    seconds: np.ndarray
    slowest: np.ndarray
    """How many times as long as the pace says the slowest device computed."""
    compute: np.ndarray
    """Of the slowest device."""
    exposed: np.ndarray
    """Transfers that nothing hid."""


@dataclass(frozen=True)
class _Sent:
    """A transfer as the channel sees it: seconds of its pieces, and how far the pass is when each becomes ready."""

    transfer: Transfer
    seconds: tuple[float, ...]
    ready: tuple[float, ...]

    def copies(self, remaining: int, accumulation: int) -> int:
        """In the micro-batch that ``remaining`` follow; where there is not one for each, the last ones have it."""
        whole, more = divmod(self.transfer.times, accumulation)
        return whole + (remaining < more)


def simulated_steps(
    machine: Machine, workload: Workload, devices: int, share: float, accumulation: int, stragglers: Stragglers,
    steps: int, random: np.random.Generator,
) -> SimulatedSteps:  # fmt: skip
    """``steps`` steps of ``accumulation`` micro-batches of ``share`` examples on each of the devices of one cluster."""
    slowest = stragglers.drawn(devices, steps, random)
    micro = workload.pace.computing(share) * slowest
    sent = [_sent(machine, workload, transfer, devices) for transfer in workload.transfers]
    now = np.zeros(steps)
    for remaining in reversed(range(accumulation)):
        queue = [one for one in sent for _ in range(one.copies(remaining, accumulation))]
        now = _micro_batch(now, micro, queue)
    alone = sum(one.transfer.times * sum(one.seconds) for one in sent if one.transfer.hidden_by is None)
    compute = accumulation * micro
    busy = now + alone + workload.pace.fixed
    seconds = np.maximum(busy, accumulation * share * workload.pace.data_per_example)
    return SimulatedSteps(seconds, slowest, compute, now + alone - compute)


def _sent(machine: Machine, workload: Workload, transfer: Transfer, devices: int) -> _Sent:
    runs = pieces_of(transfer, workload)
    times = [collective_time(machine, transfer.collective, transfer.bytes * part, devices) for part, _ in runs]
    seconds = tuple(one for (_, number), one in zip(runs, times, strict=True) for _ in range(number))
    parts = [part for part, number in runs for _ in range(number)]
    return _Sent(transfer, seconds, tuple(float(ready) for ready in np.cumsum(parts)))


def _micro_batch(begin: np.ndarray, micro: np.ndarray, queue: list[_Sent]) -> np.ndarray:
    """When it has come to its end in each step. The channel is free when it begins."""
    free = begin
    for one in queue:
        if one.transfer.hidden_by == "forward":
            free = free + sum(one.seconds)
    turn = np.maximum(begin + (1 - BACKWARD) * micro, free)
    free = turn
    for one in queue:
        if one.transfer.hidden_by == "backward" and not one.transfer.gradients:
            free = free + sum(one.seconds)
    end = np.maximum(turn + BACKWARD * micro, free)
    gradients = [pair for one in queue if one.transfer.gradients for pair in zip(one.ready, one.seconds, strict=True)]
    for ready, seconds in sorted(gradients):
        free = np.maximum(free, turn + ready * (end - turn)) + seconds
    return np.maximum(end, free)
