"""Two ranks of which one sleeps, in each part of a step once."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from largebatch.data.resident import ResidentSplit
from largebatch.engines import Ddp
from largebatch.machine import distributed
from largebatch.methods import step_times
from largebatch.recipes import config
from largebatch.run.train import train

NAP = 0.2  # seconds, in every step


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    def sleeps_first(*arguments: Any, **settings: Any) -> Any:
        time.sleep(NAP)
        return function(*arguments, **settings)

    return sleeps_first


def late_items(function: Callable[..., Any]) -> Callable[..., Any]:
    def sleeps_first(*arguments: Any, **settings: Any) -> Iterator[Any]:
        for item in function(*arguments, **settings):
            time.sleep(NAP)
            yield item

    return sleeps_first


def late_once_a_step(forward: Callable[..., Any]) -> Callable[..., Any]:
    def sleeps_first(self: Any, task: Any, batch: Any, last: bool = True) -> Any:
        time.sleep(NAP if last else 0)
        return forward(self, task, batch, last)

    return sleeps_first


def work(recipe: str, folder: str) -> None:
    """A run in ``folder`` for each case."""
    forward = mock.patch.object(Ddp, "forward", late_once_a_step(Ddp.forward))
    stream = mock.patch.object(ResidentSplit, "steps", late_items(ResidentSplit.steps))
    micro_batches = mock.patch.object(ResidentSplit, "_micro_batches", late_items(ResidentSplit._micro_batches))
    cases: dict[str, tuple[Any, Any, list[str]]] = {  # what rank 1 does, what rank 0 does, overrides
        "off": (None, None, ["record.ranks_every_steps=0"]),
        "equal": (forward, forward, []),
        "stream": (stream, None, []),
        "micro_batch": (micro_batches, None, []),
        "compute": (forward, None, []),
        "optimizer": (mock.patch.object(Ddp, "step", late(Ddp.step)), None, []),
        "sam": (stream, None, ["sam.rho=0.05"]),
        "again": (stream, None, []),
        "fsdp": (stream, None, ["engine.name=fsdp"]),
    }
    with distributed.group(torch.device("cpu")):
        rank = distributed.rank()
        with mock.patch.object(platform, "node", return_value=f"node{rank}"):
            for name, (one, zero, overrides) in cases.items():
                step_times.QUIET_RECORDS = 2 if name == "again" else 20
                with (one if rank else zero) or contextlib.nullcontext():
                    train(config.load(recipe, [f"record.dir={folder}/{name}", *overrides]), quiet=True)
