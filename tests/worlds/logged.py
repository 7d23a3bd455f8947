"""Trainers that are killed, as processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
from beside import beside

from largebatch.machine import distributed
from largebatch.recipes import config
from largebatch.run import beforehand
from largebatch.run.loggers.service import ServiceProcess
from largebatch.run.train import train

FACTS: dict[str, Any] = {  # what a service is told first
    "service": "wandb",
    "settings": {"mode": None, "project": None, "entity": None, "group": None, "tags": []},
    "id": "a", "name": "a", "directory": ".", "report": "", "config": {},
}  # fmt: skip


LONG = 250.0  # seconds at the end of a run, for a machine that is slow


def trained(path: str) -> None:
    beforehand.FINISH_SECONDS = LONG
    with distributed.group(torch.device("cpu"), alone=True):
        assert train(config.load(path)).status == "finished"


def killed_after(path: str, step: str) -> None:
    """By a signal that nobody hears."""

    def kill(_: object, made: object) -> None:
        if getattr(made, "number", None) == int(step):
            os.kill(os.getpid(), signal.SIGKILL)

    beforehand.FINISH_SECONDS = LONG
    with beside(after=kill):
        train(config.load(path), quiet=True)


def with_a_service(packages: str) -> None:
    """A trainer that started a service's process, and does nothing else."""
    sys.path.insert(0, packages)
    held = ServiceProcess("wandb", {**FACTS, "trainer": os.getpid()}, 0.1)
    time.sleep(1000)
    held.close()
