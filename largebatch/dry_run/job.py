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
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from largebatch import assemble, config, data, derive, distributed
from largebatch.batch import BatchPlan, MicroBatch, factored
from largebatch.data import augment, places
from largebatch.data.dataset import blank_image
from largebatch.data.facts import FACTS
from largebatch.data.sizes import constant
from largebatch.dry_run.engines import FAKES
from largebatch.engines import Engine
from largebatch.errors import UserError, suggestion
from largebatch.nested import Batch
from largebatch.recipes import training_examples

TEST_EXAMPLES = {"imagenet": 50_000, "cifar10": 10_000, "cifar100": 10_000, "mnist": 10_000, "fashion_mnist": 10_000}
DIGITS_TEST = 297
FROM_FOLDERS = ("imagenet", "folder")


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
        raise AssertionError("a dry run reads no images")

    def batches(self, rank: int, world: int, batch_size: int, placement: data.Placement) -> Iterator[Batch]:
        raise AssertionError("a dry run reads no images")


def job_of(run: config.Run, cluster: Cluster, mode: FakeTensorMode) -> assemble.Job:
    """As assemble.assemble, with fake tensors on the CPU; its ``device`` is the cluster's."""
    dataset = dataset_of(run, cluster)
    if run.batch.global_batch_size < cluster.world_size:
        factored("batch.global_batch_size", run.batch.global_batch_size, cluster.world_size, 1 << 62, MicroBatch())
    plain = run.model_copy(update={"compile": False})
    made = {name: functools.partial(fake_engine, kind, mode) for name, kind in FAKES.items()}
    job = assemble.assemble(plain, torch.device(cluster.device), dataset, made)
    return dataclasses.replace(job, run=run)


def fake_engine(kind: Any, mode: FakeTensorMode, device: torch.device, *arguments: Any, **settings: Any) -> Engine:
    """On the CPU, whatever the cluster's ``device``."""
    engine = kind(mode, torch.device("cpu"), *arguments, **settings)
    engine.scaler = torch.amp.GradScaler("cpu", enabled=False)  # costs no memory, and asks for real numbers
    return engine


def dataset_of(run: config.Run, cluster: Cluster) -> data.Dataset:
    section = run.data
    if section.name not in data.NAMES:
        raise UserError(f"data.name = {section.name!r} is not a data set{suggestion(section.name, data.NAMES)}")
    if section.name in FROM_FOLDERS and cluster.examples is None and places.find(section.name, section.root):
        found = assemble.dataset_of(run)
        train, test = Described(len(found.train), 0), Described(len(found.test), 0)
        return dataclasses.replace(found, train=train, test=test)
    return described(run, cluster)


def described(run: config.Run, cluster: Cluster) -> data.Dataset:
    """From what is known of the set."""
    section = run.data
    examples, _ = training_examples(section, cluster.examples)
    whole = examples + section.hold_out
    folder = section.name in FROM_FOLDERS
    sizes = assemble.sizes_of(run)
    side = sizes.evaluate if sizes else 224 if folder else 32
    known = FACTS.get(section.name)
    shape = known.shape if known else section.image_shape or (3, side, side)
    if known and sizes not in (None, constant(shape[1])):
        raise UserError(
            f"data.image_size = {side} does not fit data set {section.name}; its images are {shape[1]}x{shape[2]}"
        )
    standard = "resized_crop_flip" if folder else known.augment if known else "none"
    allowed = augment.FOLDER if folder else augment.RESIDENT
    resolved = augment.resolved(section.augment, standard, allowed, section.name)
    test = section.hold_out or (
        DIGITS_TEST if section.name == "digits" else TEST_EXAMPLES.get(section.name) or max(1, whole // 10)
    )
    each = 0 if folder else math.prod(shape) + 8  # a label is an int64
    return data.Dataset(
        name=section.name,
        example=blank_image(shape),
        outputs=classes_of(run, cluster),
        train=Described(examples, examples * each),
        test=Described(test, test * each),
        source="sizes as published" if known or section.name == "imagenet" else "sizes as stated",
        facts={"augment": resolved},
        sizes=sizes,
    )


def classes_of(run: config.Run, cluster: Cluster) -> int:
    if known := FACTS.get(run.data.name):
        return len(known.classes)
    if run.data.name == "imagenet":
        return 1000
    if run.data.name == "synthetic":
        return run.data.num_classes or 10
    stated = cluster.classes or run.model.arguments.get("num_classes")
    if not isinstance(stated, int):
        raise UserError(
            "data.name = folder has as many classes as there are folders; say how many: --classes N, or "
            "model.num_classes"
        )
    return stated


def smaller_micro_batches(run: config.Run, plan: BatchPlan, cluster: Cluster) -> list[int]:
    """The micro-batches below the run's that its methods allow, largest first."""
    size = plan.micro_batch_size
    found = []
    for micro in range(size - 1, 0, -1):
        if (plan.global_batch_size // plan.world_size) % micro:
            continue
        changed = run.model_copy(update={"batch": run.batch.model_copy(update={"micro_batch_size": micro})})
        with contextlib.suppress(UserError):
            derive.plan_of(changed, plan.dataset_size, plan.world_size, 1 << 20)
            found.append(micro)
    return found
