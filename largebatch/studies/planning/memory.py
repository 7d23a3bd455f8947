"""What a step needs of a device and sends, from few traces.

Activations are linear in the micro-batch, to what a trace shows: two traces say them for all others. What stays does
not depend on the micro-batch, but on whether gradients are accumulated and, where an engine shards, on the ranks. An
evaluation's activations are taken in proportion to its batch, which falls with a rank's share of the test set.

A device is taken to hold what the dry run counts and the machine's ``reserve`` beside it: the context, the libraries'
own memory, gaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.recipes import config, derive
from largebatch.records.plan import KeptTrace, TracedCollective
from largebatch.studies.planning.traces import TracedShape, Traces

GIB = 2**30
PASSING = ("activations", "gathered blocks")
SMALL, LARGER = 8, 4
"""The smaller micro-batch that is traced, or the next multiple that the recipe asks for; how often the other is it."""


@dataclass(frozen=True)
class StepNeeds:
    """Of a device in a step."""

    bytes: float
    collectives: tuple[TracedCollective, ...]
    flops: float  # of an example
    convolutions: float = 0.0  # their share of these

    def fits(self, memory: float, reserve: float) -> bool:
        return self.bytes + reserve <= memory


class StepMemory:
    """Of one run without phases, for every world and micro-batch."""

    def __init__(self, run: config.Run, traces: Traces) -> None:
        self.run, self.traces = run, traces
        self.sharded = run.engine.name != "ddp"

    def needs(self, world: int, micro: int, accumulation: int) -> StepNeeds:
        if not self.proportional(world):
            trace = self.traces.at(TracedShape(world, micro, accumulation))
            return self._of(trace, trace, passing_bytes(trace), world)
        several = min(accumulation, 2)
        ranks = derive.synchronised_ranks(self.run_at(world, micro, accumulation), world)
        if ranks > 1:  # batch norm that is shared, at this micro-batch alone
            trace = self.traces.at(TracedShape(ranks, micro))
            return self._of(trace, trace, passing_bytes(trace), world)
        near = min(2, world)
        small = self.smallest
        first = self.traces.at(TracedShape(near, small))
        passing = float(passing_bytes(first))
        if micro != small:
            other = self.traces.at(TracedShape(near, LARGER * small))
            slope = (passing_bytes(other) - passing_bytes(first)) / (LARGER * small - small)
            passing += slope * (micro - small)
        staying = self.traces.at(TracedShape(world if self.sharded else near, small, several))
        return self._of(staying, first, passing, world)

    def proportional(self, world: int) -> bool:
        """Whether the micro-batch may be any: no method asks for one."""
        wishes = (method.micro_batch(self.run, world) for method in self.run.methods.values())
        return all(wish is None for wish in wishes)

    def run_at(self, world: int, micro: int, accumulation: int) -> config.Run:
        sizes = {"global_batch_size": world * micro * accumulation, "micro_batch_size": micro}
        return self.run.model_copy(update={"batch": self.run.batch.model_copy(update=sizes)})

    @property
    def smallest(self) -> int:
        """The multiple of what one batch norm sees that is at least SMALL."""
        unit = self.run.batch.bn_batch_size or 1
        return unit * math.ceil(SMALL / unit)

    def _of(self, staying: KeptTrace, first: KeptTrace, passing: float, world: int) -> StepNeeds:
        parts = staying.bytes_by_part
        stays = sum(parts.values()) - passing_bytes(staying)
        evaluated, traced = (
            min(first.evaluation_batch_size, math.ceil(first.test_examples / ranks))
            for ranks in (world, first.world_size)
        )
        evaluation = first.evaluation_bytes * evaluated / traced
        return StepNeeds(stays + max(passing, evaluation), tuple(staying.collectives), first.flops, first.convolutions)


def passing_bytes(trace: KeptTrace) -> int:
    """What does not stay from step to step."""
    return sum(trace.bytes_by_part[part] for part in PASSING)
