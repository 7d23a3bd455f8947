"""What two real ranks send in a step, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from beside import stepped, steps_of
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.assemble import Job, assemble
from largebatch.tasks.classification import Classification

Calls = list[tuple[str, int]]  # (collective, bytes)
CALLS = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter_tensor",
    "reduce_scatter_single",
)  # torch has renamed two of them


def counted(folder: str) -> None:
    """The second step of ``ddp.yaml`` and ``fsdp.yaml``, into ``found.json``."""
    directory = Path(folder)
    with distributed.group(torch.device("cpu"), alone=True):
        buckets, apart = of_ddp(assemble(config.load(directory / "ddp.yaml"), torch.device("cpu")))
        found = {
            "ddp": buckets,
            "gradients beside the buckets": apart,
            "fsdp": of_fsdp(assemble(config.load(directory / "fsdp.yaml"), torch.device("cpu"))),
        }
        if distributed.is_first():
            (directory / "found.json").write_text(json.dumps(found))


def of_ddp(job: Job) -> tuple[Calls, bool]:
    """Its buckets, and whether gradients lie apart from them while micro-batches accumulate."""
    calls: Calls = []
    places: set[int] = set()

    def hook(state, bucket):  # torch reads annotations as types, and here they are strings
        calls.append(("all_reduce", bucket.buffer().nbytes))
        places.add(bucket.buffer().untyped_storage().data_ptr())
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    engine: Any = job.engine
    engine.parallel.register_comm_hook(None, hook)
    steps = steps_of(job)
    stream = job.dataset.train.steps(job.plan, distributed.rank(), 0, job.placement, 0)
    stepped(steps, 0, next(stream))
    calls.clear()
    stepped(steps, 1, next(stream))
    buckets = list(calls)
    images, labels = next(iter(next(iter(job.dataset.train.steps(job.plan, 0, 0, job.placement, 0)))))
    engine.backward(F.cross_entropy(engine.forward(Classification(), (images,), False), labels))
    own = {p.grad.untyped_storage().data_ptr() for p in engine.model.parameters()}
    return buckets, not own & places


def of_fsdp(job: Job) -> Calls:
    """Its calls, whatever asks for them."""
    calls: Calls = []

    def counts(name: str) -> Any:
        original = getattr(dist, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            tensors = [t for t in (*arguments, *settings.values()) if isinstance(t, torch.Tensor)]
            calls.append((name[:10], max(t.nbytes for t in tensors)))
            return original(*arguments, **settings)

        return call

    steps = steps_of(job)
    stream = job.dataset.train.steps(job.plan, distributed.rank(), 0, job.placement, 0)
    stepped(steps, 0, next(stream))
    there = [name for name in CALLS if hasattr(dist, name)]
    with mock.patch.multiple(dist, **{name: counts(name) for name in there}):
        stepped(steps, 1, next(stream))
    return calls
