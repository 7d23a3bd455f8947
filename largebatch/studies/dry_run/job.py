"""A run, assembled for a cluster and for data that need not be here.

Everything is decided by the code that decides it in ``train``, so what it refuses is refused here in the same words.
The model is really built, and then its tensors lose their memory. Sizes of named data sets are known; those of a folder
are read off it where it is there, and asked for where it is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from largebatch import data
from largebatch.checkpoint import Loaded
from largebatch.data import nested, sets
from largebatch.data.nested import Batch
from largebatch.data.resident import TensorSplit
from largebatch.data.sets import DataSet
from largebatch.engines import Engine
from largebatch.errors import UserError
from largebatch.machine import distributed
from largebatch.plan.batch import BatchPlan, MicroBatch, factored
from largebatch.recipes import config, derive, refusals
from largebatch.run import assemble
from largebatch.studies.dry_run.engines import FAKES
from largebatch.studies.reading import training_examples


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What is pretended, and what the data are where they are not here."""

    world_size: int = 1
    device: str = "cuda"
    examples: int | None = None
    classes: int | None = None


def usual_device(stated: str, world_size: int | None) -> str:
    """The recipe's; where it leaves the choice, that of a cluster, or without one that of this machine."""
    if stated != "auto":
        return stated
    return "cuda" if world_size is not None or torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def pretended(world_size: int) -> Iterator[None]:
    """Inside, this process is rank zero of a group whose other members do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        distributed.forget_groups()
        gc.collect()
        dist.destroy_process_group()


@dataclasses.dataclass(frozen=True)
class Described:
    """A split of which nothing but the size is known."""

    count: int
    bytes_on_device: int

    def __len__(self) -> int:
        return self.count

    def steps(
        self, plan: BatchPlan, rank: int, first_step: int, placement: data.Placement, seed: int
    ) -> Iterator[Iterable[Batch]]:
        raise AssertionError("a dry run reads no examples")

    def batches(self, rank: int, world: int, batch_size: int, placement: data.Placement) -> Iterator[Batch]:
        raise AssertionError("a dry run reads no examples")


def job_of(run: config.Run, cluster: Cluster, mode: FakeTensorMode, loaded: Loaded | None = None) -> assemble.Job:
    """As assemble.assemble, with fake tensors on the CPU; its ``device`` is the cluster's.

    ``loaded``: the checkpoint of ``run.start``, where it is to be checked against the model and the optimizer.
    """
    refusals.check_device(run, cluster.device)
    dataset = dataset_of(run, cluster)
    if run.batch.global_batch_size < cluster.world_size:
        factored("batch.global_batch_size", run.batch.global_batch_size, cluster.world_size, 1 << 62, MicroBatch())
    plain = run.model_copy(update={"compile": False, "start": run.start if loaded else None})
    made = {name: functools.partial(fake_engine, kind, mode) for name, kind in FAKES.items()}
    job = assemble.assemble(plain, torch.device(cluster.device), dataset, made, loaded=loaded, unread=True)
    return dataclasses.replace(job, run=run)


def fake_engine(kind: Any, mode: FakeTensorMode, device: torch.device, *arguments: Any, **settings: Any) -> Engine:
    """On the CPU, whatever the cluster's ``device``."""
    engine = kind(mode, torch.device("cpu"), *arguments, **settings)
    engine.scaler = torch.amp.GradScaler("cpu", enabled=False)  # costs no memory, and asks for real numbers
    return engine


def dataset_of(run: config.Run, cluster: Cluster) -> data.Splits:
    """Sized as published or stated, or as what is here if nothing else says it."""
    known, asked = sets.known(run.data.name), assemble.asked_of(run)
    sets.check(known, asked)
    if known.is_outlined(asked, stated=cluster.examples is not None):
        return data.finished(outline_of(run, cluster, known, asked), asked)
    found = known.build(asked)
    return data.finished(dataclasses.replace(found, train=described(found.train), test=described(found.test)), asked)


def described(split: data.Split) -> Described:
    on_device = nested.tensors_of(split.tensors) if isinstance(split, TensorSplit) else []
    return Described(len(split), sum(tensor.nbytes for tensor in on_device))


def outline_of(run: config.Run, cluster: Cluster, known: DataSet, asked: data.Asked) -> data.Splits:
    """From what is known of the set."""
    train, _ = training_examples(run.data, cluster.examples)
    test = asked.hold_out or known.counts(asked)[1] or max(1, train // 10)
    each = known.resident_bytes(asked)
    splits = Described(train, train * each), Described(test, test * each)
    source = "sizes as published" if known.examples and cluster.examples is None else "sizes as stated"
    return known.outline(asked, splits, source, outputs_of(run, cluster))


def outputs_of(run: config.Run, cluster: Cluster) -> int:
    """The numbers that a model is to give for each example."""
    known = sets.known(run.data.name).outputs(assemble.asked_of(run))
    stated = known or cluster.classes or run.model.arguments.get("num_classes")
    if not isinstance(stated, int):
        raise UserError(
            f"data.name = {run.data.name} has as many classes as there are folders; say how many: --classes N, or "
            "model.num_classes"
        )
    return stated


def with_micro_batch(run: config.Run, micro: int) -> config.Run:
    """The run with this one stated."""
    return run.model_copy(update={"batch": run.batch.model_copy(update={"micro_batch_size": micro})})


def smaller_micro_batches(run: config.Run, plan: BatchPlan, cluster: Cluster) -> list[int]:
    """The micro-batches below the run's that its methods allow, largest first."""
    size = plan.micro_batch_size
    found = []
    for micro in range(size - 1, 0, -1):
        if (plan.global_batch_size // plan.world_size) % micro:
            continue
        changed = with_micro_batch(run, micro)
        with contextlib.suppress(UserError):
            derive.plan_of(changed, plan.dataset_size, plan.world_size, 1 << 20)
            found.append(micro)
    return found
