"""Two steps of the real update on fake tensors: the first makes optimizer states and shows the order of the gradients,
the second is measured. It has the micro-batch of the run, and at most two of them: what the first one does, all but
the last do alike. Then an evaluation's forward pass.

A batch has the shapes of the data set's. Convolutions and matrix products run in the run's precision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import _fully_shard
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import largebatch.steps.step
from largebatch import engines, methods
from largebatch.data.finishing import as_read
from largebatch.data.nested import Batch
from largebatch.engines import workers
from largebatch.machine import distributed
from largebatch.models import batch_norm
from largebatch.optim import dealt, shards
from largebatch.plan.batch import Stage
from largebatch.recipes.decided import Decided
from largebatch.run.assemble import Job
from largebatch.run.loop import Steps
from largebatch.run.parts import Parts
from largebatch.steps.part import Part
from largebatch.steps.step import Step
from largebatch.studies.dry_run import engines as fakes
from largebatch.studies.dry_run.autocast import as_on_cuda
from largebatch.studies.dry_run.engines import FakeZero
from largebatch.studies.dry_run.job import Described
from largebatch.studies.dry_run.trace import ACTIVATIONS, GATHERED, Collective, Trace, fake_addresses_allowed, local

PARTS: tuple[str, ...] = (
    "weights", "master weights", "gradients", "reduction bucket", "optimizer states", "other weights", "workers",
    "buffers", "activations", "gathered blocks", "examples on the device",
)  # fmt: skip
WHAT_FOR = {  # what is sent by these
    batch_norm: "batch norm",
    shards: "layer norms",
    dealt: "matrices",
    workers: "averaging of workers",
    fakes: "gradients",
    sys.modules[__name__]: "loss record",
    _fully_shard: "gradients",
    engines: "gradient norm",
    methods: "methods",
    largebatch.steps.step: "units",
}


@dataclasses.dataclass(frozen=True)
class Traced:
    """Of one rank and one step."""

    micro_batch_size: int
    accumulation_steps: int
    bytes_by_part: dict[str, int]  # all of PARTS
    evaluation_bytes: int  # activations and gathered blocks of an evaluation's forward pass
    collectives: list[tuple[Collective, int]]  # with how many times a step
    flops: int
    convolutions: int  # of these

    @property
    def total_bytes(self) -> int:
        """Where it is most: in training or in an evaluation."""
        passing = self.bytes_by_part["activations"] + self.bytes_by_part["gathered blocks"]
        return sum(self.bytes_by_part.values()) - passing + max(passing, self.evaluation_bytes)


def traced(job: Job, mode: FakeTensorMode, cuda: bool) -> Traced:
    """Runs the job's update where it has the largest micro-batch; leaves the job used up."""
    stage = max(job.plan.stages, key=functools.partial(numbers_of, job))
    shown = min(2, stage.accumulation_steps)
    shortened = tuple(s._replace(accumulation_steps=min(2, s.accumulation_steps)) for s in job.plan.stages)
    plan = dataclasses.replace(job.plan, stages=shortened)
    decided = dataclasses.replace(job.decided, plan=plan)
    job = dataclasses.replace(job, decided=decided, device=torch.device("cpu"))  # where the fake tensors are
    engine = job.engine
    if sets_here(job.decided) > 1:
        shown = stage.accumulation_steps  # every worker of the rank takes its own
    trace, flops = Trace(WHAT_FOR), counter_of_operations()
    with fake_addresses_allowed(), mode, as_on_cuda() if cuda else contextlib.nullcontext():
        parts = what_stays(job, trace)
        held = Held(engine, trace)
        steps = Steps(job, Parts(job, {"held": lambda job: held}))
        beside = [tensor for part in steps.parts.values() for tensor in part.kept()]
        parts["other weights"] = trace.stays("other weights", beside)
        engine.model.train()
        with trace:
            steps.make(steps.begin(stage.first_step), micro_batches(job, stage, shown, trace))
            parts["optimizer states"] = trace.stays("optimizer states", states_of(engine.optimizer))
            if (reducer := getattr(engine, "reducer", None)) is not None:
                reducer.build()
                trace.stays("gradients", [bucket.flat for bucket in reducer.buckets])
            trace.begin_anew()
            with flops:
                step = steps.make(steps.begin(stage.first_step), micro_batches(job, stage, shown, trace))
            assert step.loss is not None
            distributed.sum_(torch.stack([step.loss]).double())  # of as many losses as there are steps between records
            parts["activations"], parts["gathered blocks"] = trace.peak[ACTIVATIONS], trace.peak[GATHERED]
            parts["gradients"] = max([trace.gradients, *held.bytes])
            found = trace.collectives
            trace.begin_anew()
            evaluation(job)
            of_evaluation = trace.peak.total()
    if isinstance(engine, FakeZero):
        parts |= engine.bytes_by_part(parts["gradients"])
    parts["workers"] = of_workers(job, parts)
    alike = 1 + stage.accumulation_steps - shown  # how many micro-batches the first of two stands for
    times = [(call, alike if call.moment == 1 and shown > 1 else 1) for call in found]
    return Traced(
        stage.micro_batch_size, stage.accumulation_steps, parts, of_evaluation, times,
        *(counted * stage.accumulation_steps // shown for counted in (flops.get_total_flops(), convolutions_of(flops))),
    )  # fmt: skip


def counter_of_operations() -> FlopCounterMode:
    """Of all modules together: to tell them apart torch hangs hooks on tensors, by which a recomputed pass lives on."""
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = EveryModule()
    return counter


class EveryModule(contextlib.nullcontext[None]):
    """In the place of torch's ModuleTracker."""

    parents = ("Global",)

    def __exit__(self, *_: object) -> None: ...


def convolutions_of(flops: FlopCounterMode) -> int:
    """What of the operations are convolutions', which may have a precision of their own."""
    counted = flops.get_flop_counts().get("Global", {})
    return sum(number for operation, number in counted.items() if "convolution" in str(operation))


class Held(Part):
    """Notes what gradients take when all of them are there."""

    def __init__(self, engine: Any, trace: Trace) -> None:
        self.engine, self.trace = engine, trace
        self.bytes: list[int] = []

    def with_gradient(self, turn: Step) -> None:
        self.bytes.append(self.trace.stays("gradients", map(local, self.engine.gradient_tensors())))


def what_stays(job: Job, trace: Trace) -> dict[str, int]:
    """The bytes of what is there before the first step."""
    engine = job.engine
    parts = dict.fromkeys(PARTS, 0)
    parameters = list(engine.model.parameters())
    parts["weights"] = trace.stays("weights", parameters)
    parts["buffers"] = trace.stays("buffers", engine.model.buffers())
    if isinstance(engine, FakeZero):
        trace.stays("weights", [*engine.flats, *engine.masters])
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: trace.note_gradient(p.grad))
    splits = [split for split in (as_read(job.dataset.train), job.dataset.test) if isinstance(split, Described)]
    parts["examples on the device"] = sum(split.bytes_on_device for split in splits)
    return parts


