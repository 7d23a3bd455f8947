"""A run's micro-batches by steps; on CUDA made on a stream beside the training's, one before it is asked for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Iterator
from contextlib import closing

import torch

from largebatch.data.nested import Batch, tensors_of
from largebatch.plan.batch import BatchPlan


def in_steps(
    batches: Generator[Batch, None, None], plan: BatchPlan, first_step: int
) -> Generator[Iterator[Batch], None, None]:
    """``batches`` by the steps that they belong to. Closing it closes them."""
    with closing(batches):
        for step in range(first_step, plan.steps):
            micro_batches = itertools.islice(batches, plan.at(step).accumulation_steps)
            yield micro_batches
            for _ in micro_batches:  # what the caller left would else open the next step
                pass


def one_ahead(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """``batches``; on CUDA the copies and kernels that make one run while the one before is trained on.

    The training's stream waits for an event, the host for nothing but images that are not read yet.
    """
    with closing(batches):
        if device.type != "cuda":
            yield from batches
            return
        stream, waiting = _side_stream(device), None
        while True:
            with torch.cuda.stream(stream):
                batch = next(batches, None)
                begun = None if batch is None else (batch, stream.record_event())
            if waiting is not None:
                yield _handed_over(*waiting)
            if begun is None:
                return
            waiting = begun


def _handed_over(batch: Batch, ready: torch.Event) -> Batch:
    """``batch`` for the stream that is current now."""
    tensors = tensors_of(batch)
    training = torch.cuda.current_stream(tensors[0].device)
    training.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(training)  # the allocator keeps its memory until the training is done with it
    return batch


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all splits, since the allocator keeps memory by stream."""
    return torch.cuda.Stream(device)
