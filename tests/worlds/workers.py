"""A trainer with data workers, which does not end by itself."""

from __future__ import annotations

import multiprocessing
import time

import torch

from largebatch.data import Placement, build
from largebatch.data.workers import WorkerSplit


def train_on(images: str) -> None:
    """Says the numbers of its workers' processes, and stays."""
    split = build("folder", root=images, workers=2).train
    assert isinstance(split, WorkerSplit)
    batches = split.batches(0, 1, 1, Placement(torch.device("cpu")))
    next(iter(batches))
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)