def states_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Of a parameter's shape or of factors of it; counters are a few bytes."""
    found = [t for t in tree_leaves(list(optimizer.state.values())) if isinstance(t, Tensor)]
    return [tensor for tensor in found if tensor.dim()]


def of_workers(job: Job, parts: dict[str, int]) -> int:
    """A set of everything that is trained for each worker of a rank, where there are several."""
    here = sets_here(job.decided)
    trained = sum(p.numel() * p.element_size() for p in job.engine.model.parameters() if p.requires_grad)
    each = trained + parts["buffers"] + parts["optimizer states"]
    return here * each if here > 1 else 0


def sets_here(decided: Decided) -> int:
    """Sets of weights and optimizer states on a rank."""
    return max([1, *(decision.sets for decision in decided.methods.values())]) // distributed.world_size()


def size_of(job: Job, stage: Stage) -> int | None:
    """The largest of its examples; None where they have none, or one."""
    sizes = job.dataset.sizes
    if sizes is None:
        return None
    return sizes.at(stage.first_step, job.plan) if sizes.of_phases else sizes.last


def numbers_of(job: Job, stage: Stage) -> int:
    """What the memory of a micro-batch is about proportional to."""
    return stage.micro_batch_size * job.dataset.pixels_at(size_of(job, stage))


def micro_batches(job: Job, stage: Stage, count: int, trace: Trace) -> Iterator[Batch]:
    for number in range(1, count + 1):
        trace.moment = number
        yield job.placement.placed(job.dataset.blank(stage.micro_batch_size, size_of(job, stage)))


def evaluation(job: Job) -> None:
    """Of one batch; every rank has a share of the test set."""
    share = -(-len(job.dataset.test) // distributed.world_size())
    job.engine.model.eval()
    with job.engine.whole_model(), torch.no_grad():
        batch = job.dataset.largest(min(job.decided.evaluating.batch_size, share))
        job.engine.predict(job.task, job.placement.placed(batch))
