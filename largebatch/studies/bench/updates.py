"""Updates whose examples are chosen on the device, and the CUDA graph that holds some of them.

An update is the trainer's own gradient and step (:class:`largebatch.run.loop.Steps`). Only where its examples come from
is another thing: a permutation of the training set lies on the device, beside the places in it that are next, so that
an update asks nothing of the host. A graph of it therefore holds everything (choose, gather, normalise, forward,
backward, step) and the host only says "again". What a graph has captured stays: the learning rate, the shapes, where
tensors lie.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from largebatch.data import nested
from largebatch.data.nested import Batch
from largebatch.data.resident import TensorSplit
from largebatch.errors import UserError
from largebatch.optim import kernels
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.plan.batch import largest_divisor
from largebatch.run.assemble import Job
from largebatch.run.loop import Steps
from largebatch.run.parts import Parts
from largebatch.studies.bench.optimizer import synchronises

WARM_UP = 3  # updates before a capture: libraries load, the optimizer's states and Triton's kernels are made
UPDATES_PER_REPLAY = 20  # at most; the host's part of a replay is then a small one


class Updates:
    """Updates of a job over and over its training set, which is shuffled anew at every epoch's end.

    An epoch is ``ceil(N/B)`` updates; where B does not divide N the last one takes what is missing from the head of the
    same permutation, not of the next one as a run does.
    """

    def __init__(self, job: Job) -> None:
        assert isinstance(job.dataset.train, TensorSplit)
        self.job, self.split = job, job.dataset.train
        self.everything = self.split.resident(job.device)
        self.stage = job.plan.at(0)
        self.steps = Steps(job, Parts(job))
        self.per_epoch = -(-len(self.split) // self.stage.global_batch_size)
        self.order = torch.arange(len(self.split), device=job.device)
        self.places = torch.arange(self.stage.global_batch_size, device=job.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.per_call = 1  # how many updates :meth:`call` makes
        self._left = 0  # updates until the next shuffle
        job.engine.model.train()

    def one(self) -> None:
        """One update; nothing in it waits for the device or depends on the host, so that a graph can hold it."""
        chosen = self.order.index_select(0, self.places)
        self.steps.make(self.steps.begin(0), self._micro_batches(chosen))
        self.places.add_(self.stage.global_batch_size).remainder_(len(self.order))

    def call(self) -> None:
        """The next ``per_call`` updates."""
        if self._left <= 0:
            self.shuffle()
            self._left = self.per_epoch
        if self.graph is None:
            self.one()
        else:
            self.graph.replay()
        self._left -= self.per_call

    def shuffle(self) -> None:
        """In place: a graph reads the permutation where it lay."""
        self.order.copy_(torch.randperm(len(self.order), device=self.order.device))

    def _micro_batches(self, chosen: Tensor) -> Iterator[Batch]:
        for part in chosen.split(self.stage.micro_batch_size):
            yield self.split.given(nested.rows_of(self.everything, part), self.job.placement)


def capture(updates: Updates) -> str | None:
    """Put the updates of a call into a CUDA graph, or say why they are not.

    As torch's notes on CUDA graphs have it: a few updates on the stream that captures, none on another one, for
    autograd remembers streams; gradients are None when the capture begins and come from the graph's own memory. Dropout
    draws anew at every replay: torch registers its generator with the graph.
    """
    if reason := not_captured(updates.job):
        return reason
    device, optimizer = updates.job.device, updates.job.engine.optimizer
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            updates.one()
        waits = synchronises(updates.one)
    torch.cuda.current_stream(device).wait_stream(stream)
    if waits:
        return "the update makes the host wait for the device"
    keep_steps_on(device, optimizer)
    # The Triton kernels' table of gradients is sent once in a capture, so there it holds one update.
    several = not (isinstance(optimizer, LayerwiseOptimizer) and optimizer.KERNELS)
    count = largest_divisor(updates.per_epoch, UPDATES_PER_REPLAY) if several else 1
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(count):
                updates.one()
    except RuntimeError as error:  # torch's generator does not survive it, so there is no going on without a graph
        raise UserError(
            f"the update at batch {updates.stage.global_batch_size} cannot be captured into a CUDA graph "
            f"({str(error).splitlines()[0]}); --eager measures without graphs"
        ) from error
    updates.graph, updates.per_call = graph, count
    return None


def not_captured(job: Job) -> str | None:
    """What is known beforehand to keep an update out of a CUDA graph; None where nothing is."""
    optimizer = job.engine.optimizer
    if job.plan.accumulation_steps > 1:
        return "its micro-batches are so large that the host keeps ahead of the device"
    if job.decided.precision == "fp16":
        return "the loss scaler of fp16 asks on the host whether the gradients are finite"
    if job.run.engine.name != "ddp":
        return f"engine.name = {job.run.engine.name} is not captured"
    if not counts_on_device(optimizer, job.device):
        return f"{type(optimizer).__name__} counts its updates on the host, and a graph would repeat one of them"
    return None


def counts_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether nothing of a step but what is on the device changes from one to the next."""
    if isinstance(optimizer, LayerwiseOptimizer):
        return not optimizer.COUNTED or (optimizer.KERNELS is not None and kernels.usable(device))
    return isinstance(optimizer, torch.optim.SGD) or all("capturable" in group for group in optimizer.param_groups)


def keep_steps_on(device: torch.device, optimizer: torch.optim.Optimizer) -> None:
    """torch's Adam and RMSprop are captured only if told so, and with their counters on the device."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)
