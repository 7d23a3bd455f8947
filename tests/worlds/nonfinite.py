"""Training in which some steps are ruined on one rank."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from beside import beside

from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run.assemble import Job
from largebatch.run.train import train
from largebatch.steps.step import Step

POISONED = (5, 12)  # steps before these two that are ruined


@contextlib.contextmanager
def poisoned(steps: tuple[int, ...], of_rank: int = 0) -> Iterator[None]:
    """Inside, the last micro-batch of one rank in these steps has an image that is no number."""

    def ruin(job: Job, turn: Step) -> None:
        if turn.number in steps and distributed.rank() == of_rank:
            turn.micro_batches = [(images.clone(), labels) for images, labels in turn.micro_batches]
            turn.micro_batches[-1][0][0].fill_(math.nan)

    with beside(turn=ruin):
        yield


def train_poisoned(folder: str, *names: str) -> None:
    """These recipes one after another, with an image of rank 1 ruined; how each ended, by every rank."""
    ends = {}
    with distributed.group(torch.device("cpu")), poisoned(POISONED, of_rank=1):
        for name in names:
            result = train(config.load(Path(folder) / f"{name}.yaml"), quiet=True)
            ends[name] = distributed.gather([result.status, result.reason])
        if distributed.is_first():
            (Path(folder) / "ends.json").write_text(json.dumps(ends))
