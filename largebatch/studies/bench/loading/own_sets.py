"""Map-style sets of torch, read as a run reads ``lb.Dataset``, beside torch's DataLoader on the same set.

Two sets: the photographs through torchvision's transforms, where an item takes milliseconds and draws from global
random state, and small images in memory, where an item takes microseconds and what is around it counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from largebatch.data.dataset import Placement
from largebatch.data.items import ItemSplit
from largebatch.plan import batch
from largebatch.studies.bench.loading.peers import TORCHVISION, torchvision_set
from largebatch.studies.bench.loading.ways import Candidate, PhotoFolder, Way

SMALL_COUNT, SMALL_SHAPE, SMALL_BATCH = 50_000, (3, 32, 32), 512
SMALL = "small items, DataLoader"
AS_FAST = 1.0  # times the DataLoader, at least
_ENDLESS = 10**6  # steps


class SmallItems(Dataset):
    """As many as CIFAR's, and as large: bytes in memory that an item turns into numbers."""

    def __init__(self) -> None:
        shape = (SMALL_COUNT, *SMALL_SHAPE)
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SMALL_COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index].float().div_(255), index % 10


def of_torch(sample: PhotoFolder, workers: int = 0) -> list[Candidate]:
    """DataLoaders; of photographs the peers have one."""
    small = functools.partial(_loaded, SmallItems, SMALL_BATCH, workers)
    how = f"{SMALL_COUNT:,} images of 32 x 32 in memory, batches of {SMALL_BATCH}, torch's own loader"
    ways = [Candidate(SMALL, lambda: Way(SMALL, "peer", "float32", how, small))]
    if workers:
        photographs = functools.partial(_loaded, lambda: torchvision_set(sample), sample.batch, workers)
        ways.append(Candidate(TORCHVISION, lambda: Way(TORCHVISION, "peer", "uint8", "its set", photographs)))
    return ways


def of_ours(sample: PhotoFolder, workers: int = 0) -> list[Candidate]:
    names = ("lb.Dataset, torchvision's", "lb.Dataset, small items")
    how = "as a run reads it: exact in any world, draws set for each item"
    photographs = functools.partial(_planned, lambda: torchvision_set(sample), sample.batch, workers)
    small = functools.partial(_planned, SmallItems, SMALL_BATCH, workers)
    return [
        Candidate(names[0], lambda: Way(names[0], "ours", "uint8", how, photographs, AS_FAST, TORCHVISION)),
        Candidate(names[1], lambda: Way(names[1], "ours", "float32", how, small, AS_FAST, SMALL)),
    ]


def _loaded(made: Callable[[], Any], size: int, workers: int) -> Iterator[int]:
    loader = DataLoader(made(), size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for items in loader:
            yield len(items[0])


def _planned(made: Callable[[], Any], size: int, workers: int) -> Iterator[int]:
    split = ItemSplit(made(), "training", workers=workers)
    whole = len(split) // size * size or len(split)
    plan = batch.resolve(
        dataset_size=len(split), global_batch_size=min(size, whole), micro_batch_size=min(size, whole), steps=_ENDLESS
    )
    for micro_batches in split.steps(plan, 0, 0, Placement(torch.device("cpu")), 0):
        for items in micro_batches:
            yield len(items[0])
